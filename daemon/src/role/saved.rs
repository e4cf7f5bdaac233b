//! The image on disk: a sealed state of the VM that this node owned and could not resume. It is good for exactly the
//! cell that the node won for it. Whoever runs the VM from it holds its output until the cell has gone on by one; from
//! then on the image is stale, and no crash can make it come back (I2, I11).

use super::command::Command;
use super::core::Core;
use super::event::Held;
use ft_arbiter::{Cell, CellId};

/// Which state it is, and when it may be gone on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The cell.
    pub cell: CellId,
    /// The generation that was won for it.
    pub generation: u64,
    /// What was sealed.
    pub held: Held,
}

/// What lies on this node's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OnDisk {
    /// No image.
    #[default]
    Nothing,
    /// One, or it is being written.
    Image(Saved),
    /// Something that is none, and why.
    Unusable(String),
}

impl OnDisk {
    /// What is held in it, if this cell is the one that it is for.
    pub(super) fn held_for(&self, cell: &Cell) -> Option<Held> {
        match self {
            Self::Image(saved) if (saved.cell, saved.generation) == (cell.id, cell.generation) => {
                Some(saved.held)
            }
            _ => None,
        }
    }

    /// Why the owner of this cell has no memory of its VM.
    pub(super) fn why_not_for(&self, cell: &Cell) -> String {
        let this = "this process has not run it";
        match self {
            Self::Nothing => this.into(),
            Self::Unusable(why) => format!("{this}, and its image on disk {why}"),
            Self::Image(saved) if saved.cell != cell.id => {
                format!("{this}, and the image on disk is of another cell, {}", saved.cell)
            }
            Self::Image(saved) => format!(
                "{this}, and the image on disk is stale: it is of generation {}, and the VM went on from there",
                saved.generation
            ),
        }
    }
}

impl Core {
    /// An image is removed when the cell is known to have moved past it.
    pub(super) fn drop_passed_image(&mut self) {
        if let (OnDisk::Image(saved), Some(record)) = (&self.on_disk, self.record)
            && record.cell == saved.cell
            && record.generation > saved.generation
        {
            self.on_disk = OnDisk::Nothing;
            self.out.push(Command::DropImage);
        }
    }
}
