//! A backup's disks follow its primary's. Changes go into the journal as they come, a seal makes them a checkpoint's,
//! and a thread carries out behind it: it makes the journal durable, changes the images, flushes them, and makes room.
//! While a pairing begins, the images are nobody's: what comes then changes them at once. In replay mode nothing comes
//! after that: the machine here makes the changes, see `executed`.
//!
//! The connection's reader feeds it, and waits where the journal is full. Nothing is sealed here that the receiver has
//! not sealed. What the receiver has sealed, and the journal could not, is sealed here before anything else is done:
//! its changes came before, and the memory that is held has that epoch.

mod carrier;

pub use carrier::FollowTrouble;

use self::carrier::{Carried, Carrier, LOOK_INTERVAL, Shared, Suspect};
use super::agreement::Agreement;
use super::beside::DiskJournal;
use super::checks::{CarriedOut, Checks};
use super::equalize::{extent_at, extents, hash};
use super::error::BesideError;
use super::executed::Executed;
use super::images::{ImagesError, MirroredImages, NumberedImage};
use super::intents::Intents;
use super::stamps::Stamps;
use crate::config::Durability;
use ft_arbiter::CellId;
use ft_checkpoint::wire::message::{Compare, Compared, DiskMap, Held, Settled};
use ft_mirror::{ApplyError, Change, History, JournalError, SealedEpoch};
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the primary is told, at most, how far the images are.
const SETTLED_INTERVAL: Duration = Duration::from_millis(100);

