//! The PIT and the LAPIC's timer, and their calibration as Linux does it.

use super::*;

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

/// Counter 2, tick by tick: the gate by port 0x61, the output by its bit 5, the count by a latch.
#[test]
fn counters_count_as_their_modes_say() {
    let mut pc = Pc { access_ns: 0, ..Pc::new() };
    let mut tick = 1000;
    let mut at = |pc: &mut Pc, ticks: u64| {
        tick += ticks;
        pc.now = (tick * S).div_ceil(pit::HZ);
    };
    let start = |pc: &mut Pc, mode: u8, count: u8| {
        pc.outb(0x61, 0);
        pc.outb(0x43, 0x90 | mode);
        pc.outb(0x42, count);
        pc.outb(0x61, 1);
    };
    // A tick to load, then the trace: 6 ticks of count and output.
    let mut trace = |pc: &mut Pc, mode: u8, count: u8| {
        at(pc, 1);
        start(pc, mode, count);
        [(); 6].map(|()| {
            at(pc, 1);
            pc.outb(0x43, 0x80);
            (pc.inb(0x42), pc.inb(0x61) & 0x20 != 0)
        })
    };
    let (low, high) = (false, true);
    assert_eq!(trace(&mut pc, 2 << 1, 3), [(3, high), (2, high), (1, low), (3, high), (2, high), (1, low)]);
    assert_eq!(trace(&mut pc, 3 << 1, 4), [(4, high), (2, high), (4, low), (2, low), (4, high), (2, high)]);
    assert_eq!(
        trace(&mut pc, 1 << 1, 2),
        [(2, low), (1, low), (0, high), (255, high), (254, high), (253, high)]
    );
    assert_eq!(
        trace(&mut pc, 4 << 1, 2),
        [(1, high), (0, low), (255, high), (254, high), (253, high), (252, high)]
    );
    assert_eq!(
        trace(&mut pc, 5 << 1, 1),
        [(1, high), (0, low), (255, high), (254, high), (253, high), (252, high)]
    );
    // Mode 0 in BCD: below zero comes 9999.
    assert_eq!(trace(&mut pc, 1, 0x11)[..2], [(0x10, low), (0x09, low)]);
    assert_eq!(trace(&mut pc, 1, 1)[..3], [(0, high), (0x99, high), (0x98, high)]);
    // The gate holds mode 0 where it is.
    trace(&mut pc, 0, 20);
    pc.outb(0x61, 0);
    pc.now += S;
    assert_eq!((pc.inb(0x42), pc.inb(0x61) & 0x20), (14, 0));
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
