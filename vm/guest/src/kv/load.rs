//! The memory load: the content of its pages, and the number of pages that are due by now.

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// A memory load as asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Pages written a second; 0: none.
    pub pages_per_second: u64,
    /// Number of different pages that are written, one after the other.
    pub working_set_pages: u64,
    /// What is written into them.
    pub pattern: Pattern,
}

impl Load {
    /// Largest rate: 40 GB/s, more than any memory takes.
    pub const RATE_MAX: u64 = 10_000_000;
}

/// What the load writes into a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pattern {
    /// A counter in the first word: the page changes little, as pages of a database do.
    #[default]
    Count,
    /// Pseudo-random bytes over the whole page: nothing compresses them.
    Random,
    /// Words over the whole page, different ones each time: a general compressor halves them or better.
    Text,
}

const WORDS: [[u8; 8]; 16] = [
    *b"the     ",
    *b"epoch   ",
    *b"of      ",
    *b"primary ",
    *b"and     ",
    *b"backup  ",
    *b"in      ",
    *b"a       ",
    *b"page    ",
    *b"is      ",
    *b"held    ",
    *b"until   ",
    *b"acked   ",
    *b"by      ",
    *b"peer    ",
    *b"commit\n ",
];

impl Pattern {
    /// Writes `page`, the `round`-th one written. A different round gives different bytes.
    pub fn fill(self, page: &mut [u64; PAGE / 8], round: u64) {
        match self {
            Self::Count => page[0] = round,
            Self::Random => {
                let mut state = seed(round);
                for word in page {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    *word = state;
                }
            }
            Self::Text => {
                let mut state = seed(round);
                for (i, word) in page.iter_mut().enumerate() {
                    if i % 16 == 0 {
                        state = state.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31) | 1;
                    }
                    *word = u64::from_le_bytes(WORDS[(state >> (i % 16 * 4)) as usize % 16]);
                }
            }
        }
    }
}

fn seed(round: u64) -> u64 {
    (round ^ 0x5851_f42d_4c95_7f2d).wrapping_mul(0xd134_2543_de82_ef95) | 1
}

/// Tells how many pages are due: keeps the rate over time, without a burst after a standstill.
#[derive(Clone, Copy, Debug)]
pub struct Pacer {
    pages_per_second: u64,
    /// Pages are due for the time since this.
    paid_until_ns: u64,
}

impl Pacer {
    /// What was not written within this time is forgotten.
    const BACKLOG_NS: u64 = 20_000_000;

    /// A pacer for `pages_per_second` from `now_ns` on.
    pub fn new(pages_per_second: u64, now_ns: u64) -> Self {
        Self { pages_per_second, paid_until_ns: now_ns }
    }

    /// Pages due at `now_ns`. Whoever writes some of them says so with [`Self::wrote`].
    pub fn due(&mut self, now_ns: u64) -> u64 {
        self.paid_until_ns = self.paid_until_ns.max(now_ns.saturating_sub(Self::BACKLOG_NS));
        let owed_ns = now_ns.saturating_sub(self.paid_until_ns);
        owed_ns.saturating_mul(self.pages_per_second) / 1_000_000_000
    }

    /// `pages` of the due ones were written.
    pub fn wrote(&mut self, pages: u64) {
        let ns = pages.saturating_mul(1_000_000_000).checked_div(self.pages_per_second);
        self.paid_until_ns += ns.unwrap_or(0);
    }

    /// Nanoseconds from `now_ns` until a page is due. `None`: never.
    pub fn due_in_ns(&self, now_ns: u64) -> Option<u64> {
        let page_ns = 1_000_000_000_u64.checked_div(self.pages_per_second)?;
        Some((self.paid_until_ns + page_ns).saturating_sub(now_ns))
    }
}
