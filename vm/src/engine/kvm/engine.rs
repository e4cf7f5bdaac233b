//! The processors on KVM, behind the trait that the machine commands.

use super::counter::{Clocks, Moment, offset_shift};
use super::cpuid;
use super::dirty::DirtyLog;
use super::host::Host;
use super::state::{apply_vm, captured_counters, collect_vm, enter, set_clock};
use super::vcpu::{Surroundings, Vcpu};
use super::vm::{self, Lines};
use crate::boot::entry::Entry;
use crate::devices::{Devices, IrqChip, Wiring};
use crate::engine::worktime::{Stint, Stints};
use crate::engine::{Engine, IdleWork};
use crate::error::{MachineError, MachineEvent};
use crate::spec::{CpuModel, EngineKind, MachineSpec, VCPUS_MAX};
use crate::state::{EngineState, KvmState, StateError};
use ft_ram::{GuestRam, PageIndex};
use kvm_ioctls::VmFd;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Barrier};

/// The vCPUs of one machine, and what they share inside the kernel.
pub(crate) struct KvmEngine {
    /// As of the last stop; what the vCPUs share, as of the last capture.
    state: Box<KvmState>,
    power_on: Box<KvmState>,
    /// So many vCPUs, the last ones, have stopped, and what they collect is not in `state` yet.
    collecting: usize,
    dirty: DirtyLog,
    stints: Stints,
    // Dropped in this order: the threads use the devices and the descriptor, both use the memory.
    vcpus: Vec<Vcpu>,
    devices: Arc<Devices>,
    vm: Arc<VmFd>,
    ram: GuestRam,
}

