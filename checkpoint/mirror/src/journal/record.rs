//! One record of the ring, little-endian:
//!
//! ```text
//!  0 "FTJR"   4 kind u8   5 zero   6 disk u16   8 session u64   16 sequence u64   24 a u64   32 b u64
//! 40 payload bytes u32   44 crc32c u32 over bytes 0..44 and the payload   48 payload, padded to 8 bytes
//! ```
//!
//! `a` and `b` are offset and length of a change, pairing and epoch of a seal; `a` is the sequence number of a mark.

use super::SealedEpoch;
use crate::change::{Change, Extent, Space};
use std::borrow::Cow;

pub(super) const HEAD_BYTES: usize = 48;
const MAGIC: [u8; 4] = *b"FTJR";
/// The most bytes that one record carries.
pub(super) const PAYLOAD_BYTES_MAX: usize = 16 << 20;

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry<'a> {
    Change(Change<'a>),
    /// What stands before it, back to the seal before it, is a checkpoint's.
    Seal(SealedEpoch),
    /// Everything up to this sequence number was made durable before this was written.
    Durable(u64),
}

/// The place of a record in the order of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) session: u64,
    pub(super) sequence: u64,
}

/// The head of a record, whose payload has not been looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    bytes: [u8; HEAD_BYTES],
    pub(super) place: Place,
    pub(super) payload_bytes: usize,
}

fn u64_at(bytes: &[u8; HEAD_BYTES], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn u32_at(bytes: &[u8; HEAD_BYTES], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// Bytes that a record with such a payload takes in the ring.
pub(super) fn span(payload_bytes: usize) -> u64 {
    (HEAD_BYTES + payload_bytes.next_multiple_of(8)) as u64
}

impl Entry<'_> {
    pub(super) fn payload(&self) -> &[u8] {
        match self {
            Self::Change(Change::Write { data, .. }) => data,
            _ => &[],
        }
    }

    /// Its head and payload.
    pub(super) fn encode(&self, place: Place) -> ([u8; HEAD_BYTES], &[u8]) {
        let (kind, disk, a, b) = match self {
            Self::Change(Change::Write { disk, offset, data }) => (1, *disk, *offset, data.len() as u64),
            Self::Change(Change::Zeroes { extent, space }) => {
                let kind = match space {
                    Space::Keep => 2,
                    Space::May => 3,
                };
                (kind, extent.disk, extent.bytes.start, extent.bytes.end - extent.bytes.start)
            }
            Self::Change(Change::Discard { extent }) => {
                (4, extent.disk, extent.bytes.start, extent.bytes.end - extent.bytes.start)
            }
            Self::Seal(SealedEpoch { pairing, epoch }) => (5, 0, *pairing, *epoch),
            Self::Durable(sequence) => (6, 0, *sequence, 0),
        };
        let payload = self.payload();
        let mut head = [0; HEAD_BYTES];
        head[..4].copy_from_slice(&MAGIC);
        head[4] = kind;
        head[6..8].copy_from_slice(&disk.to_le_bytes());
        head[8..16].copy_from_slice(&place.session.to_le_bytes());
        head[16..24].copy_from_slice(&place.sequence.to_le_bytes());
        head[24..32].copy_from_slice(&a.to_le_bytes());
        head[32..40].copy_from_slice(&b.to_le_bytes());
        head[40..44].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..44]), payload);
        head[44..].copy_from_slice(&crc.to_le_bytes());
        (head, payload)
    }
}

impl Head {
    /// None: it is no record's.
    pub(super) fn parse(bytes: [u8; HEAD_BYTES]) -> Option<Self> {
        let payload_bytes = u32_at(&bytes, 40) as usize;
        if bytes[..4] != MAGIC || payload_bytes > PAYLOAD_BYTES_MAX {
            return None;
        }
        let place = Place { session: u64_at(&bytes, 8), sequence: u64_at(&bytes, 16) };
        Some(Self { bytes, place, payload_bytes })
    }

    /// The record, if it is whole.
    pub(super) fn decode(&self, payload: Vec<u8>) -> Option<Entry<'static>> {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&self.bytes[..44]), &payload);
        if crc != u32_at(&self.bytes, 44) || self.bytes[5] != 0 {
            return None;
        }
        let disk = u16::from_le_bytes([self.bytes[6], self.bytes[7]]);
        let (a, b) = (u64_at(&self.bytes, 24), u64_at(&self.bytes, 32));
        let extent = || Some(Extent { disk, bytes: a..a.checked_add(b)? });
        Some(match self.bytes[4] {
            1 if b == payload.len() as u64 && a.checked_add(b).is_some() => {
                Entry::Change(Change::Write { disk, offset: a, data: Cow::Owned(payload) })
            }
            2 => Entry::Change(Change::Zeroes { extent: extent()?, space: Space::Keep }),
            3 => Entry::Change(Change::Zeroes { extent: extent()?, space: Space::May }),
            4 => Entry::Change(Change::Discard { extent: extent()? }),
            5 => Entry::Seal(SealedEpoch { pairing: a, epoch: b }),
            6 => Entry::Durable(a),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entries() -> impl Strategy<Value = Entry<'static>> {
        let extent = (any::<u16>(), 0..1_u64 << 40, 0..1_u64 << 40)
            .prop_map(|(disk, start, bytes)| Extent { disk, bytes: start..start + bytes });
        prop_oneof![
            (any::<u16>(), 0..1_u64 << 40, prop::collection::vec(any::<u8>(), 0..100)).prop_map(
                |(disk, offset, data)| Entry::Change(Change::Write { disk, offset, data: Cow::Owned(data) })
            ),
            extent.clone().prop_map(|extent| Entry::Change(Change::Zeroes { extent, space: Space::May })),
            extent.prop_map(|extent| Entry::Change(Change::Discard { extent })),
            any::<(u64, u64)>().prop_map(|(pairing, epoch)| Entry::Seal(SealedEpoch { pairing, epoch })),
            any::<u64>().prop_map(Entry::Durable),
        ]
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written_and_no_byte_of_it_may_differ(
            entry in entries(),
            session: u64,
            sequence: u64,
            flip in any::<prop::sample::Index>(),
            bit in 0..8_u8,
        ) {
            let place = Place { session, sequence };
            let (head, payload) = entry.encode(place);
            let parsed = Head::parse(head).unwrap();
            prop_assert_eq!(parsed.place, place);
            prop_assert_eq!(parsed.decode(payload.to_vec()), Some(entry.clone()));
            let mut bytes = [&head[..], payload].concat();
            let at = flip.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let mut head = [0; HEAD_BYTES];
            head.copy_from_slice(&bytes[..HEAD_BYTES]);
            let read = Head::parse(head).and_then(|head| head.decode(bytes[HEAD_BYTES..].to_vec()));
            prop_assert_eq!(read, None);
        }

        #[test]
        fn no_bytes_make_it_panic(head: [u8; 32], rest: [u8; 16], payload: Vec<u8>) {
            let mut bytes = [0; HEAD_BYTES];
            bytes[..32].copy_from_slice(&head);
            bytes[32..].copy_from_slice(&rest);
            bytes[..4].copy_from_slice(&MAGIC);
            if let Some(head) = Head::parse(bytes) {
                let _ = head.decode(payload);
            }
        }
    }
}
