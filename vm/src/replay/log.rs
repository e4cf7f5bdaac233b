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
#[cfg(test)]
mod tests;

pub use digest::{Digest, Mismatch, REGISTERS, page_hash};

use crate::memory::PageIndex;
use bytes::{Reader, put_varint};

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
/// Entries of fewer bytes are not worth compressing: the time would be the vCPU's.
const LZ4_BYTES_MIN: usize = 512;

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

    /// This batch encoded, cut at an earlier count: with the inputs up to there, those at `count` included. For a replay
    /// that is to stop there; the batches that followed this one do not follow that one.
    pub fn until(&self, count: u64) -> Result<Vec<u8>, LogError> {
        let mut writer = LogWriter { index: self.index, ..LogWriter::new(self.start) };
        for entry in self.entries.iter().take_while(|entry| entry.count <= count) {
            writer.append(entry.count, &entry.input)?;
        }
        let mut out = Vec::new();
        writer.cut(count.min(self.cut), &mut out)?;
        Ok(out)
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

/// Why a log is refused. Offsets are into the bytes that were given to be read, or, for a compressed batch, into its
/// decompressed entries.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Something else.
    #[error("log at byte {offset}: no batch of an event log begins here")]
    Magic {
        /// Where.
        offset: usize,
    },
    /// Another version's.
    #[error("log at byte {offset}: format version {theirs}, this program reads {LOG_VERSION}")]
    Version {
        /// Where the batch begins.
        offset: usize,
        /// The batch's.
        theirs: u8,
    },
    /// A flag that this version does not have.
    #[error("log at byte {offset}: unknown batch flags {flags:#04x}")]
    Flags {
        /// Where the batch begins.
        offset: usize,
        /// What they are.
        flags: u8,
    },
    /// The end is missing.
    #[error("log at byte {offset}: cut off, the batch has only {have} bytes here")]
    Truncated {
        /// Where the batch begins.
        offset: usize,
        /// What there is of it.
        have: usize,
    },
    /// Not the bytes that were written.
    #[error("log at byte {offset}: corrupt batch, checksum {computed:#010x} where {stated:#010x} is stated")]
    Crc {
        /// Where the batch begins.
        offset: usize,
        /// In the batch.
        stated: u32,
        /// Over the batch.
        computed: u32,
    },
    /// A batch, or several, between this and the one before.
    #[error("log at byte {offset}: batch {theirs} where batch {due} is due: the ones before it are missing")]
    Missing {
        /// Where the batch begins.
        offset: usize,
        /// Its number.
        theirs: u64,
        /// The number due.
        due: u64,
    },
    /// A batch that has been read already.
    #[error("log at byte {offset}: batch {theirs} again, where batch {due} is due")]
    Repeated {
        /// Where the batch begins.
        offset: usize,
        /// Its number.
        theirs: u64,
        /// The number due.
        due: u64,
    },
    /// The batch does not go on where the one before ended: it is of another log.
    #[error("log at byte {offset}: batch {index} starts at count {theirs}, the log has come to {due}")]
    Start {
        /// Where the batch begins.
        offset: usize,
        /// Its number.
        index: u64,
        /// The count at which it says it starts.
        theirs: u64,
        /// The count at which the batch before was cut, or at which the machine is.
        due: u64,
    },
    /// Counts that no machine reaches.
    #[error("log, batch {batch}, byte {offset} after count {count}: the counts overflow")]
    Overflow {
        /// The batch's number.
        batch: u64,
        /// Where.
        offset: usize,
        /// The last count that was one.
        count: u64,
    },
    /// An event after its batch's end.
    #[error("log, batch {batch}: an event at count {count}, after the batch's cut at {cut}")]
    AfterCut {
        /// The batch's number.
        batch: u64,
        /// The event's count.
        count: u64,
        /// The cut's.
        cut: u64,
    },
    /// A number, length or tag that cannot be, or one that its place has no room for.
    #[error("log, batch {batch}, byte {offset} after count {count}: {what}")]
    Malformed {
        /// The batch's number.
        batch: u64,
        /// Where.
        offset: usize,
        /// Of the last event that was read, or where the batch starts.
        count: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// More than fits.
    #[error("log, batch {batch}: {length} {what}, at most {max} are allowed")]
    TooLong {
        /// The batch's number.
        batch: u64,
        /// Of what.
        what: &'static str,
        /// How many.
        length: u64,
        /// The bound.
        max: usize,
    },
    /// To be written: an event before one that was written, or a cut before it.
    #[error("log, batch {batch}: count {count} after count {last}: counts never go back")]
    Backwards {
        /// The batch's number.
        batch: u64,
        /// The count given.
        count: u64,
        /// The last one.
        last: u64,
    },
    /// The pages of a digest that is to be written are not sorted, or one is there twice.
    #[error("log, batch {batch}: page {page} of a digest is not above the one before it")]
    Unsorted {
        /// The batch's number.
        batch: u64,
        /// The page.
        page: PageIndex,
    },
}

/// Encodes inputs as they happen.
#[derive(Debug)]
pub struct LogWriter {
    /// Number of the batch under way.
    index: u64,
    start: u64,
    /// Count of the last entry, or `start`.
    last: u64,
    entries: usize,
    payload: Vec<u8>,
    /// Batches that were full before their cut came.
    full: Vec<u8>,
    entries_in_full: u64,
}

impl LogWriter {
    /// A log that begins at this count.
    pub fn new(start: u64) -> Self {
        Self {
            index: 0,
            start,
            last: start,
            entries: 0,
            payload: Vec::new(),
            full: Vec::new(),
            entries_in_full: 0,
        }
    }

    /// Adds an input. On an error nothing was added.
    pub fn append(&mut self, count: u64, input: &Input) -> Result<(), LogError> {
        if count < self.last {
            return Err(LogError::Backwards { batch: self.index, count, last: self.last });
        }
        self.check(input)?;
        if self.entries == BATCH_ENTRIES_MAX || self.payload.len() + size_max(input) > BATCH_BYTES_MAX {
            let mut full = std::mem::take(&mut self.full);
            self.entries_in_full += self.entries as u64;
            self.end_batch(self.last, &mut full);
            self.full = full;
        }
        self.payload.push(tag(input));
        put_varint(&mut self.payload, count - self.last);
        self.put(input);
        self.last = count;
        self.entries += 1;
        Ok(())
    }

    /// Ends the batch under way at this count and appends it to `out`. A cut without entries is worth it where the
    /// count has moved on. (Where inputs did not fit into one batch, there are several.)
    pub fn cut(&mut self, count: u64, out: &mut Vec<u8>) -> Result<LogCut, LogError> {
        if count < self.last {
            return Err(LogError::Backwards { batch: self.index, count, last: self.last });
        }
        let before = out.len();
        out.append(&mut self.full);
        let entries = std::mem::take(&mut self.entries_in_full) + self.entries as u64;
        self.end_batch(count, out);
        Ok(LogCut { count, entries, bytes: out.len() - before })
    }

    /// Bytes that wait for a cut.
    pub fn pending_bytes(&self) -> usize {
        self.full.len() + self.payload.len()
    }

    /// Entries that wait for a cut.
    pub fn pending_entries(&self) -> u64 {
        self.entries_in_full + self.entries as u64
    }

    fn check(&self, input: &Input) -> Result<(), LogError> {
        let (what, length, max) = match input {
            Input::Frame(bytes) => ("bytes of a frame", bytes.len(), INPUT_BYTES_MAX),
            Input::Console(bytes) => ("bytes of console input", bytes.len(), INPUT_BYTES_MAX),
            Input::Random(bytes) => ("random bytes", bytes.len(), INPUT_BYTES_MAX),
            Input::Digest(digest) => ("pages of a digest", digest.pages.len(), DIGEST_PAGES_MAX),
            Input::Advance { .. } | Input::Pace { .. } | Input::Control(_) => return Ok(()),
        };
        if length > max {
            return Err(LogError::TooLong { batch: self.index, what, length: length as u64, max });
        }
        if let Input::Digest(digest) = input
            && let Some(pair) = digest.pages.windows(2).find(|pair| pair[0].0 >= pair[1].0)
        {
            return Err(LogError::Unsorted { batch: self.index, page: pair[1].0 });
        }
        Ok(())
    }

    fn put(&mut self, input: &Input) {
        let out = &mut self.payload;
        match input {
            Input::Frame(bytes) | Input::Console(bytes) | Input::Random(bytes) => {
                put_varint(out, bytes.len() as u64);
                out.extend_from_slice(bytes);
            }
            Input::Advance { ns } => put_varint(out, *ns),
            Input::Pace { ns_per_256 } => put_varint(out, u64::from(*ns_per_256)),
            Input::Control(action) => out.push(*action as u8),
            Input::Digest(digest) => digest.put(out),
        }
    }

    fn end_batch(&mut self, cut: u64, out: &mut Vec<u8>) {
        let compressed = if self.payload.len() >= LZ4_BYTES_MIN {
            Some(lz4_flex::block::compress(&self.payload)).filter(|c| c.len() < self.payload.len())
        } else {
            None
        };
        let mut prefix = Vec::with_capacity(PREFIX_BYTES_MAX);
        put_varint(&mut prefix, self.index);
        put_varint(&mut prefix, self.start);
        put_varint(&mut prefix, cut - self.start);
        if compressed.is_some() {
            put_varint(&mut prefix, self.payload.len() as u64);
        }
        let entries = compressed.as_deref().unwrap_or(&self.payload);
        let begin = out.len();
        out.extend_from_slice(&MAGIC);
        out.push(LOG_VERSION);
        out.push(if compressed.is_some() { FLAG_LZ4 } else { 0 });
        out.extend_from_slice(&[0; 4]);
        put_varint(out, (prefix.len() + entries.len()) as u64);
        out.extend_from_slice(&prefix);
        out.extend_from_slice(entries);
        let crc = checksum(&out[begin..]);
        out[begin + 4..begin + FIXED_BYTES].copy_from_slice(&crc.to_le_bytes());
        self.payload.clear();
        self.entries = 0;
        self.index += 1;
        (self.start, self.last) = (cut, cut);
    }
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

fn tag(input: &Input) -> u8 {
    match input {
        Input::Frame(_) => TAG_FRAME,
        Input::Console(_) => TAG_CONSOLE,
        Input::Advance { .. } => TAG_ADVANCE,
        Input::Pace { .. } => TAG_PACE,
        Input::Random(_) => TAG_RANDOM,
        Input::Control(_) => TAG_CONTROL,
        Input::Digest(_) => TAG_DIGEST,
    }
}

/// An entry has at most so many bytes: its tag, its count, its content.
fn size_max(input: &Input) -> usize {
    const HEAD: usize = 1 + 10;
    HEAD + match input {
        Input::Frame(bytes) | Input::Console(bytes) | Input::Random(bytes) => 10 + bytes.len(),
        Input::Advance { .. } | Input::Pace { .. } => 10,
        Input::Control(_) => 1,
        Input::Digest(digest) => digest.size_max(),
    }
}

/// Reads batches in their order and keeps it.
#[derive(Clone, Debug)]
pub struct LogReader {
    index: u64,
    count: u64,
}

impl LogReader {
    /// A reader of a log that begins at this count.
    pub fn new(start: u64) -> Self {
        Self { index: 0, count: start }
    }

    /// Where the last batch read was cut.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Number of the batch that is due.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Reads all the batches that `bytes` consists of. On an error nothing has been read.
    pub fn read_all(&mut self, bytes: &[u8]) -> Result<Vec<Batch>, LogError> {
        let mut ahead = self.clone();
        let (mut batches, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            batches.push(ahead.read(bytes, &mut at)?);
        }
        *self = ahead;
        Ok(batches)
    }

    /// Reads the batch that begins at `*at` and moves `*at` behind it. On an error nothing has been read.
    pub fn read(&mut self, bytes: &[u8], at: &mut usize) -> Result<Batch, LogError> {
        let offset = *at;
        let rest = bytes.get(offset..).unwrap_or_default();
        let body = verify(rest, offset)?;
        let length = body.end;
        let compressed = rest[3] & FLAG_LZ4 != 0;

        let mut reader = Reader::new(&rest[..length], body.start, offset);
        let malformed = |reader: &Reader<'_>, batch, count, what| LogError::Malformed {
            batch,
            offset: reader.offset(),
            count,
            what,
        };
        let index = reader.varint().map_err(|what| malformed(&reader, self.index, self.count, what))?;
        match index.cmp(&self.index) {
            std::cmp::Ordering::Less => {
                return Err(LogError::Repeated { offset, theirs: index, due: self.index });
            }
            std::cmp::Ordering::Greater => {
                return Err(LogError::Missing { offset, theirs: index, due: self.index });
            }
            std::cmp::Ordering::Equal => {}
        }
        let start = reader.varint().map_err(|what| malformed(&reader, index, self.count, what))?;
        if start != self.count {
            return Err(LogError::Start { offset, index, theirs: start, due: self.count });
        }
        let span = reader.varint().map_err(|what| malformed(&reader, index, start, what))?;
        let overflow = LogError::Overflow { batch: index, offset, count: start };
        let cut = start.checked_add(span).ok_or(overflow.clone())?;
        let entries = if compressed {
            let length = reader.varint().map_err(|what| malformed(&reader, index, start, what))?;
            let plain = decompress(reader.rest(), length, index)
                .map_err(|e| e.unwrap_or_else(|| malformed(&reader, index, start, "does not decompress")))?;
            read_entries(Reader::new(&plain, 0, 0), index, start, cut)?
        } else {
            read_entries(reader, index, start, cut)?
        };
        self.index = index.checked_add(1).ok_or(overflow)?;
        self.count = cut;
        *at = offset + length;
        Ok(Batch { index, start, cut, entries })
    }
}

/// Bytes of the whole batch that begins here (unverified), or none when too little of it is there to tell. For whoever
/// reads a stream and has to know how much to wait for.
pub fn batch_bytes(bytes: &[u8]) -> Result<Option<usize>, LogError> {
    match extent(bytes, 0) {
        Ok(body) => Ok(Some(body.end)),
        Err(LogError::Truncated { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Where the body of the batch at the beginning of `bytes` is; it may go beyond them.
fn extent(bytes: &[u8], offset: usize) -> Result<std::ops::Range<usize>, LogError> {
    let truncated = LogError::Truncated { offset, have: bytes.len() };
    if bytes.iter().zip(&MAGIC).any(|(a, b)| a != b) {
        return Err(LogError::Magic { offset });
    }
    match bytes.get(2) {
        Some(&LOG_VERSION) => {}
        Some(&theirs) => return Err(LogError::Version { offset, theirs }),
        None => return Err(truncated),
    }
    match bytes.get(3) {
        Some(&flags) if flags & !FLAG_LZ4 != 0 => return Err(LogError::Flags { offset, flags }),
        Some(_) => {}
        None => return Err(truncated),
    }
    let mut reader = Reader::new(bytes, FIXED_BYTES.min(bytes.len()), offset);
    let length = match reader.varint() {
        Ok(length) => length,
        Err(_) if bytes.len() < FIXED_BYTES + 10 => return Err(truncated),
        Err(what) => {
            return Err(LogError::Malformed { batch: 0, offset: reader.offset(), count: 0, what });
        }
    };
    let max = BATCH_BYTES_MAX + PREFIX_BYTES_MAX;
    match usize::try_from(length) {
        Ok(length) if length <= max => Ok(reader.position()..reader.position() + length),
        _ => Err(LogError::TooLong { batch: 0, what: "bytes", length, max }),
    }
}

/// Where the body of the batch at the beginning of `bytes` is, once it is all there and as it was written.
fn verify(bytes: &[u8], offset: usize) -> Result<std::ops::Range<usize>, LogError> {
    let body = extent(bytes, offset)?;
    let Some(batch) = bytes.get(..body.end) else {
        return Err(LogError::Truncated { offset, have: bytes.len() });
    };
    let stated = u32::from_le_bytes([batch[4], batch[5], batch[6], batch[7]]);
    let computed = checksum(batch);
    if stated != computed {
        return Err(LogError::Crc { offset, stated, computed });
    }
    Ok(body)
}

fn decompress(bytes: &[u8], length: u64, batch: u64) -> Result<Vec<u8>, Option<LogError>> {
    let max = BATCH_BYTES_MAX;
    let plain_bytes = usize::try_from(length).ok().filter(|length| *length <= max);
    let Some(plain_bytes) = plain_bytes else {
        return Err(Some(LogError::TooLong { batch, what: "bytes", length, max }));
    };
    let mut plain = vec![0; plain_bytes];
    match lz4_flex::block::decompress_into(bytes, &mut plain) {
        Ok(n) if n == plain_bytes => Ok(plain),
        _ => Err(None),
    }
}

fn read_entries(mut reader: Reader<'_>, batch: u64, start: u64, cut: u64) -> Result<Vec<Entry>, LogError> {
    let (mut entries, mut count) = (Vec::new(), start);
    while !reader.at_end() {
        if entries.len() == BATCH_ENTRIES_MAX {
            let length = entries.len() as u64 + 1;
            return Err(LogError::TooLong { batch, what: "events", length, max: BATCH_ENTRIES_MAX });
        }
        let offset = reader.offset();
        let malformed = |what| LogError::Malformed { batch, offset, count, what };
        let tag = reader.u8().map_err(malformed)?;
        let delta = reader.varint().map_err(malformed)?;
        let at = count.checked_add(delta).ok_or(LogError::Overflow { batch, offset, count })?;
        if at > cut {
            return Err(LogError::AfterCut { batch, count: at, cut });
        }
        let input = read_input(&mut reader, tag).map_err(malformed)?;
        entries.push(Entry { count: at, input });
        count = at;
    }
    Ok(entries)
}

fn read_input(reader: &mut Reader<'_>, tag: u8) -> Result<Input, &'static str> {
    let bytes = |reader: &mut Reader<'_>| {
        let length = reader.length(INPUT_BYTES_MAX, "input longer than any")?;
        Ok::<_, &'static str>(reader.take(length)?.to_vec())
    };
    Ok(match tag {
        TAG_FRAME => Input::Frame(bytes(reader)?),
        TAG_CONSOLE => Input::Console(bytes(reader)?),
        TAG_RANDOM => Input::Random(bytes(reader)?),
        TAG_ADVANCE => Input::Advance { ns: reader.varint()? },
        TAG_PACE => {
            Input::Pace { ns_per_256: u32::try_from(reader.varint()?).map_err(|_| "a pace beyond 32 bits")? }
        }
        TAG_CONTROL => {
            Input::Control(ControlAction::from_wire(reader.u8()?).ok_or("unknown control action")?)
        }
        TAG_DIGEST => Input::Digest(Box::new(Digest::read(reader)?)),
        _ => return Err("unknown kind of event"),
    })
}
