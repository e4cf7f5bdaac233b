//! The event log: every input of a machine on the deterministic engine, with the instruction count at which it took
//! effect. It travels in batches. A batch says which one it is, at which count it starts and up to which count the
//! machine may be executed with it, so that one that is missing, repeated, swapped or damaged is found before anything
//! of it is executed. What is read here comes from a file or a peer and is not trusted.
//!
//! ```text
//! batch:  "FL"  version u8  flags u8  crc32c u32 over all the rest  length varint  body (so many bytes)
//! body:   index varint  start varint  (cut - start) varint  [bytes of the entries when decompressed, varint]  entries
//! entry:  tag u8  (count - count of the one before, or start) varint  content
//! ```
//!
//! Varints are LEB128 of at most 64 bits and have one form only. The length of what comes last is never implied by what
//! it says itself, but for a page list, which is counted.

mod bytes;
mod digest;
mod error;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use digest::{Digest, Mismatch, REGISTERS, page_hash};
pub use error::LogError;
pub use read::{LogReader, batch_bytes};
pub use write::LogWriter;

/// Version of the format, and of what its inputs mean. Another one is refused, not guessed at.
pub const LOG_VERSION: u8 = 1;
/// Most bytes of a frame, of a piece of console input, and of random bytes read at once.
pub const INPUT_BYTES_MAX: usize = 65_536;
/// Most pages of a digest; who has more writes several.
pub const DIGEST_PAGES_MAX: usize = 1 << 20;
/// Most bytes of a batch's entries, compressed or not. Every single entry fits.
pub const BATCH_BYTES_MAX: usize = 16 << 20;
/// Most entries of a batch.
pub const BATCH_ENTRIES_MAX: usize = 1 << 16;

const MAGIC: [u8; 2] = *b"FL";
const FLAG_LZ4: u8 = 1;
/// Magic, version, flags, CRC.
const FIXED_BYTES: usize = 8;
/// Most bytes of a body before its entries: four varints of 64 bits.
const PREFIX_BYTES_MAX: usize = 40;

/// What a machine is given from outside, or reads there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// An Ethernet frame, put into the guest's receive ring.
    Frame(Vec<u8>),
    /// Bytes typed into the console.
    Console(Vec<u8>),
    /// Virtual time moves forward.
    Advance {
        /// By so many nanoseconds.
        ns: u64,
    },
    /// From here on, instructions take another virtual time.
    Pace {
        /// Nanoseconds that 256 instructions take.
        ns_per_256: u32,
    },
    /// Random bytes that a device read from the host.
    Random(Vec<u8>),
    /// What the machine's owner did to it.
    Control(ControlAction),
    /// Not an input: what the recorder's machine looked like at this count.
    Digest(Box<Digest>),
}

/// What a machine's owner does to it that changes how it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ControlAction {
    /// Cached address translations are dropped, as at a capture, after which a restored machine has none.
    FlushTranslations = 1,
}

impl ControlAction {
    fn from_wire(byte: u8) -> Option<Self> {
        (byte == Self::FlushTranslations as u8).then_some(Self::FlushTranslations)
    }
}

/// An input at its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Instructions that had retired when it took effect.
    pub count: u64,
    /// What it was.
    pub input: Input,
}

/// A batch that was read and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its number, from 0 where recording began.
    pub index: u64,
    /// Where the batch before it was cut, or where recording began.
    pub start: u64,
    /// How far a machine that has executed up to `start` may be executed with this batch.
    pub cut: u64,
    /// In order; counts from `start` to `cut`, both included, never going back.
    pub entries: Vec<Entry>,
}

impl Batch {
    /// About what it takes in memory: compressed it may have been much smaller.
    pub fn memory_bytes(&self) -> usize {
        let content = |entry: &Entry| match &entry.input {
            Input::Frame(bytes) | Input::Console(bytes) | Input::Random(bytes) => bytes.len(),
            Input::Digest(digest) => size_of::<Digest>() + size_of_val(digest.pages.as_slice()),
            Input::Advance { .. } | Input::Pace { .. } | Input::Control(_) => 0,
        };
        self.entries.iter().map(|entry| size_of::<Entry>() + content(entry)).sum()
    }
}

/// What a [`LogWriter::cut`] put out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogCut {
    /// The count of the cut.
    pub count: u64,
    /// Entries since the cut before.
    pub entries: u64,
    /// Bytes appended.
    pub bytes: usize,
}

/// Over a batch but for the place of the checksum itself.
fn checksum(batch: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&batch[..4]), &batch[FIXED_BYTES..])
}

const TAG_FRAME: u8 = 1;
const TAG_CONSOLE: u8 = 2;
const TAG_ADVANCE: u8 = 3;
const TAG_RANDOM: u8 = 4;
const TAG_CONTROL: u8 = 5;
const TAG_DIGEST: u8 = 6;
const TAG_PACE: u8 = 7;
