//! Files of a fixed size: made aside, allocated, filled, flushed and then named, so that each is whole or is not there.

use super::error::BesideError;
use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a guest wrote is the owner's alone.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
/// What stays free on the file system: the node's record must still find room.
const SPARE_BYTES: u64 = 16 << 20;

pub(super) fn failed(path: &Path) -> impl Fn(io::Error) -> BesideError + use<> {
    let path = path.to_owned();
    move |source| BesideError::Io { path: path.clone(), source }
}

/// Makes a directory that may be there.
pub(super) fn directory(path: &Path) -> Result<(), BesideError> {
    fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path).map_err(failed(path))
}

/// A file that may not be there, to be read and written.
pub(super) fn open(path: &Path) -> Result<Option<File>, BesideError> {
    if_there(path, OpenOptions::new().read(true).write(true).open(path))
}

/// A file that may not be there, to be read.
pub(super) fn open_to_read(path: &Path) -> Result<Option<File>, BesideError> {
    if_there(path, File::open(path))
}

fn if_there(path: &Path, opened: io::Result<File>) -> Result<Option<File>, BesideError> {
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(path)(e)),
    }
}

/// Removes a file that may not be there, durably.
pub(super) fn remove(path: &Path) -> Result<(), BesideError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => sync_directory_of(path),
    }
    .map_err(failed(path))
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Makes a file of so many bytes, which `fill` fills durably. It takes the place of one that was there.
pub(super) fn make<T>(
    path: &Path,
    bytes: u64,
    fill: impl FnOnce(File) -> Result<T, BesideError>,
) -> Result<T, BesideError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    let made = make_aside(path, &aside, bytes, fill);
    if made.is_err() {
        // Half a file takes room, and is nothing to anybody.
        let _ = fs::remove_file(&aside);
    }
    let made = made?;
    fs::rename(&aside, path).and_then(|()| sync_directory_of(path)).map_err(failed(path))?;
    Ok(made)
}

fn make_aside<T>(
    path: &Path,
    aside: &Path,
    bytes: u64,
    fill: impl FnOnce(File) -> Result<T, BesideError>,
) -> Result<T, BesideError> {
    // Asked before, so that the file system is not filled first.
    room_for(path, bytes)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(FILE_MODE);
    let file = options.open(aside).map_err(failed(aside))?;
    posix_fallocate(&file, 0, bytes.cast_signed()).map_err(|errno| match errno {
        nix::Error::ENOSPC => {
            BesideError::NoRoom { path: path.to_owned(), need: bytes, left: left(path).unwrap_or(0) }
        }
        errno => failed(aside)(errno.into()),
    })?;
    file.sync_all().map_err(failed(aside))?;
    fill(file)
}

/// Whether there is room for a file that is to be made.
pub(super) fn room_for(path: &Path, bytes: u64) -> Result<(), BesideError> {
    match left(path) {
        Some(left) if left.saturating_sub(SPARE_BYTES) < bytes => {
            Err(BesideError::NoRoom { path: path.to_owned(), need: bytes, left })
        }
        _ => Ok(()),
    }
}

/// Bytes that the file system has left on which this file is, or its first directory that is there.
fn left(path: &Path) -> Option<u64> {
    let of = path.ancestors().skip(1).find_map(|directory| statvfs(directory).ok())?;
    Some(of.blocks_available() * of.fragment_size())
}
