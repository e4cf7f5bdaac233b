//! Clocks that do not go back, go together, and are the same on every processor.

use crate::fault;
use std::arch::x86_64::{_mm_lfence, _rdtsc};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

const MONOTONIC: i32 = 1;
const CLOCK_GETTIME: i64 = 228;
const NAP: Duration = Duration::from_millis(20);
/// How far the time stamp counter and the monotonic clock may be apart after a nap and what it was late by: the
/// counter's speed is measured, and the two are not read at once.
const APART_MAX: f64 = 0.1;
/// How long the counter's speed is measured.
const MEASURED: Duration = Duration::from_secs(1);

#[repr(C)]
#[derive(Default)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
    fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
}

/// The monotonic clock in nanoseconds, as the kernel tells it, and without asking the kernel.
fn monotonic() -> [u64; 2] {
    let (mut by_kernel, mut by_library) = (Timespec::default(), Timespec::default());
    // SAFETY: each writes one structure of this layout.
    unsafe {
        syscall(CLOCK_GETTIME, MONOTONIC, &mut by_kernel);
        clock_gettime(MONOTONIC, &mut by_library);
    }
    [by_kernel, by_library].map(|time| time.seconds as u64 * 1_000_000_000 + time.nanoseconds as u64)
}

fn counter() -> u64 {
    // SAFETY: every x86-64 processor has both instructions.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// The last counter that any processor has read.
static LAST: AtomicU64 = AtomicU64::new(0);
static LATEST_NS: AtomicU64 = AtomicU64::new(0);

/// By how much a nap was too long at most since this was asked last.
pub fn latest() -> Duration {
    Duration::from_nanos(LATEST_NS.swap(0, SeqCst))
}

pub struct Clocks {
    processor: usize,
    last_ns: u64,
    last_counter: u64,
    /// Ticks of the counter in a nanosecond; none before it was measured.
    speed: Option<f64>,
}

impl Clocks {
    pub fn new(processor: usize) -> Self {
        Self { processor, last_ns: 0, last_counter: 0, speed: None }
    }

    fn measure(&mut self) -> f64 {
        let (ns, ticks) = (monotonic()[0], counter());
        std::thread::sleep(MEASURED);
        (counter() - ticks) as f64 / (monotonic()[0] - ns) as f64
    }

    /// Naps, and looks at the clocks before and after.
    pub fn look(&mut self) {
        let speed = match self.speed {
            Some(speed) => speed,
            None => {
                let speed = self.measure();
                *self.speed.insert(speed)
            }
        };
        let processor = self.processor;
        let ([before_ns, _], before) = (monotonic(), counter());
        std::thread::sleep(NAP);
        let ([ns, library_ns], now) = (monotonic(), counter());
        if ns < before_ns || before_ns < self.last_ns {
            fault(format_args!("the monotonic clock goes back on processor {processor}"));
        }
        if library_ns < ns {
            fault(format_args!(
                "the library's clock is {} ns behind, processor {processor}",
                ns - library_ns
            ));
        }
        if now < before || before < self.last_counter {
            fault(format_args!("the time stamp counter goes back on processor {processor}"));
        }
        // Whoever has read the other's has read its own later.
        let others = LAST.load(SeqCst);
        let own = counter();
        if own < others {
            fault(format_args!("the time stamp counter of processor {processor} is {} behind", others - own));
        }
        LAST.fetch_max(own, SeqCst);
        let (slept, ticked) = (ns.saturating_sub(before_ns), now.wrapping_sub(before) as f64 / speed);
        if (ticked - slept as f64).abs() > APART_MAX * 1e9 {
            fault(format_args!(
                "processor {processor}: {} ms by the time stamp counter, {} ms by the clock",
                ticked as u64 / 1_000_000,
                slept / 1_000_000
            ));
        }
        LATEST_NS.fetch_max(slept.saturating_sub(NAP.as_nanos() as u64), SeqCst);
        (self.last_ns, self.last_counter) = (ns, now);
    }
}
