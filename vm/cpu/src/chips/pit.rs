//! The interval timer (8254) with port 0x61: three counters at 1,193,182 Hz. Counter 0 interrupts; counter 2 has a gate
//! and an output that port 0x61 controls and shows, by which kernels calibrate the TSC.
//!
//! Time is counted in whole ticks since the machine's power-on, so that nothing drifts: tick k is at k / 1,193,182
//! seconds, rounded up to a nanosecond. A counter is where it started and how far that is, never a running number.
//! Simplified: a count that is written while counting takes effect at once, in every mode.

use super::ChipError;
use serde::{Deserialize, Serialize};

pub(super) const HZ: u64 = 1_193_182;
const NS_PER_S: u64 = 1_000_000_000;

/// Access of a counter's port: as bits 5:4 of the control word.
const ACCESS_LOW: u8 = 1;
const ACCESS_HIGH: u8 = 2;
const ACCESS_BOTH: u8 = 3;

const GATE_2: u8 = 1 << 0;
const SPEAKER: u8 = 1 << 1;
/// Half the period of the bit that once told of memory refreshes.
const REFRESH_TICKS: u64 = 18;

/// Ticks that have passed at a time.
pub(super) fn tick_at(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(HZ) / u128::from(NS_PER_S)) as u64
}

/// When a tick passes.
fn ns_of(tick: u64) -> u64 {
    let ns = (u128::from(tick) * u128::from(NS_PER_S)).div_ceil(HZ.into());
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// Whether a counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Run {
    /// It has a mode, but no count yet.
    Empty,
    /// Its gate holds it, this many ticks after its start.
    Held(u64),
    /// Since this tick.
    Since(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Counter {
    /// 0 to 5.
    mode: u8,
    access: u8,
    bcd: bool,
    gate: bool,
    /// The count, 1 to 65536; 1 until there is one.
    reload: u32,
    run: Run,
    /// The low byte of a count whose high byte is to come.
    written_low: Option<u8>,
    /// The next byte read is a high one.
    reads_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    fn new(gate: bool) -> Counter {
        Counter {
            mode: 0,
            access: ACCESS_BOTH,
            bcd: false,
            gate,
            reload: 1,
            run: Run::Empty,
            written_low: None,
            reads_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    fn elapsed(&self, tick: u64) -> u64 {
        match self.run {
            Run::Empty => 0,
            Run::Held(elapsed) => elapsed,
            Run::Since(start) => tick.saturating_sub(start),
        }
    }

    fn modulus(&self) -> u64 {
        if self.bcd { 10_000 } else { 1 << 16 }
    }

    /// What is left to count, as the counter's register has it.
    fn count(&self, tick: u64) -> u16 {
        let (elapsed, n, modulus) = (self.elapsed(tick), u64::from(self.reload), self.modulus());
        let left = match (self.run, self.mode) {
            (Run::Empty, _) => 0,
            (_, 2) => n - elapsed % n,
            // Twice as fast, twice a period.
            (_, 3) => n - elapsed % n * 2 % n,
            // On, below zero.
            _ => n + modulus - elapsed % modulus,
        };
        let left = (left % modulus) as u16;
        if !self.bcd {
            return left;
        }
        [1000, 100, 10, 1].iter().fold(0, |bcd, unit| bcd * 16 + left / unit % 10)
    }

    fn output(&self, tick: u64) -> bool {
        let (elapsed, n) = (self.elapsed(tick), u64::from(self.reload));
        match (self.run, self.mode) {
            (Run::Empty, mode) => mode != 0,
            (_, 0 | 1) => elapsed >= n,
            (Run::Held(_), 2 | 3) => true,
            (_, 2) => elapsed % n != n - 1,
            (_, 3) => elapsed % n < n.div_ceil(2),
            _ => elapsed != n,
        }
    }

    /// The first tick after `tick` at which the output rises.
    fn next_rise(&self, tick: u64) -> Option<u64> {
        let Run::Since(start) = self.run else { return None };
        let n = u64::from(self.reload);
        let rise = match self.mode {
            0 | 1 => start.saturating_add(n),
            2 | 3 => start.saturating_add((tick.saturating_sub(start) / n + 1).saturating_mul(n)),
            _ => start.saturating_add(n + 1),
        };
        (rise > tick).then_some(rise)
    }

    fn control(&mut self, word: u8) {
        *self = Counter {
            // Modes 6 and 7 are 2 and 3.
            mode: if word & 4 != 0 && word & 8 != 0 { word >> 1 & 3 } else { word >> 1 & 7 },
            access: word >> 4 & 3,
            bcd: word & 1 != 0,
            ..Counter::new(self.gate)
        };
    }

    fn write(&mut self, tick: u64, byte: u8) {
        let value = match (self.access, self.written_low.take()) {
            (ACCESS_LOW, _) => byte.into(),
            (ACCESS_HIGH, _) => u16::from(byte) << 8,
            (_, Some(low)) => u16::from_le_bytes([low, byte]),
            (_, None) => {
                self.written_low = Some(byte);
                // Half a count stops mode 0.
                if self.mode == 0 {
                    self.run = Run::Empty;
                }
                return;
            }
        };
        let digits = (0..4).rev().fold(0, |n, digit| n * 10 + u32::from(value >> (digit * 4) & 15));
        self.reload = match if self.bcd { digits.min(9_999) } else { value.into() } {
            0 => self.modulus() as u32,
            count => count,
        };
        self.run = match self.mode {
            // They wait for their trigger, with the output high.
            1 | 5 => Run::Held(u64::from(self.reload) + 1),
            _ if self.gate => Run::Since(tick.saturating_add(1)),
            _ => Run::Held(0),
        };
    }

    fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.count(tick)).to_le_bytes();
        let first_of_two = self.access == ACCESS_BOTH && !self.reads_high;
        let byte = if self.access == ACCESS_LOW || first_of_two { low } else { high };
        self.reads_high = first_of_two;
        if !first_of_two {
            self.latched_count = None;
        }
        byte
    }

    fn latch_count(&mut self, tick: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.count(tick));
        }
    }

    fn latch_status(&mut self, tick: u64) {
        let null = match self.run {
            Run::Empty => true,
            Run::Held(_) => false,
            Run::Since(start) => tick < start,
        };
        let status = u8::from(self.output(tick)) << 7
            | u8::from(null) << 6
            | self.access << 4
            | self.mode << 1
            | u8::from(self.bcd);
        self.latched_status.get_or_insert(status);
    }

    fn set_gate(&mut self, tick: u64, gate: bool) {
        let (rises, falls) = (gate && !self.gate, !gate && self.gate);
        self.gate = gate;
        self.run = match (self.run, self.mode) {
            (Run::Empty, _) => Run::Empty,
            (Run::Held(elapsed), 0 | 4) if rises => Run::Since(tick.saturating_sub(elapsed)),
            (Run::Since(_), 0 | 4) if falls => Run::Held(self.elapsed(tick)),
            (Run::Since(_), 2 | 3) if falls => Run::Held(0),
            (_, 1 | 2 | 3 | 5) if rises => Run::Since(tick.saturating_add(1)),
            (run, _) => run,
        };
    }
}

