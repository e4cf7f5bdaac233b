//! A bound on what one connection may have waiting at the executor: a peer that talks faster than it is listened to waits,
//! it does not fill our memory.

use super::Input;
use crate::role::Event;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// Events of one connection that may wait at the executor.
const WAITING_MAX: usize = 256;

/// The door between a connection's reader and the executor.
pub struct Intake {
    inputs: Sender<Input>,
    state: Mutex<State>,
    eased: Condvar,
}

#[derive(Default)]
struct State {
    waiting: usize,
    stopped: bool,
}

/// The place of one event; free again when it is dropped.
pub struct Ticket(Arc<Intake>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.state.lock().waiting -= 1;
        self.0.eased.notify_one();
    }
}

impl Intake {
    /// An open door.
    pub fn new(inputs: Sender<Input>) -> Arc<Self> {
        Arc::new(Self { inputs, state: Mutex::default(), eased: Condvar::new() })
    }

    /// Hands an event over, after waiting for a place. False when nothing more is wanted.
    pub fn tell(self: &Arc<Self>, event: Event) -> bool {
        let mut state = self.state.lock();
        while state.waiting >= WAITING_MAX && !state.stopped {
            self.eased.wait(&mut state);
        }
        if state.stopped {
            return false;
        }
        state.waiting += 1;
        drop(state);
        self.inputs.send(Input::FromPeer(event, Ticket(Arc::clone(self)))).is_ok()
    }

    /// Nothing more is wanted; whoever waits stops waiting.
    pub fn stop(&self) {
        self.state.lock().stopped = true;
        self.eased.notify_all();
    }

    /// Whether nothing more is wanted.
    pub fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_waits_and_goes_on_as_places_become_free() {
        let (inputs, received) = std::sync::mpsc::channel();
        let intake = Intake::new(inputs);
        let flooding = {
            let intake = Arc::clone(&intake);
            std::thread::spawn(move || (0..3 * WAITING_MAX).all(|_| intake.tell(Event::Tick)))
        };
        for _ in 0..3 * WAITING_MAX {
            assert!(intake.state.lock().waiting <= WAITING_MAX);
            received.recv().unwrap();
        }
        assert!(flooding.join().unwrap());
    }

    #[test]
    fn stopping_frees_who_waits() {
        let (inputs, _received) = std::sync::mpsc::channel();
        let intake = Intake::new(inputs);
        let flooding = {
            let intake = Arc::clone(&intake);
            std::thread::spawn(move || (0..=WAITING_MAX).all(|_| intake.tell(Event::Tick)))
        };
        while intake.state.lock().waiting < WAITING_MAX {
            std::thread::yield_now();
        }
        intake.stop();
        assert!(!flooding.join().unwrap());
        assert!(!intake.tell(Event::Tick));
    }
}
