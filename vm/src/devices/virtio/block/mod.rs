//! virtio-block on an image of the host. It is asynchronous: a notification takes requests from the ring and orders
//! them of an engine, and what the engine has finished is given back on the engine's thread, both with the device
//! locked. The guest's memory is read when a request is taken, and written when it is given back; the engine has
//! buffers of its own.
//!
//! At a stop of the machine nothing more is taken or ordered, and soon nothing is given back. What is in flight then is
//! a part of the machine's state: it goes on when the machine does, here or elsewhere (see `flight`).

mod config;
pub(crate) mod flight;
mod landing;
mod request;

use super::Malformed;
use super::queue::{Chain, Ring};
use super::transport::Backend;
use crate::devices::counters::{Counters, add, count};
use crate::devices::error::DeviceStateError;
use crate::devices::host::{DiskAnswer, DiskChange, DiskOwner, OnIoError};
use flight::{Failure, Flight, RequestState, Stage, Taken};
use ft_disk::{Buffer, Io, IoDone, IoOrder, IoQueue, Persist, Unmap};
use ft_ram::GuestMemory;
pub(crate) use landing::{Landing, Mailbox};
pub use request::DiskOperation;
use request::{Asked, Limits, Request, TRANSFER_BYTES_MAX, parse};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
};

const QUEUE_SIZE: u16 = 128;
/// Header and status each take a descriptor.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
const SEGMENT_BYTES_MAX: u32 = 32 << 10;
/// With so much in flight the rest stays in the guest's ring.
const IN_FLIGHT_BYTES_MAX: u64 = 16 << 20;
/// With so much, in bytes or requests, of what resets have forgotten, a disk is crowded ([`Block::is_crowded`]). One
/// reset alone never brings it there.
const FORGOTTEN_BYTES_MAX: u64 = 2 * IN_FLIGHT_BYTES_MAX;
const FORGOTTEN_MAX: usize = 2 * QUEUE_SIZE as usize;
/// Chains that are taken in one turn, at most: other vCPUs can make available more and more.
const TAKEN_MAX: usize = 2 * QUEUE_SIZE as usize;
/// With so many bytes to or from the guest a turn is over, and a vCPU that waits for it goes on: the disk's thread has
/// the next. It may be more by one request.
const TURN_BYTES_MAX: u64 = 1 << 20;

/// When the guest sees that a request is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Showing {
    /// When the engine has finished it.
    Finished,
    /// When the machine's engine says so ([`Block::show`]).
    Told,
}

/// What a disk is made of.
pub(crate) struct Parts {
    pub index: usize,
    pub bytes: u64,
    pub writable: bool,
    pub queue: Box<dyn IoQueue>,
    pub showing: Showing,
    pub on_io_error: OnIoError,
    pub drain_within: Duration,
    pub owner: Option<Arc<dyn DiskOwner>>,
    pub counters: Arc<Counters>,
}

pub(crate) struct Block {
    index: usize,
    limits: Limits,
    id: [u8; VIRTIO_BLK_ID_BYTES as usize],
    config: [u8; config::BYTES],
    queue: Box<dyn IoQueue>,
    showing: Showing,
    on_io_error: OnIoError,
    drain_within: Duration,
    owner: Option<Arc<dyn DiskOwner>>,
    counters: Arc<Counters>,
    /// Requests that the host refused.
    host_errors: AtomicU64,
    /// A write is durable when it is done, for a driver that does not flush.
    persist: Persist,
    /// The machine is to stop: nothing is taken from the ring or ordered.
    stopping: bool,
    /// Something was finished since the last wait that was for nothing.
    lively: bool,
    /// The last turn was over before there was nothing left to do.
    has_more: bool,
    flight: Flight,
    /// For their memory.
    spare: Vec<Chain>,
}

/// What became of a request that was to be shown to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// The guest has it back.
    Done,
    /// The engine is not finished with it.
    NotYet,
    /// There is no such request, or the host could not do what is to be shown as done.
    Never,
}

