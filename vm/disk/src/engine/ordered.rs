//! Orders on their way to an engine's threads, and the threads' end.

use super::UNDER_WAY_MAX;
use crate::io::IoOrder;
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

/// Shared by the queue and the threads of its engine.
pub(super) struct Ordered {
    state: Mutex<State>,
    changed: Condvar,
    /// For the thread that waits in the kernel.
    bell: EventFd,
}

#[derive(Default)]
struct State {
    orders: VecDeque<IoOrder>,
    nudged: bool,
    ending: bool,
    /// The bell was rung since the last time that orders were taken.
    rung: bool,
    /// Threads that have not ended.
    threads: usize,
}

/// What a thread has to do next.
pub(super) enum Next {
    /// Carry this out.
    Order(IoOrder),
    /// Say that nothing is done.
    Nudge,
    /// End.
    End,
}

impl Ordered {
    pub(super) fn new() -> io::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { state: Mutex::default(), changed: Condvar::new(), bell })
    }

    pub(super) fn put(&self, order: IoOrder) {
        self.change(|state| state.orders.push_back(order));
    }

    pub(super) fn nudge(&self) {
        self.change(|state| state.nudged = true);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        let rung = std::mem::replace(&mut state.rung, true);
        drop(state);
        self.changed.notify_one();
        if !rung {
            // It fails only when the counter is full, and then it is readable.
            let _ = self.bell.write(1);
        }
    }

    /// Becomes readable with whatever comes in.
    pub(super) fn bell(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    /// A thread of the engine begins.
    pub(super) fn begin(&self) {
        self.state.lock().threads += 1;
    }

    /// A thread of the engine has ended, and holds the image no more.
    pub(super) fn ended(&self) {
        self.state.lock().threads -= 1;
        self.changed.notify_all();
    }

    /// Has the threads end after what is under way, and waits for that; whether they have.
    pub(super) fn end(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut state = self.state.lock();
        state.ending = true;
        state.orders.clear();
        self.changed.notify_all();
        // As above.
        let _ = self.bell.write(1);
        while state.threads != 0 {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return false;
            }
        }
        true
    }

    pub(super) fn is_ending(&self) -> bool {
        self.state.lock().ending
    }

    /// Waits for something to do.
    pub(super) fn wait(&self) -> Next {
        let mut state = self.state.lock();
        loop {
            if state.ending {
                return Next::End;
            }
            if let Some(order) = state.orders.pop_front() {
                return Next::Order(order);
            }
            if std::mem::take(&mut state.nudged) {
                return Next::Nudge;
            }
            self.changed.wait(&mut state);
        }
    }

    /// Takes orders as long as fewer than [`UNDER_WAY_MAX`] are under way; whether there was a nudge.
    pub(super) fn take(&self, under_way: usize, into: &mut Vec<IoOrder>) -> bool {
        let mut state = self.state.lock();
        state.rung = false;
        // Fails when it was not rung.
        let _ = self.bell.read();
        let room = UNDER_WAY_MAX.saturating_sub(under_way).min(state.orders.len());
        into.extend(state.orders.drain(..room));
        std::mem::take(&mut state.nudged)
    }
}
