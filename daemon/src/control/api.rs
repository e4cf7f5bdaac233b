//! The protocol of the control socket: one JSON object per line in both directions, with the version in every request:
//!
//! ```text
//! {"version":2,"request":"status"}
//! {"version":2,"request":{"switchover":{"timeout_ms":10000}}}
//! ```
//!
//! A daemon greets a remote client first, with what it is: `{"greeting":{"vm":"web","node":"alpha"}}`.
//!
//! Each request has one response, but for `watch`, which has a stream of statuses until the client hangs up, and
//! `console`, after whose response the connection carries raw bytes both ways.

pub use crate::observe::{
    ArbiterStatus, CopyStatus, DisksVerifyStatus, LapseStatus, MemberStatus, NetworkStatus, PeerStatus,
    ReplayStatus, STATUS_SCHEMA, STUCK_MS, SecurityStatus, Status, VerifyState,
};
pub use crate::role::{Role, Start, State};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Version of the protocol.
pub const PROTOCOL_VERSION: u32 = 2;
/// Longest request line.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Longest response line.
pub const RESPONSE_BYTES_MAX: usize = 4 << 20;
/// Longest time that a client may have the daemon wait: a day.
pub const TIMEOUT_MS_MAX: u64 = 24 * 3600 * 1000;

/// A line to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestLine {
    /// [`PROTOCOL_VERSION`].
    pub version: u32,
    /// The request.
    pub request: Request,
}

/// A client's request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The status now.
    Status,
    /// The status now, at every change of role or state, and every `interval_ms` (at least 50).
    Watch {
        /// Longest time between two.
        interval_ms: u64,
    },
    /// A planned switchover: the backup goes on with the VM, and nothing is lost.
    #[serde(alias = "failover")]
    Switchover {
        /// Given up after this time, with the VM where it was.
        timeout_ms: u64,
    },
    /// Boots the VM on this node, or goes on with what it holds; answered when that is certain.
    Start {
        /// What is given up for it.
        how: Start,
        /// Given up after this time.
        timeout_ms: u64,
    },
    /// Answers when the goal is reached.
    Wait {
        /// The goal.
        goal: Goal,
        /// Given up after this time.
        timeout_ms: u64,
    },
    /// Ends the daemon; answered when that is certain. A protected VM moves to the backup first. A VM that cannot move
    /// goes on, and the daemon with it, unless it is to be powered off.
    Stop {
        /// The VM is powered off: the guest has this long until the cord is pulled.
        power_off_ms: Option<u64>,
    },
    /// Begins to compare the backup's disk images with this node's; the status says how far that is, and what it found.
    VerifyDisks {
        /// MiB a second that are read for it on this host; 0: as fast as it goes.
        mib_s: u64,
        /// What differs is sent.
        repair: bool,
    },
    /// Attaches to the serial console.
    Console,
    /// The metrics in the text format of Prometheus.
    Metrics,
}

/// A state to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// A backup can take over.
    Protected,
    /// This node runs the VM without a backup.
    Solo,
    /// This node runs the VM.
    Primary,
    /// This node is the backup.
    Backup,
}

impl Goal {
    /// Whether a status fulfils it.
    #[must_use]
    pub fn is_reached(self, status: &Status) -> bool {
        match self {
            Self::Protected => status.state == State::Protected,
            Self::Solo => status.state == State::Solo,
            Self::Primary => status.role == Role::Primary,
            Self::Backup => status.role == Role::Backup,
        }
    }
}

/// A line from the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// To `status`, `watch` and `wait`.
    Status(Box<Status>),
    /// To `switchover`, `start` and `stop`: done, in words; to `verify_disks`: begun.
    Done(String),
    /// To `console`: from the next byte on the connection is the console.
    Console,
    /// To `metrics`.
    Metrics(String),
    /// Before any request, to a remote client: who is here.
    Greeting(Greeting),
    /// It was not done.
    Error(Failure),
}

/// Which daemon a remote client has come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Its VM.
    pub vm: String,
    /// Its node.
    pub node: String,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
#[serde(tag = "kind", content = "message", rename_all = "snake_case")]
pub enum Failure {
    /// The request is not one.
    #[error("bad request: {0}")]
    BadRequest(String),
    /// Not in this state, not on this node.
    #[error("refused: {0}")]
    Refused(String),
    /// Not within the time given.
    #[error("timed out: {0}")]
    TimedOut(String),
    /// It was tried and failed.
    #[error("failed: {0}")]
    Failed(String),
    /// Too many clients.
    #[error("busy: {0}")]
    Busy(String),
}
