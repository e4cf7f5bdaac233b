//! The clock of the time of day where the engine has none: KVM keeps all of a PC's chips in the kernel but this one. It
//! is the software engine's, with guest time for its oscillator. Its interrupts come when somebody looks
//! ([`Rtc::look`]), a few dozen times a second.

use super::error::DeviceStateError;
use super::host::IrqChip;
use super::wall_clock::unix_ns;
use ft_cpu::Rtc as Chip;
use ft_ram::layout::{RTC_GSI, RTC_PORT};
use std::sync::Arc;

/// See the module. Times are guest times in nanoseconds.
pub(crate) struct Rtc {
    chip: Chip,
    irq: Arc<dyn IrqChip>,
}

impl Rtc {
    /// As after power-on, with the host's time of day.
    pub(crate) fn new(irq: Arc<dyn IrqChip>, now_ns: u64) -> Self {
        Self { chip: power_on(now_ns), irq }
    }

    pub(crate) fn owns(port: u16) -> bool {
        (RTC_PORT..RTC_PORT + 2).contains(&port)
    }

    /// Reads one byte.
    pub(crate) fn read(&mut self, now_ns: u64, port: u16) -> u8 {
        let value = self.chip.read(now_ns, port);
        self.drive_line();
        value
    }

    /// Writes one byte.
    pub(crate) fn write(&mut self, now_ns: u64, port: u16, value: u8) {
        self.chip.write(now_ns, port, value);
        self.drive_line();
    }

    /// Lets interrupts that are due come.
    pub(crate) fn look(&mut self, now_ns: u64) {
        let before = self.chip.output();
        self.chip.run_timer(now_ns);
        if self.chip.output() != before {
            self.drive_line();
        }
    }

    /// Sets the time of day forward.
    pub(crate) fn forward(&mut self, now_ns: u64, seconds: i64) {
        self.chip.forward(now_ns, seconds);
        self.drive_line();
    }

    pub(crate) fn drive_line(&self) {
        self.irq.set_level(RTC_GSI, self.chip.output());
    }

    pub(crate) fn reset(&mut self, now_ns: u64) {
        self.chip = power_on(now_ns);
        self.drive_line();
    }

    pub(crate) fn capture(&self) -> Chip {
        self.chip.clone()
    }

    pub(crate) fn check(state: &Chip) -> Result<(), DeviceStateError> {
        state.validate().map_err(|e| DeviceStateError::Rtc(e.to_string()))
    }

    /// Takes over what [`Self::check`] passed; none is a fresh one. Leaves the interrupt line alone.
    pub(crate) fn restore(&mut self, state: Option<&Chip>, now_ns: u64) {
        self.chip = state.cloned().unwrap_or_else(|| power_on(now_ns));
    }
}

fn power_on(now_ns: u64) -> Chip {
    Chip::started((unix_ns() / 1_000_000_000).unsigned_abs(), now_ns)
}