impl Block {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { index, bytes, writable, queue, showing, on_io_error, drain_within, owner, counters } =
            parts;
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        let name = format!("ftd-disk-{index}");
        id[..name.len()].copy_from_slice(name.as_bytes());
        Self {
            index,
            limits: Limits { bytes, writable },
            id,
            config: config::space(bytes, writable),
            queue,
            showing,
            on_io_error,
            drain_within,
            owner,
            counters,
            host_errors: AtomicU64::new(0),
            persist: Persist::Now,
            stopping: false,
            lively: true,
            has_more: false,
            flight: Flight::default(),
            spare: Vec::new(),
        }
    }

    /// What can be done now, within the bounds of a turn; [`Self::has_more`] says whether those ended it. Says whether
    /// to interrupt.
    fn turn(&mut self, rings: &mut [Ring], memory: &GuestMemory) -> Result<bool, Malformed> {
        let ring = &mut rings[0];
        let (mut given_back, mut left) = (false, TURN_BYTES_MAX);
        self.has_more = false;
        if !self.stopping {
            self.read_again(ring, memory)?;
            given_back = self.take(ring, memory, &mut left)?;
            self.issue();
        }
        while self.showing == Showing::Finished && self.give_back_finished(ring, memory, &mut left)? {
            given_back = true;
            if !self.stopping {
                // There is room for more now, and less in the way.
                self.take(ring, memory, &mut left)?;
                self.issue();
            }
        }
        self.has_more |= left == 0;
        Ok(given_back && ring.wants_interrupt(memory)?)
    }

    /// Reads the chains of requests that came with a state.
    fn read_again(&mut self, ring: &Ring, memory: &GuestMemory) -> Result<(), Malformed> {
        for at in 0..self.flight.taken.len() {
            let Taken { head, request, stage: Stage::Recorded, .. } = self.flight.taken[at] else { continue };
            let mut chain = self.spare.pop().unwrap_or_default();
            ring.chain_at(memory, head, &mut chain)?;
            if parse(&chain, memory, self.limits)? != Asked::Io(request) {
                return Err(Malformed::Changed { head });
            }
            let stage = Stage::Waiting(written_data(&request, &chain, memory)?);
            let taken = &mut self.flight.taken[at];
            (taken.chain, taken.stage) = (chain, stage);
        }
        Ok(())
    }

    /// What resets have forgotten takes so much memory, until the engine has done it, that nothing new is to be taken.
    /// Such requests stay in the ring. But where two machines execute the same, what is taken must not depend on how
    /// fast the host's storage is: there the machine's engine lets the guest stand still, which it cannot see.
    fn is_crowded(&self) -> bool {
        let (requests, bytes) = self.flight.forgotten();
        requests >= FORGOTTEN_MAX || bytes >= FORGOTTEN_BYTES_MAX
    }

    /// Takes what is in the ring, as far as there is room for it and bytes of the turn are left. Whether anything was
    /// given back at once.
    fn take(&mut self, ring: &mut Ring, memory: &GuestMemory, left: &mut u64) -> Result<bool, Malformed> {
        let mut given_back = false;
        for _ in 0..TAKEN_MAX {
            let crowded = self.showing == Showing::Finished && self.is_crowded();
            if crowded || *left == 0 || self.flight.bytes() >= IN_FLIGHT_BYTES_MAX {
                return Ok(given_back);
            }
            let mut chain = self.spare.pop().unwrap_or_default();
            if !ring.pop(memory, &mut chain)? {
                self.spare.push(chain);
                if ring.rearm(memory)? {
                    continue;
                }
                return Ok(given_back);
            }
            match self.accept(chain, ring, memory, left) {
                Ok(at_once) => given_back |= at_once,
                Err(malformed) => {
                    // What is taken and not given back is what is in flight.
                    ring.unpop();
                    return Err(malformed);
                }
            }
        }
        self.has_more = true;
        Ok(given_back)
    }

    /// Whether the request in the chain was given back at once.
    fn accept(
        &mut self,
        chain: Chain,
        ring: &mut Ring,
        memory: &GuestMemory,
        left: &mut u64,
    ) -> Result<bool, Malformed> {
        let head = chain.head;
        if self.flight.position(head).is_some() {
            return Err(Malformed::Twice { head });
        }
        let asked = parse(&chain, memory, self.limits)?;
        add(&self.counters.block_requests, 1);
        match asked {
            Asked::Io(request) => {
                *left = left.saturating_sub(request.transfer_bytes());
                let stage = Stage::Waiting(written_data(&request, &chain, memory)?);
                self.flight.taken.push(Taken { head, chain, request, stage, told: false, forgotten: false });
                return Ok(false);
            }
            Asked::Id => {
                let bytes = self.id.len().min(chain.writable_bytes() as usize - 1);
                chain.write_at(memory, 0, &self.id[..bytes])?;
                self.give_back(chain, VIRTIO_BLK_S_OK, bytes as u64, ring, memory)?;
            }
            Asked::Refused(status) => self.give_back(chain, status, 0, ring, memory)?,
        }
        Ok(true)
    }

    /// Orders what nothing is in the way of.
    fn issue(&mut self) {
        // A change that the owner does not take now holds back all later ones.
        let mut held = false;
        for at in 0..self.flight.taken.len() {
            if !matches!(self.flight.taken[at].stage, Stage::Waiting(_)) || self.flight.is_blocked(at) {
                continue;
            }
            if held || !self.tell_owner(at) {
                held = true;
                if self.flight.taken[at].request.operation != DiskOperation::Read {
                    continue;
                }
            }
            let tag = self.flight.new_tag();
            let taken = &mut self.flight.taken[at];
            let Stage::Waiting(data) = std::mem::replace(&mut taken.stage, Stage::Issued { tag }) else {
                continue;
            };
            let io = io(&taken.request, data, self.persist);
            if let Some(done) = self.queue.submit(IoOrder { tag, io }) {
                self.arrive(done);
            }
        }
    }

    /// Whether the disk's owner lets a request go; each change is told once.
    fn tell_owner(&mut self, at: usize) -> bool {
        let taken = &mut self.flight.taken[at];
        let (Some(owner), false) = (&self.owner, taken.told) else { return true };
        let Request { operation, offset, bytes } = taken.request;
        let change = match (operation, &taken.stage) {
            (DiskOperation::Write, Stage::Waiting(Some(data))) => DiskChange::Write { offset, data },
            (DiskOperation::Discard, _) => DiskChange::Zeroes { offset, bytes, unmap: true },
            (DiskOperation::WriteZeroes { unmap }, _) => DiskChange::Zeroes { offset, bytes, unmap },
            (DiskOperation::Flush, _) => DiskChange::Flush,
            (DiskOperation::Read | DiskOperation::Write, _) => return true,
        };
        taken.told = owner.change(&change) == DiskAnswer::Taken;
        taken.told
    }

    /// The engine has finished something.
    pub(super) fn arrive(&mut self, done: IoDone) {
        self.lively = true;
        let Some((taken, result)) = self.flight.finished(done) else { return };
        let Failure { fault, data } = match result {
            Ok(data) => {
                taken.stage = Stage::Finished { ok: true, data };
                return self.flight.sweep();
            }
            Err(failure) => failure,
        };
        taken.stage = match self.on_io_error {
            OnIoError::Report => Stage::Finished { ok: false, data: None },
            OnIoError::Stop => Stage::Failed(data),
        };
        add(&self.counters.block_host_errors, 1);
        if count(&self.host_errors) {
            tracing::error!(disk = self.index, policy = ?self.on_io_error, "{fault}");
        }
        self.flight.sweep();
        if let (Some(owner), OnIoError::Stop) = (&self.owner, self.on_io_error) {
            owner.stopped(&fault);
        }
    }

    /// Gives back what the engine has finished, as far as bytes of the turn are left; whether there was anything.
    fn give_back_finished(
        &mut self,
        ring: &mut Ring,
        memory: &GuestMemory,
        left: &mut u64,
    ) -> Result<bool, Malformed> {
        let mut any = false;
        let finished = |taken: &Taken| matches!(taken.stage, Stage::Finished { .. });
        while *left != 0
            && let Some(at) = self.flight.taken.iter().position(finished)
        {
            let taken = self.flight.taken.remove(at);
            *left = left.saturating_sub(taken.request.transfer_bytes());
            let ok = matches!(taken.stage, Stage::Finished { ok: true, .. });
            self.give_back_io(taken, ok, ring, memory)?;
            any = true;
        }
        Ok(any)
    }

    /// Gives back what is finished, and no longer in flight.
    fn give_back_io(
        &mut self,
        taken: Taken,
        ok: bool,
        ring: &mut Ring,
        memory: &GuestMemory,
    ) -> Result<(), Malformed> {
        let Taken { chain, request, stage, told, .. } = taken;
        if let (Some(owner), true, true) = (&self.owner, told, request.is_change()) {
            owner.shown(&request.range());
        }
        let data = if let Stage::Finished { data, .. } = stage { data } else { None };
        let written = match (ok, &data) {
            (true, Some(data)) => {
                chain.write_at(memory, 0, data)?;
                data.len() as u64
            }
            _ => 0,
        };
        let status = if ok { VIRTIO_BLK_S_OK } else { VIRTIO_BLK_S_IOERR };
        self.give_back(chain, status, written, ring, memory)
    }

    fn give_back(
        &mut self,
        chain: Chain,
        status: u32,
        written: u64,
        ring: &mut Ring,
        memory: &GuestMemory,
    ) -> Result<(), Malformed> {
        if status != VIRTIO_BLK_S_OK {
            add(&self.counters.block_errors, 1);
        }
        // There is at least one writable byte, and no request has more than its bound. What is said to be written is
        // so from the first writable byte on (virtio 1.2 §2.7.8.2): with the status, if there is no gap before it.
        let room = chain.writable_bytes() - 1;
        chain.write_at(memory, room as usize, &[status as u8])?;
        ring.complete(memory, &chain, (written + u64::from(written == room)) as u32)?;
        if self.spare.len() < usize::from(QUEUE_SIZE) {
            self.spare.push(chain);
        }
        Ok(())
    }

    /// Shows the guest that a request is done, well or not, where the machine's engine decides when. Says whether to
    /// interrupt.
    fn show(
        &mut self,
        head: u16,
        well: bool,
        rings: &mut [Ring],
        memory: &GuestMemory,
    ) -> Result<(Shown, bool), Malformed> {
        let Some(at) = self.flight.position(head) else { return Ok((Shown::Never, false)) };
        match self.flight.taken[at].stage {
            Stage::Finished { ok, .. } if ok || !well => {}
            Stage::Finished { .. } => return Ok((Shown::Never, false)),
            _ => return Ok((Shown::NotYet, false)),
        }
        let taken = self.flight.taken.remove(at);
        self.give_back_io(taken, well, &mut rings[0], memory)?;
        // There is room for more now, and less in the way.
        self.take(&mut rings[0], memory, &mut { TURN_BYTES_MAX })?;
        self.issue();
        Ok((Shown::Done, rings[0].wants_interrupt(memory)?))
    }
}

