//! What makes the journal durable. A flush takes as long as the storage does, and nobody is kept from the journal for
//! that long: it is begun here, done without the journal, and ended here.
//!
//! ```text
//!   begin_flush: a slot gets the new head, if it is to move
//!     ──> the storage is flushed
//!     ──> flushed: what was sealed when it began is durable, and so is the slot; with the second one the head moves
//! ```
//!
//! One at a time: the kernel tells a failure once, to whoever flushes next, and that must be the one who asked for what
//! was not written. Whoever finds one under way waits for it, and then for the next, with all others who do.

use super::record::Entry;
use super::superblock::{Position, Superblock};
use super::{Journal, JournalError, RESERVE};
use crate::medium::Medium;
use crate::slots;
use std::io;

/// Whether the storage is being flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flushing {
    Idle,
    UnderWay,
}

/// A superblock with a head further on, on its way into the slots.
#[derive(Debug)]
pub(super) struct Releasing {
    pub(super) next: Superblock,
    /// The one that gets it next.
    slot: u64,
}

/// A flush that was begun. [`Journal::flushed`] takes it back.
#[derive(Debug)]
#[must_use = "nobody else can flush before this one is done"]
pub struct JournalFlush {
    /// Behind the last seal, when it began.
    reached: Position,
    /// The slot that was written before.
    slot: Option<u64>,
}

impl<M: Medium> Journal<M> {
    /// Whether what is sealed is durable.
    pub fn is_durable(&self) -> bool {
        self.durable == self.sealed.0
    }

    /// Whether what [`begin_release`](Self::begin_release) began has not been done.
    pub fn is_releasing(&self) -> bool {
        self.releasing.is_some()
    }

    /// Begins a flush. The medium is to be flushed then, and [`flushed`](Self::flushed) to be told. None: somebody has
    /// begun one, and not told yet.
    pub fn begin_flush(&mut self) -> Result<Option<JournalFlush>, JournalError> {
        if self.flushing == Flushing::UnderWay {
            return Ok(None);
        }
        self.sound()?;
        let slot = match &self.releasing {
            None => None,
            Some(Releasing { next, slot }) => {
                let (slot, bytes) = (*slot, next.encode());
                slots::put(&self.ring.medium, slot, &bytes).map_err(|e| self.failed(e))?;
                Some(slot)
            }
        };
        self.flushing = Flushing::UnderWay;
        Ok(Some(JournalFlush { reached: self.sealed.0, slot }))
    }

    /// The medium was flushed after this was begun, or could not be.
    pub fn flushed(&mut self, flush: JournalFlush, result: io::Result<()>) -> Result<(), JournalError> {
        let JournalFlush { reached, slot } = flush;
        self.flushing = Flushing::Idle;
        result.map_err(|e| self.failed(e))?;
        self.sound()?;
        match (slot, &mut self.releasing) {
            (Some(0), Some(releasing)) => releasing.slot = 1,
            (Some(_), Some(Releasing { next, .. })) => {
                self.superblock = *next;
                self.releasing = None;
            }
            _ => {}
        }
        if self.durable.at >= reached.at {
            return Ok(());
        }
        self.durable = reached;
        // It is a help against damage, and not worth being full for.
        if self.ring.bytes - (self.tail.at - self.superblock.head.at) >= RESERVE {
            self.put(&Entry::Durable(reached.sequence))?;
        }
        Ok(())
    }

    /// The image was flushed: what was carried out before that is not needed any more. The head moves with the next two
    /// flushes.
    pub fn begin_release(&mut self) -> Result<(), JournalError> {
        self.sound()?;
        let (head, applied) = self.applied;
        if head != self.superblock.head && self.releasing.is_none() {
            let count = self.superblock.count + 1;
            self.releasing =
                Some(Releasing { next: Superblock { count, head, applied, ..self.superblock }, slot: 0 });
        }
        Ok(())
    }

    /// Makes durable what is sealed, by whoever has the journal alone.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        self.flush_until(Self::is_durable)
    }

    /// [`begin_release`](Self::begin_release), and what follows, by whoever has the journal alone.
    pub fn release(&mut self) -> Result<(), JournalError> {
        self.begin_release()?;
        self.flush_until(|journal| !journal.is_releasing())
    }

    fn flush_until(&mut self, is_done: impl Fn(&Self) -> bool) -> Result<(), JournalError> {
        while !is_done(self) {
            let flush = self.begin_flush()?.ok_or(JournalError::Busy)?;
            let result = self.ring.medium.sync();
            self.flushed(flush, result)?;
        }
        Ok(())
    }
}
