//! Page encodings: from a dirty page to its bytes on the wire, and back.
//!
//! A batch is a sequence of records: `page u32 LE, tag u16 LE (kind << 13 | body bytes), body`. The body of each kind:
//! zero and same: none; delta: the words that differ from the last sent copy (see `delta.rs`); lz4: an lz4 block; raw:
//! the page. A zero page is sent as zero. A page whose last sent copy is known and differs little is sent as same or
//! delta. Any other page takes the smallest of delta, lz4 (tried only where a sample looks compressible) and raw. In a
//! full copy alone, zero may have the body `pages u32 LE`: so many zero pages in a row, the first of them named.

mod delta;
mod lz4;

use ft_ram::PageIndex;
use ft_ram::layout::PAGE_SIZE;

/// The content of a page.
pub type Page = [u8; PAGE_SIZE];

/// The zero page.
pub static ZERO_PAGE: Page = [0; PAGE_SIZE];

/// Bytes of a record before its body.
pub const RECORD_BYTES: usize = 6;
/// Most bytes of a record.
pub const RECORD_MAX: usize = RECORD_BYTES + PAGE_SIZE;
/// A delta of at most this many bytes is taken without looking whether lz4 would do better.
const DELTA_GOOD: usize = 1024;

/// How a page is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// All bytes are zero.
    Zero = 0,
    /// As last sent.
    Same = 1,
    /// Words that differ from the last sent copy.
    Delta = 2,
    /// An lz4 block.
    Lz4 = 3,
    /// The bytes.
    Raw = 4,
}

impl Encoding {
    /// Number of encodings.
    pub const COUNT: usize = 5;
    /// Every encoding, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [Self::Zero, Self::Same, Self::Delta, Self::Lz4, Self::Raw];
}

/// Why a batch of records is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// The batch ends inside a record.
    #[error("the batch ends inside a record ({0} bytes left)")]
    Cut(usize),
    /// No such encoding.
    #[error("page {page}: encoding {kind} is unknown")]
    Unknown {
        /// The page.
        page: PageIndex,
        /// The number.
        kind: u16,
    },
    /// The body's length does not fit its encoding.
    #[error("page {page}: {bytes} bytes for {encoding:?}")]
    Length {
        /// The page.
        page: PageIndex,
        /// The encoding.
        encoding: Encoding,
        /// Its body's bytes.
        bytes: usize,
    },
    /// The body is not a delta.
    #[error("page {page}: malformed delta")]
    Delta {
        /// The page.
        page: PageIndex,
    },
    /// The body is not the lz4 block of a page.
    #[error("page {page}: malformed lz4 block: {why}")]
    Lz4 {
        /// The page.
        page: PageIndex,
        /// What the decoder says.
        why: String,
    },
    /// Same or delta of a page that was never sent.
    #[error("page {page}: {encoding:?} against a copy that was never sent")]
    NoBase {
        /// The page.
        page: PageIndex,
        /// The encoding.
        encoding: Encoding,
    },
}

/// Whether a page is zero. Stops at the first line that is not.
pub fn is_zero(page: &Page) -> bool {
    let (lines, _) = page.as_chunks::<64>();
    lines.iter().all(|line| *line == [0; 64])
}

/// Appends the record of so many zero pages, for a full copy.
pub(crate) fn zero_run(out: &mut Vec<u8>, first: PageIndex, pages: u32) {
    let count = pages.to_le_bytes();
    record(out, first, Encoding::Zero, if pages == 1 { &[] } else { &count });
}

/// Appends the record of a page that the decoder has already.
pub(crate) fn same(out: &mut Vec<u8>, page: PageIndex) {
    record(out, page, Encoding::Same, &[]);
}

/// Encodes pages; owns the scratch space and lz4's table, so that nothing is allocated per page.
pub struct PageCodec {
    lz4: lz4::Compressor,
    delta: delta::Scratch,
}

impl Default for PageCodec {
    fn default() -> Self {
        Self::new()
    }
}

impl PageCodec {
    /// A codec.
    pub fn new() -> Self {
        Self { lz4: lz4::Compressor::new(), delta: delta::Scratch::new() }
    }