/// Why a backup's disks do not follow.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The journal.
    #[error("the journal of this node's disks (state_dir/disks/journal) {0}")]
    Journal(#[from] JournalError),
    /// An image.
    #[error(transparent)]
    Image(#[from] ImagesError),
    /// A stamp.
    #[error(transparent)]
    Stamp(#[from] BesideError),
    /// A copy begins, and it is not known of which cell.
    #[error("this node knows no cell of the VM")]
    NoCell,
    /// No thread.
    #[error("cannot start a thread to change disks: {0}")]
    Thread(std::io::Error),
    /// It failed before.
    #[error("this node's disks do not follow the primary's: {0}")]
    Failed(FollowTrouble),
    /// The machine that executes the log cannot change them, or what it changed is not durable.
    #[error("{0}")]
    Executing(String),
    /// A change came in that the machine here makes by itself.
    #[error("the primary tells of changes that the machine here executes")]
    Told,
    /// The copy ended before every extent was the same.
    #[error("the primary ends its copy, and {0} extents of the disks have not been found the same")]
    Unequal(usize),
    /// Whoever waited was told not to.
    #[error("given up")]
    GivenUp,
    /// Storage takes too long.
    #[error("this node's disks have not come further for {0:?} with what is sealed")]
    Late(Duration),
}

impl FollowError {
    /// Whether a new journal would mend it.
    fn is_of_journal(&self) -> bool {
        match self {
            Self::Journal(_) => true,
            Self::Failed(trouble) => trouble.of == Suspect::Journal,
            _ => false,
        }
    }
}

impl From<ApplyError<ImagesError>> for FollowError {
    fn from(error: ApplyError<ImagesError>) -> Self {
        match error {
            ApplyError::Journal(why) => Self::Journal(why),
            ApplyError::Image(why) => Self::Image(why),
        }
    }
}

/// What that is which comes in.
enum Phase {
    /// Part of the checkpoint that is sealed next.
    Following(Pending),
    /// Part of a copy.
    Mixed(Mixed),
    /// Nothing: the machine here changes the images.
    Executing,
}

/// Who changes the images of a backup after the copy.
pub enum ImageWriter {
    /// This follower, by its journal; and what is durable of it at an ack.
    Journal(Durability),
    /// The machine, which executes the log.
    Machine(Arc<Executed>),
}

/// A copy under way.
struct Mixed {
    maps: Vec<Agreement>,
    /// Extents that may differ and have not been found the same.
    unequal: BTreeSet<(u16, u32)>,
}

impl Mixed {
    /// A part of the primary's map.
    fn take(&mut self, part: &DiskMap) {
        let Some(map) = self.maps.iter_mut().find(|map| map.disk == part.disk) else { return };
        map.take(part);
        if map.is_whole() {
            let disk = map.disk;
            self.unequal.retain(|(of, _)| *of != disk);
            self.unequal.extend(map.differing().into_iter().flatten().map(|extent| (disk, extent)));
        }
    }
}

/// Whether anything is in the journal behind the last seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Nothing,
    Changes,
    /// Of a connection that is gone: it is dropped before anything else comes there.
    Stale,
    /// Of this checkpoint, which the receiver has sealed: it is sealed here before anything else comes there.
    Owed(SealedEpoch),
}

/// See the module.
pub struct Follower {
    shared: Arc<Shared>,
    incoming: Mutex<Incoming>,
    /// What says of the images what they are, and the cell that this is said of.
    stamps: Option<Arc<Stamps>>,
    cell: Mutex<Option<CellId>>,
    writer: ImageWriter,
    /// What the primary asks about, under protection.
    checks: Checks,
    thread: Option<JoinHandle<()>>,
}

/// The reader's part.
struct Incoming {
    phase: Phase,
    /// The reader's own way to the images, while they are mixed.
    images: MirroredImages,
    intents: Arc<Intents>,
    sizes: Vec<(u16, u64)>,
    numbered: Vec<NumberedImage>,
    /// What the primary was told last of how far they are, and when.
    told: Option<(Settled, Instant)>,
}

impl Follower {
    /// Goes on from what the journal holds.
    pub fn start(
        journal: Arc<Mutex<DiskJournal>>,
        stamps: Option<Arc<Stamps>>,
        intents: Arc<Intents>,
        images: &[NumberedImage],
        writer: ImageWriter,
    ) -> Result<Self, FollowError> {
        let sizes: Vec<(u16, u64)> = images.iter().map(|(disk, image)| (*disk, image.bytes())).collect();
        let checks =
            Checks::start(MirroredImages::new(images)?, Vec::clone(&sizes)).map_err(FollowError::Thread)?;
        let incoming = Incoming {
            phase: Phase::Following(Pending::Nothing),
            images: MirroredImages::new(images)?,
            intents,
            sizes,
            numbered: images.to_vec(),
            told: None,
        };
        let shared = Arc::new(Shared::new(journal));
        let carrier = Carrier { shared: Arc::clone(&shared), images: MirroredImages::new(images)? };
        let spawned = std::thread::Builder::new().name("ftd-disks".into()).spawn(move || carrier.run());
        let thread = Some(spawned.map_err(FollowError::Thread)?);
        Ok(Self {
            shared,
            incoming: Mutex::new(incoming),
            stamps,
            cell: Mutex::default(),
            writer,
            checks,
            thread,
        })
    }

    /// The VM's cell, as far as this node knows.
    pub fn know_cell(&self, cell: CellId) {
        *self.cell.lock() = Some(cell);
    }

    /// From here on the images have this history, durably.
    fn stamp(&self, history: History) -> Result<(), FollowError> {
        let Some(stamps) = &self.stamps else { return Ok(()) };
        let is_named = matches!(history, History::Follows { named_in: Some(_), .. });
        let cell = match *self.cell.lock() {
            Some(cell) => cell,
            None if is_named => return Err(FollowError::NoCell),
            // An image of no cell is nobody's: it is stamped again once the cell names this node.
            None => CellId(0),
        };
        Ok(stamps.write(cell, history)?)
    }

    /// What comes in, one after the other: held from before the receiver takes a frame until what it means for the
    /// disks is done, so that nothing of a connection that was lost comes after the next one has begun.
    pub fn turn(&self) -> FollowerTurn<'_> {
        FollowerTurn { follower: self, incoming: self.incoming.lock() }
    }

    /// The VM is to go on here: waits until the images have, durably, all that is sealed.
    pub fn carry_out(&self, is_stopped: &dyn Fn() -> bool) -> Result<(), FollowError> {
        loop {
            // Whatever came in last may still be at its part, and wait for storage.
            if let Some(mut incoming) = self.incoming.try_lock_for(LOOK_INTERVAL) {
                if let Phase::Following(pending @ Pending::Owed(_)) = &mut incoming.phase {
                    self.shared.tidy(pending)?;
                }
                break;
            }
            if is_stopped() {
                return Err(FollowError::GivenUp);
            }
        }
        self.await_carried_out(is_stopped)
    }

    fn await_carried_out(&self, is_stopped: &dyn Fn() -> bool) -> Result<(), FollowError> {
        let mut journal = self.shared.sound()?;
        self.shared.await_carried_out(&mut journal, is_stopped)
    }

    /// Bytes that wait to be carried out, as of the last seal or round.
    pub fn waiting(&self) -> u64 {
        self.shared.carried.lock().waiting
    }

    /// Why it does not follow.
    pub fn trouble(&self) -> Option<String> {
        self.shared.failed.lock().as_ref().map(ToString::to_string)
    }
}