/// What a write brings along, copied out of the guest's memory.
fn written_data(request: &Request, chain: &Chain, memory: &GuestMemory) -> Result<Option<Buffer>, Malformed> {
    if request.operation != DiskOperation::Write {
        return Ok(None);
    }
    let mut data = Buffer::zeroed(request.bytes as usize);
    chain.read_at(memory, request::HEADER_BYTES as u64, &mut data)?;
    Ok(Some(data))
}

fn io(request: &Request, data: Option<Buffer>, persist: Persist) -> Io {
    let &Request { operation, offset, bytes } = request;
    let zeroes = |unmap| Io::WriteZeroes { offset, bytes, unmap };
    match operation {
        DiskOperation::Read => Io::Read { offset, into: Buffer::zeroed(bytes as usize) },
        DiskOperation::Write => {
            Io::Write { offset, from: data.unwrap_or_else(|| Buffer::zeroed(0)), persist }
        }
        DiskOperation::Flush => Io::Flush,
        DiskOperation::Discard | DiskOperation::WriteZeroes { unmap: true } => zeroes(Unmap::May),
        DiskOperation::WriteZeroes { unmap: false } => zeroes(Unmap::Keep),
    }
}

impl Backend for Block {
    const DEVICE_ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
    const QUEUES: &'static [u16] = &[QUEUE_SIZE];
    const NAME: &'static str = "block";

