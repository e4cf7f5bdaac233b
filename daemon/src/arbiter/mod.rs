//! The arbiter: one test-and-set cell per VM that says which replica may go on alone.
//!
//! The only operation that changes it sets the whole cell from generation g to g+1, first come first served, durable
//! before it answers. Calls may block for as long as the storage hangs: the daemon makes them on a thread of their own
//! and treats one that has not come back as unanswered.

pub mod file;

use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

pub use file::FileArbiter;

/// Who has the VM, and who may take it over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// Counts every change, from 1.
    pub generation: u64,
    /// The node that has the VM.
    pub owner: Option<String>,
    /// The node that may take it over; none: the owner is solo.
    pub standby: Option<Standby>,
}

/// The right to contest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standby {
    /// The backup's node.
    pub node: String,
    /// The full copy that it must hold, with what followed it.
    pub pairing: u64,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {}, owner {}", self.generation, self.owner.as_deref().unwrap_or("none"))?;
        match &self.standby {
            Some(standby) => write!(f, ", standby {} (pairing {:016x})", standby.node, standby.pairing),
            None => f.write_str(", no standby"),
        }
    }
}

/// What became of a compare-and-set.
#[derive(Debug)]
#[must_use]
pub enum Outcome {
    /// The cell is, or was at one moment, what was asked for.
    Won(Cell),
    /// The cell has another generation than expected: this is what it holds. If that equals what was asked for, an
    /// earlier attempt of this node, whose answer was lost, has won.
    Lost(Option<Cell>),
    /// Certain: nothing was changed and nothing is under way. It may be tried again.
    NotAttempted(ArbiterError),
    /// It may have happened. Read the cell before concluding anything.
    Unknown(ArbiterError),
}

/// A back end.
pub trait Arbiter: Send {
    /// What the cell holds; `None` if it was never set.
    fn read(&mut self) -> Result<Option<Cell>, ArbiterError>;

    /// Sets the cell to `new` if its generation is `expected` (`None`: if it was never set). `new.generation` must be
    /// the next one.
    fn compare_and_set(&mut self, expected: Option<u64>, new: Cell) -> Outcome;

    /// What it is and where, for people.
    fn describe(&self) -> String;
}

/// Why the arbiter gave no answer.
#[derive(Debug, Error)]
pub enum ArbiterError {
    /// The storage failed.
    #[error("arbiter {}: {at}: {source}", path.display())]
    Io {
        /// The cell's path.
        path: PathBuf,
        /// The step that failed.
        at: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What lies there is damaged. It is never taken for an empty cell.
    #[error("arbiter {}: the cell is damaged: {reason}; see which node has the VM, then remove the damaged file", path.display())]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The cell belongs to another VM.
    #[error("arbiter {}: this is the cell of VM '{found}', not of '{vm}'", path.display())]
    OtherVm {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        vm: String,
    },
    /// The caller asked for a generation that does not follow.
    #[error("arbiter: generation {new} does not follow {expected:?}")]
    Generation {
        /// The generation expected.
        expected: Option<u64>,
        /// The one asked for.
        new: u64,
    },
}
