//! The full copy that a pairing begins with, on the primary. It sends all of RAM in batches while the guest runs, then
//! the pages dirtied meanwhile, in as many rounds as the caller likes; the first checkpoint carries the rest. Dirty
//! logging must be on before the copy begins: a page that changes while it is read is dirty, and so is sent again.

use crate::encoder::{CopyError, EncodeStats, Encoder};
use crate::page::{Page, ZERO_PAGE};
use crate::wire::WireSink;
use ft_ram::{PageIndex, RamView};

/// Pages read out of the guest at a time.
const STRIDE: usize = 64;

/// A full copy in progress.
pub struct FullCopy {
    next: PageIndex,
    total: PageIndex,
    resent: u64,
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
    /// Pages sent again because they were dirtied.
    pub resent_pages: u64,
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
            resent: 0,
            stats: EncodeStats::default(),
            buffer: vec![ZERO_PAGE; STRIDE],
        })
    }

    /// Sends up to `max_pages` more of the pages not sent yet.
    pub fn step(
        &mut self,
        encoder: &mut Encoder,
        view: &RamView,
        max_pages: u32,
        out: &mut impl WireSink,
    ) -> Result<CopyProgress, CopyError> {
        let end = self.total.min(self.next.saturating_add(max_pages));
        while self.next < end {
            let pages: Vec<PageIndex> = (self.next..end).take(STRIDE).collect();
            self.send(encoder, view, &pages, out)?;
            self.next += pages.len() as PageIndex;
        }
        out.flush()?;
        Ok(self.progress())
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
            self.send(encoder, view, pages, out)?;
        }
        self.resent += dirty.len() as u64;
        out.flush()?;
        Ok(self.progress())
    }

    fn send(
        &mut self,
        encoder: &mut Encoder,
        view: &RamView,
        pages: &[PageIndex],
        out: &mut impl WireSink,
    ) -> Result<(), CopyError> {
        for (&page, copy) in pages.iter().zip(&mut self.buffer) {
            view.read_page(page, copy);
        }
        encoder.copy_pages(pages.iter().copied().zip(&self.buffer), out, &mut self.stats)
    }

    /// How far it is.
    pub fn progress(&self) -> CopyProgress {
        CopyProgress { sent_pages: self.next, total_pages: self.total, resent_pages: self.resent }
    }

    /// What it came to so far.
    pub fn stats(&self) -> EncodeStats {
        self.stats
    }
}
