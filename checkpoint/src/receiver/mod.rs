//! The backup's side of the stream: takes frames, and at any moment holds either nothing or exactly one sealed
//! checkpoint (invariant I3).
//!
//! Each page of an epoch is decoded on arrival to its full content, beside the image. The base of a delta is the page
//! as of the last sealed checkpoint: in the newest checkpoint of the backlog that has it, else in the image. This is
//! right without any lock. The list of the backlog is taken when the epoch begins. A page in the list does not change
//! even if it is applied meanwhile. A page outside the list is not being applied, and nothing new is queued before this
//! epoch ends. The digest over the decoded content then proves it. Applying whole pages cannot fail.
//!
//! Any error leaves the last sealed checkpoint as it was and drops the half-received epoch; the caller must close the
//! connection. Memory is bounded: a checkpoint by [`Limits::epoch_pages`], the backlog by [`Limits::backlog_pages`]
//! (beyond it the receiver applies by itself before it takes more, which slows the sender down through the channel).

mod changes;
mod copying;
mod error;
mod incoming;
mod log;

pub use copying::TOLD_AHEAD;
pub use error::ReceiveError;

use crate::backlog::{Applier, Backlog, Pool, SealedCheckpoint};
use crate::digest::Chain;
use crate::encoder::STATE_BYTES_MAX;
use crate::image::Image;
use crate::page::Records;
use crate::scrub::SAMPLES_MAX;
use crate::wire::message::{Bye, Compare, DiskMap, EpochBegin, EpochEnd, Held, Mode, Network, Standing};
use crate::wire::{Frame, FrameType, Message};
use changes::IncomingChanges;
use copying::Copying;
use ft_mirror::Change;
use ft_ram::layout::PAGE_SIZE;
use ft_ram::{PageIndex, RamView};
use incoming::Incoming;
use log::IncomingLog;
use std::sync::Arc;

/// Bounds on what a receiver holds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most pages of one checkpoint; more is refused.
    pub epoch_pages: usize,
    /// Most pages of sealed checkpoints waiting to be applied, those of the one being received included.
    pub backlog_pages: usize,
}

/// Bytes of pages that wait to be applied, at most. A single checkpoint may have more: then it alone waits.
pub const BACKLOG_BYTES_MAX: usize = 128 << 20;

impl Limits {
    /// No checkpoint of a memory of `pages` is refused, and no more than [`BACKLOG_BYTES_MAX`] of them wait.
    pub fn of_memory(pages: PageIndex) -> Self {
        let pages = pages as usize;
        Self { epoch_pages: pages, backlog_pages: pages.min(BACKLOG_BYTES_MAX / PAGE_SIZE) }
    }
}

/// What a frame came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received<'f> {
    /// Part of something; nothing to do.
    Nothing,
    /// A change of a disk, after all that came before it: a part of the epoch that is sealed next. It is nothing until
    /// then, and comes again with the whole of its epoch if the connection is lost.
    Change(Change<'f>),
    /// In a copy: an extent of a disk is to be compared, after all changes that came before.
    Compare(Compare),
    /// In a copy: a part of what the primary's map of a disk says.
    DiskMap(DiskMap),
    /// A full copy has begun; nothing is held from now on.
    CopyStarted {
        /// The pairing.
        pairing: u64,
    },
    /// A full copy goes on.
    CopyProgress {
        /// Pages received at least once.
        received_pages: PageIndex,
        /// Pages of RAM.
        total_pages: PageIndex,
        /// Those of the pages received that were here already.
        same_pages: PageIndex,
    },
    /// A checkpoint is complete and verified: to be acked.
    Sealed {
        /// Its pairing.
        pairing: u64,
        /// Its epoch.
        epoch: u64,
        /// To be sent back in the ack.
        stamp_us: u64,
    },
    /// An epoch of the log is complete and verified: to be acked, and executed.
    SealedLog {
        /// Its pairing.
        pairing: u64,
        /// Its epoch.
        epoch: u64,
        /// To be sent back in the ack.
        stamp_us: u64,
        /// The log.
        log: Vec<u8>,
    },
    /// The pair is protected since this generation.
    Paired {
        /// The generation.
        generation: u64,
    },
    /// How the VM's network is on the primary's host.
    Network(Network),
    /// A planned switchover is offered, once this epoch is sealed.
    Switchover {
        /// The last epoch.
        epoch: u64,
    },
    /// The peer runs the VM in this generation.
    TookOver {
        /// The generation.
        generation: u64,
    },
    /// What the peer's arbiter says.
    Standing(Standing),
    /// Nothing follows.
    Bye(Bye),
}

