//! The interrupt controllers and timers of a PC, which KVM has in the kernel, for the software engine and its one
//! processor: plain state machines of virtual time.
//!
//! ```text
//!   device messages ────────────────────────────────────> LAPIC
//!   device lines (GSI n) ──┬─> IOAPIC pin n ──────────────> LAPIC ──> processor
//!   PIT counter 0: GSI 0   └─> PIC input n (n < 16) ─ LINT0 ─┘
//!   RTC:           GSI 8        an interrupt of the PIC goes before one of the LAPIC, whose priorities do not see it
//! ```
//!
//! The wiring is KVM's default, and the boot tables describe it: GSI n is pin n of the IOAPIC, also for the PIT.
//!
//! Virtual time may jump (by adjustments, while the guest is idle): a periodic timer that missed ticks fires once and
//! goes on in phase. The state is a function of the accesses and their times and of when timers were due, not of how
//! often [`Chips::run_timers`] was called between: a timer without visible effect stands still until the guest looks at
//! it.

mod ioapic;
mod lapic;
mod pic;
mod pit;
mod rtc;
#[cfg(test)]
mod tests;

use ft_ram::layout::IOAPIC_BASE;
use ioapic::{IoApic, PINS};
use lapic::{Lapic, Message};
use pic::Pic;
use pit::Pit;
pub use rtc::Rtc;
use serde::{Deserialize, Serialize};

const IOAPIC_SIZE: u64 = 0x1000;
const PIT_GSI: u32 = 0;
const RTC_GSI: u32 = 8;
const PIC_INPUTS: u32 = 16;

/// A restored state that no chip can be in.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("state of the {chip}: {field} cannot be {value:#x}")]
pub struct ChipError {
    chip: &'static str,
    field: &'static str,
    value: u64,
}

impl ChipError {
    fn unless(ok: bool, chip: &'static str, field: &'static str, value: u64) -> Result<(), ChipError> {
        if ok { Ok(()) } else { Err(ChipError { chip, field, value }) }
    }

    fn none_of(chip: &'static str, field: &'static str, value: u64, reserved: u64) -> Result<(), ChipError> {
        ChipError::unless(value & reserved == 0, chip, field, value)
    }
}

/// All chips, which at the same time is their whole state. One that was restored must pass [`Chips::validate`] before
/// it is used; times in it are virtual times of the machine it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chips {
    lapic: Lapic,
    ioapic: IoApic,
    pic: Pic,
    pit: Pit,
    rtc: Rtc,
    /// Levels that devices gave the lines, a bit a GSI; the PIT's and the RTC's are not among them.
    device_lines: u32,
    /// The PIC's output as LINT0 last saw it.
    pic_output: bool,
}

impl Chips {
    /// Power-on, at virtual time zero. The host's time of day, in seconds of Unix time, is read once, for this.
    pub fn new(boot_unix_s: u64) -> Chips {
        Chips {
            lapic: Lapic::new(),
            ioapic: IoApic::new(),
            pic: Pic::new(),
            pit: Pit::new(),
            rtc: Rtc::new(boot_unix_s),
            device_lines: 0,
            pic_output: false,
        }
    }

    /// Refuses a state that the chips cannot be in.
    pub fn validate(&self) -> Result<(), ChipError> {
        ChipError::none_of("machine", "device lines", self.device_lines.into(), !0 << PINS)?;
        self.lapic.validate()?;
        self.ioapic.validate()?;
        self.pic.validate()?;
        self.pit.validate()?;
        self.rtc.validate()
    }

    /// Sets the time of day of the RTC forward, or back.
    pub fn forward_time_of_day(&mut self, now_ns: u64, seconds: i64) {
        self.run_timers(now_ns);
        self.rtc.forward(now_ns, seconds);
        self.drive(RTC_GSI, false);
    }

    /// A device's line changes, or stays. GSIs beyond the IOAPIC's pins have no line.
    pub fn set_level(&mut self, gsi: u32, high: bool) {
        if gsi < PINS as u32 {
            self.device_lines = self.device_lines & !(1 << gsi) | u32::from(high) << gsi;
            self.drive(gsi, false);
        }
    }

