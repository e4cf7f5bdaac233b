//! A planned switchover: both arbiters are asked whether they answer; then the primary pauses the VM, waits for the ack
//! of its last checkpoint, and offers the VM to the backup.

use super::{Pair, Primary};
use crate::role::command::Command;
use crate::role::core::{Core, Next};
use crate::role::event::Micros;
use crate::role::proof::{Verdict, only_images_differ};
use crate::role::request::{Done, RequestId, RequestRefusal};
use crate::role::standing::in_words;
use ft_arbiter::Cell;

/// A planned switchover under way.
#[derive(Clone, Debug)]
pub(super) struct Switchover {
    pub(super) step: Step,
    pub(super) since: Micros,
    pub(super) then: Then,
    /// Who asked for it, unless a stop or the VM's network did, and how long he waits.
    asked: Option<(RequestId, Micros)>,
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

impl Switchover {
    /// Where images differ, the operator may say so that the backup's are right.
    fn is_decided(&self) -> bool {
        self.asked.is_some() && self.then == Then::Follow
    }

    /// Nobody asked for it: the VM leaves a host for its network or disk, and would not be better off on the other.
    fn is_in_vain(&self, core: &Core) -> bool {
        self.asked.is_none() && self.then == Then::Follow && !core.surroundings.are_better_there()
    }
}

impl Primary {
    pub(super) fn has_offered(&self) -> bool {
        self.switchover.as_ref().is_some_and(|switchover| switchover.step == Step::Offered)
    }

    pub(super) fn on_switchover(&mut self, core: &mut Core, request: RequestId, until: Micros) {
        let busy = if self.switchover.is_some() {
            Some(RequestRefusal::UnderWay)
        } else if self.ending.is_some() || self.power_off_at.is_some() {
            Some(RequestRefusal::VmEnding)
        } else if !matches!(self.pair, Pair::Protected { .. }) {
            Some(RequestRefusal::NotProtected)
        } else {
            None
        };
        match busy {
            Some(why) => core.refuse(request, why),
            None => self.begin_switchover(core, Then::Follow, Some((request, until))),
        }
    }

    /// Asks both arbiters. A pair that is protected has a connection.
    pub(super) fn begin_switchover(
        &mut self,
        core: &mut Core,
        then: Then,
        asked: Option<(RequestId, Micros)>,
    ) {
        self.switchover = Some(Switchover { step: Step::Asking, since: core.now, then, asked });
        if let Some(link) = &self.link {
            core.tell_standing(link.hearing.conn, true);
        }
        core.probe_soon();
    }

    /// Pauses the VM as soon as both arbiters have answered, and what they say is as it should be.
    pub(super) fn freeze_if_proven(&mut self, core: &mut Core) {
        let verdict = match self.pair {
            Pair::Protected { pairing } if self.ending.is_none() => self.verdict(core, pairing),
            _ => return,
        };
        let Some(switchover) = &mut self.switchover else { return };
        if switchover.step != Step::Asking || !core.words.both_since(switchover.since) {
            return;
        }
        if switchover.is_in_vain(core) {
            return self.abandon_switchover(core, RequestRefusal::CutOff);
        }
        match verdict {
            Verdict::Lapsed(lapses) if !(switchover.is_decided() && only_images_differ(&lapses)) => {
                self.abandon_switchover(core, RequestRefusal::Unproven(in_words(&lapses)));
            }
            Verdict::Proven | Verdict::Lapsed(_) => {
                switchover.step = Step::Pausing;
                switchover.since = core.now;
                core.out.push(Command::FinalCheckpoint);
            }
            Verdict::Pending => {}
        }
    }

    /// What a comparison of the images has shown. No VM moves by itself to images that differ.
    pub(super) fn on_images_compared(&mut self, core: &mut Core, differ: Option<String>) {
        let is_under_way =
            |switchover: &Switchover| switchover.step != Step::Offered && !switchover.is_decided();
        if let (Some(how), true) = (&differ, self.switchover.as_ref().is_some_and(is_under_way)) {
            self.abandon_switchover(core, RequestRefusal::Unproven(format!("the backup's disks: {how}")));
        }
        let since = core.words.mine.unfit.as_ref().map_or(core.now, |(_, since)| *since);
        core.note_unfit(differ.map(|how| (how, since)), self.conn());
    }

