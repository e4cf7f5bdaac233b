//! Frames: what goes over a connection, in both directions.
//!
//! ```text
//! magic     4 bytes  "FTAR"
//! version   u16      of the protocol; this and the magic stay where they are in every version
//! reserved  u16      0
//! id        u64      the question's number, 0 for the greeting
//! length    u32      bytes of the payload, at most 65536
//! crc       u32      CRC-32C of the 20 bytes before, and of the payload
//! payload            JSON
//! ```
//!
//! Numbers are little-endian.

use ft_tls::Channel;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};
use thiserror::Error;

/// The version of the protocol. Two versions do not understand each other, and say so.
pub const SERVICE_VERSION: u16 = 1;
/// No payload is longer.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// Bytes before the payload.
pub const HEAD_BYTES: usize = 24;
const MAGIC: [u8; 4] = *b"FTAR";
const CRC_AT: usize = 20;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFrame {
    /// The question's number.
    pub id: u64,
    /// JSON.
    pub payload: Vec<u8>,
}

/// Why bytes are no frame.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadFrame {
    /// They are something else.
    #[error("it does not begin as a frame does")]
    Magic,
    /// Another version of the protocol.
    #[error("it has version {0} of the protocol, this ftd has {SERVICE_VERSION}")]
    Version(u16),
    /// Too long.
    #[error("its payload has {0} bytes, more than {PAYLOAD_BYTES_MAX}")]
    Length(u32),
    /// Damaged.
    #[error("its checksum is wrong")]
    Checksum,
}

/// What the head of a frame says. Its checksum is not looked at yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    id: u64,
    payload_bytes: usize,
}

impl ServiceFrame {
    /// The frame as bytes.
    ///
    /// # Panics
    ///
    /// If the payload is longer than [`PAYLOAD_BYTES_MAX`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.payload.len() <= PAYLOAD_BYTES_MAX, "payloads are bounded where they are made");
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.payload.len());
        bytes.extend(MAGIC);
        bytes.extend(SERVICE_VERSION.to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(self.id.to_le_bytes());
        bytes.extend((self.payload.len() as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), &self.payload);
        bytes.extend(crc.to_le_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// The frame with this head and what follows it.
    pub fn decode(head: &[u8; HEAD_BYTES], payload: Vec<u8>) -> Result<Self, BadFrame> {
        let FrameHead { id, .. } = FrameHead::decode(head)?;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..CRC_AT]), &payload);
        if head[CRC_AT..] != crc.to_le_bytes() {
            return Err(BadFrame::Checksum);
        }
        Ok(Self { id, payload })
    }
}

impl FrameHead {
    /// Judges a head.
    pub fn decode(head: &[u8; HEAD_BYTES]) -> Result<Self, BadFrame> {
        let [m0, m1, m2, m3, v0, v1, r0, r1, id @ .., l0, l1, l2, l3, _, _, _, _] = *head;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(BadFrame::Magic);
        }
        let version = u16::from_le_bytes([v0, v1]);
        if version != SERVICE_VERSION {
            return Err(BadFrame::Version(version));
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if length as usize > PAYLOAD_BYTES_MAX {
            return Err(BadFrame::Length(length));
        }
        if [r0, r1] != [0; 2] {
            return Err(BadFrame::Checksum);
        }
        Ok(Self { id: u64::from_le_bytes(id), payload_bytes: length as usize })
    }
}

/// Why no frame came.
#[derive(Debug, Error)]
pub(super) enum NoFrame {
    /// The connection ended, or nothing came in time ([`io::ErrorKind::TimedOut`]).
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What came is none.
    #[error(transparent)]
    Bad(#[from] BadFrame),
}

impl NoFrame {
    pub(super) fn is_timeout(&self) -> bool {
        matches!(self, Self::Io(e) if e.kind() == io::ErrorKind::TimedOut)
    }
}

/// Reads a frame: its first byte within `patience`, and the rest within `rest` from then on.
pub(super) fn receive(
    stream: &mut Channel,
    patience: Duration,
    rest: Duration,
) -> Result<ServiceFrame, NoFrame> {
    let mut head = [0; HEAD_BYTES];
    fill(stream, &mut head[..1], Instant::now() + patience)?;
    let deadline = Instant::now() + rest;
    fill(stream, &mut head[1..], deadline)?;
    let mut payload = vec![0; FrameHead::decode(&head)?.payload_bytes];
    fill(stream, &mut payload, deadline)?;
    Ok(ServiceFrame::decode(&head, payload)?)
}

/// Fills `bytes` before `deadline`, however slowly they trickle.
fn fill(stream: &mut Channel, mut bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.socket().set_read_timeout(Some(left))?;
        match stream.read(bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => bytes = &mut bytes[count..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Sends a frame; it is small enough for one write into an empty socket.
pub(super) fn send(stream: &mut Channel, frame: &ServiceFrame, patience: Duration) -> io::Result<()> {
    stream.socket().set_write_timeout(Some(patience))?;
    stream.write_all(&frame.encode())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Result<ServiceFrame, BadFrame> {
        let (head, payload) = bytes.split_at(HEAD_BYTES);
        ServiceFrame::decode(head.try_into().unwrap(), payload.to_vec())
    }

    #[test]
    fn magic_and_version_stay_where_they_are_in_every_version() {
        let bytes = ServiceFrame { id: 0x0102_0304_0506_0708, payload: b"{}".to_vec() }.encode();
        assert_eq!(bytes[..6], *b"FTAR\x01\x00");
        assert_eq!(bytes[8..20], [8, 7, 6, 5, 4, 3, 2, 1, 2, 0, 0, 0]);
        let mut other = bytes;
        other[4..6].copy_from_slice(&[0xee, 0x7e]);
        assert_eq!(decode(&other), Err(BadFrame::Version(0x7eee)));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(id in any::<u64>(), payload in prop::collection::vec(any::<u8>(), 0..300)) {
            let frame = ServiceFrame { id, payload };
            prop_assert_eq!(decode(&frame.encode()).unwrap(), frame);
        }

        #[test]
        fn any_flipped_bit_is_noticed(
            payload in prop::collection::vec(any::<u8>(), 0..100), at in any::<prop::sample::Index>(), bit in 0..8,
        ) {
            let mut bytes = ServiceFrame { id: 7, payload }.encode();
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn no_head_makes_decoding_panic_or_asks_for_more_than_the_bound(
            mut head in any::<[u8; HEAD_BYTES]>(),
            sound: bool,
        ) {
            if sound {
                head[..8].copy_from_slice(b"FTAR\x01\0\0\0");
            }
            match FrameHead::decode(&head) {
                Ok(head) => prop_assert!(head.payload_bytes <= PAYLOAD_BYTES_MAX),
                Err(bad) => prop_assert!(!sound || matches!(bad, BadFrame::Length(_))),
            }
        }
    }
}
