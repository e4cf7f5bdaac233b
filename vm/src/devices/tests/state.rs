//! Capture and restore: complete and exact, and a state that does not fit is refused.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

const BUFFER: u64 = 0x40_0000;

#[derive(Clone, Debug)]
enum Step {
    Send { bytes: u32, room: usize },
    Receive { buffers: usize, frames: usize },
    Read { sector: u64 },
    Random { bytes: u32 },
    Acknowledge(u64),
    Type(Vec<u8>),
    Uart { register: u16, value: u8 },
    UartRead { register: u16 },
    Power { port: u16, value: u16 },
    Port { port: u16, bytes: Vec<u8> },
    Platform { offset: u64, bytes: Vec<u8> },
    Select { window: u64, register: u64, value: u32 },
    Break { window: u64 },
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let window = prop_oneof![Just(NET), Just(DISK), Just(RNG)];
    // RTC, pvpanic, watchdog, and beside them.
    let port = prop_oneof![0x6e..0x73u16, 0x503..0x508u16, 0x60e..0x61au16];
    let bytes = || prop_oneof![Just(1usize), Just(2), Just(4)].prop_flat_map(|n| vec(any::<u8>(), n));
    let select = prop_oneof![Just(0x14u64), Just(0x24), Just(0x30)];
    prop_oneof![
        3 => (14..1515u32, 0..3usize).prop_map(|(bytes, room)| Step::Send { bytes, room }),
        3 => (0..3usize, 0..3usize).prop_map(|(buffers, frames)| Step::Receive { buffers, frames }),
        2 => (0..600u64).prop_map(|sector| Step::Read { sector }),
        1 => (1..5000u32).prop_map(|bytes| Step::Random { bytes }),
        2 => window.clone().prop_map(Step::Acknowledge),
        1 => vec(any::<u8>(), 1..100).prop_map(Step::Type),
        2 => (0..8u16, any::<u8>()).prop_map(|(register, value)| Step::Uart { register, value }),
        1 => (0..8u16).prop_map(|register| Step::UartRead { register }),
        1 => (0x600..0x606u16, any::<u16>()).prop_map(|(port, value)| Step::Power { port, value }),
        4 => (port, bytes()).prop_map(|(port, bytes)| Step::Port { port, bytes }),
        1 => (0x3e..0x52u64, vec(any::<u8>(), 1..=8)).prop_map(|(offset, bytes)| Step::Platform { offset, bytes }),
        1 => (window.clone(), select, any::<u32>())
            .prop_map(|(window, register, value)| Step::Select { window, register, value }),
        1 => window.prop_map(|window| Step::Break { window }),
        1 => Just(Step::Reset),
    ]
}

/// A guest with all its devices in use.
struct Guest {
    net: Vec<Ring>,
    disk: Vec<Ring>,
    rng: Vec<Ring>,
}

impl Guest {
    fn start(rig: &Rig) -> Self {
        Self { net: rig.start(NET, 2), disk: rig.start(DISK, 1), rng: rig.start(RNG, 1) }
    }

    /// Whether a driver would offer another chain of up to three descriptors.
    fn may_offer(rig: &Rig, ring: &Ring) -> bool {
        rig.status(ring.window) & NEEDS_RESET == 0
            && ring.next_avail.wrapping_sub(rig.peek_u16(ring.used + 2)) * 3 + 3 <= QUEUE_SIZE
    }

