//! Sealed checkpoints that are not applied yet, oldest first, and the [`Applier`] that works them off.
//!
//! A sealed checkpoint holds whole pages. So applying it cannot fail, and applying it again after an interruption gives
//! the same result. A checkpoint stays in the queue while it is being applied: a page that is in no queued checkpoint
//! is therefore at rest in the image.

use crate::arena::PageArena;
use crate::image::Image;
use crate::page::Page;
use ft_ram::PageIndex;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Slot of a page that is zero.
pub(crate) const ZERO_SLOT: u32 = u32::MAX;
/// The applier looks for a stop after each batch of this many pages.
const STOP_CHECK: usize = 64;

/// The pages of a checkpoint, decoded and verified.
pub struct SealedCheckpoint {
    epoch: u64,
    pages: Pages,
    pool: Arc<Pool>,
}

/// Page numbers, ascending, and where their contents are. Its memory is used again.
pub(crate) struct Pages {
    pub(crate) index: Vec<PageIndex>,
    pub(crate) slot: Vec<u32>,
    pub(crate) arena: PageArena,
}

impl Pages {
    /// A page's content, if it is in here; none means zero.
    pub(crate) fn find(&self, page: PageIndex) -> Option<Option<&Page>> {
        self.index.binary_search(&page).ok().map(|at| self.content(at))
    }

    /// Content of the page at a place in `index`; none means zero.
    fn content(&self, at: usize) -> Option<&Page> {
        let slot = self.slot[at];
        (slot != ZERO_SLOT).then(|| self.arena.page(slot as usize))
    }
}

impl SealedCheckpoint {
    pub(crate) fn new(epoch: u64, pages: Pages, pool: Arc<Pool>) -> Self {
        Self { epoch, pages, pool }
    }

    /// Its epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Number of pages that it changes.
    pub fn len(&self) -> usize {
        self.pages.index.len()
    }

    /// Whether it changes none.
    pub fn is_empty(&self) -> bool {
        self.pages.index.is_empty()
    }

    /// The pages, ascending, with their contents; none means zero.
    pub fn pages(&self) -> impl Iterator<Item = (PageIndex, Option<&Page>)> {
        (0..self.len()).map(|at| (self.pages.index[at], self.content(at)))
    }

    /// A page's content, if it is in here.
    pub fn find(&self, page: PageIndex) -> Option<Option<&Page>> {
        self.pages.find(page)
    }

    /// The pages, ascending.
    pub(crate) fn indices(&self) -> &[PageIndex] {
        &self.pages.index
    }

    /// Content of the page at a place in [`Self::indices`]; none means zero.
    pub(crate) fn content(&self, at: usize) -> Option<&Page> {
        self.pages.content(at)
    }
}

impl Drop for SealedCheckpoint {
    fn drop(&mut self) {
        let empty = Pages { index: Vec::new(), slot: Vec::new(), arena: PageArena::new(0) };
        self.pool.put(std::mem::replace(&mut self.pages, empty));
    }
}

/// Memory of applied checkpoints, for the next ones.
pub(crate) struct Pool {
    spares: Mutex<Vec<Pages>>,
    arena_pages: usize,
    pooled_pages_max: usize,
}

impl Pool {
    pub(crate) fn new(arena_pages: usize, pooled_pages_max: usize) -> Arc<Self> {
        Arc::new(Self { spares: Mutex::new(Vec::new()), arena_pages, pooled_pages_max })
    }

    pub(crate) fn take(&self) -> Pages {
        let spare = self.spares.lock().pop();
        spare.unwrap_or_else(|| Pages {
            index: Vec::new(),
            slot: Vec::new(),
            arena: PageArena::new(self.arena_pages),
        })
    }

    pub(crate) fn put(&self, mut pages: Pages) {
        pages.index.clear();
        pages.slot.clear();
        pages.arena.clear();
        let mut spares = self.spares.lock();
        let pooled: usize = spares.iter().map(|spare| spare.arena.capacity()).sum();
        if pages.arena.capacity() > 0 && pooled + pages.arena.capacity() <= self.pooled_pages_max {
            spares.push(pages);
        }
    }
}

/// The queue, shared between the receiver and the applier.
pub(crate) struct Backlog {
    image: Arc<Image>,
    queue: Mutex<Queue>,
    arrived: Condvar,
    /// Held while pages go into the image, so that checkpoints are applied one after the other, by any thread.
    applying: Mutex<()>,
    stopped: AtomicBool,
}

#[derive(Default)]
struct Queue {
    checkpoints: VecDeque<Arc<SealedCheckpoint>>,
    pages: usize,
}

impl Backlog {
    pub(crate) fn new(image: Arc<Image>) -> Arc<Self> {
        Arc::new(Self {
            image,
            queue: Mutex::default(),
            arrived: Condvar::new(),
            applying: Mutex::new(()),
            stopped: AtomicBool::new(false),
        })
    }

    pub(crate) fn push(&self, checkpoint: SealedCheckpoint) {
        let mut queue = self.queue.lock();
        queue.pages += checkpoint.len();
        queue.checkpoints.push_back(Arc::new(checkpoint));
        self.arrived.notify_one();
    }

    /// Number of checkpoints and of pages in them.
    pub(crate) fn len(&self) -> (usize, usize) {
        let queue = self.queue.lock();
        (queue.checkpoints.len(), queue.pages)
    }

    /// The queued checkpoints, newest first.
    pub(crate) fn snapshot(&self, into: &mut Vec<Arc<SealedCheckpoint>>) {
        into.clear();
        into.extend(self.queue.lock().checkpoints.iter().rev().cloned());
    }

    /// Drops all of them, once the one being applied is out of the way: a new copy begins.
    pub(crate) fn discard(&self) {
        let _turn = self.applying.lock();
        *self.queue.lock() = Queue::default();
    }

    /// Lets no one apply any more, and takes what is left, oldest first (the first may be applied in part).
    pub(crate) fn stop(&self) -> Vec<Arc<SealedCheckpoint>> {
        {
            let _queue = self.queue.lock();
            self.stopped.store(true, Ordering::SeqCst);
            self.arrived.notify_all();
        }
        let _turn = self.applying.lock();
        std::mem::take(&mut *self.queue.lock()).checkpoints.into()
    }

    /// Applies the oldest checkpoint. None if there is none, or when stopped.
    pub(crate) fn apply_next(&self) -> Option<u64> {
        let _turn = self.applying.lock();
        let checkpoint = self.queue.lock().checkpoints.front().cloned()?;
        for (done, (page, content)) in checkpoint.pages().enumerate() {
            if done % STOP_CHECK == 0 && self.stopped.load(Ordering::SeqCst) {
                return None;
            }
            self.image.write(page, content);
        }
        let mut queue = self.queue.lock();
        queue.checkpoints.pop_front();
        queue.pages -= checkpoint.len();
        Some(checkpoint.epoch())
    }
}

/// Applies sealed checkpoints to the image, in order; for a thread of the daemon's.
#[derive(Clone)]
pub struct Applier(pub(crate) Arc<Backlog>);

impl Applier {
    /// Applies the oldest checkpoint, if there is one, and says which.
    pub fn apply_next(&self) -> Option<u64> {
        self.0.apply_next()
    }

    /// Applies checkpoints as they are sealed, until the receiver is turned into a sealed image or is gone.
    pub fn run(&self) {
        loop {
            while self.apply_next().is_some() {}
            let mut queue = self.0.queue.lock();
            if self.0.stopped.load(Ordering::SeqCst) {
                return;
            }
            if queue.checkpoints.is_empty() {
                self.0.arrived.wait(&mut queue);
            }
        }
    }
}
