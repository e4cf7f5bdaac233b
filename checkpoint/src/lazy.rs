//! Take-over without waiting for the backlog: the guest runs at once, and a page that is still to be applied is brought
//! up to date at its first access.
//!
//! The guest's mapping of the ranges with pending pages is registered with userfaultfd (minor faults: the page is in
//! the page cache, but not mapped here; and missing ones: it is not even there), after which its page table entries are
//! dropped. One thread then does everything, so that nothing needs a lock: it serves the waiting faults, applies a
//! few more pages, and starts over. It writes through the image's own mapping, which does not fault, and writes each
//! page exactly once, before the guest can see it. A range whose pages are all applied is unregistered, which wakes
//! its waiting threads. This covers KVM's accesses as well as the VMM's own.
//!
//! Pages written here are in nobody's dirty log: a full copy to a new backup may begin only after
//! [`LazyApply::finish`].

use crate::backlog::SealedCheckpoint;
use crate::image::Image;
use crate::page::Page;
use crate::receiver::SealedImage;
use ft_confine::ThreadKind;
use ft_ram::layout::PAGE_SIZE;
use ft_ram::{GuestRam, PageIndex, Slot};
use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use userfaultfd::{Error as UffdError, Event, EventBuffer, FeatureFlags, RegisterMode, Uffd, UffdBuilder};

/// Up to this many pages are applied before the guest runs: that is faster than setting all this up (see
/// `benches/takeover.rs`).
pub const EAGER_PAGES_MAX: usize = 512;
/// Most ranges registered: each costs system calls and splits the guest's mapping.
const RANGES_MAX: usize = 32;
/// Pages applied between two looks for faults.
const STRIDE: usize = 8;
/// `UFFD_FEATURE_MINOR_SHMEM` (linux/userfaultfd.h, since 5.13), which the crate does not name.
const MINOR_SHMEM: FeatureFlags = FeatureFlags::from_bits_retain(1 << 10);

/// Why pages cannot be served one by one.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The kernel has no userfaultfd for shared memory, or refuses it.
    #[error("userfaultfd: {0}")]
    Uffd(#[from] UffdError),
    /// The guest's mapping stays as it is.
    #[error("cannot drop the guest's page table entries: {0}")]
    Unmap(std::io::Error),
}

/// How a take-over's backlog was dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LazyStats {
    /// Pages that were pending.
    pub pages: usize,
    /// Faults served.
    pub faults: usize,
    /// From the start to the last page.
    pub elapsed: Duration,
}

/// Whether this host lets a take-over apply its backlog behind the running guest; why not.
pub fn is_possible() -> Result<(), ServeError> {
    userfaultfd().map(drop)
}

fn userfaultfd() -> Result<Uffd, ServeError> {
    Ok(UffdBuilder::new()
        .close_on_exec(true)
        .non_blocking(true)
        .user_mode_only(false)
        .require_features(MINOR_SHMEM | FeatureFlags::MISSING_SHMEM)
        .create()?)
}

/// A backlog that is being applied behind a running guest.
pub struct LazyApply {
    worker: Option<JoinHandle<LazyStats>>,
    stats: LazyStats,
}

impl LazyApply {
    /// Makes `ram` the memory of the sealed checkpoint. When this returns the guest may run (and not before). Small
    /// backlogs, and all of them where the kernel has no userfaultfd for this or refuses it, are applied on the spot.
    ///
    /// `ram` is the memory that the receiver's view belongs to, and nobody is using it yet. What is `sealed` is better
    /// dropped later: giving its memory back takes longer than all this.
    pub fn start(ram: &GuestRam, sealed: &SealedImage) -> Self {
        let started = Instant::now();
        let plan = Plan::new(&sealed.pending);
        let pages = plan.pages.len();
        if pages > EAGER_PAGES_MAX {
            match FaultServer::new(ram, &sealed.image, plan) {
                Ok(server) => {
                    match std::thread::Builder::new().name("ftd-lazy".into()).spawn(move || {
                        ft_confine::this_thread(ThreadKind::Checkpoint);
                        server.run()
                    }) {
                        Ok(worker) => return Self { worker: Some(worker), stats: LazyStats::default() },
                        // The server is gone with the closure, and with it the registration.
                        Err(error) => {
                            tracing::warn!(%error, "cannot start a thread to apply checkpoints while the guest runs")
                        }
                    }
                }
                Err(error) => {
                    let what = "userfaultfd does not work here: applying the backlog before the guest runs";
                    tracing::warn!(%error, pages, "{what}");
                }
            }
        }
        let plan = Plan::new(&sealed.pending);
        for at in 0..plan.pages.len() {
            plan.apply(at, &sealed.image);
        }
        Self { worker: None, stats: LazyStats { pages, faults: 0, elapsed: started.elapsed() } }
    }

