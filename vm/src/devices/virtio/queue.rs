//! One virtqueue: virtio-queue's ring, set up from the driver's registers and its chains checked whole before a device
//! sees them.
//!
//! virtio-queue ends a broken chain as if it were complete, and reads chains only as they become available. So chains
//! are read here ([`Ring::chain_at`]), as often as they are needed. Without EVENT_IDX notifications are never
//! suppressed, so every chain is followed by a notification that comes after it: serving the chains that are available
//! when the notification arrives (at most the queue's size) leaves none behind. With it, [`Ring::rearm`] asks for the
//! next one.

use super::Malformed;
use crate::devices::error::DeviceStateError;
use ft_ram::GuestMemory;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT,
};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// Of a descriptor: address, length, flags, next.
const DESCRIPTOR_BYTES: u64 = 16;
/// In either ring: the index, and where entries begin (virtio 1.2 §2.7.6, §2.7.8).
const RING_INDEX: u64 = 2;
const AVAIL_ENTRIES: u64 = 4;
const USED_ENTRIES: u64 = 4;
const USED_ENTRY_BYTES: u64 = 8;

/// A queue as the driver set it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingState {
    /// Entries.
    pub size: u32,
    /// Guest-physical address of the descriptor table.
    pub desc: u64,
    /// Guest-physical address of the available ring (driver area).
    pub avail: u64,
    /// Guest-physical address of the used ring (device area).
    pub used: u64,
    /// How far the device has come; none when the queue is not ready.
    pub position: Option<RingPosition>,
}

/// How far the device has come in a queue, both modulo 2^16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingPosition {
    /// Next entry of the available ring to take.
    pub next_avail: u16,
    /// Next entry of the used ring to fill.
    pub next_used: u16,
}

/// One buffer of a chain, within RAM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer {
    pub(crate) address: GuestAddress,
    pub(crate) bytes: usize,
}

/// A descriptor chain taken from a queue. Reused from chain to chain.
#[derive(Default)]
pub(crate) struct Chain {
    pub(crate) head: u16,
    /// Buffers for the device to read, in order.
    pub(crate) readable: Vec<Buffer>,
    /// Buffers for the device to write, in order.
    pub(crate) writable: Vec<Buffer>,
}

fn total(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| buffer.bytes as u64).sum()
}

/// A table of descriptors: the queue's, or one that a descriptor in it refers to.
struct Table {
    base: u64,
    entries: u32,
    is_indirect: bool,
}

impl Table {
    fn descriptor(&self, memory: &GuestMemory, index: u16) -> Option<Descriptor> {
        let offset = (u32::from(index) < self.entries).then_some(u64::from(index) * DESCRIPTOR_BYTES)?;
        memory.read_obj(GuestAddress(self.base.checked_add(offset)?)).ok()
    }

    /// The table that a descriptor of this one refers to: of as many entries as there are indices.
    fn indirect(&self, descriptor: &Descriptor) -> Option<Self> {
        let bytes = u64::from(descriptor.len());
        let entries = u16::try_from(bytes / DESCRIPTOR_BYTES).ok()?;
        let whole = !self.is_indirect && bytes.is_multiple_of(DESCRIPTOR_BYTES);
        let base = descriptor.addr().0;
        whole.then_some(Self { base, entries: u32::from(entries), is_indirect: true })
    }
}

impl Chain {
    /// Adds the buffer of a descriptor, if it lies in RAM.
    fn add(&mut self, descriptor: &Descriptor, memory: &GuestMemory) -> Result<(), Malformed> {
        let (address, bytes, head) = (descriptor.addr(), descriptor.len(), self.head);
        let in_ram = bytes == 0
            || address.0.checked_add(u64::from(bytes)).is_some()
                && memory.check_range(address, bytes as usize);
        if !in_ram {
            return Err(Malformed::Buffer { head, address: address.0, bytes });
        }
        // The order of the buffers is a rule for empty ones as well (virtio 1.2 §2.7.4.2); they hold nothing.
        let buffer = Buffer { address, bytes: bytes as usize };
        if descriptor.is_write_only() {
            self.writable.push(buffer);
        } else if self.writable.is_empty() {
            self.readable.push(buffer);
        } else {
            return Err(Malformed::Order { head });
        }
        Ok(())
    }

