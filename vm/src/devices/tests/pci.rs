//! The PCI bus, its functions' configuration space, and MSI-X.

use super::*;
use crate::devices::plain_packet;
use ft_ram::layout::PCI_WINDOW_SIZE;
use proptest::prelude::*;

const BUFFER: u64 = 0x40_0000;
const TX: usize = 1;
const BAR_BYTES: u64 = 0x8000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;
const MSIX: u8 = 0x11;
const VENDOR_SPECIFIC: u8 = 9;

fn rig() -> Rig {
    BUS.set(BusKind::Pci);
    Rig::new()
}

impl Rig {
    /// Reads configuration space at any width.
    fn config(&self, device: u32, register: u32, bytes: usize) -> u32 {
        let mut data = [0; 4];
        self.select(device, register);
        self.devices.pio_read(0xcfc + (register & 3) as u16, &mut data[..bytes]);
        u32::from_le_bytes(data)
    }

    /// Capabilities of a window's device: identity and place.
    fn capabilities(&self, window: u64) -> Vec<(u8, u32)> {
        let device = Self::index(window) as u32 + 1;
        assert_eq!(self.config(device, 6, 2) & 0x10, 0x10, "there are capabilities");
        let mut found = vec![];
        let mut at = self.config(device, 0x34, 1);
        while at != 0 {
            found.push((self.config(device, at, 1) as u8, at));
            at = self.config(device, at + 1, 1);
        }
        found
    }

    /// Message control of MSI-X.
    fn control_msix(&self, window: u64, control: u16) {
        let at = self.capabilities(window).iter().find(|(identity, _)| *identity == MSIX).unwrap().1;
        self.configure(window, at + 2, &control.to_le_bytes());
    }

    fn bar_set(&self, window: u64, offset: u64, data: &[u8]) {
        assert_eq!(self.devices.mmio_write(Self::bar(window) + offset, data), None);
    }

    fn bar_get(&self, window: u64, offset: u64, bytes: usize) -> u64 {
        let mut data = [0; 8];
        self.devices.mmio_read(Self::bar(window) + offset, &mut data[..bytes]);
        u64::from_le_bytes(data)
    }

    /// Gives a vector its message, of this vector number for processor 0, and its mask.
    fn set_entry(&self, window: u64, vector: u64, number: u32, masked: bool) {
        let at = TABLE + vector * 16;
        self.bar_set(window, at, &0xfee0_0000u64.to_le_bytes());
        self.bar_set(window, at + 8, &number.to_le_bytes());
        self.bar_set(window, at + 12, &u32::from(masked).to_le_bytes());
    }

    /// Assigns vectors to the configuration and to each queue, as a driver does.
    fn assign(&self, window: u64, config: u16, queues: &[u16]) {
        self.bar_set(window, 0x10, &config.to_le_bytes());
        for (queue, vector) in (0u16..).zip(queues) {
            self.bar_set(window, 0x16, &queue.to_le_bytes());
            self.bar_set(window, 0x1a, &vector.to_le_bytes());
        }
    }

    /// The vectors of the messages since the last call.
    fn messages(&self) -> Vec<u32> {
        self.chip.1.lock().drain(..).map(|message| message.data).collect()
    }
}

fn send(rig: &Rig, tx: &mut Ring) {
    rig.poke(BUFFER, &[0; 72]);
    tx.offer(rig, &[(BUFFER, 72, 0)]);
    tx.notify(rig);
}

/// A card with MSI-X on: vectors 0x30 for the configuration, 0x31 and 0x32 for the queues.
fn card_with_messages(rig: &Rig) -> Vec<Ring> {
    let rings = rig.start(NET, 2);
    (0..3).for_each(|vector| rig.set_entry(NET, vector, 0x30 + vector as u32, false));
    rig.control_msix(NET, 1 << 15);
    rig.assign(NET, 0, &[1, 2]);
    rings
}

