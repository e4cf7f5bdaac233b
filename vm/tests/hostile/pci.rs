//! What PCI has beside virtio's own rules: the BAR, configuration space and its ports, the function's capabilities, and
//! MSI-X.

use crate::cases::Expected::{Ignored, Served, Survived};
use crate::cases::{ALL, Case, NET, on_bus, plain, work};
use crate::driver::{STATUS, Stage};
use crate::guest::GuestAccess;
use crate::registers::offsets;
use ft_ram::layout::{PCI_CONFIG_PORT, PCI_WINDOW_BASE, PCI_WINDOW_SIZE};
use ft_vm::spec::BusKind::Pci;

/// Parts of the BAR, a page each: common, ISR, device, notify, MSI-X table and its pending bits, and nothing.
const PARTS: u64 = 8;
const ISR: u64 = 0x1000;
const NOTIFY_AT: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;
const PORT: u16 = PCI_CONFIG_PORT;

fn places(width: u64) -> Vec<u64> {
    let all = (0..PARTS).flat_map(|part| offsets(0x1000).map(move |at| part * 0x1000 + at));
    all.filter(|at| at % 0x1000 + width <= 0x1000).collect()
}

fn reads(s: &mut Stage<'_>, width: u64) {
    s.start(0);
    let list: Vec<_> =
        places(width).into_iter().map(|at| GuestAccess::read(s.device.bar() + at, width)).collect();
    s.vm.access(&list);
    assert!(!s.needs_reset(), "a read changes nothing");
}

fn writes(s: &mut Stage<'_>, width: u64) {
    for value in [u64::MAX, 0, 0x8000_0001_8000_0001] {
        s.bring_up(0);
        let (queue, buffers) = (work(s.device), plain(s));
        s.offer(queue, &buffers);
        let bar = s.device.bar();
        let list: Vec<_> =
            places(width).into_iter().map(|at| GuestAccess::write(bar + at, width, value)).collect();
        s.vm.access(&list);
    }
}

/// A plain request of a device that runs.
fn request(s: &mut Stage<'_>) {
    let (queue, buffers) = (work(s.device), plain(s));
    s.serve(queue, &buffers);
}

/// Where in configuration space the capability of this kind is (and of this type, of virtio's).
fn capability(s: &Stage<'_>, kind: u64, of_virtio: Option<u64>) -> u64 {
    let byte = |at: u64| {
        let address = 1 << 31 | s.device.number() << 11 | at & 0xfc;
        let port = PORT + 4 + (at & 3) as u16;
        s.vm.access(&[GuestAccess::port_write(PORT, 4, address), GuestAccess::port_read(port, 1)])[1]
    };
    let mut at = byte(0x34);
    while byte(at) != kind || of_virtio.is_some_and(|wanted| byte(at + 3) != wanted) {
        at = byte(at + 1);
        assert_ne!(at, 0, "it is there");
    }
    at
}

/// Sets MSI-X up with every vector at this message, and the queues' vectors.
fn with_messages(s: &mut Stage<'_>, address: u64, data: u64, masked: u64) {
    s.start(0);
    let at = capability(s, 0x11, None);
    let bar = s.device.bar();
    let mut list = Vec::new();
    for vector in 0..=s.device.queues() {
        let entry = bar + TABLE + 16 * vector;
        list.extend([
            GuestAccess::write(entry, 8, address),
            GuestAccess::write(entry + 8, 8, masked << 32 | data),
        ]);
    }
    list.push(GuestAccess::write(bar + 0x10, 2, 0));
    for queue in 0..s.device.queues() {
        list.extend([GuestAccess::write(bar + 0x16, 2, queue), GuestAccess::write(bar + 0x1a, 2, queue + 1)]);
    }
    s.vm.access(&list);
    s.configure(at + 2, 2, 0x8000);
    request(s);
    let queue = work(s.device);
    s.wait_used(queue, 1);
    s.configure(at + 2, 2, 0);
}

