//! The VMM's writes to guest memory. vm-memory itself notes them, so that no device can forget to. A bitmap holds them
//! until the harvest drains it. An engine in software also gets a journal of the pages, since it keeps copies (decoded
//! code) and must know at once.

use crate::layout::PAGE_SIZE;
use crate::page::PageIndex;
use parking_lot::Mutex;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_memory::bitmap::{AtomicBitmap, Bitmap, RefSlice, WithBitmapSlice};

const PAGE: NonZeroUsize = NonZeroUsize::new(PAGE_SIZE).expect("a page is not empty");
/// Entries from which on the journal is made unique before it grows further.
const ENTRIES_MIN: usize = 1 << 16;

/// Of one region.
#[derive(Debug)]
pub struct WrittenPages {
    pages: AtomicBitmap,
    /// Number of the region's first page.
    first: PageIndex,
    journal: Arc<Journal>,
}

impl WrittenPages {
    /// Of a region of `bytes` bytes, from `offset` on in the memfd.
    pub(crate) fn new(bytes: usize, offset: u64, journal: Arc<Journal>) -> Self {
        let first = (offset / PAGE_SIZE as u64) as PageIndex;
        Self { pages: AtomicBitmap::new(bytes, PAGE), first, journal }
    }

    pub(crate) fn take(&self) -> Vec<u64> {
        self.pages.get_and_reset()
    }
}

impl<'a> WithBitmapSlice<'a> for WrittenPages {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for WrittenPages {
    fn mark_dirty(&self, offset: usize, bytes: usize) {
        self.pages.mark_dirty(offset, bytes);
        if bytes != 0 && self.journal.kept.load(Ordering::Relaxed) {
            let last = offset.saturating_add(bytes - 1) / PAGE_SIZE;
            self.journal.add((offset / PAGE_SIZE..=last).map(|page| self.first + page as PageIndex));
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.pages.dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

/// Of all of a guest's memory.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    kept: AtomicBool,
    filled: AtomicBool,
    pages: Mutex<Vec<PageIndex>>,
}

impl Journal {
    pub(crate) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.filled.load(Ordering::Acquire)
    }

    fn add(&self, written: impl Iterator<Item = PageIndex>) {
        let mut pages = self.pages.lock();
        for page in written {
            if pages.last() == Some(&page) {
                continue;
            }
            if pages.len() >= ENTRIES_MIN && pages.len() == pages.capacity() {
                pages.sort_unstable();
                pages.dedup();
                // Growing by half at least, so that sorting stays rare.
                let more = pages.len() / 2;
                pages.reserve(more);
            }
            pages.push(page);
        }
        self.filled.store(true, Ordering::Release);
    }

    pub(crate) fn take(&self, into: &mut Vec<PageIndex>) {
        let mut pages = self.pages.lock();
        into.append(&mut pages);
        self.filled.store(false, Ordering::Release);
    }
}
