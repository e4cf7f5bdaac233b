//! How fast this processor's time stamp counter counts. QEMU's translator shows it to its guest; a machine without
//! timers of old gives the guest nothing to measure it by, so it is told.

use serde::Serialize;
use std::time::{Duration, Instant};

/// What a measurement came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Tsc {
    /// Ticks in a millisecond.
    pub khz: u64,
}

/// Counts for so long.
pub fn measure(length: Duration) -> Tsc {
    let (began, from) = (Instant::now(), ticks());
    std::thread::sleep(length);
    let (ticks, took) = (ticks() - from, began.elapsed());
    Tsc { khz: (ticks as f64 / took.as_secs_f64() / 1e3).round() as u64 }
}

fn ticks() -> u64 {
    // SAFETY: every processor of this architecture has the counter, and Linux lets programs read it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_however_long_it_is_measured() {
        let (short, long) = (measure(Duration::from_millis(50)).khz, measure(Duration::from_millis(200)).khz);
        assert!(short.abs_diff(long) < long / 20, "{short} {long}");
    }
}
