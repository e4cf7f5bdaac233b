//! Images: raw files and block devices, opened for one writer alone or for readers, with their size and with the way
//! in which the host's page cache takes part.
//!
//! A writable image is read and written past the page cache where the file system allows it. The guest has a cache of
//! its own, a flush then has little to do, and a host that is short of memory does not stop the guest's writes. A
//! read-only one goes through the cache: it is shared by the host's VMs, and nothing can be lost.

use crate::SECTOR_BYTES;
use crate::buffer::Buffer;
use crate::lock;
use crate::overlay::{Overlay, UnderImage};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, fstatfs};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an image that nobody is seen to use may still be in use.
const LEFT_WITHIN: Duration = Duration::from_secs(3);
/// How often it is looked at meanwhile.
const LEFT_LOOK: Duration = Duration::from_millis(20);

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Shared with other readers.
    ReadOnly,
    /// For one alone.
    Writable,
}

/// Whether the host's page cache takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// It does not: O_DIRECT.
    Direct,
    /// It does.
    Cached {
        /// Why.
        why: &'static str,
    },
}

/// Why an image is not opened.
#[derive(Debug, thiserror::Error)]
pub enum DiskImageError {
    /// The kernel still has in hand what it was asked for before.
    #[error("disk image {}: its disk has not finished what an earlier machine asked it for", path.display())]
    Late {
        /// The image.
        path: PathBuf,
    },
    /// The host refuses.
    #[error("disk image {}: {source}", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Neither a file nor a block device.
    #[error("disk image {}: neither a regular file nor a block device", path.display())]
    Kind {
        /// The image.
        path: PathBuf,
    },
    /// Of a size that no disk has.
    #[error("disk image {}: {bytes} bytes is not a positive multiple of {SECTOR_BYTES}", path.display())]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Somebody else uses it.
    #[error(
        "disk image {}: in use by {}; stop it, or take another image", path.display(),
        holders.as_deref().unwrap_or("a process that is not to be seen from here")
    )]
    InUse {
        /// The image.
        path: PathBuf,
        /// By whom, as far as the kernel shows it.
        holders: Option<String>,
    },
    /// Where it lies nothing can be locked.
    #[error(
        "disk image {}: cannot be locked ({source}), so two writers could not be told apart; \
         a writable image needs a file system with locks", path.display()
    )]
    NoLocks {
        /// The image.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
}

/// An open image. It is locked until this is dropped, by whatever still reads or writes it.
#[derive(Debug)]
pub struct RawImage {
    file: File,
    bytes: u64,
    access: Access,
    caching: Caching,
    overlay: Option<Arc<Overlay>>,
}

impl RawImage {
    /// Opens and locks an image.
    pub fn open(path: &Path, access: Access) -> Result<Self, DiskImageError> {
        let is_device = is_block_device(path)?;
        // For a block device O_EXCL says that it is neither mounted nor a part of another device, nor will be.
        let exclusive = if is_device && access == Access::Writable { libc::O_EXCL } else { 0 };
        let (file, caching) = when_left(|| {
            let (file, caching) = open_as(path, access, exclusive).map_err(not_opened(path))?;
            lock_as(path, &file, access)?;
            Ok((file, caching))
        })?;
        if access == Access::Writable && !lock::loops_over(&file).is_empty() {
            return Err(in_use(path, &file));
        }
        let bytes = disk_bytes(path, &file)?;
        Ok(Self { file, bytes, access, caching, overlay: None })
    }

    /// The same image over a base: whatever reads or writes it sees what both hold together.
    pub fn over(self, under: UnderImage) -> io::Result<Self> {
        let direct = if self.caching == Caching::Direct { libc::O_DIRECT } else { 0 };
        let mut options = OpenOptions::new();
        options.read(true).write(self.access == Access::Writable).custom_flags(direct);
        let again = options.open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        let overlay = Overlay::new(again, self.bytes, under);
        Ok(Self { overlay: Some(Arc::new(overlay)), ..self })
    }