/// The last sealed checkpoint.
struct Sealed {
    pairing: u64,
    epoch: u64,
    chain: Chain,
    state: Vec<u8>,
}

/// What is held or being received.
enum Holding {
    /// Nothing, or a copy that failed.
    Nothing,
    /// A full copy is coming in.
    Copy(Copying),
    /// A sealed checkpoint.
    Sealed(Sealed),
}

/// See the module.
pub struct Receiver {
    image: Arc<Image>,
    backlog: Arc<Backlog>,
    pool: Arc<Pool>,
    limits: Limits,
    mode: Mode,
    /// The primary wants to hear what is still in the image when a copy begins.
    compares: bool,
    generation: u64,
    holding: Holding,
    incoming: Option<Incoming>,
    incoming_log: Option<IncomingLog>,
    /// Bytes of each disk that the machine changes.
    disks: Vec<u64>,
    incoming_changes: IncomingChanges,
    /// The backlog as of the incoming epoch's beginning, newest first.
    bases: Vec<Arc<SealedCheckpoint>>,
    spare_state: Vec<u8>,
    scrubbed: u64,
    /// The epoch whose digest was another one, the last time that one was.
    disagreed: Option<u64>,
}

impl Receiver {
    /// A receiver of checkpoints into the memory behind `view`, which holds nothing yet.
    pub fn new(view: RamView, limits: Limits) -> Self {
        Self::of_mode(view, limits, Mode::Checkpoint)
    }

    /// A receiver of what this mode ships.
    pub fn of_mode(view: RamView, limits: Limits, mode: Mode) -> Self {
        let image = Arc::new(Image::new(view));
        Self {
            backlog: Backlog::new(Arc::clone(&image)),
            image,
            pool: Pool::new(limits.epoch_pages, limits.backlog_pages),
            limits,
            mode,
            compares: false,
            generation: 0,
            holding: Holding::Nothing,
            incoming: None,
            incoming_log: None,
            disks: Vec::new(),
            incoming_changes: IncomingChanges::default(),
            bases: Vec::new(),
            spare_state: Vec::new(),
            scrubbed: 0,
            disagreed: None,
        }
    }

    /// The machine changes disks of these sizes.
    #[must_use]
    pub fn with_disks(mut self, bytes: Vec<u64>) -> Self {
        self.disks = bytes;
        self
    }

    /// Whether the primary understands what it is told of the memory that is behind the view when a copy begins
    /// ([`Self::page_hashes`]). Otherwise that is given back, and all comes anew.
    pub fn compare_copies(&mut self, compares: bool) {
        self.compares = compares;
    }

    /// The worker for the backlog.
    pub fn applier(&self) -> Applier {
        Applier(Arc::clone(&self.backlog))
    }

    /// What to offer in a hello.
    pub fn held(&self) -> Option<Held> {
        match &self.holding {
            Holding::Sealed(sealed) => Some(Held { pairing: sealed.pairing, epoch: sealed.epoch }),
            _ => None,
        }
    }

    /// The machine's state as of the last sealed checkpoint. Only executing the log shows what it adds.
    pub fn sealed_state(&self) -> Option<&[u8]> {
        match &self.holding {
            Holding::Sealed(sealed) => Some(&sealed.state),
            _ => None,
        }
    }

    /// Pages that were compared with the primary's, and were the same.
    pub fn scrubbed(&self) -> u64 {
        self.scrubbed
    }