/// The timer and port 0x61.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pit {
    counters: [Counter; 3],
    speaker: bool,
    /// When counter 0 interrupts next.
    interrupt_ns: Option<u64>,
}

impl Pit {
    pub(super) fn new() -> Pit {
        let counters = [Counter::new(true), Counter::new(true), Counter::new(false)];
        Pit { counters, speaker: false, interrupt_ns: None }
    }

    pub(super) fn validate(&self) -> Result<(), ChipError> {
        for counter in &self.counters {
            let reload_ok = (1..=counter.modulus()).contains(&counter.reload.into());
            ChipError::unless(reload_ok, "PIT", "count", counter.reload.into())?;
            ChipError::unless(counter.mode <= 5, "PIT", "mode", counter.mode.into())?;
            ChipError::unless((1..=3).contains(&counter.access), "PIT", "access", counter.access.into())?;
        }
        Ok(())
    }

    pub(super) fn next_timer_ns(&self) -> Option<u64> {
        self.interrupt_ns
    }

    /// Says whether counter 0's output rose since it was last asked; for how often, nobody asks.
    pub(super) fn run_timer(&mut self, now_ns: u64) -> bool {
        let due = self.interrupt_ns.is_some_and(|due| due <= now_ns);
        if due {
            self.schedule(tick_at(now_ns));
        }
        due
    }

    fn schedule(&mut self, tick: u64) {
        self.interrupt_ns = self.counters[0].next_rise(tick).map(ns_of);
    }

    pub(super) fn read(&mut self, now_ns: u64, port: u16) -> u8 {
        let tick = tick_at(now_ns);
        match port {
            0x40..=0x42 => self.counters[usize::from(port - 0x40)].read(tick),
            0x61 => {
                u8::from(self.counters[2].gate)
                    | u8::from(self.speaker) << 1
                    | ((tick / REFRESH_TICKS % 2) as u8) << 4
                    | u8::from(self.counters[2].output(tick)) << 5
            }
            // The control word cannot be read.
            _ => 0xff,
        }
    }

    pub(super) fn write(&mut self, now_ns: u64, port: u16, value: u8) {
        let tick = tick_at(now_ns);
        match port {
            0x40..=0x42 => self.counters[usize::from(port - 0x40)].write(tick, value),
            0x61 => {
                self.counters[2].set_gate(tick, value & GATE_2 != 0);
                self.speaker = value & SPEAKER != 0;
                return;
            }
            _ => self.command(tick, value),
        }
        self.schedule(tick);
    }

    fn command(&mut self, tick: u64, word: u8) {
        let selected = usize::from(word >> 6);
        if let Some(counter) = self.counters.get_mut(selected) {
            match word >> 4 & 3 {
                0 => counter.latch_count(tick),
                _ => counter.control(word),
            }
            return;
        }
        // Read-back: two latch commands (active low) for any of the counters.
        for (index, counter) in self.counters.iter_mut().enumerate() {
            if word >> (index + 1) & 1 != 0 {
                if word & 0x20 == 0 {
                    counter.latch_count(tick);
                }
                if word & 0x10 == 0 {
                    counter.latch_status(tick);
                }
            }
        }
    }
}
