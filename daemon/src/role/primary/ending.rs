//! The VM's end, by the operator's wish or by the guest's own doing. A guest that resets begins anew.

use super::{Pair, Primary};
use crate::role::bereft::Bereft;
use crate::role::command::{Command, Exit};
use crate::role::core::{Core, Next};
use crate::role::event::{GuestEnd, Micros};
use crate::role::heir::Heir;
use crate::role::primary::switchover::Then;
use crate::role::request::{Leave, RequestId, RequestRefusal};

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

    /// The node is to stop and the VM to go on: it moves, or both stay.
    pub(super) fn on_stop(&mut self, core: &mut Core, request: RequestId, vm: Leave) {
        let refusal = match (self.pair, vm) {
            _ if self.ending.is_some() || self.power_off_at.is_some() => RequestRefusal::VmEnding,
            (Pair::Protected { .. }, _) => {
                core.leave(request);
                match &mut self.switchover {
                    Some(switchover) => switchover.then = Then::Stop,
                    None => self.begin_switchover(core, Then::Stop, None),
                }
                return;
            }
            // The cell names the peer, or may be about to, and the peer may hold the only copy that can go on: what the
            // cell says next decides.
            (
                Pair::Enlisting { .. } | Pair::Alone { .. } | Pair::Rejoined { .. } | Pair::Confirming { .. },
                _,
            ) => RequestRefusal::Abandoned(format!("the VM cannot move now: {}", self.detail(core))),
            (Pair::Solo | Pair::Copying { .. } | Pair::Sealing { .. }, Leave::HostDown { within_us }) => {
                return self.on_host_down(core, request, within_us);
            }
            (Pair::Solo | Pair::Copying { .. } | Pair::Sealing { .. }, _) => RequestRefusal::WouldEnd,
        };
        core.refuse(request, refusal);
    }

    /// The host takes a VM with it that nobody else has. A backup that was to have it is turned away: what the guest
    /// does from now on is its end, and no cell is to name anybody for that.
    fn on_host_down(&mut self, core: &mut Core, request: RequestId, within_us: Micros) {
        if self.pair != Pair::Solo {
            self.say_bye(core, "the primary's host goes down, and the VM ends with it");
            self.go_solo(core);
        }
        self.on_power_off(core, request, within_us);
    }

    /// The VM ends, by the operator's word or with its host. The guest does it by itself if it can.
    pub(super) fn on_power_off(&mut self, core: &mut Core, request: RequestId, within_us: Micros) {
        if self.switchover.is_some() {
            return core.refuse(request, RequestRefusal::UnderWay);
        }
        core.leave(request);
        if self.ending.is_none() && within_us > 0 {
            core.out.push(Command::PressPowerButton);
        }
        self.power_off_at = Some(core.now + within_us);
        if within_us == 0 {
            self.shut_down(core, "powered off, as asked");
        }
    }

    /// Ends a VM, as asked. It stands still before the cell is given up: from then on nothing may leave any more.
    pub(in crate::role) fn shut_down(&mut self, core: &mut Core, why: &str) {
        if self.ending.is_none() {
            core.out.push(Command::StopVm);
            self.end_vm(core, End::Exit(Exit::Stopped(why.into())));
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
            GuestEnd::Fallen { why, restart: false } => {
                self.end_vm(core, End::Exit(Exit::GuestCrashed(why)));
            }
            // A processor that shuts down is a reset line that is pulled.
            GuestEnd::Reset | GuestEnd::Crashed(_) | GuestEnd::Fallen { restart: true, .. } => {
                let boot_at = core.resets.next_at(core.now);
                if boot_at <= core.now || core.stop_requested {
                    return self.begin_reboot(core);
                }
                let (streak, wait_s) = (core.resets.length, (boot_at - core.now) / 1_000_000);
                self.why = format!(
                    "the guest has reset {streak} times, each time within a minute of its boot: \
                     it is booted again {wait_s} s after the last"
                );
                self.boot_at = Some(boot_at);
            }
        }
        None
    }

    /// The host failed the machine, and the guest did nothing wrong: the cell is left as it is. The node that it counts
    /// on goes on with the VM, and need not wait for silence to hear of it.
    pub(super) fn on_machine_failure(&mut self, core: &mut Core, why: String) -> Next {
        core.out.push(Command::StopVm);
        core.out.push(Command::EndPairing);
        self.answer_switchover(core, Err(RequestRefusal::MachineFailed));
        core.stay(&RequestRefusal::MachineFailed);
        let former = match self.pair {
            Pair::Confirming { former, .. } => former,
            _ => None,
        };
        for conn in self.link.take().map(|link| link.hearing.conn).into_iter().chain(former) {
            core.drop_link(conn);
        }
        let why = format!("the machine failed: {why}");
        // It ran from an image on disk, with its output held, and the cell has not moved past that.
        match core.on_disk.image_for(&self.cell) {
            Some(image) if self.ending.is_none() => {
                Next::Heir(Heir::back_to_image(core, self.cell.clone(), image, why))
            }
            _ => Next::Bereft(Bereft::new(core, self.cell.clone(), why)),
        }
    }

    /// The guest has reset, and is to be booted again.
    pub(super) fn begin_reboot(&mut self, core: &mut Core) -> Option<Next> {
        // Alone in the cell, a reboot concerns nobody else.
        let alone_in_cell = match self.pair {
            Pair::Solo | Pair::Copying { .. } | Pair::Sealing { .. } => true,
            Pair::Enlisting { .. } => !core.arbiter.is_setting(),
            Pair::Protected { .. } | Pair::Alone { .. } | Pair::Rejoined { .. } | Pair::Confirming { .. } => {
                false
            }
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
            core.out.push(Command::SendBye { conn: link.hearing.conn, why: "the guest is rebooting".into() });
            core.drop_link(link.hearing.conn);
        }
        core.out.push(Command::EndPairing);
        core.out.push(Command::StopVm);
        self.answer_switchover(core, Err(RequestRefusal::GuestReboots));
        if self.power_off_at.is_some() {
            self.pair = Pair::Solo;
            let why = "powered off; the guest asked for a reset instead".into();
            self.end_vm(core, End::Exit(Exit::Stopped(why)));
            return None;
        }
        core.out.push(Command::Boot);
        Some(Next::Primary(Primary::solo(self.cell.clone(), "rebooted")))
    }

    pub(super) fn say_bye(&mut self, core: &mut Core, why: &str) {
        if let Some(link) = self.link.take() {
            core.out.push(Command::SendBye { conn: link.hearing.conn, why: why.into() });
            core.drop_link(link.hearing.conn);
        }
    }
}
