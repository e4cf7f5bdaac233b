//! The registers of virtio-mmio, and of configuration space on either bus: at every offset and width, also across their
//! ends.

use crate::cases::Expected::{Ignored, Survived};
use crate::cases::{ALL, Case, on_bus, plain, raw, started, work};
use crate::driver::{CONFIG, ENTRIES, QUEUE_SELECT, Stage};
use crate::guest::GuestAccess;
use ft_ram::layout::{VIRTIO_DEVICES_MAX, VIRTIO_MMIO_BASE, VIRTIO_MMIO_SIZE};
use ft_vm::spec::BusKind::{Mmio, Pci};

/// Offsets in a window of registers: all at its beginning and its end, some between.
pub fn offsets(bytes: u64) -> impl Iterator<Item = u64> {
    (0..0x140).chain((0x140..bytes - 16).step_by(67)).chain(bytes - 16..bytes)
}

fn ones(width: u64) -> u64 {
    u64::MAX >> (64 - 8 * width)
}

/// Reads at every offset. Registers are read whole, by their own width, and all else reads as ones.
fn reads(s: &mut Stage<'_>, width: u64) {
    s.start(0);
    let inside: Vec<_> = offsets(VIRTIO_MMIO_SIZE).filter(|at| at + width <= VIRTIO_MMIO_SIZE).collect();
    let list: Vec<_> = inside.iter().map(|at| GuestAccess::read(s.device.window() + at, width)).collect();
    for (at, value) in inside.into_iter().zip(s.vm.access(&list)) {
        // A misaligned access may leave the processor in parts.
        let is_register = width == 4 || !at.is_multiple_of(width);
        assert!(at >= CONFIG || is_register || value == ones(width), "{width} at {at:#x}: {value:#x}");
        assert!(at < CONFIG + 256 || value == ones(width), "{width} at {at:#x}: {value:#x}");
    }
}

/// Writes these to every offset, of a device that runs and has a request.
fn writes(s: &mut Stage<'_>, width: u64) {
    for value in [u64::MAX, 0, 0x8000_0001_8000_0001] {
        s.bring_up(0);
        let (queue, buffers) = (work(s.device), plain(s));
        s.offer(queue, &buffers);
        let window = s.device.window();
        let list: Vec<_> = offsets(VIRTIO_MMIO_SIZE)
            .filter(|at| at + width <= VIRTIO_MMIO_SIZE)
            .map(|at| GuestAccess::write(window + at, width, value))
            .collect();
        s.vm.access(&list);
    }
}

/// An access across the window's end is one to two devices.
fn across(s: &mut Stage<'_>, write: bool) {
    let end = s.device.window() + VIRTIO_MMIO_SIZE;
    let list: Vec<_> = [2, 4, 8]
        .into_iter()
        .flat_map(|width| (1..width).map(move |before| (end - before, width)))
        .map(
            |(at, width)| {
                if write { GuestAccess::write(at, width, u64::MAX) } else { GuestAccess::read(at, width) }
            },
        )
        .collect();
    s.vm.access(&list);
}

/// Where a device has its configuration space.
fn config(s: &Stage<'_>) -> u64 {
    if s.vm.bus() == Mmio { s.device.window() + CONFIG } else { s.device.bar() + 0x2000 }
}

/// The bytes of its configuration space, found by reading up to the first that is none.
fn config_bytes(s: &Stage<'_>) -> u64 {
    let unknown = |at| {
        let before = s.vm.machine.counters().unknown_io;
        s.vm.access(&[GuestAccess::read(config(s) + at, 1)]);
        s.vm.machine.counters().unknown_io != before
    };
    (0..0x1000).find(|&at| unknown(at)).expect("it has an end")
}

