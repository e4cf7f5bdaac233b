//! Whether the tables of a qcow2 file can be true: each cluster that is used lies in the file, is used once, and is
//! counted as used. There are no checksums in such a file, so this is what there is to tell damage by. All of the
//! mapping and one refcount for each cluster in use are read.

use super::Qcow2Error;
use super::header::Header;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Of an entry of either table: where the cluster is.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Of an entry of either table: the cluster's refcount is one.
const COPIED: u64 = 1 << 63;
/// Of an entry of the second table.
const COMPRESSED: u64 = 1 << 62;
const ZEROES: u64 = 1;
/// Compressed clusters are measured in these.
const SECTOR_BYTES: u64 = 512;

/// See the module.
pub(super) fn audit(file: &File, file_bytes: u64, header: &Header) -> Result<(), Qcow2Error> {
    let table = read_longs(file, header.refcount_table_offset, header.refcount_table_bytes)?;
    let mut audit = Audit { file, file_bytes, header, refcount_blocks: &table, seen: Seen::default() };
    // All of them are where they can be before a count is read out of one.
    let blocks = || table.iter().filter(|block| **block != 0);
    blocks().try_for_each(|block| audit.is_inside(*block, header.cluster_bytes()))?;
    audit.own(0, header.cluster_bytes())?;
    audit.own(header.refcount_table_offset, header.refcount_table_bytes)?;
    blocks().try_for_each(|block| audit.own(*block, header.cluster_bytes()))?;
    audit.own(header.l1_offset, header.l1_entries * 8)?;
    let l1 = read_longs(file, header.l1_offset, header.l1_entries * 8)?;
    for (at, entry) in (0..).zip(l1).filter(|(_, entry)| *entry != 0) {
        if entry & !(OFFSET | COPIED) != 0 || entry & OFFSET == 0 {
            return damaged(format!("entry {at} of its first table is none"));
        }
        audit.own(entry & OFFSET, header.cluster_bytes())?;
        audit.second_table(entry & OFFSET)?;
    }
    Ok(())
}

struct Audit<'a> {
    file: &'a File,
    file_bytes: u64,
    header: &'a Header,
    refcount_blocks: &'a [u64],
    seen: Seen,
}

impl Audit<'_> {
    fn second_table(&mut self, offset: u64) -> Result<(), Qcow2Error> {
        let zeroes = if self.header.version == 2 { 0 } else { ZEROES };
        for entry in read_longs(self.file, offset, self.header.cluster_bytes())? {
            if entry & COMPRESSED != 0 {
                self.compressed(entry)?;
                continue;
            }
            let cluster = entry & OFFSET;
            if entry & !(OFFSET | COPIED | zeroes) != 0 || (cluster == 0 && entry & COPIED != 0) {
                return damaged(format!(
                    "the second table at {offset} has an entry that is none: {entry:#x}"
                ));
            }
            // What reads as zeroes need not be there, even if it has a place.
            match (cluster, entry & zeroes) {
                (0, _) => {}
                (_, 0) => self.own(cluster, self.header.cluster_bytes())?,
                _ => self.count(cluster, self.header.cluster_bytes())?,
            }
        }
        Ok(())
    }

    /// Compressed clusters share those of the file. The last one may end with the file, in the middle of a sector.
    fn compressed(&mut self, entry: u64) -> Result<(), Qcow2Error> {
        let bits = 62 - (self.header.cluster_bits - 8);
        let offset = entry & ((1 << bits) - 1);
        let sectors = (entry & !(COPIED | COMPRESSED)) >> bits;
        let end = (offset / SECTOR_BYTES + 1 + sectors) * SECTOR_BYTES;
        if entry & COPIED != 0 || offset == 0 || end >= self.file_bytes + SECTOR_BYTES {
            return damaged(format!("a compressed cluster at {offset} is where none can be, or it was cut"));
        }
        let start = offset - offset % self.header.cluster_bytes();
        self.each_counted(start, end - start)
    }

    /// Takes this part of the file for one use.
    fn own(&mut self, offset: u64, bytes: u64) -> Result<(), Qcow2Error> {
        self.is_inside(offset, bytes)?;
        self.count(offset, bytes)
    }

    fn is_inside(&self, offset: u64, bytes: u64) -> Result<(), Qcow2Error> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.file_bytes => Ok(()),
            _ => damaged(format!("a cluster of it would be at {offset}, beyond its end: it was cut")),
        }
    }

    fn count(&mut self, offset: u64, bytes: u64) -> Result<(), Qcow2Error> {
        let size = self.header.cluster_bytes();
        if !offset.is_multiple_of(size) {
            return damaged(format!("a cluster of it would be at {offset}, where none begins"));
        }
        for cluster in offset / size..(offset + bytes).div_ceil(size) {
            if !self.seen.insert(cluster) {
                return damaged(format!("its cluster at {} is used twice", cluster * size));
            }
        }
        self.each_counted(offset, bytes)
    }

    fn each_counted(&self, offset: u64, bytes: u64) -> Result<(), Qcow2Error> {
        let size = self.header.cluster_bytes();
        for cluster in offset / size..(offset + bytes).div_ceil(size) {
            if !self.is_counted(cluster)? {
                return damaged(format!("its cluster at {} is in use, and counted as free", cluster * size));
            }
        }
        Ok(())
    }

    /// Whether a cluster's refcount is more than none.
    fn is_counted(&self, cluster: u64) -> Result<bool, Qcow2Error> {
        let bits = 1 << self.header.refcount_order;
        let per_block = self.header.cluster_bytes() * 8 / bits;
        let block = usize::try_from(cluster / per_block).ok().and_then(|at| self.refcount_blocks.get(at));
        let Some(&block) = block.filter(|block| **block != 0) else { return Ok(false) };
        let first_bit = cluster % per_block * bits;
        let mut count = [0; 8];
        let count = &mut count[..bits.div_ceil(8) as usize];
        self.file.read_exact_at(count, block + first_bit / 8)?;
        // Refcounts of less than a byte: the lowest bits are the first one's.
        let mask = if bits < 8 { ((1 << bits) - 1) << (first_bit % 8) } else { 0xff };
        Ok(count.iter().any(|byte| byte & mask != 0))
    }
}

fn damaged<T>(what: String) -> Result<T, Qcow2Error> {
    Err(Qcow2Error::Damaged(what))
}

fn read_longs(file: &File, offset: u64, bytes: u64) -> Result<Vec<u64>, Qcow2Error> {
    let mut content = vec![0; bytes as usize];
    file.read_exact_at(&mut content, offset)?;
    let long = |bytes: &[u8]| bytes.iter().fold(0, |long, byte| long << 8 | u64::from(*byte));
    Ok(content.chunks_exact(8).map(long).collect())
}

/// A set of clusters, as bits in pages that are there once one of them is set.
#[derive(Default)]
struct Seen(BTreeMap<u64, Box<[u64; Self::WORDS]>>);

impl Seen {
    const WORDS: usize = 512;

    /// False: it was there.
    fn insert(&mut self, number: u64) -> bool {
        let per_page = Self::WORDS as u64 * 64;
        let page = self.0.entry(number / per_page).or_insert_with(|| Box::new([0; Self::WORDS]));
        let bit = number % per_page;
        let word = &mut page[bit as usize / 64];
        let was = *word >> (bit % 64) & 1;
        *word |= 1 << (bit % 64);
        was == 0
    }
}