    fn features(&self) -> u64 {
        let common = [VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_SEG_MAX];
        let own: &[u32] = match self.limits.writable {
            true => &[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES],
            false => &[VIRTIO_BLK_F_RO],
        };
        common.iter().chain(own).fold(0, |features, bit| features | 1 << bit)
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn negotiated(&mut self, features: u64) {
        // A driver that cannot flush takes a write that is done for durable (virtio 1.2 §5.2.6.2).
        self.persist = if features & 1 << VIRTIO_BLK_F_FLUSH != 0 { Persist::Later } else { Persist::Now };
    }

    fn notify(&mut self, _: usize, rings: &mut [Ring], memory: &GuestMemory) -> Result<bool, Malformed> {
        let mut interrupt = self.turn(rings, memory)?;
        // A disk without a thread of its own does all at once. Where the machine's engine decides what the guest sees,
        // the rest is taken when the first of what was taken is shown.
        while self.has_more && self.showing == Showing::Finished && !self.queue.nudge() {
            interrupt |= self.turn(rings, memory)?;
        }
        Ok(interrupt)
    }

    fn reset(&mut self) {
        self.flight.forget(self.showing == Showing::Told);
    }

    fn capture(&self) -> Vec<RequestState> {
        self.flight.capture()
    }

    fn check(&self, requests: &[RequestState], rings: &[Ring]) -> Result<(), DeviceStateError> {
        let taken = rings[0].taken();
        if usize::from(taken) != requests.len() {
            return Err(DeviceStateError::Requests { requests: requests.len(), taken });
        }
        for (at, state) in requests.iter().enumerate() {
            let request = state.request();
            let sound = match request.operation {
                DiskOperation::Flush => request.offset == 0 && request.bytes == 0,
                operation => {
                    let sector = request.offset / crate::spec::SECTOR_BYTES;
                    self.limits.within(operation, sector, request.bytes) == Some(request)
                        && request.transfer_bytes() <= TRANSFER_BYTES_MAX
                        && (self.limits.writable || !request.is_change())
                }
            };
            if !sound || requests[..at].iter().any(|other| other.head == state.head) {
                return Err(DeviceStateError::Request(*state));
            }
        }
        Ok(())
    }

    fn restore(&mut self, requests: &[RequestState]) {
        self.flight.restore(requests);
    }
}