    pub(crate) fn readable_bytes(&self) -> u64 {
        total(&self.readable)
    }

    pub(crate) fn writable_bytes(&self) -> u64 {
        total(&self.writable)
    }

    /// Copies the readable bytes from `skip` on; the caller has checked that there are as many.
    pub(crate) fn read_at(
        &self,
        memory: &GuestMemory,
        mut skip: u64,
        mut out: &mut [u8],
    ) -> Result<(), Malformed> {
        for buffer in &self.readable {
            let bytes = buffer.bytes as u64;
            if skip >= bytes {
                skip -= bytes;
                continue;
            }
            let now = out.len().min((bytes - skip) as usize);
            let (into, rest) = std::mem::take(&mut out).split_at_mut(now);
            memory.read_slice(into, GuestAddress(buffer.address.0 + skip)).map_err(|_| Malformed::Ring)?;
            (out, skip) = (rest, 0);
            if out.is_empty() {
                break;
            }
        }
        if out.is_empty() { Ok(()) } else { Err(Malformed::Shape { head: self.head }) }
    }

    /// Appends the readable bytes to `out`.
    pub(crate) fn read_all(&self, memory: &GuestMemory, out: &mut Vec<u8>) -> Result<(), Malformed> {
        for buffer in self.readable.iter().filter(|buffer| buffer.bytes != 0) {
            let start = out.len();
            out.resize(start + buffer.bytes, 0);
            memory.read_slice(&mut out[start..], buffer.address).map_err(|_| Malformed::Ring)?;
        }
        Ok(())
    }

    /// Writes `bytes` at `skip` bytes into the writable buffers; the caller has checked that they fit.
    pub(crate) fn write_at(
        &self,
        memory: &GuestMemory,
        mut skip: usize,
        mut bytes: &[u8],
    ) -> Result<(), Malformed> {
        for buffer in &self.writable {
            if bytes.is_empty() {
                break;
            }
            if skip >= buffer.bytes {
                skip -= buffer.bytes;
                continue;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(buffer.bytes - skip));
            let address = GuestAddress(buffer.address.0 + skip as u64);
            memory.write_slice(now, address).map_err(|_| Malformed::Ring)?;
            (bytes, skip) = (rest, 0);
        }
        if bytes.is_empty() { Ok(()) } else { Err(Malformed::Shape { head: self.head }) }
    }
}

/// What a driver has negotiated about its queues.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RingFeatures {
    /// Both sides say how far they want to be left alone.
    event_index: bool,
    /// A descriptor may refer to a table of them.
    indirect: bool,
}

impl RingFeatures {
    /// Features that every device offers.
    pub(crate) const OFFERED: u64 = 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

    /// What these features, which the driver took, mean for queues.
    pub(crate) fn of(features: u64) -> Self {
        let has = |bit: u32| features & 1 << bit != 0;
        Self { event_index: has(VIRTIO_RING_F_EVENT_IDX), indirect: has(VIRTIO_RING_F_INDIRECT_DESC) }
    }
}

/// A queue of a device.
pub(crate) struct Ring {
    max_size: u16,
    pub(crate) size: u32,
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    /// What was negotiated about queues, as of when this one became ready.
    means: RingFeatures,
    /// How far the used ring was filled when it was last asked whether to interrupt. Nothing is between this and the
    /// ring's position when nobody works on the queue, so it is in no state.
    asked_at: u16,
    /// There when the queue is ready.
    queue: Option<Queue>,
}

impl Ring {
    pub(crate) fn new(max_size: u16) -> Self {
        let size = u32::from(max_size);
        let means = RingFeatures::default();
        Self { max_size, size, desc: 0, avail: 0, used: 0, means, asked_at: 0, queue: None }
    }

    pub(crate) fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Entries of a queue that is ready.
    pub(crate) fn entries(&self) -> u16 {
        self.queue.as_ref().map_or(0, Queue::size)
    }

    pub(crate) fn ready(&self) -> bool {
        self.queue.is_some()
    }

    pub(crate) fn disable(&mut self) {
        self.queue = None;
    }

    /// The driver says that the queue is set up.
    pub(crate) fn enable(&mut self, means: RingFeatures, memory: &GuestMemory) -> Result<(), Malformed> {
        (self.means, self.asked_at) = (means, 0);
        let start = RingPosition { next_avail: 0, next_used: 0 };
        self.queue = Some(self.queue_at(start, memory)?);
        Ok(())
    }

