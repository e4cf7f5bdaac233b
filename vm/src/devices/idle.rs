//! A vCPU thread waits here when its guest has nothing to do and cannot halt (CPL 3, no interrupts).
//!
//! No wake-up can be lost: every signal of a device begins a new generation, and a thread waits only while the
//! generation is the one in which it last returned from here. Suppose that a guest looks at its rings, a device
//! signals, and then the guest idles: the thread returns at once. It returns once for each signal, whether or not the
//! guest acknowledges interrupts, so that a vCPU without business with a device does not spin while another vCPU is
//! busy. A kick is a level: from [`Idle::forbid`] to [`Idle::allow`] nobody waits.

use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::thread::ThreadId;
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
    generation: u64,
    /// The generation in which each vCPU thread last returned. A thread that never idled here returns at once.
    seen: HashMap<ThreadId, u64>,
    forbidden: bool,
    /// For the engine that waits by itself.
    signalled: bool,
}

impl Idle {
    /// A device has something for the guest.
    pub(crate) fn signal(&self) {
        let mut state = self.state.lock();
        state.generation += 1;
        state.signalled = true;
        drop(state);
        self.changed.notify_all();
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

    /// Whether there was a signal since the last call.
    pub(crate) fn take_signal(&self) -> bool {
        std::mem::take(&mut self.state.lock().signalled)
    }

    pub(crate) fn set_signal(&self, signalled: bool) {
        self.state.lock().signalled = signalled;
    }

    /// Waits for a signal, a kick or `limit` (at most [`IDLE_MAX`]). Whether it waited until the limit.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit.min(IDLE_MAX);
        let thread = std::thread::current().id();
        let mut state = self.state.lock();
        let mut expired = false;
        while !expired && state.seen.get(&thread) == Some(&state.generation) && !state.forbidden {
            expired = self.changed.wait_until(&mut state, deadline).timed_out();
        }
        let generation = state.generation;
        state.seen.insert(thread, generation);
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_signal_before_the_wait_is_not_lost_and_ends_one_wait_only() {
        let idle = Idle::default();
        assert!(!idle.wait(LONG), "the first time, as there may have been anything before");
        idle.signal();
        idle.signal();
        assert!(!idle.wait(LONG));
        let start = Instant::now();
        assert!(idle.wait(LONG), "capped");
        assert!(start.elapsed() >= IDLE_MAX);
    }

    #[test]
    fn while_forbidden_nobody_waits() {
        let idle = Idle::default();
        idle.wait(Duration::ZERO);
        idle.forbid();
        assert!(!idle.wait(LONG));
        idle.allow();
        assert!(idle.wait(LONG));
    }

    #[test]
    fn one_signal_ends_the_wait_of_every_thread() {
        let idle = Arc::new(Idle::default());
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let idle = Arc::clone(&idle);
                std::thread::spawn(move || {
                    idle.wait(Duration::ZERO);
                    // Loops over the cap, so that only the signal can end it.
                    while idle.wait(LONG) {}
                })
            })
            .collect();
        // Not before all have begun: the first wait of a thread never lasts.
        while idle.state.lock().seen.len() < waiters.len() {
            std::thread::yield_now();
        }
        idle.signal();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    }
}