/// Moves the BAR there and back; the device runs on.
fn moved(s: &mut Stage<'_>, to: &[u64]) {
    s.start(0);
    for &base in to {
        s.configure(0x10, 4, base);
        s.vm.access(&[
            GuestAccess::read(s.device.bar() + 0x14, 1),
            GuestAccess::read((base & !0x7fff) + 0x14, 1),
        ]);
    }
    s.configure(0x10, 4, s.device.bar());
    request(s);
}

/// Every register of the function's configuration space by this width, at every port.
fn config_ports(s: &Stage<'_>, width: u64, value: Option<u64>) {
    let mut list = Vec::new();
    for register in (0..0x100).step_by(4) {
        list.push(GuestAccess::port_write(PORT, 4, 1 << 31 | s.device.number() << 11 | register));
        for port in PORT + 4..PORT + 8 {
            list.push(match value {
                Some(value) => GuestAccess::port_write(port, width, value),
                None => GuestAccess::port_read(port, width),
            });
        }
    }
    s.vm.access(&list);
}

/// Accesses through the capability of access by configuration space, as it is not to be used.
fn by_capability(s: &mut Stage<'_>, bar: u64, offset: u64, bytes: u64) {
    s.start(0);
    let at = capability(s, 0x09, Some(5));
    s.configure(at + 4, 1, bar);
    s.configure(at + 8, 4, offset);
    s.configure(at + 12, 4, bytes);
    for width in [1, 2, 4] {
        s.configure(at + 16, width, u64::MAX);
        s.vm.access(&[GuestAccess::port_read(PORT + 4, width)]);
    }
}