    /// Sealed checkpoints not applied yet, and pages in them.
    pub fn backlog(&self) -> (usize, usize) {
        self.backlog.len()
    }

    /// A new connection was welcomed in this generation: forgets what the last one left half received.
    pub fn connected(&mut self, generation: u64) {
        self.generation = generation;
        self.drop_partial();
    }

    /// Drops what is half received: an epoch, or a whole unfinished copy.
    pub fn drop_partial(&mut self) {
        self.bases.clear();
        self.incoming_log = None;
        self.incoming_changes = IncomingChanges::default();
        if let Some(incoming) = self.incoming.take() {
            self.pool.put(incoming.pages);
            self.spare_state = incoming.state;
        }
        if matches!(self.holding, Holding::Copy(_)) {
            self.holding = Holding::Nothing;
        }
    }

    /// Takes a frame. After an error the connection is to be closed; what is held is as before.
    pub fn on_frame<'f>(&mut self, frame: &Frame<'f>) -> Result<Received<'f>, ReceiveError> {
        let result = self.take(frame);
        if result.is_err() {
            self.drop_partial();
        }
        result
    }

    fn take<'f>(&mut self, frame: &Frame<'f>) -> Result<Received<'f>, ReceiveError> {
        let kind = frame.kind;
        if frame.generation != self.generation && !matches!(kind, FrameType::Paired | FrameType::TookOver) {
            let (theirs, ours) = (frame.generation, self.generation);
            return Err(ReceiveError::Generation { kind, theirs, ours });
        }
        let in_epoch = match kind {
            FrameType::Pages | FrameType::State => self.incoming.is_some(),
            FrameType::Log | FrameType::LogEnd => self.incoming_log.is_some(),
            FrameType::EpochEnd => self.incoming.is_some(),
            // The sender lets these overtake the pages.
            FrameType::Paired | FrameType::Standing | FrameType::Network | FrameType::Bye => true,
            _ => false,
        };
        if (self.incoming.is_some() || self.incoming_log.is_some()) && !in_epoch {
            return Err(ReceiveError::Unexpected { kind, when: "inside an epoch" });
        }
        match Message::decode(frame)? {
            Message::CopyBegin(begin) => self.copy_begin(begin),
            Message::CopyPages(batch) => self.copy_pages(batch),
            Message::EpochBegin(begin) => self.epoch_begin(frame.epoch, begin),
            Message::Pages(batch) => self.pages(frame.epoch, batch),
            Message::State(batch) => self.state(frame.epoch, batch),
            Message::Disk(change) => self.change(frame, change),
            Message::Compare(compare) => self.compare(frame, compare),
            Message::DiskMap(map) => self.disk_map(frame, map),
            Message::Log(part) => self.log_part(kind, frame.epoch, part),
            Message::LogEnd(end, part) => {
                self.log_part(kind, frame.epoch, part)?;
                self.log_end(frame.epoch, end)
            }
            Message::EpochEnd(end) => self.epoch_end(frame.epoch, end),
            Message::Paired { generation } => {
                if generation != frame.generation || generation < self.generation {
                    let ours = self.generation;
                    return Err(ReceiveError::Generation { kind, theirs: generation, ours });
                }
                self.generation = generation;
                Ok(Received::Paired { generation })
            }
            Message::Standing(standing) => Ok(Received::Standing(standing)),
            Message::Switchover { epoch } => Ok(Received::Switchover { epoch }),
            Message::TookOver { generation } => Ok(Received::TookOver { generation }),
            Message::Network(network) => Ok(Received::Network(network)),
            Message::Bye(bye) => Ok(Received::Bye(bye)),
            Message::Hello(_) | Message::Welcome(_) | Message::Refuse(_) | Message::Pulse { .. } => {
                Err(ReceiveError::Unexpected { kind, when: "after the handshake" })
            }
            Message::Heartbeat { .. } => Err(ReceiveError::Unexpected { kind, when: "among checkpoints" }),
            Message::Ack(_)
            | Message::Echo { .. }
            | Message::Decline { .. }
            | Message::Position(_)
            | Message::Compared(_)
            | Message::Settled(_)
            | Message::PageHashes(_)
            | Message::Survey(_)
            | Message::Diverged(_) => Err(ReceiveError::Unexpected { kind, when: "from a primary" }),
            #[cfg(feature = "next-version")]
            Message::Build { .. } => Err(ReceiveError::Unexpected { kind, when: "from a primary" }),
        }
    }

    fn epoch_begin(&mut self, epoch: u64, begin: EpochBegin) -> Result<Received<'static>, ReceiveError> {
        let total = self.image.view().pages();
        let (pairing, chain, due) = match &self.holding {
            Holding::Nothing => {
                return Err(ReceiveError::Unexpected { kind: FrameType::EpochBegin, when: "without a copy" });
            }
            Holding::Copy(copy) if copy.received < total => {
                return Err(ReceiveError::CopyIncomplete { received: copy.received, total });
            }
            Holding::Copy(copy) => (copy.pairing, copy.chain, epoch.max(1)),
            Holding::Sealed(_) if self.mode == Mode::Replay => {
                return Err(ReceiveError::Unexpected {
                    kind: FrameType::EpochBegin,
                    when: "where the log is due",
                });
            }
            Holding::Sealed(sealed) => (sealed.pairing, sealed.chain, sealed.epoch.saturating_add(1)),
        };
        if begin.pairing != pairing {
            return Err(ReceiveError::Pairing { theirs: begin.pairing, ours: pairing });
        }
        if epoch != due {
            return Err(ReceiveError::Epoch { theirs: epoch, ours: due });
        }
        self.incoming_changes.belong_to(epoch)?;
        let bounded = |what, announced: u32, max: usize| match announced as usize {
            announced if announced > max => Err(ReceiveError::TooMuch { epoch, what, announced, max }),
            _ => Ok(()),
        };
        bounded("pages", begin.pages, self.limits.epoch_pages.min(total as usize))?;
        bounded("bytes of state", begin.state_bytes, STATE_BYTES_MAX)?;
        while self.backlog.len().1.saturating_add(begin.pages as usize) > self.limits.backlog_pages
            && self.backlog.apply_next().is_some()
        {}
        self.backlog.snapshot(&mut self.bases);
        let mut state = std::mem::take(&mut self.spare_state);
        state.clear();
        self.incoming = Some(Incoming {
            epoch,
            begin,
            chain,
            count: 0,
            next_page: 0,
            pages: self.pool.take(),
            state,
            state_blocks: 0,
        });
        Ok(Received::Nothing)
    }

    fn pages(&mut self, epoch: u64, batch: &[u8]) -> Result<Received<'static>, ReceiveError> {
        let incoming = due(&mut self.incoming, epoch, FrameType::Pages)?;
        let total = self.image.view().pages();
        for record in Records::new(batch) {
            let record = record.map_err(|source| ReceiveError::Page { epoch, source })?;
            let page = record.page;
            if u64::from(page) < incoming.next_page || page >= total {
                return Err(ReceiveError::PageIndex { epoch, page, pages: total });
            }
            incoming.next_page = u64::from(page) + 1;
            incoming.count += 1;
            if incoming.count > incoming.begin.pages as usize {
                return Err(incoming.miscounted("pages or more", incoming.count, incoming.begin.pages));
            }
            incoming.page(&record, &self.image, &self.bases)?;
        }
        Ok(Received::Nothing)
    }

    fn state(&mut self, epoch: u64, batch: &[u8]) -> Result<Received<'static>, ReceiveError> {
        let incoming = due(&mut self.incoming, epoch, FrameType::State)?;
        let last: &[u8] = match &self.holding {
            Holding::Sealed(sealed) => &sealed.state,
            _ => &[],
        };
        for record in Records::new(batch) {
            let record = record.map_err(|source| ReceiveError::Page { epoch, source })?;
            incoming.state_block(&record, last)?;
        }
        Ok(Received::Nothing)
    }

    fn epoch_end(&mut self, epoch: u64, end: EpochEnd) -> Result<Received<'static>, ReceiveError> {
        let incoming = due(&mut self.incoming, epoch, FrameType::EpochEnd)?;
        if incoming.count != incoming.begin.pages as usize {
            return Err(incoming.miscounted("pages", incoming.count, incoming.begin.pages));
        }
        if incoming.state.len() != incoming.begin.state_bytes as usize {
            let announced = incoming.begin.state_bytes;
            return Err(incoming.miscounted("bytes of state", incoming.state.len(), announced));
        }
        incoming.chain.changes(self.incoming_changes.digest());
        incoming.chain.epoch(epoch, &incoming.state);
        let (computed, stated) = (incoming.chain.value(), end.digest);
        if computed != stated {
            // Once, the stream may be to blame. It has come again, so it is what its deltas stand on.
            let again = self.disagreed.replace(epoch) == Some(epoch);
            let is_base_wrong = again && matches!(self.holding, Holding::Sealed(_));
            return Err(if is_base_wrong {
                ReceiveError::Base { epoch, computed, stated }
            } else {
                ReceiveError::Digest { epoch, computed, stated }
            });
        }
        let samples = end.samples.len();
        if samples > SAMPLES_MAX {
            let (what, announced, max) = ("samples", samples, SAMPLES_MAX);
            return Err(ReceiveError::TooMuch { epoch, what, announced, max });
        }
        incoming.compare(&end.samples, &self.image, &self.bases)?;
        self.scrubbed += samples as u64;
        let pairing = incoming.begin.pairing;
        // Verified. From here on nothing can fail.
        if let Some(incoming) = self.incoming.take() {
            let before = std::mem::replace(&mut self.holding, Holding::Nothing);
            if let Holding::Sealed(before) = before {
                self.spare_state = before.state;
            }
            self.bases.clear();
            self.incoming_changes = IncomingChanges::default();
            self.backlog.push(SealedCheckpoint::new(epoch, incoming.pages, Arc::clone(&self.pool)));
            self.holding =
                Holding::Sealed(Sealed { pairing, epoch, chain: incoming.chain, state: incoming.state });
        }
        Ok(Received::Sealed { pairing, epoch, stamp_us: end.stamp_us })
    }

    /// Take-over: drops what is half received, stops the applier, and hands out the sealed checkpoint. The receiver
    /// itself comes back if it holds none.
    pub fn into_sealed(mut self) -> Result<SealedImage, Box<Self>> {
        self.drop_partial();
        match std::mem::replace(&mut self.holding, Holding::Nothing) {
            Holding::Sealed(sealed) => Ok(SealedImage {
                pairing: sealed.pairing,
                epoch: sealed.epoch,
                state: sealed.state,
                pending: self.backlog.stop(),
                image: Arc::clone(&self.image),
            }),
            other => {
                self.holding = other;
                Err(Box::new(self))
            }
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.backlog.stop();
    }
}

fn due(incoming: &mut Option<Incoming>, epoch: u64, kind: FrameType) -> Result<&mut Incoming, ReceiveError> {
    match incoming {
        None => Err(ReceiveError::Unexpected { kind, when: "outside an epoch" }),
        Some(incoming) if incoming.epoch != epoch => {
            Err(ReceiveError::Epoch { theirs: epoch, ours: incoming.epoch })
        }
        Some(incoming) => Ok(incoming),
    }
}

/// The checkpoint that a backup takes over with.
pub struct SealedImage {
    /// Its pairing.
    pub pairing: u64,
    /// Its epoch.
    pub epoch: u64,
    /// The machine's state.
    pub state: Vec<u8>,
    /// What the image lacks, oldest first.
    pub pending: Vec<Arc<SealedCheckpoint>>,
    /// The RAM.
    pub image: Arc<Image>,
}

impl SealedImage {
    /// Applies everything: the image is the guest's memory as of the checkpoint.
    pub fn apply_all(&mut self) {
        for checkpoint in self.pending.drain(..) {
            for (page, content) in checkpoint.pages() {
                self.image.write(page, content);
            }
        }
    }
}
