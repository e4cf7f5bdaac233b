//! A journal as a process finds it: from the head on, record after record, as far as they go.

use super::record::{Entry, Head};
use super::ring::Ring;
use super::superblock::{Position, RING_START, Superblock};
use super::{Health, Journal, JournalError, Sealed};
use crate::medium::Medium;

impl<M: Medium> Journal<M> {
    /// Opens what an earlier process left. What it had not sealed is dropped; what is sealed is durable afterwards.
    pub fn open(medium: M) -> Result<Self, JournalError> {
        let superblock = Superblock::read(&medium)?;
        let (says, has) = (superblock.ring_bytes.saturating_add(RING_START), medium.bytes()?);
        if says > has || superblock.ring_bytes == 0 {
            return Err(JournalError::Cut { says, has });
        }
        let ring = Ring { medium, bytes: superblock.ring_bytes };
        let mut walk = Walk { ring: &ring, superblock: &superblock, at: superblock.head };
        let mut sealed = (superblock.head, superblock.applied);
        while let Some(entry) = walk.step()? {
            if let Entry::Seal(of) = entry {
                sealed = (walk.at, Some(of));
            }
        }
        walk.check_the_end()?;
        let applied = (superblock.head, superblock.applied);
        let (tail, durable) = (sealed.0, sealed.0);
        let mut journal = Self { ring, superblock, tail, sealed, durable, applied, health: Health::Sound };
        journal.drop_unsealed()?;
        Ok(journal)
    }
}

struct Walk<'a, M> {
    ring: &'a Ring<M>,
    superblock: &'a Superblock,
    at: Position,
}

impl<M: Medium> Walk<'_, M> {
    /// Whether a record at this position may count.
    fn counts(&self, at: u64, head: &Head) -> bool {
        at < self.superblock.cut.at || head.place.session == self.superblock.session
    }

    /// The next record, if there is one.
    fn step(&mut self) -> Result<Option<Entry<'static>>, JournalError> {
        let Position { at, sequence } = self.at;
        let lap_ends = self.superblock.head.at + self.ring.bytes;
        if at >= lap_ends {
            return Ok(None);
        }
        let head =
            self.ring.head(at)?.filter(|head| head.place.sequence == sequence && self.counts(at, head));
        let Some(head) = head else { return Ok(None) };
        let Some((entry, bytes)) = self.ring.entry(at, &head)? else { return Ok(None) };
        if at + bytes > lap_ends {
            return Ok(None);
        }
        self.at = Position { at: at + bytes, sequence: sequence + 1 };
        Ok(Some(entry))
    }

    /// What comes after the last record may be torn, and may not have been durable.
    fn check_the_end(&self) -> Result<(), JournalError> {
        let Position { at: end, sequence } = self.at;
        let damaged = JournalError::Damaged { sequence, at: RING_START + end % self.ring.bytes };
        if end < self.superblock.cut.at {
            return Err(damaged);
        }
        let lap_ends = self.superblock.head.at + self.ring.bytes;
        for at in (end..lap_ends).step_by(8) {
            let head = self.ring.head(at)?;
            let Some(head) = head.filter(|head| head.place.sequence > sequence && self.counts(at, head))
            else {
                continue;
            };
            if let Some((Entry::Durable(through), _)) = self.ring.entry(at, &head)?
                && through > sequence
            {
                return Err(damaged);
            }
        }
        Ok(())
    }
}

/// For a message: the checkpoint, as an operator reads it.
impl std::fmt::Display for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "epoch {} of pairing {:016x}", self.epoch, self.pairing)
    }
}
