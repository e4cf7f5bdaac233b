//! Software TLB: direct-mapped, one set of entries each for data and code of the kernel and of user mode, so that a
//! data access never evicts the translation of the code that makes it.
//!
//! An entry has tags for the fast path (whole page addresses, compared in one go) and the translation behind them.
//! Dropping a fast tag (for dirty tracking, or because the page has cached code) keeps the translation: page walks
//! set accessed and dirty bits, so when they happen must depend on the guest's instructions alone.

pub(crate) const PAGE: u64 = 4096;
pub(crate) const PAGE_MASK: u64 = !(PAGE - 1);

/// Entries of each set of data translations, and of code translations.
const DATA: usize = 1024;
const CODE: usize = 512;

/// In a tag: the page is not to be accessed directly.
const SLOW: u64 = 1;
/// A tag that no address matches: its page is not canonical.
const INVALID: u64 = 1 << 63 | 0xfff;

/// Flags in [`Entry::frame`].
pub(crate) const WRITABLE: u64 = 1;
/// The page table entry's dirty bit is known to be set.
pub(crate) const DIRTY: u64 = 2;
pub(crate) const GLOBAL: u64 = 4;
/// Part of a 2 MiB page, of a 1 GiB page.
pub(crate) const LARGE: u64 = 8;
pub(crate) const HUGE: u64 = 16;

#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Entry {
    /// Virtual page address; with [`SLOW`] set: valid, but not for direct access.
    pub read: u64,
    pub write: u64,
    /// Host address minus virtual address, for direct access.
    pub addend: u64,
    /// Physical page address and flags.
    pub frame: u64,
}

impl Entry {
    const EMPTY: Self = Self { read: INVALID, write: INVALID, addend: 0, frame: 0 };

    #[inline(always)]
    pub(crate) fn maps(&self, page: u64) -> bool {
        self.read & !SLOW == page
    }

    /// Makes direct writes possible.
    pub(crate) fn open_writes(&mut self) {
        self.write = self.read;
    }
}

/// One direct-mapped set.
pub(crate) struct Set<const N: usize> {
    entries: [Entry; N],
    /// Which entries may be valid, so that flushing an almost empty set is cheap.
    used: [u64; 16],
}

impl<const N: usize> Set<N> {
    const NEW: Self = Self { entries: [Entry::EMPTY; N], used: [0; 16] };

    #[inline(always)]
    fn index(addr: u64) -> usize {
        (addr / PAGE) as usize & (N - 1)
    }

    /// The entry in which the translation of `addr` is if there is one.
    #[inline(always)]
    pub(crate) fn at(&self, addr: u64) -> &Entry {
        &self.entries[Self::index(addr)]
    }

    pub(crate) fn at_mut(&mut self, addr: u64) -> &mut Entry {
        &mut self.entries[Self::index(addr)]
    }

    /// Enters a translation. `host`: the page in this process, if it is RAM; reads may then go there directly.
    pub(crate) fn fill(&mut self, page: u64, frame: u64, host: Option<u64>) {
        let index = Self::index(page);
        self.used[index / 64] |= 1 << (index % 64);
        self.entries[index] = Entry {
            read: if host.is_some() { page } else { page | SLOW },
            write: INVALID,
            addend: host.unwrap_or(0).wrapping_sub(page),
            frame,
        };
    }

    fn each(&mut self, mut change: impl FnMut(&mut Entry) -> bool) {
        for (word_index, word) in self.used.iter_mut().enumerate() {
            let mut rest = *word;
            while rest != 0 {
                let bit = rest.trailing_zeros();
                rest &= rest - 1;
                let entry = &mut self.entries[word_index * 64 + bit as usize];
                if !change(entry) {
                    *entry = Entry::EMPTY;
                    *word &= !(1 << bit);
                }
            }
        }
    }
}

/// All translations of a processor. Indexed by "in user mode".
pub(crate) struct Tlb {
    pub data: [Set<DATA>; 2],
    pub code: [Set<CODE>; 2],
}

impl Tlb {
    pub(crate) const NEW: Self = Self { data: [Set::NEW; 2], code: [Set::NEW; 2] };

    fn each(&mut self, mut keep: impl FnMut(&mut Entry) -> bool) {
        self.data.iter_mut().for_each(|set| set.each(&mut keep));
        self.code.iter_mut().for_each(|set| set.each(&mut keep));
    }

    pub(crate) fn flush_all(&mut self) {
        self.each(|_| false);
    }

    pub(crate) fn flush_local(&mut self) {
        self.each(|entry| entry.frame & GLOBAL != 0);
    }

    /// `invlpg`: global pages too, and the whole of a large page, of which each small page that was used is an entry.
    pub(crate) fn flush_page(&mut self, addr: u64) {
        self.each(|entry| {
            let bytes = match entry.frame & (LARGE | HUGE) {
                0 => PAGE,
                LARGE => 2 << 20,
                _ => 1 << 30,
            };
            (entry.read ^ addr) & !(bytes - 1) != 0
        });
    }

    /// Sends all writes the slow way once more.
    pub(crate) fn close_writes(&mut self) {
        self.data.iter_mut().for_each(|set| {
            set.each(|entry| {
                entry.write = INVALID;
                true
            })
        });
    }

    /// The same for one physical page.
    pub(crate) fn close_writes_to(&mut self, frame: u64) {
        self.data.iter_mut().for_each(|set| {
            set.each(|entry| {
                if entry.frame & PAGE_MASK == frame {
                    entry.write = INVALID;
                }
                true
            })
        });
    }
}
