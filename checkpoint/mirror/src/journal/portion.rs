//! Carrying out: a part of what is durable is read and made in the images without the journal. Nothing else changes
//! that part before the head has moved over it.

use super::record::Entry;
use super::ring::Ring;
use super::superblock::{Position, RING_START};
use super::{ApplyError, Journal, JournalError, SealedEpoch};
use crate::change::Change;
use crate::medium::Medium;

/// A part of the journal that is to be carried out. [`Journal::carried_out`] takes it back, done or not.
#[derive(Debug)]
#[must_use = "the journal does not know how far it was carried out"]
pub struct Portion {
    /// What is next, and the last seal before that.
    next: (Position, Option<SealedEpoch>),
    end: u64,
    ring_bytes: u64,
}

impl Portion {
    /// Carries it out, in order. A change that failed is the first one the next time.
    pub fn carry_out<E>(
        &mut self,
        medium: &impl Medium,
        mut carry_out: impl FnMut(&Change<'_>) -> Result<(), E>,
    ) -> Result<(), ApplyError<E>> {
        let ring = Ring { medium, bytes: self.ring_bytes };
        while self.next.0.at < self.end {
            let Position { at, sequence } = self.next.0;
            let damaged = JournalError::Damaged { sequence, at: RING_START + at % ring.bytes };
            let head = ring.head(at).map_err(JournalError::from)?;
            let head = head.filter(|head| head.place.sequence == sequence);
            let entry = head.and_then(|head| ring.entry(at, &head).transpose());
            let Some((entry, bytes)) = entry.transpose().map_err(JournalError::from)? else {
                return Err(damaged.into());
            };
            match &entry {
                Entry::Change(change) => carry_out(change).map_err(ApplyError::Image)?,
                Entry::Seal(sealed) => self.next.1 = Some(*sealed),
                Entry::Durable(_) => {}
            }
            self.next.0 = Position { at: at + bytes, sequence: sequence + 1 };
        }
        Ok(())
    }
}

impl<M: Medium> Journal<M> {
    /// What is sealed, durable and not carried out: some `budget` bytes of it, or all. None: there is nothing.
    pub fn portion(&self, budget: u64) -> Option<Portion> {
        let begin = self.applied.0.at;
        let end = self.durable.at.min(begin.saturating_add(budget));
        (begin < end).then_some(Portion { next: self.applied, end, ring_bytes: self.ring.bytes })
    }

    /// So far a portion was carried out.
    pub fn carried_out(&mut self, portion: Portion) {
        self.applied = portion.next;
    }

    /// Carries out a portion, by whoever has the journal alone. Says how many bytes still wait.
    pub fn apply<E>(
        &mut self,
        budget: u64,
        carry_out: impl FnMut(&Change<'_>) -> Result<(), E>,
    ) -> Result<u64, ApplyError<E>> {
        if let Some(mut portion) = self.portion(budget) {
            let done = portion.carry_out(&self.ring.medium, carry_out);
            self.carried_out(portion);
            done?;
        }
        Ok(self.waiting())
    }
}
