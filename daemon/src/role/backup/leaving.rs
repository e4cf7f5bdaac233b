//! How the backup leaves: its stop, when the cell does not count on what it holds; its standing back, while it cannot
//! do its part; and the end of a pairing, after which it follows anew.

use super::{Backup, Hold, Stage};
use crate::role::Command;
use crate::role::attempts::Ending;
use crate::role::command::Exit;
use crate::role::core::{Core, Next};
use crate::role::request::{Leave, RequestId, RequestRefusal};

impl Backup {
    pub(super) fn on_stop(&mut self, core: &mut Core, request: RequestId, vm: Leave) -> Option<Next> {
        match (vm, self.hold, self.stage) {
            (Leave::PowerOff { .. }, Hold::Sealed(_), _) => core.refuse(request, RequestRefusal::IsBackup),
            (_, Hold::Sealed(_), Stage::Offered { .. }) => core.refuse(request, RequestRefusal::UnderWay),
            (_, Hold::Sealed(_), Stage::Orphaned { .. } | Stage::Contesting(_)) => {
                core.refuse(request, RequestRefusal::LastCopy);
            }
            (_, _, _) => {
                core.leave(request);
                return self.stop_if_asked(core);
            }
        }
        None
    }

    /// Stops as asked. A sealed state is kept until the cell does not count on it, whatever other copies there may be.
    /// While the cell may be about to become ours, its answer comes first.
    pub(super) fn stop_if_asked(&mut self, core: &mut Core) -> Option<Next> {
        if !core.stop_requested || core.arbiter.is_setting() {
            return None;
        }
        match (self.hold, self.stage) {
            (Hold::Sealed(_), Stage::Following) => {
                self.say_bye(core, "the backup was asked to stop");
                self.why = "asked to stop".into();
                self.stage = Stage::Leaving { since: core.now };
                core.arbiter.hurry();
                None
            }
            (Hold::Sealed(_), _) => None,
            _ => {
                self.say_bye(core, "the backup was stopped");
                core.out.push(Command::Discard);
                Some(Next::Ended(Exit::Stopped("the backup was stopped".into())))
            }
        }
    }

    /// This host cannot do its part: its disks, or its memory. The primary hears why, and goes on without it. What is
    /// sealed is as good as before, and is kept until the cell says so: the primary may die first.
    pub(super) fn stand_back(&mut self, core: &mut Core, why: String) {
        let why = format!("this node cannot follow the primary: {why}");
        match (self.hold, self.stage) {
            (Hold::Sealed(_), Stage::Following | Stage::Offered { .. }) => {
                if let (Stage::Offered { .. }, Some(link)) = (self.stage, &self.link) {
                    core.out.push(Command::SendDecline { conn: link.conn, why: why.clone() });
                }
                self.say_bye(core, &why);
                self.why = why;
                self.stage = Stage::Leaving { since: core.now };
                core.arbiter.hurry();
            }
            (Hold::Partial { .. }, _) => {
                self.say_bye(core, &why);
                self.discard(core, why, Ending::Failed);
            }
            _ => self.lose_peer(core, why),
        }
    }

    /// The host failed the machine that stands ready. What is sealed is in memory, and is kept: a fresh machine stands
    /// ready for it from now on. A copy that was not complete begins anew.
    pub(super) fn on_machine_failure(&mut self, core: &mut Core, why: String) -> Option<Next> {
        let why = format!("the machine failed: {why}");
        match self.hold {
            Hold::Nothing => None,
            Hold::Sealed(_) => {
                core.out.push(Command::Renew);
                self.why = why;
                None
            }
            Hold::Partial { .. } => {
                self.say_bye(core, &why);
                self.discard(core, why, Ending::Failed);
                self.stop_if_asked(core)
            }
        }
    }

    /// Holds nothing any more and follows anew: later, if that is likely to fail again.
    pub(super) fn discard(&mut self, core: &mut Core, why: String, how: Ending) {
        if let Some(link) = self.link.take() {
            core.heard_at = core.heard_at.max(Some(link.heard_at));
            core.drop_link(link.conn);
        }
        self.end_release(core, RequestRefusal::Abandoned(why.clone()));
        if self.hold != Hold::Nothing {
            core.out.push(Command::Discard);
        }
        self.hold = Hold::Nothing;
        self.stage = Stage::Following;
        self.paired = None;
        self.why = why;
        match core.attempts.end(core.now, how, &core.policy) {
            0 => core.out.push(Command::Dial),
            wait_us => {
                core.out.push(Command::StopDialling);
                self.dial_at = Some(core.now + wait_us);
            }
        }
    }

    pub(super) fn say_bye(&mut self, core: &mut Core, why: &str) {
        if let Some(link) = self.link.take() {
            core.out.push(Command::SendBye { conn: link.conn, why: why.into() });
            core.drop_link(link.conn);
        }
    }
}
