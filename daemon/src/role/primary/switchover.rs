//! A planned switchover: both arbiters are asked whether they answer; then the primary pauses the VM, waits for the ack
//! of its last checkpoint, and offers the VM to the backup.

use super::{Pair, Primary};
use crate::role::command::{Command, SwitchoverFailure};
use crate::role::core::Core;
use crate::role::event::Micros;
use crate::role::proof::Verdict;
use crate::role::standing::in_words;

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
    /// Both nodes' arbiters are asked: the VM is not paused for a hand-over that would have to wait.
    Asking,
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
        match (busy, &self.link) {
            (None, Some(link)) => {
                self.switchover = Some(Switchover { step: Step::Asking, since: core.now, then });
                core.tell_standing(link.conn, true);
                core.probe_soon();
            }
            (why, _) => {
                let why = why.unwrap_or(SwitchoverFailure::NotProtected);
                core.out.push(Command::SwitchoverDone(Err(why)));
            }
        }
    }

    /// Pauses the VM as soon as both arbiters have answered, and what they say is as it should be.
    pub(super) fn freeze_if_proven(&mut self, core: &mut Core) {
        let (Some(switchover), Pair::Protected { pairing }) = (&self.switchover, self.pair) else { return };
        if switchover.step != Step::Asking || !core.words.both_since(switchover.since) {
            return;
        }
        match self.verdict(core, pairing) {
            Verdict::Proven => {
                if let Some(switchover) = &mut self.switchover {
                    switchover.step = Step::Pausing;
                    switchover.since = core.now;
                }
                core.out.push(Command::FinalCheckpoint);
            }
            Verdict::Pending => {}
            Verdict::Lapsed(lapses) => self.refuse_switchover(core, in_words(&lapses)),
        }
    }

    /// A switchover that never paused the VM is off.
    pub(super) fn refuse_switchover(&mut self, core: &mut Core, why: String) {
        self.switchover = None;
        // A node that was to stop goes on with the VM: nobody says that anybody else can.
        core.stop_requested = false;
        core.out.push(Command::SwitchoverDone(Err(SwitchoverFailure::Unproven(why))));
    }

    /// Who has not answered.
    pub(super) fn unanswered(&self, core: &Core, since: Micros) -> String {
        let silent = |node: &str, at: Option<Micros>| {
            let answered = at.is_some_and(|at| at >= since);
            (!answered).then(|| format!("the arbiter of {node} does not answer"))
        };
        let theirs = core.words.theirs.as_ref().and_then(|theirs| theirs.at);
        let silent = [silent(&core.policy.node, core.words.mine.at), silent(&core.policy.peer, theirs)];
        silent.into_iter().flatten().collect::<Vec<_>>().join("; ")
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
