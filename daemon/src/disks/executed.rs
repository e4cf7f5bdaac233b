//! Replay mode's backup: its machine changes the images, as it executes the log. Behind it a thread flushes them, now
//! and then, and says through which epoch they are durable. Nothing of an epoch reaches an image before its log is
//! here; while the machine executes, the images are ahead of the last flush, and nobody's (see the stamps).

use super::FollowError;
use super::images::{ImagesError, MirroredImages, NumberedImage};
use super::intents::Intents;
use super::tap::WriteTap;
use ft_checkpoint::wire::message::Settled;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two flushes, unless somebody waits for one.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// Who waits looks so often whether it still should.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Default)]
struct State {
    /// What the machine has executed...
    executed: Option<Settled>,
    /// ...and what of it is durable.
    settled: Option<Settled>,
    /// Why it is not.
    failed: Option<String>,
    /// Somebody waits.
    is_urgent: bool,
    is_over: bool,
}

impl State {
    fn is_settled(&self) -> bool {
        self.executed == self.settled
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// See the module.
pub struct Executed {
    shared: Arc<Shared>,
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
        Ok(Self { shared, thread: Some(spawned.map_err(FollowError::Thread)?) })
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

    /// Why they are not durable any more.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.shared.state.lock().failed.clone()
    }

    /// Waits until the images are durable as far as the machine has executed.
    pub fn settle(&self, is_stopped: &dyn Fn() -> bool) -> Result<(), FollowError> {
        let mut state = self.shared.state.lock();
        while !state.is_settled() {
            if let Some(why) = &state.failed {
                return Err(FollowError::Executing(why.clone()));
            }
            if is_stopped() {
                return Err(FollowError::GivenUp);
            }
            state.is_urgent = true;
            self.shared.changed.notify_all();
            self.shared.changed.wait_for(&mut state, LOOK_INTERVAL);
        }
        Ok(())
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
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state.lock();
        while !state.is_over {
            let Some(executed) = state.executed.filter(|_| !state.is_settled() && state.failed.is_none())
            else {
                shared.changed.wait(&mut state);
                continue;
            };
            match MutexGuard::unlocked(&mut state, || self.flush()) {
                // A copy may have begun and ended meanwhile.
                _ if state.executed.is_none_or(|now| now.pairing != executed.pairing) => continue,
                Ok(()) => state.settled = Some(executed),
                Err(why) => state.failed = Some(why.to_string()),
            }
            shared.changed.notify_all();
            if state.failed.is_none() {
                // What was changed through there need not be compared because of this host.
                MutexGuard::unlocked(&mut state, || self.intents.settled(executed.pairing, executed.epoch));
            }
            let rests = |state: &mut State| !state.is_over && !std::mem::take(&mut state.is_urgent);
            shared.changed.wait_while_for(&mut state, rests, FLUSH_INTERVAL);
        }
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
