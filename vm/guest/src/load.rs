//! The memory load on its arena. With one vCPU it runs there in short slices between two looks at the network; with
//! more, every other vCPU writes its share of the pages.

use crate::kv::{Digest, Load, LoadError, PAGE, Pacer, Pattern};
use crate::platform;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// The most vCPUs that a machine has.
const VCPUS_MAX: usize = 64;
/// Pages written between two looks at the clock.
const BATCH: u64 = 8;
/// Longest idling of a worker without a load to run, and so the longest time until it sees a new one.
const WORKER_IDLE_US: u64 = 10_000;
/// Shortest wait for the next page: pages that come due within it are written together.
const NAP_NS: u64 = 2_000_000;
/// Longest slice on the vCPU that also serves the network.
pub const SLICE_NS: u64 = 200_000;

/// The load as all vCPUs see it. A new load is published so: `stopped` is set, the workers that are writing are waited
/// for, the parameters are changed, `generation` grows and `stopped` is cleared.
struct Shared {
    arena: AtomicU64,
    arena_pages: AtomicU64,
    stopped: AtomicBool,
    generation: AtomicU64,
    pages_per_second: AtomicU64,
    working_set_pages: AtomicU64,
    pattern: AtomicU8,
    /// Pages that any load has had in its working set: what the digest covers.
    touched_pages: AtomicU64,
    writing: [AtomicBool; VCPUS_MAX],
    written: [AtomicU64; VCPUS_MAX],
}

static SHARED: Shared = Shared {
    arena: AtomicU64::new(0),
    arena_pages: AtomicU64::new(0),
    stopped: AtomicBool::new(true),
    generation: AtomicU64::new(0),
    pages_per_second: AtomicU64::new(0),
    working_set_pages: AtomicU64::new(0),
    pattern: AtomicU8::new(0),
    touched_pages: AtomicU64::new(0),
    writing: [const { AtomicBool::new(false) }; VCPUS_MAX],
    written: [const { AtomicU64::new(0) }; VCPUS_MAX],
};

/// Gives the load its arena.
///
/// # Safety
/// Called once, before any vCPU writes; nobody else uses the memory from `start` to `end`, both multiples of a page.
pub unsafe fn init(start: usize, end: usize) {
    SHARED.arena.store(start as u64, Ordering::SeqCst);
    SHARED.arena_pages.store(((end - start) / PAGE) as u64, Ordering::SeqCst);
}

/// Starts, changes or stops the load.
pub fn set(load: Load) -> Result<(), LoadError> {
    let pages_max = SHARED.arena_pages.load(Ordering::SeqCst);
    if load.working_set_pages > pages_max {
        return Err(LoadError { pages_max });
    }
    SHARED.stopped.store(true, Ordering::SeqCst);
    while SHARED.writing.iter().any(|writing| writing.load(Ordering::SeqCst)) {
        core::hint::spin_loop();
    }
    SHARED.pages_per_second.store(load.pages_per_second, Ordering::SeqCst);
    SHARED.working_set_pages.store(load.working_set_pages, Ordering::SeqCst);
    SHARED.pattern.store(load.pattern as u8, Ordering::SeqCst);
    SHARED.touched_pages.fetch_max(load.working_set_pages, Ordering::SeqCst);
    SHARED.generation.fetch_add(1, Ordering::SeqCst);
    SHARED.stopped.store(load.pages_per_second == 0, Ordering::SeqCst);
    Ok(())
}

/// Digest of all pages that a load may have written, and their number. Exact while the load is stopped.
pub fn digest() -> (u64, u64) {
    let pages = SHARED.touched_pages.load(Ordering::SeqCst);
    let mut digest = Digest::default();
    for page in 0..pages {
        for word in 0..PAGE as u64 / 8 {
            // SAFETY: inside the arena; volatile, since other vCPUs may be writing there.
            digest.word(unsafe { (page_address(page) as *const u64).add(word as usize).read_volatile() });
        }
    }
    (digest.finish(), pages)
}

/// Pages written since the start.
pub fn written() -> u64 {
    SHARED.written.iter().map(|written| written.load(Ordering::Relaxed)).sum()
}

