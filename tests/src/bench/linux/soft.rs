//! The guest on ftd's deterministic engine, in this process.

use super::marks::Marks;
use super::{Guest, RAM_MIB, Reading, Run};
use anyhow::bail;
use ft_ram::GuestRam;
use ft_vm::devices::Wiring;
use ft_vm::machine::Machine;
use ft_vm::spec::{Boot, BusKind, CpuModel, EngineKind, MachineSpec};
use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

pub(super) struct Soft {
    machine: Machine,
    /// What was recorded so far.
    log_bytes: Option<u64>,
    log: Vec<u8>,
}

/// What the engine does beside executing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keeping {
    Nothing,
    /// A log for replay.
    Log,
}

/// Boots it.
pub(super) fn start(guest: &Guest, marks: Marks, keeping: Keeping) -> anyhow::Result<(Reading, Soft)> {
    let log_bytes = (keeping == Keeping::Log).then_some(0);
    let start = Reading { at: Instant::now(), cpu: cpu()?, instructions: Some(0), log_bytes };
    let spec = MachineSpec {
        engine: EngineKind::Soft,
        vcpus: 1,
        ram_bytes: RAM_MIB << 20,
        nets: Vec::new(),
        disks: Vec::new(),
        rng: false,
        bus: BusKind::Mmio,
        cpu: CpuModel::Host,
    };
    let ram = GuestRam::new(spec.ram_bytes)?;
    let wiring = Wiring { frames: None, console: Box::new(marks), disks: Vec::new() };
    let mut machine = Machine::new(&spec, &ram, wiring)?;
    machine.boot(&Boot::Linux {
        kernel: guest.kernel.clone(),
        initrd: Some(guest.initrd.clone()),
        cmdline: guest.cmdline.clone(),
    })?;
    if keeping == Keeping::Log {
        machine.start_recording()?;
    }
    machine.resume()?;
    Ok((start, Soft { machine, log_bytes: start.log_bytes, log: Vec::new() }))
}

impl Run for Soft {
    fn read(&self) -> anyhow::Result<Reading> {
        let instructions = Some(self.machine.count());
        Ok(Reading { at: Instant::now(), cpu: cpu()?, instructions, log_bytes: self.log_bytes })
    }

    fn tend(&mut self) -> anyhow::Result<()> {
        if let Ok(event) = self.machine.events().try_recv() {
            bail!("the guest ended: {event:?}");
        }
        if let Some(bytes) = &mut self.log_bytes {
            self.log.clear();
            *bytes += self.machine.cut_log(&mut self.log, Box::new(|| {}))?.bytes as u64;
        }
        Ok(())
    }
}

fn cpu() -> anyhow::Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?))
}
