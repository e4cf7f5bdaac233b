//! The full copy that a pairing begins with, on the primary. It sends all of RAM in batches while the guest runs, then
//! the pages dirtied meanwhile, in as many rounds as the caller likes; the first checkpoint carries the rest. Dirty
//! logging must be on before the copy begins: a page that changes while it is read is dirty, and so is sent again.
//!
//! Pages that the kernel holds no memory for are zero. They are not read, which would make it hold some, and a run of
//! them is one record. Such a page, too, is dirty when it is written after it was asked about. Nothing may write memory
//! behind the dirty log while a copy is under way: after a take-over, what is applied lazily has to be finished.
//!
//! A page that the backup still has of an earlier time is not sent, if it tells so: see [`crate::compare`].

use crate::compare::KeptPages;
use crate::encoder::{CopyError, CopyPiece, EncodeStats, Encoder};
use crate::page::{Page, ZERO_PAGE, is_zero};
use crate::wire::WireSink;
use ft_ram::{PageIndex, PageRun, RamView};
use std::ops::Range;
use std::sync::Arc;

/// Pages read out of the guest at a time, and runs of zero pages sent at a time.
const STRIDE: usize = 64;

/// What is sent next.
enum Run {
    /// A page to be read.
    Page(PageIndex),
    /// Pages that are zero.
    Hole(Range<PageIndex>),
}

/// A full copy in progress.
pub struct FullCopy {
    next: PageIndex,
    total: PageIndex,
    read: PageIndex,
    same: PageIndex,
    resent: u64,
    /// What the backup tells of the memory that it kept.
    kept: Option<Arc<KeptPages>>,
    /// It has yet to tell of the next page.
    waits: bool,
    /// The end of the pages from `next` on that the kernel holds memory for, as far as that is known.
    held_until: PageIndex,
    stats: EncodeStats,
    buffer: Vec<Page>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyProgress {
    /// Pages sent of [`Self::total_pages`].
    pub sent_pages: PageIndex,
    /// Pages of RAM.
    pub total_pages: PageIndex,
    /// Those of the pages sent that had to be read. All others are in holes of the memory.
    pub read_pages: PageIndex,
    /// Those of the pages read that the backup had already.
    pub same_pages: PageIndex,
    /// Pages sent again because they were dirtied.
    pub resent_pages: u64,
    /// The backup has yet to tell what it has of the next page: until then there is nothing to do.
    pub waits: bool,
}

impl CopyProgress {
    /// Whether every page was sent once.
    pub fn is_complete(&self) -> bool {
        self.sent_pages == self.total_pages
    }
}

impl FullCopy {
    /// Begins a pairing named `pairing`, a nonce never used before.
    pub fn begin(
        encoder: &mut Encoder,
        pairing: u64,
        view: &RamView,
        out: &mut impl WireSink,
    ) -> Result<Self, CopyError> {
        encoder.begin_copy(pairing, out)?;
        Ok(Self {
            next: 0,
            total: view.pages(),
            read: 0,
            same: 0,
            resent: 0,
            kept: None,
            waits: false,
            held_until: 0,
            stats: EncodeStats::default(),
            buffer: vec![ZERO_PAGE; STRIDE],
        })
    }

    /// The backup tells of each page what it still has of it: this waits for that, and does not send what is the same.
    #[must_use]
    pub fn comparing(mut self, kept: Arc<KeptPages>) -> Self {
        self.kept = Some(kept);
        self
    }

    /// Sends up to `max_pages` more of the pages not sent yet. A run of pages in a hole counts as one.
    pub fn step(
        &mut self,
        encoder: &mut Encoder,
        view: &RamView,
        max_pages: u32,
        out: &mut impl WireSink,
    ) -> Result<CopyProgress, CopyError> {
        let mut left = max_pages as usize;
        let mut runs = Vec::with_capacity(STRIDE.min(left));
        self.waits = false;
        while left > 0 && self.next < self.total && !self.waits {
            runs.clear();
            let read = self.plan(view, left.min(STRIDE), &mut runs);
            left -= runs.len();
            self.send_runs(encoder, view, &runs, out)?;
            self.read += read;
        }
        out.flush()?;
        Ok(self.progress())
    }

