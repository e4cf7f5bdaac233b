//! The backup's image of the guest's RAM: the second mapping of the memory that the guest will run on. The image knows
//! which pages have memory behind them since the copy began, so zero pages of a fresh image cost neither time nor
//! memory.

use crate::page::{Page, is_zero};
use ft_ram::layout::PAGE_SIZE;
use ft_ram::{PageIndex, RamView};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// One bit a page. Relaxed: code that hands pages from one thread to another synchronises by itself.
struct PageSet(Vec<AtomicU64>);

impl PageSet {
    fn new(pages: PageIndex) -> Self {
        Self((0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn contains(&self, page: PageIndex) -> bool {
        self.0[page as usize / 64].load(Ordering::Relaxed) >> (page % 64) & 1 != 0
    }

    /// Whether it is new.
    fn insert(&self, page: PageIndex) -> bool {
        let bit = 1 << (page % 64);
        self.0[page as usize / 64].fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    fn remove(&self, page: PageIndex) {
        self.0[page as usize / 64].fetch_and(!(1 << (page % 64)), Ordering::Relaxed);
    }

    fn fill(&self, word: u64) {
        self.0.iter().for_each(|w| w.store(word, Ordering::Relaxed));
    }
}

/// See the module.
pub struct Image {
    view: RamView,
    written: PageSet,
    received: PageSet,
}

impl Image {
    /// The image behind `view`, with whatever content.
    pub fn new(view: RamView) -> Self {
        let (written, received) = (PageSet::new(view.pages()), PageSet::new(view.pages()));
        written.fill(u64::MAX);
        Self { view, written, received }
    }

    /// The mapping.
    pub fn view(&self) -> &RamView {
        &self.view
    }

    /// Makes every page zero by giving the memory back, and forgets what was received.
    pub(crate) fn empty(&self) {
        self.received.fill(0);
        // Where the kernel cannot (it can for memfds), zero pages are written like all others.
        self.written.fill(if self.give_back(0..self.view.pages()) { 0 } else { u64::MAX });
    }

    /// Gives back the memory behind pages, which are zero then. False if the kernel cannot.
    fn give_back(&self, pages: Range<PageIndex>) -> bool {
        let bytes = pages.len() * PAGE_SIZE;
        // SAFETY: pages of the view's mapping; nobody holds references into it, and their content is to be lost.
        unsafe { libc::madvise(self.view.page_ptr(pages.start).cast(), bytes, libc::MADV_REMOVE) == 0 }
    }

    /// Forgets what was received, and leaves every page as it is: what comes is compared with it.
    pub(crate) fn keep(&self) {
        self.received.fill(0);
        self.written.fill(0);
        let note = |run: Range<PageIndex>| {
            for page in run {
                self.written.insert(page);
            }
            Ok::<_, std::io::Error>(())
        };
        if self.view.held(note).is_err() {
            self.empty();
        }
    }

    /// Makes pages zero, and gives the memory behind them back.
    pub(crate) fn clear(&self, pages: Range<PageIndex>) {
        if !pages.clone().any(|page| self.written.contains(page)) {
            return;
        }
        if self.give_back(pages.clone()) {
            pages.for_each(|page| self.written.remove(page));
        } else {
            pages.for_each(|page| self.write(page, None));
        }
    }

    /// A page of the full copy has come. Returns whether it is the first time.
    pub(crate) fn mark_received(&self, page: PageIndex) -> bool {
        self.received.insert(page)
    }

    pub(crate) fn was_received(&self, page: PageIndex) -> bool {
        self.received.contains(page)
    }

    /// Reads a page without making the kernel allocate one that was never written.
    pub(crate) fn read(&self, page: PageIndex, into: &mut Page) {
        if self.written.contains(page) { self.view.read_page(page, into) } else { into.fill(0) }
    }

    /// Makes sure that there is memory behind a page.
    pub(crate) fn touch(&self, page: PageIndex) {
        // SAFETY: a mapped page; the value does not matter.
        unsafe { std::ptr::read_volatile(self.view.page_ptr(page)) };
    }

    /// Writes a page; none means zero.
    pub(crate) fn write(&self, page: PageIndex, content: Option<&Page>) {
        match content {
            Some(content) => {
                self.written.insert(page);
                #[cfg(feature = "misapply")]
                let content = &misapplied(content);
                self.view.write_page(page, content);
            }
            None if self.written.contains(page) => self.view.write_page(page, &crate::page::ZERO_PAGE),
            None => {}
        }
    }

    /// As [`Self::write`], for content not known to be zero or not.
    pub(crate) fn write_any(&self, page: PageIndex, content: &Page) {
        self.write(page, (!is_zero(content)).then_some(content));
    }
}

/// Every 500th page that is written has a wrong bit.
#[cfg(feature = "misapply")]
fn misapplied(content: &Page) -> Page {
    use std::sync::atomic::{AtomicU32, Ordering};
    static WRITES: AtomicU32 = AtomicU32::new(0);
    let mut content = *content;
    content[4000] ^= u8::from(WRITES.fetch_add(1, Ordering::Relaxed) % 500 == 499);
    content
}