    fn step(&mut self, rig: &Rig, step: &Step) {
        match *step {
            Step::Send { bytes, room } => {
                *rig.sink.room.lock() = room;
                let tx = &mut self.net[1];
                if Self::may_offer(rig, tx) {
                    let at = BUFFER + u64::from(tx.next_desc) * 0x1000;
                    rig.poke(at, &[0; 12]);
                    tx.offer(rig, &[(at, 12, 0), (at + 12, bytes, 0)]);
                    tx.notify(rig);
                }
            }
            Step::Receive { buffers, frames } => {
                let rx = &mut self.net[0];
                for _ in 0..buffers {
                    if Self::may_offer(rig, rx) {
                        let at = BUFFER + 0x1_0000 + u64::from(rx.next_desc) * 0x1000;
                        rx.offer(rig, &[(at, 2000, WRITE)]);
                        rx.notify(rig);
                    }
                }
                for _ in 0..frames {
                    let _ = rig.devices.net(0).unwrap().deliver(&plain_packet(&[0x77; 60]));
                }
            }
            Step::Read { sector } => {
                let queue = &mut self.disk[0];
                if Self::may_offer(rig, queue) {
                    let at = BUFFER + 0x2_0000;
                    let mut header = vec![0; 8];
                    header.extend(sector.to_le_bytes());
                    rig.poke(at, &header);
                    queue.offer(rig, &[(at, 16, 0), (at + 0x1000, 512, WRITE), (at + 0x2000, 1, WRITE)]);
                    queue.notify(rig);
                }
            }
            Step::Random { bytes } => {
                let queue = &mut self.rng[0];
                if Self::may_offer(rig, queue) {
                    queue.offer(rig, &[(BUFFER + 0x3_0000, bytes, WRITE)]);
                    queue.notify(rig);
                }
            }
            Step::Acknowledge(window) => rig.set(window + 0x64, 3),
            Step::Type(ref bytes) => rig.devices.console_input(bytes),
            Step::Uart { register, value } => drop(rig.devices.pio_write(COM1_PORT + register, &[value])),
            Step::UartRead { register } => rig.devices.pio_read(COM1_PORT + register, &mut [0]),
            Step::Power { port, value } => drop(rig.devices.pio_write(port, &value.to_le_bytes())),
            Step::Port { port, ref bytes } => {
                rig.devices.pio_write(port, bytes);
                rig.devices.pio_read(port, &mut bytes.clone());
            }
            Step::Platform { offset, ref bytes } => {
                rig.devices.mmio_write(PLATFORM_BASE + offset, bytes);
                rig.devices.mmio_read(PLATFORM_BASE + offset, &mut bytes.clone());
            }
            Step::Select { window, register, value } => rig.set(window + register, value),
            Step::Break { window } => {
                let ring = match window {
                    NET => &mut self.net[1],
                    DISK => &mut self.disk[0],
                    _ => &mut self.rng[0],
                };
                ring.offer_head(rig, QUEUE_SIZE);
                ring.notify(rig);
            }
            Step::Reset => {
                rig.devices.reset();
                *self = Self::start(rig);
            }
        }
    }
}

/// The memory that this guest uses: rings and buffers.
fn used_memory(rig: &Rig) -> [(u64, Vec<u8>); 2] {
    [(0x10_0000, 0x3_0000), (BUFFER, 0x4_0000)].map(|(base, bytes)| (base, rig.peek(base, bytes)))
}

/// The state without its clocks, which run.
fn timeless(mut state: DevicesState) -> DevicesState {
    state.platform.guest_time_ns = 0;
    state.watchdog.left_ns = state.watchdog.left_ns.map(|_| 0);
    state.rtc = None;
    state
}

/// The bus has a place of its own in a machine's state.
pub(super) fn encoded(state: &DevicesState) -> Vec<u8> {
    postcard::to_allocvec(&(state, &state.pci)).unwrap()
}

pub(super) fn decoded(bytes: &[u8]) -> Option<DevicesState> {
    let (state, pci): (DevicesState, _) = postcard::from_bytes(bytes).ok()?;
    Some(DevicesState { pci, ..state })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Whatever the guest has done: the state survives encoding and a fresh set of devices unchanged, and what the
    /// guest does next has the same outcome there as it would have had here.
    #[test]
    fn a_captured_state_restored_elsewhere_is_the_same_state_and_goes_on_the_same(
        before in vec(step(), 0..40),
        after in vec(step(), 0..20),
    ) {
        let rig = Rig::new();
        let mut guest = Guest::start(&rig);
        for step in &before {
            guest.step(&rig, step);
        }
        rig.devices.quiesce();
        let state = rig.devices.capture();
        let memory = used_memory(&rig);

        let there = Rig::new();
        for (base, bytes) in &memory {
            there.poke(*base, bytes);
        }
        there.devices.restore(&decoded(&encoded(&state)).unwrap()).unwrap();
        prop_assert!(there.chip.0.lock().is_empty(), "restoring touched a line");
        prop_assert!(used_memory(&there) == memory, "restoring touched memory");
        let restored = there.devices.capture();
        prop_assert!(restored.platform.guest_time_ns >= state.platform.guest_time_ns);
        prop_assert_eq!((&restored.rtc, restored.watchdog), (&state.rtc, state.watchdog));
        prop_assert_eq!(timeless(restored), timeless(state));

        for rig in [&rig, &there] {
            rig.screen.0.lock().clear();
            rig.sink.frames.lock().clear();
            // Input that waits on the host is not the machine's: let none wait here either.
            rig.devices.com1.lock().forget_input();
            *rig.sink.room.lock() = 9;
            rig.devices.resume();
        }
        for step in after.iter().filter(|step| !matches!(step, Step::Random { .. })) {
            let mut same = Guest {
                net: guest.net.iter().map(Ring::copy).collect(),
                disk: guest.disk.iter().map(Ring::copy).collect(),
                rng: guest.rng.iter().map(Ring::copy).collect(),
            };
            same.step(&there, step);
            guest.step(&rig, step);
        }
        prop_assert_eq!(timeless(there.devices.capture()), timeless(rig.devices.capture()));
        prop_assert!(used_memory(&there) == used_memory(&rig));
        prop_assert_eq!(&*there.screen.0.lock(), &*rig.screen.0.lock());
        prop_assert_eq!(&*there.sink.frames.lock(), &*rig.sink.frames.lock());
        for gsi in NET_GSI..NET_GSI + 3 {
            prop_assert_eq!(there.chip.level(gsi), rig.chip.level(gsi));
        }
    }

    /// A state with arbitrary damage is taken over as it is, or refused without a change; afterwards the devices can
    /// be used.
    #[test]
    fn a_damaged_state_is_refused_whole_or_taken_as_it_is(
        steps in vec(step(), 0..20),
        flips in vec((any::<prop::sample::Index>(), 0..8u32), 1..4),
    ) {
        let rig = Rig::new();
        let mut guest = Guest::start(&rig);
        for step in &steps {
            guest.step(&rig, step);
        }
        rig.devices.quiesce();
        let mut bytes = encoded(&rig.devices.capture());
        for (index, bit) in flips {
            let index = index.index(bytes.len());
            bytes[index] ^= 1 << bit;
        }
        if let Some(damaged) = decoded(&bytes) {
            let there = Rig::new();
            let fresh = there.devices.capture();
            let expected = match there.devices.restore(&damaged) {
                Ok(()) => damaged,
                Err(_) => fresh,
            };
            prop_assert_eq!(timeless(there.devices.capture()), timeless(expected));
            there.devices.resume();
            let _ = there.devices.net(0).unwrap().deliver(&plain_packet(&[1; 60]));
            there.devices.reset();
            Guest::start(&there);
        }
    }
}

