//! Who else uses an image: locks of open file descriptions, which end with the last descriptor, not with any of the
//! process's; and the names of those who have it.
//!
//! QEMU locks single bytes for reading, two for each permission: `IN_USE` + its number while it uses the permission,
//! `NOT_SHARED` + its number while it grants that to nobody else. Then it looks whether anybody has the other byte of
//! the two. ftd's readers do the same, so that they and QEMU's keep writers away, and not one another. Its writers lock
//! every byte for themselves alone.

use crate::image::Access;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Names that a message has room for.
const HOLDERS_MAX: usize = 3;

/// QEMU's: `block/file-posix.c`, `RAW_LOCK_PERM_BASE`.
const IN_USE: i64 = 100;
/// QEMU's: `RAW_LOCK_SHARED_BASE`.
const NOT_SHARED: i64 = 200;
/// QEMU's permissions: `include/block/block-common.h`, the numbers of the bits `BLK_PERM_*`.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// The bytes of a reader, from and how many (0: all that follow): those that mean nothing to QEMU, and those of one who
/// reads and lets nobody write.
const READER: [(i64, i64); 5] = [
    (0, IN_USE),
    (IN_USE + CONSISTENT_READ, 1),
    (NOT_SHARED + WRITE, 1),
    (NOT_SHARED + RESIZE, 1),
    (NOT_SHARED + 100, 0),
];
/// Where QEMU says that an image changes, or that nobody else may read it.
const BARS_READERS: [i64; 3] = [IN_USE + WRITE, IN_USE + RESIZE, NOT_SHARED + CONSISTENT_READ];

/// Locks all of the file: for one writer alone, or for any number of readers. `WouldBlock` when somebody else is there.
pub(crate) fn lock(file: &File, access: Access) -> io::Result<()> {
    match access {
        Access::Writable => set(file, libc::F_WRLCK, (0, 0)),
        Access::ReadOnly => {
            READER.into_iter().try_for_each(|bytes| set(file, libc::F_RDLCK, bytes))?;
            // After its own are there: of two who come at the same time one finds the other.
            for byte in BARS_READERS {
                if is_locked(file, byte)? {
                    return Err(io::Error::from_raw_os_error(libc::EAGAIN));
                }
            }
            Ok(())
        }
    }
}

fn range(kind: libc::c_int, (start, length): (i64, i64)) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

fn set(file: &File, kind: libc::c_int, bytes: (i64, i64)) -> io::Result<()> {
    let lock = range(kind, bytes);
    // SAFETY: F_OFD_SETLK reads one `flock`, which is initialised and outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Whether somebody else has a lock of any kind on this byte.
fn is_locked(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = range(libc::F_WRLCK, (byte, 1));
    // SAFETY: F_OFD_GETLK reads and writes one `flock`, which is initialised and outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK),
    }
}

/// Who has the file open, for a message. Whom the kernel does not show is not named.
pub(crate) fn holders(file: &File) -> Option<String> {
    let names = who_has_open(file);
    (!names.is_empty()).then(|| names.join(", "))
}

fn who_has_open(file: &File) -> Vec<String> {
    let Ok(ours) = file.metadata() else { return Vec::new() };
    let own = std::process::id().to_string();
    let mut names = [loops_over(file), mounts_of(file)].concat();
    for process in entries(Path::new("/proc")) {
        let Some(pid) = process.file_name().and_then(|name| name.to_str()) else { continue };
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        // Our own descriptor is one; another one is another disk.
        let spare = usize::from(pid == own);
        let same = |fd: &PathBuf| {
            fd.metadata().is_ok_and(|other| (other.dev(), other.ino()) == (ours.dev(), ours.ino()))
        };
        if entries(&process.join("fd")).filter(same).count() > spare {
            let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
            let itself = if pid == own { ", this process itself" } else { "" };
            names.push(format!("{} (process {pid}{itself})", name.trim()));
        }
        if names.len() >= HOLDERS_MAX {
            break;
        }
    }
    names
}

