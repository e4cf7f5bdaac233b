//! A bound on the messages of one connection that wait at the executor. A peer that talks too fast waits; it does not
//! fill our memory.

use parking_lot::{Condvar, Mutex};
use std::sync::Arc;

/// News of one connection that may wait at the executor.
const WAITING_MAX: usize = 256;

/// The door between a connection's reader and the executor.
pub struct Intake {
    state: Mutex<Places>,
    eased: Condvar,
}

#[derive(Default)]
struct Places {
    waiting: usize,
    stopped: bool,
}

/// The place of one piece of news; free again when it is dropped, which is when the news has been handled.
pub struct Ticket(Arc<Intake>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.state.lock().waiting -= 1;
        self.0.eased.notify_one();
    }
}

impl Intake {
    /// An open door.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), eased: Condvar::new() })
    }

    /// A place for the next piece of news, after waiting for one; none when nothing more is wanted.
    pub fn enter(self: &Arc<Self>) -> Option<Ticket> {
        let mut state = self.state.lock();
        while state.waiting >= WAITING_MAX && !state.stopped {
            self.eased.wait(&mut state);
        }
        if state.stopped {
            return None;
        }
        state.waiting += 1;
        Some(Ticket(Arc::clone(self)))
    }

    /// Nothing more is wanted; a waiting reader stops waiting.
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
    use std::sync::mpsc::channel;

    #[test]
    fn a_flood_waits_and_goes_on_as_places_become_free() {
        let (tickets, received) = channel();
        let intake = Intake::new();
        let flooding = {
            let intake = Arc::clone(&intake);
            std::thread::spawn(move || {
                (0..3 * WAITING_MAX).all(|_| tickets.send(intake.enter().unwrap()).is_ok())
            })
        };
        for _ in 0..3 * WAITING_MAX {
            assert!(intake.state.lock().waiting <= WAITING_MAX);
            drop(received.recv().unwrap());
        }
        assert!(flooding.join().unwrap());
    }

    #[test]
    fn stopping_frees_who_waits() {
        let intake = Intake::new();
        let flooding = {
            let intake = Arc::clone(&intake);
            std::thread::spawn(move || (0..=WAITING_MAX).map_while(|_| intake.enter()).collect::<Vec<_>>())
        };
        while intake.state.lock().waiting < WAITING_MAX {
            std::thread::yield_now();
        }
        intake.stop();
        assert_eq!(flooding.join().unwrap().len(), WAITING_MAX);
        assert!(intake.enter().is_none());
    }
}
