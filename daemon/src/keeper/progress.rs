//! The backup's progress in executing the log. On the backup the follower sets it; on the primary it is the backup's
//! own report. Several threads read these small numbers; the last write wins.

use crate::clock;
use ft_checkpoint::wire::message::Position;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// See the module.
#[derive(Default)]
pub struct ReplayProgress {
    count: AtomicU64,
    lag_us: AtomicU64,
    pending_bytes: AtomicU64,
    /// When it was last set, by this node's clock; 0: never.
    set_at: AtomicU64,
    /// Backup: bytes on their way from the connection to the follower.
    queued_bytes: AtomicU64,
}

impl ReplayProgress {
    /// The last word.
    pub fn set(&self, position: Position) {
        let Position { count, lag_us, pending_bytes } = position;
        self.count.store(count, Ordering::Relaxed);
        self.lag_us.store(lag_us, Ordering::Relaxed);
        self.pending_bytes.store(pending_bytes, Ordering::Relaxed);
        self.set_at.store(clock::now_us(), Ordering::Relaxed);
    }

    /// How long ago the last word was said, if ever.
    pub fn age(&self) -> Option<Duration> {
        match self.set_at.load(Ordering::Relaxed) {
            0 => None,
            at => Some(Duration::from_micros(clock::now_us().saturating_sub(at))),
        }
    }

    /// What it was.
    pub fn get(&self) -> Position {
        Position {
            count: self.count.load(Ordering::Relaxed),
            lag_us: self.lag_us.load(Ordering::Relaxed),
            pending_bytes: self.pending_bytes.load(Ordering::Relaxed)
                + self.queued_bytes.load(Ordering::Relaxed),
        }
    }

    /// Nothing is being executed any more, or not yet.
    pub fn reset(&self) {
        self.set(Position::default());
        self.set_at.store(0, Ordering::Relaxed);
        self.queued_bytes.store(0, Ordering::Relaxed);
    }

    /// Log goes to the follower.
    pub fn queued(&self, bytes: u64) {
        self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The follower has taken log in.
    pub fn taken(&self, bytes: u64) {
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Replay mode, as the threads that carry it out see it.
#[derive(Clone)]
pub struct Replay {
    /// Whether it is the mode.
    pub on: bool,
    /// How often the log of a working guest is shipped.
    pub batch: Duration,
    /// How far the backup may be behind.
    pub lag_max: Duration,
    /// How far it is.
    pub progress: Arc<ReplayProgress>,
}
