//! The core's view of itself: the two words of every status, and the reason for them.

use super::event::Micros;
use super::proof::Lapsed;
use super::rehearsal::RehearsalView;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a node is to the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It runs the VM, or ran it last.
    Primary,
    /// It holds the VM's state, or waits for it.
    Backup,
}

/// How the pair is, as this node knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A backup can take over at any moment, and that is proven.
    Protected,
    /// In step, but something that a take-over needs is not proven any more: it would have to wait.
    Degraded,
    /// The VM runs without a backup, by the arbiter's leave.
    Solo,
    /// A backup is receiving a full copy.
    Resyncing,
    /// Something is missing before it can go on; the detail says what.
    Waiting,
    /// The other replica has the VM; this one is stopped.
    Fenced,
    /// Not known: the node shows no state of its own any more. It is said of it, never by it.
    Stuck,
}

/// What the core tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Role.
    pub role: Role,
    /// State.
    pub state: State,
    /// The highest generation known.
    pub generation: u64,
    /// Times the peer was lost since the process began: it fell silent, or its connection broke.
    pub suspicions: u64,
    /// What is amiss with the proof of protection, or with this node's arbiter, and since when.
    pub lapses: Vec<Lapsed>,
    /// When this node's arbiter answered last, by this node's clock.
    pub arbiter_at: Option<Micros>,
    /// When the peer's did, as the peer said.
    pub peer_arbiter_at: Option<Micros>,
    /// The peer's name, as decisions go by it.
    pub peer: String,
    /// Whether the VM could go on from what this node holds as the backup.
    pub rehearsal: Option<RehearsalView>,
    /// One line for the operator: why it is so, or what it waits for.
    pub detail: String,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Primary => "primary",
            Self::Backup => "backup",
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Protected => "protected",
            Self::Degraded => "degraded",
            Self::Solo => "solo",
            Self::Resyncing => "resyncing",
            Self::Waiting => "waiting",
            Self::Fenced => "fenced",
            Self::Stuck => "stuck",
        })
    }
}
