//! What an image is made from: a raw file, a block device or a qcow2 file, told by how it begins, not by its name. It
//! is locked as long as it is open.

use super::content::{ContentError, DiskContent, Progress, failed, walk};
use super::disk_hash::DiskHasher;
use super::qcow2::{Qcow2, Qcow2Error};
use ft_disk::Readers;
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
    pub(super) fn open(path: &Path, readers: Readers) -> Result<Self, ContentError> {
        let file = ft_disk::open_locked(path, readers)?;
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
    pub(super) fn facts(&mut self, progress: Progress<'_>) -> Result<BaseFacts, ContentError> {
        let mut hasher = DiskHasher::new();
        walk(self, progress, &mut |piece| {
            hasher.take(&piece);
            Ok(())
        })?;
        let (file_bytes, modified) = self.seen().unwrap_or_default();
        let hash = *hasher.finish().as_bytes();
        Ok(BaseFacts { bytes: self.bytes(), hash, format: self.format(), file_bytes, modified })
    }

    /// Fills `into` with what the disk has from this byte on; all of it must be there.
    pub(super) fn read(&self, into: &mut [u8], offset: u64) -> Result<(), ContentError> {
        match &self.format {
            Format::Raw { file, .. } => file.read_exact_at(into, offset).map_err(failed(&self.path)),
            Format::Qcow2(qcow2) => qcow2.read(into, offset).map_err(of_qcow2(&self.path)),
        }
    }

    fn next_data(&self, offset: u64, look_at: u64) -> Result<u64, ContentError> {
        match &self.format {
            Format::Raw { file, .. } => Ok(ft_disk::next_data(file, offset)),
            Format::Qcow2(qcow2) => qcow2.next_data(offset, look_at).map_err(of_qcow2(&self.path)),
        }
    }
}

impl DiskContent for Source {
    fn bytes(&self) -> u64 {
        Source::bytes(self)
    }

    fn next_data(&self, offset: u64, look_at: u64) -> Result<u64, ContentError> {
        Source::next_data(self, offset, look_at)
    }

    fn read(&mut self, into: &mut [u8], offset: u64) -> Result<(), ContentError> {
        Source::read(self, into, offset)
    }
}

fn of_qcow2(path: &Path) -> impl Fn(Qcow2Error) -> ContentError + use<> {
    let path = path.to_owned();
    move |source| ContentError::Qcow2 { path: path.clone(), source }
}
