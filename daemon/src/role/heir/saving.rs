//! What the heir does for a state that no machine takes: it has the image written to disk, where it outlives this
//! process, and goes on trying meanwhile. A node that is asked to stop has it written at once, and stops when it is.

use super::{Heir, Step};
use crate::role::command::{Command, Exit, Succession};
use crate::role::core::{Core, Next};
use crate::role::event::Micros;
use crate::role::request::{RequestId, RequestRefusal};
use crate::role::saved::OnDisk;

/// Attempts at a restore before the image goes to disk: some three seconds.
const ATTEMPTS: u32 = 4;

/// What has become of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Saving {
    /// It is in memory only.
    NotYet,
    /// It is being written.
    UnderWay { percent: u8 },
    /// It could not be written, and will be tried again.
    Failed { why: String, again_at: Micros },
    /// It is on disk.
    Done,
}

impl Heir {
    /// Whether it is time.
    pub(super) fn save_if_due(&mut self, core: &mut Core) {
        let is_due = match &self.saving {
            _ if self.unread.is_some() => false,
            Saving::NotYet => self.failures >= ATTEMPTS,
            Saving::Failed { again_at, .. } => core.now >= *again_at,
            Saving::UnderWay { .. } | Saving::Done => false,
        };
        if is_due {
            self.save(core);
        }
    }

    /// From now on there may be an image of this generation on disk: the VM speaks only in a later one.
    fn save(&mut self, core: &mut Core) {
        let saved = self.saved();
        if self.succession == Succession::Failover {
            self.succession = Succession::Image;
        }
        self.saving = Saving::UnderWay { percent: 0 };
        core.on_disk = OnDisk::Image(saved);
        core.out.push(Command::SaveImage(saved));
    }

    pub(super) fn save_and_rest(&mut self, core: &mut Core) {
        self.step = Step::Resting { until: core.now };
        self.save(core);
    }

    /// The node stops when what it holds is safe.
    pub(super) fn on_stop(&mut self, core: &mut Core, request: RequestId) -> Option<Next> {
        core.leave(request);
        match self.saving {
            Saving::Done => return Some(self.stop(core)),
            Saving::UnderWay { .. } => {}
            // It comes into memory first.
            Saving::NotYet | Saving::Failed { .. } if self.is_unread() => {}
            Saving::NotYet | Saving::Failed { .. } => self.save(core),
        }
        None
    }

    pub(super) fn on_progress(&mut self, now: u8) {
        if let Saving::UnderWay { percent } = &mut self.saving {
            *percent = now;
        }
    }

    pub(super) fn on_saved(&mut self, core: &mut Core) -> Option<Next> {
        self.saving = Saving::Done;
        core.stop_requested.then(|| self.stop(core))
    }

    pub(super) fn on_unsaved(&mut self, core: &mut Core, why: String) {
        if core.stop_requested {
            core.stay(&RequestRefusal::Unsaved(why.clone()));
        }
        self.saving = Saving::Failed { why, again_at: core.now + self.pause_us_max(core) };
    }

    fn stop(&mut self, core: &mut Core) -> Next {
        let why = "the VM's state is on disk here, and the VM goes on from it when this node is started";
        self.turn_former_away(core, why);
        Next::Ended(Exit::Stopped(why.into()))
    }

    /// For the operator: where the state is.
    pub(super) fn whereabouts(&self) -> String {
        match &self.saving {
            _ if self.unread.is_some() => "its state is kept on disk".into(),
            Saving::NotYet => "its state is kept".into(),
            Saving::UnderWay { percent } => {
                format!("its state is kept in memory, and being written to disk ({percent} %)")
            }
            Saving::Failed { why, .. } => format!(
                "its state is kept in memory only: it cannot be written to disk ({why}), which is tried again"
            ),
            Saving::Done => "its state is kept, on disk as well".into(),
        }
    }
}