impl KvmEngine {
    /// Descriptors, threads, interrupt chips, and the devices around them.
    pub(crate) fn new(
        spec: &MachineSpec,
        ram: &GuestRam,
        wiring: Wiring,
        events: Sender<MachineEvent>,
    ) -> Result<(Self, Arc<Devices>), MachineError> {
        let host = Arc::new(Host::open()?);
        let count = usize::from(spec.vcpus);
        let max = host.kvm.get_max_vcpus().min(usize::from(VCPUS_MAX));
        if count == 0 || count > max {
            return Err(MachineError::Vcpus { asked: spec.vcpus, max });
        }
        let processor = cpuid::offered(spec.cpu, &host.supported_cpuid)?.into();
        let vm = Arc::new(vm::create(&host, ram)?);
        let dirty = DirtyLog::new(&vm, &host, ram)?;
        let lines: Arc<dyn IrqChip> = Arc::new(Lines::new(Arc::clone(&vm)));
        let devices = Arc::new(Devices::new(spec, ram, lines, wiring)?);
        devices.quiesce();
        let around = Surroundings {
            vm: Arc::clone(&vm),
            host,
            processor,
            is_named: spec.cpu != CpuModel::Host,
            devices: Arc::clone(&devices),
            events,
            stopped: Arc::new(Barrier::new(count)),
        };
        let vcpus = (0..count)
            .map(|index| Vcpu::start(index, count, around.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        let states = vcpus.iter().map(Vcpu::started).collect::<Result<Vec<_>, _>>()?;
        let state = Box::new(KvmState { vcpus: states, vm: collect_vm(&vm)? });
        let engine = Self {
            power_on: state.clone(),
            state,
            collecting: 0,
            dirty,
            stints: Stints::default(),
            vcpus,
            devices: Arc::clone(&devices),
            vm,
            ram: ram.clone(),
        };
        Ok((engine, devices))
    }

    /// Waits until the vCPUs, which have stopped, have collected their states.
    fn collect(&mut self) -> Result<(), MachineError> {
        // Each once: what is left of an attempt that failed is still to be collected.
        let done = self.vcpus.len() - self.collecting;
        for (vcpu, state) in self.vcpus.iter().zip(&mut self.state.vcpus).skip(done) {
            vcpu.parked(state)?;
            self.collecting -= 1;
        }
        Ok(())
    }
}

impl Engine for KvmEngine {
    fn resume(&mut self) -> Result<(), MachineError> {
        self.collect()?;
        self.vcpus.iter().for_each(Vcpu::run);
        self.stints.begin(self.vcpus.iter().filter_map(Vcpu::thread));
        Ok(())
    }

    fn stop(&mut self) -> Result<(), MachineError> {
        self.stints.end(self.vcpus.iter().filter_map(Vcpu::thread));
        // They wait for each other: one that has to be woken keeps all.
        let soon = self.stints.all_worked();
        self.vcpus.iter().for_each(|vcpu| vcpu.expect_soon(soon));
        self.vcpus.iter().for_each(Vcpu::kick);
        self.collecting = self.vcpus.len();
        self.vcpus.iter().try_for_each(|vcpu| vcpu.stopped(|| self.devices.interrupt_idle()))
    }

    fn enter_once(&mut self) -> Result<(), MachineError> {
        self.collect()?;
        self.vcpus.iter().for_each(Vcpu::enter_once);
        self.collecting = self.vcpus.len();
        self.vcpus.iter().try_for_each(|vcpu| vcpu.stopped(|| ()))
    }

    fn offer(&mut self, work: &IdleWork) {
        self.vcpus.iter().for_each(|vcpu| vcpu.offer(Arc::clone(work)));
    }

    fn stint(&self) -> Stint {
        self.stints.last()
    }

    fn capture(&mut self) -> Result<EngineState, MachineError> {
        self.collect()?;
        let trouble = self.vcpus.iter().enumerate().find_map(|(index, vcpu)| Some((index, vcpu.trouble()?)));
        if let Some((vcpu, trouble)) = trouble {
            return Err(trouble.error(vcpu));
        }
        self.state.vm = collect_vm(&self.vm)?;
        Ok(EngineState::Kvm(self.state.clone()))
    }

    /// The clock, by which the vCPUs' counters are set; the vCPUs in parallel, then what they share (see the ordering
    /// at each).
    fn apply(&mut self, state: &EngineState) -> Result<(), StateError> {
        let EngineState::Kvm(state) = state else { return Err(state.foreign(EngineKind::Kvm)) };
        if state.vcpus.len() != self.vcpus.len() {
            let (theirs, ours) = (state.vcpus.len().to_string(), self.vcpus.len().to_string());
            return Err(StateError::Spec { field: "vCPU states", theirs, ours });
        }
        // What they collected last is not what they will have.
        self.collecting = 0;
        // One moment for all of them.
        let counter = match (self.vcpus.first(), state.vcpus.first()) {
            (Some(vcpu), Some(state)) => vcpu.host_counter(state.tsc_khz)?,
            _ => None,
        };
        let here = set_clock(&self.vm, &state.vm.clock)?;
        let khz = state.vcpus.first().map_or(0, |vcpu| vcpu.tsc_khz);
        let clocks =
            Moment::of(&state.vm.clock).zip(here).map(|(captured, here)| Clocks { captured, here, khz });
        let shift = counter.map(|host| offset_shift(captured_counters(&state.vcpus), host, clocks));
        for (vcpu, state) in self.vcpus.iter().zip(&state.vcpus) {
            vcpu.load(state.clone(), shift);
        }
        // All are waited for, whatever the first says: no order may be left behind.
        let loaded: Vec<_> = self.vcpus.iter().map(Vcpu::loaded).collect();
        loaded.into_iter().collect::<Result<(), _>>()?;
        apply_vm(&self.vm, &state.vm)?;
        self.state = state.clone();
        // What a capture says before anything has run: the offsets are this host's.
        if let Some(shift) = shift {
            for vcpu in &mut self.state.vcpus {
                vcpu.tsc_offset = Some(vcpu.tsc_offset.unwrap_or(0).wrapping_add(shift));
            }
        }
        Ok(())
    }

    fn entered(&self, entry: &Entry) -> Result<EngineState, StateError> {
        let mut state = self.power_on.clone();
        enter(&mut state.vcpus, entry);
        Ok(EngineState::Kvm(state))
    }

    fn start_dirty_log(&mut self) -> Result<(), MachineError> {
        Ok(self.dirty.start(&self.vm, &self.ram)?)
    }

    fn stop_dirty_log(&mut self) -> Result<(), MachineError> {
        Ok(self.dirty.stop(&self.vm, &self.ram)?)
    }

    fn harvest(&mut self, dirty: &mut Vec<PageIndex>) -> Result<(), MachineError> {
        if !self.dirty.is_on() {
            return Err(MachineError::NotLogging);
        }
        Ok(self.dirty.harvest(&self.vm, &self.ram, dirty)?)
    }
}
