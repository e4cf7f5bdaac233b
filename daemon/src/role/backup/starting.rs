//! A backup that holds nothing looks who owns the VM; and the operator's word that it is to boot here, or to go on from
//! what is held here without the host that owns it.

use super::{Backup, Hold, Stage};
use crate::role::command::Command;
use crate::role::core::{Core, Next};
use crate::role::request::{Done, RequestRefusal, Start};
use crate::role::start::{Starting, Wish};
use ft_arbiter::Cell;

impl Backup {
    /// Where nobody owns the VM, this node says so; it starts over, and founds it, when both hosts were started.
    pub(super) fn look_for_owner(
        &mut self,
        core: &mut Core,
        answer: Result<Option<Cell>, String>,
    ) -> Option<Next> {
        let ownerless = std::mem::take(&mut self.ownerless);
        if self.link.is_some() || self.hold != Hold::Nothing || core.stop_requested {
            return None;
        }
        let cell = answer.ok()?;
        let owner = cell.as_ref().and_then(|cell| cell.owner.as_deref());
        self.ended_in = match (&cell, owner) {
            // The first generation without an owner is that of a cell that waits for its first boot.
            (Some(cell), None) if cell.generation > 1 => Some(cell.generation),
            _ => None,
        };
        if owner == Some(&core.policy.node) || ownerless && owner.is_none() {
            core.out.push(Command::StopDialling);
            return Some(Next::Starting(Starting::default()));
        }
        None
    }

    pub(in crate::role) fn on_start(&mut self, core: &mut Core, wish: Wish) -> Option<Next> {
        let refusal = match (&self.link, self.hold, self.stage, &wish.how) {
            (Some(_), _, _, Start::From(node)) => {
                Some(RequestRefusal::PeerLives { node: node.clone(), heard_s: 0 })
            }
            (Some(_), ..) => Some(RequestRefusal::OwnedBy(core.policy.peer.clone())),
            (None, _, Stage::Contesting(_), _) => Some(RequestRefusal::Starting),
            (None, Hold::Sealed(_), _, Start::From(node)) if *node != core.policy.peer => {
                Some(RequestRefusal::NotThePeer(node.clone()))
            }
            (None, Hold::Sealed(_), _, Start::From(_)) => None,
            (None, Hold::Sealed(_), ..) => Some(RequestRefusal::HoldsState),
            (None, Hold::Nothing | Hold::Partial { .. }, ..) => None,
        };
        if let Some(why) = refusal {
            core.refuse(wish.request, why);
            return None;
        }
        // What is being read may be older than the operator's word.
        core.arbiter.void_read();
        core.arbiter.hurry();
        match self.hold {
            Hold::Sealed(_) => {
                self.end_release(core, RequestRefusal::Starting);
                self.release = Some(wish);
                return None;
            }
            Hold::Partial { .. } => core.out.push(Command::Discard),
            Hold::Nothing => {}
        }
        core.out.push(Command::StopDialling);
        Some(Next::Starting(Starting::by(wish)))
    }

    /// Whether the operator says that the owner of this cell is gone for good.
    pub(super) fn is_released(&self, cell: &Cell) -> bool {
        matches!(&self.release, Some(Wish { how: Start::From(node), .. }) if cell.owner.as_ref() == Some(node))
    }

    /// The VM goes on from what is held here.
    pub(super) fn note_released(&mut self, core: &mut Core, epoch: u64) {
        if let Some(wish) = self.release.take() {
            let how = format!("it goes on from epoch {epoch}, as held here");
            core.answer(wish.request, Ok(Done::Started(how)));
        }
    }

    pub(super) fn end_release(&mut self, core: &mut Core, why: RequestRefusal) {
        let wish = self.release.take();
        core.refuse_wish(wish, why);
    }

    pub(super) fn time_release(&mut self, core: &mut Core) {
        if self.release.as_ref().is_some_and(|wish| core.now >= wish.until) {
            let why = match core.arbiter.is_setting() {
                true => RequestRefusal::Undecided,
                false => RequestRefusal::TimedOut,
            };
            self.end_release(core, why);
        }
    }
}
