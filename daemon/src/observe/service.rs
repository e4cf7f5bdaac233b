//! The declared service: whether output was held no longer than declared, and how fast the VM was allowed to run.

use super::carried::Bottleneck;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// A hold is kept, or not, for this time.
const MEMORY: Duration = Duration::from_secs(60);

/// How the declared service is met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// `replication.hold_ms_max`.
    pub hold_ms_max: u64,
    /// Whether no frame was held for longer in the last minute.
    pub hold_kept: bool,
    /// The VM's speed: below 100, link or backup carry no more than that.
    pub guest_speed_pct: f64,
    /// Which of the two, while the VM is slowed.
    #[serde(default)]
    pub slowed_by: Option<Bottleneck>,
    /// Megabits a second that the replication link carries to the backup now.
    #[serde(default)]
    pub carried_mbit_per_s: Option<f64>,
}

/// Remembers when a frame was held for too long.
#[derive(Debug, Default)]
pub struct HoldWatch {
    late: u64,
    broken_at: Option<Instant>,
}

impl HoldWatch {
    /// Looks at the holds of all frames so far. Says whether the bound was kept in the last minute.
    pub fn look(&mut self, holds_us: &Histogram<u64>, bound_us: u64, now: Instant) -> bool {
        let late = holds_us.len() - holds_us.count_between(0, bound_us);
        if late > self.late {
            self.broken_at = Some(now);
        }
        self.late = late;
        self.broken_at.is_none_or(|at| now.saturating_duration_since(at) > MEMORY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_beyond_its_bound_is_remembered_for_a_minute() {
        let mut holds = Histogram::new_with_max(60_000_000, 2).unwrap();
        let (mut watch, start) = (HoldWatch::default(), Instant::now());
        holds.record_n(2_000, 100_000).unwrap();
        assert!(watch.look(&holds, 100_000, start));
        holds.record(300_000).unwrap();
        assert!(!watch.look(&holds, 100_000, start));
        assert!(!watch.look(&holds, 100_000, start + MEMORY));
        assert!(watch.look(&holds, 100_000, start + 2 * MEMORY));
    }
}
