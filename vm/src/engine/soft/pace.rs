//! Host time for a guest whose time is virtual: how far virtual time should have come by now. It counts only while the
//! machine runs, so that a guest goes on after a pause at the time at which it was paused.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// When the machine was let run...
    start: Instant,
    /// ...and its virtual time then.
    start_ns: u64,
}

impl Pace {
    /// Of a machine that is let run now, at this virtual time.
    pub(super) fn start(virtual_ns: u64) -> Self {
        Self { start: Instant::now(), start_ns: virtual_ns }
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
