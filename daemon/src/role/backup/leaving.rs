//! The backup's stop: it leaves when the cell does not count on what it holds.

use super::{Backup, Hold, Stage};
use crate::role::Command;
use crate::role::command::Exit;
use crate::role::core::{Core, Next};
use crate::role::request::{Leave, RequestId, RequestRefusal};

impl Backup {
    pub(super) fn on_stop(&mut self, core: &mut Core, request: RequestId, vm: Leave) -> Option<Next> {
        match (vm, self.hold, self.stage) {
            (Leave::PowerOff { .. }, Hold::Sealed(_), _) => core.refuse(request, RequestRefusal::IsBackup),
            (Leave::Move, Hold::Sealed(_), Stage::Offered { .. }) => {
                core.refuse(request, RequestRefusal::UnderWay)
            }
            (Leave::Move, Hold::Sealed(_), Stage::Orphaned { .. } | Stage::Contesting(_)) => {
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
}
