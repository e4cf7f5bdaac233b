//! Dispatch, COM1, the platform device.

use super::*;
use ft_ram::layout::platform::{
    CLOCK_NS, CONSOLE, IDLE_US, POWER_OFF, RAM_BYTES as RAM_REGISTER, RESET, VCPUS,
};
use ft_ram::layout::{COM1_GSI, PM1A_CNT_PORT, RESET_PORT};
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
