//! Where the ring begins and what its image has, in two slots that are written one after the other: one is always
//! whole, and when one is damaged later the other has the same.
//!
//! ```text
//!  0 "FTJS"   4 version u32   8 count u64   16 head u64   24 head sequence u64   32 cut u64   40 cut sequence u64
//! 48 session u64   56 ring bytes u64   64 has applied u64   72 pairing u64   80 epoch u64   88 crc32c u32 over 0..88
//! ```

use super::{JournalError, RING_BYTES_MIN, SealedEpoch};
use crate::medium::Medium;
use crate::slots::{self, Found, SLOTS_END};

const MAGIC: [u8; 4] = *b"FTJS";
/// Version of the journal's format.
pub(super) const JOURNAL_VERSION: u32 = 1;
/// Where the ring lies.
pub(super) const RING_START: u64 = SLOTS_END;
const BYTES: usize = 92;
/// No count and no position comes to this, however long a journal is used.
const COUNTED_MAX: u64 = 1 << 62;

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
        let found = Self {
            count: word(8),
            head: Position { at: word(16), sequence: word(24) },
            cut: Position { at: word(32), sequence: word(40) },
            session: word(48),
            ring_bytes: word(56),
            applied: (word(64) == 1).then_some(sealed),
            behind: None,
        };
        if found.is_possible() { Ok(found) } else { Err(JournalError::NoJournal) }
    }

    /// Whether some journal could say this.
    fn is_possible(&self) -> bool {
        let Self { count, head, cut, ring_bytes, .. } = self;
        let counted = [*count, head.at, head.sequence, cut.at, cut.sequence, *ring_bytes];
        counted.iter().all(|counted| *counted < COUNTED_MAX)
            && [head.at, *ring_bytes].iter().all(|at| at.is_multiple_of(8))
            && *ring_bytes >= RING_BYTES_MIN
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Change;
    use crate::journal::Journal;
    use crate::medium::MemoryMedium;
    use proptest::prelude::*;

    /// A journal with a sealed epoch, and its head.
    fn journal() -> (MemoryMedium, Superblock) {
        let medium = MemoryMedium::new(RING_START as usize + (64 << 10));
        let mut journal = Journal::create(&medium, 7).unwrap();
        journal.append(&Change::write(0, 512, &[1; 512])).unwrap();
        journal.seal(SealedEpoch { pairing: 5, epoch: 9 }).unwrap();
        journal.sync().unwrap();
        let superblock = Superblock::read(&medium).unwrap();
        (medium, superblock)
    }

    #[test]
    fn a_head_that_says_what_no_journal_comes_to_is_none() {
        let (medium, sound) = journal();
        let far = |at| Position { at, ..sound.head };
        let numbered = |sequence| Position { sequence, ..sound.head };
        let impossible = [
            Superblock { count: u64::MAX, ..sound },
            Superblock { head: far(u64::MAX - 7), ..sound },
            Superblock { head: far(4), ..sound },
            Superblock { head: numbered(u64::MAX), ..sound },
            Superblock { cut: far(u64::MAX), ..sound },
            Superblock { cut: numbered(u64::MAX), ..sound },
            Superblock { ring_bytes: 8, ..sound },
            Superblock { ring_bytes: sound.ring_bytes - 1, ..sound },
        ];
        for head in impossible {
            (0..2).for_each(|slot| slots::write_one(&medium, slot, &head.encode()).unwrap());
            assert!(matches!(Journal::open(&medium), Err(JournalError::NoJournal)), "{head:?}");
        }
        // Where the other slot is sound, that is the head.
        slots::write_one(&medium, 1, &sound.encode()).unwrap();
        assert_eq!(Journal::open(&medium).unwrap().sealed(), Some(SealedEpoch { pairing: 5, epoch: 9 }));
    }

    proptest! {
        #[test]
        fn any_head_under_a_right_checksum_is_opened_or_refused(
            words: [u64; 7],
            shift in 0..64_u32,
            other: u8,
            large: u8,
        ) {
            let (medium, sound) = journal();
            let word = |at: usize, of: u64| match (other >> at & 1, large >> at & 1) {
                (0, _) => of,
                (_, 0) => words[at] >> shift,
                _ => u64::MAX - (words[at] >> shift),
            };
            let head = Superblock {
                count: word(0, sound.count),
                head: Position { at: word(1, sound.head.at), sequence: word(2, sound.head.sequence) },
                cut: Position { at: word(3, sound.cut.at), sequence: word(4, sound.cut.sequence) },
                session: word(5, sound.session),
                ring_bytes: word(6, sound.ring_bytes),
                ..sound
            };
            (0..2).for_each(|slot| slots::write_one(&medium, slot, &head.encode()).unwrap());
            if let Ok(journal) = Journal::open(&medium) {
                prop_assert_eq!(journal.ready(), journal.waiting());
            }
        }
    }
}
