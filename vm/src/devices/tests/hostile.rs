//! A hostile guest can stop the devices, and do nothing else to them.

use super::*;
use proptest::prelude::*;

const BUFFER: u64 = 0x40_0000;
const BUFFER_BYTES: u64 = 0x10_0000;

/// What every broken chain must lead to: the device asks for a reset, says so by an interrupt, is counted, does
/// nothing more, and works again after the reset.
fn stopped(rig: &Rig, window: u64, what: &str) {
    assert_eq!(rig.status(window) & NEEDS_RESET, NEEDS_RESET, "{what}");
    assert_eq!(rig.get(window + 0x60) & 2, 2, "{what}: configuration interrupt");
    assert_eq!(rig.malformed(), 1, "{what}");
    for queue in 0..2 {
        rig.set(window + 0x50, queue);
    }
    assert_eq!(rig.malformed(), 1, "{what}: a stopped device does not look at its queues");
    rig.set(window + 0x70, 0);
    assert_eq!((rig.status(window), rig.get(window + 0x60)), (0, 0));
}

#[test]
fn a_chain_that_breaks_the_rules_stops_the_device_until_it_is_reset() {
    type Break = fn(&Rig, &mut Ring);
    let ram = BUFFER;
    let broken: [(&str, Break); 11] = [
        ("head beyond the queue", |rig, ring| ring.offer_head(rig, QUEUE_SIZE)),
        ("loop", |rig, ring| {
            ring.descriptor(rig, 0, BUFFER, 64, WRITE | NEXT, 0);
            ring.offer_head(rig, 0);
        }),
        ("next beyond the queue", |rig, ring| {
            ring.descriptor(rig, 0, BUFFER, 64, WRITE | NEXT, QUEUE_SIZE);
            ring.offer_head(rig, 0);
        }),
        ("beyond RAM", |rig, ring| ring.offer(rig, &[(RAM_BYTES, 64, WRITE)])),
        ("over the end of RAM", |rig, ring| ring.offer(rig, &[(RAM_BYTES - 63, 64, WRITE)])),
        ("over the end of addresses", |rig, ring| ring.offer(rig, &[(u64::MAX - 2, 64, WRITE)])),
        ("read after write", |rig, ring| ring.offer(rig, &[(BUFFER, 64, WRITE), (BUFFER, 64, 0)])),
        ("available index jumps", |rig, ring| rig.poke(ring.avail + 2, &(QUEUE_SIZE + 1).to_le_bytes())),
        ("available index goes back", |rig, ring| rig.poke(ring.avail + 2, &u16::MAX.to_le_bytes())),
        ("odd indirect table", |rig, ring| ring.offer(rig, &[(BUFFER, 17, 4)])),
        ("empty indirect table", |rig, ring| ring.offer(rig, &[(BUFFER, 0, 4)])),
    ];
    for (what, break_it) in broken {
        for (window, queues, queue) in [(NET, 2, 1), (DISK, 1, 0), (RNG, 1, 0)] {
            let rig = Rig::new();
            rig.poke(ram, &[0; 64]);
            let mut rings = rig.start_with(window, queues, VERSION_1 | INDIRECT_DESC);
            break_it(&rig, &mut rings[queue]);
            rings[queue].notify(&rig);
            stopped(&rig, window, what);
            rig.start(window, queues);
        }
        // The receive queue is looked at when a frame arrives.
        let rig = Rig::new();
        let mut rings = rig.start_with(NET, 2, VERSION_1 | INDIRECT_DESC);
        break_it(&rig, &mut rings[0]);
        assert_eq!(rig.devices.net(0).unwrap().deliver(&plain_packet(&[1; 60])), Delivered::NotReady);
        stopped(&rig, NET, what);
    }
}

