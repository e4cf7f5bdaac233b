//! A node's own record of the cell: which one it is, and the highest generation that the node has acted on. To read a
//! cell is not to act on it: a node acts when it founds, owns or wins it, and as a backup when its primary is in the
//! same one. The record outlives the process, and is made durable before anything is done by it. A cell that does not
//! follow from the record is trouble with the arbiter: nobody founds, discards or fences because of it.
//!
//! A disk that fails or hangs does not keep a VM from going on. That only one node speaks rests on the cell alone; the
//! record is for the day on which the cell goes back while this process is no more. Until it is durable the node knows
//! as much by itself, and "protected" is not said.

use ft_arbiter::{Cell, CellId};

/// What is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// The cell.
    pub cell: CellId,
    /// The highest generation of it that was acted on.
    pub generation: u64,
}

impl NodeRecord {
    /// Whether this cell follows from the record.
    pub fn admits(self, cell: Option<&Cell>) -> Result<(), Distrust> {
        judge(Some(self), 0, cell)
    }
}

/// Why a cell that was read is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// There is none, and there was one.
    #[error("the cell is missing, but this node has seen generation {generation} of it; {REMEDY}")]
    Missing {
        /// The highest generation known.
        generation: u64,
    },
    /// It was newer before.
    #[error("the cell went back: it says {found}, but this node has seen generation {generation}; {REMEDY}")]
    Older {
        /// What was found.
        found: Cell,
        /// The highest generation known.
        generation: u64,
    },
    /// It is another one.
    #[error("this is cell {}, but this node's VM is in cell {known}: {found}; {REMEDY}", found.id)]
    Other {
        /// What was found.
        found: Cell,
        /// The cell of this node's record.
        known: CellId,
    },
}

/// What an operator can do.
const REMEDY: &str = "nothing follows from it: bring the right storage back; if the cell is gone for good, stop both \
                      nodes and found it anew with ftd init --forget";

/// Judges what was read, by the record and by the highest generation that this process has heard of.
pub(super) fn judge(
    record: Option<NodeRecord>,
    generation: u64,
    cell: Option<&Cell>,
) -> Result<(), Distrust> {
    let generation = record.map_or(0, |record| record.generation).max(generation);
    match (cell, record) {
        (None, _) if generation == 0 => Ok(()),
        (None, _) => Err(Distrust::Missing { generation }),
        (Some(found), Some(record)) if found.id != record.cell => {
            Err(Distrust::Other { found: found.clone(), known: record.cell })
        }
        (Some(found), _) if found.generation < generation => {
            Err(Distrust::Older { found: found.clone(), generation })
        }
        (Some(_), _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(id: u64, generation: u64) -> Cell {
        Cell { id: CellId(id), generation, owner: None, standby: None }
    }

    #[test]
    fn only_what_follows_from_the_record_is_believed() {
        let record = Some(NodeRecord { cell: CellId(1), generation: 5 });
        let judged = |record, heard, cell: Option<Cell>| judge(record, heard, cell.as_ref()).err();
        assert_eq!(judged(None, 0, None), None);
        assert_eq!(judged(None, 0, Some(cell(9, 3))), None);
        assert_eq!(judged(record, 0, Some(cell(1, 5))), None);
        assert_eq!(judged(record, 0, Some(cell(1, 6))), None);
        assert_eq!(judged(record, 0, None), Some(Distrust::Missing { generation: 5 }));
        assert_eq!(judged(None, 2, None), Some(Distrust::Missing { generation: 2 }));
        let found = cell(1, 4);
        assert_eq!(judged(record, 0, Some(found.clone())), Some(Distrust::Older { found, generation: 5 }));
        let found = cell(1, 6);
        assert_eq!(judged(record, 7, Some(found.clone())), Some(Distrust::Older { found, generation: 7 }));
        let found = cell(2, 9);
        assert_eq!(judged(record, 0, Some(found.clone())), Some(Distrust::Other { found, known: CellId(1) }));
    }
}
