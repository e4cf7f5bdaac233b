//! A node that owns a VM whose memory it has not: both hosts died, or the machine failed. It waits for the peer, which
//! may hold a sealed state and take over by the cell. It boots the VM anew by the operator's word (`start`), or, where
//! the configuration says so, when nobody has shown up with the state for a while.

use super::command::Command;
use super::core::{Core, Next};
use super::event::{Event, Micros};
use super::heir::Heir;
use super::request::RequestRefusal;
use super::saved::OnDisk;
use super::start::{Founding, Starting, Wish};
use ft_arbiter::Cell;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Bereft {
    cell: Cell,
    /// How it came to that.
    why: String,
    /// Since when nobody has shown up with the state.
    since: Micros,
    /// When the disk is looked at again, if it could not be seen what is there.
    look_at: Micros,
}

/// Between two looks at the disk, in intervals between two attempts at the arbiter.
const LOOK_EVERY: Micros = 10;

impl Bereft {
    pub(super) fn new(core: &Core, cell: Cell, why: String) -> Self {
        Self { cell, why, since: core.now, look_at: core.now }
    }

    pub(super) fn on_event(&mut self, core: &mut Core, event: Event) -> Option<Next> {
        match event {
            Event::PeerHello { conn, held, .. } => {
                let named = self.cell.standby.as_ref().map(|standby| standby.pairing);
                if named.is_some() && held.map(|held| held.pairing) == named {
                    // It holds what the cell names: it is about to take over.
                    self.since = core.now;
                }
                core.out.push(Command::Refuse { conn, why: "this node does not run the VM".into() });
            }
            Event::SwitchoverRequested { request, .. } => core.refuse(request, RequestRefusal::NoRole),
            Event::ImageFound(found) => return self.on_found(core, found),
            Event::Tick if matches!(core.on_disk, OnDisk::Unknown(_)) => self.look_if_due(core),
            Event::Tick
                if self.boot_at(core).is_some_and(|at| core.now >= at) && !core.arbiter.is_setting() =>
            {
                return Some(Next::Founding(Founding::over_lost(&self.cell)));
            }
            _ => {}
        }
        None
    }

    pub(super) fn on_start(&mut self, core: &mut Core, wish: Wish) -> Next {
        core.arbiter.void_read();
        Next::Starting(Starting::by(wish))
    }

    fn look_if_due(&mut self, core: &mut Core) {
        if core.now >= self.look_at {
            self.look_at = core.now + LOOK_EVERY * core.policy.arbiter_retry_us;
            core.out.push(Command::FindImage { cell: self.cell.id });
        }
    }

    fn on_found(&mut self, core: &mut Core, found: OnDisk) -> Option<Next> {
        core.on_disk = found;
        if let Some(image) = core.on_disk.image_for(&self.cell) {
            return Some(Next::Heir(Heir::of_image(core, self.cell.clone(), image)));
        }
        self.why = core.on_disk.why_not_for(&self.cell);
        None
    }

    /// Never by itself while the state may be on this node's disk.
    fn boot_at(&self, core: &Core) -> Option<Micros> {
        if core.on_disk.may_hold(&self.cell) {
            return None;
        }
        Some(self.since + core.policy.boot_lost_after_us?)
    }

    /// The peer may have taken over in the meantime; then this node is its backup.
    pub(super) fn on_cell(&mut self, core: &mut Core, answer: Result<Option<Cell>, String>) -> Option<Next> {
        let cell = answer.ok()??;
        (cell != self.cell).then(|| core.beginning(Some(cell), None))
    }

    pub(super) fn detail(&self, core: &Core) -> String {
        let held = match &self.cell.standby {
            Some(standby) => format!("node {} may still hold the state and take over", standby.node),
            None => "no other node holds it".into(),
        };
        let next = match self.boot_at(core) {
            Some(at) => {
                let rest_s = at.saturating_sub(core.now).div_ceil(1_000_000);
                format!(
                    "the VM boots anew in {rest_s} s unless a node takes over; at once with ftctl start --fresh"
                )
            }
            None => "to give the state up and boot anew: ftctl start --fresh".into(),
        };
        format!(
            "the VM's memory on this node was lost in generation {} ({}); {held}; {next}",
            self.cell.generation, self.why
        )
    }
}
