//! How a node begins, by the cell, and how it boots the VM by the operator's word: the next boot of a VM that has
//! ended, a fresh boot over a state that is lost, or over what a host had that is gone for good. The cell is read after
//! the word was given, and taken by compare-and-set: a node that was faster stays the owner.

use super::arbitration::Settled;
use super::backup::Backup;
use super::bereft::Bereft;
use super::command::{Command, Exit};
use super::core::{Core, Next};
use super::event::Micros;
use super::heir::Heir;
use super::policy::StartAs;
use super::primary::Primary;
use super::request::{Done, RequestId, RequestRefusal, Start};
use ft_arbiter::{Cell, CellId};

/// The operator's word, until it is answered.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) request: RequestId,
    pub(super) how: Start,
    /// How long he waits.
    pub(super) until: Micros,
}

/// A node that reads the cell, to know what it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Starting {
    trouble: Option<String>,
    wish: Option<Wish>,
}

/// A node that asks for the cell, to boot the VM.
#[derive(Clone, Debug)]
pub(super) struct Founding {
    /// The cell as it was read; none: it is to be founded too.
    expected: Option<(CellId, u64)>,
    /// What becomes of it when it is ours, for the operator.
    why: String,
    trouble: Option<String>,
    wish: Option<Wish>,
}

impl Starting {
    pub(super) fn by(wish: Wish) -> Self {
        Self { trouble: None, wish: Some(wish) }
    }

    pub(super) fn on_start(&mut self, core: &mut Core, wish: Wish) {
        match self.wish {
            Some(_) => core.refuse(wish.request, RequestRefusal::Starting),
            None => {
                core.arbiter.void_read();
                self.wish = Some(wish);
            }
        }
    }

    pub(super) fn on_tick(&mut self, core: &mut Core) {
        if let Some(wish) = self.wish.take_if(|wish| core.now >= wish.until) {
            core.refuse(wish.request, RequestRefusal::TimedOut);
        }
    }

    pub(super) fn on_cell(&mut self, core: &mut Core, answer: Result<Option<Cell>, String>) -> Option<Next> {
        match answer {
            Ok(cell) => Some(core.beginning(cell, self.wish.take())),
            Err(why) => {
                self.trouble = Some(why);
                None
            }
        }
    }

    pub(super) fn detail(&self, core: &Core) -> String {
        asking(&format!("reading the arbiter's cell at {}", core.policy.place), self.trouble.as_deref())
    }
}

impl Founding {
    fn new(cell: Option<&Cell>, why: String, wish: Option<Wish>) -> Self {
        Self { expected: cell.map(|cell| (cell.id, cell.generation)), why, trouble: None, wish }
    }

    /// The state of this cell's VM is lost, and given up by the configuration.
    pub(super) fn over_lost(cell: &Cell) -> Self {
        Self::new(Some(cell), over(cell), None)
    }

    pub(super) fn pursue(&self, core: &mut Core) {
        let (id, before) = match self.expected {
            Some((id, generation)) => (id, Some(generation)),
            // A new cell, unlike any other.
            None => (CellId(core.policy.nonce), None),
        };
        let owner = Some(core.policy.node.clone());
        let generation = before.unwrap_or(0) + 1;
        core.ask_set(before, Cell { id, generation, owner, standby: None });
    }

    pub(super) fn on_tick(&mut self, core: &mut Core) -> Option<Next> {
        let wish = self.wish.take_if(|wish| core.now >= wish.until)?;
        if core.arbiter.is_setting() {
            core.refuse(wish.request, RequestRefusal::Undecided);
            return None;
        }
        core.refuse(wish.request, RequestRefusal::TimedOut);
        Some(Next::Starting(Starting::default()))
    }

    /// The answer to a question that was under way. The cell may have gone on from the one that is to be founded over:
    /// what this node is by that is found out anew.
    pub(super) fn on_cell(&mut self, answer: Result<Option<Cell>, String>) -> Option<Next> {
        let found = answer.ok()?.map(|cell| (cell.id, cell.generation));
        (found != self.expected).then(|| Next::Starting(Starting { trouble: None, wish: self.wish.take() }))
    }