/// The loop devices over this file: the kernel has it open, no process.
pub(crate) fn loops_over(file: &File) -> Vec<String> {
    let loops = loop_devices(file).filter_map(|device| Some(device.file_name()?.to_owned()));
    loops.map(|name| format!("/dev/{}", name.to_string_lossy())).collect()
}

/// Whether one of them can be written to.
pub(crate) fn is_under_a_writable_loop(file: &File) -> bool {
    let is_read_only =
        |device: PathBuf| std::fs::read_to_string(device.join("ro")).is_ok_and(|ro| ro == "1\n");
    loop_devices(file).any(|device| !is_read_only(device))
}

/// Their directories in /sys.
fn loop_devices(file: &File) -> impl Iterator<Item = PathBuf> + use<> {
    let ours = file.metadata().ok().map(|ours| (ours.dev(), ours.ino()));
    let is_over = move |device: &PathBuf| {
        let path = std::fs::read_to_string(device.join("loop/backing_file")).ok();
        let backing = path.and_then(|path| std::fs::metadata(path.trim_end()).ok());
        backing.is_some_and(|backing| Some((backing.dev(), backing.ino())) == ours)
    };
    entries(Path::new("/sys/block")).filter(is_over)
}

/// Where the file system on this block device is mounted.
fn mounts_of(device: &File) -> Vec<String> {
    let number = match device.metadata() {
        Ok(device) if device.file_type().is_block_device() => device.rdev(),
        _ => return Vec::new(),
    };
    let number = format!("{}:{}", libc::major(number), libc::minor(number));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let fields = mounts.lines().map(|mount| mount.split(' ').collect::<Vec<_>>());
    let ours = fields.filter(|mount| mount.len() > 4 && mount[2] == number);
    ours.take(1).map(|mount| format!("the file system at {}", mount[4])).collect()
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{RawImage, Readers, open_locked};

    /// Has an image as QEMU has it whose guest writes to the disk, or only reads it.
    fn qemu(path: &Path, permissions: &[i64]) -> File {
        let file = File::open(path).unwrap();
        let in_use = permissions.iter().map(|permission| IN_USE + permission);
        for byte in in_use.chain([NOT_SHARED + WRITE, NOT_SHARED + RESIZE]) {
            set(&file, libc::F_RDLCK, (byte, 1)).unwrap();
        }
        file
    }

    #[test]
    fn an_image_that_qemu_writes_is_in_use_and_one_that_it_reads_can_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, [0; 4096]).unwrap();
        let writes = || RawImage::open(&path, Access::Writable).map(|_| ());
        let reads =
            || RawImage::open(&path, Access::ReadOnly).and(open_locked(&path, Readers::One)).map(|_| ());
        let writer = qemu(&path, &[CONSISTENT_READ, WRITE, RESIZE]);
        for error in [reads(), writes()].map(Result::unwrap_err).map(|error| error.to_string()) {
            assert!(error.contains("in use by") && error.contains("this process itself"), "{error}");
        }
        drop(writer);
        let reader = qemu(&path, &[CONSISTENT_READ]);
        reads().unwrap();
        writes().unwrap_err();
        drop(reader);
        writes().unwrap();
    }

    #[test]
    fn what_qemu_looks_for_lets_its_readers_beside_ours_and_no_writer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, [0; 4096]).unwrap();
        let held = |access| {
            let _ours = RawImage::open(&path, access).unwrap();
            let other = File::open(&path).unwrap();
            // Of its writer, and of its reader that keeps writers away.
            let bytes = [NOT_SHARED + CONSISTENT_READ, NOT_SHARED + WRITE, IN_USE + WRITE, IN_USE + RESIZE];
            bytes.map(|byte| is_locked(&other, byte).unwrap())
        };
        assert_eq!(held(Access::ReadOnly), [false, true, false, false]);
        assert_eq!(held(Access::Writable), [true; 4]);
    }
}