#[test]
fn a_nested_indirect_table_stops_the_device() {
    let rig = Rig::new();
    let mut rings = rig.start_with(RNG, 1, VERSION_1 | INDIRECT_DESC);
    let mut descriptor = BUFFER.to_le_bytes().to_vec();
    descriptor.extend([16, 0, 0, 0, 4, 0, 0, 0]);
    rig.poke(BUFFER, &descriptor);
    rings[0].offer(&rig, &[(BUFFER, 16, 4)]);
    rings[0].notify(&rig);
    stopped(&rig, RNG, "nested");
}

#[test]
fn chains_of_the_wrong_shape_stop_their_device() {
    const DEV_RX: (u64, u32, usize) = (NET, 2, 0);
    const DEV_TX: (u64, u32, usize) = (NET, 2, 1);
    const DEV_DISK: (u64, u32, usize) = (DISK, 1, 0);
    const DEV_RNG: (u64, u32, usize) = (RNG, 1, 0);
    let shapes = [
        ("transmit into a buffer", DEV_TX, vec![(BUFFER, 100, WRITE)]),
        ("header and a buffer to write", DEV_TX, vec![(BUFFER, 100, 0), (BUFFER, 1, WRITE)]),
        ("no header of its own", DEV_TX, vec![(BUFFER, 11, 0)]),
        ("receive from a buffer", DEV_RX, vec![(BUFFER, 2000, 0)]),
        ("no status", DEV_DISK, vec![(BUFFER, 16, 0)]),
        ("no header", DEV_DISK, vec![(BUFFER, 513, WRITE)]),
        ("half a header", DEV_DISK, vec![(BUFFER, 15, 0), (BUFFER, 513, WRITE)]),
        ("endless request", DEV_DISK, vec![(BUFFER, 12 << 20, 0), (BUFFER, 513, WRITE)]),
        ("randomness from the guest", DEV_RNG, vec![(BUFFER, 10, 0)]),
    ];
    for (what, (window, queues, queue), chain) in shapes {
        let rig = Rig::new();
        let mut rings = rig.start(window, queues);
        rings[queue].offer(&rig, &chain);
        rings[queue].notify(&rig);
        if (window, queue) == (NET, 0) {
            assert_eq!(rig.devices.net(0).unwrap().deliver(&plain_packet(&[1; 60])), Delivered::NotReady);
        }
        stopped(&rig, window, what);
        assert!(rig.sink.frames.lock().is_empty());
    }
}

#[test]
fn a_frame_of_a_length_that_no_card_sends_is_dropped_and_counted_and_the_card_goes_on() {
    let rig = Rig::new();
    let mut rings = rig.start(NET, 2);
    for bytes in [12, 12 + 13, 12 + 9217, 60_000, 70_000] {
        rings[1].offer(&rig, &[(BUFFER, bytes, 0)]);
    }
    rings[1].notify(&rig);
    assert_eq!((rings[1].take_used(&rig).len(), rig.malformed()), (5, 0), "the buffers are given back");
    assert!(rig.sink.frames.lock().is_empty());
    assert_eq!(rig.devices.counters().tx_dropped, 5);
    rings[1].offer(&rig, &[(BUFFER, 100, 0)]);
    rings[1].notify(&rig);
    assert_eq!(rig.sink.frames.lock().len(), 1);
    assert_eq!(rig.status(NET) & NEEDS_RESET, 0);
}

#[test]
fn empty_descriptors_are_legal_and_hold_nothing() {
    let rig = Rig::new();
    let mut rings = rig.start(NET, 2);
    rings[1].offer(&rig, &[(BUFFER, 12, 0), (u64::MAX, 0, 0), (BUFFER + 12, 60, 0), (0, 0, 0)]);
    rings[1].notify(&rig);
    assert_eq!(rig.sink.frames.lock().iter().map(Vec::len).collect::<Vec<_>>(), [60]);
    assert_eq!((rings[1].take_used(&rig).len(), rig.malformed()), (1, 0));
}