#[test]
fn the_bus_is_found_as_kernels_look_for_it() {
    let rig = rig();
    // Linux' test of configuration mechanism #1.
    rig.devices.pio_write(0xcfb, &[1]);
    rig.devices.pio_write(0xcf8, &0x8000_0000u32.to_le_bytes());
    let mut address = [0; 4];
    rig.devices.pio_read(0xcf8, &mut address);
    assert_eq!(u32::from_le_bytes(address), 0x8000_0000);
    assert_eq!(rig.config(0, 0x0a, 2), 0x0600, "a host bridge");
    for (device, id, class) in [(1, 0x1041, 0x0200), (2, 0x1042, 0x0180), (3, 0x1044, 0xff00)] {
        assert_eq!(rig.config(device, 0, 4), id << 16 | 0x1af4, "device {device}");
        assert_eq!((rig.config(device, 2, 2), rig.config(device, 0, 1)), (id, 0xf4), "at any width");
        assert_eq!(rig.config(device, 0x0a, 2), class);
        assert_eq!((rig.config(device, 0x0e, 1), rig.config(device, 0x3d, 1)), (0, 1));
    }
    assert_eq!(rig.config(4, 0, 4), u32::MAX);
    // Other functions, other buses, and with the address disabled.
    for address in [1u32 << 31 | 1 << 11 | 1 << 8, 1 << 31 | 1 << 16 | 1 << 11, 1 << 11] {
        rig.devices.pio_write(0xcf8, &address.to_le_bytes());
        let mut data = [0; 4];
        rig.devices.pio_read(0xcfc, &mut data);
        assert_eq!(data, [0xff; 4], "{address:#x}");
    }
    assert_eq!(rig.devices.counters().unknown_io, 0, "looking for devices is no fault");
}

#[test]
fn the_capabilities_lead_to_the_registers() {
    let rig = rig();
    for (window, device_id, configuration) in [(NET, 1, true), (DISK, 2, true), (RNG, 4, false)] {
        let device = Rig::index(window) as u32 + 1;
        let (mut kinds, mut msix) = (vec![], 0);
        for (identity, at) in rig.capabilities(window) {
            match identity {
                VENDOR_SPECIFIC => {
                    let kind = rig.config(device, at + 3, 1);
                    let (bar, offset) = (rig.config(device, at + 4, 1), rig.config(device, at + 8, 4));
                    let bytes = rig.config(device, at + 12, 4);
                    assert!(bar == 0 && u64::from(offset + bytes) <= BAR_BYTES, "kind {kind}");
                    kinds.push(kind);
                }
                MSIX => msix = at,
                other => panic!("capability {other}"),
            }
        }
        let expected: &[u32] = if configuration { &[1, 2, 3, 4, 5] } else { &[1, 2, 3, 5] };
        assert_eq!(kinds, expected, "type {device_id}");
        let queues = rig.bar_get(window, 0x12, 2);
        assert_eq!(u64::from(rig.config(device, msix + 2, 2)), queues, "a vector a queue and one more");
        assert_eq!((rig.config(device, msix + 4, 4), rig.config(device, msix + 8, 4)), (0x4000, 0x5000));
    }
}