    /// What is under it, and what of the disk it has itself; none: all of it.
    pub fn overlay(&self) -> Option<&Overlay> {
        self.overlay.as_deref()
    }

    /// The same open image again, under the same lock: whoever is given it can be told from others.
    pub fn share(&self) -> io::Result<Self> {
        let Self { file, bytes, access, caching, overlay } = self;
        let (file, overlay) = (file.try_clone()?, overlay.clone());
        Ok(Self { file, overlay, bytes: *bytes, access: *access, caching: *caching })
    }

    /// An open file, to be read only. It is not locked.
    pub fn reading(file: File) -> io::Result<Self> {
        let bytes = size(&file)?;
        let caching = Caching::Cached { why: "it is read only" };
        Ok(Self { file, bytes, access: Access::ReadOnly, caching, overlay: None })
    }

    /// Its size when it was opened.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it was opened for.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Whether the host's page cache takes part.
    pub fn caching(&self) -> Caching {
        self.caching
    }

    /// Why io_uring is kept from it. Where a FUSE server transfers less than it was asked for, io_uring goes on by
    /// itself, with the wrong bytes, and says that all were transferred (seen on Linux 6.18).
    pub(crate) fn bars_uring(&self) -> Option<&'static str> {
        // From a file system that does not say which it is nothing is to be expected.
        let is_fuse = fstatfs(&self.file).map_or(true, |fs| fs.filesystem_type() == FUSE_SUPER_MAGIC);
        is_fuse.then_some("its file system is FUSE")
    }

    /// Whether it is known, without a look, that zeros are read there: nothing was ever written, and no base is read.
    pub fn is_hole(&self, bytes: &Range<u64>) -> bool {
        self.next_data(bytes.start) >= bytes.end
    }

    /// Where data begins, from this byte on: what comes before it is known to be zeroes. `u64::MAX`: there is none.
    pub fn next_data(&self, from: u64) -> u64 {
        let data = next_data(&self.file, from);
        match &self.overlay {
            Some(overlay) if data > from => overlay.first_absent(&(from..data)),
            _ => data,
        }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

/// Where the file system has data, from this byte of an image on: what comes before it was never written, and reads as
/// zeroes. `u64::MAX`: there is none. A file system or a device without holes has data everywhere.
pub fn next_data(image: &File, from: u64) -> u64 {
    // SAFETY: moves the file's offset, which nobody here reads or writes by.
    match unsafe { libc::lseek(image.as_raw_fd(), from.cast_signed(), libc::SEEK_DATA) } {
        -1 if io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) => u64::MAX,
        -1 => from,
        data => data.cast_unsigned(),
    }
}

/// Who else may read what is opened to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Of a block device nobody: it is held by O_EXCL.
    One,
    /// Whoever wants to.
    Many,
}

/// Opens a file of any format, or a block device, to be read while nobody can write to it: until it is closed it is
/// locked as [`RawImage::open`] locks for a reader. A block device that somebody holds by O_EXCL (a mount, another
/// device) is in use, and so is a file under a loop device that can be written to.
pub fn open_locked(path: &Path, readers: Readers) -> Result<File, DiskImageError> {
    // Judged before it is opened: opening a FIFO would wait for its writer.
    let exclusive = if is_block_device(path)? { libc::O_EXCL } else { 0 };
    let file = when_left(|| {
        let (mut file, _) = open_as(path, Access::ReadOnly, exclusive).map_err(not_opened(path))?;
        if readers == Readers::Many {
            (file, _) = open_as(path, Access::ReadOnly, 0).map_err(not_opened(path))?;
        }
        lock_as(path, &file, Access::ReadOnly)?;
        Ok(file)
    })?;
    match lock::is_under_a_writable_loop(&file) {
        true => Err(in_use(path, &file)),
        false => Ok(file),
    }
}