#[test]
fn states_that_cannot_be_are_refused_by_name_and_change_nothing() {
    let rig = Rig::new();
    Guest::start(&rig);
    rig.devices.quiesce();
    let good = rig.devices.capture();
    type Change = fn(&mut DevicesState);
    let changes: [(&str, Change); 16] = [
        ("state of 2 virtio devices", |state| state.virtio.truncate(2)),
        ("COM1: 65 bytes", |state| state.com1.in_buffer = vec![0; 65]),
        ("power management", |state| state.power.control = 1 << 13),
        ("guest time", |state| state.platform.guest_time_ns = u64::MAX),
        ("state of a device of type 2", |state| state.virtio.swap(0, 1)),
        ("status 0x10f", |state| state.virtio[0].status |= 0x100),
        ("status 0x7", |state| state.virtio[0].status = 7),
        ("features 0x0", |state| state.virtio[0].driver_features = 0),
        ("features 0x100000004", |state| state.virtio[0].driver_features |= 4),
        ("interrupt status 0x4", |state| state.virtio[0].interrupt_status = 4),
        ("1 queues of 3", |state| state.virtio[0].rings.truncate(1)),
        ("before feature negotiation", |state| state.virtio[0].status = 3),
        ("queue of 7 entries", |state| state.virtio[0].rings[0].size = 7),
        ("queue of 512 entries", |state| state.virtio[0].rings[0].size = 512),
        ("misaligned or not in RAM", |state| state.virtio[0].rings[0].used = RAM_BYTES),
        ("9 chains taken of 8", |state| {
            state.virtio[0].rings[0].position = Some(RingPosition { next_avail: 9, next_used: 0 });
        }),
    ];
    let there = Rig::new();
    let fresh = timeless(there.devices.capture());
    for (what, change) in changes {
        let mut bad = good.clone();
        change(&mut bad);
        let error = there.devices.restore(&bad).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
        assert_eq!(timeless(there.devices.capture()), fresh, "{what}");
    }
    there.devices.restore(&good).unwrap();
}

#[test]
fn resuming_after_a_restore_drives_the_lines_to_where_they_were() {
    let rig = Rig::new();
    let mut guest = Guest::start(&rig);
    guest.step(&rig, &Step::Send { bytes: 60, room: 9 });
    rig.devices.quiesce();
    let state = rig.devices.capture();
    let there = Rig::on(rig.ram.clone());
    there.devices.restore(&state).unwrap();
    there.devices.resume();
    assert!(there.chip.level(NET_GSI));
    assert!(!there.chip.level(NET_GSI + 1));
}

on_pci_too!(
    states_that_cannot_be_are_refused_by_name_and_change_nothing,
    resuming_after_a_restore_drives_the_lines_to_where_they_were,
    a_captured_state_restored_elsewhere_is_the_same_state_and_goes_on_the_same,
    a_damaged_state_is_refused_whole_or_taken_as_it_is,
);
