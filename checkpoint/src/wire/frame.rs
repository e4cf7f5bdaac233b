//! Frames: a fixed little-endian header and a bounded payload, under one CRC.
//!
//! ```text
//!  0 magic u32   4 version u16   6 type u16   8 vm u64   16 generation u64   24 epoch u64
//! 32 sequence u64   40 length u32   44 crc32c u32 over bytes 0..44 and the payload   48 payload
//! ```
//!
//! The sequence counts frames of one direction of one connection from 0, so a frame that is missing, repeated or out of
//! order is found. It is stamped at the moment of writing: payloads are kept for sending again, not frames.

use super::handshake::PROTOCOL;
use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;

/// First bytes of every frame.
pub const MAGIC: u32 = u32::from_le_bytes(*b"FTD\x01");
/// Version of the frame itself, and of hello, welcome and refusal, in which all else is negotiated. Another version is
/// refused, not guessed at. Magic and version stand at the same place in every version, so that any two see by whom
/// they are refused.
pub const VERSION: u16 = 4;
/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 48;
/// Most bytes of payload a frame can have.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// The writer collects small frames up to this many bytes and hands larger payloads to the system uncopied.
const COALESCE_BYTES: usize = 16 << 10;
/// What the reader asks the system for at a time, until a longer frame is announced.
const READ_BYTES: usize = 64 << 10;

/// The id of a VM on the wire: a hash of its name.
pub fn vm_id(name: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(name.as_bytes())
}

/// What a frame carries; see [`crate::wire::message`] for the payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
#[allow(missing_docs, reason = "each is documented at the message of its name")]
pub enum FrameType {
    Hello = 1,
    Welcome = 2,
    Refuse = 3,
    CopyBegin = 4,
    CopyPages = 5,
    EpochBegin = 6,
    Pages = 7,
    State = 8,
    EpochEnd = 9,
    Ack = 10,
    Heartbeat = 11,
    Echo = 12,
    Paired = 13,
    Switchover = 14,
    TookOver = 15,
    Bye = 16,
    Decline = 17,
    Log = 18,
    LogEnd = 19,
    Position = 20,
    Diverged = 21,
    Standing = 22,
    Network = 23,
    Pulse = 24,
    Survey = 25,
    Disk = 26,
    Compare = 27,
    Compared = 28,
    DiskMap = 29,
    Settled = 30,
    PageHashes = 31,
    #[cfg(feature = "next-version")]
    Build = 1000,
}

/// Types of frame that came after the oldest version of the protocol that is still spoken, each with the version that
/// brought it. A message never changes: a version that has more to say has another message.
const LATER: &[(FrameType, u16)] = &[
    (FrameType::PageHashes, 5),
    #[cfg(feature = "next-version")]
    (FrameType::Build, 6),
];

impl FrameType {
    /// Every type.
    pub const ALL: &[Self] = &[
        Self::Hello,
        Self::Welcome,
        Self::Refuse,
        Self::CopyBegin,
        Self::CopyPages,
        Self::EpochBegin,
        Self::Pages,
        Self::State,
        Self::EpochEnd,
        Self::Ack,
        Self::Heartbeat,
        Self::Echo,
        Self::Paired,
        Self::Switchover,
        Self::TookOver,
        Self::Bye,
        Self::Decline,
        Self::Log,
        Self::LogEnd,
        Self::Position,
        Self::Diverged,
        Self::Standing,
        Self::Network,
        Self::Pulse,
        Self::Survey,
        Self::Disk,
        Self::Compare,
        Self::Compared,
        Self::DiskMap,
        Self::Settled,
        Self::PageHashes,
        #[cfg(feature = "next-version")]
        Self::Build,
    ];

    fn from_wire(value: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| *kind as u16 == value)
    }

    /// The version of the protocol that brought it.
    pub fn since(self) -> u16 {
        LATER.iter().find(|(later, _)| *later == self).map_or(PROTOCOL.oldest, |(_, since)| *since)
    }
}

