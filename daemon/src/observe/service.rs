//! The declared service: whether output was held no longer than declared, and the VM slowed no more than declared.

use super::carried::Bottleneck;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// What was not kept is remembered for this time.
const MEMORY: Duration = Duration::from_secs(60);

/// What is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declared {
    /// Output is held no longer.
    pub hold_us_max: u64,
    /// The VM is slowed no further, in hundredths of its speed.
    pub speed_pct_min: u64,
}

/// How the declared service is met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// `replication.hold_ms_max`.
    pub hold_ms_max: u64,
    /// Whether no frame was held for longer in the last minute, nor is now.
    pub hold_kept: bool,
    /// `replication.guest_speed_min_pct`.
    #[serde(default)]
    pub guest_speed_min_pct: u64,
    /// Whether the VM was slowed no further in the last minute.
    #[serde(default)]
    pub speed_kept: bool,
    /// The VM's speed: below 100, link or backup carry no more than that.
    pub guest_speed_pct: f64,
    /// Which of the two, while the VM is slowed.
    #[serde(default)]
    pub slowed_by: Option<Bottleneck>,
    /// Megabits a second that the replication link carries to the backup now.
    #[serde(default)]
    pub carried_mbit_per_s: Option<f64>,
}

/// What became of the VM's output.
#[derive(Clone, Copy, Debug)]
pub struct Holds<'a> {
    /// The holds of all frames that have left, in microseconds.
    pub over_us: &'a Histogram<u64>,
    /// How long the oldest frame has been held that has not: it may never leave.
    pub oldest: Duration,
}

/// Remembers when something declared was not kept.
#[derive(Debug, Default)]
pub struct ServiceWatch {
    late: u64,
    late_at: Option<Instant>,
    slow_at: Option<Instant>,
}

impl ServiceWatch {
    /// Whether the bound on the hold was kept in the last minute.
    pub fn is_hold_kept(&mut self, holds: Holds<'_>, hold_us_max: u64, now: Instant) -> bool {
        let Holds { over_us, oldest } = holds;
        let late = over_us.len() - over_us.count_between(0, hold_us_max);
        if late > self.late || oldest > Duration::from_micros(hold_us_max) {
            self.late_at = Some(now);
        }
        self.late = late;
        is_over(self.late_at, now)
    }

    /// Whether the VM was slowed no further than declared in the last minute.
    pub fn is_speed_kept(&mut self, speed_pct: f64, speed_pct_min: u64, now: Instant) -> bool {
        if speed_pct < speed_pct_min as f64 {
            self.slow_at = Some(now);
        }
        is_over(self.slow_at, now)
    }
}

fn is_over(broken_at: Option<Instant>, now: Instant) -> bool {
    broken_at.is_none_or(|at| now.saturating_duration_since(at) > MEMORY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds() -> Histogram<u64> {
        Histogram::new_with_max(60_000_000, 2).unwrap()
    }

    #[test]
    fn a_hold_beyond_its_bound_is_remembered_for_a_minute() {
        let mut over_us = holds();
        let (mut watch, start) = (ServiceWatch::default(), Instant::now());
        let mut look = |over_us: &_, now| {
            watch.is_hold_kept(Holds { over_us, oldest: Duration::from_millis(100) }, 100_000, now)
        };
        over_us.record_n(2_000, 100_000).unwrap();
        assert!(look(&over_us, start));
        over_us.record(300_000).unwrap();
        assert!(!look(&over_us, start));
        assert!(!look(&over_us, start + MEMORY));
        assert!(look(&over_us, start + 2 * MEMORY));
    }

    #[test]
    fn a_frame_that_never_leaves_breaks_the_bound_as_well() {
        let (over_us, mut watch, start) = (holds(), ServiceWatch::default(), Instant::now());
        let mut look = |oldest_ms, now| {
            let oldest = Duration::from_millis(oldest_ms);
            watch.is_hold_kept(Holds { over_us: &over_us, oldest }, 100_000, now)
        };
        assert!(look(100, start));
        assert!(!look(101, start));
        assert!(!look(3_600_000, start + 10 * MEMORY));
        assert!(!look(0, start + 11 * MEMORY), "it was released, or discarded");
        assert!(look(0, start + 12 * MEMORY));
    }

    #[test]
    fn a_vm_that_is_slowed_too_far_is_remembered_for_a_minute() {
        let (mut watch, start) = (ServiceWatch::default(), Instant::now());
        assert!(watch.is_speed_kept(10.0, 10, start));
        assert!(!watch.is_speed_kept(9.9, 10, start));
        assert!(!watch.is_speed_kept(100.0, 10, start + MEMORY));
        assert!(watch.is_speed_kept(100.0, 10, start + 2 * MEMORY));
    }
}
