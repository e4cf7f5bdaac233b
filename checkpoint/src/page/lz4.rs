//! lz4 blocks of single pages. Compression is tried only where a sample of the page looks compressible.

use super::Page;
use ft_ram::layout::PAGE_SIZE;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

/// A block must save at least this much to be worth the decoder's time.
const SAVING_MIN: usize = PAGE_SIZE / 16;

pub(super) struct Compressor {
    table: CompressTable,
    block: Vec<u8>,
}

impl Compressor {
    pub(super) fn new() -> Self {
        Self { table: CompressTable::small(), block: vec![0; get_maximum_output_size(PAGE_SIZE)] }
    }

    /// The page's block, or none if it is not worth it.
    pub(super) fn compress(&mut self, page: &Page) -> Option<&[u8]> {
        if looks_random(page) {
            return None;
        }
        let length = compress_into_with_table(page, &mut self.block, &mut self.table).ok()?;
        (length <= PAGE_SIZE - SAVING_MIN).then(|| &self.block[..length])
    }
}

pub(super) fn decompress(block: &[u8], page: &mut Page) -> Result<(), String> {
    match decompress_into(block, page) {
        Ok(PAGE_SIZE) => Ok(()),
        Ok(length) => Err(format!("decodes to {length} bytes")),
        Err(e) => Err(e.to_string()),
    }
}

/// Whether 256 bytes, 16 from each of 16 places, have about as many different values as random ones would (162 are
/// expected, with a deviation of 6): text has about 50, machine code about 100, pointers and integers fewer. A page of
/// repeated random bytes is misjudged, and then sent raw: a loss of bandwidth, not of anything else.
fn looks_random(page: &Page) -> bool {
    let mut seen = [0_u64; 4];
    for place in page.chunks_exact(PAGE_SIZE / 16) {
        for &byte in &place[..16] {
            seen[usize::from(byte >> 6)] |= 1 << (byte & 63);
        }
    }
    seen.iter().map(|word| word.count_ones()).sum::<u32>() > 140
}
