//! The intent maps of a VM's disks, and the thread that makes them durable. A change of an extent is refused until the
//! extent's bit is durable; then whoever is told tries again. A bit goes when both images are durably the same there:
//! the peer has said so, this host's image was flushed since, and nothing is under way there.
//!
//! ```text
//!   may_change ── wanted ──> thread: mark, commit ──> covered ── ready() ──> the device tries again
//!   settled(epoch) ────────> thread: the new base, flush the image, clear, commit
//! ```
//!
//! The extents that were written last stay set: to clear and set them again would cost two flushes each time.

mod desk;
mod watched;

pub use watched::Watched;

use desk::{Desk, Order, Place, Work};
use ft_disk::Store;
use ft_mirror::{IntentError, IntentMap, Medium};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Extents, of all disks, that stay set.
const KEPT: usize = 256;
/// What could not be made durable is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);

/// Makes durable what was written into an image.
pub type Flush = Box<dyn Fn() -> io::Result<()> + Send>;
/// Is called when changes that were refused may be made.
pub type TellReady = Arc<dyn Fn() + Send + Sync>;

/// An image's part.
pub struct Intent<M> {
    /// The disk's number, from 0.
    pub disk: u16,
    /// Its map.
    pub map: IntentMap<M>,
    /// Its image's.
    pub flush: Flush,
}

/// Whether a change may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Clearance {
    /// Its extents are set, durably.
    Given,
    /// Not before they are. Whoever is told of it tries again.
    Later,
}

/// What became of a change that an image was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The image has it.
    Done,
    /// It may have it, or a part of it, or not.
    InDoubt,
}

/// Why a map is not durable.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("disk {}: its intent map: {source}", disk + 1)]
    Map { disk: u16, source: IntentError },
    #[error("disk {}: its image cannot be flushed: {source}", disk + 1)]
    Flush { disk: u16, source: io::Error },
}

/// See the module. The thread ends when this is dropped.
pub struct Intents {
    shared: Arc<Shared>,
    extent_bytes: BTreeMap<u16, u64>,
    /// So far.
    queues: AtomicU64,
}

struct Shared {
    desk: Mutex<Desk>,
    changed: Condvar,
    ready: Mutex<Option<TellReady>>,
}

impl Intents {
    /// Starts the thread.
    pub fn start<M: Medium + Send + 'static>(disks: Vec<Intent<M>>) -> io::Result<Self> {
        let set = |intent: &Intent<M>| {
            let disk = intent.disk;
            intent.map.set().map(move |extent| Place { disk, extent }).collect::<Vec<_>>()
        };
        let covered = disks.iter().flat_map(set).collect();
        let bases = disks.iter().map(|intent| (intent.disk, intent.map.base())).collect();
        let extent_bytes = disks.iter().map(|intent| (intent.disk, intent.map.extent_bytes())).collect();
        let shared = Arc::new(Shared {
            desk: Mutex::new(Desk::new(covered, bases, KEPT)),
            changed: Condvar::new(),
            ready: Mutex::new(None),
        });
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("ftd-intents".into())
            .spawn(move || of_thread.run(disks.into_iter().map(|intent| (intent.disk, intent)).collect()))?;
        Ok(Self { shared, extent_bytes, queues: 0.into() })
    }

    /// Who is told from now on that refused changes may be made; nobody else any more.
    pub fn on_ready(&self, tell: Option<TellReady>) {
        *self.shared.ready.lock() = tell;
    }

    fn places(&self, disk: u16, bytes: &Range<u64>) -> impl Iterator<Item = Place> + Clone + use<> {
        let extent_bytes = self.extent_bytes.get(&disk).copied();
        let touched = match extent_bytes {
            Some(size) if bytes.start < bytes.end => bytes.start / size..bytes.end.div_ceil(size),
            _ => 0..0,
        };
        touched.map(move |extent| Place { disk, extent })
    }

    /// A change of these bytes is about to be made, in this epoch. Called where nothing may block.
    pub fn may_change(&self, disk: u16, bytes: &Range<u64>, epoch: u64) -> Clearance {
        let mut desk = self.shared.desk.lock();
        let leave = desk.may_change(self.places(disk, bytes), epoch);
        if leave == Clearance::Later {
            self.shared.changed.notify_all();
        }
        leave
    }

    /// Replay mode: as [`Self::may_change`], for a change that the other host's machine makes as well. That it is in an
    /// epoch which both images have is not known before [`Self::shown`].
    pub fn may_execute(&self, disk: u16, bytes: &Range<u64>) -> Clearance {
        let mut desk = self.shared.desk.lock();
        let leave = desk.may_execute(self.places(disk, bytes));
        if leave == Clearance::Later {
            self.shared.changed.notify_all();
        }
        leave
    }

    /// Replay mode: the guest was shown in this epoch that a change of these bytes is made. Whoever has executed
    /// through there has made it as well.
    pub fn shown(&self, disk: u16, bytes: &Range<u64>, epoch: u64) {
        self.shared.desk.lock().shown(self.places(disk, bytes), epoch);
    }

    /// A store whose orders are known here, so that no bit is cleared while a change is under way or has failed. All of
    /// a disk's changes go through one.
    pub fn watch(self: &Arc<Self>, disk: u16, store: Box<dyn Store>) -> Watched {
        Watched::new(Arc::clone(self), disk, store)
    }

    /// A number that no other queue has.
    fn new_queue(&self) -> u64 {
        self.queues.fetch_add(1, Ordering::Relaxed)
    }

    fn begun(&self, order: Order, bytes: &Range<u64>) {
        let places = self.places(order.disk, bytes).collect();
        self.shared.desk.lock().begun(order, places);
    }

    fn ended(&self, order: Order, outcome: Outcome) {
        self.shared.desk.lock().ended(order, outcome);
    }

    fn abandoned(&self, queue: u64) {
        self.shared.desk.lock().abandoned(queue);
    }

    fn doubt(&self, disk: u16) {
        self.shared.desk.lock().doubt(disk);
    }

    /// Primary: a pairing begins, whose copy compares every extent that is set now, here or there.
    pub fn begin_pairing(&self) {
        self.shared.desk.lock().begin_pairing();
    }

    /// Primary: the peer's image is durable through this epoch of the pairing, and is the same as this one was at its
    /// end.
    pub fn settled(&self, pairing: u64, through: u64) {
        if self.shared.desk.lock().settled(pairing, through) {
            self.shared.changed.notify_all();
        }
    }

    /// Backup: this image is the same as the peer's, durably. Later changes of it are in the peer's map.
    pub fn same(&self, pairing: u64) {
        self.shared.desk.lock().same(pairing);
        self.shared.changed.notify_all();
    }

    /// The extents in which the images may differ, by number.
    #[must_use]
    pub fn set(&self, disk: u16) -> Vec<u64> {
        self.shared.desk.lock().set(disk)
    }

    /// The images differ here, although neither host has changed anything: what is said later of the peer's does not
    /// count, only a comparison when the next pairing begins.
    pub fn differ(&self, disk: u16, bytes: &Range<u64>) {
        self.shared.desk.lock().differ(self.places(disk, bytes));
        self.shared.changed.notify_all();
    }

    /// Bytes of the extents in which the images may differ, on all disks.
    #[must_use]
    pub fn set_bytes(&self) -> u64 {
        let desk = self.shared.desk.lock();
        self.extent_bytes.iter().map(|(disk, bytes)| bytes * desk.count(*disk)).sum()
    }

    /// The pairing in which the images were the same but for what is set in one map or the other, and what is set.
    #[must_use]
    pub fn map(&self, disk: u16) -> (Option<u64>, Vec<u64>) {
        let desk = self.shared.desk.lock();
        (desk.base(disk), desk.set(disk))
    }

    /// Bytes of an extent of this disk; none: it is not writable.
    #[must_use]
    pub fn extent_bytes(&self, disk: u16) -> Option<u64> {
        self.extent_bytes.get(&disk).copied()
    }

    /// Why changes wait, if it is the storage's fault.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.shared.desk.lock().trouble.clone()
    }
}

