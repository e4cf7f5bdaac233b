//! From what the VM begins to run on this node. Before its guest boots, the images are judged by the cell as it was
//! when this node asked for it; what is not right is not run from.

use super::stamps::Stamps;
use ft_arbiter::Cell;
use ft_mirror::{CellView, History, Holder, Judgement};
use std::path::PathBuf;

/// The cell that this node sees, and the one before.
#[derive(Clone, Debug, Default)]
pub struct Ground {
    before: Option<Cell>,
    now: Option<Cell>,
}

/// What is to be done before the VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nothing: the images are right.
    AtOnce,
    /// The journal is carried out.
    OnceCarriedOut,
}

/// Why the VM does not begin to run from its images.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// An image is not right.
    #[error(
        "disk image {}: {verdict}; start the VM on the node that ran it last, or, if that image is lost, stop ftd here \
         and say with `ftd disk adopt` that this node's images are right", image.display()
    )]
    Image {
        /// The image.
        image: PathBuf,
        /// What it is.
        verdict: Judgement,
    },
    /// The cell was not seen as it was.
    #[error(
        "the arbiter's cell was not seen before this node had it, so that its disk images cannot be judged"
    )]
    Unseen,
}

/// The cell as a node sees it.
#[must_use]
pub fn view(cell: &Cell, node: &str) -> CellView {
    let holder = match cell.owner.as_deref() {
        None => Holder::Nobody,
        Some(owner) if owner == node => Holder::This,
        Some(_) => Holder::Other,
    };
    CellView { cell: cell.id.0, generation: cell.generation, holder }
}

impl Ground {
    /// The arbiter has answered: this is the cell.
    pub fn note(&mut self, cell: Option<&Cell>) {
        if self.now.as_ref() != cell {
            self.before = std::mem::replace(&mut self.now, cell.cloned());
        }
    }

    /// The cell, if it says that this node owns the VM.
    #[must_use]
    pub fn owned_by(&self, node: &str) -> Option<&Cell> {
        self.now.as_ref().filter(|cell| cell.owner.as_deref() == Some(node))
    }

    /// Whether the VM may run from these images on this node, which owns it.
    pub fn claim(&self, stamps: &Stamps, node: &str) -> Result<Claim, Unfit> {
        let now = self.owned_by(node).ok_or(Unfit::Unseen)?;
        let ran = History::Ran { generation: now.generation };
        if stamps.say().iter().all(|stamp| stamp.is_some_and(|stamp| stamp.history == ran)) {
            // It ran here in this very generation, and its guest boots again.
            return judged(stamps, Some(view(now, node)));
        }
        let is_predecessor = |before: &Cell| before.id == now.id && before.generation + 1 == now.generation;
        match &self.before {
            Some(before) if is_predecessor(before) => judged(stamps, Some(view(before, node))),
            None if now.generation == 1 => judged(stamps, None),
            _ => Err(Unfit::Unseen),
        }
    }
}

fn judged(stamps: &Stamps, view: Option<CellView>) -> Result<Claim, Unfit> {
    let mut claim = Claim::AtOnce;
    for judged in stamps.judge(view) {
        match judged.verdict {
            Judgement::Right | Judgement::New => {}
            Judgement::RightOnceCarriedOut { .. } => claim = Claim::OnceCarriedOut,
            verdict => return Err(Unfit::Image { image: judged.image, verdict }),
        }
    }
    Ok(claim)
}
