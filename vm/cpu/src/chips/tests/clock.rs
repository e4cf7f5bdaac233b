//! The clock: reading and setting it as Linux does, and its interrupts.

use super::*;

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
    let mut pc = Pc { access_ns: 0, ..Pc::new() };
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
    let enable = |pc: &mut Pc, bit: u8| {
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
fn a_clock_that_is_set_forward_tells_of_the_alarm_that_it_passed() {
    let mut pc = Pc { access_ns: 0, ..Pc::with_apic() };
    pc.pin(8, 0x38);
    // 14:00:30.
    for (index, value) in [(1, 0x30), (3, 0x00), (5, 0x14)] {
        pc.set_cmos(index, value);
    }
    pc.set_cmos(0x0b, 2 | 0x20);
    pc.cmos(0x0c);
    pc.chips.forward_time_of_day(pc.now, 20);
    assert_eq!((pc.clock()[4..].to_vec(), pc.take()), (vec![0x14, 0x00, 0x18], None));
    pc.chips.forward_time_of_day(pc.now, 3600);
    assert_eq!((pc.clock()[4..].to_vec(), pc.take()), (vec![0x15, 0x00, 0x18], Some(0x38)));
    pc.chips.forward_time_of_day(pc.now, -3620);
    assert_eq!(pc.clock()[4..], [0x13, 0x59, 0x58]);
    // Its guest sets it: the time in its cells is the guest's.
    pc.set_cmos(0x0b, 2 | 0x80);
    pc.chips.forward_time_of_day(pc.now, 3600);
    assert_eq!(pc.clock()[4..], [0x13, 0x59, 0x58]);
    // Beyond what it shows it stays at an end.
    pc.set_cmos(0x0b, 2);
    pc.chips.forward_time_of_day(pc.now, i64::MAX);
    pc.chips.forward_time_of_day(pc.now, i64::MIN);
    assert_eq!(pc.chips.validate(), Ok(()));
}
