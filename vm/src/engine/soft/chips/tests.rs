//! The chips as kernels use them, and under any accesses at all.

use super::*;
use crate::layout::LAPIC_BASE;
use proptest::prelude::*;

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

/// Linux's quick_pit_calibrate: the most significant byte of counter 2 in mode 0, 64 of its steps.
#[test]
fn the_quick_calibration_of_the_tsc_finds_one_gigahertz() {
    let mut pc = Pc::new();
    let gate = pc.inb(0x61) & !2 | 1;
    pc.outb(0x61, gate);
    for (port, value) in [(0x43, 0xb0), (0x42, 0xff), (0x42, 0xff)] {
        pc.outb(port, value);
    }
    let expect_msb = |pc: &mut Pc, msb: u8| {
        let (mut tsc, mut previous, mut reads) = (0, 0, 0);
        loop {
            pc.inb(0x42);
            if pc.inb(0x42) != msb {
                break;
            }
            (previous, tsc) = (tsc, pc.now);
            reads += 1;
        }
        assert!(reads > 5, "the byte was missed");
        (tsc, pc.now - previous)
    };
    pc.inb(0x42);
    pc.inb(0x42);
    let (start, _) = expect_msb(&mut pc, 0xff);
    let steps = 64;
    let mut end = (0, 0);
    for step in 1..=steps {
        end = expect_msb(&mut pc, 0xff - step);
    }
    let khz = (end.0 - start) * pit::HZ / (u64::from(steps) * 256 * 1000);
    assert!((999_995..=1_000_005).contains(&khz), "{khz} kHz, error {} ns", end.1);
}

/// Linux's pit_calibrate_tsc: until counter 2's output rises, ten milliseconds later.
#[test]
fn the_slow_calibration_of_the_tsc_finds_one_gigahertz() {
    let mut pc = Pc::new();
    let latch = (pit::HZ / 100) as u16;
    let gate = pc.inb(0x61) & !2 | 1;
    pc.outb(0x61, gate);
    for (port, value) in [(0x43, 0xb0), (0x42, latch as u8), (0x42, (latch >> 8) as u8)] {
        pc.outb(port, value);
    }
    let start = pc.now;
    while pc.inb(0x61) & 0x20 == 0 {}
    let khz = (pc.now - start) / 10;
    assert!((999_900..=1_000_200).contains(&khz), "{khz} kHz");
}

#[test]
fn the_periodic_pit_counts_every_tick_of_an_hour_and_drifts_by_none() {
    let mut pc = Pc::with_apic();
    pc.pin(0, 0x30);
    let latch = 11_932u16; // HZ = 100
    for (port, value) in [(0x43, 0x34), (0x40, latch as u8), (0x40, (latch >> 8) as u8)] {
        pc.outb(port, value);
    }
    let start_tick = pit::tick_at(pc.now) + 1;
    let mut ticks = 0;
    while pc.now < 3600 * S {
        pc.sleep();
        assert_eq!(pc.take(), Some(0x30));
        pc.apic(EOI, 0);
        ticks += 1;
        assert_eq!(pit::tick_at(pc.now), start_tick + ticks * u64::from(latch));
    }
    assert_eq!(ticks, (3600 * pit::HZ - start_tick) / u64::from(latch) + 1);
}

#[test]
fn a_one_shot_pit_interrupts_once_and_its_count_goes_on() {
    let mut pc = Pc::with_apic();
    pc.pin(0, 0x30);
    for (port, value) in [(0x43, 0x30), (0x40, 0xe8), (0x40, 3)] {
        pc.outb(port, value);
    }
    assert!(pc.pit_count() > 990);
    pc.sleep();
    assert_eq!(pc.take(), Some(0x30));
    assert_eq!(pc.pit_count(), 0);
    assert_eq!(pc.chips.next_timer_ns(), None);
    pc.now += MS;
    assert!(pc.pit_count() > 0xf000);
    // Read-back: output high, count loaded, both bytes, mode 0.
    pc.outb(0x43, 0xe2);
    assert_eq!(pc.inb(0x40), 0xb0);
}

