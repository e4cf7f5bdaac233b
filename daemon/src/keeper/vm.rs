//! The machine and its memory, and whether its guest has come to an end by itself.

use super::error::{PrepareError, RestoreError};
use super::news::KeeperNews;
use super::setup::Setup;
use crate::config::OnFall;
use crate::role::GuestEnd;
use ft_ram::layout::PAGE_SIZE;
use ft_ram::{GuestRam, RamView};
use ft_vm::machine::{Machine, MachineError, MachineEvent};
use ft_vm::state::pages_written_by_restore;

/// See the module.
pub(super) struct Vm {
    pub(super) machine: Machine,
    pub(super) ram: GuestRam,
    pub(super) view: RamView,
    /// The guest has come to an end, and stands still.
    pub(super) ended: bool,
    /// The epoch whose state the machine has taken without running on from it.
    loaded: Option<u64>,
}

impl Vm {
    /// Fresh RAM and a parked machine over it.
    pub(super) fn new(setup: &Setup) -> Result<Self, PrepareError> {
        Self::over(GuestRam::held(setup.spec.ram_bytes, setup.backing)?, setup)
    }

    /// A parked machine over this RAM, whatever is in it.
    pub(super) fn over(ram: GuestRam, setup: &Setup) -> Result<Self, PrepareError> {
        let view = ram.view()?;
        let wiring = (setup.wiring)()?;
        let machine = Machine::new(&setup.spec, &ram, wiring)?;
        Ok(Self { machine, ram, view, ended: false, loaded: None })
    }

    /// The parked machine takes a state, and leaves memory as it is: should the VM go on elsewhere after all, what is
    /// received next builds upon it.
    pub(super) fn load(&mut self, epoch: u64, state: &[u8]) -> Result<(), RestoreError> {
        self.loaded = None;
        let mut kept = Vec::new();
        for page in pages_written_by_restore(state)?.into_iter().filter(|page| *page < self.view.pages()) {
            let mut content = [0; PAGE_SIZE];
            self.view.read_page(page, &mut content);
            kept.push((page, content));
        }
        let restored = self.machine.restore(state);
        kept.iter().for_each(|(page, content)| self.view.write_page(*page, content));
        restored?;
        self.loaded = Some(epoch);
        Ok(())
    }

    /// The machine takes a state, unless it has loaded it, and runs.
    pub(super) fn restore(&mut self, epoch: u64, state: &[u8], setup: &Setup) -> Result<(), RestoreError> {
        if self.loaded.take() != Some(epoch) {
            self.machine.restore(state)?;
        }
        Ok(self.run(setup)?)
    }

    /// Looks whether the guest has come to an end by itself, and says so once. Then it stands still from now on. A
    /// machine that failed the guest is an error: the guest has no part in it.
    pub(super) fn poll_end(&mut self, setup: &Setup) -> Result<(), MachineError> {
        while !self.ended
            && let Some(event) = self.machine.next_event()
        {
            setup.telemetry.said(&event);
            let Some(end) = end_of(event, setup)? else { continue };
            self.ended = true;
            self.machine.pause()?;
            if let GuestEnd::Crashed(why) = &end {
                tracing::warn!("the guest crashed: {why}");
            }
            if let GuestEnd::Fallen { why, .. } = &end {
                tracing::warn!("{why}");
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

/// The guest's own end, if it is one, or the failure of what executes it.
pub(super) fn end_of(event: MachineEvent, setup: &Setup) -> Result<Option<GuestEnd>, MachineError> {
    match event {
        MachineEvent::PoweredOff => Ok(Some(GuestEnd::PoweredOff)),
        MachineEvent::Reset => Ok(Some(GuestEnd::Reset)),
        MachineEvent::Crashed { vcpu, why } => Ok(Some(GuestEnd::Crashed(format!("vCPU {vcpu}: {why}")))),
        MachineEvent::Panicked { dumps: true } => {
            tracing::warn!("the guest's kernel panicked, and another one writes a dump, and resets then");
            Ok(None)
        }
        MachineEvent::Panicked { dumps: false } => {
            Ok(fallen("the guest's kernel panicked", "on_panic", setup.on_panic))
        }
        MachineEvent::WatchdogFired => {
            Ok(fallen("the guest does not feed its watchdog any more", "on_watchdog", setup.on_watchdog))
        }
        MachineEvent::Failed { vcpu, why } => Err(MachineError::Failed { vcpu, why }),
        MachineEvent::Diverged { count, what } => Err(MachineError::Diverged { count, what }),
    }
}

/// What it comes to that the guest works no more, and that the machine has said so.
fn fallen(what: &str, key: &str, policy: OnFall) -> Option<GuestEnd> {
    let end = |restart, policy| {
        let why = format!("{what}; {key} = \"{policy}\"");
        Some(GuestEnd::Fallen { why, restart })
    };
    match policy {
        OnFall::Report => {
            tracing::warn!("{what}; {key} = \"report\"");
            None
        }
        OnFall::Restart => end(true, "restart"),
        OnFall::Stop => end(false, "stop"),
    }
}
