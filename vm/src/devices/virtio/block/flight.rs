//! Requests that the disk has taken from the guest and not given back, in the order in which they were taken.
//!
//! ```text
//!              chain read again                 nothing in the way             engine says so
//!   Recorded ───────────────────> Waiting ───────────────────────> Issued ──────────────────> Finished ──> given back
//!   (from a checkpoint)             ^ taken from the ring            │
//!                                   └───────── the machine goes on ── Failed (policy: stop)
//! ```
//!
//! A request waits for those before it that touch the same sectors, where one of the two is a change: so what the image
//! holds, and what a read sees, does not depend on the engine. A device that is reset forgets its requests; what the
//! engine still has of them stays in the way until it is finished. Where two machines execute the same, what was taken
//! is done on both: how far the engine had come by the reset differs between them.

use super::request::{DiskOperation, Request};
use crate::devices::virtio::queue::Chain;
use ft_disk::{Buffer, Io, IoDone, IoFault};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A request in flight, as a checkpoint holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestState {
    /// The first descriptor of its chain, by which the guest gets it back.
    pub head: u16,
    /// What it does.
    pub operation: DiskOperation,
    /// Where, in bytes.
    pub offset: u64,
    /// To how many bytes.
    pub bytes: u64,
}

impl RequestState {
    pub(super) fn request(&self) -> Request {
        let &Self { head: _, operation, offset, bytes } = self;
        Request { operation, offset, bytes }
    }
}

/// How far a request has come.
#[derive(Debug)]
pub(super) enum Stage {
    /// Its chain was not read again yet.
    Recorded,
    /// It may be issued when nothing is in its way. Of a write it has the data.
    Waiting(Option<Buffer>),
    /// The engine has it.
    Issued { tag: u64 },
    /// The engine is done with it. Of a read that went well it has the data.
    Finished { ok: bool, data: Option<Buffer> },
    /// The host could not do it, and the guest is not to know. Of a write it has the data.
    Failed(Option<Buffer>),
}

pub(super) struct Taken {
    pub head: u16,
    /// Its buffers; empty while it is recorded.
    pub chain: Chain,
    pub request: Request,
    pub stage: Stage,
    /// The disk's owner knows of the change.
    pub told: bool,
    /// The guest has reset the device since: it does not get it back.
    pub forgotten: bool,
}

#[derive(Default)]
pub(super) struct Flight {
    pub taken: Vec<Taken>,
    next_tag: u64,
}

impl Flight {
    /// Those that the guest is to get back.
    fn awaited(&self) -> impl Iterator<Item = &Taken> {
        self.taken.iter().filter(|taken| !taken.forgotten)
    }

    /// The place of the one that the guest knows by this head.
    pub(super) fn position(&self, head: u16) -> Option<usize> {
        self.taken.iter().position(|taken| !taken.forgotten && taken.head == head)
    }

    /// Bytes of all that the guest is to get back.
    pub(super) fn bytes(&self) -> u64 {
        self.awaited().map(|taken| taken.request.transfer_bytes()).sum()
    }

    /// How many the guest does not get back, and their bytes.
    pub(super) fn forgotten(&self) -> (usize, u64) {
        let forgotten = self.taken.iter().filter(|taken| taken.forgotten);
        forgotten.fold((0, 0), |(n, bytes), taken| (n + 1, bytes + taken.request.transfer_bytes()))
    }

    /// Whether nothing is left to be done.
    pub(super) fn is_done(&self) -> bool {
        self.taken.iter().all(|taken| matches!(taken.stage, Stage::Finished { .. }))
    }

    /// Whether the engine has any of them.
    pub(super) fn is_under_way(&self) -> bool {
        self.taken.iter().any(|taken| matches!(taken.stage, Stage::Issued { .. }))
    }

