//! The cell that the arbiter holds for each VM.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Who has the VM, and who may take it over.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