    fn queue_at(&self, position: RingPosition, memory: &GuestMemory) -> Result<Queue, Malformed> {
        let &Self { max_size, size, desc, avail, used, means, asked_at: _, queue: _ } = self;
        let entries = u16::try_from(size).map_err(|_| Malformed::QueueSize(size))?;
        if !entries.is_power_of_two() || entries > max_size {
            return Err(Malformed::QueueSize(size));
        }
        let address = Malformed::QueueAddress { desc, avail, used };
        // virtio 1.2 §2.7: 16 bytes a descriptor, 2 and 8 bytes an entry, 6 bytes around the entries.
        let entries64 = u64::from(entries);
        let parts = [(desc, 16 * entries64), (avail, 6 + 2 * entries64), (used, 6 + 8 * entries64)];
        for (base, bytes) in parts {
            // virtio-queue takes an available ring at 0 for one that was never set.
            let in_ram = base != 0
                && base.checked_add(bytes).is_some()
                && memory.check_range(GuestAddress(base), bytes as usize);
            if !in_ram {
                return Err(address);
            }
        }
        Queue::try_from(QueueState {
            max_size,
            next_avail: position.next_avail,
            next_used: position.next_used,
            event_idx_enabled: means.event_index,
            size: entries,
            ready: true,
            desc_table: desc,
            avail_ring: avail,
            used_ring: used,
        })
        .map_err(|_| address)
    }

    /// How many chains wait to be taken: at most the queue's size.
    pub(crate) fn available(&self, memory: &GuestMemory) -> Result<u16, Malformed> {
        let Some(queue) = &self.queue else { return Ok(0) };
        let index = queue.avail_idx(memory, Ordering::Acquire).map_err(|_| Malformed::Ring)?;
        let waiting = index.0.wrapping_sub(queue.next_avail());
        if waiting > queue.size() { Err(Malformed::AvailIndex(waiting)) } else { Ok(waiting) }
    }

    /// Takes the next chain; false when there is none. One that breaks the rules is not taken.
    pub(crate) fn pop(&mut self, memory: &GuestMemory, chain: &mut Chain) -> Result<bool, Malformed> {
        if self.available(memory)? == 0 {
            return Ok(false);
        }
        let Some(queue) = &mut self.queue else { return Ok(false) };
        let head =
            queue.iter(memory).map_err(|_| Malformed::Ring)?.next().ok_or(Malformed::Ring)?.head_index();
        self.chain_at(memory, head, chain).inspect_err(|_| self.unpop())?;
        Ok(true)
    }

    /// Reads the chain that begins at descriptor `head`.
    pub(crate) fn chain_at(
        &self,
        memory: &GuestMemory,
        head: u16,
        chain: &mut Chain,
    ) -> Result<(), Malformed> {
        let broken = Malformed::Chain { head };
        let entries = self.queue.as_ref().ok_or(broken)?.size();
        chain.head = head;
        chain.readable.clear();
        chain.writable.clear();
        let mut table = Table { base: self.desc, entries: u32::from(entries), is_indirect: false };
        let (mut index, mut bytes_in_all) = (head, 0u32);
        for _ in 0..entries {
            let mut descriptor = table.descriptor(memory, index).ok_or(broken)?;
            if descriptor.refers_to_indirect_table() {
                // Only where it was negotiated, and as the last of its table (virtio 1.2 §2.7.5.3.1).
                (self.means.indirect && !descriptor.has_next()).then_some(()).ok_or(broken)?;
                table = table.indirect(&descriptor).ok_or(broken)?;
                descriptor = table.descriptor(memory, 0).ok_or(broken)?;
                // No table in a table.
                (!descriptor.refers_to_indirect_table()).then_some(()).ok_or(broken)?;
            }
            // Virtio 1.2 §2.7.5.2
            bytes_in_all = bytes_in_all.checked_add(descriptor.len()).ok_or(broken)?;
            chain.add(&descriptor, memory)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
        }
        Err(broken)
    }

    /// Puts the chain that was taken last back to the front.
    pub(crate) fn unpop(&mut self) {
        self.unpop_all(1);
    }

