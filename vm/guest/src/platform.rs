//! The platform device: clock, idling, power and console by memory-mapped registers.

use crate::layout::{PLATFORM_BASE, platform as register};
use core::fmt;

/// A take-over is over before.
const WATCHDOG_MS: u64 = 5000;

fn read(register: u64) -> u64 {
    // SAFETY: the platform device's window is mapped; reading its registers has no effect on memory.
    unsafe { ((PLATFORM_BASE + register) as *const u64).read_volatile() }
}

fn write(register: u64, value: u64) {
    // SAFETY: as in `read`; writes stop or delay the machine but change no memory.
    unsafe { ((PLATFORM_BASE + register) as *mut u64).write_volatile(value) }
}

/// Guest time in nanoseconds: monotonic, and going on from the checkpoint after a take-over.
pub fn clock_ns() -> u64 {
    read(register::CLOCK_NS)
}

/// Gives the processor up until a device has something for its driver, or for `microseconds`.
pub fn idle(microseconds: u64) {
    write(register::IDLE_US, microseconds);
}

/// Whether somebody has pressed the power button.
pub fn power_button() -> bool {
    read(register::POWER_BUTTON) != 0
}

/// Powers off.
pub fn power_off() -> ! {
    loop {
        write(register::POWER_OFF, 1);
    }
}

/// Resets.
pub fn reset() -> ! {
    loop {
        write(register::RESET, 1);
    }
}

/// Says that the guest has panicked, and does nothing more.
pub fn panic() -> ! {
    write(register::PANIC, 1);
    loop {
        idle(1_000_000);
    }
}

/// Starts the watchdog, and does nothing more.
pub fn hang() -> ! {
    write(register::WATCHDOG_MS, WATCHDOG_MS);
    loop {
        idle(1_000_000);
    }
}

/// Number of vCPUs.
pub fn vcpus() -> u64 {
    read(register::VCPUS)
}

/// Bytes of RAM.
pub fn ram_bytes() -> u64 {
    read(register::RAM_BYTES)
}

/// The console.
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: a byte-wide register of the platform device.
            unsafe { ((PLATFORM_BASE + register::CONSOLE) as *mut u8).write_volatile(byte) }
        }
        Ok(())
    }
}