#[test]
fn a_frame_that_asks_for_offloads_is_not_sent() {
    for header in [[1, 0], [0, 1]] {
        let rig = Rig::new();
        let mut rings = rig.start(NET, 2);
        rig.poke(BUFFER, &header);
        rings[1].offer(&rig, &[(BUFFER, 100, 0)]);
        rings[1].notify(&rig);
        stopped(&rig, NET, "offload");
        assert!(rig.sink.frames.lock().is_empty());
    }
}

#[test]
fn queues_that_cannot_be_are_not_ready_and_stop_the_device() {
    type Change = fn(&mut Ring) -> u32;
    let changes: [Change; 11] = [
        |_| 0,
        |_| 3,
        |_| 512,
        |_| 0x1_0008,
        |ring| (8, ring.desc += 8).0,
        |ring| (8, ring.avail += 1).0,
        |ring| (8, ring.used += 2).0,
        |ring| (8, ring.avail = 0).0,
        |ring| (8, ring.desc = RAM_BYTES - 16).0,
        |ring| (8, ring.used = u64::MAX - 3).0,
        |ring| (8, ring.desc = u64::MAX - 15).0,
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let rig = Rig::new();
        rig.negotiate(NET, VERSION_1);
        let mut ring = Ring::new(NET, 0);
        let size = change(&mut ring);
        if BUS.get() == BusKind::Pci && size > u16::MAX.into() {
            // Its register there has 16 bits.
            continue;
        }
        assert!(!rig.set_up(&ring, size), "{i}");
        assert_eq!((rig.status(NET) & NEEDS_RESET, rig.malformed()), (NEEDS_RESET, 1), "{i}");
        rig.start(NET, 2);
    }
}

#[test]
fn queues_cannot_be_changed_before_negotiation_or_while_in_use() {
    let rig = Rig::new();
    let ring = Ring::new(NET, 0);
    assert!(!rig.set_up(&ring, 8));
    rig.start(NET, 2);
    let state = rig.devices.capture().virtio;
    let other = Ring { desc: 0x50_0000, ..Ring::new(NET, 0) };
    rig.set_up(&other, 4);
    assert_eq!(rig.devices.capture().virtio[0].rings, state[0].rings);
    let unused = Ring { queue: 7, ..Ring::new(NET, 0) };
    assert!(!rig.set_up(&unused, 4));
    // DRIVER_OK without negotiation.
    rig.set(DISK + 0x70, 0);
    rig.set(DISK + 0x70, ACKNOWLEDGE | DRIVER | DRIVER_OK);
    assert_eq!(rig.status(DISK) & NEEDS_RESET, NEEDS_RESET);
}

/// Tables and available rings are here; the guest writes them, the devices do not.
const TABLES: u64 = 0x10_0000;
const TABLES_BYTES: u64 = 0x8_0000;
/// Used rings.
const USED: u64 = 0x20_0000;
const USED_BYTES: u64 = 0x8_0000;

#[derive(Clone, Debug)]
enum Step {
    Start(usize),
    Mmio { window: usize, offset: u64, value: u64, width: usize, write: bool },
    Pio { port: u16, value: u32, width: usize, write: bool },
    Descriptor { window: usize, queue: u32, index: u16, address: u64, bytes: u32, flags: u16, next: u16 },
    Offer { window: usize, queue: u32, heads: Vec<u16>, jump: u16, notify: bool },
    Deliver(usize),
    ResumeTransmit(usize),
}

fn in_region(base: u64, bytes: u64) -> std::ops::Range<u64> {
    base..base + bytes
}

/// Descriptors whose writable buffers are in BUFFER or not wholly in RAM, and whose indirect tables are where no
/// device writes anything that looks like a descriptor.
fn descriptor() -> impl Strategy<Value = Step> {
    let readable = (any::<u64>().prop_map(|address| address % (RAM_BYTES + 64)), 0..20_000u32, 0..=NEXT);
    let writable = (in_region(BUFFER, BUFFER_BYTES / 2), 0..(BUFFER_BYTES / 2) as u32, WRITE..=WRITE | NEXT);
    let outside = (RAM_BYTES - 16..u64::MAX, 17..u32::MAX, 0..4u16);
    let indirect = (in_region(TABLES, TABLES_BYTES), (0..64u32).prop_map(|n| n * 8), 4..8u16);
    let place = prop_oneof![readable, writable.clone(), writable, outside, indirect];
    (0..3usize, 0..2u32, 0..9u16, place, 0..9u16).prop_map(
        |(window, queue, index, (address, bytes, flags), next)| Step::Descriptor {
            window,
            queue,
            index,
            address,
            bytes,
            flags,
            next,
        },
    )
}