pub const CASES: &[Case] = &[
    on_bus("BAR, reads of 1 byte everywhere", ALL, Pci, Survived, |s| reads(s, 1)),
    on_bus("BAR, reads of 2 bytes everywhere", ALL, Pci, Survived, |s| reads(s, 2)),
    on_bus("BAR, reads of 4 bytes everywhere", ALL, Pci, Survived, |s| reads(s, 4)),
    on_bus("BAR, reads of 8 bytes everywhere", ALL, Pci, Survived, |s| reads(s, 8)),
    on_bus("BAR, writes of 1 byte everywhere", ALL, Pci, Survived, |s| writes(s, 1)),
    on_bus("BAR, writes of 2 bytes everywhere", ALL, Pci, Survived, |s| writes(s, 2)),
    on_bus("BAR, writes of 4 bytes everywhere", ALL, Pci, Survived, |s| writes(s, 4)),
    on_bus("BAR, writes of 8 bytes everywhere", ALL, Pci, Survived, |s| writes(s, 8)),
    on_bus("BAR, accesses from one part into the next", ALL, Pci, Survived, |s| {
        let ends: Vec<_> = (1..=PARTS).map(|part| s.device.bar() + part * 0x1000).collect();
        let list: Vec<_> = ends
            .iter()
            .flat_map(|end| [GuestAccess::read(end - 1, 2), GuestAccess::read(end - 3, 8)])
            .collect();
        s.vm.access(&list);
        let list: Vec<_> = ends.iter().map(|end| GuestAccess::write(end - 3, 8, u64::MAX)).collect();
        s.vm.access(&list);
    }),
    on_bus("BAR of size that is asked for", ALL, Pci, Served, |s| moved(s, &[0xffff_ffff])),
    on_bus("BAR in memory", ALL, Pci, Served, |s| moved(s, &[0, 0x60_0000, 0x20_0000])),
    on_bus("BAR over another device's", ALL, Pci, Served, |s| {
        moved(s, &[0, 1, 2].map(|index| PCI_WINDOW_BASE + 0x8000 * index));
    }),
    on_bus("BAR at the ends of its window", ALL, Pci, Served, |s| {
        let end = PCI_WINDOW_BASE + PCI_WINDOW_SIZE;
        moved(s, &[end - 0x8000, end - 0x4000, end, PCI_WINDOW_BASE - 0x8000]);
    }),
    on_bus("BAR over the interrupt controllers", ALL, Pci, Served, |s| moved(s, &[0xfee0_0000, 0xfec0_0000])),
    on_bus("requests while the BAR is not decoded", ALL, Pci, Ignored, |s| {
        s.start(0);
        s.configure(4, 2, 4);
        request(s);
        s.configure(4, 2, 6);
    }),
    on_bus("requests while the function may not reach memory", ALL, Pci, Served, |s| {
        s.start(0);
        s.configure(4, 2, 2);
        request(s);
        let queue = work(s.device);
        assert_eq!(s.take_used(queue), []);
        // It sees what is there once it may.
        s.configure(4, 2, 6);
        s.wait_used(queue, 1);
    }),
    on_bus("reset of a function that may not reach memory", ALL, Pci, Survived, |s| {
        s.start(0);
        request(s);
        s.configure(4, 2, 0);
        s.set(STATUS, 0);
        s.configure(4, 2, 2);
        s.set(STATUS, 0);
    }),
    on_bus("command of every bit", ALL, Pci, Survived, |s| {
        s.start(0);
        for command in [0xffff, 0, 0x0400, 0x0406, 6] {
            s.configure(4, 2, command);
            request(s);
        }
    }),
    on_bus("configuration space, bytes", ALL, Pci, Survived, |s| {
        config_ports(s, 1, None);
        config_ports(s, 1, Some(u64::MAX));
        config_ports(s, 1, Some(0));
    }),
    on_bus("configuration space, words", ALL, Pci, Survived, |s| {
        config_ports(s, 2, None);
        config_ports(s, 2, Some(u64::MAX));
        config_ports(s, 2, Some(0));
    }),
    on_bus("configuration space, double words", ALL, Pci, Survived, |s| {
        config_ports(s, 4, None);
        config_ports(s, 4, Some(u64::MAX));
        config_ports(s, 4, Some(0));
    }),
    on_bus("addresses of nothing", NET, Pci, Survived, |s| {
        let addresses = [0, 0x7fff_ffff, 0xffff_ffff, 0x8000_0700, 0x80ff_0800, 0x8000_f800, 0x8000_0903];
        for address in addresses {
            let mut list = vec![GuestAccess::port_write(PORT, 4, address)];
            list.extend(
                (PORT..PORT + 8).flat_map(|port| [1, 2, 4].map(|width| GuestAccess::port_read(port, width))),
            );
            list.extend((PORT + 4..PORT + 8).map(|port| GuestAccess::port_write(port, 1, 0xff)));
            s.vm.access(&list);
        }
    }),
    on_bus("address register by parts", NET, Pci, Survived, |s| {
        let list: Vec<_> = (PORT..PORT + 4)
            .flat_map(|port| [1, 2, 4].map(|width| GuestAccess::port_write(port, width, u64::MAX)))
            .collect();
        s.vm.access(&list);
        s.vm.access(&[GuestAccess::port_write(PORT, 4, 0)]);
    }),
    on_bus("access by a capability, to a BAR that is not there", ALL, Pci, Survived, |s| {
        by_capability(s, 5, 0x14, 1)
    }),
    on_bus("access by a capability, beyond the BAR", ALL, Pci, Survived, |s| {
        by_capability(s, 0, 0xffff_fffc, 4)
    }),
    on_bus("access by a capability, of 3 bytes", ALL, Pci, Survived, |s| by_capability(s, 0, 0x14, 3)),
    on_bus("access by a capability, of no bytes", ALL, Pci, Survived, |s| by_capability(s, 0, 0x14, 0)),
    on_bus("access by a capability, misaligned", ALL, Pci, Survived, |s| by_capability(s, 0, 0x15, 4)),
    on_bus("access by a capability, to itself", ALL, Pci, Survived, |s| {
        let at = capability(s, 0x09, Some(5));
        by_capability(s, 0, at + 16, 4);
    }),
    on_bus("access by a capability, a reset and its ones", ALL, Pci, Survived, |s| {
        by_capability(s, 0, 0x14, 1)
    }),
    on_bus("vectors that are not there", ALL, Pci, Ignored, |s| {
        let bar = s.device.bar();
        for vector in [5, 64, 0x7fff, 0xfffe] {
            let list = [
                GuestAccess::write(bar + 0x10, 2, vector),
                GuestAccess::read(bar + 0x10, 2),
                GuestAccess::write(bar + 0x16, 2, 0),
                GuestAccess::write(bar + 0x1a, 2, vector),
                GuestAccess::read(bar + 0x1a, 2),
            ];
            let read = s.vm.access(&list);
            assert_eq!((read[1], read[4]), (0xffff, 0xffff));
        }
    }),
    on_bus("vectors of queues that are not there", ALL, Pci, Ignored, |s| {
        let bar = s.device.bar();
        let list = [
            GuestAccess::write(bar + 0x16, 2, 9),
            GuestAccess::write(bar + 0x1a, 2, 0),
            GuestAccess::read(bar + 0x1a, 2),
        ];
        assert_eq!(s.vm.access(&list)[2], 0xffff);
    }),
    on_bus("messages to memory", ALL, Pci, Served, |s| {
        s.vm.poke(0xf0_0000, &[0; 8]);
        with_messages(s, 0xf0_0000, 0xdead_beef, 0);
        assert_eq!(s.vm.peek(0xf0_0000, 8), [0; 8]);
    }),
    on_bus("messages to a device", ALL, Pci, Served, |s| with_messages(s, PCI_WINDOW_BASE + 0x14, 0, 0)),
    on_bus("messages above 4 GiB", ALL, Pci, Served, |s| with_messages(s, 0xffff_ffff_fee0_0000, 0x41, 0)),
    on_bus("messages that nobody takes", ALL, Pci, Served, |s| with_messages(s, 0xfeef_f000, 0x41, 0)),
    on_bus("messages of vector 0", ALL, Pci, Served, |s| with_messages(s, 0xfee0_0000, 0, 0)),
    on_bus("messages that are masked", ALL, Pci, Served, |s| with_messages(s, 0xfee0_0000, 0x41, 1)),
    on_bus("vectors beyond the table's end", ALL, Pci, Ignored, |s| {
        let end = s.device.bar() + TABLE + 16 * (s.device.queues() + 1);
        let widths = [1, 2, 4, 8];
        let list: Vec<_> = widths.map(|width| GuestAccess::read(end, width)).to_vec();
        assert_eq!(s.vm.access(&list), [0xff, 0xffff, 0xffff_ffff, u64::MAX]);
        s.vm.access(&widths.map(|width| GuestAccess::write(end, width, u64::MAX)));
        s.vm.access(&[GuestAccess::read(end - 4, 8), GuestAccess::write(end - 4, 8, u64::MAX)]);
    }),
    on_bus("pending bits written", ALL, Pci, Ignored, |s| {
        let at = s.device.bar() + PENDING;
        s.vm.access(&[1, 2, 4, 8].map(|width| GuestAccess::write(at, width, u64::MAX)));
        assert_eq!(s.vm.access(&[GuestAccess::read(at, 8)]), [0]);
    }),
    on_bus("interrupt status at other widths, and written", ALL, Pci, Ignored, |s| {
        let at = s.device.bar() + ISR;
        s.vm.access(&[2, 4, 8].map(|width| GuestAccess::read(at, width)));
        s.vm.access(&[1, 2, 4, 8].map(|width| GuestAccess::write(at, width, u64::MAX)));
    }),
    on_bus("notifications at other widths and places", ALL, Pci, Ignored, |s| {
        s.start(0);
        let at = s.device.bar() + NOTIFY_AT;
        let list: Vec<_> = [1, 2, 4, 8]
            .into_iter()
            .flat_map(|width| (0..32).map(move |place| GuestAccess::write(at + place, width, place)))
            .collect();
        s.vm.access(&list);
    }),
];