/// Linux's calibrate_APIC_clock: the LAPIC's counter over PIT ticks.
#[test]
fn the_lapic_timer_calibrates_to_its_bus_clock() {
    let mut pc = Pc::with_apic();
    pc.pin(0, 0x30);
    pc.apic(LVT_TIMER, MASKED | 0xec);
    pc.apic(DIVIDE, DIVIDE_BY_16);
    pc.apic(INITIAL, u32::MAX);
    for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        pc.outb(port, value);
    }
    let (first, t1) = (pc.sleep(), pc.apic_read(CURRENT));
    for _ in 0..10 {
        pc.sleep();
    }
    let t2 = pc.apic_read(CURRENT);
    assert!((u64::from(t1 - t2)).abs_diff((pc.now - first) / 16) <= 1);
}

#[test]
fn a_periodic_lapic_timer_that_missed_ticks_fires_once_and_stays_in_phase() {
    let mut pc = Pc::with_apic();
    pc.now = 5 * MS;
    pc.apic(DIVIDE, DIVIDE_BY_1);
    pc.apic(LVT_TIMER, PERIODIC | 0xec);
    pc.apic(INITIAL, 1_000_000);
    assert_eq!(pc.chips.next_timer_ns(), Some(6 * MS));
    pc.now = 13 * MS + 250_000;
    assert_eq!(pc.take(), Some(0xec));
    pc.apic(EOI, 0);
    assert_eq!(pc.take(), None);
    assert_eq!(pc.chips.next_timer_ns(), Some(14 * MS));
    assert_eq!(pc.apic_read(CURRENT), 750_000);
    // Another divisor stretches what is left.
    pc.apic(DIVIDE, DIVIDE_BY_16);
    assert_eq!(pc.chips.next_timer_ns(), Some(pc.now + 12 * MS));
    pc.apic(INITIAL, 0);
    assert_eq!((pc.chips.next_timer_ns(), pc.apic_read(CURRENT)), (None, 0));
}

#[test]
fn a_periodic_timer_of_a_nanosecond_costs_one_step_however_long_it_was_not_served() {
    let mut pc = Pc::with_apic();
    pc.apic(DIVIDE, DIVIDE_BY_1);
    pc.apic(LVT_TIMER, PERIODIC | 0x40);
    pc.apic(INITIAL, 1);
    pc.set_cmos(0x0a, 0x23);
    pc.set_cmos(0x0b, 0x72);
    for (port, value) in [(0x43, 0x14), (0x40, 1)] {
        pc.outb(port, value);
    }
    for now in [1_000_000 * S, u64::MAX - 1, u64::MAX, u64::MAX] {
        pc.now = now;
        assert_eq!(pc.take(), Some(0x40));
        pc.apic(EOI, 0);
    }
}

#[test]
fn a_tsc_deadline_fires_once_at_its_time_or_at_once_when_it_is_over() {
    let mut pc = Pc::with_apic();
    pc.chips.set_tsc_deadline(pc.now, 7);
    assert_eq!(pc.chips.tsc_deadline(), 0, "not in that mode");
    pc.apic(LVT_TIMER, DEADLINE | 0xec);
    pc.chips.set_tsc_deadline(pc.now, 2 * MS);
    pc.apic(INITIAL, 55);
    assert_eq!((pc.chips.tsc_deadline(), pc.apic_read(CURRENT)), (2 * MS, 0));
    pc.now = 2 * MS - 1;
    assert_eq!(pc.take(), None);
    pc.now = 2 * MS;
    assert_eq!(pc.take(), Some(0xec));
    assert_eq!((pc.chips.tsc_deadline(), pc.chips.next_timer_ns()), (0, None));
    pc.apic(EOI, 0);
    pc.chips.set_tsc_deadline(pc.now, MS);
    assert_eq!(pc.take(), Some(0xec));
    pc.apic(EOI, 0);
    pc.chips.set_tsc_deadline(pc.now, 9 * MS);
    pc.apic(LVT_TIMER, 0xec);
    assert_eq!(pc.chips.next_timer_ns(), None, "another mode disarms");
}

