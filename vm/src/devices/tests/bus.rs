//! Dispatch, COM1, the platform device.

use super::*;
use crate::devices::wall_clock::unix_ns;
use ft_ram::layout::platform::{
    CLOCK_NS, CONSOLE, IDLE_US, PANIC, POWER_OFF, RAM_BYTES as RAM_REGISTER, RESET, VCPUS,
};
use ft_ram::layout::{COM1_GSI, PM1A_CNT_PORT, PVPANIC_PORT, RESET_PORT, RTC_GSI, RTC_PORT, WATCHDOG_PORT};
use std::time::Duration;

fn platform(rig: &Rig, register: u64) -> u64 {
    let mut data = [0; 8];
    rig.devices.mmio_read(PLATFORM_BASE + register, &mut data);
    u64::from_le_bytes(data)
}

fn write_platform(rig: &Rig, register: u64, value: u64) -> Option<DeviceEvent> {
    rig.devices.mmio_write(PLATFORM_BASE + register, &value.to_le_bytes())
}

#[test]
fn what_no_device_answers_reads_as_ones_and_is_counted() {
    let rig = Rig::new();
    let mut data = [0; 4];
    rig.devices.pio_read(0xcf8, &mut data);
    assert_eq!(data, [0xff; 4]);
    data = [0; 4];
    rig.devices.pio_read(0xffff, &mut data);
    assert_eq!(data, [0xff; 4]);
    for address in [0, 0xd000_3000, 0xd00f_ffff, PLATFORM_BASE + 0x1000, u64::MAX, RNG + 0x104] {
        data = [0; 4];
        rig.devices.mmio_read(address, &mut data);
        assert_eq!(data, [0xff; 4], "{address:#x}");
    }
    assert_eq!(rig.devices.counters().unknown_io, 2 + 6);
    assert_eq!(rig.devices.pio_write(0xcf8, &data), None);
    assert_eq!(rig.devices.mmio_write(0, &data), None);
    assert_eq!(rig.devices.counters().unknown_io, 8 + 2);
}

#[test]
fn the_guests_console_output_reaches_the_sink_from_both_devices() {
    let rig = Rig::new();
    for byte in b"com1" {
        rig.devices.pio_write(COM1_PORT, &[*byte]);
    }
    rig.devices.mmio_write(PLATFORM_BASE + CONSOLE, b"!");
    assert_eq!(*rig.screen.0.lock(), b"com1!");
}

#[test]
fn console_input_beyond_the_fifo_follows_as_the_guest_reads() {
    let rig = Rig::new();
    // Interrupts for received data.
    rig.devices.pio_write(COM1_PORT + 1, &[1]);
    let typed: Vec<u8> = (0..5000).map(|i| i as u8).collect();
    rig.devices.console_input(&typed);
    assert!(rig.chip.edges(COM1_GSI) > 0 && !rig.chip.level(COM1_GSI), "an edge");
    let mut read = vec![];
    let mut byte = [0];
    loop {
        rig.devices.pio_read(COM1_PORT + 5, &mut byte);
        if byte[0] & 1 == 0 {
            break;
        }
        rig.devices.pio_read(COM1_PORT, &mut byte);
        read.push(byte[0]);
    }
    assert_eq!(read, typed[..4096]);
    assert_eq!(rig.devices.counters().console_dropped, 5000 - 4096);
}

#[test]
fn the_platform_device_tells_the_machine_and_takes_its_orders() {
    let rig = Rig::new();
    assert_eq!((platform(&rig, VCPUS), platform(&rig, RAM_REGISTER)), (2, RAM_BYTES));
    assert_eq!(write_platform(&rig, POWER_OFF, 0), Some(DeviceEvent::PoweredOff));
    assert_eq!(write_platform(&rig, RESET, 0), Some(DeviceEvent::Reset));
    assert_eq!(rig.devices.pio_write(RESET_PORT, &[1]), Some(DeviceEvent::Reset));
    let s5 = (5u16 << 10 | 1 << 13).to_le_bytes();
    assert_eq!(rig.devices.pio_write(PM1A_CNT_PORT, &s5), Some(DeviceEvent::PoweredOff));
}

#[test]
fn a_panic_is_told_once_a_boot_by_either_way_at_its_register_and_width_only() {
    let rig = Rig::new();
    let panicked = Some(DeviceEvent::Panicked { dumps: false });
    let mut said = [0; 4];
    rig.devices.pio_read(PVPANIC_PORT - 1, &mut said);
    assert_eq!(said, [0xff, 3, 0xff, 0xff], "the port tells what may be said; beside it there is nothing");
    assert_eq!(rig.devices.pio_write(PVPANIC_PORT - 1, &[1]), None);
    assert_eq!(rig.devices.pio_write(PVPANIC_PORT + 1, &[1, 1]), None);
    assert_eq!(rig.devices.pio_write(PVPANIC_PORT - 1, &[0, 1]), panicked, "a wide access is one of bytes");
    assert_eq!(write_platform(&rig, PANIC, 1), None, "it has said so");
    rig.devices.reset();
    for width in [1, 2, 4] {
        assert_eq!(rig.devices.mmio_write(PLATFORM_BASE + PANIC, &vec![1; width]), None);
    }
    assert_eq!(write_platform(&rig, PANIC, 1), panicked);
}