    /// Whether a change of any of these bytes is with the engine, or was told and is about to be.
    pub(super) fn is_changing(&self, bytes: &Range<u64>) -> bool {
        let touches = |request: &Request| {
            let Request { offset, bytes: length, .. } = *request;
            request.is_change() && offset < bytes.end && bytes.start < offset + length
        };
        let under_way = |taken: &&Taken| taken.told && !matches!(taken.stage, Stage::Finished { .. });
        self.taken.iter().filter(under_way).any(|taken| touches(&taken.request))
    }

    /// Whether there is one that is not with the engine.
    pub(super) fn has_work(&self) -> bool {
        self.taken.iter().any(|taken| !matches!(taken.stage, Stage::Issued { .. }))
    }

    /// Whether something before request `at` has to be finished first.
    pub(super) fn is_blocked(&self, at: usize) -> bool {
        let request = &self.taken[at].request;
        let unfinished = |taken: &&Taken| !matches!(taken.stage, Stage::Finished { .. });
        self.taken[..at].iter().filter(unfinished).any(|taken| taken.request.conflicts(request))
    }

    pub(super) fn new_tag(&mut self) -> u64 {
        self.next_tag += 1;
        self.next_tag
    }

    /// The request that the engine has finished, with its buffer.
    pub(super) fn finished(&mut self, done: IoDone) -> Option<(&mut Taken, Result<Option<Buffer>, Failure>)> {
        let IoDone { tag, io, result } = done;
        let taken = self
            .taken
            .iter_mut()
            .find(|taken| matches!(taken.stage, Stage::Issued { tag: of } if of == tag))?;
        let (read, written) = match io {
            Io::Read { into, .. } => (Some(into), None),
            Io::Write { from, .. } => (None, Some(from)),
            Io::Flush | Io::WriteZeroes { .. } => (None, None),
        };
        Some((taken, result.map(|()| read).map_err(|fault| Failure { fault, data: written })))
    }

    /// The first that is finished: its head, and whether it went well.
    pub(super) fn next_finished(&self) -> Option<(u16, bool)> {
        self.awaited().find_map(|taken| match taken.stage {
            Stage::Finished { ok, .. } => Some((taken.head, ok)),
            _ => None,
        })
    }

    /// Forgets all requests. What the engine has of them is done, and what it has not, if `all_is_done`.
    pub(super) fn forget(&mut self, all_is_done: bool) {
        self.taken.retain_mut(|taken| {
            taken.forgotten = true;
            match taken.stage {
                Stage::Issued { .. } => true,
                Stage::Waiting(_) | Stage::Failed(_) => all_is_done,
                Stage::Recorded | Stage::Finished { .. } => false,
            }
        });
    }

    /// Nobody waits for what is forgotten and finished.
    pub(super) fn sweep(&mut self) {
        self.taken.retain(|taken| !(taken.forgotten && matches!(taken.stage, Stage::Finished { .. })));
    }

    pub(super) fn capture(&self) -> Vec<RequestState> {
        let state = |taken: &Taken| {
            let Request { operation, offset, bytes } = taken.request;
            RequestState { head: taken.head, operation, offset, bytes }
        };
        self.awaited().map(state).collect()
    }

    /// Takes over what a checkpoint has, which was checked.
    pub(super) fn restore(&mut self, requests: &[RequestState]) {
        self.forget(false);
        self.taken.extend(requests.iter().map(|state| Taken {
            head: state.head,
            chain: Chain::default(),
            request: state.request(),
            stage: Stage::Recorded,
            told: false,
            forgotten: false,
        }));
    }

    /// Those that failed are to be tried again.
    pub(super) fn try_again(&mut self) {
        for taken in &mut self.taken {
            if let Stage::Failed(data) = &mut taken.stage {
                taken.stage = Stage::Waiting(data.take());
            }
        }
    }
}

/// Why the engine could not.
pub(super) struct Failure {
    pub fault: IoFault,
    /// What was to be written.
    pub data: Option<Buffer>,
}
