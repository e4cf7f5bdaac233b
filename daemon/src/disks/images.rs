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
    #[error("disk {}: {source}", disk + 1)]
    Fault {
        /// Its number in the configuration, from 0.
        disk: u16,
        /// What the host says.
        source: IoFault,
    },
    /// It cannot be begun.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The engine gave no answer.
    #[error("disk {}: its engine ended", .0 + 1)]
    Ended(u16),
    /// There is no such disk.
    #[error("disk {}: is none of this VM's writable disks", .0 + 1)]
    Unknown(u16),
}

/// Zeroes that are not sent as data: as many in a row, or more.
static ZEROES: [u8; 16 << 10] = [0; 16 << 10];

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

    /// What was read of an extent, as changes that make another image so. Zeroes are no data on the wire, and where
    /// this image has no space for them the other needs none.
    pub fn as_changes<'c>(&mut self, extent: &Extent, content: Option<&'c Buffer>) -> Vec<Change<'c>> {
        let disk = extent.disk;
        let Some(content) = content else {
            return vec![Change::Zeroes { extent: extent.clone(), space: Space::May }];
        };
        let blocks: Vec<&[u8]> = content.chunks(ZEROES.len()).collect();
        let is_zero = |block: &[u8]| *block == ZEROES[..block.len()];
        let mut changes = Vec::new();
        let mut done = 0;
        for run in blocks.chunk_by(|one, other| is_zero(one) == is_zero(other)) {
            let length: usize = run.iter().map(|block| block.len()).sum();
            let from = extent.bytes.start + done as u64;
            let bytes = from..from + length as u64;
            changes.push(match is_zero(run[0]) {
                true => {
                    let is_hole = self.find(disk).is_ok_and(|opened| opened.image.is_hole(&bytes));
                    let space = if is_hole { Space::May } else { Space::Keep };
                    Change::Zeroes { extent: Extent { disk, bytes }, space }
                }
                false => Change::write(disk, from, &content[done..done + length]),
            });
            done += length;
        }
        changes
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

#[cfg(test)]
mod tests {
    use super::*;
    use ft_disk::Access;
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    const BYTES: usize = 1 << 20;

    #[test]
    fn what_is_sent_of_an_extent_makes_another_image_so_and_as_sparse() {
        let directory = tempfile::tempdir().unwrap();
        let opened = |name: &str, content: &[(u64, usize)]| {
            let file = File::create_new(directory.path().join(name)).unwrap();
            file.set_len(BYTES as u64).unwrap();
            content.iter().for_each(|(at, length)| file.write_all_at(&vec![7; *length], *at).unwrap());
            let image = RawImage::open(&directory.path().join(name), Access::Writable).unwrap();
            (file, MirroredImages::new(&[(3, Arc::new(image))]).unwrap())
        };
        let (here, mut of_here) = opened("here", &[(40 << 10, 1), (200 << 10, 20_000)]);
        let (there, mut of_there) = opened("there", &[(0, BYTES)]);
        let extent = Extent { disk: 3, bytes: 0..BYTES as u64 };
        let content = of_here.read(&extent).unwrap();
        let changes = of_here.as_changes(&extent, content.as_ref());
        let data = |change: &Change<'_>| match change {
            Change::Write { data, .. } => data.len(),
            _ => 0,
        };
        assert_eq!(changes.iter().map(data).sum::<usize>(), (16 + 32) << 10);
        changes.iter().for_each(|change| of_there.carry_out(change).unwrap());
        of_there.flush().unwrap();
        let read = |file: &File| {
            let mut bytes = vec![0; BYTES];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(read(&here) == read(&there));
        let blocks = |file: &File| file.metadata().unwrap().blocks();
        // Where the file system makes no holes, nothing is said.
        if blocks(&here) < BYTES as u64 / 512 {
            assert!(blocks(&there) <= blocks(&here) + 64, "{} of {}", blocks(&there), blocks(&here));
        }
    }
}