impl Drop for Intents {
    fn drop(&mut self) {
        self.shared.desk.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn run<M: Medium>(&self, mut disks: BTreeMap<u16, Intent<M>>) {
        while let Some(work) = self.take() {
            let done = carry_out(&mut disks, &work);
            let mut desk = self.desk.lock();
            let Err(why) = done else {
                desk.done(&work);
                self.changed.notify_all();
                drop(desk);
                self.tell_ready();
                continue;
            };
            if let Trouble::Flush { disk, .. } = why {
                // What the kernel could not write it forgets: the next flush says nothing of it.
                desk.doubt(disk);
            }
            let why = why.to_string();
            if desk.trouble.as_ref() != Some(&why) {
                tracing::error!("the guest's writes to new places wait, and this is tried again: {why}");
            }
            desk.failed(work, why);
            // An end is noticed at once; what else changes meanwhile goes with the next attempt.
            let is_open = |desk: &mut Desk| !desk.closed;
            self.changed.wait_while_for(&mut desk, is_open, RETRY);
        }
    }

    fn take(&self) -> Option<Work> {
        let mut desk = self.desk.lock();
        loop {
            if desk.closed {
                return None;
            }
            if let Some(work) = desk.take() {
                return Some(work);
            }
            self.changed.wait(&mut desk);
        }
    }

    fn tell_ready(&self) {
        let tell = self.ready.lock().clone();
        if let Some(tell) = tell {
            tell();
        }
    }
}

/// The order matters: an image is flushed before a bit of it is cleared.
fn carry_out<M: Medium>(disks: &mut BTreeMap<u16, Intent<M>>, work: &Work) -> Result<(), Trouble> {
    for (&disk, Intent { map, flush, .. }) in disks {
        let of = |places: &[Place]| -> Vec<u64> {
            places.iter().filter(|place| place.disk == disk).map(|place| place.extent).collect()
        };
        let (set, clear) = (of(&work.set), of(&work.clear));
        if !clear.is_empty() {
            flush().map_err(|source| Trouble::Flush { disk, source })?;
        }
        let failed = |source| Trouble::Map { disk, source };
        for extent in set {
            let bytes = map.range(extent);
            map.mark(&bytes);
        }
        if let Some(base) = work.base {
            map.commit().and_then(|()| map.rebase(base)).map_err(failed)?;
        }
        for extent in clear {
            map.clear(extent);
        }
        map.commit().map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
