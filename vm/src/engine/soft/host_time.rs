//! Host time for a guest whose time is virtual: how far virtual time should have come by now. It goes on while the
//! guest stands still (a pause for a checkpoint, a throttle, a full sink), as it does for a guest on KVM: the guest is
//! moved forward by that time when it goes on. Only a state that is taken over begins at its own time.

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
    /// Since when the guest stands still, by no doing of its own.
    still_since: Option<Instant>,
}

impl HostTime {
    /// Of a machine that is let run now, at this virtual time and count.
    pub(super) fn start(virtual_ns: u64, count: u64) -> Self {
        let start = Instant::now();
        Self { start, start_ns: virtual_ns, busy_since: start, busy_count: count, still_since: None }
    }

    /// The guest stands still from now on, if it does not already.
    pub(super) fn stand_still(&mut self) {
        self.still_since.get_or_insert_with(Instant::now);
    }

    /// Whether the guest was stopped here, so that its time has gone on.
    pub(super) fn stands_still(&self) -> bool {
        self.still_since.is_some()
    }

    /// The guest, whose time is `virtual_ns`, goes on: how far its time is moved forward. Not beyond the host's, and
    /// not by more than it stood still: what it lags besides is made good by its pace.
    pub(super) fn go_on(&mut self, virtual_ns: u64) -> u64 {
        let Some(since) = self.still_since.take() else { return 0 };
        let now = Instant::now();
        let still = now.saturating_duration_since(since);
        // The guest's speed is that of the time in which it ran.
        self.busy_since = (self.busy_since + still).min(now);
        let still_ns = u64::try_from(still.as_nanos()).unwrap_or(u64::MAX);
        self.due_ns().saturating_sub(virtual_ns).min(still_ns)
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