    /// Who has not answered.
    fn unanswered(core: &Core, since: Micros) -> String {
        let silent = |node: &str, at: Option<Micros>| {
            let answered = at.is_some_and(|at| at >= since);
            (!answered).then(|| format!("the arbiter of {node} does not answer"))
        };
        let theirs = core.words.theirs.as_ref().and_then(|theirs| theirs.at);
        let silent = [silent(&core.policy.node, core.words.mine.at), silent(&core.policy.peer, theirs)];
        let silent: Vec<String> = silent.into_iter().flatten().collect();
        match silent.is_empty() {
            true => format!("{} has not read the cell yet", core.policy.peer),
            false => silent.join("; "),
        }
    }

    /// A switchover that takes too long: for the one who asked, or for the pair.
    pub(super) fn time_switchover(&mut self, core: &mut Core) -> Option<Next> {
        let Some(switchover) = &mut self.switchover else { return None };
        let patient = core.now.saturating_sub(switchover.since) <= core.policy.patience_us;
        let asked = switchover.asked.filter(|(_, until)| core.now >= *until);
        match (switchover.step, asked) {
            // Nothing has changed yet. A stop that joined in has no hurry.
            (Step::Asking | Step::Pausing | Step::Draining(_), Some((request, _)))
                if switchover.then == Then::Stop =>
            {
                switchover.asked = None;
                core.refuse(request, RequestRefusal::TimedOut);
            }
            (Step::Asking | Step::Pausing | Step::Draining(_), Some(_)) => {
                self.abandon_switchover(core, RequestRefusal::TimedOut);
            }
            (Step::Asking, None) if !patient => {
                let why = Self::unanswered(core, switchover.since);
                self.abandon_switchover(core, RequestRefusal::Unproven(why));
            }
            (Step::Pausing | Step::Draining(_), None) if !patient => {
                let why = "the last checkpoint was not acked in time".to_string();
                self.abandon_switchover(core, RequestRefusal::Abandoned(why));
            }
            // It may have taken over: only the cell can tell.
            (Step::Offered, Some((request, _))) => {
                switchover.asked = None;
                core.refuse(request, RequestRefusal::Undecided);
            }
            (Step::Offered, None) if !patient && self.link.is_some() => {
                return self.drop_peer(core, "it did not take over in time".into());
            }
            _ => {}
        }
        None
    }

    /// Once the last checkpoint is acked and its output is out, the backup may have the VM.
    pub(super) fn offer_if_drained(&mut self, core: &mut Core) {
        let Some(link) = &self.link else { return };
        let Some(switchover) = &mut self.switchover else { return };
        if let Step::Draining(epoch) = switchover.step
            && self.permit.acked >= epoch
            && self.permit.wanting.is_none()
        {
            if switchover.is_in_vain(core) {
                return self.abandon_switchover(core, RequestRefusal::CutOff);
            }
            switchover.step = Step::Offered;
            switchover.since = core.now;
            core.out.push(Command::SendOffer { conn: link.hearing.conn, epoch });
        }
    }

    /// The backup has won the cell, which still names us: it does not run the VM yet, or cannot say so. The VM stands
    /// here as it was offered, and the same cell lets us go on with it, if the backup is not faster.
    pub(super) fn may_take_back(&mut self, core: &mut Core, cell: Option<&Cell>) -> bool {
        let may = self.has_offered() && self.ending.is_none();
        let (true, Some(pairing), Some(cell)) = (may, self.pair.pairing(), cell) else {
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
    pub(super) fn abandon_switchover(&mut self, core: &mut Core, why: RequestRefusal) {
        let Some(Switchover { step, .. }) = self.switchover else { return };
        self.why = why.to_string();
        self.answer_switchover(core, Err(why));
        if step != Step::Asking {
            core.out.push(Command::Thaw);
        }
    }

    /// The switchover is over, if one is under way. A node that was to stop, and whose VM did not move, stays: nobody
    /// says that anybody else can go on with it.
    pub(super) fn answer_switchover(
        &mut self,
        core: &mut Core,
        outcome: Result<(), RequestRefusal>,
    ) -> Option<Then> {
        let switchover = self.switchover.take()?;
        if let Some((request, _)) = switchover.asked {
            core.answer(request, outcome.clone().map(|()| Done::Moved));
        }
        if let (Then::Stop, Err(why)) = (switchover.then, &outcome) {
            core.stay(why);
        }
        Some(switchover.then)
    }
}
