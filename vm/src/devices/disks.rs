//! A machine's disks as they are started, and the host's side of one.

use super::error::DeviceError;
use super::host::Disk;
use super::inbox::Inbox;
use super::virtio::block::{self, Block, Landing, Mailbox, Showing};
use super::virtio::transport::{Place, Shared, Surroundings, Virtio};
use crate::spec::{MachineSpec, SECTOR_BYTES};
use ft_disk::{Completion, Finish};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The host's side of a disk, for other threads.
#[derive(Clone)]
pub struct DiskPort(pub(super) Arc<Shared<Block>>);

impl DiskPort {
    /// Has the requests tried again that the host could not do ([`OnIoError::Stop`](super::OnIoError::Stop)) or that
    /// the owner has refused. Not to be called from within a [`DiskOwner`](super::DiskOwner). While the machine is
    /// paused nothing is tried before it goes on.
    pub fn try_again(&self) {
        self.0.try_again();
    }

    /// Whether a change of any of these bytes was told to the owner and is not made yet.
    pub fn is_changing(&self, bytes: &Range<u64>) -> bool {
        self.0.is_changing(bytes)
    }
}

/// Whether the disks are as specified.
pub(super) fn check_disks(spec: &MachineSpec, disks: &[Disk]) -> Result<(), DeviceError> {
    if disks.len() != spec.disks.len() {
        return Err(DeviceError::DiskCount { disks: spec.disks.len(), images: disks.len() });
    }
    for (index, (specified, disk)) in spec.disks.iter().zip(disks).enumerate() {
        let spec_bytes = specified.bytes;
        if spec_bytes == 0 || !spec_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(DeviceError::DiskSectors { index, bytes: spec_bytes });
        }
        let image_bytes = disk.store.bytes();
        if image_bytes != spec_bytes {
            return Err(DeviceError::DiskSize { index, spec_bytes, image_bytes });
        }
        if !specified.read_only && !disk.store.is_writable() {
            return Err(DeviceError::DiskReadOnly(index));
        }
    }
    Ok(())
}

/// Where a disk tells what it has finished.
pub(super) struct DiskNews<'a> {
    pub(super) quiesced: &'a Arc<AtomicBool>,
    pub(super) inbox: Option<&'a Arc<Inbox>>,
}

/// A disk with its engine. Where the machine's engine decides what happens when, a disk that is never written answers
/// at the instruction that asks: what it reads is the same at any time.
pub(super) fn start_disk(
    index: usize,
    disk: Disk,
    place: Place,
    around: Surroundings,
    to: DiskNews<'_>,
) -> Result<Arc<Shared<Block>>, DeviceError> {
    let Disk { store, on_io_error, drain_within, owner } = disk;
    let (bytes, writable) = (store.bytes(), store.is_writable());
    let landing = Arc::new(Landing::new(Arc::clone(to.quiesced)));
    let (completion, showing) = match to.inbox {
        None => (Completion::By(Arc::clone(&landing) as Arc<dyn Finish>), Showing::Finished),
        Some(_) if !writable => (Completion::AtOnce, Showing::Finished),
        Some(inbox) => {
            let mailbox = Mailbox { inbox: Arc::clone(inbox), disk: index };
            (Completion::By(Arc::new(mailbox) as Arc<dyn Finish>), Showing::Told)
        }
    };
    let queue = store
        .start(&format!("ftd-disk-{index}"), completion)
        .map_err(|source| DeviceError::DiskEngine { index, source })?;
    let counters = Arc::clone(&around.counters);
    let parts =
        block::Parts { index, bytes, writable, queue, showing, on_io_error, drain_within, owner, counters };
    let disk = Shared::new(Virtio::new(Block::new(parts), place, around));
    landing.is_for(&disk);
    Ok(disk)
}
