//! What a chain asks of a disk. Everything in it is the guest's: a chain without a header or without a place for its
//! status breaks the rules, and any other request that cannot be is an error to the guest alone.

use crate::devices::virtio::Malformed;
use crate::devices::virtio::queue::Chain;
use crate::spec::SECTOR_BYTES;
use ft_ram::GuestMemory;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

/// type, reserved, sector.
pub(super) const HEADER_BYTES: usize = 16;
/// sector, number of sectors, flags.
const RANGE_BYTES: usize = 16;
const RANGE_UNMAP: u32 = 1;

/// The most that one request transfers.
pub(super) const TRANSFER_BYTES_MAX: u64 = super::SEGMENTS_MAX as u64 * super::SEGMENT_BYTES_MAX as u64;
/// The most sectors that one request zeroes or discards: they may have to be written.
pub(super) const ZEROES_SECTORS_MAX: u32 = 1 << 16;

/// What is done to a range of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskOperation {
    /// It is read.
    Read,
    /// It is written.
    Write,
    /// What was written is made durable.
    Flush,
    /// It is not needed any more. It reads as zeroes.
    Discard,
    /// It is zeroed.
    WriteZeroes {
        /// Its space may be given back.
        unmap: bool,
    },
}

/// A request that the disk can be asked for: whole sectors, within the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub operation: DiskOperation,
    pub offset: u64,
    pub bytes: u64,
}

impl Request {
    pub(super) fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.bytes)
    }

    /// Whether the image is another one afterwards.
    pub(super) fn is_change(&self) -> bool {
        !matches!(self.operation, DiskOperation::Read | DiskOperation::Flush)
    }

    /// Whether the order of the two matters.
    pub(super) fn conflicts(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.range(), other.range());
        let overlap = ours.start.max(theirs.start) < ours.end.min(theirs.end);
        overlap && (self.is_change() || other.is_change())
    }

    /// Bytes that go from or to the guest.
    pub(super) fn transfer_bytes(&self) -> u64 {
        match self.operation {
            DiskOperation::Read | DiskOperation::Write => self.bytes,
            DiskOperation::Flush | DiskOperation::Discard | DiskOperation::WriteZeroes { .. } => 0,
        }
    }
}

/// What a disk allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub bytes: u64,
    pub writable: bool,
}

impl Limits {
    /// The request, if it lies within the disk.
    pub(super) fn within(&self, operation: DiskOperation, sector: u64, bytes: u64) -> Option<Request> {
        let offset = sector.checked_mul(SECTOR_BYTES)?;
        let inside = offset.checked_add(bytes)? <= self.bytes;
        (inside && bytes.is_multiple_of(SECTOR_BYTES)).then_some(Request { operation, offset, bytes })
    }
}

/// What a chain asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Something of the image.
    Io(Request),
    /// The disk's name.
    Id,
    /// What is answered by this status.
    Refused(u32),
}

/// Reads the request in a chain.
pub(super) fn parse(chain: &Chain, memory: &GuestMemory, limits: Limits) -> Result<Asked, Malformed> {
    let shape = Malformed::Shape { head: chain.head };
    // The status byte is the last writable one, the header the first readable 16.
    let room = chain.writable_bytes().checked_sub(1).ok_or(shape)?;
    let payload = chain.readable_bytes().checked_sub(HEADER_BYTES as u64).ok_or(shape)?;
    if payload > TRANSFER_BYTES_MAX {
        return Err(shape);
    }
    let mut header = [0; HEADER_BYTES];
    chain.read_at(memory, 0, &mut header)?;
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let transfer = |operation, bytes| {
        let request = limits.within(operation, sector, bytes).filter(|_| bytes <= TRANSFER_BYTES_MAX);
        request.map_or(Asked::Refused(VIRTIO_BLK_S_IOERR), Asked::Io)
    };
    Ok(match u32::from_le_bytes([t0, t1, t2, t3]) {
        VIRTIO_BLK_T_IN => transfer(DiskOperation::Read, room),
        VIRTIO_BLK_T_OUT if limits.writable => transfer(DiskOperation::Write, payload),
        VIRTIO_BLK_T_OUT => Asked::Refused(VIRTIO_BLK_S_IOERR),
        VIRTIO_BLK_T_FLUSH => Asked::Io(Request { operation: DiskOperation::Flush, offset: 0, bytes: 0 }),
        VIRTIO_BLK_T_GET_ID => Asked::Id,
        kind @ (VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES) if limits.writable => {
            range(chain, memory, limits, kind, payload)?
        }
        _ => Asked::Refused(VIRTIO_BLK_S_UNSUPP),
    })
}

