//! Page arenas: memory for page copies that is taken from the kernel once, populated, and used again and again, so that
//! a copy in the pause costs no page fault. A [`Capture`] is the result of a pause; the encoder takes it.

use crate::copiers::{self, PIECE_PAGES, Piece, SHARED_PAGES_MIN};
use crate::page::Page;
use crate::scrub::Sample;
use ft_ram::layout::PAGE_SIZE;
use ft_ram::{PageIndex, RamView};
use ft_vm::machine::IdleWork;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

/// Arenas grow by this many pages (8 MiB): large pages fit, and a small VM does not pay for a large one's.
const CHUNK_PAGES: usize = 2048;

/// Why an arena cannot take more pages.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// The bound is reached.
    #[error("{needed} pages do not fit an arena of {max}")]
    Full {
        /// Pages that it would have to hold.
        needed: usize,
        /// Its bound.
        max: usize,
    },
    /// The system has no more memory.
    #[error("no memory for {needed} pages of checkpoint: {source}")]
    Allocate {
        /// Pages that it would have to hold.
        needed: usize,
        /// The system's answer.
        source: std::io::Error,
    },
}

struct Chunk(NonNull<u8>);

// SAFETY: a chunk is anonymous memory that belongs to its arena alone, reached only through the arena's borrows.
unsafe impl Send for Chunk {}
// SAFETY: as above; a shared borrow of the arena only reads.
unsafe impl Sync for Chunk {}

const CHUNK_BYTES: usize = CHUNK_PAGES * PAGE_SIZE;

impl Chunk {
    fn new() -> nix::Result<Self> {
        const LENGTH: NonZeroUsize = NonZeroUsize::new(CHUNK_BYTES).unwrap();
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
        let base: NonNull<c_void> = unsafe { mmap_anonymous(None, LENGTH, prot, MapFlags::MAP_PRIVATE)? };
        let chunk = Self(base.cast());
        // Both are advice: without them the first use is slower, no more.
        for advice in [MmapAdvise::MADV_HUGEPAGE, MmapAdvise::MADV_POPULATE_WRITE] {
            // SAFETY: advice on our own mapping which does not change its content.
            let _ = unsafe { madvise(base, CHUNK_BYTES, advice) };
        }
        Ok(chunk)
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and borrows of it end before the arena does.
        let _ = unsafe { munmap(self.0.cast(), CHUNK_BYTES) };
    }
}

/// A bounded stack of page copies whose memory is kept when it is cleared.
pub struct PageArena {
    chunks: Vec<Chunk>,
    used: usize,
    max: usize,
}

impl PageArena {
    /// An empty arena for at most `max_pages`.
    pub fn new(max_pages: usize) -> Self {
        Self { chunks: Vec::new(), used: 0, max: max_pages }
    }

    /// Pages in it.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Pages that it has memory for.
    pub fn capacity(&self) -> usize {
        self.chunks.len() * CHUNK_PAGES
    }

    /// Forgets the pages, keeps the memory.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// Takes populated memory for `pages` in all. To be called ahead of the pause.
    pub fn reserve(&mut self, pages: usize) -> Result<(), ArenaError> {
        if pages > self.max {
            return Err(ArenaError::Full { needed: pages, max: self.max });
        }
        while self.capacity() < pages {
            let chunk = Chunk::new().map_err(|e| ArenaError::Allocate { needed: pages, source: e.into() })?;
            self.chunks.push(chunk);
        }
        Ok(())
    }

    fn pointer(&self, slot: usize) -> *mut u8 {
        assert!(slot < self.used, "slot {slot} of an arena with {}", self.used);
        // SAFETY: within the chunk: slot < used <= capacity.
        unsafe { self.chunks[slot / CHUNK_PAGES].0.as_ptr().add(slot % CHUNK_PAGES * PAGE_SIZE) }
    }

    /// A page.
    ///
    /// # Panics
    /// When there is no such slot.
    pub fn page(&self, slot: usize) -> &Page {
        // SAFETY: a page of our memory, initialised by the kernel, borrowed as long as the arena is.
        unsafe { &*self.pointer(slot).cast() }
    }

    /// A page to write to.
    ///
    /// # Panics
    /// When there is no such slot.
    pub fn page_mut(&mut self, slot: usize) -> &mut Page {
        // SAFETY: as above, and the arena is borrowed exclusively.
        unsafe { &mut *self.pointer(slot).cast() }
    }

    /// Adds a page with whatever content, to be written to; its slot is the former [`Self::len`].
    pub fn push(&mut self) -> Result<&mut Page, ArenaError> {
        self.reserve(self.used + 1)?;
        self.used += 1;
        Ok(self.page_mut(self.used - 1))
    }

    /// Takes the last page back.
    pub fn pop(&mut self) {
        self.used = self.used.saturating_sub(1);
    }

    /// Adds copies of guest pages, in order. Neighbours are copied in one go.
    ///
    /// # Panics
    /// When a page is not one of the view's: dirty sets come from the kernel and the VMM.
    pub fn copy_pages(&mut self, view: &RamView, pages: &[PageIndex]) -> Result<(), ArenaError> {
        // SAFETY: see `plan`; the arena is borrowed exclusively.
        self.plan(view, pages, CHUNK_PAGES, |piece| unsafe { piece.copy() })
    }

