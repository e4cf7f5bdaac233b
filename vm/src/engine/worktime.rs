//! The processor time that vCPUs' threads take: how much of the time that its machine runs a guest works.

use nix::time::{ClockId, clock_gettime};
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The time that a machine ran, from when it was resumed until it was paused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stint {
    /// By the clock.
    pub ran: Duration,
    /// Processor time that the busiest vCPU took of it, the device work on its thread included.
    pub worked: Duration,
}

/// Of a thread that is not joined yet; zero for one that has ended.
fn processor_time(thread: &JoinHandle<()>) -> Duration {
    let mut clock = 0;
    // SAFETY: the thread's identity is valid until it is joined or detached, which takes the handle; the clock's number
    // is written to a place of our own.
    let failed = unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t(), &mut clock) };
    if failed != 0 {
        return Duration::ZERO;
    }
    clock_gettime(ClockId::from_raw(clock)).map_or(Duration::ZERO, Duration::from)
}

/// Measures the stints of one machine's threads.
#[derive(Default)]
pub(super) struct Stints {
    begun: Option<Instant>,
    /// The threads' processor times when it began.
    before: Vec<Duration>,
    last: Stint,
    all_worked: bool,
}

impl Stints {
    /// The threads run from now on.
    pub(super) fn begin<'a>(&mut self, threads: impl Iterator<Item = &'a JoinHandle<()>>) {
        self.before.clear();
        self.before.extend(threads.map(processor_time));
        self.begun = Some(Instant::now());
    }

    /// The same threads, in the same order, are stopped now.
    pub(super) fn end<'a>(&mut self, threads: impl Iterator<Item = &'a JoinHandle<()>>) -> Stint {
        if let Some(begun) = self.begun.take() {
            let ran = begun.elapsed();
            let mut worked = Duration::ZERO;
            self.all_worked = true;
            for (now, before) in threads.map(processor_time).zip(&self.before) {
                let took = now.saturating_sub(*before);
                worked = worked.max(took);
                self.all_worked &= took * 2 >= ran;
            }
            self.last = Stint { ran, worked };
        }
        self.last
    }

    /// Whether each thread worked most of the last one, and so did at its end, probably.
    pub(super) fn all_worked(&self) -> bool {
        self.all_worked
    }

    /// The last one that has ended.
    pub(super) fn last(&self) -> Stint {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_stint_has_what_the_busiest_thread_took_in_it() {
        let ends = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&ends);
        let busy = std::thread::spawn(move || while !theirs.load(Ordering::Relaxed) {});
        let idle = std::thread::spawn(std::thread::park);
        let mut stints = Stints::default();
        assert_eq!(stints.end([&idle, &busy].into_iter()), Stint::default(), "none has begun");
        stints.begin([&idle, &busy].into_iter());
        // However busy this machine is: it runs at some time.
        let before = processor_time(&busy);
        while processor_time(&busy) < before + Duration::from_millis(20) {
            std::thread::yield_now();
        }
        let stint = stints.end([&idle, &busy].into_iter());
        assert!(
            stint.worked >= Duration::from_millis(20) && stint.ran >= Duration::from_millis(20),
            "{stint:?}"
        );
        assert_eq!(stints.last(), stint);
        assert!(!stints.all_worked(), "one of two");
        ends.store(true, Ordering::Relaxed);
        busy.join().unwrap();
        stints.begin([&idle].into_iter());
        std::thread::sleep(Duration::from_millis(5));
        let stint = stints.end([&idle].into_iter());
        assert!(stint.worked == Duration::ZERO && !stints.all_worked(), "it sleeps: {stint:?}");
        idle.thread().unpark();
        idle.join().unwrap();
    }
}
