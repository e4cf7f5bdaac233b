//! The stamp beside an image: whose it is, and how it came to hold what it holds. With the arbiter's cell it tells
//! whether the VM may run from the image. It is written before what it says comes true, and is durable then.
//!
//! It stands in two slots (`slots`), each:
//!
//! ```text
//!  0 "FTST"   4 version u32   8 count u64   16 VM u64   24 image u64   32 disk bytes u64   40 cell u64
//! 48 kind u64 (1 ran, 2 follows, 3 mixed)   56 generation u64   64 pairing u64   72 crc32c u32 over 0..72
//! ```
//!
//! The generation of "follows" is the one in which the cell names the pairing, 0 until then.

mod verdict;

pub use verdict::{CellView, Foreign, Holder, Judgement, judge};

use crate::medium::Medium;
use crate::slots::{self, Found, SLOTS_END};
use std::fmt;
use std::io;

const MAGIC: [u8; 4] = *b"FTST";
/// Version of the stamp's format.
const STAMP_VERSION: u32 = 1;
const RECORD_BYTES: usize = 76;
const CRC_AT: usize = RECORD_BYTES - 4;

/// Which image of which VM, as tags of the names that the operator gave them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageOf {
    /// The VM.
    pub vm: u64,
    /// The image's place on this host.
    pub image: u64,
    /// The disk's size.
    pub disk_bytes: u64,
}

/// How an image came to hold what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum History {
    /// The VM ran from it, last in this generation.
    Ran {
        /// The cell's, which this node owned.
        generation: u64,
    },
    /// With the journal it is that of a sealed checkpoint of this pairing.
    Follows {
        /// The pairing.
        pairing: u64,
        /// The generation in which the cell names this node and the pairing, once it does.
        named_in: Option<u64>,
    },
    /// It is being made equal to the peer's, and is nobody's until then.
    Mixed {
        /// The pairing that makes it so.
        pairing: u64,
    },
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ran { generation } => write!(f, "the VM ran from it in generation {generation}"),
            Self::Follows { pairing, .. } => write!(f, "it follows the peer's, in pairing {pairing:016x}"),
            Self::Mixed { pairing } => {
                write!(f, "it is partly old and partly the peer's, of pairing {pairing:016x}")
            }
        }
    }
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// The image.
    pub of: ImageOf,
    /// The arbiter's cell in which it came to be so.
    pub cell: u64,
    /// How.
    pub history: History,
}

/// Why there is no stamp to go by.
#[derive(Debug, thiserror::Error)]
pub enum StampError {
    /// The storage.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Neither slot can be read.
    #[error("is damaged, or is no stamp of ftd")]
    Damaged,
    /// Another version wrote it.
    #[error("is a stamp of format {0}, this ftd reads {STAMP_VERSION}")]
    Version(u32),
    /// It was cut.
    #[error("has {has} bytes, and a stamp {}: it was cut", SLOTS_END)]
    Cut {
        /// What is there.
        has: u64,
    },
}

/// A stamp on its medium.
pub struct StampFile<M> {
    medium: M,
    count: u64,
    stamp: Stamp,
    is_sound: bool,
}

impl<M: Medium> StampFile<M> {
    /// Bytes of the medium.
    pub const BYTES: u64 = SLOTS_END;

    /// The first stamp of an image, durable.
    pub fn create(medium: M, stamp: Stamp) -> Result<Self, StampError> {
        long_enough(&medium)?;
        let mut file = Self { medium, count: 0, stamp, is_sound: true };
        file.write(stamp)?;
        Ok(file)
    }

    /// The stamp that an earlier process left. Where it was interrupted, what it began is finished.
    pub fn open(medium: M) -> Result<Self, StampError> {
        let (count, stamp) = recover(&medium)?;
        Ok(Self { medium, count, stamp, is_sound: true })
    }

    /// What is there, for those who only look.
    pub fn look(medium: &M) -> Result<Stamp, StampError> {
        Ok(read(medium)?.newest)
    }

    /// What it says.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// From here on it says this, durably. After an error nobody knows which of the two it says, until another attempt
    /// goes well.
    pub fn write(&mut self, stamp: Stamp) -> Result<(), StampError> {
        if !self.is_sound {
            (self.count, self.stamp) = recover(&self.medium)?;
            self.is_sound = true;
        }
        if self.stamp == stamp && self.count != 0 {
            return Ok(());
        }
        self.is_sound = false;
        self.count += 1;
        slots::write(&self.medium, &encode(self.count, &stamp))?;
        self.stamp = stamp;
        self.is_sound = true;
        Ok(())
    }
}

fn long_enough(medium: &impl Medium) -> Result<(), StampError> {
    match medium.bytes()? {
        has if has < SLOTS_END => Err(StampError::Cut { has }),
        _ => Ok(()),
    }
}

/// What both slots say from here on, durably. What a flush that failed did not write the kernel forgets, while reads
/// still show it: so what is read is written again.
fn recover(medium: &impl Medium) -> Result<(u64, Stamp), StampError> {
    let Found { count, newest, behind } = read(medium)?;
    slots::write_again::<RECORD_BYTES>(medium)?;
    medium.sync()?;
    if let Some(slot) = behind {
        slots::write_one(medium, slot, &encode(count, &newest))?;
    }
    Ok((count, newest))
}

fn read(medium: &impl Medium) -> Result<Found<Stamp>, StampError> {
    long_enough(medium)?;
    slots::read(medium, decode, |why| matches!(why, StampError::Damaged))
}

fn encode(count: u64, stamp: &Stamp) -> [u8; RECORD_BYTES] {
    let Stamp { of: ImageOf { vm, image, disk_bytes }, cell, history } = *stamp;
    let (kind, generation, pairing) = match history {
        History::Ran { generation } => (1, generation, 0),
        History::Follows { pairing, named_in } => (2, named_in.unwrap_or(0), pairing),
        History::Mixed { pairing } => (3, 0, pairing),
    };
    let words = [count, vm, image, disk_bytes, cell, kind, generation, pairing];
    let mut bytes = [0; RECORD_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..8].copy_from_slice(&STAMP_VERSION.to_le_bytes());
    for (word, at) in words.iter().zip((8..).step_by(8)) {
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    let crc = crc32c::crc32c(&bytes[..CRC_AT]);
    bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8; RECORD_BYTES]) -> Result<(u64, Stamp), StampError> {
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    if bytes[..4] != MAGIC || crc32c::crc32c(&bytes[..CRC_AT]) != half(CRC_AT) {
        return Err(StampError::Damaged);
    }
    if half(4) != STAMP_VERSION {
        return Err(StampError::Version(half(4)));
    }
    let (generation, pairing) = (word(56), word(64));
    let history = match word(48) {
        1 => History::Ran { generation },
        2 => History::Follows { pairing, named_in: Some(generation).filter(|generation| *generation != 0) },
        3 => History::Mixed { pairing },
        _ => return Err(StampError::Damaged),
    };
    let of = ImageOf { vm: word(16), image: word(24), disk_bytes: word(32) };
    Ok((word(8), Stamp { of, cell: word(40), history }))
}
