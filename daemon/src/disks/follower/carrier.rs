//! The thread that carries out: it makes the journal durable, changes the images, flushes them, and makes room in the
//! journal. What fails is tried again each second; until then the backup's disks do not follow, and say why.

use super::{FollowError, Pending};
use crate::disks::beside::DiskJournal;
use crate::disks::images::MirroredImages;
use crate::nonce::random_nonce;
use ft_mirror::{JournalError, Medium, SealedEpoch};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Bytes that are carried out before it is asked whether there is still something to do.
const APPLY_BYTES: u64 = 256 << 10;
/// Until it is tried again what failed.
const RETRY: Duration = Duration::from_secs(1);
/// Who waits looks so often whether it still should.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Why a backup's disks do not follow, for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowTrouble {
    pub(super) of: Suspect,
    why: Arc<str>,
}

/// What is in trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suspect {
    /// It may be mended; if it is not, the next copy begins with a new one.
    Journal,
    /// Nothing is lost: what is sealed stays in the journal.
    Image,
    /// For good.
    Thread,
}

impl fmt::Display for FollowTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// What the reader and the thread share.
pub(super) struct Shared {
    pub(super) journal: Arc<Mutex<DiskJournal>>,
    /// The journal has work, or room, or there is nothing left to be done.
    pub(super) changed: Condvar,
    /// Held while the thread is at work. Taken before the journal.
    carrying: Mutex<()>,
    pub(super) carried: Mutex<Carried>,
    pub(super) failed: Mutex<Option<FollowTrouble>>,
    pub(super) is_ending: AtomicBool,
}

/// What the images have, durably.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Carried {
    /// The last checkpoint of these that changed a disk...
    pub(super) through: Option<SealedEpoch>,
    /// ...and whether none was sealed since that did.
    pub(super) is_all: bool,
    /// Bytes of the journal that they lack.
    pub(super) waiting: u64,
}

impl Shared {
    pub(super) fn new(journal: Arc<Mutex<DiskJournal>>) -> Self {
        Self {
            journal,
            changed: Condvar::new(),
            carrying: Mutex::new(()),
            carried: Mutex::default(),
            failed: Mutex::default(),
            is_ending: false.into(),
        }
    }

    pub(super) fn look(&self) -> Result<(), FollowError> {
        self.failed.lock().as_ref().map_or(Ok(()), |why| Err(FollowError::Failed(why.clone())))
    }

    /// The journal, unless what carries it out has failed.
    pub(super) fn sound(&self) -> Result<MutexGuard<'_, DiskJournal>, FollowError> {
        self.look()?;
        Ok(self.journal.lock())
    }

    /// Where it failed, the thread mends it.
    pub(super) fn heard(&self, done: Result<(), JournalError>) -> Result<(), JournalError> {
        if done.is_err() {
            self.changed.notify_all();
        }
        done
    }

    /// Flushes the journal until this is so, or waits for those who do. Nobody is kept from the journal meanwhile.
    pub(super) fn flush_until(
        &self,
        journal: &mut MutexGuard<'_, DiskJournal>,
        is_done: impl Fn(&DiskJournal) -> bool,
    ) -> Result<(), JournalError> {
        while !is_done(journal) {
            let Some(flush) = journal.begin_flush()? else {
                self.changed.wait(journal);
                continue;
            };
            let medium = Arc::clone(journal.medium());
            let result = MutexGuard::unlocked(journal, || medium.sync());
            let done = journal.flushed(flush, result);
            self.changed.notify_all();
            done?;
        }
        Ok(())
    }

    /// Does what must not be done while somebody flushes.
    pub(super) fn between_flushes(
        &self,
        journal: &mut MutexGuard<'_, DiskJournal>,
        what: impl Fn(&mut DiskJournal) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        loop {
            match what(journal) {
                Err(JournalError::Busy) => self.changed.wait(journal),
                done => return done,
            }
        }
    }

    /// Does with what came in last what has to be done before anything else comes.
    pub(super) fn tidy(&self, pending: &mut Pending) -> Result<(), FollowError> {
        if let Pending::Nothing | Pending::Changes = pending {
            return Ok(());
        }
        let mut journal = self.sound()?;
        self.between_flushes(&mut journal, DiskJournal::mend)?;
        if let Pending::Owed(epoch) = *pending {
            if journal.sealed() != Some(epoch) {
                self.heard(journal.seal(epoch))?;
            }
            self.flush_until(&mut journal, DiskJournal::is_durable)?;
        } else {
            self.between_flushes(&mut journal, DiskJournal::drop_unsealed)?;
        }
        *pending = Pending::Nothing;
        let mut carried = self.carried.lock();
        (carried.is_all, carried.waiting) = (journal.is_carried_out(), journal.waiting());
        drop((journal, carried));
        self.changed.notify_all();
        Ok(())
    }

    pub(super) fn await_carried_out(
        &self,
        journal: &mut MutexGuard<'_, DiskJournal>,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<(), FollowError> {
        while !journal.is_carried_out() {
            if is_stopped() {
                return Err(FollowError::GivenUp);
            }
            self.changed.notify_all();
            self.changed.wait_for(journal, LOOK_INTERVAL);
            self.look()?;
        }
        Ok(())
    }

    /// What the journal holds is of no use any more: a new one takes its place.
    pub(super) fn renew_journal(&self, is_stopped: &dyn Fn() -> bool) -> Result<(), FollowError> {
        // What the thread has taken of the old one must not come to an image later.
        let _idle = loop {
            if let Some(idle) = self.carrying.try_lock_for(LOOK_INTERVAL) {
                break idle;
            }
            if is_stopped() {
                return Err(FollowError::GivenUp);
            }
        };
        let mut journal = self.journal.lock();
        let medium = Arc::clone(journal.medium());
        *journal = DiskJournal::create(medium, random_nonce())?;
        *self.carried.lock() = Carried::default();
        *self.failed.lock() = None;
        Ok(())
    }
}