/// Why a frame could not be written or read. After any error but a time-out of [`FrameReader::read`] the connection is
/// of no more use.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The bytes are not a frame.
    #[error("not an ftd frame: starts with {0:#010x} instead of {MAGIC:#010x}")]
    BadMagic(u32),
    /// The peer speaks another version.
    #[error("the peer speaks protocol version {theirs}, this node {ours}: install the same version on both")]
    Version {
        /// The peer's.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// The frame belongs to another VM.
    #[error("the frame is for VM id {theirs:#018x}, but this connection protects {ours:#018x}")]
    WrongVm {
        /// The frame's.
        theirs: u64,
        /// Ours.
        ours: u64,
    },
    /// The announced payload is longer than any frame's.
    #[error("the payload has {length} bytes, at most {PAYLOAD_BYTES_MAX} are allowed")]
    TooLong {
        /// What the header says.
        length: u64,
    },
    /// The content is not what was sent.
    #[error("frame {sequence} is corrupt: checksum {computed:#010x}, header says {stated:#010x}")]
    BadCrc {
        /// The frame's number as its (doubtful) header says.
        sequence: u64,
        /// Over what arrived.
        computed: u32,
        /// In the header.
        stated: u32,
    },
    /// A frame is missing, repeated or out of order.
    #[error("frame {theirs} arrived where frame {ours} was due")]
    BadSequence {
        /// The frame's.
        theirs: u64,
        /// The one due.
        ours: u64,
    },
    /// The frame comes from a past generation.
    #[error("the frame is of generation {theirs}, but this connection is at {ours}")]
    StaleGeneration {
        /// The frame's.
        theirs: u64,
        /// Ours.
        ours: u64,
    },
    /// The stream ended inside a frame.
    #[error("the connection was cut {have} bytes into a frame of {need}")]
    Truncated {
        /// Bytes that arrived of the frame.
        have: usize,
        /// Bytes that it has, as far as known.
        need: usize,
    },
    /// The stream ended between two frames.
    #[error("the connection was closed")]
    Closed,
    /// A message of a later version than the two agreed on.
    #[error("a {kind:?} is of protocol version {}, and the two agreed on {agreed}", .kind.since())]
    NotSpoken {
        /// The frame's type.
        kind: FrameType,
        /// The version of the protocol that is spoken.
        agreed: u16,
    },
    /// No such type of frame in this version.
    #[error("frame type {0} is unknown")]
    UnknownType(u16),
    /// The payload does not parse.
    #[error("malformed {kind:?}: {why}")]
    Malformed {
        /// The frame's type.
        kind: FrameType,
        /// What is wrong with it.
        why: String,
    },
    /// An earlier write failed half-way: nothing can follow on this connection.
    #[error("an earlier write on this connection failed")]
    Broken,
    /// The system refused to read or write.
    #[error("replication channel: {0}")]
    Io(#[from] io::Error),
}

impl FrameError {
    /// Whether the read merely ran into its time limit; the next [`FrameReader::read`] goes on where it was.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Io(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }
}

/// A frame that was read and verified.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// What it carries.
    pub kind: FrameType,
    /// VM id.
    pub vm: u64,
    /// The sender's generation.
    pub generation: u64,
    /// The epoch it belongs to, 0 where none.
    pub epoch: u64,
    /// Its number on this connection.
    pub sequence: u64,
    /// Its payload.
    pub payload: &'a [u8],
}

/// A frame's content that is owed, and queued, at the same time.
pub type SharedPayload = Arc<Vec<u8>>;

/// Where the encoder's frames go.
pub trait WireSink {
    /// Takes one frame's content. It may be buffered until [`WireSink::flush`].
    fn frame(&mut self, kind: FrameType, epoch: u64, payload: &[u8]) -> Result<(), FrameError>;
    /// As [`WireSink::frame`], of content that the caller keeps as well: a sink that queues it need not copy it.
    fn shared(&mut self, kind: FrameType, epoch: u64, payload: &SharedPayload) -> Result<(), FrameError> {
        self.frame(kind, epoch, payload)
    }
    /// Sends what is buffered.
    fn flush(&mut self) -> Result<(), FrameError>;
}

/// Takes everything, sends nothing: for a checkpoint that is only to be kept.
pub struct NoSink;