fn register_write() -> impl Strategy<Value = Step> {
    // Queue addresses stay in their regions or leave RAM; everything else is arbitrary.
    let table = prop_oneof![in_region(TABLES, TABLES_BYTES / 2), in_region(RAM_BYTES, 1 << 20)];
    let used = prop_oneof![in_region(USED, USED_BYTES / 2), in_region(RAM_BYTES, 1 << 20)];
    let register = prop_oneof![
        (Just(0x80u64), table.clone().prop_map(|address| address & !0xf)),
        (Just(0x80), table.clone()),
        (Just(0x90), table),
        (Just(0xa0), used),
        (prop_oneof![Just(0x84u64), Just(0x94), Just(0xa4)], prop_oneof![Just(0u64), any::<u64>()]),
        (Just(0x70), (0..256u64)),
        (Just(0x30), 0..4u64),
        (Just(0x38), prop_oneof![Just(8u64), Just(256), any::<u64>()]),
        (Just(0x44), 0..2u64),
        (Just(0x50), 0..4u64),
        (
            any::<u64>()
                .prop_map(|o| o % 0x1000)
                .prop_filter("queue addresses are above", |o| !(0x80..0xa8).contains(o)),
            any::<u64>()
        ),
    ];
    (
        0..3usize,
        register,
        prop_oneof![12 => Just(4usize), 1 => Just(1), 1 => Just(2), 1 => Just(8)],
        prop::bool::weighted(0.8),
    )
        .prop_map(|(window, (offset, value), width, write)| {
            // Only a whole write can be an address within its region.
            Step::Mmio { window, offset, value, width, write }
        })
}

fn step() -> impl Strategy<Value = Step> {
    // Mostly as many new entries as there are heads; descriptors 0 and 3 head the chains that a start leaves behind.
    let heads = prop::collection::vec(prop_oneof![4 => Just(0u16), 4 => Just(3u16), 1 => 0..9u16], 0..3);
    let jump = prop_oneof![40 => Just(0u16), 1 => 0..9u16, 1 => any::<u16>()];
    let offer = (0..3usize, 0..2u32, heads, jump, any::<bool>())
        .prop_map(|(window, queue, heads, jump, notify)| Step::Offer { window, queue, heads, jump, notify });
    let ports = prop_oneof![0x3f0..0x400u16, 0x600..0x610u16, 0x60..0x70u16, any::<u16>()];
    let pio = (ports, any::<u32>(), prop_oneof![Just(1usize), Just(2), Just(4)], any::<bool>())
        .prop_map(|(port, value, width, write)| Step::Pio { port, value, width, write });
    prop_oneof![
        4 => (0..3usize).prop_map(Step::Start),
        4 => register_write(),
        1 => pio,
        3 => descriptor(),
        12 => offer,
        4 => prop_oneof![0..2000usize, 0..10_000usize].prop_map(Step::Deliver),
        2 => (0..3usize).prop_map(Step::ResumeTransmit),
    ]
}

/// The guest, remembering what it wrote itself.
struct Guest {
    rig: Rig,
    own: Vec<u8>,
    /// Available indices.
    next: [[u16; 2]; 3],
}

