use super::*;
use crate::devices::{ConsoleSink, Devices, IrqChip, Msi, Wiring};
#[cfg(not(feature = "next-version"))]
use crate::engine::soft::state::SentFrame;
use crate::spec::{BusKind, CpuModel, DiskSpec, EngineKind, NetSpec};
use ft_ram::GuestRam;
use proptest::prelude::*;
use std::sync::{Arc, LazyLock};

fn spec() -> MachineSpec {
    MachineSpec {
        engine: EngineKind::Kvm,
        vcpus: 2,
        ram_bytes: 64 << 20,
        nets: vec![NetSpec { mac: [2, 0, 0, 0, 0, 1], mtu: 1500 }],
        disks: Vec::new(),
        rng: true,
        bus: BusKind::Mmio,
        cpu: CpuModel::Host,
    }
}

struct Nowhere;

impl ConsoleSink for Nowhere {
    fn write(&mut self, _: &[u8]) {}
}

impl IrqChip for Nowhere {
    fn set_level(&self, _: u32, _: bool) {}

    fn signal(&self, _: Msi) {}
}

/// The state of fresh devices.
fn devices(bus: BusKind) -> DevicesState {
    let spec = MachineSpec { bus, ..spec() };
    let ram = GuestRam::new(spec.ram_bytes).unwrap();
    let wiring = Wiring { frames: None, console: Box::new(Nowhere), disks: Vec::new() };
    Devices::new(&spec, &ram, Arc::new(Nowhere), wiring).unwrap().capture()
}

fn vcpu(seed: u64) -> VcpuState {
    VcpuState {
        cpuid: vec![kvm_cpuid_entry2 { function: 1, eax: 7, ..Default::default() }; 3],
        tsc_khz: 2_600_000,
        tsc_offset: Some(seed),
        mp_state: kvm_mp_state { mp_state: 3 },
        regs: kvm_regs { rip: seed, ..Default::default() },
        sregs: Sregs { base: kvm_sregs { cr3: seed, ..Default::default() }, pdptrs: Some([1, 2, 3, seed]) },
        xcrs: Default::default(),
        xsave: (0..4096u32).map(|i| (u64::from(i) * seed) as u8).collect(),
        debug_regs: Default::default(),
        lapic: Default::default(),
        msrs: vec![kvm_msr_entry { index: 0x10, data: seed, ..Default::default() }; 5],
        events: Default::default(),
    }
}

fn state() -> MachineState {
    let chip = kvm_irqchip::default();
    MachineState {
        spec: spec(),
        engine: EngineState::Kvm(Box::new(KvmState {
            vcpus: vec![vcpu(3), vcpu(5)],
            vm: VmState {
                pic_master: chip,
                pic_slave: chip,
                ioapic: chip,
                pit: Default::default(),
                clock: kvm_clock_data { clock: 77, ..Default::default() },
            },
        })),
        devices: devices(BusKind::Mmio),
        #[cfg(feature = "next-version")]
        mark: 0,
    }
}

static ENCODED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = b"before".to_vec();
    encode(&state(), STATE_VERSION, &mut bytes).unwrap();
    assert_eq!(&bytes[..6], b"before");
    bytes.split_off(6)
});

