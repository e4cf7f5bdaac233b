//! The backup's rehearsals: what it does with the outcome of each, and when another is due.

use super::{Backup, Hold, Stage};
use crate::role::Command;
use crate::role::attempts::Ending;
use crate::role::core::{Core, Next};
use crate::role::rehearsal::{RehearsalView, Unacked};

impl Backup {
    /// Acknowledges what is sealed; what the VM may not be able to go on from, when it has been tried.
    pub(super) fn ack(&mut self, core: &mut Core, unacked: Unacked) {
        if self.rehearsals.is_proven() {
            let Unacked { conn, epoch, stamp } = unacked;
            self.promise(core, core.policy.lease_us);
            core.out.push(Command::SendAck { conn, epoch, stamp });
        } else if self.rehearsals.hold_back(unacked, core.now) {
            self.why = "trying whether the VM can go on from the first checkpoint".into();
            core.out.push(Command::Rehearse { epoch: unacked.epoch });
        }
    }

    /// What was proven before is kept, and tried again soon. What was not has never counted as a copy of the VM: the
    /// primary goes on without it, and is left alone for a while.
    pub(super) fn on_rehearsal_failed(&mut self, core: &mut Core, why: String) -> Option<Next> {
        self.rehearsals.failed(core.now, core.policy.rehearsal_us, why.clone());
        core.note_unfit(self.rehearsals.unfit(), self.conn());
        if self.rehearsals.is_proven() || self.stage != Stage::Following {
            return None;
        }
        let why = format!("the VM could not go on on node {}: {why}", core.policy.node);
        self.say_bye(core, &why);
        self.discard(core, why, Ending::Failed);
        self.stop_if_asked(core)
    }

    /// It went well: what waited for it is acknowledged.
    pub(super) fn on_rehearsed(&mut self, core: &mut Core) {
        let unacked = self.rehearsals.went_well(core.now, core.policy.rehearsal_us);
        core.note_unfit(self.rehearsals.unfit(), self.conn());
        if let Some(unacked) = unacked.filter(|unacked| self.is_linked(unacked.conn) && self.may_answer()) {
            self.ack(core, unacked);
        }
    }

    /// Gives up one that came to no end, and begins the next.
    pub(super) fn rehearse_if_due(&mut self, core: &mut Core) -> Option<Next> {
        if self.rehearsals.is_overdue(core.now) {
            return self.on_rehearsal_failed(core, "the rehearsal came to no end".into());
        }
        if let (Hold::Sealed(held), Stage::Following, Some(_)) = (self.hold, self.stage, &self.link)
            && self.rehearsals.is_due(core.now)
        {
            core.out.push(Command::Rehearse { epoch: held.epoch });
        }
        None
    }

    /// What is known of the VM's going on from what is held here.
    pub(in crate::role) fn rehearsal(&self) -> Option<RehearsalView> {
        (self.hold != Hold::Nothing || self.dial_at.is_some()).then(|| self.rehearsals.view())
    }
}