pub const CASES: &[Case] = &[
    on_bus("reads of 1 byte everywhere", ALL, Mmio, Survived, |s| reads(s, 1)),
    on_bus("reads of 2 bytes everywhere", ALL, Mmio, Survived, |s| reads(s, 2)),
    on_bus("reads of 4 bytes everywhere", ALL, Mmio, Survived, |s| reads(s, 4)),
    on_bus("reads of 8 bytes everywhere", ALL, Mmio, Survived, |s| reads(s, 8)),
    on_bus("writes of 1 byte everywhere", ALL, Mmio, Survived, |s| writes(s, 1)),
    on_bus("writes of 2 bytes everywhere", ALL, Mmio, Survived, |s| writes(s, 2)),
    on_bus("writes of 4 bytes everywhere", ALL, Mmio, Survived, |s| writes(s, 4)),
    on_bus("writes of 8 bytes everywhere", ALL, Mmio, Survived, |s| writes(s, 8)),
    on_bus("reads across the window's end", ALL, Mmio, Ignored, |s| across(s, false)),
    on_bus("writes across the window's end", ALL, Mmio, Ignored, |s| across(s, true)),
    on_bus("windows of no device", ALL, Mmio, Ignored, |s| {
        let windows = (3..VIRTIO_DEVICES_MAX as u64).map(|index| VIRTIO_MMIO_BASE + index * VIRTIO_MMIO_SIZE);
        let list: Vec<_> =
            windows.flat_map(|at| [GuestAccess::read(at, 4), GuestAccess::write(at + 0x70, 4, 1)]).collect();
        assert!(s.vm.access(&list).iter().step_by(2).all(|&value| value == ones(4)));
    }),
    on_bus("queue reset, which is not offered, reads as done", ALL, Mmio, Ignored, |s| {
        assert_eq!(s.vm.access(&[GuestAccess::read(s.device.window() + 0xc0, 4)]), [0]);
    }),
    on_bus("shared memory regions that are not there", ALL, Mmio, Ignored, |s| {
        let at = |register| s.device.window() + register;
        let lengths = [
            GuestAccess::write(at(0xac), 4, 0xff),
            GuestAccess::read(at(0xb0), 4),
            GuestAccess::read(at(0xb4), 4),
        ];
        assert_eq!(s.vm.access(&lengths)[1..], [ones(4), ones(4)]);
    }),
    on_bus("interrupts acknowledged that never were", ALL, Mmio, Ignored, |s| {
        s.vm.access(&[GuestAccess::write(s.device.window() + 0x64, 4, u64::MAX)]);
    }),
    started("configuration read across its end", ALL, Ignored, |s| {
        let end = config_bytes(s);
        for width in [2, 4, 8] {
            // Aligned, as far as the end lets it be: a misaligned access may leave the processor in parts.
            let places = (1..width).filter(|before| *before <= end);
            let list: Vec<_> =
                places.map(|before| GuestAccess::read(config(s) + end - before, width)).collect();
            for (access, value) in list.iter().zip(s.vm.access(&list)) {
                let is_whole = access.address.is_multiple_of(width);
                assert!(!is_whole || value == ones(width), "{width} at {:#x}", access.address);
            }
        }
    }),
    started("configuration read far beyond its end", ALL, Ignored, |s| {
        let list: Vec<_> = [1, 2, 4, 8].map(|width| GuestAccess::read(config(s) + 0xe00, width)).to_vec();
        assert_eq!(s.vm.access(&list), [1, 2, 4, 8].map(ones));
    }),
    started("configuration written", ALL, Ignored, |s| {
        let bytes = config_bytes(s);
        let all: Vec<_> = (0..bytes).map(|at| GuestAccess::read(config(s) + at, 1)).collect();
        let before = s.vm.access(&all);
        let list: Vec<_> = [1, 2, 4, 8]
            .into_iter()
            .flat_map(|width| (0..80).map(move |at| (at, width)))
            .map(|(at, width)| GuestAccess::write(config(s) + at, width, u64::MAX))
            .collect();
        s.vm.access(&list);
        assert_eq!(s.vm.access(&all), before);
    }),
    raw("queue select of 32 bits", ALL, Ignored, |s| {
        for select in [0x1_0000, 0xffff_ffff, 0x8000_0000] {
            s.set(QUEUE_SELECT, select);
            s.set(crate::driver::QUEUE_SIZE, ENTRIES.into());
        }
        s.set(QUEUE_SELECT, 0);
    }),
    on_bus("queue reset, which is not offered, reads as done on PCI", ALL, Pci, Ignored, |s| {
        assert_eq!(s.vm.access(&[GuestAccess::read(s.device.bar() + 0x3a, 2)]), [0]);
    }),
];