impl WireSink for NoSink {
    fn frame(&mut self, _: FrameType, _: u64, _: &[u8]) -> Result<(), FrameError> {
        Ok(())
    }
    fn flush(&mut self) -> Result<(), FrameError> {
        Ok(())
    }
}

/// Writes frames.
pub struct FrameWriter<W> {
    inner: W,
    vm: u64,
    generation: u64,
    protocol: u16,
    sequence: u64,
    buffer: Vec<u8>,
    broken: bool,
    bytes: u64,
}

impl<W: Write> FrameWriter<W> {
    /// A writer at the start of a connection.
    pub fn new(inner: W, vm: u64, generation: u64) -> Self {
        let buffer = Vec::with_capacity(2 * COALESCE_BYTES);
        Self {
            inner,
            vm,
            generation,
            protocol: PROTOCOL.oldest,
            sequence: 0,
            buffer,
            broken: false,
            bytes: 0,
        }
    }

    /// The peer understands this version of the protocol; until it is known, the oldest is spoken.
    pub fn speak(&mut self, protocol: u16) {
        self.protocol = protocol;
    }

    /// Frames from now on carry this generation.
    pub fn set_generation(&mut self, generation: u64) {
        self.generation = generation;
    }

    /// Bytes given to this writer so far, headers included.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The stream underneath.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    /// Takes the stream back; what is not flushed is lost.
    pub fn into_inner(self) -> W {
        self.inner
    }

    fn header(&mut self, kind: FrameType, epoch: u64, payload: &[u8]) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        header[4..6].copy_from_slice(&VERSION.to_le_bytes());
        header[6..8].copy_from_slice(&(kind as u16).to_le_bytes());
        header[8..16].copy_from_slice(&self.vm.to_le_bytes());
        header[16..24].copy_from_slice(&self.generation.to_le_bytes());
        header[24..32].copy_from_slice(&epoch.to_le_bytes());
        header[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        header[40..44].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..44]), payload);
        header[44..48].copy_from_slice(&crc.to_le_bytes());
        self.sequence += 1;
        header
    }

    fn write_out(&mut self, payload: &[u8]) -> Result<(), FrameError> {
        if self.broken {
            return Err(FrameError::Broken);
        }
        let result = write_all_vectored(&mut self.inner, &self.buffer, payload);
        self.buffer.clear();
        self.broken = result.is_err();
        Ok(result?)
    }
}

impl<W: Write> WireSink for FrameWriter<W> {
    fn frame(&mut self, kind: FrameType, epoch: u64, payload: &[u8]) -> Result<(), FrameError> {
        if self.broken {
            return Err(FrameError::Broken);
        }
        if kind.since() > self.protocol {
            return Err(FrameError::NotSpoken { kind, agreed: self.protocol });
        }
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(FrameError::TooLong { length: payload.len() as u64 });
        }
        let header = self.header(kind, epoch, payload);
        self.bytes += (HEADER_BYTES + payload.len()) as u64;
        self.buffer.extend_from_slice(&header);
        if payload.len() > COALESCE_BYTES {
            return self.write_out(payload);
        }
        self.buffer.extend_from_slice(payload);
        if self.buffer.len() > COALESCE_BYTES { self.write_out(&[]) } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), FrameError> {
        if !self.buffer.is_empty() {
            self.write_out(&[])?;
        }
        self.inner.flush().inspect_err(|_| self.broken = true)?;
        Ok(())
    }
}

