//! Version 4 of the state, and what it cannot say. There no network card offers offloads, so frames have no header, nor
//! has it a control queue or a configuration that changes; and only disks tell, and are told, how far they want to be
//! left alone (EVENT_IDX). All devices are on virtio-mmio. There is no watchdog, no RTC on KVM, and no clock of the
//! time of day that keeps to the host's. A vCPU does not say how far its time stamp counter is from its host's: the
//! counter itself is restored then. The processor has no name.

use super::{EngineState, KvmState, MachineState, Sregs, StateError, VcpuState, VmState, as_bytes};
use crate::devices::{
    Com1State, DevicesState, NET_HEADER_BYTES, PlatformState, PowerState, RequestState, RingState,
    VirtioState, WallClockState, WatchdogState, plain_packet,
};
use crate::engine::soft::state::{IdleState, SentFrame, SoftState};
use crate::spec::{BusKind, CpuModel, DiskSpec, EngineKind, MachineSpec, NetSpec};
use ft_cpu::{Chips, Clock, CpuState, Fpu, System};
use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_vcpu_events,
    kvm_xcrs,
};
use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_config::{VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1};
use virtio_bindings::bindings::virtio_net::{VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU, VIRTIO_NET_S_LINK_UP};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_bindings::virtio_ids::{VIRTIO_ID_NET, VIRTIO_ID_RNG};

/// The number of the version that this is about.
pub(super) const NUMBER: u16 = 4;

/// What every device of version 4 offers.
const COMMON: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Virtio devices of a machine: the interrupts of the fourth and the fifth were the RTC's and ACPI's as well.
const DEVICES_MAX: usize = 3;

/// A network card's queues, and what it says of itself.
const NET_QUEUES: usize = 2;
const CONTROL_QUEUE: RingState = RingState { size: 64, desc: 0, avail: 0, used: 0, position: None };
const LINK_UP: u16 = VIRTIO_NET_S_LINK_UP as u16;

/// See [`MachineState`].
#[derive(Serialize, Deserialize)]
pub(super) struct Machine4 {
    spec: Spec4,
    engine: Engine4,
    devices: Devices4,
}

/// See [`MachineSpec`].
#[derive(Serialize, Deserialize)]
struct Spec4 {
    engine: EngineKind,
    vcpus: u8,
    ram_bytes: u64,
    net: Option<NetSpec>,
    disks: Vec<DiskSpec>,
    rng: bool,
}

/// See [`EngineState`].
#[derive(Serialize, Deserialize)]
enum Engine4 {
    Kvm(Vec<Vcpu4>, Box<VmState>),
    Soft(Box<Soft4>),
}

/// See [`SoftState`].
#[derive(Serialize, Deserialize)]
struct Soft4 {
    cpu: CpuState,
    system: System,
    fpu: Fpu,
    chips: Chips,
    clock: Clock,
    idle: IdleState,
    /// Frames without header.
    outbox: Vec<Vec<u8>>,
}