    /// Puts back as many chains that were taken last.
    pub(crate) fn unpop_all(&mut self, chains: u16) {
        if let Some(queue) = &mut self.queue {
            queue.set_next_avail(queue.next_avail().wrapping_sub(chains));
        }
    }

    /// How many chains were taken and not given back.
    pub(crate) fn taken(&self) -> u16 {
        let taken = |queue: &Queue| queue.next_avail().wrapping_sub(queue.next_used());
        self.queue.as_ref().map_or(0, taken)
    }

    /// Nothing is left in the ring: asks the driver for a notification of what comes next. Whether something has come
    /// meanwhile, of which there may be none.
    pub(crate) fn rearm(&mut self, memory: &GuestMemory) -> Result<bool, Malformed> {
        match &mut self.queue {
            Some(queue) if self.means.event_index => {
                queue.enable_notification(memory).map_err(|_| Malformed::Ring)
            }
            _ => Ok(false),
        }
    }

    /// Gives a chain back to the driver, with the number of bytes written into it.
    pub(crate) fn complete(
        &mut self,
        memory: &GuestMemory,
        chain: &Chain,
        written: u32,
    ) -> Result<(), Malformed> {
        self.complete_all(memory, [(chain.head, written)])
    }

    /// Gives chains back, each with the number of bytes written into it; the driver sees all of them at once.
    pub(crate) fn complete_all(
        &mut self,
        memory: &GuestMemory,
        chains: impl IntoIterator<Item = (u16, u32)>,
    ) -> Result<(), Malformed> {
        let Some(queue) = &mut self.queue else { return Ok(()) };
        let mut next = queue.next_used();
        for (head, written) in chains {
            let slot = u64::from(next % queue.size());
            let entry = (u64::from(head) | u64::from(written) << 32).to_le();
            memory
                .write_obj(entry, GuestAddress(self.used + USED_ENTRIES + USED_ENTRY_BYTES * slot))
                .map_err(|_| Malformed::Ring)?;
            next = next.wrapping_add(1);
        }
        queue.set_next_used(next);
        let index = GuestAddress(self.used + RING_INDEX);
        memory.store(next.to_le(), index, Ordering::Release).map_err(|_| Malformed::Ring)
    }

    /// Whether the driver wants an interrupt for the chains given back since this was asked last.
    pub(crate) fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, Malformed> {
        // The used index must be visible before the driver's wish is read, or both sides could miss each other.
        fence(Ordering::SeqCst);
        let load = |at: u64| -> Result<u16, Malformed> {
            let word = memory.load(GuestAddress(at), Ordering::Relaxed).map_err(|_| Malformed::Ring)?;
            Ok(u16::from_le(word))
        };
        if let (Some(queue), true) = (&self.queue, self.means.event_index) {
            let now = queue.next_used();
            let before = std::mem::replace(&mut self.asked_at, now);
            // Behind the entries of the available ring: the entry of the used ring that is waited for.
            let event = load(self.avail + AVAIL_ENTRIES + 2 * u64::from(queue.size()))?;
            return Ok(now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before));
        }
        Ok(u32::from(load(self.avail)?) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    pub(crate) fn capture(&self) -> RingState {
        let &Self { max_size: _, size, desc, avail, used, means: _, asked_at: _, ref queue } = self;
        let position = queue
            .as_ref()
            .map(|queue| RingPosition { next_avail: queue.next_avail(), next_used: queue.next_used() });
        RingState { size, desc, avail, used, position }
    }

    /// A queue of `max_size` as captured, if that is a state a queue can be in.
    pub(crate) fn from_state(
        max_size: u16,
        means: RingFeatures,
        state: &RingState,
        memory: &GuestMemory,
    ) -> Result<Self, DeviceStateError> {
        let &RingState { size, desc, avail, used, position } = state;
        let mut ring = Self { max_size, size, desc, avail, used, means, asked_at: 0, queue: None };
        if let Some(position) = position {
            let queue =
                ring.queue_at(position, memory).map_err(|e| DeviceStateError::Queue(e.to_string()))?;
            let taken = position.next_avail.wrapping_sub(position.next_used);
            if taken > queue.size() {
                return Err(DeviceStateError::Queue(format!("{taken} chains taken of {}", queue.size())));
            }
            (ring.asked_at, ring.queue) = (position.next_used, Some(queue));
        }
        Ok(ring)
    }
}
