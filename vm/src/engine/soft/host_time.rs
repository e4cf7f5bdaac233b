//! Host time for a guest whose time is virtual: how far virtual time should have come by now. It goes on while the
//! guest stands still (a pause for a checkpoint, a throttle, a full sink), as it does for a guest on KVM: the guest is
//! moved forward by that time when it goes on. Only a state that is taken over begins at its own time.

use ft_cpu::{PACES, Pace};
use std::time::{Duration, Instant};

/// How long the guest's speed is measured before the pace is set by it...
const WINDOW: Duration = Duration::from_millis(10);
/// ...but at once where virtual time is ahead of the host's by so much. A guest that works in short pieces takes long
/// to have worked for a window, and its time, at the pace of a moment in which the host was busy, runs away until then.
const FAST_NS: u64 = 10_000_000;
/// A difference is made good within about this time.
const CATCH_UP_NS: i64 = 100_000_000;

#[derive(Clone, Copy, Debug)]
pub(super) struct HostTime {
    /// When the machine was let run...
    start: Instant,
    /// ...and its virtual time then.
    start_ns: u64,
    /// How long the guest has computed since its speed was measured, in one piece or many...
    busy: Duration,
    /// ...and how many instructions.
    executed: u64,
    /// Since when the guest stands still, by no doing of its own.
    still_since: Option<Instant>,
}

impl HostTime {
    /// Of a machine that is let run now, at this virtual time.
    pub(super) fn start(virtual_ns: u64) -> Self {
        Self {
            start: Instant::now(),
            start_ns: virtual_ns,
            busy: Duration::ZERO,
            executed: 0,
            still_since: None,
        }
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
        let still_ns = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.due_ns().saturating_sub(virtual_ns).min(still_ns)
    }

    /// The guest has computed: so long, and so many instructions. Its speed is that of the time in which it ran.
    pub(super) fn note_work(&mut self, took: Duration, executed: u64) {
        self.busy += took;
        self.executed = self.executed.saturating_add(executed);
    }

    /// Another pace than `pace`, if the guest computes at another speed or virtual time is not where it should be.
    pub(super) fn follow(&mut self, pace: Pace, virtual_ns: u64) -> Option<Pace> {
        let due_ns = self.due_ns();
        if self.executed == 0 || (self.busy < WINDOW && virtual_ns < due_ns.saturating_add(FAST_NS)) {
            return None;
        }
        let (busy, executed) = (std::mem::take(&mut self.busy), std::mem::take(&mut self.executed));
        let measured = (busy.as_nanos() << 8) / u128::from(executed);
        let lag_ns = i128::from(due_ns) - i128::from(virtual_ns);
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
