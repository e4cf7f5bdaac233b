//! The checker: a program of the Linux guest that watches what a take-over could break. On each processor one thread
//! checks memory that it fills over and over, one holds values in registers, one watches the clocks, the time stamp
//! counter (against the other processors' as well) and how late its timer is. One static program without dependencies,
//! started by the guest's /init.
//!
//!     ft-check MIB
//!
//! It prints a line for each of the first faults, and every five seconds how many there were:
//!
//!     ft-check: up 35 s, faults 0, latest 3 ms, turns 12/340/230 9/338/228
//!
//! `latest` is the longest that a timer of 20 ms was late in these seconds; turns are of each processor's threads.

mod clocks;
mod memory;
mod registers;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const REPORT_EVERY: Duration = Duration::from_secs(5);
/// Faults that are told one by one.
const TOLD_MAX: u64 = 20;
const PROCESSORS_MAX: usize = 64;

static FAULTS: AtomicU64 = AtomicU64::new(0);

/// What the threads of one processor have done so far: rounds over memory, holds of registers, looks at the clocks.
#[derive(Default)]
pub struct Turns([AtomicU64; 3]);

impl Turns {
    fn taken(&self) -> [u64; 3] {
        std::array::from_fn(|kind| self.0[kind].load(Relaxed))
    }
}

static TURNS: [Turns; PROCESSORS_MAX] = [const { Turns([const { AtomicU64::new(0) }; 3]) }; PROCESSORS_MAX];

/// Something is not as it was.
pub fn fault(what: std::fmt::Arguments<'_>) {
    if FAULTS.fetch_add(1, Relaxed) < TOLD_MAX {
        println!("ft-check: FAULT {what}");
    }
}

unsafe extern "C" {
    fn sched_setaffinity(pid: i32, bytes: usize, mask: *const u64) -> i32;
}

/// Starts a thread that stays on one processor, and counts its turns.
fn on(processor: usize, kind: usize, mut turn: impl FnMut() + Send + 'static) {
    std::thread::spawn(move || {
        let mask = 1_u64 << processor;
        // SAFETY: the kernel reads one word; 0 is the calling thread.
        if unsafe { sched_setaffinity(0, size_of_val(&mask), &mask) } != 0 {
            fault(format_args!("processor {processor} cannot be used"));
        }
        loop {
            turn();
            TURNS[processor].0[kind].fetch_add(1, Relaxed);
        }
    });
}

fn main() {
    let words: Vec<_> = std::env::args().collect();
    let mib = words.get(1).and_then(|word| word.parse::<usize>().ok()).unwrap_or(8);
    let processors = std::thread::available_parallelism().map_or(1, usize::from).min(PROCESSORS_MAX);
    for processor in 0..processors {
        let mut memory = memory::Memory::new(processor, (mib << 20) / processors);
        on(processor, 0, move || memory.round());
        let mut registers = registers::Registers::new(processor);
        on(processor, 1, move || registers.hold());
        let mut clocks = clocks::Clocks::new(processor);
        on(processor, 2, move || clocks.look());
    }
    println!("ft-check: {processors} processors, {mib} MiB");
    let began = Instant::now();
    let mut before = vec![[0; 3]; processors];
    loop {
        std::thread::sleep(REPORT_EVERY);
        let turns: String = before
            .iter_mut()
            .zip(&TURNS)
            .map(|(before, turns)| {
                let now = turns.taken();
                let [memory, registers, clocks] = std::array::from_fn(|kind| now[kind] - before[kind]);
                *before = now;
                format!(" {memory}/{registers}/{clocks}")
            })
            .collect();
        let (faults, latest) = (FAULTS.load(Relaxed), clocks::latest());
        let up = began.elapsed().as_secs();
        println!("ft-check: up {up} s, faults {faults}, latest {} ms, turns{turns}", latest.as_millis());
    }
}