/// See [`VcpuState`].
#[derive(Serialize, Deserialize)]
struct Vcpu4 {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: Sregs,
    xcrs: kvm_xcrs,
    #[serde(with = "as_bytes")]
    xsave: Vec<u8>,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

/// See [`DevicesState`].
#[derive(Serialize, Deserialize)]
struct Devices4 {
    com1: Com1State,
    power: PowerState,
    platform: PlatformState,
    virtio: Vec<Virtio4>,
}

/// See [`VirtioState`].
#[derive(Serialize, Deserialize)]
struct Virtio4 {
    device_id: u32,
    status: u32,
    driver_features: u64,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    interrupt_status: u32,
    rings: Vec<RingState>,
    requests: Vec<RequestState>,
}

/// The state as version 4 has it, if nothing is lost by that.
pub(super) fn from_newer(state: &MachineState) -> Result<Machine4, StateError> {
    let lost = |field| StateError::NotCarried { field, version: NUMBER };
    let MachineState { spec, engine, devices, .. } = state;
    let DevicesState { com1, power, platform, virtio, pci, watchdog, rtc, wall_clock: _ } = devices;
    if pci.is_some() {
        return Err(lost("devices.pci"));
    }
    if spec.cpu != CpuModel::Host {
        return Err(lost("spec.cpu"));
    }
    if !watchdog.is_unused() {
        return Err(lost("devices.watchdog"));
    }
    if rtc.as_ref().is_some_and(|rtc| !rtc.is_untouched()) {
        return Err(lost("devices.rtc"));
    }
    let virtio: Option<Vec<_>> = virtio.iter().map(virtio_from_newer).collect();
    let virtio = virtio.ok_or(lost("features of a network card or rng"))?;
    let engine = match engine.clone() {
        EngineState::Kvm(kvm) => {
            let KvmState { vcpus, vm } = *kvm;
            Engine4::Kvm(vcpus.into_iter().map(vcpu_from_newer).collect(), Box::new(vm))
        }
        EngineState::Soft(soft) => {
            let SoftState { cpu, system, fpu, chips, clock, idle, outbox } = *soft;
            let plain = |frame: SentFrame| {
                let plain = frame.packet.strip_prefix(&[0; NET_HEADER_BYTES]).map(<[u8]>::to_vec);
                plain.ok_or(lost("offloads of a frame that waits to be sent"))
            };
            let outbox = outbox.into_iter().map(plain).collect::<Result<_, _>>()?;
            Engine4::Soft(Box::new(Soft4 { cpu, system, fpu, chips, clock, idle, outbox }))
        }
    };
    if spec.virtio_devices() > DEVICES_MAX {
        return Err(lost("interrupt of a fourth virtio device"));
    }
    let MachineSpec { engine: kind, vcpus, ram_bytes, nets, disks, rng, bus: _, cpu: _ } = spec.clone();
    let mut nets = nets.into_iter();
    let (net, None) = (nets.next(), nets.next()) else { return Err(lost("a second network card")) };
    let spec = Spec4 { engine: kind, vcpus, ram_bytes, net, disks, rng };
    let devices = Devices4 { com1: com1.clone(), power: *power, platform: *platform, virtio };
    Ok(Machine4 { spec, engine, devices })
}

fn vcpu_from_newer(vcpu: VcpuState) -> Vcpu4 {
    let VcpuState { cpuid, tsc_khz, tsc_offset: _, mp_state, regs, sregs, xcrs, xsave, .. } = vcpu;
    let VcpuState { debug_regs, lapic, msrs, events, .. } = vcpu;
    Vcpu4 { cpuid, tsc_khz, mp_state, regs, sregs, xcrs, xsave, debug_regs, lapic, msrs, events }
}

fn virtio_from_newer(device: &VirtioState) -> Option<Virtio4> {
    let VirtioState { rings, requests, config_status, config_generation, .. } = device.clone();
    let is_net = device.device_id == VIRTIO_ID_NET;
    let own = match device.device_id {
        VIRTIO_ID_NET => 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_MTU,
        VIRTIO_ID_RNG => 0,
        _ => !COMMON,
    };
    let negotiated = device.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
    let is_known = !negotiated || device.driver_features & !(COMMON | own) == 0;
    let (known, later) = rings.split_at(if is_net { NET_QUEUES.min(rings.len()) } else { rings.len() });
    // A driver that does not know of a queue or of changes has neither.
    let has_no_more = later.iter().all(|ring| *ring == CONTROL_QUEUE)
        && (config_status, config_generation) == (if is_net { LINK_UP } else { 0 }, 0);
    (is_known && has_no_more).then(|| Virtio4 {
        device_id: device.device_id,
        status: device.status,
        driver_features: device.driver_features,
        device_features_select: device.device_features_select,
        driver_features_select: device.driver_features_select,
        queue_select: device.queue_select,
        interrupt_status: device.interrupt_status,
        rings: known.to_vec(),
        requests,
    })
}

/// A state that came as version 4.
pub(super) fn to_newer(state: Machine4) -> MachineState {
    let Machine4 { spec, engine, devices: Devices4 { com1, power, platform, virtio } } = state;
    let engine = match engine {
        Engine4::Kvm(vcpus, vm) => {
            let vcpus = vcpus.into_iter().map(vcpu_to_newer).collect();
            EngineState::Kvm(Box::new(KvmState { vcpus, vm: *vm }))
        }
        Engine4::Soft(soft) => {
            let Soft4 { cpu, system, fpu, chips, clock, idle, outbox } = *soft;
            let sent = |frame: Vec<u8>| SentFrame { card: 0, packet: plain_packet(&frame) };
            let outbox = outbox.into_iter().map(sent).collect();
            EngineState::Soft(Box::new(SoftState { cpu, system, fpu, chips, clock, idle, outbox }))
        }
    };
    let Spec4 { engine: kind, vcpus, ram_bytes, net, disks, rng } = spec;
    let (nets, bus, cpu) = (net.into_iter().collect(), BusKind::Mmio, CpuModel::Host);
    let spec = MachineSpec { engine: kind, vcpus, ram_bytes, nets, disks, rng, bus, cpu };
    let virtio = virtio.into_iter().map(virtio_to_newer).collect();
    MachineState {
        spec,
        engine,
        devices: DevicesState {
            com1,
            power,
            platform,
            virtio,
            pci: None,
            watchdog: WatchdogState::unused(),
            rtc: None,
            wall_clock: WallClockState::default(),
        },
        #[cfg(feature = "next-version")]
        mark: 0,
    }
}

fn vcpu_to_newer(vcpu: Vcpu4) -> VcpuState {
    let Vcpu4 { cpuid, tsc_khz, mp_state, regs, sregs, xcrs, xsave, debug_regs, lapic, msrs, events } = vcpu;
    let tsc_offset = None;
    VcpuState {
        cpuid,
        tsc_khz,
        tsc_offset,
        mp_state,
        regs,
        sregs,
        xcrs,
        xsave,
        debug_regs,
        lapic,
        msrs,
        events,
    }
}

fn virtio_to_newer(device: Virtio4) -> VirtioState {
    let Virtio4 { device_id, status, driver_features, queue_select, interrupt_status, .. } = device;
    let Virtio4 { device_features_select, driver_features_select, mut rings, requests, .. } = device;
    let is_net = device_id == VIRTIO_ID_NET;
    rings.extend((is_net && rings.len() == NET_QUEUES).then_some(CONTROL_QUEUE));
    VirtioState {
        device_id,
        status,
        driver_features,
        device_features_select,
        driver_features_select,
        queue_select,
        interrupt_status,
        config_generation: 0,
        config_status: if is_net { LINK_UP } else { 0 },
        rings,
        requests,
    }
}
