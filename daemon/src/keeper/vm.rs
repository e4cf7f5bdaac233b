//! The machine and its memory, and whether its guest has come to an end by itself.

use super::error::PrepareError;
use super::news::KeeperNews;
use super::setup::Setup;
use crate::role::GuestEnd;
use ft_ram::{GuestRam, RamView};
use ft_vm::machine::{Machine, MachineError, MachineEvent};

/// See the module.
pub(super) struct Vm {
    pub(super) machine: Machine,
    pub(super) ram: GuestRam,
    pub(super) view: RamView,
    /// The guest has come to an end, and stands still.
    pub(super) ended: bool,
}

impl Vm {
    /// Fresh RAM and a parked machine over it.
    pub(super) fn new(setup: &Setup) -> Result<Self, PrepareError> {
        let ram = GuestRam::new(setup.spec.ram_bytes)?;
        if setup.lock_memory {
            ram.lock()?;
        }
        let view = ram.view()?;
        let wiring = (setup.wiring)()?;
        let machine = Machine::new(&setup.spec, &ram, wiring)?;
        Ok(Self { machine, ram, view, ended: false })
    }

    /// Looks whether the guest has come to an end by itself, and says so once. Then it stands still from now on. A
    /// machine that failed the guest is an error: the guest has no part in it.
    pub(super) fn poll_end(&mut self, setup: &Setup) -> Result<(), MachineError> {
        if !self.ended
            && let Ok(event) = self.machine.events().try_recv()
        {
            let end = end_of(event)?;
            self.ended = true;
            self.machine.pause()?;
            if let GuestEnd::Crashed(why) = &end {
                tracing::warn!("the guest crashed: {why}");
            }
            setup.tell(KeeperNews::GuestEnded(end));
        }
        Ok(())
    }

    /// The guest runs, reachable from this host.
    pub(super) fn run(&mut self, setup: &Setup) -> Result<(), MachineError> {
        (setup.attach)(Some(&self.machine));
        self.machine.resume()
    }
}

/// The guest's own end, or the failure of what executes it.
pub(super) fn end_of(event: MachineEvent) -> Result<GuestEnd, MachineError> {
    match event {
        MachineEvent::PoweredOff => Ok(GuestEnd::PoweredOff),
        MachineEvent::Reset => Ok(GuestEnd::Reset),
        MachineEvent::Crashed { vcpu, why } => Ok(GuestEnd::Crashed(format!("vCPU {vcpu}: {why}"))),
        MachineEvent::Failed { vcpu, why } => Err(MachineError::Failed { vcpu, why }),
        MachineEvent::Diverged { count, what } => Err(MachineError::Diverged { count, what }),
    }
}
