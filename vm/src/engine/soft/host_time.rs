//! Host time for a guest whose time is virtual: how far virtual time should have come by now. It counts only while the
//! machine runs, so that a guest goes on after a pause at the time at which it was paused.

use ft_cpu::{PACES, Pace};
use std::time::{Duration, Instant};

/// How long the guest's speed is measured before the pace is set by it.
const WINDOW: Duration = Duration::from_millis(10);
/// A difference is made good within about this time.
const CATCH_UP_NS: i64 = 100_000_000;

#[derive(Clone, Copy, Debug)]
pub(super) struct HostTime {
    /// When the machine was let run...
    start: Instant,
    /// ...and its virtual time then.
    start_ns: u64,
    /// Since when the guest computes without a break...
    busy_since: Instant,
    /// ...and its count then.
    busy_count: u64,
}

impl HostTime {
    /// Of a machine that is let run now, at this virtual time and count.
    pub(super) fn start(virtual_ns: u64, count: u64) -> Self {
        let start = Instant::now();
        Self { start, start_ns: virtual_ns, busy_since: start, busy_count: count }
    }

    /// The guest has done nothing for a while, and computes from now on.
    pub(super) fn begin_again(&mut self, count: u64) {
        (self.busy_since, self.busy_count) = (Instant::now(), count);
    }

    /// Another pace than `pace`, if the guest computes at another speed or virtual time is not where it should be.
    pub(super) fn follow(&mut self, pace: Pace, virtual_ns: u64, count: u64) -> Option<Pace> {
        let elapsed = self.busy_since.elapsed();
        if elapsed < WINDOW {
            return None;
        }
        let executed = count.saturating_sub(self.busy_count).max(1);
        self.begin_again(count);
        let measured = (elapsed.as_nanos() << 8) / u128::from(executed);
        let lag_ns = i128::from(self.due_ns()) - i128::from(virtual_ns);
        // From half of what was measured to four times as much.
        let limit = i128::from(CATCH_UP_NS);
        let factor = limit + lag_ns.clamp(-limit / 2, 3 * limit);
        let wanted = (measured as i128).saturating_mul(factor) / limit;
        let wanted = Pace::try_from(wanted).unwrap_or(Pace::MAX).clamp(*PACES.start(), *PACES.end());
        (wanted.abs_diff(pace) > pace / 32).then_some(wanted)
    }

    /// What virtual time should be now.
    pub(super) fn due_ns(&self) -> u64 {
        let elapsed_ns = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.start_ns.saturating_add(elapsed_ns)
    }

    /// When virtual time should be `ns`; none where that is beyond what clocks reach.
    pub(super) fn instant_of(&self, ns: u64) -> Option<Instant> {
        self.start.checked_add(Duration::from_nanos(ns.saturating_sub(self.start_ns)))
    }
}