    pub(super) fn on_settled(&mut self, core: &mut Core, settled: Settled) -> Option<Next> {
        let wish = self.wish.take();
        match settled {
            Settled::Won(cell) if core.stop_requested => {
                core.refuse_wish(wish, RequestRefusal::VmEnding);
                let mut primary = Primary::solo(cell, "stopped before it booted");
                primary.shut_down(core, "stopped before it booted");
                Some(Next::Primary(primary))
            }
            Settled::Won(cell) => {
                core.out.push(Command::Boot);
                if let Some(wish) = wish {
                    core.answer(wish.request, Ok(Done::Started(self.why.clone())));
                }
                Some(Next::Primary(Primary::solo(cell, &self.why)))
            }
            Settled::Lost(_) | Settled::NotAttempted(_) if core.stop_requested => {
                core.refuse_wish(wish, RequestRefusal::VmEnding);
                Some(Next::Ended(Exit::Stopped("stopped before it had a role".into())))
            }
            Settled::Lost(_) => {
                core.refuse_wish(wish, RequestRefusal::LostArbitration);
                Some(Next::Starting(Starting::default()))
            }
            Settled::NotAttempted(why) => {
                self.trouble = Some(why);
                self.wish = wish;
                None
            }
        }
    }

    pub(super) fn detail(&self, core: &Core) -> String {
        asking(&format!("asking the arbiter at {} for the VM", core.policy.place), self.trouble.as_deref())
    }
}

impl Core {
    pub(super) fn refuse_wish(&mut self, wish: Option<Wish>, why: RequestRefusal) {
        if let Some(wish) = wish {
            self.refuse(wish.request, why);
        }
    }

    /// Whether the operator's word on a host that is gone can be taken: that host is silent.
    pub(super) fn judge_silence(&self, wish: &Wish) -> Result<(), RequestRefusal> {
        match (&wish.how, self.heard_at) {
            (Start::From(node), Some(at))
                if *node == self.policy.peer && self.now < at + self.policy.patience_us =>
            {
                let heard_s = (self.now - at) / 1_000_000;
                Err(RequestRefusal::PeerLives { node: node.clone(), heard_s })
            }
            _ => Ok(()),
        }
    }

    /// What this node is, by the cell, and by the operator's word.
    pub(super) fn beginning(&mut self, cell: Option<Cell>, wish: Option<Wish>) -> Next {
        let how = wish.as_ref().map(|wish| wish.how.clone());
        let owner = cell.as_ref().and_then(|cell| cell.owner.clone());
        match (cell, owner, how) {
            (cell, None, None) if self.policy.start_as == StartAs::Primary => {
                if let Some(cell) = &cell {
                    self.act_on(cell.id, cell.generation);
                }
                Next::Founding(Founding::new(cell.as_ref(), "booted".into(), None))
            }
            (_, None, None) => Next::Backup(Backup::of_nobody()),
            (_, None, Some(Start::From(_))) => {
                self.refuse_wish(wish, RequestRefusal::OwnedByNobody);
                Next::Backup(Backup::of_nobody())
            }
            (cell, None, Some(_)) => {
                Next::Founding(Founding::new(cell.as_ref(), "booted, as the operator asked".into(), wish))
            }
            (Some(cell), Some(owner), how) if owner == self.policy.node => {
                self.act_on(cell.id, cell.generation);
                if how == Some(Start::Fresh) {
                    return Next::Founding(Founding::new(Some(&cell), over(&cell), wish));
                }
                if let Some(image) = self.on_disk.image_for(&cell) {
                    self.refuse_wish(wish, RequestRefusal::HoldsState);
                    return Next::Heir(Heir::of_image(self, cell, image));
                }
                let generation = cell.generation;
                let holder = cell.standby.as_ref().map(|standby| standby.node.clone());
                self.refuse_wish(wish, RequestRefusal::StateLost { generation, holder });
                let why = self.on_disk.why_not_for(&cell);
                Next::Bereft(Bereft::new(self, cell, why))
            }
            (Some(cell), Some(owner), Some(Start::From(node))) if owner == node => {
                let why = format!(
                    "booted anew: what node {node} had of generation {} is given up",
                    cell.generation
                );
                Next::Founding(Founding::new(Some(&cell), why, wish))
            }
            (_, Some(owner), _) if owner == self.policy.peer => {
                self.refuse_wish(wish, RequestRefusal::OwnedBy(owner));
                Next::Backup(Backup::new("dialling the primary"))
            }
            (_, Some(owner), _) => {
                self.refuse_wish(wish, RequestRefusal::OwnedBy(owner.clone()));
                Next::Ended(Exit::Failed(format!(
                    "the arbiter's cell belongs to node {owner}, which is neither {} nor {}",
                    self.policy.node, self.policy.peer
                )))
            }
        }
    }
}

fn over(cell: &Cell) -> String {
    format!("booted anew: its memory of generation {} was lost", cell.generation)
}

fn asking(what: &str, trouble: Option<&str>) -> String {
    match trouble {
        Some(why) => format!("{what}: {why}"),
        None => what.to_string(),
    }
}