#[test]
fn a_bar_tells_its_size_and_is_decoded_where_the_guest_moves_it_within_the_window() {
    let rig = rig();
    let queues_at = |base: u64| {
        let mut data = [0; 2];
        rig.devices.mmio_read(base + 0x12, &mut data);
        u16::from_le_bytes(data)
    };
    assert_eq!(queues_at(Rig::bar(NET)), 3);
    rig.configure(NET, 0x10, &u32::MAX.to_le_bytes());
    assert_eq!(rig.config(1, 0x10, 4), (BAR_BYTES as u32).wrapping_neg());
    let window_end = PCI_WINDOW_BASE + PCI_WINDOW_SIZE;
    for base in [PCI_WINDOW_BASE + 0x100_0000, window_end - BAR_BYTES] {
        rig.configure(NET, 0x10, &(base as u32).to_le_bytes());
        assert_eq!((queues_at(base), queues_at(Rig::bar(NET))), (3, 0xffff));
        // Not while it is disabled.
        rig.configure(NET, 4, &[0]);
        assert_eq!(queues_at(base), 0xffff);
        rig.configure(NET, 4, &[2]);
        assert_eq!(queues_at(base), 3);
    }
    // Over RAM, the platform device, the interrupt controllers, nothing at all, and half out of the window.
    for base in [0, 0x10_0000, PLATFORM_BASE & !0x7fff, 0xfee0_0000, 0xffff_8000, window_end - BAR_BYTES / 2]
    {
        rig.configure(NET, 0x10, &(base as u32).to_le_bytes());
        let base = base & !(BAR_BYTES - 1);
        if !(PCI_WINDOW_BASE..window_end).contains(&base) {
            assert_eq!(queues_at(base), 0xffff, "{base:#x}");
        }
    }
    let mut vcpus = [0; 8];
    rig.devices.mmio_read(PLATFORM_BASE + ft_ram::layout::platform::VCPUS, &mut vcpus);
    assert_eq!(u64::from_le_bytes(vcpus), 2);
    // Over another's: the first has it.
    rig.configure(NET, 0x10, &(Rig::bar(DISK) as u32).to_le_bytes());
    assert_eq!(queues_at(Rig::bar(DISK)), 3);
    rig.configure(NET, 0x10, &(Rig::bar(NET) as u32).to_le_bytes());
    assert_eq!(queues_at(Rig::bar(DISK)), 1);
}

#[test]
fn each_queue_and_the_configuration_interrupt_by_the_vector_that_they_were_given() {
    let rig = rig();
    let mut rings = card_with_messages(&rig);
    send(&rig, &mut rings[TX]);
    assert_eq!(rig.messages(), [0x32]);
    rings[0].offer(&rig, &[(BUFFER, 2000, WRITE)]);
    assert_eq!(rig.devices.net(0).unwrap().deliver(&plain_packet(&[1; 60])), Delivered::Yes);
    assert_eq!(rig.messages(), [0x31]);
    assert_eq!(rig.bar_get(NET, 0x1000, 1), 0, "who asks by messages is told nothing of queues");
    rings[TX].offer_head(&rig, QUEUE_SIZE);
    rings[TX].notify(&rig);
    assert_eq!(rig.messages(), [0x30]);
    assert!(!rig.chip.level(NET_GSI) && rig.chip.edges(NET_GSI) == 0);
    assert_eq!(rig.bar_get(NET, 0x1000, 1), 2);

    // A vector that is not there is none, and a reset leaves none.
    let mut rings = rig.start(NET, 2);
    assert_eq!(rig.bar_get(NET, 0x10, 2), 0xffff);
    rig.assign(NET, 4, &[1, 7]);
    assert_eq!((rig.bar_get(NET, 0x10, 2), rig.bar_get(NET, 0x1a, 2)), (0xffff, 0xffff));
    send(&rig, &mut rings[TX]);
    assert!(rig.messages().is_empty());
}