fn page_address(page: u64) -> u64 {
    SHARED.arena.load(Ordering::Relaxed) + page * PAGE as u64
}

/// One vCPU's share of the load.
pub struct Worker {
    vcpu: usize,
    /// This worker writes the pages `first`, `first + stride`, ... of the working set.
    first: u64,
    stride: u64,
    generation: u64,
    pacer: Pacer,
    working_set_pages: u64,
    pattern: Pattern,
    next: u64,
    round: u64,
}

impl Worker {
    /// The share of worker `index` of `workers`, run by `vcpu`.
    pub fn new(vcpu: usize, index: u64, workers: u64) -> Self {
        Self {
            vcpu,
            first: index,
            stride: workers,
            generation: 0,
            pacer: Pacer::new(0, 0),
            working_set_pages: 0,
            pattern: Pattern::Count,
            next: index,
            round: 0,
        }
    }

    /// Writes what is due, for at most `slice_ns`. Returns how many nanoseconds there is nothing to do; `None`: until
    /// there is another load.
    pub fn run(&mut self, slice_ns: u64) -> Option<u64> {
        if SHARED.stopped.load(Ordering::Relaxed) {
            return None;
        }
        SHARED.writing[self.vcpu].store(true, Ordering::SeqCst);
        let idle_ns =
            if SHARED.stopped.load(Ordering::SeqCst) { None } else { Some(self.write_due(slice_ns)) };
        SHARED.writing[self.vcpu].store(false, Ordering::SeqCst);
        idle_ns?
    }

    fn write_due(&mut self, slice_ns: u64) -> Option<u64> {
        let start_ns = platform::clock_ns();
        let mut now_ns = start_ns;
        self.take_over_changes(now_ns);
        // A worker whose first page is beyond a small working set has no share in it.
        if self.first >= self.working_set_pages {
            return None;
        }
        loop {
            let batch = self.pacer.due(now_ns).min(BATCH);
            if batch == 0 || SHARED.stopped.load(Ordering::SeqCst) {
                return self.pacer.due_in_ns(now_ns).map(|ns| ns.max(NAP_NS));
            }
            for _ in 0..batch {
                self.write_page();
            }
            self.pacer.wrote(batch);
            SHARED.written[self.vcpu].fetch_add(batch, Ordering::Relaxed);
            now_ns = platform::clock_ns();
            if now_ns - start_ns >= slice_ns {
                return self.pacer.due_in_ns(now_ns);
            }
        }
    }

    fn take_over_changes(&mut self, now_ns: u64) {
        let generation = SHARED.generation.load(Ordering::SeqCst);
        if generation == self.generation {
            return;
        }
        self.generation = generation;
        self.working_set_pages = SHARED.working_set_pages.load(Ordering::SeqCst);
        self.pattern = match SHARED.pattern.load(Ordering::SeqCst) {
            pattern if pattern == Pattern::Random as u8 => Pattern::Random,
            pattern if pattern == Pattern::Text as u8 => Pattern::Text,
            _ => Pattern::Count,
        };
        self.next = self.first;
        let rate = SHARED.pages_per_second.load(Ordering::SeqCst);
        let sharing = self.stride.min(self.working_set_pages.max(1));
        let share = rate / sharing + u64::from(self.first < rate % sharing);
        self.pacer = Pacer::new(share, now_ns);
    }

    fn write_page(&mut self) {
        self.round += 1;
        // SAFETY: a page of the arena, which only the load uses; no two workers have a page in common, and the digest
        // reads volatile.
        let page = unsafe { &mut *(page_address(self.next) as *mut [u64; PAGE / 8]) };
        self.pattern.fill(page, self.round);
        // The compiler must not keep the page's bytes back.
        core::hint::black_box(page);
        self.next += self.stride;
        if self.next >= self.working_set_pages {
            self.next = self.first;
        }
    }
}

/// What a vCPU does that does not serve the network.
pub fn run_worker(mut worker: Worker) -> ! {
    loop {
        let idle_us = match worker.run(10 * SLICE_NS) {
            None => WORKER_IDLE_US,
            Some(ns) => (ns / 1000).min(WORKER_IDLE_US),
        };
        if idle_us > 0 {
            platform::idle(idle_us);
        }
    }
}
