//! A change of a disk in a frame, little-endian:
//!
//! ```text
//!  0 kind u8   1 zero   2 disk u16   4 offset u64   12 bytes u64   20 the data of a write
//! ```
//!
//! Kinds are 1 write, 2 zeroes, 3 zeroes whose space may be given back, 4 discard. A change of any length is cut into
//! pieces that each fit a frame; the seal of their epoch makes them one.

use super::frame::{FrameError, FrameType};
use ft_mirror::{Change, Extent, Space};
use std::borrow::Cow;

/// Most bytes of data in a frame.
pub const DATA_BYTES_MAX: usize = 256 << 10;
/// Bytes of an extent, by which two images are compared; the last one of a disk may be shorter.
pub const EXTENT_BYTES: u64 = 1 << 20;
const HEAD_BYTES: usize = 20;

/// A write in pieces that each fit a frame; other changes are one.
pub fn pieces<'a>(change: &'a Change<'a>) -> Box<dyn Iterator<Item = Change<'a>> + 'a> {
    match change {
        Change::Write { disk, offset, data } => {
            let (disk, offset) = (*disk, *offset);
            let piece = move |(at, piece)| Change::write(disk, offset + (at * DATA_BYTES_MAX) as u64, piece);
            Box::new(data.chunks(DATA_BYTES_MAX).enumerate().map(piece))
        }
        other => Box::new(std::iter::once(other.clone())),
    }
}

/// The payload of a frame.
pub fn encode(change: &Change<'_>) -> Vec<u8> {
    let (kind, data) = match change {
        Change::Write { data, .. } => (1, &data[..]),
        Change::Zeroes { space: Space::Keep, .. } => (2, &[][..]),
        Change::Zeroes { space: Space::May, .. } => (3, &[][..]),
        Change::Discard { .. } => (4, &[][..]),
    };
    let Extent { disk, bytes } = change.extent();
    let mut payload = Vec::with_capacity(HEAD_BYTES + data.len());
    payload.extend_from_slice(&[kind, 0]);
    payload.extend_from_slice(&disk.to_le_bytes());
    payload.extend_from_slice(&bytes.start.to_le_bytes());
    payload.extend_from_slice(&(bytes.end - bytes.start).to_le_bytes());
    payload.extend_from_slice(data);
    payload
}

/// The change in a payload.
pub(super) fn decode(payload: &[u8]) -> Result<Change<'_>, FrameError> {
    let malformed = |why: &str| FrameError::Malformed { kind: FrameType::Disk, why: why.into() };
    let (head, data) = payload.split_first_chunk::<HEAD_BYTES>().ok_or(malformed("it is too short"))?;
    let [kind, 0, disk_low, disk_high, place @ ..] = *head else {
        return Err(malformed("byte 1 is not zero"));
    };
    let disk = u16::from_le_bytes([disk_low, disk_high]);
    let word = |at: usize| (0..8).fold(0, |word, byte| word | u64::from(place[at + byte]) << (8 * byte));
    let (offset, length) = (word(0), word(8));
    let end = offset.checked_add(length).ok_or(malformed("its end is beyond every disk"))?;
    let extent = Extent { disk, bytes: offset..end };
    match kind {
        1 if length != data.len() as u64 || data.len() > DATA_BYTES_MAX => {
            Err(malformed("its data is not as long as it says"))
        }
        1 => Ok(Change::Write { disk, offset, data: Cow::Borrowed(data) }),
        _ if !data.is_empty() => Err(malformed("it has data that is none of a write")),
        2 => Ok(Change::Zeroes { extent, space: Space::Keep }),
        3 => Ok(Change::Zeroes { extent, space: Space::May }),
        4 => Ok(Change::Discard { extent }),
        _ => Err(malformed("it is of no known kind")),
    }
}