    /// A message of a device's arrives: a write of `data` to `address` (Intel SDM volume 3, §11.11).
    pub fn signal(&mut self, address: u64, data: u32) {
        self.lapic.receive(Message {
            destination: (address >> 12) as u8,
            logical: address & 1 << 2 != 0,
            bits: data & 0x7ff,
            level: data & 1 << 15 != 0,
        });
    }

    /// Gives a line the level that all its sources make; `pulse` is the PIT's.
    fn drive(&mut self, gsi: u32, pulse: bool) {
        let device = self.device_lines >> gsi & 1 != 0;
        let high = device || pulse || (gsi == RTC_GSI && self.rtc.output());
        self.ioapic.set_line(gsi as usize, high, &mut self.lapic);
        if gsi < PIC_INPUTS {
            self.pic.set_line(gsi as u8, high);
            self.settle_pic();
        }
    }

    /// Shows the PIC's output to LINT0.
    fn settle_pic(&mut self) {
        let output = self.pic.output();
        if output && !self.pic_output {
            self.lapic.raise_lint0();
        }
        self.pic_output = output;
    }

    /// Reads a register of the LAPIC or IOAPIC; whether there is one at this address. They know 32-bit accesses to
    /// their registers' first bytes; others read zero.
    pub fn mmio_read(&mut self, now_ns: u64, addr: u64, data: &mut [u8]) -> bool {
        let value = if let Some(offset) = self.lapic.offset(addr) {
            self.run_timers(now_ns);
            self.lapic.run_timer(now_ns);
            if is_register(offset, data.len()) { self.lapic.read(now_ns, offset) } else { 0 }
        } else if let Some(offset) = ioapic_offset(addr) {
            self.run_timers(now_ns);
            if is_register(offset, data.len()) { self.ioapic.read(offset) } else { 0 }
        } else {
            return false;
        };
        data.fill(0);
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(byte, value)| *byte = value);
        true
    }

    /// Writes a register of the LAPIC or IOAPIC; whether there is one at this address.
    pub fn mmio_write(&mut self, now_ns: u64, addr: u64, data: &[u8]) -> bool {
        let value = <[u8; 4]>::try_from(data).map(u32::from_le_bytes).unwrap_or_default();
        if let Some(offset) = self.lapic.offset(addr) {
            self.run_timers(now_ns);
            self.lapic.run_timer(now_ns);
            if is_register(offset, data.len())
                && let Some(ended) = self.lapic.write(now_ns, offset, value)
            {
                self.ioapic.end(ended, &mut self.lapic);
            }
        } else if let Some(offset) = ioapic_offset(addr) {
            self.run_timers(now_ns);
            if is_register(offset, data.len()) {
                self.ioapic.write(offset, value, &mut self.lapic);
            }
        } else {
            return false;
        }
        true
    }

    /// Reads ports of the PIC, PIT and RTC; whether there is one. A wide access is one of bytes at successive ports.
    pub fn pio_read(&mut self, now_ns: u64, port: u16, data: &mut [u8]) -> bool {
        if chip_at(port).is_none() {
            return false;
        }
        self.run_timers(now_ns);
        for (port, byte) in successive(port).zip(data) {
            *byte = match chip_at(port) {
                Some(Chip::Pic) => self.pic.read(port),
                Some(Chip::Pit) => self.pit.read(now_ns, port),
                Some(Chip::Rtc) => {
                    let value = self.rtc.read(now_ns, port);
                    self.drive(RTC_GSI, false);
                    value
                }
                None => 0xff,
            };
        }
        true
    }

    /// Writes ports of the PIC, PIT and RTC; whether there is one.
    pub fn pio_write(&mut self, now_ns: u64, port: u16, data: &[u8]) -> bool {
        if chip_at(port).is_none() {
            return false;
        }
        self.run_timers(now_ns);
        for (port, &value) in successive(port).zip(data) {
            match chip_at(port) {
                Some(Chip::Pic) => {
                    self.pic.write(port, value);
                    self.settle_pic();
                }
                Some(Chip::Pit) => self.pit.write(now_ns, port, value),
                Some(Chip::Rtc) => {
                    self.rtc.write(now_ns, port, value);
                    self.drive(RTC_GSI, false);
                }
                None => {}
            }
        }
        true
    }

    /// Whether an interrupt waits that the processor, if it takes interrupts, would take now.
    pub fn interrupt_pending(&mut self, now_ns: u64) -> bool {
        self.run_timers(now_ns);
        self.external_interrupt() || self.lapic.pending().is_some()
    }

    fn external_interrupt(&self) -> bool {
        self.pic_output && self.lapic.passes_pic()
    }

    /// The processor takes the interrupt: its vector.
    pub fn acknowledge_interrupt(&mut self, now_ns: u64) -> Option<u8> {
        self.run_timers(now_ns);
        if !self.external_interrupt() {
            return self.lapic.acknowledge();
        }
        let vector = self.pic.acknowledge();
        self.settle_pic();
        Some(vector)
    }

    /// The processor takes the NMI that waits, if one does. Only the guest itself can have one sent, by ICR, IOAPIC or
    /// a device's message.
    pub fn take_nmi(&mut self) -> bool {
        self.lapic.take_nmi()
    }

    /// When a timer next changes something by itself; none: never. It may be over already.
    pub fn next_timer_ns(&self) -> Option<u64> {
        let timers = [self.lapic.next_timer_ns(), self.pit.next_timer_ns(), self.rtc.next_timer_ns()];
        timers.into_iter().flatten().min()
    }

    /// Lets the timers that are due fire, each once.
    pub fn run_timers(&mut self, now_ns: u64) {
        if self.pit.run_timer(now_ns) {
            self.drive(PIT_GSI, true);
            self.drive(PIT_GSI, false);
        }
        let rtc_output = self.rtc.output();
        self.rtc.run_timer(now_ns);
        if self.rtc.output() != rtc_output {
            self.drive(RTC_GSI, false);
        }
        if self.lapic.next_timer_ns().is_some_and(|due| due <= now_ns) {
            self.lapic.run_timer(now_ns);
        }
    }

    /// CR8: bits 7:4 of the task priority.
    pub fn cr8(&self) -> u8 {
        self.lapic.tpr() >> 4
    }

    /// Writes CR8; bits beyond its four are not there.
    pub fn set_cr8(&mut self, value: u8) {
        self.lapic.set_tpr(value << 4);
    }

    /// IA32_APIC_BASE.
    pub fn apic_base(&self) -> u64 {
        self.lapic.base()
    }

    /// Writes IA32_APIC_BASE: address and global enable. Other bits, x2APIC's among them, are not there.
    pub fn set_apic_base(&mut self, value: u64) {
        self.lapic.set_base(value);
    }

    /// IA32_TSC_DEADLINE, in virtual nanoseconds, which are TSC ticks; zero is off.
    pub fn tsc_deadline(&self) -> u64 {
        self.lapic.tsc_deadline()
    }

    /// Writes IA32_TSC_DEADLINE. A deadline that is over fires at once.
    pub fn set_tsc_deadline(&mut self, now_ns: u64, value: u64) {
        self.run_timers(now_ns);
        self.lapic.set_tsc_deadline(value);
        self.lapic.run_timer(now_ns);
    }
}

enum Chip {
    Pic,
    Pit,
    Rtc,
}

fn chip_at(port: u16) -> Option<Chip> {
    match port {
        0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => Some(Chip::Pic),
        0x40..=0x43 | 0x61 => Some(Chip::Pit),
        0x70 | 0x71 => Some(Chip::Rtc),
        _ => None,
    }
}

fn successive(port: u16) -> impl Iterator<Item = u16> {
    (0..).map(move |index| port.wrapping_add(index))
}

fn ioapic_offset(addr: u64) -> Option<u64> {
    addr.checked_sub(IOAPIC_BASE).filter(|offset| *offset < IOAPIC_SIZE)
}

fn is_register(offset: u64, bytes: usize) -> bool {
    offset.is_multiple_of(16) && bytes == 4
}
