//! Clocks that do not go back, go together, and are the same on every processor.

use crate::fault;
use std::arch::x86_64::{_mm_lfence, _rdtsc};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

const MONOTONIC: i32 = 1;
const CLOCK_GETTIME: i64 = 228;
const NAP: Duration = Duration::from_millis(20);
/// How far the time stamp counter and the monotonic clock may be apart after a nap and what it was late by, in ns: the
/// counter's speed is measured.
const APART_MAX_NS: f64 = 1e8;
/// How long the counter's speed is measured, and how exactly: a processor that stands still between two readings
/// spoils them.
const MEASURED: Duration = Duration::from_secs(1);
const SPEED_ERROR_MAX: f64 = 0.01;

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

/// A look at both: the clock, between two readings of the counter.
#[derive(Clone, Copy)]
struct Look {
    earlier: u64,
    ns: u64,
    library_ns: u64,
    later: u64,
}

impl Look {
    fn take() -> Self {
        let earlier = counter();
        let [ns, library_ns] = monotonic();
        Self { earlier, ns, library_ns, later: counter() }
    }

    /// Ticks of the counter from the other look's clock to this one's: at least, and at most.
    fn ticks_since(self, other: Self) -> [f64; 2] {
        [self.earlier.wrapping_sub(other.later) as f64, self.later.wrapping_sub(other.earlier) as f64]
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

    /// Ticks of the counter in a nanosecond.
    fn measure() -> f64 {
        loop {
            let before = Look::take();
            std::thread::sleep(MEASURED);
            let after = Look::take();
            let [least, most] = after.ticks_since(before);
            if most - least <= SPEED_ERROR_MAX * least {
                return least / after.ns.saturating_sub(before.ns) as f64;
            }
        }
    }

    /// Naps, and looks at the clocks before and after.
    pub fn look(&mut self) {
        let speed = *self.speed.get_or_insert_with(Self::measure);
        let processor = self.processor;
        let before = Look::take();
        std::thread::sleep(NAP);
        let now = Look::take();
        if now.ns < before.ns || before.ns < self.last_ns {
            fault(format_args!("the monotonic clock goes back on processor {processor}"));
        }
        if now.library_ns < now.ns {
            let behind = now.ns - now.library_ns;
            fault(format_args!("the library's clock is {behind} ns behind, processor {processor}"));
        }
        if now.earlier < before.later || before.earlier < self.last_counter {
            fault(format_args!("the time stamp counter goes back on processor {processor}"));
        }
        // Whoever has read the other's has read its own later.
        let others = LAST.load(SeqCst);
        let own = counter();
        if own < others {
            fault(format_args!("the time stamp counter of processor {processor} is {} behind", others - own));
        }
        LAST.fetch_max(own, SeqCst);
        let slept = now.ns.saturating_sub(before.ns);
        let ticked = now.ticks_since(before).map(|ticks| ticks / speed);
        if slept as f64 + APART_MAX_NS < ticked[0] || slept as f64 - APART_MAX_NS > ticked[1] {
            let [least, most] = ticked.map(|ns| ns as u64 / 1_000_000);
            let clock = slept / 1_000_000;
            fault(format_args!(
                "processor {processor}: {least} to {most} ms by the time stamp counter, {clock} ms by the clock"
            ));
        }
        LATEST_NS.fetch_max(slept.saturating_sub(NAP.as_nanos() as u64), SeqCst);
        (self.last_ns, self.last_counter) = (now.ns, now.later);
    }
}
