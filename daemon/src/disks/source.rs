//! What an image is made from: a raw file, a block device or a qcow2 file, told by how it begins, not by its name. It
//! is locked as long as it is open.

use super::content::{ContentError, failed};
use super::qcow2::{Qcow2, Qcow2Error};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// See the module.
pub(super) struct Source {
    path: PathBuf,
    format: Format,
}

enum Format {
    Raw { file: File, bytes: u64 },
    Qcow2(Qcow2),
}

impl Source {
    /// Opens, locks and judges it.
    pub(super) fn open(path: &Path) -> Result<Self, ContentError> {
        let file = ft_disk::open_locked(path)?;
        let format = match ft_disk::container(&file).map_err(failed(path))? {
            None => Format::Raw { file, bytes: ft_disk::image_bytes(path)? },
            Some(ft_disk::QCOW2) => Format::Qcow2(Qcow2::open(file).map_err(of_qcow2(path))?),
            Some(format) => return Err(ContentError::Container { path: path.to_owned(), format }),
        };
        Ok(Self { path: path.to_owned(), format })
    }

    /// Bytes of the disk.
    pub(super) fn bytes(&self) -> u64 {
        match &self.format {
            Format::Raw { bytes, .. } => *bytes,
            Format::Qcow2(qcow2) => qcow2.bytes(),
        }
    }

    /// Where data begins, from this byte on, looking at so many bytes at least: all before it are zeroes. At the
    /// disk's end or beyond: there is none.
    pub(super) fn next_data(&self, offset: u64, look_at: u64) -> Result<u64, ContentError> {
        match &self.format {
            Format::Raw { file, .. } => Ok(ft_disk::next_data(file, offset)),
            Format::Qcow2(qcow2) => qcow2.next_data(offset, look_at).map_err(of_qcow2(&self.path)),
        }
    }

    /// Fills `into` with what the disk has from this byte on; all of it must be there.
    pub(super) fn read(&self, into: &mut [u8], offset: u64) -> Result<(), ContentError> {
        match &self.format {
            Format::Raw { file, .. } => file.read_exact_at(into, offset).map_err(failed(&self.path)),
            Format::Qcow2(qcow2) => qcow2.read(into, offset).map_err(of_qcow2(&self.path)),
        }
    }
}

fn of_qcow2(path: &Path) -> impl Fn(Qcow2Error) -> ContentError + use<> {
    let path = path.to_owned();
    move |source| ContentError::Qcow2 { path: path.clone(), source }
}