/// Reads the one range that a discard or a request for zeroes may name (virtio 1.2 §5.2.6).
fn range(
    chain: &Chain,
    memory: &GuestMemory,
    limits: Limits,
    kind: u32,
    payload: u64,
) -> Result<Asked, Malformed> {
    if payload != RANGE_BYTES as u64 {
        return Ok(Asked::Refused(VIRTIO_BLK_S_IOERR));
    }
    let mut range = [0; RANGE_BYTES];
    chain.read_at(memory, HEADER_BYTES as u64, &mut range)?;
    let [sector @ .., n0, n1, n2, n3, f0, f1, f2, f3] = range;
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes([f0, f1, f2, f3]);
    let (operation, known) = match kind {
        VIRTIO_BLK_T_DISCARD => (DiskOperation::Discard, 0),
        _ => (DiskOperation::WriteZeroes { unmap: flags & RANGE_UNMAP != 0 }, RANGE_UNMAP),
    };
    if flags & !known != 0 {
        return Ok(Asked::Refused(VIRTIO_BLK_S_UNSUPP));
    }
    let bytes = u64::from(sectors) * SECTOR_BYTES;
    let request = limits.within(operation, u64::from_le_bytes(sector), bytes);
    let request = request.filter(|_| sectors <= ZEROES_SECTORS_MAX);
    Ok(request.map_or(Asked::Refused(VIRTIO_BLK_S_IOERR), Asked::Io))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::queue::Buffer;
    use ft_ram::GuestRam;
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    const RAM_BYTES: u64 = 16 << 20;
    const LIMITS: Limits = Limits { bytes: 1 << 20, writable: true };

    fn chain(readable: &[(u64, usize)], writable: &[(u64, usize)]) -> Chain {
        let buffers = |of: &[(u64, usize)]| {
            of.iter().map(|&(at, bytes)| Buffer { address: GuestAddress(at), bytes }).collect()
        };
        Chain { head: 5, readable: buffers(readable), writable: buffers(writable) }
    }

    /// A request whose header and payload are `content`, in buffers of these sizes.
    fn parsed(content: &[u8], cuts: &[usize], room: usize, limits: Limits) -> Result<Asked, Malformed> {
        let ram = GuestRam::new(RAM_BYTES).unwrap();
        ram.memory().write_slice(content, GuestAddress(4096)).unwrap();
        let mut readable = Vec::new();
        let mut at = 0;
        for &cut in cuts.iter().chain([&content.len()]) {
            let now = cut.min(content.len() - at);
            readable.push((4096 + at as u64, now));
            at += now;
        }
        parse(&chain(&readable, &[(8 << 20, room)]), ram.memory(), limits)
    }

    fn header(kind: u32, sector: u64) -> Vec<u8> {
        [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
    }

    fn ranges(kind: u32, of: &[(u64, u32, u32)]) -> Vec<u8> {
        let mut content = header(kind, 0);
        for (sector, sectors, flags) in of {
            content.extend(sector.to_le_bytes());
            content.extend(sectors.to_le_bytes());
            content.extend(flags.to_le_bytes());
        }
        content
    }

    #[test]
    fn ranges_are_those_of_the_specification() {
        use DiskOperation::{Discard, WriteZeroes};
        let asked = |kind, of: &[(u64, u32, u32)]| parsed(&ranges(kind, of), &[], 1, LIMITS).unwrap();
        let io = |operation, offset, bytes| Asked::Io(Request { operation, offset, bytes });
        let (discard, zeroes) = (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES);
        assert_eq!(asked(discard, &[(8, 16, 0)]), io(Discard, 4096, 8192));
        assert_eq!(asked(zeroes, &[(8, 16, 0)]), io(WriteZeroes { unmap: false }, 4096, 8192));
        assert_eq!(asked(zeroes, &[(2047, 1, 1)]), io(WriteZeroes { unmap: true }, (1 << 20) - 512, 512));
        let (ioerr, unsupp) = (Asked::Refused(VIRTIO_BLK_S_IOERR), Asked::Refused(VIRTIO_BLK_S_UNSUPP));
        assert_eq!(asked(discard, &[(8, 16, 1)]), unsupp, "a discard has no flags");
        assert_eq!(asked(zeroes, &[(8, 16, 2)]), unsupp, "a flag that is not known");
        assert_eq!(asked(discard, &[(2047, 2, 0)]), ioerr, "beyond the end");
        assert_eq!(asked(discard, &[(u64::MAX, 1, 0)]), ioerr);
        assert_eq!(asked(discard, &[(0, 8, 0), (16, 8, 0)]), ioerr, "two ranges");
        assert_eq!(asked(discard, &[]), ioerr);
        let large = Limits { bytes: 1 << 40, ..LIMITS };
        let many = |kind, sectors| parsed(&ranges(kind, &[(0, sectors, 0)]), &[], 1, large).unwrap();
        for kind in [discard, zeroes] {
            assert_eq!(many(kind, ZEROES_SECTORS_MAX + 1), ioerr);
            assert!(matches!(many(kind, ZEROES_SECTORS_MAX), Asked::Io(_)));
        }
        let read_only = Limits { writable: false, ..LIMITS };
        assert_eq!(parsed(&ranges(discard, &[(8, 16, 0)]), &[], 1, read_only).unwrap(), unsupp);
        assert_eq!(parsed(&header(VIRTIO_BLK_T_OUT, 0), &[], 1, read_only).unwrap(), ioerr);
    }

    #[test]
    fn a_header_may_be_cut_anywhere() {
        let mut content = header(VIRTIO_BLK_T_OUT, 3);
        content.extend([7; 1024]);
        for cut in 0..16 {
            let asked = parsed(&content, &[cut, 0, 1, 600], 1, LIMITS).unwrap();
            assert_eq!(
                asked,
                Asked::Io(Request { operation: DiskOperation::Write, offset: 1536, bytes: 1024 })
            );
        }
    }

    proptest! {
        /// Whatever a guest writes: what is accepted is whole sectors within the disk, and fits the chain.
        #[test]
        fn whatever_is_asked_lies_within_the_disk_and_the_chain(
            kind in prop_oneof![4 => 0u32..16, 1 => any::<u32>()],
            sector in prop_oneof![4 => 0u64..2050, 1 => any::<u64>()],
            payload in prop::collection::vec(any::<u8>(), 0..2048),
            whole in any::<bool>(),
            room in 0usize..3000,
            cuts in prop::collection::vec(0usize..40, 0..4),
            short in prop::option::weighted(0.1, 0usize..16),
            writable in any::<bool>(),
        ) {
            let mut content = header(kind, sector);
            content.extend(&payload);
            if whole {
                content.truncate(16 + payload.len() / 512 * 512);
            }
            content.truncate(short.unwrap_or(content.len()));
            let limits = Limits { writable, ..LIMITS };
            match parsed(&content, &cuts, room, limits) {
                Err(malformed) => {
                    prop_assert_eq!(malformed, Malformed::Shape { head: 5 });
                    prop_assert!(room == 0 || content.len() < 16);
                }
                Ok(Asked::Io(request)) => {
                    prop_assert!(request.range().end <= limits.bytes);
                    prop_assert!(request.offset % 512 == 0 && request.bytes % 512 == 0);
                    prop_assert!(writable || !request.is_change());
                    let (chain, moved) = match request.operation {
                        DiskOperation::Read => (room - 1, request.bytes),
                        DiskOperation::Write => (content.len() - 16, request.bytes),
                        _ => (0, request.transfer_bytes()),
                    };
                    prop_assert_eq!(chain as u64, moved);
                }
                Ok(Asked::Id) => prop_assert_eq!(kind, VIRTIO_BLK_T_GET_ID),
                Ok(Asked::Refused(status)) => prop_assert!([VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP].contains(&status)),
            }
        }

        /// Two requests may pass each other only where neither sees the other's change.
        #[test]
        fn requests_conflict_where_one_changes_what_the_other_touches(
            a in (0u64..20, 0u64..8, any::<bool>()),
            b in (0u64..20, 0u64..8, any::<bool>()),
        ) {
            let request = |(sector, sectors, change): (u64, u64, bool)| Request {
                operation: if change { DiskOperation::Write } else { DiskOperation::Read },
                offset: sector * 512,
                bytes: sectors * 512,
            };
            let common = (a.0..a.0 + a.1).any(|sector| (b.0..b.0 + b.1).contains(&sector));
            let conflict = common && (a.2 || b.2);
            prop_assert_eq!(request(a).conflicts(&request(b)), conflict);
            prop_assert_eq!(request(b).conflicts(&request(a)), conflict);
        }
    }
}
