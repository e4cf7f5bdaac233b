//! Rehearsals of a backup: when the sealed state is to be tried in a scratch machine, and what its word is worth until
//! then. The first checkpoint of a pairing is acknowledged only when it has been rehearsed; from then on the state is
//! rehearsed again and again. A failure is told to the primary, and repeated soon: until one goes well the pair is
//! degraded.
//!
//! ```text
//!   unproven ── sealed ──> under way ── went well ──> proven ── interval over ──> under way ── ...
//!      ^                       │ failed, or no answer                               │ failed: proven before, and told
//!      └─── gives the pairing up, see `attempts` ◄──┘                               └──> repeated after a short while
//! ```

use super::event::{ConnId, Micros};

/// After a failure the state is rehearsed again this soon, or after the interval if that is shorter.
const AGAIN_US: Micros = 5_000_000;
/// How long a rehearsal may take: a machine is made, which a busy host may not get to.
const LIMIT_US: Micros = 30_000_000;

/// What the rehearsals of what is held have shown.
#[derive(Clone, Debug, Default)]
pub(super) struct Rehearsals {
    /// The last one that went well.
    proven_at: Option<Micros>,
    /// Since when one is under way.
    since: Option<Micros>,
    /// When the next one is due, once one went well.
    next_at: Micros,
    /// Why the last one failed.
    trouble: Option<String>,
    /// Since when they fail, after one went well.
    failing_since: Option<Micros>,
    /// Sealed, and not acknowledged before it is proven: the newest.
    unacked: Option<Unacked>,
}

/// An ack that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unacked {
    pub(super) conn: ConnId,
    pub(super) epoch: u64,
    pub(super) stamp: Micros,
}

/// What the core tells of its rehearsals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RehearsalView {
    /// When the state was last shown to be one that the VM can go on from.
    pub proven_at: Option<Micros>,
    /// Why the last attempt to show it failed, if it did.
    pub trouble: Option<String>,
}

impl Rehearsals {
    /// Another state will be held: nothing is known of it. Why the one before failed stays known.
    pub(super) fn begin_anew(&mut self) {
        *self = Self { trouble: self.trouble.take(), ..Self::default() };
    }

    /// The connection that the ack was for is gone.
    pub(super) fn forget_ack(&mut self) {
        self.unacked = None;
    }

    pub(super) fn is_proven(&self) -> bool {
        self.proven_at.is_some()
    }

    /// The ack of a state that is not proven waits. Whether a rehearsal is to begin.
    pub(super) fn hold_back(&mut self, unacked: Unacked, now: Micros) -> bool {
        self.unacked = Some(unacked);
        let begins = self.since.is_none();
        self.since.get_or_insert(now);
        begins
    }

    /// Whether another rehearsal is to begin.
    pub(super) fn is_due(&mut self, now: Micros) -> bool {
        let due = self.is_proven() && self.since.is_none() && now >= self.next_at;
        if due {
            self.since = Some(now);
        }
        due
    }

    /// Whether the one under way has been given up.
    pub(super) fn is_overdue(&self, now: Micros) -> bool {
        self.since.is_some_and(|since| now.saturating_sub(since) > LIMIT_US)
    }

    /// It went well. The ack that waited for it.
    pub(super) fn went_well(&mut self, now: Micros, interval_us: Micros) -> Option<Unacked> {
        self.since.take()?;
        (self.proven_at, self.next_at) = (Some(now), now + interval_us);
        (self.trouble, self.failing_since) = (None, None);
        self.unacked.take()
    }

    /// It failed.
    pub(super) fn failed(&mut self, now: Micros, interval_us: Micros, why: String) {
        self.since = None;
        self.trouble = Some(why);
        self.next_at = now + interval_us.min(AGAIN_US);
        if self.is_proven() {
            self.failing_since.get_or_insert(now);
        }
    }

    /// Why the VM cannot go on any more from what is held, and since when.
    pub(super) fn unfit(&self) -> Option<(String, Micros)> {
        self.trouble.clone().zip(self.failing_since)
    }

    pub(super) fn view(&self) -> RehearsalView {
        RehearsalView { proven_at: self.proven_at, trouble: self.trouble.clone() }
    }
}
