//! A full copy as it comes in: its pages go straight into the image, which is nobody's state until the first checkpoint
//! is sealed.
//!
//! The image may still hold the guest's memory of an earlier time. It stays where it is then, and the primary is told
//! the hash of each page, some way ahead of its copy. What is the same comes as a record that says so, everything else
//! takes the place of what was there. See [`crate::compare`].

use super::incoming::no_base;
use super::{Holding, IncomingChanges, ReceiveError, Received, Receiver};
use crate::compare::PageHasher;
use crate::digest::Chain;
use crate::image::Image;
use crate::page::{Encoding, Record, Records, ZERO_PAGE};
use crate::wire::FrameType;
use crate::wire::message::CopyBegin;
use crate::wire::pages::{HASHES_MAX, HashRun, PageHashes};
use ft_ram::{PageIndex, PageRun};

/// Pages ahead of the copy of which the primary is told: 32 MiB of memory, 128 KiB of hashes. So much can be found the
/// same while an answer is on its way.
pub const TOLD_AHEAD: PageIndex = 8192;

/// A full copy that is coming in.
pub(super) struct Copying {
    pub(super) pairing: u64,
    /// Pages that came at least once.
    pub(super) received: PageIndex,
    pub(super) chain: Chain,
    /// Those of them that were here already.
    same: PageIndex,
    /// The page after the highest that came.
    reached: PageIndex,
    /// None: the primary does not ask.
    telling: Option<Telling>,
}

/// What the primary knows of the memory that is kept here.
struct Telling {
    hasher: PageHasher,
    /// It was told of every page before this one.
    told: PageIndex,
}

impl Receiver {
    pub(super) fn copy_begin(&mut self, begin: CopyBegin) -> Result<Received<'static>, ReceiveError> {
        let ours = self.image.view().pages();
        if begin.total_pages != ours {
            return Err(ReceiveError::MemorySize { theirs: begin.total_pages, ours });
        }
        let pairing = begin.pairing;
        self.disagreed = None;
        self.incoming_changes = IncomingChanges::default();
        let telling = self.compares.then(|| Telling { hasher: PageHasher::of_pairing(pairing), told: 0 });
        let keeps = telling.is_some();
        let chain = Chain::new(pairing);
        self.holding = Holding::Copy(Copying { pairing, received: 0, chain, same: 0, reached: 0, telling });
        self.backlog.discard();
        if keeps {
            self.image.keep();
        } else {
            self.image.empty();
        }
        Ok(Received::CopyStarted { pairing })
    }

    pub(super) fn copy_pages(&mut self, batch: &[u8]) -> Result<Received<'static>, ReceiveError> {
        let Holding::Copy(copy) = &mut self.holding else {
            return Err(ReceiveError::Unexpected { kind: FrameType::CopyPages, when: "outside a copy" });
        };
        let total = self.image.view().pages();
        for record in Records::of_copy(batch) {
            let record = record.map_err(|source| ReceiveError::Page { epoch: 0, source })?;
            if record.page >= total || record.pages() > total - record.page {
                return Err(out_of_order(record.page, total));
            }
            copy.reached = copy.reached.max(record.page + record.pages());
            if record.pages() == 1 {
                copy.page(&record, &self.image)?;
            } else {
                copy.zero_run(&record, &self.image)?;
            }
        }
        let (received_pages, same_pages) = (copy.received, copy.same);
        Ok(Received::CopyProgress { received_pages, total_pages: total, same_pages })
    }

    /// What the primary is to hear of the memory that is kept here, as far as its copy has come; nothing most of the
    /// time. To be asked after each frame.
    pub fn page_hashes(&mut self) -> Vec<PageHashes> {
        let Holding::Copy(Copying { reached, telling: Some(telling), .. }) = &mut self.holding else {
            return Vec::new();
        };
        std::iter::from_fn(|| telling.next(&self.image, *reached)).collect()
    }
}

fn out_of_order(page: PageIndex, pages: PageIndex) -> ReceiveError {
    ReceiveError::PageIndex { epoch: 0, page, pages }
}

impl Copying {
    fn zero_run(&mut self, record: &Record<'_>, image: &Image) -> Result<(), ReceiveError> {
        let run = record.page..record.page + record.pages();
        // Each page is in one run at most: so their number is bounded, however long they are.
        for page in run.clone() {
            if !image.mark_received(page) {
                return Err(out_of_order(page, image.view().pages()));
            }
        }
        image.clear(run);
        self.chain.zero_run(record.page, record.pages());
        self.received += record.pages();
        Ok(())
    }

    fn page(&mut self, record: &Record<'_>, image: &Image) -> Result<(), ReceiveError> {
        let (page, is_same) = (record.page, record.encoding == Encoding::Same);
        let mut content = ZERO_PAGE;
        if record.needs_base() {
            // As last sent, or as it was told that it is here.
            let is_told = |telling: &Telling| page < telling.told;
            let is_kept = is_same && self.telling.as_ref().is_some_and(is_told);
            if !is_kept && !image.was_received(page) {
                return Err(no_base(0, record));
            }
            image.read(page, &mut content);
        }
        record.decode(&mut content).map_err(|source| ReceiveError::Page { epoch: 0, source })?;
        self.chain.page(page, &content);
        if !is_same {
            image.write_any(page, &content);
        }
        let is_new = image.mark_received(page);
        self.received += PageIndex::from(is_new);
        self.same += PageIndex::from(is_new && is_same);
        Ok(())
    }
}

impl Telling {
    /// The next message; none if the primary knows enough for now.
    fn next(&mut self, image: &Image, reached: PageIndex) -> Option<PageHashes> {
        let total = image.view().pages();
        let until = reached.saturating_add(TOLD_AHEAD).min(total);
        // Little by little would be many messages.
        if self.told >= until || until < total && until - self.told < HASHES_MAX as PageIndex {
            return None;
        }
        let first = self.told;
        let mut runs = Vec::new();
        let mut left = HASHES_MAX;
        let mut content = ZERO_PAGE;
        while left > 0 && self.told < until && runs.len() < HASHES_MAX {
            // What has come is asked about no more.
            let from = self.told.max(reached);
            let held = next_held(image, from).unwrap_or(total..total);
            let pages = held.len().min(left) as PageIndex;
            let hashes = (held.start..held.start + pages).map(|page| {
                image.read(page, &mut content);
                self.hasher.hash(&content)
            });
            runs.push(HashRun { holes: held.start - self.told, hashes: hashes.collect() });
            left -= pages as usize;
            self.told = held.start + pages;
        }
        Some(PageHashes { first, runs })
    }
}

/// The first pages from this one on that there is memory behind.
fn next_held(image: &Image, from: PageIndex) -> Option<std::ops::Range<PageIndex>> {
    let total = image.view().pages();
    let mut from = from;
    while from < total {
        // Where the kernel does not say, nothing is kept.
        match image.view().run_from(from).ok()? {
            PageRun::Held(run) => return Some(run),
            PageRun::Hole(run) => from = run.end,
        }
    }
    None
}
