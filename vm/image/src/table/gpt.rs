//! GUID partition table (UEFI specification, chapter 5.3).

use super::{GptFault, PartitionTableError, SECTOR, Scheme, Slice, range};
use crate::disk::Part;
use crate::disk::number::{u16_le, u32_le, u64_le};
use crc::{CRC_32_ISO_HDLC, Crc};

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
const SIGNATURE: &[u8] = b"EFI PART";
const ENTRIES_MAX: u32 = 1024;
/// The type of the MBR's partition that keeps others from the disk.
const PROTECTIVE: u8 = 0xee;

/// Whether the disk is to have a GPT: its MBR says so, or its second sector does.
pub(super) fn is_likely(disk: &Part, first: &[u8; 512]) -> bool {
    let says_so = u16_le(first, 510) == 0xaa55 && (0..4).any(|i| first[446 + 16 * i + 4] == PROTECTIVE);
    says_so || disk.array::<8>(SECTOR).is_ok_and(|magic| magic == SIGNATURE)
}

pub(super) fn read(disk: &Part) -> Result<Vec<Slice>, PartitionTableError> {
    let entries = match copy(disk, 1) {
        Ok(entries) => entries,
        Err(primary) => {
            let last = (disk.bytes() / SECTOR).saturating_sub(1);
            copy(disk, last).map_err(|backup| PartitionTableError::Gpt { primary, backup })?
        }
    };
    let mut slices = Vec::new();
    for (number, entry) in (1..).zip(entries).filter(|(_, entry)| entry[..16] != [0; 16]) {
        let range = range(disk, number, u64_le(&entry, 32), u64_le(&entry, 40))?;
        let uuid = Some(guid(&entry[16..32]));
        slices.push(Slice { scheme: Scheme::Gpt, number, range, uuid });
    }
    Ok(slices)
}

/// The entries of the copy whose header is in this sector.
fn copy(disk: &Part, sector: u64) -> Result<Vec<Vec<u8>>, GptFault> {
    let header = disk.array::<512>(sector * SECTOR)?;
    if &header[..8] != SIGNATURE {
        return Err(GptFault::Magic(sector));
    }
    let header_bytes = u32_le(&header, 12) as usize;
    if !(92..=512).contains(&header_bytes) {
        return Err(GptFault::Size("the size", header_bytes as u64));
    }
    let mut unsigned = header;
    unsigned[16..20].fill(0);
    if CRC.checksum(&unsigned[..header_bytes]) != u32_le(&header, 16) {
        return Err(GptFault::Checksum("header"));
    }
    let (at, count, bytes) = (u64_le(&header, 72), u32_le(&header, 80), u32_le(&header, 84));
    if count > ENTRIES_MAX {
        return Err(GptFault::Size("the number of entries", count.into()));
    }
    if !(128..=4096).contains(&bytes) || !bytes.is_power_of_two() {
        return Err(GptFault::Size("the size of an entry", bytes.into()));
    }
    let mut entries = vec![0; (count * bytes) as usize];
    disk.read(at.checked_mul(SECTOR).ok_or(GptFault::Size("the place of the entries", at))?, &mut entries)?;
    match CRC.checksum(&entries) == u32_le(&header, 88) {
        true => Ok(entries.chunks(bytes as usize).map(<[u8]>::to_vec).collect()),
        false => Err(GptFault::Checksum("entries")),
    }
}

/// As Linux and `blkid` write it.
fn guid(bytes: &[u8]) -> String {
    let tail: String = bytes[10..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let (a, b, c) = (u32_le(bytes, 0), u16_le(bytes, 4), u16_le(bytes, 6));
    format!("{a:08x}-{b:04x}-{c:04x}-{:02x}{:02x}-{tail}", bytes[8], bytes[9])
}
