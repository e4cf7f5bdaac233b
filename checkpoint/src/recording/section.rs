//! Sections: the pieces of a recording.

use super::RecordingError;
use crc32c::crc32c;
use ft_vm::replay::log::BATCH_BYTES_MAX;
use std::io::{self, Read, Write};

/// Bytes of a section before its payload.
pub const SECTION_HEADER_BYTES: usize = 24;
/// Most bytes of a section's payload: a full batch of the log and its header fit, and so does any machine state.
pub const SECTION_BYTES_MAX: usize = BATCH_BYTES_MAX + (1 << 20);

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    About = 1,
    State = 2,
    Pages = 3,
    Begin = 4,
    Log = 5,
    End = 6,
}

impl Kind {
    const ALL: [Self; 6] = [Self::About, Self::State, Self::Pages, Self::Begin, Self::Log, Self::End];

    pub(super) fn from_wire(value: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u32 == value)
    }
}

/// A section's header. Its own checksum is the last word, so that a length is known to be right before it is believed.
pub(super) fn header(kind: u32, recording: u32, sequence: u32, length: u32, crc: u32) -> Vec<u8> {
    let mut header = Vec::with_capacity(SECTION_HEADER_BYTES);
    for word in [kind, recording, sequence, length, crc] {
        header.extend_from_slice(&word.to_le_bytes());
    }
    let crc = crc32c(&header);
    header.extend_from_slice(&crc.to_le_bytes());
    header
}

/// Writes sections.
pub(super) struct Sections<W> {
    pub(super) out: W,
    recording: u32,
    sequence: u32,
}

impl<W: Write> Sections<W> {
    pub(super) fn new(out: W, recording: u32) -> Self {
        Self { out, recording, sequence: 0 }
    }

    pub(super) fn put(&mut self, kind: Kind, payload: &[u8]) -> Result<(), RecordingError> {
        if payload.len() > SECTION_BYTES_MAX {
            return Err(RecordingError::TooLong { offset: 0, length: payload.len() as u64 });
        }
        let length = payload.len() as u32;
        self.out.write_all(&header(kind as u32, self.recording, self.sequence, length, crc32c(payload)))?;
        self.out.write_all(payload)?;
        self.sequence = self.sequence.wrapping_add(1);
        Ok(())
    }
}

/// Reads and verifies sections.
pub(super) struct SectionReader<R> {
    input: R,
    /// Of the next section.
    pub(super) offset: u64,
    recording: Option<u32>,
    sequence: u32,
    payload: Vec<u8>,
}

/// A section, or the place where the file ends.
pub(super) enum Found<'a> {
    Section {
        kind: u32,
        offset: u64,
        payload: &'a [u8],
    },
    /// The file ends here: between two sections, or inside one that it does not have as a whole.
    CutOff {
        offset: u64,
    },
}

impl<R: Read> SectionReader<R> {
    pub(super) fn new(input: R, offset: u64) -> Self {
        Self { input, offset, recording: None, sequence: 0, payload: Vec::new() }
    }

    pub(super) fn next(&mut self) -> Result<Found<'_>, RecordingError> {
        let offset = self.offset;
        let mut header = [0; SECTION_HEADER_BYTES];
        if read_up_to(&mut self.input, &mut header)? < header.len() {
            return Ok(Found::CutOff { offset });
        }
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (kind, recording, sequence, length) = (word(0), word(4), word(8), word(12));
        let damaged = |stated, computed, due| match stated == computed {
            true => Ok(()),
            false => Err(RecordingError::Crc { offset, sequence: due, stated, computed }),
        };
        damaged(word(20), crc32c(&header[..20]), self.sequence)?;
        if length as usize > SECTION_BYTES_MAX {
            return Err(RecordingError::TooLong { offset, length: length.into() });
        }
        self.payload.clear();
        (&mut self.input).take(length.into()).read_to_end(&mut self.payload)?;
        if self.payload.len() < length as usize {
            return Ok(Found::CutOff { offset });
        }
        damaged(word(16), crc32c(&self.payload), self.sequence)?;
        let ours = *self.recording.get_or_insert(recording);
        if recording != ours {
            return Err(RecordingError::Foreign { offset, theirs: recording, ours });
        }
        if sequence != self.sequence {
            return Err(RecordingError::Sequence { offset, theirs: sequence, due: self.sequence });
        }
        self.sequence = self.sequence.wrapping_add(1);
        self.offset = offset.saturating_add((SECTION_HEADER_BYTES + self.payload.len()) as u64);
        Ok(Found::Section { kind, offset, payload: &self.payload })
    }

    /// Whether nothing follows.
    pub(super) fn at_end(&mut self) -> io::Result<bool> {
        Ok(read_up_to(&mut self.input, &mut [0])? == 0)
    }
}

/// Reads until `into` is full or the input ends.
pub(super) fn read_up_to(input: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < into.len() {
        match input.read(&mut into[have..]) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(have)
}