/// See the module.
pub(super) struct Carrier {
    pub(super) shared: Arc<Shared>,
    pub(super) images: MirroredImages,
}

impl Carrier {
    pub(super) fn run(mut self) {
        if catch_unwind(AssertUnwindSafe(|| self.carry_on())).is_ok() {
            return;
        }
        let why = "the thread that changes the images panicked: restart ftd here";
        tracing::error!("this node's disks cannot follow the primary's any more: {why}");
        *self.shared.failed.lock() = Some(FollowTrouble { of: Suspect::Thread, why: why.into() });
        self.shared.changed.notify_all();
    }

    fn carry_on(&mut self) {
        let shared = Arc::clone(&self.shared);
        loop {
            {
                let mut journal = shared.journal.lock();
                let is_ending = || shared.is_ending.load(Ordering::SeqCst);
                while journal.is_carried_out() && journal.is_sound() && !is_ending() {
                    shared.changed.wait(&mut journal);
                }
                // The next process goes on from the journal.
                if is_ending() {
                    return;
                }
            }
            if let Err(why) = self.round() {
                self.wait(&why);
            }
        }
    }

    /// It failed, and is tried again.
    fn wait(&self, why: &FollowError) {
        let of = if matches!(why, FollowError::Image(_)) { Suspect::Image } else { Suspect::Journal };
        let trouble = FollowTrouble { of, why: why.to_string().into() };
        let mut journal = self.shared.journal.lock();
        if of == Suspect::Image {
            // A flush that failed says nothing of what was written before: the next one would not either.
            journal.again();
        }
        let before = self.shared.failed.lock().replace(trouble.clone());
        if before.as_ref() != Some(&trouble) {
            let else_what = match of {
                Suspect::Journal => ", and a copy of the VM begins with a new journal",
                Suspect::Image | Suspect::Thread => "",
            };
            tracing::error!(
                "this node's disks do not follow the primary's: {trouble}; it is tried again each second{else_what}"
            );
        }
        let goes_on = |_: &mut DiskJournal| !self.shared.is_ending.load(Ordering::SeqCst);
        self.shared.changed.wait_while_for(&mut journal, goes_on, RETRY);
    }

    /// Carries out what is sealed by now. The journal is others' while storage is waited for.
    fn round(&mut self) -> Result<(), FollowError> {
        let shared = Arc::clone(&self.shared);
        let _at_work = shared.carrying.lock();
        let mut journal = shared.journal.lock();
        shared.between_flushes(&mut journal, DiskJournal::mend)?;
        shared.flush_until(&mut journal, |journal| journal.ready() > 0 || journal.waiting() == 0)?;
        let medium = Arc::clone(journal.medium());
        while let Some(mut portion) = journal.portion(APPLY_BYTES) {
            let images = &mut self.images;
            let carry_out = || portion.carry_out(&medium, |change| images.carry_out(change));
            let done = MutexGuard::unlocked(&mut journal, carry_out);
            journal.carried_out(portion);
            done?;
        }
        MutexGuard::unlocked(&mut journal, || self.images.flush())?;
        journal.begin_release()?;
        shared.flush_until(&mut journal, |journal| !journal.is_releasing())?;
        *shared.carried.lock() = Carried {
            through: journal.applied(),
            is_all: journal.is_carried_out(),
            waiting: journal.waiting(),
        };
        let failed = shared.failed.lock().take();
        drop(journal);
        if failed.is_some() {
            tracing::info!("this node's disks can follow the primary's again");
        }
        shared.changed.notify_all();
        Ok(())
    }
}
