//! What goes over the control socket. One JSON object a line in both directions, the version in every request:
//!
//! ```text
//! {"version":1,"request":"status"}
//! {"version":1,"request":{"failover":{"timeout_ms":10000}}}
//! ```
//!
//! Each request has one response, but for `watch`, which has a stream of statuses until the client hangs up, and
//! `console`, after whose response the connection carries raw bytes both ways.

use crate::metrics::Percentiles;
use crate::telemetry::{Divergence, Parts, TakeOver};
use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

/// Version of the protocol.
pub const PROTOCOL_VERSION: u32 = 1;
/// Version of [`Status`]: raised when a field changes its meaning or goes; new fields do not raise it.
pub const STATUS_SCHEMA: u32 = 1;
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
    /// What is asked for.
    pub request: Request,
}

/// What can be asked for.
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
    /// Hands the VM over to the backup, losing nothing.
    Failover {
        /// Given up after this time, with the VM where it was.
        timeout_ms: u64,
    },
    /// Answers when the goal is reached.
    Wait {
        /// The goal.
        goal: Goal,
        /// Given up after this time.
        timeout_ms: u64,
    },
    /// Ends the daemon, and on the primary the VM.
    Stop,
    /// Attaches to the serial console.
    Console,
    /// The metrics in the text format of Prometheus.
    Metrics,
}

/// What can be waited for.
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
    /// To `failover` and `stop`: done, in words.
    Done(String),
    /// To `console`: from the next byte on the connection is the console.
    Console,
    /// To `metrics`.
    Metrics(String),
    /// It was not done.
    Error(Failure),
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

/// What a node is to the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It runs the VM.
    Primary,
    /// It holds the VM's state.
    Backup,
}

/// How the pair is, as this node knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A backup can take over at any moment.
    Protected,
    /// The VM runs without a backup, by the arbiter's leave.
    Solo,
    /// A backup is receiving a full copy.
    Resyncing,
    /// Something is missing before it can go on; the detail says what.
    Waiting,
    /// The other replica has the VM; this one is stopped.
    Fenced,
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
            Self::Solo => "solo",
            Self::Resyncing => "resyncing",
            Self::Waiting => "waiting",
            Self::Fenced => "fenced",
        })
    }
}

/// Everything about one VM on one node. Rates and percentiles are those of the last seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`STATUS_SCHEMA`].
    pub schema: u32,
    /// Version of the daemon.
    pub version: String,
    /// The VM.
    pub vm: String,
    /// This node.
    pub node: String,
    /// What this node is to the VM.
    pub role: Role,
    /// How the pair is.
    pub state: State,
    /// In words: why it waits, what it does.
    pub detail: String,
    /// The arbiter's generation that this node acts in.
    pub generation: u64,
    /// Last epoch captured (primary) or received (backup).
    pub epoch: u64,
    /// Last epoch acked.
    pub acked_epoch: u64,
    /// Checkpoints committed a second.
    pub checkpoints_per_s: f64,
    /// Pages in the last checkpoint.
    pub dirty_pages: u64,
    /// Pause of the VM for a checkpoint, in microseconds.
    pub pause_us: Percentiles,
    /// Time that output was held, in microseconds.
    pub hold_us: Percentiles,
    /// Bytes sent to the peer since the start.
    pub bytes_sent: u64,
    /// Bytes captured for each byte sent.
    pub compression_ratio: f64,
    /// What pauses and checkpoints are made of.
    pub parts: Parts,
    /// "checkpoint" or "replay".
    #[serde(default)]
    pub mode: String,
    /// "kvm" or "soft".
    #[serde(default)]
    pub engine: String,
    /// Instructions that the engine lacks and the guest executed here.
    #[serde(default)]
    pub unknown_instructions: u64,
    /// What replay mode has besides: keys of the status itself.
    #[serde(flatten)]
    pub replay: Option<ReplayStatus>,
    /// The full copy under way.
    pub copy: Option<CopyProgress>,
    /// The last take-over by this daemon.
    pub take_over: Option<TakeOver>,
    /// The other node.
    pub peer: PeerStatus,
    /// The arbiter.
    pub arbiter: ArbiterStatus,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
}

/// Replay mode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplayStatus {
    /// Instructions executed at the last cut of the log (primary), or by now (backup).
    pub count: u64,
    /// Bytes of log cut in a second.
    pub log_bytes_per_s: f64,
    /// How far the backup is behind, in microseconds.
    pub lag_us: u64,
    /// Part of its time that the VM stands still so that the backup comes after.
    pub throttle_pct: f64,
    /// Times a backup diverged since this daemon started.
    pub divergences: u64,
    /// The last one.
    pub last_divergence: Option<Divergence>,
}

/// A full copy under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyProgress {
    /// Guest memory covered.
    pub done_bytes: u64,
    /// Guest memory to cover.
    pub total_bytes: u64,
}

/// The other node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub node: String,
    /// Where it is.
    pub address: String,
    /// Whether it is connected.
    pub connected: bool,
    /// What the last attempt to connect, or the last connection, came to.
    pub trouble: Option<String>,
}

/// The arbiter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArbiterStatus {
    /// What it is and where.
    pub place: String,
    /// Whether the last request was answered.
    pub reachable: bool,
}