/// The size of an image, which is opened for a moment and not locked.
pub fn image_bytes(path: &Path) -> Result<u64, DiskImageError> {
    // Judged before it is opened: opening a FIFO would wait for its writer.
    is_block_device(path)?;
    let file = File::open(path).map_err(|source| DiskImageError::Open { path: path.to_owned(), source })?;
    disk_bytes(path, &file)
}

/// Whether an image is one; else it is a file.
fn is_block_device(path: &Path) -> Result<bool, DiskImageError> {
    let failed = |source| DiskImageError::Open { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    match metadata.file_type().is_block_device() {
        false if !metadata.is_file() => Err(DiskImageError::Kind { path: path.to_owned() }),
        is_device => Ok(is_device),
    }
}

/// The size of an open image, if it is one that a disk may have.
fn disk_bytes(path: &Path, file: &File) -> Result<u64, DiskImageError> {
    match size(file).map_err(|source| DiskImageError::Open { path: path.to_owned(), source })? {
        bytes if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) => {
            Err(DiskImageError::Size { path: path.to_owned(), bytes })
        }
        bytes => Ok(bytes),
    }
}

fn in_use(path: &Path, file: &File) -> DiskImageError {
    DiskImageError::InUse { path: path.to_owned(), holders: lock::holders(file) }
}

/// What a process that was killed had open may be so for a moment longer, with nobody to be seen who has it: io_uring's
/// rings are taken down behind its end. So an image in use by nobody is tried again for a while.
fn when_left<T>(mut open: impl FnMut() -> Result<T, DiskImageError>) -> Result<T, DiskImageError> {
    let begun = Instant::now();
    loop {
        match open() {
            Err(DiskImageError::InUse { holders: None, .. }) if begun.elapsed() < LEFT_WITHIN => {
                std::thread::sleep(LEFT_LOOK);
            }
            opened => return opened,
        }
    }
}

/// What the host's answer says of an image that it does not open. EBUSY is O_EXCL's.
fn not_opened(path: &Path) -> impl FnOnce(io::Error) -> DiskImageError {
    move |source| match (source.raw_os_error(), File::open(path)) {
        (Some(libc::EBUSY), Ok(file)) => in_use(path, &file),
        _ => DiskImageError::Open { path: path.to_owned(), source },
    }
}

fn open_as(path: &Path, access: Access, flags: libc::c_int) -> io::Result<(File, Caching)> {
    let open = |more: libc::c_int| {
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::Writable).custom_flags(flags | more).open(path)
    };
    if access == Access::ReadOnly {
        return Ok((open(0)?, Caching::Cached { why: "it is read only" }));
    }
    let invalid = |e: &io::Error| e.raw_os_error() == Some(libc::EINVAL);
    let cached = |why| Ok((open(0)?, Caching::Cached { why }));
    match open(libc::O_DIRECT) {
        Ok(file) => match file.read_at(&mut Buffer::zeroed(SECTOR_BYTES as usize), 0) {
            // Of larger sectors only whole ones are taken; the guest's are of 512 bytes.
            Err(e) if invalid(&e) => cached("the device's sectors are larger than 512 bytes"),
            _ => Ok((file, Caching::Direct)),
        },
        Err(e) if invalid(&e) => cached("its file system has no O_DIRECT"),
        Err(e) => Err(e),
    }
}

fn lock_as(path: &Path, file: &File, access: Access) -> Result<(), DiskImageError> {
    let Err(source) = lock::lock(file, access) else { return Ok(()) };
    if matches!(source.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) {
        return Err(in_use(path, file));
    }
    match access {
        Access::Writable => Err(DiskImageError::NoLocks { path: path.to_owned(), source }),
        Access::ReadOnly => {
            let image = path.display();
            tracing::warn!(%image, "a disk image cannot be locked ({source}): nothing keeps a writer away");
            Ok(())
        }
    }
}