#[test]
fn a_masked_timer_runs_out_without_an_interrupt() {
    let mut pc = Pc::with_apic();
    pc.apic(LVT_TIMER, MASKED | 0xec);
    pc.apic(INITIAL, 1000);
    assert_eq!(pc.chips.next_timer_ns(), None);
    pc.now += MS;
    pc.apic(LVT_TIMER, 0xec);
    assert_eq!((pc.take(), pc.apic_read(CURRENT)), (None, 0));
}

#[test]
fn higher_classes_nest_and_lower_ones_wait_for_the_end() {
    let mut pc = Pc::with_apic();
    let send = |pc: &mut Pc, vector| pc.apic(ICR, 1 << 18 | vector);
    send(&mut pc, 0x51);
    assert_eq!(pc.take(), Some(0x51));
    send(&mut pc, 0x5f);
    assert_eq!(pc.take(), None, "the class in service holds its own back");
    send(&mut pc, 0x61);
    assert_eq!(pc.take(), Some(0x61));
    assert_eq!(pc.apic_read(PPR), 0x60);
    // The registers show 0x51 and 0x61 in service, 0x5f requested.
    assert_eq!((pc.apic_read(0x120), pc.apic_read(0x130)), (1 << 17, 1 << 1));
    assert_eq!(pc.apic_read(0x220), 1 << 31);
    pc.apic(EOI, 0);
    assert_eq!(pc.take(), None);
    pc.apic(EOI, 0);
    pc.chips.set_cr8(5);
    assert_eq!((pc.apic_read(TPR), pc.take()), (0x50, None));
    pc.apic(TPR, 0x4f);
    assert_eq!((pc.chips.cr8(), pc.take()), (4, Some(0x5f)));
    // To others only: to nobody. An NMI to itself waits apart.
    pc.apic(ICR, 3 << 18 | 0x71);
    pc.apic(ICR, 2 << 18 | 4 << 8);
    assert_eq!((pc.take(), pc.chips.take_nmi(), pc.chips.take_nmi()), (None, true, false));
}

#[test]
fn an_illegal_vector_is_an_error_told_once() {
    let mut pc = Pc::with_apic();
    pc.apic(LVT_ERROR, 0xfe);
    pc.apic(ICR, 1 << 18 | 3);
    assert_eq!(pc.take(), Some(0xfe));
    assert_eq!(pc.apic_read(0x280), 0, "shown after a write");
    pc.apic(0x280, 0);
    assert_eq!(pc.apic_read(0x280), 1 << 5);
    pc.apic(LVT_ERROR, 2);
    pc.pin(3, 1);
    pc.chips.set_level(3, true);
    pc.apic(0x280, 0);
    assert_eq!(pc.apic_read(0x280), 1 << 6);
}

#[test]
fn a_level_that_stays_high_is_sent_again_after_the_end_and_not_before() {
    let mut pc = Pc::with_apic();
    pc.pin(5, IO_LEVEL | 0x41);
    pc.chips.set_level(5, true);
    assert_eq!(pc.take(), Some(0x41));
    assert_eq!(pc.pin_low(5), 1 << 14 | IO_LEVEL | 0x41);
    pc.chips.set_level(5, false);
    pc.chips.set_level(5, true);
    assert_eq!(pc.take(), None);
    pc.apic(EOI, 0);
    assert_eq!(pc.take(), Some(0x41));
    pc.chips.set_level(5, false);
    pc.apic(EOI, 0);
    assert_eq!((pc.take(), pc.pin_low(5)), (None, IO_LEVEL | 0x41));
    // Masked while high: sent when unmasked.
    pc.pin(5, MASKED | IO_LEVEL | 0x41);
    pc.chips.set_level(5, true);
    assert_eq!(pc.take(), None);
    pc.pin(5, IO_LEVEL | 0x41);
    assert_eq!(pc.take(), Some(0x41));
    // Kernels end it without an EOI by a turn through edge mode.
    pc.pin(5, MASKED | 0x41);
    assert_eq!(pc.pin_low(5), MASKED | 0x41);
}

