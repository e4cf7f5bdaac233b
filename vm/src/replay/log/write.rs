//! Encoding: inputs as they happen, into batches.

use super::bytes::put_varint;
use super::error::LogError;
use super::format::*;
use super::input::{Batch, LogCut, LogInput};

/// Entries of fewer bytes are not worth compressing: the time would be the vCPU's.
const LZ4_BYTES_MIN: usize = 512;

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
    pub fn append(&mut self, count: u64, input: &LogInput) -> Result<(), LogError> {
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

    fn check(&self, input: &LogInput) -> Result<(), LogError> {
        let (what, length, max) = match input {
            LogInput::Frame { packet, .. } => ("bytes of a frame", packet.len(), INPUT_BYTES_MAX),
            LogInput::Console(bytes) => ("bytes of console input", bytes.len(), INPUT_BYTES_MAX),
            LogInput::Random(bytes) => ("random bytes", bytes.len(), INPUT_BYTES_MAX),
            LogInput::Digest(digest) => ("pages of a digest", digest.pages.len(), DIGEST_PAGES_MAX),
            LogInput::Advance { .. }
            | LogInput::StoodStill { .. }
            | LogInput::Link { .. }
            | LogInput::TimeOfDay { .. }
            | LogInput::Pace { .. }
            | LogInput::Control(_)
            | LogInput::Disk { .. } => return Ok(()),
        };
        if length > max {
            return Err(LogError::TooLong { batch: self.index, what, length: length as u64, max });
        }
        if let LogInput::Digest(digest) = input
            && let Some(pair) = digest.pages.windows(2).find(|pair| pair[0].0 >= pair[1].0)
        {
            return Err(LogError::Unsorted { batch: self.index, page: pair[1].0 });
        }
        Ok(())
    }

    fn put(&mut self, input: &LogInput) {
        let out = &mut self.payload;
        match input {
            LogInput::Frame { card, packet } => {
                out.push(*card);
                put_bytes(out, packet);
            }
            LogInput::Console(bytes) | LogInput::Random(bytes) => put_bytes(out, bytes),
            LogInput::Advance { ns } | LogInput::StoodStill { ns } => put_varint(out, *ns),
            LogInput::TimeOfDay { seconds } => put_varint(out, (seconds << 1 ^ seconds >> 63) as u64),
            LogInput::Pace { ns_per_256 } => put_varint(out, u64::from(*ns_per_256)),
            LogInput::Control(action) => out.push(*action as u8),
            LogInput::Link { card, up } => out.extend([*card, u8::from(*up)]),
            LogInput::Disk { disk, head, well } => {
                out.extend([*disk, u8::from(*well)]);
                put_varint(out, u64::from(*head));
            }
            LogInput::Digest(digest) => digest.put(out),
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

impl Batch {
    /// This batch encoded, cut at an earlier count: with the inputs up to there, those at `count` included. For a
    /// replay that is to stop there; the batches that followed this one do not follow that one.
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

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn tag(input: &LogInput) -> u8 {
    match input {
        LogInput::Frame { .. } => TAG_FRAME,
        LogInput::Console(_) => TAG_CONSOLE,
        LogInput::Advance { .. } => TAG_ADVANCE,
        LogInput::StoodStill { .. } => TAG_STOOD_STILL,
        LogInput::Link { .. } => TAG_LINK,
        LogInput::TimeOfDay { .. } => TAG_TIME_OF_DAY,
        LogInput::Pace { .. } => TAG_PACE,
        LogInput::Random(_) => TAG_RANDOM,
        LogInput::Control(_) => TAG_CONTROL,
        LogInput::Disk { .. } => TAG_DISK,
        LogInput::Digest(_) => TAG_DIGEST,
    }
}

/// An entry has at most so many bytes: its tag, its count, its content.
fn size_max(input: &LogInput) -> usize {
    const HEAD: usize = 1 + 10;
    HEAD + match input {
        LogInput::Frame { packet, .. } => 1 + 10 + packet.len(),
        LogInput::Console(bytes) | LogInput::Random(bytes) => 10 + bytes.len(),
        LogInput::Advance { .. }
        | LogInput::StoodStill { .. }
        | LogInput::TimeOfDay { .. }
        | LogInput::Pace { .. } => 10,
        LogInput::Control(_) => 1,
        LogInput::Link { .. } => 2,
        LogInput::Disk { .. } => 2 + 3,
        LogInput::Digest(digest) => digest.size_max(),
    }
}
