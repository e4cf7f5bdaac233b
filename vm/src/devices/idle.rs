//! Where a vCPU thread waits when its guest has nothing to do and cannot halt (CPL 3, no interrupts).
//!
//! No wake-up can be lost because the condition is a level, not an event: idling waits while no virtio device has an
//! interrupt status bit set, and only the guest's own acknowledgement clears it. A guest that acknowledges, then looks
//! at its rings, then idles returns at once from the last step when something happened after the first. (A guest that
//! never acknowledges never waits.) A kick is a level too: from [`Idle::forbid`] to [`Idle::allow`] nobody waits.

use parking_lot::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// The longest wait for one write of the guest.
pub(crate) const IDLE_MAX: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(crate) struct Idle {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Bit `i`: virtio device `i` has interrupt status set.
    signalled: u32,
    forbidden: bool,
}

impl Idle {
    /// Device `index` has, or no longer has, interrupt status set.
    pub(crate) fn set_signalled(&self, index: usize, signalled: bool) {
        let mut state = self.state.lock();
        if signalled {
            state.signalled |= 1 << index;
            self.changed.notify_all();
        } else {
            state.signalled &= !(1 << index);
        }
    }

    /// Whoever idles returns, and nobody idles from now on.
    pub(crate) fn forbid(&self) {
        self.state.lock().forbidden = true;
        self.changed.notify_all();
    }

    /// Idling waits again.
    pub(crate) fn allow(&self) {
        self.state.lock().forbidden = false;
    }

    /// Waits for a signal, a kick or `limit` (at most [`IDLE_MAX`]).
    pub(crate) fn wait(&self, limit: Duration) {
        let deadline = Instant::now() + limit.min(IDLE_MAX);
        let mut state = self.state.lock();
        while state.signalled == 0 && !state.forbidden {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn elapsed(idle: &Idle) -> Duration {
        let start = Instant::now();
        idle.wait(Duration::from_secs(3600));
        start.elapsed()
    }

    #[test]
    fn a_signal_before_the_wait_is_not_lost_and_the_wait_is_capped() {
        let idle = Idle::default();
        idle.set_signalled(3, true);
        assert!(elapsed(&idle) < IDLE_MAX);
        idle.set_signalled(3, false);
        assert!(elapsed(&idle) >= IDLE_MAX);
    }

    #[test]
    fn while_forbidden_nobody_waits() {
        let idle = Idle::default();
        idle.forbid();
        assert!(elapsed(&idle) < IDLE_MAX);
        idle.allow();
        assert!(elapsed(&idle) >= IDLE_MAX);
    }

    #[test]
    fn a_signal_from_another_thread_ends_every_wait() {
        let idle = Arc::new(Idle::default());
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let idle = Arc::clone(&idle);
                // Loops over the cap, so that only the signal can end it.
                std::thread::spawn(move || while elapsed(&idle) >= IDLE_MAX {})
            })
            .collect();
        idle.set_signalled(0, true);
        for waiter in waiters {
            waiter.join().unwrap();
        }
    }
}
