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
        let view = ram.view()?;
        let wiring = (setup.wiring)()?;
        let machine = Machine::new(&setup.spec, &ram, wiring)?;
        Ok(Self { machine, ram, view, ended: false })
    }

    /// Looks whether the guest has come to an end by itself, and says so once. Then it stands still from now on.
    pub(super) fn poll_end(&mut self, setup: &Setup) -> bool {
        if !self.ended
            && let Ok(event) = self.machine.events().try_recv()
        {
            self.ended = true;
            let end = match event {
                MachineEvent::PoweredOff => GuestEnd::PoweredOff,
                MachineEvent::Reset => GuestEnd::Reset,
                MachineEvent::Crashed { vcpu, why } => GuestEnd::Crashed(format!("vCPU {vcpu}: {why}")),
                MachineEvent::Diverged { count, what } => {
                    GuestEnd::Crashed(format!("replay diverged at count {count}: {what}"))
                }
            };
            if let Err(e) = self.machine.pause() {
                tracing::error!("cannot stop the machine of a guest that has ended: {e}");
            }
            setup.tell(KeeperNews::GuestEnded(end));
        }
        self.ended
    }

    /// The guest runs, reachable from this host.
    pub(super) fn run(&mut self, setup: &Setup) -> Result<(), MachineError> {
        (setup.attach)(Some(&self.machine));
        self.machine.resume()
    }
}