#[test]
fn an_edge_is_one_interrupt_and_is_lost_on_a_masked_pin() {
    let mut pc = Pc::with_apic();
    pc.pin(4, MASKED | 0x34);
    pc.chips.set_level(4, true);
    pc.pin(4, 0x34);
    assert_eq!(pc.take(), None);
    pc.chips.set_level(4, false);
    for _ in 0..2 {
        pc.chips.set_level(4, true);
    }
    assert_eq!(pc.take(), Some(0x34));
    pc.apic(EOI, 0);
    assert_eq!(pc.take(), None);
    // To a processor that is not there.
    pc.set_mmio(IOAPIC_BASE, 0x11 + 2 * 4);
    pc.set_mmio(IOAPIC_BASE + 0x10, 3 << 24);
    pc.chips.set_level(4, false);
    pc.chips.set_level(4, true);
    assert_eq!(pc.take(), None);
}

#[test]
fn the_slave_pic_reaches_the_processor_through_master_and_lint0() {
    let mut pc = Pc::new();
    pc.init_pic(0x30, 0x38);
    pc.chips.set_level(12, true);
    assert_eq!(pc.take(), Some(0x3c));
    // IRQ 9 is better than 12 within the slave, but the master has its input in service; IRQ 1 is better than that.
    pc.chips.set_level(9, true);
    assert_eq!(pc.take(), None);
    pc.chips.set_level(1, true);
    assert_eq!(pc.take(), Some(0x31));
    // What is in service, by OCW3.
    pc.outb(0x20, 0x0b);
    pc.outb(0xa0, 0x0b);
    assert_eq!((pc.inb(0x20), pc.inb(0xa0)), (1 << 1 | 1 << 2, 1 << 4));
    // Specific ends, as Linux sends them.
    for (port, value) in [(0x20, 0x61), (0xa0, 0x64), (0x20, 0x62)] {
        pc.outb(port, value);
    }
    assert_eq!(pc.take(), Some(0x39));
    pc.outb(0xa0, 0x20);
    pc.outb(0x20, 0x20);
    assert_eq!(pc.take(), None, "edges were one interrupt each");
    // Not while LINT0 is masked, but past an APIC that is disabled.
    pc.chips.set_level(1, false);
    pc.chips.set_level(1, true);
    pc.apic(LVT_LINT0, MASKED | 0x700);
    assert_eq!(pc.take(), None);
    pc.chips.set_apic_base(LAPIC_BASE);
    assert_eq!(pc.take(), Some(0x31));
    assert!(!pc.chips.mmio_read(pc.now, LAPIC_BASE, &mut [0; 4]));
}

#[test]
fn a_level_triggered_pic_input_repeats_until_it_falls() {
    let mut pc = Pc::new();
    pc.init_pic(0x30, 0x38);
    pc.outb(0x4d0, 0xff);
    pc.outb(0x4d1, 0xff);
    assert_eq!((pc.inb(0x4d0), pc.inb(0x4d1)), (0xf8, 0xde));
    pc.chips.set_level(11, true);
    for _ in 0..3 {
        assert_eq!(pc.take(), Some(0x3b));
        pc.outb(0xa0, 0x20);
        pc.outb(0x20, 0x20);
    }
    pc.chips.set_level(11, false);
    assert_eq!(pc.take(), None);
    // A mask holds it back; the special mask lets lesser ones past the one in service.
    pc.chips.set_level(3, true);
    pc.chips.set_level(6, true);
    assert_eq!(pc.take(), Some(0x33));
    assert_eq!(pc.take(), None);
    pc.outb(0x20, 0x68);
    pc.outb(0x21, 1 << 3);
    assert_eq!(pc.take(), Some(0x36));
}

