//! The processor time that a vCPU's thread has taken: how much of the time its guest works.

use nix::time::{ClockId, clock_gettime};
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;
use std::time::Duration;

/// Of a thread that is not joined yet; zero for one that has ended.
pub(super) fn of(thread: &JoinHandle<()>) -> Duration {
    let mut clock = 0;
    // SAFETY: the thread's identity is valid until it is joined or detached, which takes the handle; the clock's number
    // is written to a place of our own.
    let failed = unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t(), &mut clock) };
    if failed != 0 {
        return Duration::ZERO;
    }
    clock_gettime(ClockId::from_raw(clock)).map_or(Duration::ZERO, Duration::from)
}

/// What the busiest of some threads has taken since this was asked last.
#[derive(Default)]
pub(super) struct Worked {
    before: Vec<Duration>,
}

impl Worked {
    /// Always of the same threads, in the same order.
    pub(super) fn busiest<'a>(&mut self, threads: impl Iterator<Item = &'a JoinHandle<()>>) -> Duration {
        let mut busiest = Duration::ZERO;
        for (index, thread) in threads.enumerate() {
            let now = of(thread);
            match self.before.get_mut(index) {
                Some(before) => busiest = busiest.max(now.saturating_sub(std::mem::replace(before, now))),
                None => self.before.push(now),
            }
        }
        busiest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn the_busiest_thread_is_told_and_only_what_is_new() {
        let ends = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&ends);
        let busy = std::thread::spawn(move || while !theirs.load(Ordering::Relaxed) {});
        let idle = std::thread::spawn(std::thread::park);
        let mut worked = Worked::default();
        assert_eq!(worked.busiest([&idle, &busy].into_iter()), Duration::ZERO, "the first time");
        // However busy this machine is: it runs at some time.
        while of(&busy) < Duration::from_millis(20) {
            std::thread::yield_now();
        }
        assert!(worked.busiest([&idle, &busy].into_iter()) > Duration::ZERO);
        ends.store(true, Ordering::Relaxed);
        busy.join().unwrap();
        worked.busiest([&idle].into_iter());
        assert_eq!(worked.busiest([&idle].into_iter()), Duration::ZERO, "it sleeps");
        idle.thread().unpark();
        idle.join().unwrap();
    }
}