/// The body with a header that fits it.
fn with_header(version: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = ENCODED[..HEADER_BYTES].to_vec();
    bytes[4..6].copy_from_slice(&version.to_le_bytes());
    bytes[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(body);
    let crc = checksum(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn refusal(bytes: &[u8]) -> StateError {
    decode(bytes).err().expect("refused")
}

#[test]
fn a_state_comes_back_as_it_was() {
    let back = decode(&ENCODED).unwrap();
    let EngineState::Kvm(state) = back.engine else { panic!("another engine's") };
    let KvmState { vcpus, vm } = *state;
    assert_eq!((back.spec, vcpus), (spec(), vec![vcpu(3), vcpu(5)]));
    assert_eq!(vm.clock.clock, 77);
}

#[test]
fn every_truncation_is_refused_by_its_length() {
    for length in 0..ENCODED.len() {
        match refusal(&ENCODED[..length]) {
            StateError::TooShort(n) => assert!(n == length && length < HEADER_BYTES),
            StateError::Length { said, is } => assert_eq!(said - is, ENCODED.len() - length),
            other => panic!("{length}: {other}"),
        }
    }
}

#[test]
fn a_body_that_is_not_one_is_refused_though_length_and_crc_fit() {
    let body = &ENCODED[HEADER_BYTES..];
    let mut longer = body.to_vec();
    longer.push(0);
    assert!(matches!(refusal(&with_header(STATE_VERSION, &longer)), StateError::Decode(_)));
    assert!(matches!(refusal(&with_header(STATE_VERSION, &body[..body.len() - 1])), StateError::Decode(_)));
    assert!(matches!(refusal(&with_header(STATE_VERSION, &[0xff; 64])), StateError::Decode(_)));
    let theirs = STATE_VERSION + 1;
    assert!(
        matches!(refusal(&with_header(theirs, body)), StateError::Version { theirs: t, .. } if t == theirs)
    );
    assert!(matches!(refusal(&[b'x'; 64]), StateError::Magic(_)));
}

#[test]
fn a_version_that_is_not_known_is_not_written() {
    for version in [STATE_OLDEST - 1, STATE_VERSION + 1] {
        let mut out = Vec::new();
        assert!(matches!(encode(&state(), version, &mut out), Err(StateError::Version { .. })));
        assert!(out.is_empty());
    }
}

/// As version 4 has it, and as that is read.
#[cfg(not(feature = "next-version"))]
fn by_version_4(state: &MachineState) -> Result<MachineState, StateError> {
    let mut out = Vec::new();
    encode(state, STATE_OLDEST, &mut out)?;
    decode(&out)
}

#[cfg(not(feature = "next-version"))]
#[test]
fn version_4_has_virtio_mmio_alone_and_refuses_a_pci_bus_by_name() {
    let state = state();
    let on_mmio = by_version_4(&state).unwrap();
    assert_eq!(
        (on_mmio.spec, on_mmio.devices),
        (spec(), DevicesState { rtc: None, ..state.devices.clone() })
    );
    let (spec, devices) = (MachineSpec { bus: BusKind::Pci, ..spec() }, devices(BusKind::Pci));
    let on_pci = MachineState { spec, devices, ..state };
    let mut out = Vec::new();
    encode(&on_pci, STATE_VERSION, &mut out).unwrap();
    let back = decode(&out).unwrap();
    assert_eq!((back.spec, back.devices), (on_pci.spec.clone(), on_pci.devices.clone()));
    let refused = by_version_4(&on_pci).err().unwrap().to_string();
    assert!(refused.contains("devices.pci") && refused.contains("version 4"), "{refused}");
}

#[cfg(not(feature = "next-version"))]
#[test]
fn version_4_has_the_hosts_processor_alone_and_refuses_one_with_a_name_by_name() {
    let named = MachineSpec { cpu: CpuModel::X86_64V3, ..spec() };
    let named = MachineState { spec: named, ..state() };
    let mut out = Vec::new();
    encode(&named, STATE_VERSION, &mut out).unwrap();
    assert_eq!(decode(&out).unwrap().spec, named.spec);
    let refused = by_version_4(&named).err().unwrap().to_string();
    assert!(refused.contains("spec.cpu") && refused.contains("version 4"), "{refused}");
    let other = check_spec(&named.spec, &spec()).unwrap_err().to_string();
    assert!(other.contains("cpu") && other.contains("V3") && other.contains("Host"), "{other}");
}

#[cfg(not(feature = "next-version"))]
#[test]
fn version_4_has_neither_watchdog_nor_rtc_on_kvm_and_refuses_those_that_were_touched_by_name() {
    let refused = |touch: &dyn Fn(&mut DevicesState)| {
        let mut state = state();
        touch(&mut state.devices);
        by_version_4(&state).err().unwrap().to_string()
    };
    let watchdog = refused(&|devices| devices.watchdog.left_ns = Some(7));
    assert!(watchdog.contains("devices.watchdog") && watchdog.contains("version 4"), "{watchdog}");
    let rtc = refused(&|devices| devices.rtc.as_mut().unwrap().write(0, 0x70, 1));
    assert!(rtc.contains("devices.rtc") && rtc.contains("version 4"), "{rtc}");
    let mut kept = state();
    kept.devices.wall_clock.zero_unix_ns = Some(7);
    assert_eq!(by_version_4(&kept).unwrap().devices.wall_clock.zero_unix_ns, None);
    assert_eq!(decode(&ENCODED).unwrap().devices.watchdog, kept.devices.watchdog);
}

#[cfg(not(feature = "next-version"))]
#[test]
fn version_4_does_not_say_how_far_counters_are_from_the_hosts() {
    let offsets = |state: MachineState| match state.engine {
        EngineState::Kvm(kvm) => kvm.vcpus.iter().map(|vcpu| vcpu.tsc_offset).collect::<Vec<_>>(),
        EngineState::Soft(_) => panic!("another engine's"),
    };
    assert_eq!(offsets(decode(&ENCODED).unwrap()), [Some(3), Some(5)]);
    assert_eq!(offsets(by_version_4(&state()).unwrap()), [None, None]);
}

#[cfg(not(feature = "next-version"))]
#[test]
fn version_4_carries_a_card_whose_driver_leaves_it_no_work_and_refuses_another_by_name() {
    const FEATURES_OK: u32 = 8;
    let taken = |device: usize, features: u64| {
        let mut state = state();
        let device = &mut state.devices.virtio[device];
        (device.status, device.driver_features) = (3 | FEATURES_OK, features | 1 << 32);
        by_version_4(&state).map(|state| state.devices.virtio)
    };
    let card = taken(0, 1 << 5 | 1 << 28).unwrap().swap_remove(0);
    assert_eq!(card.driver_features, 1 << 5 | 1 << 28 | 1 << 32);
    assert_eq!((card.rings, card.config_status), (state().devices.virtio[0].rings.clone(), 1));
    for (device, feature) in [(0, 0), (0, 1), (0, 11), (0, 15), (0, 17), (0, 29), (1, 29)] {
        let refused = taken(device, 1 << feature).unwrap_err().to_string();
        assert!(refused.contains("features") && refused.contains("version 4"), "{refused}");
    }
    let mut asked = state();
    asked.devices.virtio[0].config_status |= 2;
    assert!(by_version_4(&asked).is_err());
}

#[cfg(not(feature = "next-version"))]
#[test]
fn version_4_has_one_card_and_three_devices_and_refuses_more_by_name() {
    let refused = |nets: usize, disks: usize| {
        let card = |last| NetSpec { mac: [2, 0, 0, 0, 0, last], mtu: 1500 };
        let nets = (0..nets as u8).map(card).collect();
        let disks = vec![DiskSpec { bytes: 1 << 20, read_only: true }; disks];
        let state = MachineState { spec: MachineSpec { nets, disks, rng: false, ..spec() }, ..state() };
        by_version_4(&state).map(|state| state.spec.nets.len())
    };
    assert_eq!((refused(0, 3).unwrap(), refused(1, 2).unwrap()), (0, 1));
    for (refused, named) in [(refused(2, 0), "second network card"), (refused(1, 3), "fourth virtio device")]
    {
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(named) && refused.contains("version 4"), "{refused}");
    }
}

#[cfg(not(feature = "next-version"))]
#[test]
fn version_4_has_frames_without_a_header_and_refuses_those_that_need_one_by_name() {
    let waiting = |packet: Vec<u8>| {
        let mut soft = SoftState::power_on(0);
        soft.outbox = vec![SentFrame { card: 0, packet }];
        MachineState { engine: EngineState::Soft(Box::new(soft)), ..state() }
    };
    let plain = waiting(crate::devices::plain_packet(&[7; 60]));
    let mut older = Vec::new();
    encode(&plain, STATE_OLDEST, &mut older).unwrap();
    let bare = [&[60][..], &[7; 60]].concat();
    assert!(older.windows(bare.len()).any(|bytes| bytes == bare));
    let EngineState::Soft(soft) = decode(&older).unwrap().engine else { panic!("another engine's") };
    assert_eq!(soft.outbox, [SentFrame { card: 0, packet: crate::devices::plain_packet(&[7; 60]) }]);
    let refused = by_version_4(&waiting(vec![1; 72])).err().unwrap().to_string();
    assert!(refused.contains("frame that waits") && refused.contains("version 4"), "{refused}");
}

#[cfg(feature = "next-version")]
#[test]
fn the_version_before_carries_all_but_a_mark_which_is_refused_by_name() {
    let encoded = |state: &MachineState, version| {
        let mut out = Vec::new();
        encode(state, version, &mut out).map(|()| out)
    };
    let state = state();
    let older = encoded(&state, STATE_VERSION - 1).unwrap();
    assert_eq!(older.len() + 8, encoded(&state, STATE_VERSION).unwrap().len());
    assert_eq!(decode(&older).unwrap().mark, 0);
    let marked = MachineState { mark: 7, ..state };
    assert_eq!(decode(&encoded(&marked, STATE_VERSION).unwrap()).unwrap().mark, 7);
    let refused = encoded(&marked, STATE_VERSION - 1).unwrap_err().to_string();
    assert!(refused.contains("machine.mark") && refused.contains("version 5"), "{refused}");
}

#[test]
fn a_register_file_of_another_size_is_refused_and_not_padded() {
    // kvm_regs is the first run of 144 bytes after a length of 144 (varint 0x90 0x01).
    let body = &ENCODED[HEADER_BYTES..];
    let at = body.windows(3).position(|w| w == [0x90, 0x01, 0]).expect("the registers");
    let mut shorter = body.to_vec();
    shorter[at] = 0x8f;
    shorter.remove(at + 2);
    assert!(matches!(refusal(&with_header(STATE_VERSION, &shorter)), StateError::Decode(_)));
}

#[test]
fn the_first_difference_of_the_specs_is_named() {
    let named = |change: &dyn Fn(&mut MachineSpec)| {
        let mut theirs = spec();
        change(&mut theirs);
        match check_spec(&theirs, &spec()) {
            Err(StateError::Spec { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    };
    assert!(check_spec(&spec(), &spec()).is_ok());
    assert_eq!(named(&|s| s.engine = EngineKind::Soft), "engine");
    assert_eq!(named(&|s| s.vcpus = 1), "vcpus");
    assert_eq!(named(&|s| s.ram_bytes *= 2), "ram_bytes");
    assert_eq!(named(&|s| s.nets.clear()), "nets");
    assert_eq!(named(&|s| s.disks.push(DiskSpec { bytes: 512, read_only: true })), "disks");
    assert_eq!(named(&|s| s.rng = false), "rng");
    assert_eq!(named(&|s| s.bus = BusKind::Pci), "bus");
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn arbitrary_bodies_behind_a_good_header_never_panic(
        body in proptest::collection::vec(any::<u8>(), 0..600)
    ) {
        prop_assert!(decode(&with_header(STATE_VERSION, &body)).is_err());
    }

    #[test]
    fn every_flipped_bit_is_refused(bit in 0..ENCODED.len() * 8) {
        let mut bytes = ENCODED.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn a_changed_body_with_a_new_crc_never_panics_and_what_decodes_is_canonical(
        changes in proptest::collection::vec((0..ENCODED.len() - HEADER_BYTES, any::<u8>()), 1..4)
    ) {
        let mut body = ENCODED[HEADER_BYTES..].to_vec();
        changes.iter().for_each(|&(at, byte)| body[at] = byte);
        let bytes = with_header(STATE_VERSION, &body);
        if let Ok(state) = decode(&bytes) {
            let mut again = Vec::new();
            encode(&state, STATE_VERSION, &mut again).unwrap();
            prop_assert_eq!(again, bytes);
        }
    }
}