    /// Whether everything is applied.
    pub fn is_finished(&self) -> bool {
        self.worker.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until everything is applied: some milliseconds at most.
    pub fn finish(mut self) -> LazyStats {
        self.join();
        self.stats
    }

    fn join(&mut self) {
        if let Some(worker) = self.worker.take() {
            match worker.join() {
                Ok(stats) => self.stats = stats,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    }
}

impl Drop for LazyApply {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.join();
        }
    }
}

/// The pending pages, ascending, each with its newest content.
struct Plan {
    checkpoints: Vec<Arc<SealedCheckpoint>>,
    pages: Vec<Pending>,
}

#[derive(Clone, Copy)]
struct Pending {
    page: PageIndex,
    /// In which checkpoint, and where in it.
    checkpoint: u32,
    at: u32,
}

impl Plan {
    fn new(checkpoints: &[Arc<SealedCheckpoint>]) -> Self {
        let mut pages: Vec<Pending> = Vec::with_capacity(checkpoints.iter().map(|c| c.len()).sum());
        for (number, checkpoint) in checkpoints.iter().enumerate() {
            let entries = checkpoint.indices().iter().enumerate();
            pages.extend(entries.map(|(at, &page)| Pending {
                page,
                checkpoint: number as u32,
                at: at as u32,
            }));
        }
        // Newest first among equals, and the first of equals stays.
        pages.sort_unstable_by_key(|p| (p.page, u32::MAX - p.checkpoint));
        pages.dedup_by_key(|p| p.page);
        Self { checkpoints: checkpoints.to_vec(), pages }
    }

    fn content(&self, at: usize) -> Option<&Page> {
        let Pending { checkpoint, at, .. } = self.pages[at];
        self.checkpoints[checkpoint as usize].content(at as usize)
    }

    fn apply(&self, at: usize, image: &Image) {
        image.write(self.pages[at].page, self.content(at));
    }

    fn find(&self, page: PageIndex) -> Option<usize> {
        self.pages.binary_search_by_key(&page, |pending| pending.page).ok()
    }

    /// Where the widest gaps are, the pages are cut into at most `max` groups.
    fn groups(&self, max: usize) -> Vec<Range<usize>> {
        let gap = |at: usize| self.pages[at].page - self.pages[at - 1].page;
        let mut cuts: Vec<usize> = (1..self.pages.len()).filter(|at| gap(*at) > 1).collect();
        if cuts.len() >= max {
            cuts.select_nth_unstable_by_key(max - 1, |at| u32::MAX - gap(*at));
            cuts.truncate(max - 1);
            cuts.sort_unstable();
        }
        let starts = std::iter::once(0).chain(cuts.iter().copied());
        starts.zip(cuts.iter().copied().chain([self.pages.len()])).map(|(start, end)| start..end).collect()
    }
}

/// A registered piece of the guest's mapping.
struct Registered {
    /// Where it is in the guest's mapping.
    address: usize,
    bytes: usize,
    first_page: PageIndex,
    /// Its pages in the plan.
    pending: Range<usize>,
}

struct FaultServer {
    uffd: Uffd,
    ranges: Vec<Registered>,
    plan: Plan,
    applied: Vec<bool>,
    image: Arc<Image>,
    /// Keeps the guest's mapping.
    _ram: GuestRam,
    started: Instant,
}

impl FaultServer {
    fn new(ram: &GuestRam, image: &Arc<Image>, plan: Plan) -> Result<Self, ServeError> {
        let started = Instant::now();
        let uffd = userfaultfd()?;
        let mut ranges = Vec::new();
        for slot in ram.slots() {
            for group in plan.groups(RANGES_MAX) {
                ranges.extend(Registered::within(&slot, &plan, group));
            }
        }
        for range in &ranges {
            let start = range.address as *mut c_void;
            uffd.register_with_mode(start, range.bytes, RegisterMode::MINOR | RegisterMode::MISSING)?;
            // SAFETY: part of the guest's shared mapping: its entries are dropped, the memory behind it stays.
            if unsafe { libc::madvise(start, range.bytes, libc::MADV_DONTNEED) } != 0 {
                return Err(ServeError::Unmap(std::io::Error::last_os_error()));
            }
        }
        let applied = vec![false; plan.pages.len()];
        Ok(Self { uffd, ranges, plan, applied, image: Arc::clone(image), _ram: ram.clone(), started })
    }

