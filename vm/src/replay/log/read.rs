//! Decoding: batches in their order. Nothing in them is trusted.

use super::bytes::Reader;
use super::digest::Digest;
use super::error::LogError;
use super::format::*;
use super::input::{Batch, ControlAction, LogEntry, LogInput};

/// Reads batches in their order and keeps it.
#[derive(Clone, Debug)]
pub struct LogReader {
    pub(super) index: u64,
    pub(super) count: u64,
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

fn read_entries(mut reader: Reader<'_>, batch: u64, start: u64, cut: u64) -> Result<Vec<LogEntry>, LogError> {
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
        entries.push(LogEntry { count: at, input });
        count = at;
    }
    Ok(entries)
}

fn read_input(reader: &mut Reader<'_>, tag: u8) -> Result<LogInput, &'static str> {
    let bytes = |reader: &mut Reader<'_>| {
        let length = reader.length(INPUT_BYTES_MAX, "input longer than any")?;
        Ok::<_, &'static str>(reader.take(length)?.to_vec())
    };
    Ok(match tag {
        TAG_FRAME => LogInput::Frame { card: reader.u8()?, packet: bytes(reader)? },
        TAG_CONSOLE => LogInput::Console(bytes(reader)?),
        TAG_RANDOM => LogInput::Random(bytes(reader)?),
        TAG_ADVANCE => LogInput::Advance { ns: reader.varint()? },
        TAG_STOOD_STILL => LogInput::StoodStill { ns: reader.varint()? },
        // Zigzag: 0, -1, 1, -2 and so on.
        TAG_TIME_OF_DAY => {
            let folded = reader.varint()?;
            LogInput::TimeOfDay { seconds: (folded >> 1) as i64 ^ -((folded & 1) as i64) }
        }
        TAG_PACE => LogInput::Pace {
            ns_per_256: u32::try_from(reader.varint()?).map_err(|_| "a pace beyond 32 bits")?,
        },
        TAG_CONTROL => {
            LogInput::Control(ControlAction::from_wire(reader.u8()?).ok_or("unknown control action")?)
        }
        TAG_LINK => {
            let (card, up) = (reader.u8()?, reader.u8()?);
            let up = [false, true].get(usize::from(up)).ok_or("a link neither up nor down")?;
            LogInput::Link { card, up: *up }
        }
        TAG_DISK => {
            let (disk, well) = (reader.u8()?, reader.u8()?);
            let well = [false, true].get(usize::from(well)).ok_or("a disk request neither well nor not")?;
            let head = u16::try_from(reader.varint()?).map_err(|_| "a descriptor beyond any queue")?;
            LogInput::Disk { disk, head, well: *well }
        }
        TAG_DIGEST => LogInput::Digest(Box::new(Digest::read(reader)?)),
        _ => return Err("unknown kind of event"),
    })
}