#[test]
fn the_pit_works_through_the_pic_and_through_lint0_as_a_fixed_interrupt() {
    let mut pc = Pc::new();
    pc.init_pic(0x30, 0x38);
    for (port, value) in [(0x43, 0x34), (0x40, 0), (0x40, 0)] {
        pc.outb(port, value);
    }
    pc.sleep();
    assert_eq!(pc.take(), Some(0x30));
    pc.outb(0x20, 0x20);
    // "Virtual wire", one of Linux's last resorts: the PIC with automatic ends behind LINT0 as an edge of its own.
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 3)] {
        pc.outb(port, value);
    }
    pc.apic(SVR, 0x1ff);
    pc.apic(LVT_LINT0, 0x44);
    pc.sleep();
    assert_eq!(pc.take(), Some(0x44));
}

#[test]
fn the_clock_shows_the_time_of_day_and_crosses_an_hour() {
    let mut pc = Pc::new();
    assert_eq!(pc.clock(), [0x20, 0x24, 0x05, 0x01, 0x13, 0x59, 0x58]);
    assert_eq!((pc.cmos(6), pc.cmos(0x0d)), (4, 0x80));
    pc.now = 2 * S;
    assert_eq!(pc.clock(), [0x20, 0x24, 0x05, 0x01, 0x14, 0x00, 0x00]);
    // Binary, twelve hours.
    pc.set_cmos(0x0b, 0x04);
    assert_eq!(pc.clock(), [20, 24, 5, 1, 0x82, 0, 0]);
    // Years from now; a leap day.
    pc.now = (1_835_395_200 - BOOT_S) * S;
    assert_eq!(pc.clock(), [20, 28, 2, 29, 12, 0, 0]);
}

#[test]
fn an_update_is_announced_before_it_happens_and_is_over_when_it_has() {
    let mut pc = Pc::new();
    pc.now = S - 244_001;
    assert_eq!(pc.cmos(0x0a) & 0x80, 0);
    pc.now = S - 244_000;
    assert_eq!((pc.cmos(0x0a) & 0x80, pc.cmos(0)), (0x80, 0x58));
    pc.now = S;
    assert_eq!((pc.cmos(0x0a) & 0x80, pc.cmos(0)), (0, 0x59));
    // Flags are set also where no interrupt is enabled; reading clears them.
    assert_eq!((pc.cmos(0x0c) & 0x90, pc.cmos(0x0c)), (0x10, 0));
}

#[test]
fn the_clock_is_set_as_kernels_set_it() {
    let mut pc = Pc::new();
    let (b, a) = (pc.cmos(0x0b), pc.cmos(0x0a));
    pc.set_cmos(0x0b, b | 0x80);
    pc.set_cmos(0x0a, a | 0x70);
    for (index, value) in [(9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59), (0x32, 0x19)] {
        pc.set_cmos(index, value);
    }
    pc.now += 10 * S;
    assert_eq!(pc.cmos(0), 0x59, "it stands");
    pc.set_cmos(0x0b, b);
    pc.set_cmos(0x0a, a);
    pc.now += S / 2 - MS;
    assert_eq!(pc.clock(), [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59]);
    pc.now += MS;
    assert_eq!(pc.clock(), [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00]);
    assert_eq!(pc.cmos(6), 7, "a Saturday");
}