#[test]
fn guest_time_goes_on_from_the_checkpoint_and_never_back() {
    let rig = Rig::new();
    let before = platform(&rig, CLOCK_NS);
    rig.devices.quiesce();
    let mut state = rig.devices.capture();
    let captured = state.platform.guest_time_ns;
    assert!(before <= captured && captured <= platform(&rig, CLOCK_NS));

    // On a host whose clock says something else.
    state.platform.guest_time_ns = 7_000_000_000_000;
    let backup = Rig::new();
    backup.devices.restore(&state).unwrap();
    backup.devices.resume();
    let mut last = platform(&backup, CLOCK_NS);
    assert!((7_000_000_000_000..7_060_000_000_000).contains(&last), "{last}");
    for _ in 0..1000 {
        let now = platform(&backup, CLOCK_NS);
        assert!(now >= last);
        last = now;
    }
}

#[test]
fn a_kick_ends_idling_and_idling_returns_at_once_until_resume() {
    let rig = Rig::new();
    // What the register does; and whether it lasted to the end.
    let idle = || rig.devices.idle.wait(Duration::from_micros(u64::MAX));
    assert_eq!(write_platform(&rig, IDLE_US, u64::MAX), None);
    std::thread::scope(|scope| {
        // Idles again and again, so that only the kick ends it, whenever it comes.
        let vcpu = scope.spawn(|| while idle() {});
        rig.devices.interrupt_idle();
        vcpu.join().unwrap();
    });
    assert!(!idle());
    rig.devices.quiesce();
    assert!(!idle());
    rig.devices.resume();
    assert!(idle());
}

#[test]
fn kernels_without_acpi_are_told_of_every_virtio_device() {
    assert_eq!(
        cmdline_additions(&spec()),
        "virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 virtio_mmio.device=4K@0xd0002000:7"
    );
}

/// The time of day that the guest reads at the RTC's ports, as Unix time.
fn rtc(rig: &Rig) -> i64 {
    let read = |register: u8| {
        let mut byte = [0];
        rig.devices.pio_write(RTC_PORT, &[register]);
        rig.devices.pio_read(RTC_PORT + 1, &mut byte);
        i64::from(byte[0] >> 4) * 10 + i64::from(byte[0] & 15)
    };
    let (year, month, day) = (read(0x32) * 100 + read(9), read(8), read(7));
    let years = year - i64::from(month <= 2);
    let days = 365 * years + years / 4 - years / 100 + years / 400 + (153 * ((month + 9) % 12) + 2) / 5 + day;
    (days - 719_469) * 86_400 + read(4) * 3600 + read(2) * 60 + read(0)
}

#[test]
fn on_kvm_the_rtc_has_the_hosts_time_also_after_a_reset_and_where_a_state_lay_on_disk() {
    let now = || unix_ns() / 1_000_000_000;
    let near = |read: i64| (now() - 3..=now() + 3).contains(&read);
    let rig = Rig::new();
    rig.devices.power_on_at(platform(&rig, CLOCK_NS));
    assert!(near(rtc(&rig)), "{}", rtc(&rig));
    rig.devices.quiesce();
    let mut state = rig.devices.capture();
    // An hour ago.
    state.wall_clock.forward(-3600);
    let there = Rig::new();
    there.devices.restore(&state).unwrap();
    assert_eq!(there.devices.capture().rtc, state.rtc);
    there.devices.resume();
    assert!(near(rtc(&there) - 3600), "it was right, and an hour has gone by: {}", rtc(&there));
    there.devices.quiesce();
    there.devices.resume();
    assert!(near(rtc(&there) - 3600), "it is set forward once");
    there.devices.reset();
    assert!(near(rtc(&there)), "a reset begins with the host's time");
    let older = DevicesState { rtc: None, wall_clock: WallClockState::default(), ..state };
    there.devices.restore(&older).unwrap();
    there.devices.resume();
    assert!(near(rtc(&there)), "a state without one begins with the host's time");
}

#[test]
fn on_kvm_an_alarm_of_the_rtc_interrupts_when_somebody_looks() {
    let rig = Rig::new();
    let set = |register: u8, value: u8| {
        rig.devices.pio_write(RTC_PORT, &[register]);
        rig.devices.pio_write(RTC_PORT + 1, &[value]);
    };
    // Every second.
    [1, 3, 5].into_iter().for_each(|register| set(register, 0xff));
    set(0x0b, 0x22);
    assert!(!rig.chip.level(RTC_GSI));
    let begun = std::time::Instant::now();
    while !rig.chip.level(RTC_GSI) {
        assert!(begun.elapsed() < Duration::from_secs(30), "it never comes");
        assert!(!rig.devices.look(), "there is no watchdog");
        std::thread::sleep(Duration::from_millis(5));
    }
    rig.devices.pio_write(RTC_PORT, &[0x0c]);
    let mut flags = [0];
    rig.devices.pio_read(RTC_PORT + 1, &mut flags);
    assert!(flags[0] & 0xa0 == 0xa0 && !rig.chip.level(RTC_GSI), "{flags:x?}");
}

#[test]
fn on_kvm_a_watchdog_is_seen_to_be_over_and_stands_still_while_the_devices_do() {
    let rig = Rig::new();
    let over_within = |limit: Duration| {
        let begun = std::time::Instant::now();
        while begun.elapsed() < limit {
            if rig.devices.look() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    };
    // Three ticks, and the control register.
    rig.devices.pio_write(WATCHDOG_PORT + 2, &[3, 0]);
    rig.devices.pio_write(WATCHDOG_PORT, &[1]);
    rig.devices.quiesce();
    let held = rig.devices.capture().watchdog;
    assert!(!over_within(Duration::from_millis(600)));
    assert_eq!(rig.devices.capture().watchdog, held);
    rig.devices.resume();
    assert!(!rig.devices.look() && over_within(Duration::from_secs(30)));
    assert!(!over_within(Duration::from_millis(500)), "it is said once");
    rig.devices.reset();
    let mut control = [0xff];
    rig.devices.pio_read(WATCHDOG_PORT, &mut control);
    assert_eq!(control, [0]);
}
