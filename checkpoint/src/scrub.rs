//! Scrubbing: with each checkpoint a few pages are compared that it does not have to carry. A running counter chooses
//! them, so that every page of the guest has its turn. The comparison finds what no digest of a stream can: a page that
//! changed without being dirty, or one that was applied wrongly.
//!
//! The primary hashes the chosen pages while the guest runs, so that a pause gets no longer. Such a hash is that of the
//! page as of the epoch's end, unless the guest wrote the page after it was hashed. Then the page is dirty, its copy is
//! in the capture, and [`Sample::as_captured`] takes the copy's hash. The backup hashes the same pages as of the same
//! epoch before it seals it.

use crate::page::{Page, ZERO_PAGE};
use ft_ram::{PageIndex, PageRun, RamView};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

/// Pages hashed with each checkpoint. At 200 checkpoints a second all of 64 MiB have their turn within 11 s.
pub const SAMPLES: usize = 8;
/// Most samples that a checkpoint may bring.
pub const SAMPLES_MAX: usize = 64;

/// A page's hash as of an epoch's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The page.
    pub page: PageIndex,
    /// XXH3 of its content.
    pub hash: u64,
}

impl Sample {
    /// The sample of a page with this content.
    #[must_use]
    pub fn of(page: PageIndex, content: &Page) -> Self {
        Self { page, hash: xxh3_64(content) }
    }

    /// The same page's sample as the capture has it: `captured` finds a dirty page's copy.
    #[must_use]
    pub fn as_captured<'c>(self, captured: impl FnOnce(PageIndex) -> Option<&'c Page>) -> Self {
        captured(self.page).map_or(self, |content| Self::of(self.page, content))
    }
}

/// Chooses pages in turn, on the primary.
#[derive(Debug)]
pub struct Scrubber {
    pages: PageIndex,
    next: PageIndex,
    pass_began: Instant,
    /// How long the last whole pass took.
    pass: Option<Duration>,
}

impl Scrubber {
    /// For a memory of so many pages, which must not be empty. It begins at the first one.
    #[must_use]
    pub fn new(pages: PageIndex) -> Self {
        Self { pages, next: 0, pass_began: Instant::now(), pass: None }
    }

    /// Hashes the pages whose turn it is. The guest may run: see the module.
    pub fn sample(&mut self, view: &RamView, into: &mut Vec<Sample>) {
        let mut content = ZERO_PAGE;
        into.clear();
        for _ in 0..SAMPLES.min(self.pages as usize) {
            // Reading it would make the kernel hold memory for all of the guest's, by and by.
            match view.run_from(self.next) {
                Ok(PageRun::Hole(_)) => content.fill(0),
                _ => view.read_page(self.next, &mut content),
            }
            into.push(Sample::of(self.next, &content));
            self.next += 1;
            if self.next == self.pages {
                self.next = 0;
                self.pass = Some(self.pass_began.elapsed());
                self.pass_began = Instant::now();
            }
        }
    }

    /// How long the last whole pass took, if there was one.
    #[must_use]
    pub fn pass(&self) -> Option<Duration> {
        self.pass
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft_ram::GuestRam;
    use ft_ram::layout::PAGE_SIZE;

    #[test]
    fn every_page_has_its_turn_and_the_first_follows_the_last() {
        let view = GuestRam::new(16 << 20).unwrap().view().unwrap();
        let mut scrubber = Scrubber::new(view.pages());
        let mut samples = Vec::new();
        let mut turns = Vec::new();
        for _ in 0..view.pages() as usize / SAMPLES {
            assert_eq!(scrubber.pass(), None, "not yet");
            scrubber.sample(&view, &mut samples);
            turns.extend(samples.iter().map(|sample| sample.page));
        }
        assert!(turns.iter().copied().eq(0..view.pages()));
        assert!(scrubber.pass().is_some());
        scrubber.sample(&view, &mut samples);
        assert_eq!(samples[0].page, 0);
        assert_eq!(view.run_from(0).unwrap(), PageRun::Hole(0..view.pages()), "looking made memory of holes");
    }

    #[test]
    fn a_page_written_after_it_was_hashed_counts_as_it_was_captured() {
        let (old, new) = ([1; PAGE_SIZE], [2; PAGE_SIZE]);
        let sample = Sample::of(7, &old);
        assert_eq!(sample.as_captured(|_| None), sample);
        assert_eq!(sample.as_captured(|page| (page == 7).then_some(&new)), Sample::of(7, &new));
    }
}