fn write_all_vectored(out: &mut impl Write, mut first: &[u8], mut second: &[u8]) -> io::Result<()> {
    while !first.is_empty() || !second.is_empty() {
        match out.write_vectored(&[IoSlice::new(first), IoSlice::new(second)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                let of_first = n.min(first.len());
                first = &first[of_first..];
                second = &second[n - of_first..];
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Reads and verifies frames. Never holds more than one frame of [`PAYLOAD_BYTES_MAX`] and what was read with it.
pub struct FrameReader<R> {
    inner: R,
    vm: Option<u64>,
    generation: u64,
    sequence: u64,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes of the frame handed out last, released by the next read.
    lent: usize,
}

impl<R: Read> FrameReader<R> {
    /// A reader at the start of a connection, which takes frames of any VM and generation until told what to expect.
    pub fn new(inner: R) -> Self {
        Self { inner, vm: None, generation: 0, sequence: 0, buffer: Vec::new(), start: 0, end: 0, lent: 0 }
    }

    /// From now on other VMs' frames and those of older generations are refused.
    pub fn expect(&mut self, vm: u64, generation: u64) {
        self.vm = Some(vm);
        self.generation = self.generation.max(generation);
    }

    /// The stream underneath.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// The next frame. A time-out of the stream underneath (see [`FrameError::is_timeout`]) loses nothing.
    ///
    /// A connection's generation never goes back: a frame with an older one than its predecessor's is refused.
    pub fn read(&mut self) -> Result<Frame<'_>, FrameError> {
        self.start += std::mem::take(&mut self.lent);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        self.fill(HEADER_BYTES)?;
        let header = self.header();
        if header.u32_at(0) != MAGIC {
            return Err(FrameError::BadMagic(header.u32_at(0)));
        }
        if header.u16_at(4) != VERSION {
            return Err(FrameError::Version { theirs: header.u16_at(4), ours: VERSION });
        }
        let length = header.u32_at(40) as usize;
        if length > PAYLOAD_BYTES_MAX {
            return Err(FrameError::TooLong { length: length as u64 });
        }
        self.fill(HEADER_BYTES + length)?;

        let frame = &self.buffer[self.start..self.start + HEADER_BYTES + length];
        let payload = &frame[HEADER_BYTES..];
        let sequence = header.u64_at(32);
        let (computed, stated) =
            (crc32c::crc32c_append(crc32c::crc32c(&frame[..44]), payload), header.u32_at(44));
        if computed != stated {
            return Err(FrameError::BadCrc { sequence, computed, stated });
        }
        let (vm, generation) = (header.u64_at(8), header.u64_at(16));
        if let Some(ours) = self.vm.filter(|ours| *ours != vm) {
            return Err(FrameError::WrongVm { theirs: vm, ours });
        }
        if sequence != self.sequence {
            return Err(FrameError::BadSequence { theirs: sequence, ours: self.sequence });
        }
        if generation < self.generation {
            return Err(FrameError::StaleGeneration { theirs: generation, ours: self.generation });
        }
        let kind = FrameType::from_wire(header.u16_at(6)).ok_or(FrameError::UnknownType(header.u16_at(6)))?;
        self.generation = generation;
        self.sequence += 1;
        self.lent = HEADER_BYTES + length;
        Ok(Frame { kind, vm, generation, epoch: header.u64_at(24), sequence, payload })
    }

    /// Reads and throws away up to `bytes_max` bytes, to the end of the stream: what cannot be read as frames.
    pub fn drain(&mut self, bytes_max: u64) -> io::Result<u64> {
        io::copy(&mut self.inner.by_ref().take(bytes_max), &mut io::sink())
    }

    fn header(&self) -> Header {
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(&self.buffer[self.start..self.start + HEADER_BYTES]);
        Header(bytes)
    }

    /// Reads until `need` bytes of the current frame are there. `need` is bounded by the callers.
    fn fill(&mut self, need: usize) -> Result<(), FrameError> {
        while self.end - self.start < need {
            if self.buffer.len() < READ_BYTES.max(need) {
                self.buffer.resize(READ_BYTES.max(need), 0);
            }
            if self.buffer.len() - self.start < need {
                self.buffer.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            match self.inner.read(&mut self.buffer[self.end..]) {
                Ok(0) if self.end == self.start => return Err(FrameError::Closed),
                Ok(0) => return Err(FrameError::Truncated { have: self.end - self.start, need }),
                Ok(n) => self.end += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

struct Header([u8; HEADER_BYTES]);

impl Header {
    fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }
    fn u32_at(&self, at: usize) -> u32 {
        u32::from(self.u16_at(at)) | u32::from(self.u16_at(at + 2)) << 16
    }
    fn u64_at(&self, at: usize) -> u64 {
        u64::from(self.u32_at(at)) | u64::from(self.u32_at(at + 4)) << 32
    }
}