/// See [`Follower::turn`].
pub struct FollowerTurn<'f> {
    follower: &'f Follower,
    incoming: MutexGuard<'f, Incoming>,
}

impl FollowerTurn<'_> {
    /// A connection begins: what the last one left behind the last seal comes again, or never counts.
    pub fn connected(&mut self) {
        self.follower.checks.forget();
        if let Phase::Following(pending @ Pending::Changes) = &mut self.incoming.phase {
            *pending = Pending::Stale;
        }
    }

    /// Does with what came before what has to be done before anything else comes.
    fn tidy(&mut self) -> Result<(), FollowError> {
        match &mut self.incoming.phase {
            Phase::Following(pending) => self.follower.shared.tidy(pending),
            Phase::Mixed(_) | Phase::Executing => Ok(()),
        }
    }

    /// A copy begins. What is sealed is carried out, and then the images are nobody's. Where the journal is in the way
    /// of that, they are so at once, and a new one is begun: the copy makes up for all that the old one held. The
    /// primary shall know this host's maps.
    pub fn copy_begins(
        &mut self,
        pairing: u64,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Vec<DiskMap>, FollowError> {
        self.connected();
        let carried = self.tidy().and_then(|()| self.follower.await_carried_out(is_stopped));
        match carried {
            Err(why) if why.is_of_journal() => {
                self.follower.stamp(History::Mixed { pairing })?;
                self.follower.shared.renew_journal(is_stopped)?;
                tracing::warn!(
                    "a new journal was begun for the copy that makes this node's disks equal: {why}"
                );
            }
            carried => {
                carried?;
                self.follower.stamp(History::Mixed { pairing })?;
            }
        }
        let Incoming { phase, intents, sizes, numbered, .. } = &mut *self.incoming;
        let maps: Vec<Agreement> =
            numbered.iter().map(|image| Agreement::of_this_host(intents, image)).collect();
        let parts = maps.iter().flat_map(Agreement::parts).collect();
        // Until the primary has told its maps.
        let all = |(disk, bytes): &(u16, u64)| {
            let disk = *disk;
            (0..extents(*bytes)).map(move |extent| (disk, extent))
        };
        let unequal = sizes.iter().flat_map(all).collect();
        *phase = Phase::Mixed(Mixed { maps, unequal });
        Ok(parts)
    }

    /// In a copy: a part of the primary's map.
    pub fn mapped(&mut self, part: &DiskMap) {
        if let Phase::Mixed(mixed) = &mut self.incoming.phase {
            mixed.take(part);
        }
    }

    /// A change came in. Waits while there is no room for it.
    pub fn take(&mut self, change: &Change<'_>, is_stopped: &dyn Fn() -> bool) -> Result<(), FollowError> {
        self.tidy()?;
        let Incoming { phase, images, .. } = &mut *self.incoming;
        let pending = match phase {
            Phase::Mixed(_) => return Ok(images.carry_out(change)?),
            Phase::Executing => return Err(FollowError::Told),
            Phase::Following(pending) => pending,
        };
        let shared = &self.follower.shared;
        let mut journal = shared.sound()?;
        loop {
            match journal.append(change) {
                Err(JournalError::Full { .. }) if is_stopped() => return Err(FollowError::GivenUp),
                Err(JournalError::Full { .. }) => {
                    shared.changed.notify_all();
                    shared.changed.wait_for(&mut journal, LOOK_INTERVAL);
                    shared.look()?;
                }
                appended => {
                    *pending = Pending::Changes;
                    return Ok(shared.heard(appended)?);
                }
            }
        }
    }

    /// Whether an extent is the same here. None: that is among the [`Self::answers`] when it is known.
    pub fn compare(&mut self, compare: &Compare) -> Result<Option<bool>, FollowError> {
        let Incoming { phase, images, sizes, .. } = &mut *self.incoming;
        let Phase::Mixed(Mixed { unequal, .. }) = phase else {
            self.follower.checks.ask(*compare);
            return Ok(None);
        };
        let Compare { disk, extent, hash: theirs } = *compare;
        let bytes = sizes.iter().find(|(of, _)| *of == disk).map_or(0, |(_, bytes)| *bytes);
        let place = extent_at(disk, extent, bytes);
        let is_same = hash(&place, images.read(&place)?.as_ref()) == theirs;
        match is_same {
            true => unequal.remove(&(disk, extent)),
            false => unequal.insert((disk, extent)),
        };
        Ok(Some(is_same))
    }

    /// Extents that were asked about and are known by now.
    pub fn answers(&mut self) -> Vec<Compared> {
        self.follower.checks.answers()
    }

    /// The receiver has sealed a checkpoint. Its ack may go out when this returns.
    pub fn sealed(&mut self, held: Held) -> Result<(), FollowError> {
        self.seal(held)?;
        let shared = &self.follower.shared;
        if self.follower.checks.is_asked() {
            let newest = shared.journal.lock().sealed();
            let Carried { through, is_all, .. } = *shared.carried.lock();
            self.follower.checks.sealed(newest, CarriedOut { through, is_all });
        }
        Ok(())
    }

    fn seal(&mut self, held: Held) -> Result<(), FollowError> {
        let epoch = SealedEpoch { pairing: held.pairing, epoch: held.epoch };
        if let Phase::Following(Pending::Owed(_)) = self.incoming.phase {
            self.tidy()?;
        }
        let Incoming { phase, images, intents, .. } = &mut *self.incoming;
        let shared = &self.follower.shared;
        let mut history = None;
        let durability = match phase {
            // A checkpoint without a change is the one before, as far as the disks go.
            Phase::Following(Pending::Nothing | Pending::Stale) | Phase::Executing => return Ok(()),
            Phase::Following(pending) => {
                // Until it is done: the receiver has sealed it already.
                *pending = Pending::Owed(epoch);
                match self.follower.writer {
                    ImageWriter::Journal(durability) => durability,
                    ImageWriter::Machine(_) => Durability::Sync,
                }
            }
            Phase::Mixed(Mixed { unequal, .. }) if !unequal.is_empty() => {
                return Err(FollowError::Unequal(unequal.len()));
            }
            Phase::Mixed(_) => {
                images.flush()?;
                if let ImageWriter::Machine(executed) = &self.follower.writer {
                    *phase = Phase::Executing;
                    intents.same(held.pairing);
                    executed.begin(Settled { pairing: held.pairing, epoch: held.epoch });
                    return Ok(());
                }
                history = Some(History::Follows { pairing: held.pairing, named_in: None });
                Durability::Sync
            }
        };
        let mut journal = shared.sound()?;
        shared.heard(journal.seal(epoch))?;
        if durability == Durability::Sync {
            shared.flush_until(&mut journal, DiskJournal::is_durable)?;
        }
        *phase = Phase::Following(Pending::Nothing);
        shared.changed.notify_all();
        let mut carried = shared.carried.lock();
        match history {
            None => (carried.is_all, carried.waiting) = (false, journal.waiting()),
            Some(_) => *carried = Carried { through: journal.sealed(), is_all: true, waiting: 0 },
        }
        drop((journal, carried));
        if let Some(history) = history {
            self.follower.stamp(history)?;
            intents.same(held.pairing);
        }
        Ok(())
    }

    /// How far the images are, when the primary should be told again.
    pub fn settled(&mut self, held: Held) -> Option<Settled> {
        let Held { pairing, epoch } = held;
        let settled = match &self.follower.writer {
            ImageWriter::Machine(executed) => {
                executed.settled().filter(|settled| settled.pairing == pairing)?
            }
            ImageWriter::Journal(_) => {
                let Carried { through, is_all, .. } = *self.follower.shared.carried.lock();
                let through = through.filter(|through| through.pairing == pairing)?.epoch;
                Settled { pairing, epoch: if is_all { epoch } else { through } }
            }
        };
        let told = &mut self.incoming.told;
        let is_due = |(last, at): &(Settled, Instant)| *last != settled && at.elapsed() >= SETTLED_INTERVAL;
        let is_due = told.as_ref().is_none_or(|told| told.0.pairing != pairing || is_due(told));
        is_due.then(|| told.insert((settled, Instant::now())).0)
    }

    /// Replay mode: log was sealed, which the machine here is to execute. Refused when a disk has failed it for long.
    pub fn sealed_log(&self) -> Result<(), FollowError> {
        match (&self.incoming.phase, &self.follower.writer) {
            (Phase::Executing, ImageWriter::Machine(executed)) => executed.judge(),
            _ => Ok(()),
        }
    }

    /// The cell names this node and the pairing since this generation. What the machine here changes is nobody's until
    /// it has taken over.
    pub fn named(&mut self, pairing: u64, generation: u64) -> Result<(), FollowError> {
        self.follower.stamp(match self.follower.writer {
            ImageWriter::Journal(_) => History::Follows { pairing, named_in: Some(generation) },
            ImageWriter::Machine(_) => History::Mixed { pairing },
        })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        {
            let _journal = self.shared.journal.lock();
            self.shared.is_ending.store(true, Ordering::SeqCst);
            self.shared.changed.notify_all();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
