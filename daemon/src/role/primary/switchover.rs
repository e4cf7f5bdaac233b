//! A planned switchover: the primary pauses the VM, waits for the ack of its last checkpoint, and offers the VM to the
//! backup.

use super::{Pair, Primary};
use crate::role::command::{Command, SwitchoverFailure};
use crate::role::core::Core;
use crate::role::event::Micros;
use ft_arbiter::Cell;

/// A planned switchover under way.
#[derive(Clone, Debug)]
pub(super) struct Switchover {
    pub(super) step: Step,
    pub(super) since: Micros,
    pub(super) then: Then,
}

/// What becomes of this node when the VM has moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// It follows, as the backup.
    Follow,
    /// It stops, as the operator asked.
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The VM is being paused for its last checkpoint.
    Pausing,
    /// The last checkpoint is on its way.
    Draining(u64),
    /// The backup was asked to go on. We emit nothing more unless the cell says so.
    Offered,
}

impl Primary {
    pub(super) fn has_offered(&self) -> bool {
        self.switchover.as_ref().is_some_and(|switchover| switchover.step == Step::Offered)
    }

    pub(super) fn on_switchover(&mut self, core: &mut Core, then: Then) {
        let busy = if self.switchover.is_some() {
            Some(SwitchoverFailure::UnderWay)
        } else if self.ending.is_some() {
            Some(SwitchoverFailure::VmEnding)
        } else if !matches!(self.pair, Pair::Protected { .. }) {
            Some(SwitchoverFailure::NotProtected)
        } else {
            None
        };
        match busy {
            Some(why) => core.out.push(Command::SwitchoverDone(Err(why))),
            None => {
                self.switchover = Some(Switchover { step: Step::Pausing, since: core.now, then });
                core.out.push(Command::FinalCheckpoint);
            }
        }
    }

    /// Once the last checkpoint is acked and its output is out, the backup may have the VM.
    pub(super) fn offer_if_drained(&mut self, core: &mut Core) {
        let Some(link) = &self.link else { return };
        let Some(switchover) = &mut self.switchover else { return };
        if let Step::Draining(epoch) = switchover.step
            && self.permit.acked >= epoch
            && !self.permit.wanting
        {
            switchover.step = Step::Offered;
            switchover.since = core.now;
            core.out.push(Command::SendOffer { conn: link.conn, epoch });
        }
    }

    /// The backup has won the cell, which still names us: it does not run the VM yet, or cannot say so. The VM stands here
    /// as it was offered, and the same cell lets us go on with it, if the backup is not faster.
    pub(super) fn may_take_back(&mut self, core: &mut Core, cell: Option<&Cell>) -> bool {
        let (true, Some(pairing), Some(cell)) = (self.has_offered(), self.pair.pairing(), cell) else {
            return false;
        };
        let names_us = cell.owner.as_deref() == Some(&core.policy.peer)
            && cell.standby.as_ref().is_some_and(|s| s.node == core.policy.node && s.pairing == pairing);
        if names_us {
            self.cell = cell.clone();
            core.arbiter.hurry();
        }
        names_us
    }

    /// Goes on as protected primary after a switchover that came to nothing.
    pub(super) fn abandon_switchover(&mut self, core: &mut Core, why: String) {
        if self.switchover.take().is_none() {
            return;
        }
        core.out.push(Command::SwitchoverDone(Err(SwitchoverFailure::Abandoned(why.clone()))));
        self.why = why;
        // A node that was to stop goes on with the VM: nobody says that anybody else can.
        core.stop_requested = false;
        core.out.push(Command::Thaw);
    }
}
