//! The stamps of this node's images, as the VM comes and goes: written before it runs from them, and after each change
//! of the cell while it does.

use super::error::HandsError;
use crate::disks::{Claim, Disks, Ground, Stamps, Unfit};
use ft_arbiter::{Cell, CellId, Outcome};
use ft_mirror::History;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// See the module.
pub(super) struct Stamping {
    node: String,
    ground: Ground,
    /// None: no disk is writable.
    stamped: Option<Stamped>,
}

struct Stamped {
    stamps: Arc<Stamps>,
    /// To the thread that stamps what the cell says while the VM runs: the disk of the state directory may hang.
    owned: Sender<(CellId, u64)>,
}

impl Stamping {
    /// Starts the thread.
    pub(super) fn start(node: String, disks: Option<&Disks>) -> std::io::Result<Self> {
        let start = |stamps: Arc<Stamps>| {
            let (owned, told) = channel();
            let of_thread = Arc::clone(&stamps);
            std::thread::Builder::new().name("ftd-stamps".into()).spawn(move || stamp(&of_thread, &told))?;
            std::io::Result::Ok(Stamped { stamps, owned })
        };
        let stamped = disks.map(|disks| start(Arc::clone(disks.stamps()))).transpose()?;
        Ok(Self { node, ground: Ground::default(), stamped })
    }

    /// The arbiter has answered.
    pub(super) fn note_cell(&mut self, cell: Option<&Cell>) {
        self.ground.note(cell);
        if let (Some(stamped), Some(cell)) = (&self.stamped, self.ground.owned_by(&self.node)) {
            // A thread that has ended has panicked; its message is in the log.
            let _ = stamped.owned.send((cell.id, cell.generation));
        }
    }

    /// It was asked for a change of the cell.
    pub(super) fn note_outcome(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Won(cell) | Outcome::Lost(Some(cell)) => self.note_cell(Some(cell)),
            Outcome::Lost(None) => self.note_cell(None),
            Outcome::NotAttempted(_) | Outcome::Unknown(_) => {}
        }
    }

    /// The VM is about to boot here. Its images must be right, and say so before it changes them; what is sealed of
    /// them is carried out before they say so.
    pub(super) fn claim(&self, disks: Option<&Disks>) -> Result<(), HandsError> {
        let claim = |stamped: &Stamped| self.ground.claim(&stamped.stamps, &self.node);
        let claimed = self.stamped.as_ref().map_or(Ok(Claim::AtOnce), claim)?;
        if let (Claim::OnceCarriedOut, Some(disks)) = (claimed, disks) {
            disks.follower().carry_out(&|| false)?;
        }
        self.ran()
    }

    /// The VM is about to run here: what it has is in the images.
    pub(super) fn ran(&self) -> Result<(), HandsError> {
        let Some(stamped) = &self.stamped else { return Ok(()) };
        let cell = self.ground.owned_by(&self.node).ok_or(Unfit::Unseen)?;
        Ok(stamped.stamps.write(cell.id, History::Ran { generation: cell.generation })?)
    }

    /// It runs here no more.
    pub(super) fn rest(&self) {
        if let Some(stamped) = &self.stamped {
            stamped.stamps.rest();
        }
    }
}

fn stamp(stamps: &Stamps, told: &Receiver<(CellId, u64)>) {
    while let Ok(first) = told.recv() {
        let (cell, generation) = told.try_iter().last().unwrap_or(first);
        if let Err(e) = stamps.owned(cell, generation) {
            tracing::error!("should this host fail now, an operator must say whose images are right: {e}");
        }
    }
}