    /// Appends the record of a page to `out`. With a `base` (the copy last sent, which must be what the decoder will
    /// have) it is brought up to the page on the way.
    pub fn encode(
        &mut self,
        index: PageIndex,
        page: &Page,
        base: Option<&mut Page>,
        out: &mut Vec<u8>,
    ) -> Encoding {
        let Some(base) = base else {
            if is_zero(page) {
                return record(out, index, Encoding::Zero, &[]);
            }
            return match self.lz4.compress(page) {
                Some(block) => record(out, index, Encoding::Lz4, block),
                None => record(out, index, Encoding::Raw, page),
            };
        };
        let changed = delta::changed_lines(page, base);
        if changed == 0 {
            return record(out, index, Encoding::Same, &[]);
        }
        if is_zero(page) {
            base.fill(0);
            return record(out, index, Encoding::Zero, &[]);
        }
        let delta = self.delta.encode(page, base, changed);
        if let Some(delta) = delta.filter(|delta| delta.len() <= DELTA_GOOD) {
            delta::patch_lines(page, base, changed);
            return record(out, index, Encoding::Delta, delta);
        }
        base.copy_from_slice(page);
        match (delta, self.lz4.compress(page)) {
            (Some(delta), Some(block)) if block.len() < delta.len() => {
                record(out, index, Encoding::Lz4, block)
            }
            (Some(delta), _) => record(out, index, Encoding::Delta, delta),
            (None, Some(block)) => record(out, index, Encoding::Lz4, block),
            (None, None) => record(out, index, Encoding::Raw, page),
        }
    }
}

fn record(out: &mut Vec<u8>, index: PageIndex, encoding: Encoding, body: &[u8]) -> Encoding {
    debug_assert!(body.len() <= PAGE_SIZE);
    let tag = (encoding as u16) << 13 | body.len() as u16;
    let [a, b, c, d] = index.to_le_bytes();
    let [e, f] = tag.to_le_bytes();
    out.extend_from_slice(&[a, b, c, d, e, f]);
    out.extend_from_slice(body);
    encoding
}

/// One page's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The page.
    pub page: PageIndex,
    /// How it is encoded.
    pub encoding: Encoding,
    body: &'a [u8],
}

impl Record<'_> {
    /// How many pages it is of, from [`Self::page`] on. More than one are all zero.
    pub fn pages(&self) -> u32 {
        match (self.encoding, <[u8; 4]>::try_from(self.body)) {
            (Encoding::Zero, Ok(count)) => u32::from_le_bytes(count),
            _ => 1,
        }
    }

    /// Whether decoding needs the copy last sent.
    pub fn needs_base(&self) -> bool {
        matches!(self.encoding, Encoding::Same | Encoding::Delta)
    }

    /// Decodes into `page`, which holds the copy last sent where [`Self::needs_base`] says so. After an error its
    /// content is of no use.
    pub fn decode(&self, page: &mut Page) -> Result<(), PageError> {
        match self.encoding {
            Encoding::Zero => page.fill(0),
            Encoding::Same => {}
            Encoding::Delta => {
                delta::apply(self.body, page).ok_or(PageError::Delta { page: self.page })?;
            }
            Encoding::Lz4 => {
                lz4::decompress(self.body, page).map_err(|why| PageError::Lz4 { page: self.page, why })?;
            }
            Encoding::Raw => page.copy_from_slice(self.body),
        }
        Ok(())
    }
}

/// The records of a batch, each checked for its form; the iteration ends after the first error.
pub struct Records<'a> {
    batch: &'a [u8],
    runs: Runs,
}

/// Whether a record may be of several pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runs {
    Refused,
    Allowed,
}

impl<'a> Records<'a> {
    /// Iterates over a batch in which each record is of one page.
    pub fn new(batch: &'a [u8]) -> Self {
        Self { batch, runs: Runs::Refused }
    }

    /// Iterates over a batch of a full copy, which may have runs of zero pages.
    pub fn of_copy(batch: &'a [u8]) -> Self {
        Self { batch, runs: Runs::Allowed }
    }

    fn parse(&mut self) -> Result<Record<'a>, PageError> {
        let cut = PageError::Cut(self.batch.len());
        let (head, rest) = self.batch.split_first_chunk::<RECORD_BYTES>().ok_or(cut.clone())?;
        let page = PageIndex::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let tag = u16::from_le_bytes([head[4], head[5]]);
        let (kind, bytes) = (tag >> 13, usize::from(tag & 0x1fff));
        let encoding = *Encoding::ALL.get(usize::from(kind)).ok_or(PageError::Unknown { page, kind })?;
        let fits = match encoding {
            Encoding::Zero => bytes == 0 || bytes == 4 && self.runs == Runs::Allowed,
            Encoding::Same => bytes == 0,
            Encoding::Delta | Encoding::Lz4 => (1..PAGE_SIZE).contains(&bytes),
            Encoding::Raw => bytes == PAGE_SIZE,
        };
        if !fits {
            return Err(PageError::Length { page, encoding, bytes });
        }
        let (body, rest) = rest.split_at_checked(bytes).ok_or(cut)?;
        self.batch = rest;
        Ok(Record { page, encoding, body })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, PageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.batch.is_empty() {
            return None;
        }
        let record = self.parse();
        if record.is_err() {
            self.batch = &[];
        }
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(page: &Page, base: Option<&Page>) -> (Encoding, usize) {
        let mut codec = PageCodec::new();
        let mut out = Vec::new();
        let mut shadow = base.copied();
        let encoding = codec.encode(7, page, shadow.as_mut(), &mut out);
        if let Some(shadow) = shadow {
            assert!(shadow == *page, "the base follows the page");
        }
        let records: Vec<_> = Records::new(&out).collect::<Result<_, _>>().unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!((records[0].page, records[0].encoding), (7, encoding));
        let mut decoded = base.copied().unwrap_or([0xee; PAGE_SIZE]);
        records[0].decode(&mut decoded).unwrap();
        assert!(decoded == *page);
        (encoding, out.len())
    }

