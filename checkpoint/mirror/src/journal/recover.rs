//! A journal as a process finds it: from the head on, record after record, as far as they go.

use super::flush::Flushing;
use super::record::{Entry, Head};
use super::ring::Ring;
use super::superblock::{Position, RING_START, Superblock};
use super::{Health, Journal, JournalError, SealedEpoch};
use crate::medium::Medium;

/// What a journal holds, for those who only look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glance {
    /// The last seal.
    pub sealed: Option<SealedEpoch>,
    /// The last one that the image has for certain.
    pub applied: Option<SealedEpoch>,
    /// Bytes that the image may lack.
    pub waiting: u64,
    /// Bytes for all.
    pub ring_bytes: u64,
}

impl<M: Medium> Journal<M> {
    /// Opens what an earlier process left. What it had not sealed is dropped; what is sealed is durable afterwards,
    /// also if the storage failed when that process flushed it.
    pub fn open(medium: M) -> Result<Self, JournalError> {
        let superblock = begin(&medium)?;
        let ring = Ring { medium, bytes: superblock.ring_bytes };
        let sealed = last_seal(&ring, &superblock)?;
        let applied = (superblock.head, superblock.applied);
        let (tail, durable) = (sealed.0, sealed.0);
        let mut journal = Self {
            ring,
            superblock,
            tail,
            sealed,
            durable,
            applied,
            releasing: None,
            flushing: Flushing::Idle,
            health: Health::Sound,
        };
        journal.write_again(tail)?;
        journal.drop_unsealed()?;
        Ok(journal)
    }

    /// What it holds. Nothing is changed; of a journal that is in use it may be of two moments.
    pub fn look(medium: &M) -> Result<Glance, JournalError> {
        let superblock = begin(medium)?;
        let ring = Ring { medium, bytes: superblock.ring_bytes };
        let (end, sealed) = last_seal(&ring, &superblock)?;
        let Superblock { applied, head, ring_bytes, .. } = superblock;
        Ok(Glance { sealed, applied, waiting: end.at - head.at, ring_bytes })
    }
}

fn begin(medium: &impl Medium) -> Result<Superblock, JournalError> {
    let superblock = Superblock::read(medium)?;
    let (says, has) = (superblock.ring_bytes.saturating_add(RING_START), medium.bytes()?);
    if says > has {
        return Err(JournalError::Cut { says, has });
    }
    Ok(superblock)
}

/// The last seal, and the position behind it.
fn last_seal<M: Medium>(
    ring: &Ring<M>,
    superblock: &Superblock,
) -> Result<(Position, Option<SealedEpoch>), JournalError> {
    let mut walk = Walk { ring, superblock, at: superblock.head };
    let mut sealed = (superblock.head, superblock.applied);
    while let Some(entry) = walk.step()? {
        if let Entry::Seal(of) = entry {
            sealed = (walk.at, Some(of));
        }
    }
    walk.check_the_end()?;
    Ok(sealed)
}

pub(super) struct Walk<'a, M> {
    pub(super) ring: &'a Ring<M>,
    pub(super) superblock: &'a Superblock,
    pub(super) at: Position,
}

impl<M: Medium> Walk<'_, M> {
    /// Whether a record at this position may count.
    fn counts(&self, at: u64, head: &Head) -> bool {
        at < self.superblock.cut.at || head.place.session == self.superblock.session
    }

    /// The next record, if there is one.
    pub(super) fn step(&mut self) -> Result<Option<Entry<'static>>, JournalError> {
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

    /// There is no record here, and there should be one.
    pub(super) fn damage(&self) -> JournalError {
        let Position { at, sequence } = self.at;
        JournalError::Damaged { sequence, at: RING_START + at % self.ring.bytes }
    }

    /// What comes after the last record may be torn, and may not have been durable.
    fn check_the_end(&self) -> Result<(), JournalError> {
        let Position { at: end, sequence } = self.at;
        if end < self.superblock.cut.at {
            return Err(self.damage());
        }
        let lap_ends = self.superblock.head.at + self.ring.bytes;
        let mut heads = self.ring.heads(end, lap_ends);
        while let Some((at, head)) = heads.next()? {
            if head.place.sequence <= sequence || !self.counts(at, &head) {
                continue;
            }
            if let Some((Entry::Durable(through), _)) = self.ring.entry(at, &head)?
                && through > sequence
            {
                return Err(self.damage());
            }
        }
        Ok(())
    }
}

/// For a message: the checkpoint, as an operator reads it.
impl std::fmt::Display for SealedEpoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "epoch {} of pairing {:016x}", self.epoch, self.pairing)
    }
}
