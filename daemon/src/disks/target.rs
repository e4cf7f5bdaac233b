//! What an import makes: a new file, or the content of a block device.

use super::content::{ContentError, failed};
use crate::user::give_to_owner_of;
use ft_disk::{Access, RawImage};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, fallocate};
use nix::unistd::linkat;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where as many bytes are zero, a new file keeps a hole.
const HOLE_BYTES: usize = 64 << 10;

/// See the module.
pub(super) struct Target {
    path: PathBuf,
    file: File,
    kind: Kind,
}

enum Kind {
    Device {
        _lock: RawImage,
    },
    /// It gets its name when it is whole: whatever ends this process leaves nothing.
    Unnamed,
    /// Where the file system has no others. It is removed with this, unless it is whole.
    Named,
    Whole,
}

impl Target {
    /// A new file of this size, the directory's owner's, or a block device that nobody uses.
    pub(super) fn open(path: &Path, bytes: u64) -> Result<Self, ContentError> {
        let failed = failed(path);
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let target = |file, kind| Self { path: path.to_owned(), file, kind };
        match fs::symlink_metadata(path) {
            Ok(_) if fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device()) => {
                let image = RawImage::open(path, Access::Writable)?;
                let has = image.bytes();
                if has < bytes {
                    return Err(ContentError::Small { path: path.to_owned(), has, need: bytes });
                }
                return Ok(target(options.open(path).map_err(&failed)?, Kind::Device { _lock: image }));
            }
            Ok(_) => return Err(ContentError::Exists(path.to_owned())),
            Err(_) => {}
        }
        options.mode(0o600);
        let target = match options.clone().custom_flags(libc::O_TMPFILE).open(directory_of(path)) {
            Ok(file) => target(file, Kind::Unnamed),
            Err(_) => target(options.create_new(true).open(path).map_err(&failed)?, Kind::Named),
        };
        give_to_owner_of(directory_of(path), &target.file).map_err(&failed)?;
        target.file.set_len(bytes).map_err(&failed)?;
        Ok(target)
    }

    fn is_device(&self) -> bool {
        matches!(self.kind, Kind::Device { .. })
    }

    pub(super) fn write(&self, extent: &[u8], start: u64) -> Result<(), ContentError> {
        for (at, piece) in (start..).step_by(HOLE_BYTES).zip(extent.chunks(HOLE_BYTES)) {
            if self.is_device() || piece.iter().any(|byte| *byte != 0) {
                self.file.write_all_at(piece, at).map_err(failed(&self.path))?;
            }
        }
        Ok(())
    }

    /// Whole extents, but for the disk's last one. A new file has a hole there already.
    pub(super) fn write_zeroes(&self, zeroes: &Range<u64>) -> Result<(), ContentError> {
        if !self.is_device() {
            return Ok(());
        }
        let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let [start, length] = [zeroes.start, zeroes.end - zeroes.start].map(u64::cast_signed);
        fallocate(&self.file, flags, start, length).map_err(|e| failed(&self.path)(e.into()))
    }

    /// Its size: a device may be larger than was asked for.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    /// It is whole.
    pub(super) fn keep(mut self) -> Result<(), ContentError> {
        let failed = failed(&self.path);
        self.file.sync_all().map_err(&failed)?;
        if matches!(self.kind, Kind::Unnamed) {
            let unnamed = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
            linkat(AT_FDCWD, &unnamed, AT_FDCWD, &self.path, AtFlags::AT_SYMLINK_FOLLOW).map_err(
                |e| match e {
                    Errno::EEXIST => ContentError::Exists(self.path.clone()),
                    _ => failed(e.into()),
                },
            )?;
        }
        self.kind = Kind::Whole;
        File::open(directory_of(&self.path)).and_then(|directory| directory.sync_all()).map_err(&failed)
    }
}

impl Drop for Target {
    /// What is half made holds nothing that anybody has seen.
    fn drop(&mut self) {
        if matches!(self.kind, Kind::Named) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