    fn noise(seed: u64) -> Page {
        crate::bench_support::noise_page(seed)
    }

    #[test]
    fn each_kind_of_page_gets_its_encoding() {
        let random = noise(1);
        let mut touched = random;
        touched[100] ^= 1;
        touched[4095] ^= 1;
        let text: Page = std::array::from_fn(|i| b"the quick brown fox jumps over it "[i % 34]);
        assert_eq!(round_trip(&ZERO_PAGE, None).0, Encoding::Zero);
        assert_eq!(round_trip(&ZERO_PAGE, Some(&random)).0, Encoding::Zero);
        assert_eq!(round_trip(&random, Some(&random)), (Encoding::Same, 6));
        assert_eq!(round_trip(&touched, Some(&random)), (Encoding::Delta, 6 + 8 + 2 * 9));
        assert_eq!(round_trip(&text, None).0, Encoding::Lz4);
        assert_eq!(round_trip(&text, Some(&random)).0, Encoding::Lz4);
        assert_eq!(round_trip(&random, None), (Encoding::Raw, 6 + 4096));
        assert_eq!(round_trip(&noise(2), Some(&random)), (Encoding::Raw, 6 + 4096));
    }

    #[test]
    fn a_run_of_zero_pages_is_one_record_and_is_refused_outside_a_full_copy() {
        let mut batch = Vec::new();
        zero_run(&mut batch, 5, 2_000_000);
        assert_eq!(batch.len(), RECORD_BYTES + 4);
        let record = Records::of_copy(&batch).next().unwrap().unwrap();
        assert_eq!((record.page, record.encoding, record.pages()), (5, Encoding::Zero, 2_000_000));
        let refused = PageError::Length { page: 5, encoding: Encoding::Zero, bytes: 4 };
        assert_eq!(Records::new(&batch).next(), Some(Err(refused)));
        let mut one = Vec::new();
        zero_run(&mut one, 6, 1);
        let record = Records::new(&one).next().unwrap().unwrap();
        assert_eq!((record.page, record.pages(), one.len()), (6, 1, RECORD_BYTES));
    }

    proptest! {
        #[test]
        fn any_change_survives_the_round_trip(
            seed in any::<u64>(),
            zero_base in any::<bool>(),
            changes in prop::collection::vec((0..PAGE_SIZE, any::<u8>(), 1..600_usize), 0..40),
        ) {
            let base = if zero_base { ZERO_PAGE } else { noise(seed) };
            let mut page = base;
            for (at, byte, length) in changes {
                let end = (at + length).min(PAGE_SIZE);
                page[at..end].fill(byte);
            }
            let (_, with_base) = round_trip(&page, Some(&base));
            let (_, without) = round_trip(&page, None);
            prop_assert!(with_base <= without.max(DELTA_GOOD + RECORD_BYTES));
            prop_assert!(without <= RECORD_MAX);
        }

        #[test]
        fn arbitrary_records_are_decoded_or_refused(batch in prop::collection::vec(any::<u8>(), 0..9000)) {
            let mut page = ZERO_PAGE;
            for record in Records::new(&batch).chain(Records::of_copy(&batch)).flatten() {
                let _ = record.decode(&mut page);
            }
        }

        #[test]
        fn arbitrary_bodies_of_every_kind_are_decoded_or_refused(
            kind in 0..8_u16, body in prop::collection::vec(any::<u8>(), 0..200)
        ) {
            let mut batch = vec![1, 0, 0, 0];
            batch.extend((kind << 13 | body.len() as u16).to_le_bytes());
            batch.extend(&body);
            let mut page = noise(3);
            for record in Records::new(&batch).flatten() {
                let _ = record.decode(&mut page);
            }
        }

        #[test]
        fn a_cut_batch_is_refused(seed in any::<u64>(), cut in 1..4000_usize) {
            let mut out = Vec::new();
            PageCodec::new().encode(1, &noise(seed), None, &mut out);
            out.truncate(out.len() - cut);
            prop_assert_eq!(Records::new(&out).next(), Some(Err(PageError::Cut(out.len()))));
        }
    }
}
