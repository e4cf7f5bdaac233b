//! A disk that misbehaves: FUSE over one image, in the image's own place. It is slow, fails, is full or transfers less
//! than it was asked for, as a file says that is read at each request. It can have a cache that forgets (`Cache`): who
//! kills it together with its user has taken the power away.

mod cache;

pub use cache::Cache;

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, LockOwner, OpenFlags, ReplyAttr,
    ReplyData, ReplyEmpty, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use parking_lot::Mutex;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

/// Bytes of a sector: nothing is shorter.
pub const SECTOR: usize = 512;

/// How the disk is, for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// As it should be.
    Fine,
    /// Each request takes so long.
    Slow(Duration),
    /// Each request fails with EIO.
    Fails,
    /// Each write fails with EIO.
    FailsToWrite,
    /// Each flush fails with EIO.
    FailsToSync,
    /// Each write fails with ENOSPC.
    Full,
    /// What is longer than a sector is transferred by half.
    Short,
    /// A flush is answered, and not done.
    Lies,
}

impl std::str::FromStr for Mood {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_whitespace().collect::<Vec<_>>()[..] {
            ["fine"] => Ok(Self::Fine),
            ["slow", ms] => match ms.parse() {
                Ok(ms) => Ok(Self::Slow(Duration::from_millis(ms))),
                Err(_) => Err(format!("{ms} is no number of milliseconds")),
            },
            ["fails"] => Ok(Self::Fails),
            ["fails-to-write"] => Ok(Self::FailsToWrite),
            ["fails-to-sync"] => Ok(Self::FailsToSync),
            ["full"] => Ok(Self::Full),
            ["short"] => Ok(Self::Short),
            ["lies"] => Ok(Self::Lies),
            _ => Err(format!("{text:?} is no mood")),
        }
    }
}

/// What a request wants of the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Sync,
}

/// How much of a request of so many bytes is done; waits as the mood says.
fn suffer(mood: Mood, kind: Kind, bytes: usize) -> Result<usize, Errno> {
    match (mood, kind) {
        (Mood::Slow(time), _) => std::thread::sleep(time),
        (Mood::Fails, _) | (Mood::FailsToWrite, Kind::Write) | (Mood::FailsToSync, Kind::Sync) => {
            return Err(Errno::EIO);
        }
        (Mood::Full, Kind::Write) => return Err(Errno::ENOSPC),
        (Mood::Short, Kind::Read | Kind::Write) if bytes > SECTOR => {
            return Ok((bytes / 2).next_multiple_of(SECTOR).min(bytes));
        }
        _ => {}
    }
    Ok(bytes)
}

/// The file system: its root is the file.
pub struct BadDisk {
    image: File,
    bytes: u64,
    /// Where the mood is read.
    mood: PathBuf,
    cache: Option<Mutex<Cache>>,
}

impl BadDisk {
    /// Over an image that is open already. The file `mood` says how the disk is; without it, it is fine.
    pub fn new(image: File, mood: PathBuf, cache: Option<Cache>) -> std::io::Result<Self> {
        let bytes = image.metadata()?.len();
        Ok(Self { image, bytes, mood, cache: cache.map(Mutex::new) })
    }

    fn mood(&self) -> Mood {
        let text = std::fs::read_to_string(&self.mood).unwrap_or_default();
        // A file that is being written is empty for a moment.
        text.parse().unwrap_or(Mood::Fine)
    }

    fn read_image(&self, offset: u64, bytes: usize) -> Result<Vec<u8>, Errno> {
        let bytes = suffer(self.mood(), Kind::Read, bytes)?;
        let mut data = vec![0; bytes.min(self.bytes.saturating_sub(offset) as usize)];
        match &self.cache {
            Some(cache) => cache.lock().read(&self.image, &mut data, offset)?,
            None => self.image.read_exact_at(&mut data, offset)?,
        }
        Ok(data)
    }

    fn write_image(&self, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        if offset + data.len() as u64 > self.bytes {
            return Err(Errno::EFBIG);
        }
        let data = &data[..suffer(self.mood(), Kind::Write, data.len())?];
        match &self.cache {
            Some(cache) => cache.lock().write(&self.image, data, offset)?,
            None => self.image.write_all_at(data, offset)?,
        }
        Ok(data.len())
    }

    fn sync(&self) -> Result<(), Errno> {
        let mood = self.mood();
        suffer(mood, Kind::Sync, 0)?;
        if mood == Mood::Lies {
            return Ok(());
        }
        if let Some(cache) = &self.cache {
            cache.lock().write_back(&self.image)?;
        }
        Ok(self.image.sync_data()?)
    }

    fn allocate(&self, offset: u64, length: u64, mode: i32) -> Result<(), Errno> {
        if self.cache.is_some() {
            // Zeroes that a cache does not know of could not be forgotten.
            return Err(Errno::EOPNOTSUPP);
        }
        suffer(self.mood(), Kind::Write, 0)?;
        // SAFETY: an open file; the call takes numbers.
        match unsafe { libc::fallocate(self.image.as_raw_fd(), mode, offset as i64, length as i64) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error().into()),
        }
    }

    fn attributes(&self) -> FileAttr {
        FileAttr {
            ino: INodeNo::ROOT,
            size: self.bytes,
            blocks: self.bytes.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileType::RegularFile,
            perm: 0o600,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// How long the kernel may remember: nothing changes.
const FOR_LONG: Duration = Duration::from_secs(3600);

impl Filesystem for BadDisk {
    fn getattr(&self, _: &Request, _: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOR_LONG, &self.attributes());
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Past the page cache, whoever opens it: every request is to be seen here.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.read_image(offset, size as usize) {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.write_image(offset, data) {
            Ok(bytes) => reply.written(bytes as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // A descriptor is closed: that makes nothing durable.
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(self.sync(), reply);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        answer(self.allocate(offset, length, mode), reply);
    }
}

fn answer(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mood_does_what_its_word_says() {
        let done = |mood: &str, kind, bytes| {
            let mood: Mood = mood.parse().unwrap();
            suffer(mood, kind, bytes).map_err(|errno| errno.code())
        };
        for kind in [Kind::Read, Kind::Write, Kind::Sync] {
            assert_eq!(done("fine", kind, 4096), Ok(4096));
            assert_eq!(done("slow 1", kind, 4096), Ok(4096));
            assert_eq!(done("fails", kind, 4096), Err(libc::EIO));
        }
        assert_eq!(done("fails-to-write", Kind::Write, 512), Err(libc::EIO));
        assert_eq!(done("fails-to-write", Kind::Read, 512), Ok(512));
        assert_eq!(done("fails-to-sync", Kind::Sync, 0), Err(libc::EIO));
        assert_eq!(done("fails-to-sync", Kind::Write, 512), Ok(512));
        assert_eq!(done("full", Kind::Write, 512), Err(libc::ENOSPC));
        assert_eq!(done("full", Kind::Sync, 0), Ok(0));
        assert_eq!(done("short", Kind::Write, 4096), Ok(2048));
        assert_eq!(done("short", Kind::Read, 1024), Ok(512));
        assert_eq!(done("short", Kind::Write, 512), Ok(512));
        assert!("slow soon".parse::<Mood>().is_err() && "".parse::<Mood>().is_err());
    }
}