#[test]
fn a_masked_vector_waits_and_is_sent_once_when_it_is_unmasked() {
    let rig = rig();
    let mut rings = card_with_messages(&rig);
    type Act<'a> = &'a dyn Fn();
    let masks: [(Act<'_>, Act<'_>); 3] = [
        (&|| rig.bar_set(NET, TABLE + 2 * 16 + 12, &[1, 0, 0, 0]), &|| {
            rig.bar_set(NET, TABLE + 2 * 16 + 12, &[0; 4]);
        }),
        (&|| rig.control_msix(NET, 3 << 14), &|| rig.control_msix(NET, 1 << 15)),
        // One word for data and mask.
        (&|| rig.bar_set(NET, TABLE + 2 * 16 + 8, &[0x32, 0, 0, 0, 1, 0, 0, 0]), &|| {
            rig.bar_set(NET, TABLE + 2 * 16 + 8, &[0x32, 0, 0, 0, 0, 0, 0, 0]);
        }),
    ];
    for (mask, unmask) in masks {
        mask();
        send(&rig, &mut rings[TX]);
        send(&rig, &mut rings[TX]);
        assert_eq!((rig.messages(), rig.bar_get(NET, PENDING, 8)), (vec![], 1 << 2));
        unmask();
        assert_eq!((rig.messages(), rig.bar_get(NET, PENDING, 8)), (vec![0x32], 0));
    }
    // With MSI-X off, what waits is forgotten and the line serves.
    rig.control_msix(NET, 3 << 14);
    send(&rig, &mut rings[TX]);
    rig.control_msix(NET, 0);
    assert_eq!(rig.bar_get(NET, PENDING, 8), 0);
    send(&rig, &mut rings[TX]);
    assert!(rig.messages().is_empty() && rig.chip.level(NET_GSI));
    // Until it is disabled.
    assert_eq!(rig.config(1, 6, 2) & 8, 8, "the status says so");
    rig.configure(NET, 4, &0x406u16.to_le_bytes());
    assert!(!rig.chip.level(NET_GSI));
    rig.configure(NET, 4, &6u16.to_le_bytes());
    assert!(rig.chip.level(NET_GSI));
    assert_eq!((rig.bar_get(NET, 0x1000, 1), rig.chip.level(NET_GSI)), (1, false));
}

#[test]
fn a_message_to_anything_but_the_interrupt_controllers_goes_nowhere() {
    let rig = rig();
    let mut rings = card_with_messages(&rig);
    for address in [BUFFER, 0xfef0_0000, 0x1_fee0_0000] {
        rig.bar_set(NET, TABLE + 2 * 16, &address.to_le_bytes());
        send(&rig, &mut rings[TX]);
    }
    assert_eq!((rig.messages(), rig.devices.counters().unknown_io), (vec![], 3));
    assert_eq!(rig.peek(BUFFER, 4), [0; 4]);
}

#[test]
fn a_function_that_is_no_bus_master_reaches_no_memory_and_goes_on_when_it_is_one() {
    let rig = rig();
    let mut rings = card_with_messages(&rig);
    rings[0].offer(&rig, &[(BUFFER, 2000, WRITE)]);
    rig.configure(NET, 4, &[2]);
    rig.take_dirty();
    send(&rig, &mut rings[TX]);
    assert_eq!(rig.devices.net(0).unwrap().deliver(&[1; 60]), Delivered::NotReady);
    assert!(rig.take_dirty().is_empty() && rig.sink.frames.lock().is_empty() && rig.messages().is_empty());
    rig.configure(NET, 4, &[6]);
    assert_eq!((rig.sink.frames.lock().len(), rig.messages()), (1, vec![0x32]));
}