/// Of a file or block device.
fn size(mut file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        return file.seek(SeekFrom::End(0));
    }
    Ok(metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(directory: &Path, bytes: u64) -> PathBuf {
        let path = directory.join("image");
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    #[test]
    fn a_writer_is_alone_and_readers_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = image(directory.path(), 1 << 20);
        let refused = |access| {
            let error = RawImage::open(&path, access).unwrap_err().to_string();
            assert!(error.contains("in use by") && error.contains("this process itself"), "{error}");
            assert!(error.contains(&*path.to_string_lossy()), "{error}");
        };
        let writer = RawImage::open(&path, Access::Writable).unwrap();
        assert_eq!(writer.bytes(), 1 << 20);
        refused(Access::Writable);
        refused(Access::ReadOnly);
        drop(writer);
        let readers = [(); 2].map(|()| RawImage::open(&path, Access::ReadOnly).unwrap());
        refused(Access::Writable);
        drop(readers);
        RawImage::open(&path, Access::Writable).unwrap();
    }

    #[test]
    fn what_is_in_use_by_nobody_is_waited_for_and_what_somebody_uses_is_not() {
        let in_use = |holders: Option<&str>| DiskImageError::InUse {
            path: "image".into(),
            holders: holders.map(ToOwned::to_owned),
        };
        let mut tries = 0;
        let opened = when_left(|| {
            tries += 1;
            if tries < 4 { Err(in_use(None)) } else { Ok(tries) }
        });
        assert_eq!(opened.unwrap(), 4);
        let error = when_left::<()>(|| Err(in_use(Some("qemu (process 7)")))).unwrap_err().to_string();
        assert_eq!(error, "disk image image: in use by qemu (process 7); stop it, or take another image");
        let begun = Instant::now();
        let error = when_left::<()>(|| Err(in_use(None))).unwrap_err().to_string();
        assert!(error.contains("not to be seen from here") && begun.elapsed() >= LEFT_WITHIN, "{error}");
    }

    #[test]
    fn what_was_never_written_is_a_hole_where_the_file_system_knows() {
        let directory = tempfile::tempdir().unwrap();
        let path = image(directory.path(), 4 << 20);
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_at(&[1; 4096], 2 << 20).unwrap();
        let image = RawImage::open(&path, Access::Writable).unwrap();
        assert!(!image.is_hole(&(0..4 << 20)) && !image.is_hole(&(2 << 20..3 << 20)));
        // A file system without holes says that there is data everywhere.
        let knows = image.is_hole(&(0..1 << 20));
        assert_eq!(image.is_hole(&(3 << 20..4 << 20)), knows);
    }

    #[test]
    fn images_that_cannot_be_are_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let refused = |path: &Path, what: &str| {
            for access in [Access::ReadOnly, Access::Writable] {
                let error = RawImage::open(path, access).unwrap_err().to_string();
                assert!(error.contains(what), "{what}: {error}");
            }
        };
        refused(&directory.path().join("nowhere"), "No such file");
        refused(directory.path(), "neither a regular file nor a block device");
        refused(Path::new("/dev/null"), "neither a regular file nor a block device");
        refused(&image(directory.path(), 0), "0 bytes is not a positive multiple of 512");
        refused(&image(directory.path(), 1000), "1000 bytes is not a positive multiple of 512");
    }

    #[test]
    fn where_the_page_cache_takes_part_the_reason_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let path = image(directory.path(), 4096);
        let reader = RawImage::open(&path, Access::ReadOnly).unwrap();
        assert_eq!(reader.caching(), Caching::Cached { why: "it is read only" });
        drop(reader);
        match RawImage::open(&path, Access::Writable).unwrap().caching() {
            Caching::Direct => {}
            Caching::Cached { why } => assert!(why.contains("O_DIRECT") || why.contains("sectors"), "{why}"),
        }
    }
}
