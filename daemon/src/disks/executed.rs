//! Replay mode's backup: its machine changes the images, as it executes the log. Behind it a thread flushes them, now
//! and then, and says through which epoch they are durable. Nothing of an epoch reaches an image before its log is
//! here; while the machine executes, the images are ahead of the last flush, and nobody's (see the stamps).
//!
//! A disk that fails here stands still, and what was to be flushed is flushed again: the machine may be the last copy
//! of the VM. While there is a primary, it is to go on without a backup that stands for long.

use super::FollowError;
use super::images::{ImagesError, MirroredImages, NumberedImage};
use super::intents::Intents;
use super::tap::WriteTap;
use ft_checkpoint::wire::message::Settled;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two flushes, unless somebody waits for one.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// Between two attempts at a flush that fails.
const RETRY: Duration = Duration::from_secs(1);
/// A backup whose disk fails for longer does not follow.
const FAILS_MAX: Duration = Duration::from_secs(2);

#[derive(Default)]
struct State {
    /// What the machine has executed...
    executed: Option<Settled>,
    /// ...and what of it is durable.
    settled: Option<Settled>,
    /// Why it is not, and since when.
    failed: Option<(String, Instant)>,
    /// Somebody waits.
    is_urgent: bool,
    is_over: bool,
}

impl State {
    fn is_settled(&self) -> bool {
        self.executed == self.settled
    }

    fn settle(&mut self, executed: Settled) {
        self.settled = Some(executed);
        if self.failed.take().is_some() {
            tracing::info!("what the machine here changes on its disks is durable again");
        }
    }

    fn fail(&mut self, why: String) {
        if self.failed.is_none() {
            tracing::error!(
                "what the machine here changes on its disks is not durable, it is tried again: {why}"
            );
        }
        let since = self.failed.take().map_or_else(Instant::now, |(_, since)| since);
        self.failed = Some((why, since));
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// See the module.
pub struct Executed {
    shared: Arc<Shared>,
    tap: Arc<WriteTap>,
    thread: Option<JoinHandle<()>>,
}

impl Executed {
    /// Starts the thread.
    pub fn start(
        tap: &Arc<WriteTap>,
        intents: &Arc<Intents>,
        images: &[NumberedImage],
    ) -> Result<Self, FollowError> {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let flusher = Flusher {
            shared: Arc::clone(&shared),
            tap: Arc::clone(tap),
            intents: Arc::clone(intents),
            images: MirroredImages::new(images)?,
            flushed: None,
        };
        let spawned = std::thread::Builder::new().name("ftd-settle".into()).spawn(move || flusher.run());
        let thread = Some(spawned.map_err(FollowError::Thread)?);
        Ok(Self { shared, tap: Arc::clone(tap), thread })
    }

    /// The images are, durably, those of this checkpoint: the machine executes from there.
    pub(super) fn begin(&self, held: Settled) {
        let mut state = self.shared.state.lock();
        (state.executed, state.settled, state.failed) = (Some(held), Some(held), None);
    }

    /// The machine has executed this pairing's log through this epoch, and the images have what the guest was shown.
    pub fn through(&self, epoch: u64) {
        let mut state = self.shared.state.lock();
        if let Some(executed) = &mut state.executed {
            executed.epoch = executed.epoch.max(epoch);
            self.shared.changed.notify_all();
        }
    }

    /// Through which epoch the images are durable.
    pub(super) fn settled(&self) -> Option<Settled> {
        self.shared.state.lock().settled
    }

    /// Why they are not durable.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.shared.state.lock().failed.as_ref().map(|(why, _)| why.clone())
    }

    /// Whether a primary may count on this host's images.
    pub(super) fn judge(&self) -> Result<(), FollowError> {
        let unflushed = || {
            let state = self.shared.state.lock();
            let (why, since) = state.failed.as_ref()?;
            (since.elapsed() >= FAILS_MAX).then(|| why.clone())
        };
        self.tap.trouble(FAILS_MAX).or_else(unflushed).map_or(Ok(()), |why| Err(FollowError::Executing(why)))
    }

    /// Whether the images are durable as far as the machine has executed. If they are not, that is hurried.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let mut state = self.shared.state.lock();
        let is_settled = state.is_settled();
        if !is_settled {
            state.is_urgent = true;
            self.shared.changed.notify_all();
        }
        is_settled
    }
}

impl Drop for Executed {
    fn drop(&mut self) {
        self.shared.state.lock().is_over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Flusher {
    shared: Arc<Shared>,
    tap: Arc<WriteTap>,
    intents: Arc<Intents>,
    images: MirroredImages,
    /// The changes that were made when they were flushed last.
    flushed: Option<u64>,
}

impl Flusher {
    fn run(mut self) {
        // It may stand beside the last copy of the VM: whatever goes wrong, it is tried again.
        while catch_unwind(AssertUnwindSafe(|| self.carry_on())).is_err() {
            self.shared.state.lock().fail("the thread that flushes the images panicked".into());
            self.flushed = None;
            self.rest(RETRY);
        }
    }

    fn carry_on(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state.lock();
        while !state.is_over {
            let Some(executed) = state.executed.filter(|_| !state.is_settled()) else {
                shared.changed.wait(&mut state);
                continue;
            };
            let flushed = MutexGuard::unlocked(&mut state, || self.flush());
            // A copy may have begun and ended meanwhile.
            if state.executed.is_none_or(|now| now.pairing != executed.pairing) {
                continue;
            }
            let is_durable = flushed.is_ok();
            match flushed {
                Ok(()) => state.settle(executed),
                Err(why) => state.fail(why.to_string()),
            }
            shared.changed.notify_all();
            MutexGuard::unlocked(&mut state, || {
                if is_durable {
                    // What was changed through there need not be compared because of this host.
                    self.intents.settled(executed.pairing, executed.epoch);
                }
                self.rest(if is_durable { FLUSH_INTERVAL } else { RETRY });
            });
        }
    }

    /// For so long, or until it is over; or until somebody waits, unless it fails.
    fn rest(&self, time: Duration) {
        let mut state = self.shared.state.lock();
        let rests = |state: &mut State| {
            !state.is_over && (state.failed.is_some() || !std::mem::take(&mut state.is_urgent))
        };
        self.shared.changed.wait_while_for(&mut state, rests, time);
    }

    fn flush(&mut self) -> Result<(), ImagesError> {
        let shown = self.tap.shown();
        if self.flushed != Some(shown) {
            self.images.flush()?;
            self.flushed = Some(shown);
        }
        Ok(())
    }
}
