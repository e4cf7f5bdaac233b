//! Where the ring begins and what its image has, in two slots that are written one after the other: one is always
//! whole, and when one is damaged later the other has the same.
//!
//! ```text
//!  0 "FTJS"   4 version u32   8 count u64   16 head u64   24 head sequence u64   32 cut u64   40 cut sequence u64
//! 48 session u64   56 ring bytes u64   64 has applied u64   72 pairing u64   80 epoch u64   88 crc32c u32 over 0..88
//! ```

use super::{JournalError, SealedEpoch};
use crate::medium::Medium;
use crate::slots::{self, Found, SLOTS_END};

const MAGIC: [u8; 4] = *b"FTJS";
/// Version of the journal's format.
pub(super) const JOURNAL_VERSION: u32 = 1;
/// Where the ring lies.
pub(super) const RING_START: u64 = SLOTS_END;
const BYTES: usize = 92;

/// A position in the ring, counted on over its end, and the sequence number of the record there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) at: u64,
    pub(super) sequence: u64,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    /// Counts what was written; of two slots that differ the higher one is the newer.
    pub(super) count: u64,
    /// The oldest record that the image may lack.
    pub(super) head: Position,
    /// Everything before it is durable; from there on only records of `session` count.
    pub(super) cut: Position,
    pub(super) session: u64,
    pub(super) ring_bytes: u64,
    /// The last seal before the head.
    pub(super) applied: Option<SealedEpoch>,
    /// The slot that does not say this yet.
    pub(super) behind: Option<u64>,
}

impl Superblock {
    pub(super) fn encode(&self) -> [u8; BYTES] {
        let SealedEpoch { pairing, epoch } = self.applied.unwrap_or_default();
        let words = [
            self.count,
            self.head.at,
            self.head.sequence,
            self.cut.at,
            self.cut.sequence,
            self.session,
            self.ring_bytes,
            u64::from(self.applied.is_some()),
            pairing,
            epoch,
        ];
        let mut bytes = [0; BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&JOURNAL_VERSION.to_le_bytes());
        for (word, at) in words.iter().zip((8..).step_by(8)) {
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[..88]);
        bytes[88..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; BYTES]) -> Result<Self, JournalError> {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        if bytes[..4] != MAGIC || crc32c::crc32c(&bytes[..88]) != half(88) {
            return Err(JournalError::NoJournal);
        }
        if half(4) != JOURNAL_VERSION {
            return Err(JournalError::Version(half(4)));
        }
        let sealed = SealedEpoch { pairing: word(72), epoch: word(80) };
        Ok(Self {
            count: word(8),
            head: Position { at: word(16), sequence: word(24) },
            cut: Position { at: word(32), sequence: word(40) },
            session: word(48),
            ring_bytes: word(56),
            applied: (word(64) == 1).then_some(sealed),
            behind: None,
        })
    }

    /// The newer of the two; the other one, if it does not say the same, is mended at the next writing.
    pub(super) fn read(medium: &impl Medium) -> Result<Self, JournalError> {
        let decode = |bytes: &[u8; BYTES]| Self::decode(bytes).map(|found| (found.count, found));
        let Found { newest, behind, .. } =
            slots::read(medium, decode, |why| matches!(why, JournalError::NoJournal))?;
        Ok(Self { behind, ..newest })
    }

    /// Writes the slots again, as they are.
    pub(super) fn write_again(medium: &impl Medium) -> Result<(), JournalError> {
        Ok(slots::write_again::<BYTES>(medium)?)
    }

    /// Makes durable what was written before, and then this.
    pub(super) fn write(&mut self, medium: &impl Medium) -> Result<(), JournalError> {
        medium.sync()?;
        // Of two slots that differ one may be torn: the whole one stays until the other is whole again.
        if let Some(slot) = self.behind {
            slots::write_one(medium, slot, &self.encode())?;
            self.behind = None;
        }
        self.count += 1;
        Ok(slots::write(medium, &self.encode())?)
    }
}
