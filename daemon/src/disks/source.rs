//! What an image is made from: a raw file, a block device or a qcow2 file, told by how it begins, not by its name. It
//! is locked as long as it is open.

use super::content::{ContentError, EXTENT_BYTES, Progress, failed};
use super::qcow2::{Qcow2, Qcow2Error};
use ft_mirror::{BaseFacts, BaseFormat};
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// See the module.
pub(super) struct Source {
    path: PathBuf,
    metadata: Metadata,
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
        let metadata = file.metadata().map_err(failed(path))?;
        let format = match ft_disk::container(&file).map_err(failed(path))? {
            None => Format::Raw { file, bytes: ft_disk::image_bytes(path)? },
            Some(ft_disk::QCOW2) => Format::Qcow2(Qcow2::open(file).map_err(of_qcow2(path))?),
            Some(format) => return Err(ContentError::Container { path: path.to_owned(), format }),
        };
        Ok(Self { path: path.to_owned(), metadata, format })
    }

    /// Bytes of the disk.
    pub(super) fn bytes(&self) -> u64 {
        match &self.format {
            Format::Raw { bytes, .. } => *bytes,
            Format::Qcow2(qcow2) => qcow2.bytes(),
        }
    }

    /// How the file holds the disk.
    pub(super) fn format(&self) -> BaseFormat {
        match &self.format {
            Format::Raw { .. } => BaseFormat::Raw,
            Format::Qcow2(_) => BaseFormat::Qcow2,
        }
    }

    /// Bytes of the file, and when it was changed last: as long as they are the same, so is the content. None: a device
    /// does not tell.
    pub(super) fn seen(&self) -> Option<(u64, (i64, u32))> {
        let modified = (self.metadata.mtime(), self.metadata.mtime_nsec() as u32);
        self.metadata.is_file().then_some((self.metadata.len(), modified))
    }

    /// What it is as a base. Reads all of it.
    pub(super) fn facts(&self, progress: Progress<'_>) -> Result<BaseFacts, ContentError> {
        let bytes = self.bytes();
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; EXTENT_BYTES as usize];
        for start in (0..bytes).step_by(EXTENT_BYTES as usize) {
            let end = (start + EXTENT_BYTES).min(bytes);
            let extent = &mut buffer[..(end - start) as usize];
            self.read(extent, start)?;
            hasher.update(extent);
            progress(end, bytes);
        }
        let (file_bytes, modified) = self.seen().unwrap_or_default();
        let blake3 = *hasher.finalize().as_bytes();
        Ok(BaseFacts { bytes, blake3, format: self.format(), file_bytes, modified })
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
