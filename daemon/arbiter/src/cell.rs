//! The cell that the arbiter holds for each VM.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use thiserror::Error;

/// Which cell it is: drawn when the cell is founded, and the same for as long as it lives. Two directories are two
/// cells, whatever their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct CellId(pub u64);

impl fmt::Display for CellId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<CellId> for String {
    fn from(id: CellId) -> Self {
        id.to_string()
    }
}

/// A text that is no cell's identity.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("'{0}' is not a cell's identity: 16 hexadecimal digits")]
pub struct NotAnIdentity(String);

impl TryFrom<String> for CellId {
    type Error = NotAnIdentity;

    fn try_from(text: String) -> Result<Self, NotAnIdentity> {
        let id = u64::from_str_radix(&text, 16).map(Self);
        // One form only: what is read is what would be written.
        id.ok().filter(|id| id.to_string() == text).ok_or(NotAnIdentity(text))
    }
}

/// Who has the VM, and who may take it over.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// Which cell it is.
    pub id: CellId,
    /// Counts every change, from 1.
    #[serde(deserialize_with = "generation")]
    pub generation: u64,
    /// The node that has the VM.
    pub owner: Option<String>,
    /// The node that may take it over; none: the owner is solo.
    pub standby: Option<Standby>,
}

/// No cell comes to so many changes: what says more is nobody's cell, and cannot be counted on from.
pub const GENERATION_MAX: u64 = u64::MAX / 2;

fn generation<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let generation = u64::deserialize(from)?;
    let message = "no cell has such a generation";
    if generation <= GENERATION_MAX { Ok(generation) } else { Err(D::Error::custom(message)) }
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
