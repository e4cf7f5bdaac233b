//! The partition table of the PC: four entries in the first sector, and a chain of logical partitions in one of them.

use super::{PartitionTableError, SECTOR, Scheme, Slice, range};
use crate::disk::Part;
use crate::disk::number::{u16_le, u32_le};

const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// Links of the chain of logical partitions at most.
const CHAIN_MAX: u32 = 128;

struct Entry {
    kind: u8,
    first: u64,
    sectors: u64,
}

/// The entries that a sector has; none if it is no table.
fn entries(sector: &[u8; 512]) -> Option<[Entry; 4]> {
    let is_table = u16_le(sector, 510) == 0xaa55 && (0..4).all(|i| sector[446 + 16 * i] & 0x7f == 0);
    is_table.then(|| {
        std::array::from_fn(|i| {
            let entry = &sector[446 + 16 * i..][..16];
            Entry { kind: entry[4], first: u32_le(entry, 8).into(), sectors: u32_le(entry, 12).into() }
        })
    })
}

pub(super) fn read(disk: &Part, first: &[u8; 512]) -> Result<Vec<Slice>, PartitionTableError> {
    // A file system that begins here may have what looks like a table in its boot code.
    if crate::volume::is_vfat(first) {
        return Ok(Vec::new());
    }
    let Some(primary) = entries(first) else { return Ok(Vec::new()) };
    let slice = |number: u32, start: u64, entry: &Entry| {
        let first_sector = start.saturating_add(entry.first);
        Ok::<_, PartitionTableError>(Slice {
            scheme: Scheme::Mbr,
            number,
            range: range(disk, number, first_sector, first_sector + entry.sectors - 1)?,
            uuid: Some(format!("{:08x}-{number:02x}", u32_le(first, 440))),
        })
    };
    let mut slices = Vec::new();
    let mut logical = 5;
    for (number, entry) in (1..).zip(&primary).filter(|(_, entry)| entry.kind != 0 && entry.sectors != 0) {
        if !EXTENDED.contains(&entry.kind) {
            slices.push(slice(number, 0, entry)?);
            continue;
        }
        let (base, mut at) = (entry.first, entry.first);
        for link in 0.. {
            if link == CHAIN_MAX {
                return Err(PartitionTableError::Chain);
            }
            let sector = disk.array(at * SECTOR)?;
            let Some(chain) = entries(&sector) else { break };
            if chain[0].kind != 0 && chain[0].sectors != 0 {
                slices.push(slice(logical, at, &chain[0])?);
                logical += 1;
            }
            if !EXTENDED.contains(&chain[1].kind) || chain[1].first == 0 {
                break;
            }
            at = base + chain[1].first;
        }
    }
    Ok(slices)
}
