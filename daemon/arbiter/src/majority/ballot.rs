//! What orders the rounds of all proposers.

use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// No set comes to so many rounds: what says more is no ballot, and cannot be counted on from.
const ROUND_MAX: u64 = u64::MAX / 2;

/// A round's number. No two rounds have the same: `proposer` is drawn anew for each process's each way to a cell, and
/// `round` grows from one round of its to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ballot {
    /// Compared first.
    #[serde(deserialize_with = "round")]
    pub round: u64,
    /// Who proposes.
    pub proposer: u64,
}

impl Ballot {
    /// The proposer's next ballot above what it has seen.
    pub(super) fn above(seen: Option<Self>, proposer: u64) -> Self {
        let round = seen.map_or(0, |seen| seen.round) + 1;
        Self { round, proposer }
    }
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {:016x}", self.round, self.proposer)
    }
}

fn round<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let round = u64::deserialize(from)?;
    let message = "no ballot has such a round";
    if round <= ROUND_MAX { Ok(round) } else { Err(serde::de::Error::custom(message)) }
}