#[test]
fn the_bar_is_reached_by_configuration_space_as_well() {
    let rig = rig();
    let capabilities = rig.capabilities(NET);
    let of_kind =
        |&&(identity, at): &&(u8, u32)| identity == VENDOR_SPECIFIC && rig.config(1, at + 3, 1) == 5;
    let at = capabilities.iter().find(of_kind).unwrap().1;
    let point = |offset: u32, bytes: u32| {
        rig.configure(NET, at + 8, &offset.to_le_bytes());
        rig.configure(NET, at + 12, &bytes.to_le_bytes());
    };
    point(0x12, 2);
    assert_eq!(rig.config(1, at + 16, 2), 3, "queues");
    point(0x16, 2);
    rig.configure(NET, at + 16, &[1, 0]);
    assert_eq!(rig.bar_get(NET, 0x16, 2), 1);
    for (offset, bytes) in [(0x13, 2), (0x12, 3), (0x8000, 4), (u32::MAX, 1), (0x12, 0)] {
        point(offset, bytes);
        assert_eq!(rig.config(1, at + 16, 4), 0, "{offset:#x}, {bytes}");
    }
    // With another BAR it leads nowhere.
    point(0x12, 2);
    rig.configure(NET, at + 4, &[1]);
    assert_eq!(rig.config(1, at + 16, 2), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Select { device: u32, register: u32 },
    Port { port: u16, data: Vec<u8>, write: bool },
    Bar { window: usize, offset: u64, data: Vec<u8>, write: bool },
    Anywhere { address: u64, data: Vec<u8>, write: bool },
    Start(usize),
    Receive,
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let data = || {
        let byte = prop_oneof![Just(0u8), Just(0xff), any::<u8>()];
        prop_oneof![Just(1usize), Just(2), Just(4), Just(4), Just(8), 1..9usize]
            .prop_flat_map(move |bytes| prop::collection::vec(byte.clone(), bytes))
    };
    let part =
        prop_oneof![4 => 0..0x38u64, 1 => 0..0x8000u64, 4 => 0x4000..0x4040u64, 1 => 0x3000..0x3010u64];
    let near = PCI_WINDOW_BASE - 16..PCI_WINDOW_BASE + 0x2_0000;
    prop_oneof![
        8 => (0..5u32, 0..64u32).prop_map(|(device, register)| Step::Select { device, register: register * 4 }),
        8 => (0xcf6..0xd02u16, data(), any::<bool>())
            .prop_map(|(port, mut data, write)| {
                data.truncate(4);
                Step::Port { port, data, write }
            }),
        16 => (0..3usize, part, data(), any::<bool>())
            .prop_map(|(window, offset, data, write)| Step::Bar { window, offset, data, write }),
        2 => (prop_oneof![near, any::<u64>()], data(), any::<bool>())
            .prop_map(|(address, data, write)| Step::Anywhere { address, data, write }),
        2 => (0..3usize).prop_map(Step::Start),
        1 => Just(Step::Receive),
        1 => Just(Step::Reset),
    ]
}

fn window(index: usize) -> u64 {
    [NET, DISK, RNG][index]
}

fn take(rig: &Rig, step: &Step) {
    match step {
        Step::Select { device, register } => rig.select(*device, *register),
        Step::Port { port, data, write: true } => drop(rig.devices.pio_write(*port, data)),
        Step::Port { port, data, write: false } => rig.devices.pio_read(*port, &mut data.clone()),
        Step::Bar { window: index, offset, data, write } => {
            let address = Rig::bar(window(*index)) + offset;
            match write {
                true => drop(rig.devices.mmio_write(address, data)),
                false => rig.devices.mmio_read(address, &mut data.clone()),
            }
        }
        Step::Anywhere { address, data, write: true } => drop(rig.devices.mmio_write(*address, data)),
        Step::Anywhere { address, data, write: false } => {
            rig.devices.mmio_read(*address, &mut data.clone());
        }
        // Where its BAR still is where it was.
        Step::Start(index) => {
            let window = window(*index);
            let at = (Rig::bar(window) as u32).to_le_bytes();
            rig.configure(window, 0x10, &at);
            rig.negotiate(window, VERSION_1);
        }
        Step::Receive => drop(rig.devices.net(0).unwrap().deliver(&[1; 60])),
        Step::Reset => rig.devices.reset(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Any access at any width: no panic, no byte of memory touched, nothing but messages and lines of the functions
    /// at the chips; the state is that of a machine, is the same elsewhere, and after a reset all is as at power-on.
    #[test]
    fn whatever_the_guest_does_to_the_bus_the_state_is_whole_and_memory_is_left_alone(
        steps in prop::collection::vec(step(), 1..150)
    ) {
        let rig = rig();
        let fresh = rig.devices.capture().pci;
        rig.take_dirty();
        for step in &steps {
            take(&rig, step);
        }
        prop_assert!(rig.take_dirty().is_empty());
        prop_assert!(rig.chip.1.lock().iter().all(Msi::is_interrupt));
        let state = rig.devices.capture();
        let there = Rig::new();
        there.devices.restore(&state::decoded(&state::encoded(&state)).unwrap()).unwrap();
        let restored = there.devices.capture();
        prop_assert_eq!((&restored.virtio, &restored.pci), (&state.virtio, &state.pci));
        there.devices.quiesce();
        there.devices.resume();
        for gsi in NET_GSI..NET_GSI + 3 {
            prop_assert_eq!(there.chip.level(gsi), rig.chip.level(gsi));
        }
        rig.devices.reset();
        prop_assert_eq!(rig.devices.capture().pci, fresh);
        let mut rings = card_with_messages(&rig);
        rig.messages();
        send(&rig, &mut rings[TX]);
        prop_assert_eq!(rig.messages(), [0x32]);
    }
}

#[test]
fn states_of_the_bus_that_cannot_be_are_refused_by_name_and_change_nothing() {
    let rig = rig();
    card_with_messages(&rig);
    let good = rig.devices.capture();
    type Change = fn(&mut PciState);
    let changes: [(&str, Change); 13] = [
        ("0 functions, the machine has 3", |pci| pci.functions.clear()),
        ("configuration address 0x1", |pci| pci.address = 1),
        ("command 0x1", |pci| pci.functions[0].command = 1),
        ("BAR at 0xe0000004", |pci| pci.functions[0].bar = 0xe000_0004),
        ("vectors of 1 queues of 3", |pci| pci.functions[0].queue_vectors.truncate(1)),
        ("vector 4", |pci| pci.functions[0].config_vector = 4),
        ("vector 65534", |pci| pci.functions[0].queue_vectors[1] = 0xfffe),
        ("2 vectors of 4", |pci| pci.functions[0].msix.entries.truncate(2)),
        ("5 vectors of 4", |pci| {
            let first = pci.functions[0].msix.entries[0];
            pci.functions[0].msix.entries.push(first);
        }),
        ("address 0xfee00002", |pci| pci.functions[0].msix.entries[1].address = 0xfee0_0002),
        ("vector 1 waits for nothing", |pci| pci.functions[0].msix.pending = 2),
        ("vector 4 waits for nothing", |pci| pci.functions[0].msix.pending = 16),
        ("vector 0 waits for nothing", |pci| {
            pci.functions[1].msix.entries[0].masked = true;
            pci.functions[1].msix.pending = 1;
        }),
    ];
    let there = Rig::new();
    let fresh = there.devices.capture().pci;
    for (what, change) in changes {
        let mut bad = good.clone();
        change(bad.pci.as_mut().unwrap());
        let error = there.devices.restore(&bad).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
        assert_eq!(there.devices.capture().pci, fresh, "{what}");
    }
    // A machine without the bus, and one with it that is told of none.
    BUS.set(BusKind::Mmio);
    let error = Rig::new().devices.restore(&good).unwrap_err().to_string();
    assert!(error.contains("3 functions, the machine has 0"), "{error}");
    let error = there.devices.restore(&DevicesState { pci: None, ..good.clone() }).unwrap_err().to_string();
    assert!(error.contains("0 functions, the machine has 3"), "{error}");
    there.devices.restore(&good).unwrap();
}

#[test]
fn a_machine_is_taken_over_with_a_line_that_two_functions_share() {
    let chip = Arc::new(Chip::default());
    let lines = Intx::new(Arc::clone(&chip) as Arc<dyn IrqChip>);
    lines.set(PCI_GSI_BASE, 0, true);
    lines.set(PCI_GSI_BASE, 8, true);
    lines.set(PCI_GSI_BASE, 0, false);
    assert!(chip.level(NET_GSI), "the other one's");
    lines.set(PCI_GSI_BASE, 8, false);
    assert!(!chip.level(NET_GSI));
    let there = Intx::new(Arc::clone(&chip) as Arc<dyn IrqChip>);
    there.note(PCI_GSI_BASE, 8, true);
    there.note(PCI_GSI_BASE, 0, false);
    assert!(!chip.level(NET_GSI), "the chips have their own state");
    there.drive(PCI_GSI_BASE);
    assert!(chip.level(NET_GSI));
}
