//! A planned switchover: the VM is paused, its last checkpoint acked, and the backup asked to go on.

use super::{Pair, Primary};
use crate::role::command::Command;
use crate::role::core::{Core, Next};
use crate::role::event::Micros;

/// A planned switchover under way.
#[derive(Clone, Debug)]
pub(super) struct HandOver {
    pub(super) step: Step,
    pub(super) since: Micros,
    /// Stop this node afterwards.
    pub(super) then_stop: bool,
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
        self.handover.as_ref().is_some_and(|handover| handover.step == Step::Offered)
    }

    pub(super) fn on_switchover(&mut self, core: &mut Core, then_stop: bool) {
        let busy = if self.handover.is_some() {
            Some("a switchover is under way")
        } else if self.ending.is_some() {
            Some("the VM is ending")
        } else if !matches!(self.pair, Pair::Protected { .. }) {
            Some("the VM is not protected: there is no backup that could take over")
        } else {
            None
        };
        match busy {
            Some(why) => core.out.push(Command::SwitchoverDone(Err(why.into()))),
            None => {
                self.handover = Some(HandOver { step: Step::Pausing, since: core.now, then_stop });
                core.out.push(Command::FinalCheckpoint);
            }
        }
    }

    /// Once the last checkpoint is acked and its output is out, the backup may have the VM.
    pub(super) fn offer_if_drained(&mut self, core: &mut Core) {
        let Some(link) = &self.link else { return };
        let Some(handover) = &mut self.handover else { return };
        if let Step::Draining(epoch) = handover.step
            && self.permit.acked >= epoch
            && !self.permit.wanting
        {
            handover.step = Step::Offered;
            handover.since = core.now;
            core.out.push(Command::SendHandOver { conn: link.conn, epoch });
        }
    }

    /// Goes on as protected primary after a switchover that came to nothing.
    pub(super) fn abandon_handover(&mut self, core: &mut Core, why: String) -> Option<Next> {
        let handover = self.handover.take()?;
        core.out.push(Command::SwitchoverDone(Err(why.clone())));
        self.why = why;
        if handover.then_stop {
            // Nothing is lost: the cell names the backup, which holds all that was ever released.
            return self.stop_if_left_to_peer(core);
        }
        core.out.push(Command::Thaw);
        None
    }
}