#[test]
fn clock_interrupts_come_at_their_times_and_wait_to_be_read() {
    let mut pc = Pc::with_apic();
    pc.pin(8, 0x38);
    let enable = |pc: &mut Pc, bit| {
        pc.set_cmos(0x0b, 2 | bit);
        pc.cmos(0x0c);
    };
    enable(&mut pc, 0x40);
    for tick in 1..=3u64 {
        assert_eq!(pc.sleep(), (tick * S).div_ceil(1024));
        assert_eq!(pc.take(), Some(0x38));
        pc.apic(EOI, 0);
        assert_eq!(pc.chips.next_timer_ns(), None, "nothing more to tell before it is read");
        assert_eq!(pc.cmos(0x0c), 0xc0);
    }
    enable(&mut pc, 0x10);
    assert_eq!(pc.sleep(), S);
    assert_eq!((pc.take(), pc.cmos(0x0c) & 0xb0), (Some(0x38), 0x90));
    pc.apic(EOI, 0);
    // At 01:00:10 of whatever day: eleven hours and ten seconds on.
    for (index, value) in [(5, 0x01), (3, 0x00), (1, 0x10)] {
        pc.set_cmos(index, value);
    }
    enable(&mut pc, 0x20);
    assert_eq!(pc.sleep(), (11 * 3600 + 12) * S);
    assert_eq!((pc.take(), pc.cmos(0x0c) & 0xa0), (Some(0x38), 0xa0));
    // Each minute, then an impossible one.
    for (index, value) in [(5, 0xff), (3, 0xc0)] {
        pc.set_cmos(index, value);
    }
    assert_eq!(pc.sleep(), (11 * 3600 + 72) * S);
    pc.cmos(0x0c);
    pc.set_cmos(1, 0x61);
    assert_eq!(pc.chips.next_timer_ns(), None);
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

#[derive(Clone, Debug)]
enum Step {
    Out(u16, u8),
    In(u16),
    Write(u64, u32),
    Read(u64),
    Level(u32, bool),
    Wait(u64),
    ToTimer,
    Take,
    Deadline(u64),
    Base(u64),
    Cr8(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ports = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x70, 0x71];
    let port = prop::sample::select(ports.to_vec());
    let register = prop_oneof![
        (0u64..0x40).prop_map(|register| LAPIC_BASE + register * 16),
        Just(LAPIC_BASE + LVT_TIMER),
        Just(LAPIC_BASE + INITIAL),
        Just(IOAPIC_BASE),
        Just(IOAPIC_BASE + 0x10),
    ];
    let value = prop_oneof![any::<u32>(), 0u32..0x400, (0u32..24).prop_map(|bit| 1 << bit)];
    let wait = prop_oneof![
        0..2000u64,
        0..10 * S,
        (0..=64u32).prop_map(|bits| u64::MAX.checked_shr(bits).unwrap_or(0))
    ];
    let step = prop_oneof![
        4 => (port.clone(), any::<u8>()).prop_map(|(port, value)| Step::Out(port, value)),
        // The clock's registers, chosen and written in one go.
        2 => (0..0x10u16, any::<u8>()).prop_map(|(index, value)| Step::Out(0x7000 | index, value)),
        2 => port.prop_map(Step::In),
        5 => (register.clone(), value).prop_map(|(register, value)| Step::Write(register, value)),
        2 => register.prop_map(Step::Read),
        2 => (0..30u32, any::<bool>()).prop_map(|(gsi, high)| Step::Level(gsi, high)),
        2 => wait.clone().prop_map(Step::Wait),
        2 => Just(Step::ToTimer),
        3 => Just(Step::Take),
        1 => wait.prop_map(Step::Deadline),
        1 => any::<u64>().prop_map(Step::Base),
        1 => any::<u8>().prop_map(Step::Cr8),
    ];
    prop::collection::vec(step, 0..120)
}

/// Does a step; what the guest sees of it.
fn step(chips: &mut Chips, now: &mut u64, step: &Step) -> u64 {
    let mut byte = [0];
    let mut word = [0; 4];
    match *step {
        Step::Out(port @ 0x7000.., value) => {
            chips.pio_write(*now, 0x70, &[port as u8, value]);
        }
        Step::Out(port, value) => {
            chips.pio_write(*now, port, &[value]);
        }
        Step::In(port) => {
            chips.pio_read(*now, port, &mut byte);
        }
        Step::Write(addr, value) => {
            chips.mmio_write(*now, addr, &value.to_le_bytes());
        }
        Step::Read(addr) => {
            chips.mmio_read(*now, addr, &mut word);
        }
        Step::Level(gsi, high) => chips.set_level(gsi, high),
        Step::Wait(ns) => *now = now.saturating_add(ns),
        Step::ToTimer => {
            *now = chips.next_timer_ns().unwrap_or(0).max(*now);
            chips.run_timers(*now);
            let over = chips.next_timer_ns().is_some_and(|next| next <= *now);
            assert!(!over || *now == u64::MAX, "timers that ran are due again");
        }
        Step::Take => return chips.acknowledge_interrupt(*now).map_or(256, u64::from),
        Step::Deadline(value) => chips.set_tsc_deadline(*now, value),
        // Mostly where it was, or no step would reach it again.
        Step::Base(value) => chips.set_apic_base(if value % 8 == 0 { value } else { LAPIC_BASE | 1 << 11 }),
        Step::Cr8(value) => chips.set_cr8(value),
    }
    let seen = u64::from(chips.interrupt_pending(*now)) << 48 | u64::from(chips.take_nmi()) << 49;
    seen | u64::from(byte[0]) << 32 | u64::from(u32::from_le_bytes(word))
}

proptest! {
    #[test]
    fn any_accesses_at_any_times_are_survived_and_a_restored_state_goes_on_alike(
        before in steps(), after in steps(), boot_s in any::<u64>(),
    ) {
        let (mut chips, mut now) = (Chips::new(boot_s), 0);
        for this in &before {
            step(&mut chips, &mut now, this);
        }
        let bytes = postcard::to_allocvec(&chips).unwrap();
        let mut restored: Chips = postcard::from_bytes(&bytes).unwrap();
        prop_assert_eq!(restored.validate(), Ok(()));
        let mut restored_now = now;
        for this in &after {
            let seen = step(&mut chips, &mut now, this);
            prop_assert_eq!(step(&mut restored, &mut restored_now, this), seen);
        }
        prop_assert_eq!(restored, chips);
    }

    #[test]
    fn any_state_that_validates_is_survived(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        before in steps(), after in steps(),
    ) {
        let (mut chips, mut now) = (Chips::new(BOOT_S), 0);
        for this in &before {
            step(&mut chips, &mut now, this);
        }
        let mut bytes = postcard::to_allocvec(&chips).unwrap();
        // Each flip that leaves a valid state stays.
        for (at, flip) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            match postcard::from_bytes::<Chips>(&bytes) {
                Ok(state) if state.validate().is_ok() => chips = state,
                _ => bytes[at] ^= flip,
            }
        }
        for this in &after {
            step(&mut chips, &mut now, this);
        }
    }

    /// However often timers are asked to run in between, the state comes out the same bit for bit.
    #[test]
    fn asking_more_often_changes_nothing(all in steps(), more in 1..9u64) {
        let (mut chips, mut now) = (Chips::new(BOOT_S), 0);
        let (mut asked, mut asked_now) = (Chips::new(BOOT_S), 0);
        // The engine stops at every timer; between them it may stop anywhere.
        let advance = |chips: &mut Chips, from: u64, to: u64, stops: u64| {
            let (mut at, mut fired) = (from, 0);
            while at < to && fired < 1000 {
                let until = chips.next_timer_ns().map_or(to, |next| next.clamp(at + 1, to));
                for stop in 1..=stops {
                    chips.run_timers(at + (until - at) / stops * stop);
                }
                chips.run_timers(until);
                (at, fired) = (until, fired + 1);
            }
            at
        };
        for this in &all {
            if let Step::Wait(ns) = *this {
                let to = now.saturating_add(ns.min(MS));
                now = advance(&mut chips, now, to, 0);
                asked_now = advance(&mut asked, asked_now, to, more);
                prop_assert_eq!(now, asked_now);
            } else {
                let seen = step(&mut chips, &mut now, this);
                prop_assert_eq!(step(&mut asked, &mut asked_now, this), seen);
            }
            prop_assert_eq!(&asked, &chips);
        }
    }
}
