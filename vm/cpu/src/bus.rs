//! The world beyond the processor and RAM: the interrupt chips and the devices. One implementation serves the machine,
//! others serve tests.

use std::any::Any;

/// What an access asks the owner of the processor to do, once the instruction has retired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusEvent {
    /// The guest powered the machine off.
    PoweredOff,
    /// The guest reset the machine.
    Reset,
    /// The guest gives the processor up until a device has something for it, or this many nanoseconds are over (the
    /// platform device's idle register, for guests without interrupts).
    Idle(u64),
    /// The guest's kernel has panicked. It goes on as it likes.
    Panicked {
        /// Another kernel writes its memory to a disk.
        dumps: bool,
    },
    /// The watchdog's countdown is over. The guest goes on as it likes.
    WatchdogFired,
}

/// The processor's way to chips and devices. `now_ns` is virtual time at the accessing instruction. Addresses are
/// guest-physical and not in RAM; accesses are 1, 2, 4 or 8 bytes and never cross a page.
///
/// `Any`, so that the owner of the processor finds its own implementation again.
pub trait Bus: Any + Send {
    /// Reads memory that is not RAM: all of `data` is set.
    fn mmio_read(&mut self, now_ns: u64, addr: u64, data: &mut [u8]);
    /// Writes memory that is not RAM.
    fn mmio_write(&mut self, now_ns: u64, addr: u64, data: &[u8]) -> Option<BusEvent>;
    /// Reads a port: all of `data` is set.
    fn pio_read(&mut self, now_ns: u64, port: u16, data: &mut [u8]);
    /// Writes a port.
    fn pio_write(&mut self, now_ns: u64, port: u16, data: &[u8]) -> Option<BusEvent>;

    /// Whether an interrupt waits that the LAPIC (or the PIC through LINT0) would have the processor take now, priority
    /// considered; the processor's own flags (IF, shadow) are its own business.
    fn interrupt_pending(&mut self, now_ns: u64) -> bool;
    /// The processor takes the interrupt: its vector. As by the LAPIC's (or PIC's) acknowledge cycle.
    fn acknowledge_interrupt(&mut self, now_ns: u64) -> Option<u8>;
    /// The processor takes the NMI that waits, if one does.
    fn take_nmi(&mut self) -> bool;
    /// When a timer (LAPIC, PIT, RTC, watchdog) next changes something by itself, in virtual time; none: never.
    fn next_timer_ns(&mut self) -> Option<u64>;
    /// Lets timers that are due at `now_ns` fire.
    fn run_timers(&mut self, now_ns: u64) -> Option<BusEvent>;

    /// CR8, which is the LAPIC's task priority (bits 7:4 of TPR).
    fn cr8(&self) -> u8;
    /// Writes CR8.
    fn set_cr8(&mut self, value: u8);
    /// The LAPIC's base address register (MSR 0x1b).
    fn apic_base(&self) -> u64;
    /// Writes it, without x2APIC.
    fn set_apic_base(&mut self, value: u64);
    /// IA32_TSC_DEADLINE (MSR 0x6e0), in TSC ticks; zero is off.
    fn tsc_deadline(&self) -> u64;
    /// Writes IA32_TSC_DEADLINE.
    fn set_tsc_deadline(&mut self, now_ns: u64, value: u64);
}
