//! The machine's [`Bus`]: chips, then devices. Devices raise and lower their lines, and send messages, while they are
//! accessed; all that is put to the chips right after the access, in order.

use crate::devices::inbox::{Bell, Inbox};
use crate::devices::{DeviceEvent, Devices, IrqChip, Msi};
use ft_cpu::Chips;
use ft_cpu::{Bus, BusEvent};
use ft_ram::GuestRam;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a device has said to the chips.
enum Change {
    Line(u32, bool),
    Message(Msi),
}

/// Changes that the chips have not seen yet.
#[derive(Default)]
pub(super) struct Lines {
    changes: Mutex<Vec<Change>>,
    changed: AtomicBool,
}

impl IrqChip for Lines {
    fn set_level(&self, gsi: u32, high: bool) {
        self.say(Change::Line(gsi, high));
    }

    fn signal(&self, message: Msi) {
        self.say(Change::Message(message));
    }
}

impl Lines {
    fn say(&self, change: Change) {
        self.changes.lock().push(change);
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Puts them to the chips.
    fn settle(&self, chips: &mut Chips) {
        if self.changed.swap(false, Ordering::Relaxed) {
            self.changes.lock().drain(..).for_each(|change| match change {
                Change::Line(gsi, high) => chips.set_level(gsi, high),
                Change::Message(Msi { address, data }) => chips.signal(address, data),
            });
        }
    }

    /// Forgets them: the chips are given a state in which they are.
    pub(super) fn clear(&self) {
        self.changed.store(false, Ordering::Relaxed);
        self.changes.lock().clear();
    }
}

/// What the bus reaches, apart from the chips. Clones reach the same.
#[derive(Clone)]
pub(super) struct Reach {
    pub devices: Arc<Devices>,
    pub lines: Arc<Lines>,
    pub inbox: Arc<Inbox>,
    pub bell: Arc<Bell>,
    pub ram: GuestRam,
    /// Virtual time, for devices.
    pub now_ns: Arc<AtomicU64>,
}

pub(super) struct Platform {
    pub chips: Chips,
    pub reach: Reach,
}

impl Platform {
    /// After a device was accessed, or worked on an input.
    pub(super) fn settle(&mut self) {
        let Self { chips, reach } = self;
        reach.lines.settle(chips);
        // A device wrote memory, of which there may be decoded code; or it may take now what waits for it. Either is
        // for the vCPU's thread to see to before the guest goes on.
        if !reach.ram.journal_is_empty() || reach.inbox.is_waiting() {
            reach.bell.ring_self();
        }
    }
}

fn asked(event: DeviceEvent) -> BusEvent {
    match event {
        DeviceEvent::PoweredOff => BusEvent::PoweredOff,
        DeviceEvent::Reset => BusEvent::Reset,
        DeviceEvent::Idle { us } => BusEvent::Idle(us.saturating_mul(1000)),
        DeviceEvent::Panicked { dumps } => BusEvent::Panicked { dumps },
    }
}

impl Bus for Platform {
    fn mmio_read(&mut self, now_ns: u64, addr: u64, data: &mut [u8]) {
        if !self.chips.mmio_read(now_ns, addr, data) {
            self.reach.now_ns.store(now_ns, Ordering::Relaxed);
            self.reach.devices.mmio_read(addr, data);
            self.settle();
        }
    }

    fn mmio_write(&mut self, now_ns: u64, addr: u64, data: &[u8]) -> Option<BusEvent> {
        if self.chips.mmio_write(now_ns, addr, data) {
            return None;
        }
        self.reach.now_ns.store(now_ns, Ordering::Relaxed);
        let event = self.reach.devices.mmio_write(addr, data);
        self.settle();
        // It may have reset a disk once too often.
        if self.reach.devices.are_disks_crowded() {
            self.reach.bell.ring_self();
        }
        event.map(asked)
    }

    fn pio_read(&mut self, now_ns: u64, port: u16, data: &mut [u8]) {
        if !self.chips.pio_read(now_ns, port, data) {
            self.reach.now_ns.store(now_ns, Ordering::Relaxed);
            self.reach.devices.pio_read(port, data);
            self.settle();
        }
    }

    fn pio_write(&mut self, now_ns: u64, port: u16, data: &[u8]) -> Option<BusEvent> {
        if self.chips.pio_write(now_ns, port, data) {
            return None;
        }
        self.reach.now_ns.store(now_ns, Ordering::Relaxed);
        let event = self.reach.devices.pio_write(port, data);
        self.settle();
        event.map(asked)
    }

    fn interrupt_pending(&mut self, now_ns: u64) -> bool {
        self.chips.interrupt_pending(now_ns)
    }

    fn acknowledge_interrupt(&mut self, now_ns: u64) -> Option<u8> {
        self.chips.acknowledge_interrupt(now_ns)
    }

    fn take_nmi(&mut self) -> bool {
        self.chips.take_nmi()
    }

    fn next_timer_ns(&mut self) -> Option<u64> {
        self.chips.next_timer_ns().into_iter().chain(self.reach.devices.watchdog_due_ns()).min()
    }

    fn run_timers(&mut self, now_ns: u64) -> Option<BusEvent> {
        self.chips.run_timers(now_ns);
        self.reach.devices.watchdog_due_ns().filter(|due_ns| *due_ns <= now_ns)?;
        self.reach.now_ns.store(now_ns, Ordering::Relaxed);
        self.reach.devices.fire_watchdog().then_some(BusEvent::WatchdogFired)
    }

    fn cr8(&self) -> u8 {
        self.chips.cr8()
    }

    fn set_cr8(&mut self, value: u8) {
        self.chips.set_cr8(value);
    }

    fn apic_base(&self) -> u64 {
        self.chips.apic_base()
    }

    fn set_apic_base(&mut self, value: u64) {
        self.chips.set_apic_base(value);
    }

    fn tsc_deadline(&self) -> u64 {
        self.chips.tsc_deadline()
    }

    fn set_tsc_deadline(&mut self, now_ns: u64, value: u64) {
        self.chips.set_tsc_deadline(now_ns, value);
    }
}
