//! Seeded pages like those that guests dirty, for the benches here and for `scripts/bench`.

use crate::page::{Page, ZERO_PAGE};
use ft_ram::layout::PAGE_SIZE;

/// A small generator (splitmix64), so that the same seed gives the same pages everywhere.
pub struct Noise(u64);

impl Noise {
    /// A generator.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next_u64() % bound as u64) as usize
    }
}

/// A page of random bytes.
pub fn noise_page(seed: u64) -> Page {
    let mut noise = Noise::new(seed);
    let mut page = ZERO_PAGE;
    for word in page.as_chunks_mut::<8>().0 {
        *word = noise.next_u64().to_le_bytes();
    }
    page
}

/// A page of records with words, small integers and pointers, of which lz4 makes about a third.
pub fn structured_page(seed: u64) -> Page {
    const WORDS: [&[u8]; 8] =
        [b"session", b"timeout", b"x-forwarded-for", b"GET /index.html", b"user", b"0000", b"value", b"\n"];
    let mut noise = Noise::new(seed);
    let mut page = ZERO_PAGE;
    let mut at = 0;
    while at < PAGE_SIZE {
        let pointer = (0x7f3a_0000_0000_u64 | noise.below(1 << 24) as u64).to_le_bytes();
        let small = (noise.below(1000) as u64).to_le_bytes();
        let word = WORDS[noise.below(WORDS.len())];
        for part in [word, &pointer, &small, word] {
            let n = part.len().min(PAGE_SIZE - at);
            page[at..at + n].copy_from_slice(&part[..n]);
            at += n;
        }
    }
    page
}

/// A kind of change between what was last sent and what is dirty now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentKind {
    /// Became (or stayed) zero.
    Zero,
    /// Written with what was there.
    Same,
    /// A few words changed.
    SmallDelta,
    /// New, compressible content.
    Structured,
    /// New, random content.
    Random,
}

/// The last sent copy of a page and its content now.
pub fn page_pair(kind: ContentKind, seed: u64) -> (Page, Page) {
    let before = structured_page(seed);
    let mut noise = Noise::new(!seed);
    let now = match kind {
        ContentKind::Zero => ZERO_PAGE,
        ContentKind::Same => before,
        ContentKind::SmallDelta => {
            let mut page = before;
            for _ in 0..1 + noise.below(24) {
                let at = noise.below(PAGE_SIZE - 8);
                page[at..at + 8].copy_from_slice(&noise.next_u64().to_le_bytes());
            }
            page
        }
        ContentKind::Structured => structured_page(noise.next_u64()),
        ContentKind::Random => noise_page(noise.next_u64()),
    };
    (before, now)
}

/// `count` pages of the mix that the encoder is measured on, in random order: 15 % zero, 15 % same, 40 % small deltas,
/// 20 % new and compressible, 10 % random. Returns the copies last sent and the contents now.
pub fn mixed_pages(count: usize, seed: u64) -> (Vec<Page>, Vec<Page>) {
    let mut noise = Noise::new(seed);
    (0..count)
        .map(|_| {
            let kind = match noise.below(100) {
                0..15 => ContentKind::Zero,
                15..30 => ContentKind::Same,
                30..70 => ContentKind::SmallDelta,
                70..90 => ContentKind::Structured,
                _ => ContentKind::Random,
            };
            page_pair(kind, noise.next_u64())
        })
        .unzip()
}
