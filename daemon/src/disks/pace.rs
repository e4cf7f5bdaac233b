//! How fast images are read to be compared and sent: no faster than a limit that the operator may change meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The operator's limit.
#[derive(Debug, Default)]
pub(super) struct Limit(AtomicU64);

impl Limit {
    /// So many bytes a second from now on; 0: as many as there are.
    pub(super) fn set(&self, bytes_per_s: u64) {
        self.0.store(bytes_per_s, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What was read and is not paid for by the time that has passed.
#[derive(Debug)]
pub(super) struct Pace {
    owed_bytes: u64,
    at: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { owed_bytes: 0, at: now }
    }

    /// So many bytes were read, or read and sent.
    pub(super) fn took(&mut self, bytes: u64) {
        self.owed_bytes += bytes;
    }

    /// How long until more may be read, at so many bytes a second; 0: as many as there are.
    pub(super) fn wait(&mut self, bytes_per_s: u64, now: Instant) -> Duration {
        if bytes_per_s == 0 {
            self.owed_bytes = 0;
        }
        let paid = bytes_per_s as f64 * now.saturating_duration_since(self.at).as_secs_f64();
        if self.owed_bytes as f64 <= paid {
            (self.owed_bytes, self.at) = (0, now);
            return Duration::ZERO;
        }
        Duration::from_secs_f64(self.owed_bytes as f64 / bytes_per_s as f64)
            .saturating_sub(now.saturating_duration_since(self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_was_read_is_waited_for_and_idle_time_is_not_saved_up() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut pace = Pace::new(began);
        assert_eq!(pace.wait(4 * MIB, at(0)), Duration::ZERO);
        pace.took(MIB);
        pace.took(MIB);
        assert_eq!(pace.wait(4 * MIB, at(100)), Duration::from_millis(400));
        assert_eq!(pace.wait(4 * MIB, at(500)), Duration::ZERO);
        // A minute later a second's worth still takes a second.
        assert_eq!(pace.wait(4 * MIB, at(60_500)), Duration::ZERO);
        pace.took(4 * MIB);
        assert_eq!(pace.wait(4 * MIB, at(60_500)), Duration::from_secs(1));
    }

    #[test]
    fn a_limit_that_is_changed_or_lifted_counts_at_once() {
        let began = Instant::now();
        let mut pace = Pace::new(began);
        pace.took(8 * MIB);
        assert_eq!(pace.wait(MIB, began), Duration::from_secs(8));
        assert_eq!(pace.wait(4 * MIB, began), Duration::from_secs(2));
        assert_eq!(pace.wait(0, began), Duration::ZERO);
        assert_eq!(pace.wait(MIB, began), Duration::ZERO, "what was read without a limit is not owed");
    }
}
