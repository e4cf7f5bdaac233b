//! The images of a VM's writable disks, read and written by a thread that waits for each request.

use ft_disk::{
    Buffer, Completion, ImageStore, Io, IoEngine, IoFault, IoOrder, IoQueue, Persist, RawImage, Store,
    StoreError,
};
use ft_mirror::{Change, Extent, Space};
use std::sync::Arc;

/// An image, with its disk's number in the configuration from 0.
pub type NumberedImage = (u16, Arc<RawImage>);

/// Why an image was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// The host.
    #[error("disk {disk}: {source}")]
    Fault {
        /// Its number in the configuration.
        disk: u16,
        /// What the host says.
        source: IoFault,
    },
    /// It cannot be begun.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The engine gave no answer.
    #[error("disk {0}: its engine ended")]
    Ended(u16),
    /// There is no such disk.
    #[error("disk {0}: is none of this VM's writable disks")]
    Unknown(u16),
}

/// An image, and the way to it.
struct Opened {
    disk: u16,
    image: Arc<RawImage>,
    queue: Box<dyn IoQueue>,
}

/// See the module.
pub struct MirroredImages {
    all: Vec<Opened>,
}

impl MirroredImages {
    /// Each is shared with whoever else has a part in it. What a backup changes is in its primary's intent maps.
    pub fn new(images: &[NumberedImage]) -> Result<Self, ImagesError> {
        let one = |(disk, image): &NumberedImage| {
            let store = Box::new(ImageStore::new(Arc::clone(image), IoEngine::Threads));
            let queue = store.start("mirror", Completion::AtOnce)?;
            Ok(Opened { disk: *disk, image: Arc::clone(image), queue })
        };
        let all = images.iter().map(one).collect::<Result<_, StoreError>>()?;
        Ok(Self { all })
    }

    /// Makes a change.
    pub fn carry_out(&mut self, change: &Change<'_>) -> Result<(), ImagesError> {
        let Extent { disk, bytes } = change.extent();
        let (offset, length) = (bytes.start, bytes.end - bytes.start);
        let io = match change {
            Change::Write { data, .. } => {
                let mut from = Buffer::zeroed(data.len());
                from.copy_from_slice(data);
                Io::Write { offset, from, persist: Persist::Later }
            }
            Change::Zeroes { space: Space::Keep, .. } => {
                Io::WriteZeroes { offset, bytes: length, unmap: ft_disk::Unmap::Keep }
            }
            Change::Zeroes { space: Space::May, .. } | Change::Discard { .. } => {
                Io::WriteZeroes { offset, bytes: length, unmap: ft_disk::Unmap::May }
            }
        };
        self.order(disk, io).map(drop)
    }

    /// What is there; none where nothing was ever written.
    pub fn read(&mut self, extent: &Extent) -> Result<Option<Buffer>, ImagesError> {
        let opened = self.find(extent.disk)?;
        if opened.image.is_hole(&extent.bytes) {
            return Ok(None);
        }
        let offset = extent.bytes.start;
        let into = Buffer::zeroed((extent.bytes.end - offset) as usize);
        match self.order(extent.disk, Io::Read { offset, into })? {
            Io::Read { into, .. } => Ok(Some(into)),
            _ => Err(ImagesError::Ended(extent.disk)),
        }
    }

    /// Makes durable what was written to them.
    pub fn flush(&mut self) -> Result<(), ImagesError> {
        let disks: Vec<u16> = self.all.iter().map(|opened| opened.disk).collect();
        disks.into_iter().try_for_each(|disk| self.order(disk, Io::Flush).map(drop))
    }

    fn find(&mut self, disk: u16) -> Result<&mut Opened, ImagesError> {
        self.all.iter_mut().find(|opened| opened.disk == disk).ok_or(ImagesError::Unknown(disk))
    }

    fn order(&mut self, disk: u16, io: Io) -> Result<Io, ImagesError> {
        let done = self.find(disk)?.queue.submit(IoOrder { tag: 0, io }).ok_or(ImagesError::Ended(disk))?;
        done.result.map_err(|source| ImagesError::Fault { disk, source })?;
        Ok(done.io)
    }
}
