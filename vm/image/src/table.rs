//! Partition tables: GPT, MBR with logical partitions, or none at all.

mod gpt;
mod mbr;

use crate::disk::Part;
use std::io;
use std::ops::Range;

/// The unit of both tables: that of a virtio disk.
const SECTOR: u64 = 512;

/// Why a partition table is refused.
#[derive(Debug, thiserror::Error)]
pub enum PartitionTableError {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Neither copy of a GPT is whole.
    #[error("the GPT is broken, and so is its backup at the end of the disk: {primary}; {backup}")]
    Gpt {
        /// What is wrong with the first.
        primary: GptFault,
        /// What is wrong with the other.
        backup: GptFault,
    },
    /// A partition does not lie in the disk.
    #[error("partition {number} is out of bounds: sectors {first} to {last} of a disk that has {sectors}")]
    OutOfBounds {
        /// Its number.
        number: u32,
        /// Its first sector.
        first: u64,
        /// Its last sector.
        last: u64,
        /// Sectors of the disk.
        sectors: u64,
    },
    /// Two partitions share sectors.
    #[error("partitions {0} and {1} overlap")]
    Overlap(u32, u32),
    /// The chain of logical partitions leads back to where it was, or is too long.
    #[error("the chain of logical partitions does not end")]
    Chain,
}

/// What is wrong with one copy of a GPT.
#[derive(Debug, thiserror::Error)]
pub enum GptFault {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Its first bytes are others.
    #[error("no header in sector {0}")]
    Magic(u64),
    /// A size is none that it may have.
    #[error("{0} of its header is {1}")]
    Size(&'static str, u64),
    /// Its content is another than its checksum says.
    #[error("the checksum of its {0} is wrong")]
    Checksum(&'static str),
}

/// Which table there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Gpt,
    Mbr,
    /// The file system begins with the disk.
    Bare,
}

/// A partition; the whole disk where there is no table.
#[derive(Clone, Debug)]
pub(crate) struct Slice {
    pub(crate) scheme: Scheme,
    /// From 1; 0 is the whole disk.
    pub(crate) number: u32,
    /// In bytes of the disk.
    pub(crate) range: Range<u64>,
    /// As `root=PARTUUID=` takes it.
    pub(crate) uuid: Option<String>,
}

impl std::fmt::Display for Slice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.number {
            0 => f.write_str("the whole disk"),
            number => write!(f, "partition {number}"),
        }
    }
}

/// The partitions of a disk, in the order of their numbers.
pub(crate) fn read(disk: &Part) -> Result<Vec<Slice>, PartitionTableError> {
    let bare = Slice { scheme: Scheme::Bare, number: 0, range: 0..disk.bytes(), uuid: None };
    let Ok(first) = disk.array::<512>(0) else { return Ok(vec![bare]) };
    let mut slices = match gpt::is_likely(disk, &first) {
        true => gpt::read(disk)?,
        false => mbr::read(disk, &first)?,
    };
    if slices.is_empty() {
        slices.push(bare);
    }
    slices.sort_by_key(|slice| slice.number);
    no_two_overlap(&slices)?;
    Ok(slices)
}

fn no_two_overlap(slices: &[Slice]) -> Result<(), PartitionTableError> {
    let mut by_place: Vec<&Slice> = slices.iter().collect();
    by_place.sort_by_key(|slice| slice.range.start);
    match by_place.windows(2).find(|pair| pair[0].range.end > pair[1].range.start) {
        Some(pair) => Err(PartitionTableError::Overlap(pair[0].number, pair[1].number)),
        None => Ok(()),
    }
}

/// The bytes of these sectors, the last one among them.
fn range(disk: &Part, number: u32, first: u64, last: u64) -> Result<Range<u64>, PartitionTableError> {
    let sectors = disk.bytes() / SECTOR;
    match first <= last && last < sectors && first > 0 {
        true => Ok(first * SECTOR..(last + 1) * SECTOR),
        false => Err(PartitionTableError::OutOfBounds { number, first, last, sectors }),
    }
}

#[cfg(test)]
mod tests;