    /// Takes the next pages, at most so many and runs of zero ones. Says how many have to be read.
    fn plan(&mut self, view: &RamView, most: usize, runs: &mut Vec<Run>) -> PageIndex {
        let mut read = 0;
        let told_until = self.kept.as_ref().map_or(self.total, |kept| kept.come_to(self.next));
        while runs.len() < most && self.next < self.total {
            if self.next >= self.held_until {
                match view.run_from(self.next) {
                    Ok(PageRun::Hole(hole)) => {
                        self.next = hole.end;
                        runs.push(Run::Hole(hole));
                        continue;
                    }
                    Ok(PageRun::Held(held)) => self.held_until = held.end,
                    // What the kernel does not say is read.
                    Err(_) => self.held_until = self.total,
                }
            }
            if self.next >= told_until {
                self.waits = true;
                break;
            }
            runs.push(Run::Page(self.next));
            self.next += 1;
            read += 1;
        }
        read
    }

    /// Sends pages again that the guest dirtied since.
    pub fn resend(
        &mut self,
        encoder: &mut Encoder,
        view: &RamView,
        dirty: &[PageIndex],
        out: &mut impl WireSink,
    ) -> Result<CopyProgress, CopyError> {
        if let Some(&page) = dirty.iter().find(|page| **page >= self.total) {
            return Err(CopyError::Page { page, pages: self.total });
        }
        for pages in dirty.chunks(STRIDE) {
            for (&page, copy) in pages.iter().zip(&mut self.buffer) {
                view.read_page(page, copy);
            }
            let pieces = pages.iter().zip(&self.buffer).map(|(&page, copy)| CopyPiece::Page(page, copy));
            encoder.copy_pieces(pieces, out, &mut self.stats)?;
        }
        self.resent += dirty.len() as u64;
        out.flush()?;
        Ok(self.progress())
    }

    /// Reads what has to be read, and sends all. Zero pages in a row are one piece, wherever they are from.
    fn send_runs(
        &mut self,
        encoder: &mut Encoder,
        view: &RamView,
        runs: &[Run],
        out: &mut impl WireSink,
    ) -> Result<(), CopyError> {
        let mut buffer = self.buffer.iter_mut();
        let mut pieces: Vec<CopyPiece<'_>> = Vec::with_capacity(runs.len());
        let mut zeroes: Option<Range<PageIndex>> = None;
        for run in runs {
            let zero = match run {
                Run::Hole(hole) => hole.clone(),
                &Run::Page(page) => {
                    let copy = buffer.next().expect("no more than a stride of pages is planned");
                    view.read_page(page, copy);
                    if !is_zero(copy) {
                        pieces.extend(zeroes.take().map(CopyPiece::Zeroes));
                        let is_kept = self.kept.as_ref().is_some_and(|kept| kept.has(page, copy));
                        self.same += PageIndex::from(is_kept);
                        let piece = if is_kept { CopyPiece::Kept } else { CopyPiece::Page };
                        pieces.push(piece(page, copy));
                        continue;
                    }
                    page..page + 1
                }
            };
            // All of them are in a row.
            zeroes = Some(zeroes.map_or(zero.start, |before| before.start)..zero.end);
        }
        pieces.extend(zeroes.map(CopyPiece::Zeroes));
        encoder.copy_pieces(pieces.into_iter(), out, &mut self.stats)
    }

    /// How far it is.
    pub fn progress(&self) -> CopyProgress {
        CopyProgress {
            sent_pages: self.next,
            total_pages: self.total,
            read_pages: self.read,
            same_pages: self.same,
            resent_pages: self.resent,
            waits: self.waits,
        }
    }

    /// What it came to so far.
    pub fn stats(&self) -> EncodeStats {
        self.stats
    }
}