    fn run(mut self) -> LazyStats {
        let mut faults = 0;
        let mut buffer = EventBuffer::new(16);
        let mut failed = None;
        for number in 0..self.ranges.len() {
            let pending = self.ranges[number].pending.clone();
            for start in pending.clone().step_by(STRIDE) {
                if failed.is_none() {
                    match self.serve(&mut buffer) {
                        Ok(served) => faults += served,
                        Err(error) => failed = Some(error),
                    }
                }
                for at in start..pending.end.min(start + STRIDE) {
                    self.apply(at);
                }
            }
            // Whoever waits for a page of this range is woken and finds it up to date.
            let range = &self.ranges[number];
            if let Err(error) = self.uffd.unregister(range.address as *mut c_void, range.bytes) {
                failed.get_or_insert(error.into());
            }
        }
        if let Some(error) = failed {
            // Everything is applied all the same, and closing the userfaultfd lets everybody go on.
            tracing::warn!(%error, "cannot serve the guest's page faults: it waited for the whole backlog");
        }
        LazyStats { pages: self.plan.pages.len(), faults, elapsed: self.started.elapsed() }
    }

    fn apply(&mut self, at: usize) {
        if !std::mem::replace(&mut self.applied[at], true) {
            self.plan.apply(at, &self.image);
        }
    }

    /// Serves the faults that wait now.
    fn serve(&mut self, buffer: &mut EventBuffer) -> Result<usize, ServeError> {
        let mut addresses = [0; 16];
        let mut count = 0;
        for event in self.uffd.read_events(buffer)? {
            if let Event::Pagefault { addr, .. } = event? {
                addresses[count] = addr as usize & !(PAGE_SIZE - 1);
                count += 1;
            }
        }
        for &address in &addresses[..count] {
            let range = self.ranges.iter().find(|r| (r.address..r.address + r.bytes).contains(&address));
            let Some(page) = range.map(|r| r.first_page + ((address - r.address) / PAGE_SIZE) as PageIndex)
            else {
                continue;
            };
            if let Some(at) = self.plan.find(page) {
                self.apply(at);
            }
            // To continue, the page must be in the page cache, which reading it through the image's mapping ensures.
            self.image.touch(page);
            self.resume(address)?;
        }
        Ok(count)
    }

    /// Maps the page for the guest and wakes the threads that wait for it.
    fn resume(&self, address: usize) -> Result<(), ServeError> {
        let start = address as *mut c_void;
        loop {
            let error = match self.uffd.r#continue(start, PAGE_SIZE, true) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            match error {
                UffdError::SystemError(errno) if errno as i32 == libc::EAGAIN => {}
                // Already mapped, after another fault: the waiting thread only has to try again.
                UffdError::SystemError(errno) if errno as i32 == libc::EEXIST => {
                    return Ok(self.uffd.wake(start, PAGE_SIZE)?);
                }
                // The range was finished and unregistered meanwhile, which woke everybody.
                UffdError::SystemError(errno) if errno as i32 == libc::ENOENT => return Ok(()),
                error => return Err(error.into()),
            }
        }
    }
}

/// Whatever happens, the guest does not go on with a page that is not up to date: this runs before the userfaultfd is
/// closed.
impl Drop for FaultServer {
    fn drop(&mut self) {
        for at in 0..self.applied.len() {
            self.apply(at);
        }
    }
}

impl Registered {
    /// The part of a group of pending pages that lies in a slot.
    fn within(slot: &Slot, plan: &Plan, group: Range<usize>) -> Option<Self> {
        let slot_end = slot.first_page + (slot.bytes / PAGE_SIZE as u64) as PageIndex;
        let pages = &plan.pages[group.clone()];
        let start = group.start + pages.partition_point(|p| p.page < slot.first_page);
        let end = group.start + pages.partition_point(|p| p.page < slot_end);
        let (first, last) = match &plan.pages[start..end] {
            [] => return None,
            [first, .., last] => (first.page, last.page),
            [only] => (only.page, only.page),
        };
        Some(Self {
            address: slot.host as usize + (first - slot.first_page) as usize * PAGE_SIZE,
            bytes: (last - first + 1) as usize * PAGE_SIZE,
            first_page: first,
            pending: start..end,
        })
    }
}
