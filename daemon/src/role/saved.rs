//! The image on disk: a sealed state of the VM that this node owned and could not resume. It is good for exactly the
//! cell that the node won for it. Whoever runs the VM from it holds its output until the cell has gone on by one; from
//! then on the image is stale, and no crash can make it come back (I2, I11).

use super::command::Command;
use super::core::Core;
use super::event::Held;
use super::record::NodeRecord;
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
    /// A whole one that does not fit this node as it is configured. It waits until it does, or is given up by the
    /// operator.
    Unfit {
        /// Its cell, if this program can tell.
        cell: Option<CellId>,
        /// Its generation.
        generation: u64,
        /// What does not fit.
        why: String,
    },
    /// Something that is none, and why.
    Unusable(String),
    /// That cannot be seen at present. It is looked at again.
    Unknown(String),
}

impl OnDisk {
    /// The image, if this cell is the one that it is for.
    pub(super) fn image_for(&self, cell: &Cell) -> Option<Saved> {
        match self {
            Self::Image(saved) if (saved.cell, saved.generation) == (cell.id, cell.generation) => {
                Some(*saved)
            }
            _ => None,
        }
    }

    /// Whether the state of this cell's VM may be there, although nobody can go on from it now.
    pub(super) fn may_hold(&self, at: &Cell) -> bool {
        match self {
            Self::Unknown(_) => true,
            Self::Unfit { cell, generation, .. } => {
                *generation == at.generation && cell.is_none_or(|cell| cell == at.id)
            }
            Self::Nothing | Self::Image(_) | Self::Unusable(_) => false,
        }
    }

    /// Why the owner of this cell has no memory of its VM.
    pub(super) fn why_not_for(&self, cell: &Cell) -> String {
        let this = "this process has not run it";
        match self {
            Self::Nothing => this.into(),
            Self::Unusable(why) => format!("{this}, and its image on disk is of no use: {why}"),
            Self::Unknown(why) => {
                format!(
                    "{this}, and whether its image is on disk cannot be seen, which is tried again: {why}"
                )
            }
            Self::Unfit { why, .. } if self.may_hold(cell) => format!(
                "{this}; its image is on disk and does not fit: {why}; put that right and restart ftd, and the VM goes \
                 on from it"
            ),
            Self::Unfit { generation, why, .. } => {
                format!(
                    "{this}, and the image on disk is of generation {generation}, and does not fit: {why}"
                )
            }
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
        let (cell, generation) = match &self.on_disk {
            OnDisk::Image(saved) => (saved.cell, saved.generation),
            OnDisk::Unfit { cell: Some(cell), generation, .. } => (*cell, *generation),
            OnDisk::Unfit { cell: None, .. } | OnDisk::Nothing | OnDisk::Unusable(_) | OnDisk::Unknown(_) => {
                return;
            }
        };
        let passed = |record: &NodeRecord| record.cell == cell && record.generation > generation;
        if let Some(record) = self.record.filter(passed)
            && !self.reads_image()
        {
            self.on_disk = OnDisk::Nothing;
            self.out.push(Command::DropImage { cell, below: record.generation });
        }
    }
}
