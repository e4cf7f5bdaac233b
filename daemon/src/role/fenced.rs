//! A node that lost the arbitration: the other one has the VM. Its own machine is stopped, its output mute for good and
//! its connections closed before it comes here. It looks at the cell, and goes on as that says: as the backup, in the
//! same process. A node that is fenced again and again rests first (`streak`): each return costs a full copy.

use super::backup::Backup;
use super::command::Exit;
use super::core::{Core, Next};
use super::event::Micros;
use super::policy::OnFenced;
use ft_arbiter::Cell;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Fenced {
    /// When it comes back.
    until: Micros,
    why: String,
    /// Why the cell could not be read.
    trouble: Option<String>,
}

impl Core {
    /// The VM is stopped here, and the other node has it.
    pub(super) fn fence(&mut self, why: String) -> Next {
        // Somebody waits for this node to end.
        if self.policy.on_fenced == OnFenced::Exit || self.stop_requested {
            return Next::Ended(Exit::Fenced(why));
        }
        Next::Fenced(Fenced { until: self.fences.next_at(self.now), why, trouble: None })
    }

    /// What the cell says to a node that was fenced.
    pub(super) fn return_by(&mut self, cell: Option<Cell>) {
        match cell {
            Some(cell) if cell.owner.is_some() => self.begin(Some(cell)),
            // The VM went on elsewhere, and has ended there: that is no reason to boot it here.
            _ => self.advance(Next::Backup(Backup::new("the VM has ended at the other node"))),
        }
    }
}

impl Fenced {
    pub(super) fn is_rested(&self, now: Micros) -> bool {
        now >= self.until
    }

    pub(super) fn note_trouble(&mut self, why: String) {
        self.trouble = Some(why);
    }

    pub(super) fn detail(&self, core: &Core) -> String {
        let why = &self.why;
        match (&self.trouble, self.until.saturating_sub(core.now)) {
            (Some(trouble), _) => {
                format!("{why}; comes back as the backup when the arbiter answers: {trouble}")
            }
            (None, 0) => format!("{why}; comes back as the backup"),
            (None, rest) => format!(
                "{why}; fenced {} times, each within a minute of its return: comes back as the backup in {} s",
                core.fences.length,
                rest.div_ceil(1_000_000)
            ),
        }
    }
}
