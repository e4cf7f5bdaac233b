//! The chips as kernels use them, and under any accesses at all.

mod any;
mod clock;
mod interrupts;
mod timers;

use super::*;
use ft_ram::layout::LAPIC_BASE;

/// Wednesday, 1 May 2024, 13:59:58.
const BOOT_S: u64 = 1_714_571_998;
const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;

const TPR: u64 = 0x80;
const PPR: u64 = 0xa0;
const EOI: u64 = 0xb0;
const SVR: u64 = 0xf0;
const ICR: u64 = 0x300;
const LVT_TIMER: u64 = 0x320;
const LVT_LINT0: u64 = 0x350;
const LVT_ERROR: u64 = 0x370;
const INITIAL: u64 = 0x380;
const CURRENT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;
const DIVIDE_BY_1: u32 = 0b1011;
const DIVIDE_BY_16: u32 = 0b0011;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 1 << 18;
const MASKED: u32 = 1 << 16;
const IO_LEVEL: u32 = 1 << 15;

/// A machine around the chips: each access takes some nanoseconds.
struct Pc {
    chips: Chips,
    now: u64,
    access_ns: u64,
}

impl Pc {
    fn new() -> Pc {
        Pc { chips: Chips::new(BOOT_S), now: 0, access_ns: 4 }
    }

    /// With the LAPIC enabled and the PIC silent, as a kernel sets them up.
    fn with_apic() -> Pc {
        let mut pc = Pc::new();
        pc.outb(0x21, 0xff);
        pc.outb(0xa1, 0xff);
        pc.apic(SVR, 0x1ff);
        pc
    }

    fn inb(&mut self, port: u16) -> u8 {
        let mut data = [0];
        assert!(self.chips.pio_read(self.now, port, &mut data));
        self.now += self.access_ns;
        data[0]
    }

    fn outb(&mut self, port: u16, value: u8) {
        assert!(self.chips.pio_write(self.now, port, &[value]));
        self.now += self.access_ns;
    }

    fn mmio(&mut self, addr: u64) -> u32 {
        let mut data = [0; 4];
        assert!(self.chips.mmio_read(self.now, addr, &mut data));
        u32::from_le_bytes(data)
    }

    fn set_mmio(&mut self, addr: u64, value: u32) {
        assert!(self.chips.mmio_write(self.now, addr, &value.to_le_bytes()));
    }

    fn apic_read(&mut self, register: u64) -> u32 {
        self.mmio(LAPIC_BASE + register)
    }

    fn apic(&mut self, register: u64, value: u32) {
        self.set_mmio(LAPIC_BASE + register, value);
    }

    fn pin(&mut self, pin: u32, low: u32) {
        for (register, value) in [(0x11 + 2 * pin, 0), (0x10 + 2 * pin, low)] {
            self.set_mmio(IOAPIC_BASE, register);
            self.set_mmio(IOAPIC_BASE + 0x10, value);
        }
    }

    fn pin_low(&mut self, pin: u32) -> u32 {
        self.set_mmio(IOAPIC_BASE, 0x10 + 2 * pin);
        self.mmio(IOAPIC_BASE + 0x10)
    }

    /// The interrupt taken now, if one waits.
    fn take(&mut self) -> Option<u8> {
        let pending = self.chips.interrupt_pending(self.now);
        let vector = self.chips.acknowledge_interrupt(self.now);
        assert_eq!(pending, vector.is_some());
        vector
    }

    /// Goes to the next timer's time, which is not before now.
    fn sleep(&mut self) -> u64 {
        let next = self.chips.next_timer_ns().expect("a timer is armed");
        assert!(next >= self.now, "{next} is over at {}", self.now);
        self.now = next;
        self.chips.run_timers(next);
        next
    }

    /// 8259s as Linux initialises them.
    fn init_pic(&mut self, master: u8, slave: u8) {
        for (port, value) in [
            (0x20, 0x11),
            (0x21, master),
            (0x21, 4),
            (0x21, 1),
            (0xa0, 0x11),
            (0xa1, slave),
            (0xa1, 2),
            (0xa1, 1),
            (0x21, 0),
            (0xa1, 0),
        ] {
            self.outb(port, value);
        }
    }

    fn cmos(&mut self, index: u8) -> u8 {
        self.outb(0x70, index);
        self.inb(0x71)
    }

    fn set_cmos(&mut self, index: u8, value: u8) {
        self.outb(0x70, index);
        self.outb(0x71, value);
    }

    /// Century, year, month, day, hour, minute, second as the clock shows them.
    fn clock(&mut self) -> [u8; 7] {
        [0x32, 9, 8, 7, 4, 2, 0].map(|index| self.cmos(index))
    }

    fn pit_count(&mut self) -> u16 {
        self.outb(0x43, 0);
        u16::from_le_bytes([self.inb(0x40), self.inb(0x40)])
    }
}

#[test]
fn wide_port_accesses_are_of_successive_ports_and_odd_mmio_reads_zero() {
    let mut pc = Pc::new();
    assert!(pc.chips.pio_write(0, 0x70, &[0x20, 0x5a]));
    assert_eq!(pc.cmos(0x20), 0x5a);
    let mut wide = [0; 4];
    assert!(pc.chips.pio_read(0, 0x71, &mut wide));
    assert_eq!(wide, [0x5a, 0xff, 0xff, 0xff]);
    for (addr, bytes) in [(LAPIC_BASE + 0x30, 8), (LAPIC_BASE + 0x32, 4), (IOAPIC_BASE + 4, 1)] {
        let mut data = [0xee; 8];
        assert!(pc.chips.mmio_read(0, addr, &mut data[..bytes]));
        assert_eq!(data[..bytes], [0; 8][..bytes]);
    }
    assert!(!pc.chips.pio_read(0, 0x3f8, &mut [0]));
    assert!(!pc.chips.mmio_write(0, 0xd000_0000, &[0; 4]));
}