    /// The same, with the help of others where there is much to copy: `offer` gives them the work.
    ///
    /// # Panics
    /// As [`Self::copy_pages`].
    pub fn copy_pages_with(
        &mut self,
        view: &RamView,
        pages: &[PageIndex],
        offer: impl FnOnce(IdleWork),
    ) -> Result<(), ArenaError> {
        if pages.len() < SHARED_PAGES_MIN {
            return self.copy_pages(view, pages);
        }
        let mut pieces = Vec::with_capacity(pages.len());
        self.plan(view, pages, PIECE_PAGES, |piece| pieces.push(piece))?;
        // SAFETY: see `plan`; the arena is borrowed exclusively until this returns.
        unsafe { copiers::copy(pieces, offer) };
        Ok(())
    }

    /// Takes room for copies of guest pages, in order, and says what is to be copied: neighbours in one go, up to so
    /// many. Each piece is of mapped pages (its first and its last are bounds-checked, the view is contiguous), goes
    /// into one chunk, where no other goes, and guest and arena memory do not overlap. The guest's memory may change
    /// meanwhile only where the caller did not pause it; then the bytes are whatever was there.
    fn plan(
        &mut self,
        view: &RamView,
        pages: &[PageIndex],
        most: usize,
        mut each: impl FnMut(Piece),
    ) -> Result<(), ArenaError> {
        self.reserve(self.used + pages.len())?;
        let mut rest = pages;
        while let Some(&first) = rest.first() {
            let room = most.min(CHUNK_PAGES - self.used % CHUNK_PAGES);
            let run =
                rest.iter().take(room).zip(first..).take_while(|&(&page, expected)| page == expected).count();
            let from = view.page_ptr(first);
            let last = view.page_ptr(rest[run - 1]);
            debug_assert_eq!(last as usize - from as usize, (run - 1) * PAGE_SIZE);
            self.used += run;
            let to = self.pointer(self.used - run);
            each(Piece { from, to, bytes: run * PAGE_SIZE });
            rest = &rest[run..];
        }
        Ok(())
    }
}

/// A captured epoch: what the pause copied aside. Used again for later epochs.
pub struct Capture {
    /// The epoch that it ends.
    pub epoch: u64,
    /// The primary's clock at the pause; travels with the checkpoint and comes back in its ack.
    pub stamp_us: u64,
    /// The dirty pages, ascending, each once.
    pub pages: Vec<PageIndex>,
    /// Their contents, in the same order.
    pub arena: PageArena,
    /// The machine's state, encoded by the machine.
    pub state: Vec<u8>,
    /// Pages to be compared, hashed during the epoch.
    pub samples: Vec<Sample>,
}

impl Capture {
    /// An empty capture for at most `max_pages` dirty pages.
    pub fn new(max_pages: usize) -> Self {
        Self {
            epoch: 0,
            stamp_us: 0,
            pages: Vec::new(),
            arena: PageArena::new(max_pages),
            state: Vec::new(),
            samples: Vec::new(),
        }
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.arena.len() * PAGE_SIZE + self.state.len()
    }

    /// Empties it for another epoch. Its memory is kept, so that only a pause with more pages than any before it waits
    /// for the kernel; `arena.reserve` ahead of time spares it that too.
    pub fn reset(&mut self) {
        self.pages.clear();
        self.state.clear();
        self.arena.clear();
        self.samples.clear();
    }

    /// The copy of a page, if it is dirty.
    #[must_use]
    pub fn content(&self, page: PageIndex) -> Option<&Page> {
        let slot = self.pages.binary_search(&page).ok()?;
        Some(self.arena.page(slot))
    }

    /// Copies the contents of [`Self::pages`] out of the paused guest.
    pub fn copy_pages(&mut self, view: &RamView) -> Result<(), ArenaError> {
        self.arena.clear();
        self.arena.copy_pages(view, &self.pages)
    }

    /// The same, with the help of others where there is much to copy.
    pub fn copy_pages_with(
        &mut self,
        view: &RamView,
        offer: impl FnOnce(IdleWork),
    ) -> Result<(), ArenaError> {
        self.arena.clear();
        self.arena.copy_pages_with(view, &self.pages, offer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft_ram::GuestRam;
    use std::sync::Arc;

    #[test]
    fn copies_are_those_of_the_pages_in_order_across_chunks() {
        let view = GuestRam::new(16 << 20).unwrap().view().unwrap();
        for page in 0..view.pages() {
            view.write_page(page, &crate::bench_support::noise_page(page.into()));
        }
        let mut arena = PageArena::new(4096);
        let pages: Vec<PageIndex> = (0..4096).filter(|p| p % 7 != 3).chain([5, 4095, 0]).collect();
        for round in 0..100 {
            (0..arena.len()).for_each(|slot| arena.page_mut(slot).fill(0));
            arena.clear();
            match round {
                0 => arena.copy_pages(&view, &pages).unwrap(),
                _ => std::thread::scope(|helpers| {
                    let offer = |work: IdleWork| {
                        for _ in 0..round % 4 {
                            let work = Arc::clone(&work);
                            helpers.spawn(move || work());
                        }
                    };
                    arena.copy_pages_with(&view, &pages, offer).unwrap();
                }),
            }
            assert_eq!(arena.len(), pages.len());
            for (slot, &page) in pages.iter().enumerate() {
                assert!(*arena.page(slot) == crate::bench_support::noise_page(page.into()), "slot {slot}");
            }
        }
        assert_eq!(arena.capacity(), 4096, "no more memory than needed, and kept");
    }

    #[test]
    fn the_bound_holds() {
        let view = GuestRam::new(16 << 20).unwrap().view().unwrap();
        let mut arena = PageArena::new(10);
        arena.copy_pages(&view, &[1, 2, 3]).unwrap();
        let error = arena.copy_pages(&view, &[0; 8]).unwrap_err();
        assert!(matches!(error, ArenaError::Full { needed: 11, max: 10 }));
        assert_eq!(arena.len(), 3, "a refused copy changes nothing");
    }
}
