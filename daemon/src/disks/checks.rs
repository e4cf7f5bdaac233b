//! A backup's part in comparing the images while the VM is protected. A question about an extent stands in the stream
//! among the changes. What came before it is in the journal first, and in the image later: the extent is compared when
//! the image has all that the question's epoch was sealed with. The primary lets nothing change there until it knows.
//!
//! ```text
//!   asked ── its epoch is sealed ──> waits for the journal ── carried out ──> thread: read, hash ──> answers
//! ```

use super::equalize::{extent_at, hash};
use super::images::{ImagesError, MirroredImages};
use ft_checkpoint::wire::message::{Compare, Compared};
use ft_mirror::SealedEpoch;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Questions that wait at most. A primary asks one at a time.
const WAITING_MAX: usize = 16;

/// What the image is to have before an extent is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// The epoch that the question is a part of, which is not sealed.
    Seal,
    /// All that was sealed then.
    CarriedOut(Option<SealedEpoch>),
}

#[derive(Default)]
struct Desk {
    asked: VecDeque<(Compare, After)>,
    /// How many of these the image has all for.
    ready: usize,
    answers: Vec<Compared>,
    /// Counts how often all was forgotten.
    round: u64,
    is_over: bool,
}

struct Shared {
    desk: Mutex<Desk>,
    changed: Condvar,
}

/// See the module.
pub(super) struct Checks {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// How far the images are.
#[derive(Clone, Copy, Debug)]
pub(super) struct CarriedOut {
    /// Through this checkpoint...
    pub(super) through: Option<SealedEpoch>,
    /// ...and that is the last one that changed anything.
    pub(super) is_all: bool,
}

impl CarriedOut {
    fn has(&self, sealed: Option<SealedEpoch>) -> bool {
        let Some(sealed) = sealed else { return true };
        let is_behind = |done: SealedEpoch| done.pairing == sealed.pairing && done.epoch >= sealed.epoch;
        self.is_all || self.through.is_some_and(is_behind)
    }
}

impl Checks {
    /// Of images of these sizes, by disk.
    pub(super) fn start(images: MirroredImages, sizes: Vec<(u16, u64)>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { desk: Mutex::default(), changed: Condvar::new() });
        let checker = Checker { shared: Arc::clone(&shared), images, sizes };
        let thread = std::thread::Builder::new().name("ftd-check".into()).spawn(move || checker.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// A question, as it stands in the stream.
    pub(super) fn ask(&self, compare: Compare) {
        let mut desk = self.shared.desk.lock();
        if desk.asked.len() < WAITING_MAX {
            desk.asked.push_back((compare, After::Seal));
        }
    }

    /// Whether there is a question.
    pub(super) fn is_asked(&self) -> bool {
        !self.shared.desk.lock().asked.is_empty()
    }

    /// An epoch is sealed: the newest with a change is this one, and the images are so far.
    pub(super) fn sealed(&self, newest: Option<SealedEpoch>, carried: CarriedOut) {
        let mut desk = self.shared.desk.lock();
        for (_, after) in desk.asked.iter_mut().filter(|(_, after)| *after == After::Seal) {
            *after = After::CarriedOut(newest);
        }
        let is_ready = |(_, after): &&(Compare, After)| match after {
            After::Seal => false,
            After::CarriedOut(sealed) => carried.has(*sealed),
        };
        desk.ready = desk.asked.iter().take_while(is_ready).count();
        if desk.ready > 0 {
            self.shared.changed.notify_all();
        }
    }

    /// What was found meanwhile.
    pub(super) fn answers(&self) -> Vec<Compared> {
        std::mem::take(&mut self.shared.desk.lock().answers)
    }

    /// Who asked is gone, or asks anew.
    pub(super) fn forget(&self) {
        let mut desk = self.shared.desk.lock();
        let (round, is_over) = (desk.round + 1, desk.is_over);
        *desk = Desk { round, is_over, ..Desk::default() };
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        self.shared.desk.lock().is_over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Checker {
    shared: Arc<Shared>,
    images: MirroredImages,
    sizes: Vec<(u16, u64)>,
}

impl Checker {
    fn run(mut self) {
        while let Some((compare, round)) = self.next() {
            let found = self.compare(&compare);
            let mut desk = self.shared.desk.lock();
            if desk.round != round {
                continue;
            }
            let Compare { disk, extent, .. } = compare;
            match found {
                Ok(same) => desk.answers.push(Compared { disk, extent, same }),
                // Nobody is told of what nobody knows: the primary says that it has no answer.
                Err(why) => tracing::error!("extent {extent} of disk {disk} cannot be compared here: {why}"),
            }
        }
    }

    fn next(&self) -> Option<(Compare, u64)> {
        let mut desk = self.shared.desk.lock();
        loop {
            if desk.is_over {
                return None;
            }
            if desk.ready > 0
                && let Some((compare, _)) = desk.asked.pop_front()
            {
                desk.ready -= 1;
                return Some((compare, desk.round));
            }
            self.shared.changed.wait(&mut desk);
        }
    }

    fn compare(&mut self, compare: &Compare) -> Result<bool, ImagesError> {
        let Compare { disk, extent, hash: theirs } = *compare;
        let bytes = self.sizes.iter().find(|(of, _)| *of == disk).map_or(0, |(_, bytes)| *bytes);
        let place = extent_at(disk, extent, bytes);
        Ok(hash(&place, self.images.read(&place)?.as_ref()) == theirs)
    }
}
