//! A bitmap of pages that many threads set and one drains. A second level has a bit for each word of the first, so that
//! draining costs by what is set and hardly anything by the size of the memory.

use std::sync::atomic::{AtomicU64, Ordering};

/// See the module.
#[derive(Debug)]
pub(crate) struct PageBitmap {
    pages: Box<[AtomicU64]>,
    /// Which words of `pages` have a bit, or had one of late. Set after the bit of the page: a drain that does not see
    /// it leaves the page to the next one.
    words: Box<[AtomicU64]>,
}

fn zeroes(bits: usize) -> Box<[AtomicU64]> {
    (0..bits.div_ceil(64)).map(|_| AtomicU64::new(0)).collect()
}

impl PageBitmap {
    /// For so many pages, of which none is set.
    pub(crate) fn new(pages: usize) -> Self {
        let pages = zeroes(pages);
        let words = zeroes(pages.len());
        Self { pages, words }
    }

    /// Sets a page; one that is not there is left alone. What was done before this is seen by whoever drains it.
    pub(crate) fn set(&self, page: usize) {
        let word = page / 64;
        let Some(pages) = self.pages.get(word) else { return };
        // Always a write, also where the bit is set: whoever drains it meanwhile is behind what was done before this.
        pages.fetch_or(1 << (page % 64), Ordering::SeqCst);
        let (words, bit) = (&self.words[word / 64], 1 << (word % 64));
        if words.load(Ordering::SeqCst) & bit == 0 {
            words.fetch_or(bit, Ordering::SeqCst);
        }
    }

    /// Whether a page is set.
    pub(crate) fn has(&self, page: usize) -> bool {
        self.pages.get(page / 64).is_some_and(|word| word.load(Ordering::SeqCst) & 1 << (page % 64) != 0)
    }

    /// Clears it, and says what was set, in order.
    pub(crate) fn drain(&self, mut each: impl FnMut(usize)) {
        for (index, words) in self.words.iter().enumerate() {
            if words.load(Ordering::SeqCst) == 0 {
                continue;
            }
            for bit in bits(words.swap(0, Ordering::SeqCst)) {
                let word = index * 64 + bit;
                bits(self.pages[word].swap(0, Ordering::SeqCst)).for_each(|bit| each(word * 64 + bit));
            }
        }
    }
}

/// The bits that are set, the lowest first.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros() as usize;
        (word != 0).then(|| {
            word &= word - 1;
            bit
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicBool;

    fn drained(bitmap: &PageBitmap) -> Vec<usize> {
        let mut pages = Vec::new();
        bitmap.drain(|page| pages.push(page));
        pages
    }

    proptest! {
        #[test]
        fn what_is_set_is_drained_once_and_in_order(
            size in 1usize..20_000,
            rounds in proptest::collection::vec(proptest::collection::vec(0usize..30_000, 0..60), 1..4),
        ) {
            let bitmap = PageBitmap::new(size);
            for round in rounds {
                round.iter().for_each(|&page| bitmap.set(page));
                let there = size.div_ceil(64) * 64;
                let expected: BTreeSet<_> = round.into_iter().filter(|&page| page < there).collect();
                prop_assert!(expected.iter().all(|&page| bitmap.has(page)));
                prop_assert_eq!(drained(&bitmap), Vec::from_iter(expected));
                prop_assert!(drained(&bitmap).is_empty() && !bitmap.has(0));
            }
        }
    }

    /// Each writer counts up in cells of its own and sets the cell's page; who drains reads the cells of the pages
    /// that it is told of. In the end it has read the last number of each.
    #[test]
    fn no_write_is_lost_however_writers_and_drains_meet() {
        const WRITERS: usize = 3;
        const WRITES: u64 = 100_000;
        let bitmap = PageBitmap::new(WRITERS * 64);
        let cells: Vec<AtomicU64> = (0..WRITERS * 64).map(|_| AtomicU64::new(0)).collect();
        let mut seen = vec![0; cells.len()];
        let end = AtomicBool::new(false);
        std::thread::scope(|threads| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let (bitmap, cells) = (&bitmap, &cells);
                    threads.spawn(move || {
                        for number in 1..=WRITES {
                            // Neighbours in one word, and words in one group.
                            let page = writer + number as usize % 64 / WRITERS * WRITERS;
                            cells[page].store(number, Ordering::Relaxed);
                            bitmap.set(page);
                        }
                    })
                })
                .collect();
            let drain = threads.spawn(|| {
                let mut ends = false;
                while !std::mem::replace(&mut ends, end.load(Ordering::SeqCst)) {
                    bitmap.drain(|page| seen[page] = cells[page].load(Ordering::Relaxed));
                }
            });
            for writer in writers {
                writer.join().unwrap();
            }
            end.store(true, Ordering::SeqCst);
            drain.join().unwrap();
        });
        assert_eq!(seen, cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect::<Vec<_>>());
    }
}
