//! The configuration space (virtio 1.2 §5.2.4). It depends on the machine's specification alone: both hosts' guests see
//! the same.

use super::request::ZEROES_SECTORS_MAX;
use super::{SEGMENT_BYTES_MAX, SEGMENTS_MAX};
use crate::spec::SECTOR_BYTES;

/// Up to and with what concerns zeroes.
pub(super) const BYTES: usize = 60;

pub(super) fn space(bytes: u64, writable: bool) -> [u8; BYTES] {
    let mut space = [0; BYTES];
    let mut put = |at: usize, value: &[u8]| space[at..at + value.len()].copy_from_slice(value);
    put(0, &(bytes / SECTOR_BYTES).to_le_bytes());
    put(8, &SEGMENT_BYTES_MAX.to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes());
    if writable {
        // Discards, then zeroes: sectors and ranges in one request. A discard may begin at any sector.
        for at in [36, 48] {
            put(at, &ZEROES_SECTORS_MAX.to_le_bytes());
            put(at + 4, &1u32.to_le_bytes());
        }
        put(44, &1u32.to_le_bytes());
        // Zeroes may give space back.
        put(56, &[1]);
    }
    space
}