impl Guest {
    fn poke(&mut self, address: u64, bytes: &[u8]) {
        self.rig.poke(address, bytes);
        self.own[address as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn ring(window: usize, queue: u32) -> Ring {
        let part = (window as u64 * 2 + u64::from(queue)) * 0x4000;
        Ring {
            desc: TABLES + part,
            avail: TABLES + part + 0x2000,
            used: USED + part,
            ..Ring::new(VIRTIO_MMIO_BASE + window as u64 * VIRTIO_MMIO_SIZE, queue)
        }
    }

    fn step(&mut self, step: Step) {
        let base = |window: usize| VIRTIO_MMIO_BASE + window as u64 * VIRTIO_MMIO_SIZE;
        match step {
            Step::Start(window) => {
                self.rig.negotiate(base(window), VERSION_1 | INDIRECT_DESC);
                for queue in 0..if window == 0 { 2 } else { 1 } {
                    let ring = Self::ring(window, queue);
                    self.next[window][queue as usize] = 0;
                    self.poke(ring.avail, &[0; 4]);
                    // Two good chains for this queue, from descriptors 0 and 3.
                    let requests = TABLES + TABLES_BYTES - 0x1000;
                    for first in [0, 3] {
                        let buffer = BUFFER + u64::from(first) * 0x1000;
                        let chain = match (window, queue) {
                            (0, 0) | (2, _) => [(buffer, 2000, WRITE), (0, 0, 0), (0, 0, 0)],
                            (0, _) => [(requests, 100, 0), (0, 0, 0), (0, 0, 0)],
                            _ => {
                                [(requests, 16, NEXT), (buffer, 512, WRITE | NEXT), (buffer + 512, 1, WRITE)]
                            }
                        };
                        for (i, (address, bytes, flags)) in chain.into_iter().enumerate() {
                            let index = first + i as u16;
                            let next = index + 1;
                            self.step(Step::Descriptor { window, queue, index, address, bytes, flags, next });
                        }
                    }
                    assert!(self.rig.set_up(&ring, QUEUE_SIZE.into()));
                }
                self.rig.set(base(window) + 0x70, 0xf);
            }
            Step::Mmio { window, offset, value, width, write } => {
                let mut data = value.to_le_bytes();
                self.rig.raw(base(window), offset, &mut data[..width], write);
            }
            Step::Pio { port, value, width, write } => {
                let mut data = value.to_le_bytes();
                if write {
                    self.rig.devices.pio_write(port, &data[..width]);
                } else {
                    self.rig.devices.pio_read(port, &mut data[..width]);
                }
            }
            Step::Descriptor { window, queue, index, address, bytes, flags, next } => {
                let mut descriptor = address.to_le_bytes().to_vec();
                descriptor.extend(bytes.to_le_bytes());
                descriptor.extend(flags.to_le_bytes());
                descriptor.extend(next.to_le_bytes());
                self.poke(Self::ring(window, queue).desc + 16 * u64::from(index), &descriptor);
            }
            Step::Offer { window, queue, heads, jump, notify } => {
                let ring = Self::ring(window, queue);
                let next = &mut self.next[window][queue as usize];
                let mut index = *next;
                *next = next.wrapping_add(heads.len() as u16).wrapping_add(jump);
                let next = *next;
                for head in heads {
                    self.poke(ring.avail + 4 + 2 * u64::from(index % QUEUE_SIZE), &head.to_le_bytes());
                    index = index.wrapping_add(1);
                }
                self.poke(ring.avail + 2, &next.to_le_bytes());
                if notify {
                    ring.notify(&self.rig);
                }
            }
            // A byte with the INDIRECT bit: nothing that the devices write can pass for a descriptor of a buffer.
            Step::Deliver(bytes) => {
                let _ = self.rig.devices.net(0).unwrap().deliver(&plain_packet(&vec![0xee; bytes]));
            }
            Step::ResumeTransmit(room) => {
                *self.rig.sink.room.lock() = room;
                self.rig.devices.net(0).unwrap().resume_transmit();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Arbitrary accesses and rings: no panic, an end, no byte written outside the buffers and used rings that the
    /// guest gave, every page that was written in the VMM's dirty bitmap, and the devices work after a reset.
    #[test]
    fn nothing_that_a_guest_does_reaches_beyond_its_buffers(steps in prop::collection::vec(step(), 1..120)) {
        let rig = Rig::new();
        rig.take_dirty();
        let mut guest = Guest { rig, own: vec![0; RAM_BYTES as usize], next: [[0; 2]; 3] };
        for step in steps {
            guest.step(step);
        }
        let dirty = guest.rig.take_dirty();
        // All pages that the guest has to do with, and those that the devices say they wrote.
        let regions = [(0, 0x10000), (TABLES, TABLES_BYTES), (USED, USED_BYTES), (BUFFER, BUFFER_BYTES)];
        let pages = regions.iter().flat_map(|(base, bytes)| base / 4096..(base + bytes) / 4096);
        for page in pages.map(|page| page as usize).chain(dirty.iter().map(|&page| page as usize)) {
            if guest.rig.page(page as PageIndex) != guest.own[page * PAGE_SIZE..][..PAGE_SIZE] {
                let address = (page * PAGE_SIZE) as u64;
                prop_assert!(dirty.contains(&(page as PageIndex)), "page at {address:#x} was written and is not dirty");
                let given = (BUFFER..BUFFER + BUFFER_BYTES).contains(&address)
                    || (USED..USED + USED_BYTES).contains(&address);
                prop_assert!(given, "page at {address:#x} was not given to a device");
            }
        }
        *guest.rig.sink.room.lock() = 1;
        guest.rig.sink.frames.lock().clear();
        let mut rings = guest.rig.start(NET, 2);
        guest.rig.poke(BUFFER, &[0; 12 + 60]);
        rings[1].offer(&guest.rig, &[(BUFFER, 12 + 60, 0)]);
        rings[1].notify(&guest.rig);
        prop_assert_eq!(guest.rig.sink.frames.lock().len(), 1);
    }
}

#[test]
fn every_page_that_a_device_writes_is_dirty() {
    let rig = Rig::new();
    let mut net = rig.start(NET, 2);
    let mut disk = rig.start(DISK, 1);
    let mut rng = rig.start(RNG, 1);
    net[0].offer(&rig, &[(BUFFER + 4090, 2000, WRITE)]);
    disk[0].offer(
        &rig,
        &[(BUFFER + 0x10000, 16, 0), (BUFFER + 0x20000, 3 * 4096, WRITE), (BUFFER + 0x30000, 1, WRITE)],
    );
    rng[0].offer(&rig, &[(BUFFER + 0x40fff, 2, WRITE)]);
    let before = rig.memory();
    assert!(rig.take_dirty().is_empty(), "the driver's own writes are not the VMM's");
    assert_eq!(rig.devices.net(0).unwrap().deliver(&plain_packet(&[7; 60])), Delivered::Yes);
    disk[0].notify(&rig);
    rng[0].notify(&rig);
    let page = |address: u64| (address / PAGE_SIZE as u64) as PageIndex;
    let mut expected: BTreeSet<_> = [0, 0x1000, 0x20000, 0x21000, 0x22000, 0x30000, 0x40000, 0x41000]
        .map(|offset| page(BUFFER + offset))
        .into();
    expected.extend([&net[0], &disk[0], &rng[0]].map(|ring| page(ring.used)));
    assert_eq!(rig.take_dirty(), expected);
    let after = rig.memory();
    for (index, (before, after)) in before.chunks(PAGE_SIZE).zip(after.chunks(PAGE_SIZE)).enumerate() {
        assert!(before == after || expected.contains(&(index as PageIndex)), "page {index}");
    }
}

on_pci_too!(
    a_chain_that_breaks_the_rules_stops_the_device_until_it_is_reset,
    a_nested_indirect_table_stops_the_device,
    chains_of_the_wrong_shape_stop_their_device,
    queues_that_cannot_be_are_not_ready_and_stop_the_device,
    queues_cannot_be_changed_before_negotiation_or_while_in_use,
    every_page_that_a_device_writes_is_dirty,
    nothing_that_a_guest_does_reaches_beyond_its_buffers,
);
