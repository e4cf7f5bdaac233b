//! The VM's end, by the operator's wish or by the guest's own doing. A guest that resets begins anew.

use super::{Pair, Primary};
use crate::role::command::{Command, Exit, SwitchoverFailure};
use crate::role::core::{Core, Next};
use crate::role::event::GuestEnd;
use crate::role::primary::switchover::Then;

/// What the VM's end leads to, once the cell has been told of it. However long that takes: a cell that still names the
/// VM's owner keeps everybody from booting it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    Exit(Exit),
    Reboot,
}

impl Primary {
    /// The cell may be about to name nobody, or does so already.
    pub(super) fn is_giving_up(&self, core: &Core) -> bool {
        matches!(&self.ending, Some(End::Exit(_))) && core.arbiter.is_setting()
    }

    pub(super) fn on_stop(&mut self, core: &mut Core) {
        core.stop_requested = true;
        match self.pair {
            Pair::Protected { .. } if self.ending.is_none() => match &mut self.switchover {
                Some(switchover) => switchover.then = Then::Stop,
                None => self.on_switchover(core, Then::Stop),
            },
            // The cell names the backup, which may hold the only copy that can go on: what the cell says next decides.
            Pair::Alone { .. } | Pair::Rejoined { .. } => self.why = format!("asked to stop; {}", self.why),
            // It is about to name the backup, or does so already.
            Pair::Enlisting { .. } if core.arbiter.is_setting() && self.ending.is_none() => {
                self.why = format!("asked to stop; {}", self.why);
            }
            _ => self.shut_down(core),
        }
    }

    /// A stop that had to wait for the cell moves the VM now.
    pub(super) fn move_if_asked(&mut self, core: &mut Core) {
        if core.stop_requested && self.ending.is_none() && self.switchover.is_none() {
            self.on_switchover(core, Then::Stop);
        }
    }

    /// Ends a VM that nobody else can go on with, as asked. It stands still before the cell is given up: from then on
    /// nothing may leave any more.
    pub(super) fn shut_down(&mut self, core: &mut Core) {
        if self.ending.is_none() {
            core.out.push(Command::StopVm);
            self.end_vm(core, End::Exit(Exit::Stopped("stopped; the VM was shut down".into())));
        }
    }

    pub(super) fn on_guest_end(&mut self, core: &mut Core, end: GuestEnd) -> Option<Next> {
        match end {
            GuestEnd::PoweredOff => {
                self.end_vm(core, End::Exit(Exit::Stopped("the guest powered off".into())));
            }
            GuestEnd::Reset if !core.policy.restart_on_reset => {
                let why = "the guest asked for a reset; on_reset = \"stop\"";
                self.end_vm(core, End::Exit(Exit::Stopped(why.into())));
            }
            GuestEnd::Crashed(why) if !core.policy.restart_on_reset => {
                self.end_vm(core, End::Exit(Exit::GuestCrashed(format!("{why}; on_reset = \"stop\""))));
            }
            // A processor that shuts down is a reset line that is pulled.
            GuestEnd::Reset | GuestEnd::Crashed(_) => {
                let boot_at = core.resets.boot_at(core.now);
                if boot_at <= core.now || core.stop_requested {
                    return self.begin_reboot(core);
                }
                let (streak, wait_s) = (core.resets.streak, (boot_at - core.now) / 1_000_000);
                self.why = format!(
                    "the guest has reset {streak} times, each time within a minute of its boot: \
                     it is booted again {wait_s} s after the last"
                );
                self.boot_at = Some(boot_at);
            }
        }
        None
    }

    /// The guest has reset, and is to be booted again.
    pub(super) fn begin_reboot(&mut self, core: &mut Core) -> Option<Next> {
        // Alone in the cell, a reboot concerns nobody else.
        let alone_in_cell = match self.pair {
            Pair::Solo | Pair::Copying { .. } | Pair::Sealing { .. } => true,
            Pair::Enlisting { .. } => !core.arbiter.is_setting(),
            Pair::Protected { .. } | Pair::Alone { .. } | Pair::Rejoined { .. } => false,
        };
        if alone_in_cell {
            return self.reboot(core);
        }
        self.end_vm(core, End::Reboot);
        None
    }

    /// The VM is over; the cell must say so before we go on.
    pub(super) fn end_vm(&mut self, core: &mut Core, end: End) {
        if self.ending.is_none() {
            self.ending = Some(end);
            core.arbiter.hurry();
        }
    }

    pub(super) fn reboot(&mut self, core: &mut Core) -> Option<Next> {
        if let Some(link) = self.link.take() {
            core.out.push(Command::SendBye { conn: link.conn, why: "the guest is rebooting".into() });
            core.drop_link(link.conn);
        }
        core.out.push(Command::EndPairing);
        core.out.push(Command::StopVm);
        if self.switchover.take().is_some() {
            core.out.push(Command::SwitchoverDone(Err(SwitchoverFailure::GuestReboots)));
        }
        if core.stop_requested {
            self.pair = Pair::Solo;
            self.end_vm(
                core,
                End::Exit(Exit::Stopped("the guest asked for a reset while the VM was stopping".into())),
            );
            return None;
        }
        core.out.push(Command::Boot);
        Some(Next::Primary(Primary::solo(self.cell.clone(), "rebooted")))
    }

    pub(super) fn say_bye(&mut self, core: &mut Core, why: &str) {
        if let Some(link) = self.link.take() {
            core.out.push(Command::SendBye { conn: link.conn, why: why.into() });
            core.drop_link(link.conn);
        }
    }
}
