//! The VMM's writes to guest memory. vm-memory itself notes them, so that no device can forget to. A bitmap holds them
//! until the harvest drains it. An engine in software also gets a journal of the pages, since it keeps copies (decoded
//! code) and must know at once.

use crate::bitmap::PageBitmap;
use crate::layout::PAGE_SIZE;
use crate::page::PageIndex;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_memory::bitmap::{Bitmap, RefSlice, WithBitmapSlice};

/// Entries from which on the journal is made unique before it grows further.
const ENTRIES_MIN: usize = 1 << 16;

/// Of one region.
#[derive(Debug)]
pub struct WrittenPages {
    pages: PageBitmap,
    /// Number of the region's first page.
    first: PageIndex,
    journal: Arc<Journal>,
}

impl WrittenPages {
    /// Of a region of `bytes` bytes, from `offset` on in the memfd.
    pub(crate) fn new(bytes: usize, offset: u64, journal: Arc<Journal>) -> Self {
        let first = (offset / PAGE_SIZE as u64) as PageIndex;
        Self { pages: PageBitmap::new(bytes.div_ceil(PAGE_SIZE)), first, journal }
    }

    /// Forgets the pages written so far, and says which they were, in order.
    pub(crate) fn drain(&self, mut each: impl FnMut(PageIndex)) {
        self.pages.drain(|page| each(self.first + page as PageIndex));
    }
}

impl<'a> WithBitmapSlice<'a> for WrittenPages {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for WrittenPages {
    fn mark_dirty(&self, offset: usize, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let pages = offset / PAGE_SIZE..=offset.saturating_add(bytes - 1) / PAGE_SIZE;
        pages.clone().for_each(|page| self.pages.set(page));
        if self.journal.kept.load(Ordering::Relaxed) {
            self.journal.add(pages.map(|page| self.first + page as PageIndex));
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.pages.has(offset / PAGE_SIZE)
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
