//! A disk as its guest sees it, to be read by whoever needs a part of it: an image that is open already, over its base
//! or not, or a file that is opened for it.

use super::content::ContentError;
use super::images::{ImagesError, MirroredImages};
use super::overlay::open_image;
use super::source::Source;
use super::{BesideError, Disks};
use crate::config::{Config, DiskConfig};
use ft_disk::{Access, RawImage, Readers};
use ft_mirror::Extent;
use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// See the module.
pub struct DiskReader {
    bytes: u64,
    from: From,
}

enum From {
    Image(RefCell<MirroredImages>),
    Source(Source),
}

/// Why a disk is not read.
#[derive(Debug, thiserror::Error)]
pub enum DiskReaderError {
    /// Its image, or what lies beside it.
    #[error(transparent)]
    Beside(#[from] BesideError),
    /// A file that is no image of the VM.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// Nothing can be asked of it.
    #[error(transparent)]
    Images(#[from] ImagesError),
}

impl DiskReader {
    /// The VM's first disk, opened and locked as for a machine.
    pub fn open_first(config: &Config) -> Result<Self, DiskReaderError> {
        let first = config.machine.disks.first().ok_or(ImagesError::Unknown(0))?;
        match first.read_only {
            true => Self::read_only(first),
            false => Ok(Self::of(Arc::new(open_image(config, 0, first)?))?),
        }
    }

    /// The VM's first disk; a writable one is open already.
    pub fn first(first: &DiskConfig, disks: Option<&Disks>) -> Result<Self, DiskReaderError> {
        match disks.and_then(|disks| disks.image(0)) {
            Some(image) if !first.read_only => Ok(Self::of(image)?),
            _ => Self::read_only(first),
        }
    }

    fn read_only(disk: &DiskConfig) -> Result<Self, DiskReaderError> {
        let image = RawImage::open(&disk.image, Access::ReadOnly).map_err(BesideError::from)?;
        Ok(Self::of(Arc::new(image))?)
    }

    fn of(image: Arc<RawImage>) -> Result<Self, ImagesError> {
        let bytes = image.bytes();
        let images = MirroredImages::new(&[(0, image)])?;
        Ok(Self { bytes, from: From::Image(RefCell::new(images)) })
    }

    /// A raw file, a block device or a qcow2 file, told by its content.
    pub fn open(path: &Path) -> Result<Self, DiskReaderError> {
        let source = Source::open(path, Readers::Many)?;
        Ok(Self { bytes: source.bytes(), from: From::Source(source) })
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Fills `into` with what the disk has from this byte on: whole sectors, all of them in the disk.
    pub fn read(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.from {
            From::Source(source) => source.read(into, offset).map_err(io::Error::other),
            From::Image(images) => {
                let extent = Extent { disk: 0, bytes: offset..offset + into.len() as u64 };
                match images.borrow_mut().read(&extent).map_err(io::Error::other)? {
                    Some(content) => into.copy_from_slice(&content),
                    None => into.fill(0),
                }
                Ok(())
            }
        }
    }
}
