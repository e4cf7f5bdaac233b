//! Where the two connections of one dial find each other at the listener: the second one brings its name, and waits for
//! the hello that knows it. Whichever is first waits for a short while.

use super::pulse::PulseEnds;
use parking_lot::{Condvar, Mutex};
use std::time::Instant;

/// Connections that wait at once; with more, the one that has waited longest is closed.
const WAITING_MAX: usize = 64;

/// See the module. `E`: what waits.
pub struct Rendezvous<E = PulseEnds> {
    waiting: Mutex<Vec<Waiting<E>>>,
    came: Condvar,
}

struct Waiting<E> {
    name: u64,
    until: Instant,
    ends: E,
}

impl<E> Default for Rendezvous<E> {
    fn default() -> Self {
        Self { waiting: Mutex::new(Vec::new()), came: Condvar::new() }
    }
}

impl<E> Rendezvous<E> {
    /// A second connection has come. One that is not asked for in time is closed when the next one comes.
    pub fn bring(&self, name: u64, ends: E, until: Instant) {
        let mut waiting = self.waiting.lock();
        let now = Instant::now();
        waiting.retain(|other| other.until > now);
        if waiting.len() >= WAITING_MAX {
            waiting.remove(0);
        }
        waiting.push(Waiting { name, until, ends });
        self.came.notify_all();
    }

    /// The second connection of this name, after waiting for it; none when it does not come in time.
    pub fn meet(&self, name: u64, until: Instant) -> Option<E> {
        let mut waiting = self.waiting.lock();
        loop {
            if let Some(at) = waiting.iter().position(|other| other.name == name) {
                return Some(waiting.remove(at).ends);
            }
            if self.came.wait_until(&mut waiting, until).timed_out() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn whichever_comes_first_waits_for_the_other_and_only_for_that() {
        let soon = || Instant::now() + Duration::from_secs(60);
        let place = Arc::new(Rendezvous::default());
        place.bring(1, 'a', soon());
        place.bring(2, 'b', soon());
        assert_eq!(place.meet(2, soon()), Some('b'));
        let met = {
            let place = Arc::clone(&place);
            std::thread::spawn(move || place.meet(3, soon()))
        };
        place.bring(3, 'c', soon());
        assert_eq!(met.join().unwrap(), Some('c'));
        assert_eq!(place.meet(3, Instant::now()), None, "it was taken");
        assert_eq!(place.meet(1, soon()), Some('a'));
    }

    #[test]
    fn those_who_wait_in_vain_leave_and_never_become_many() {
        let place = Rendezvous::default();
        place.bring(0, (), Instant::now());
        for name in 1..=2 * WAITING_MAX as u64 {
            place.bring(name, (), Instant::now() + Duration::from_secs(60));
        }
        assert_eq!(place.waiting.lock().len(), WAITING_MAX);
        assert_eq!(place.meet(0, Instant::now()), None);
        assert_eq!(place.meet(2 * WAITING_MAX as u64, Instant::now()), Some(()));
    }
}
