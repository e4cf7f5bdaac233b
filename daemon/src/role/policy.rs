//! The configuration that the core's decisions depend on.

use super::event::Micros;
use super::record::NodeRecord;
use super::saved::OnDisk;
use super::surroundings::OnUplinkLoss;
use serde::{Deserialize, Serialize};

/// Who boots the VM while the arbiter's cell names nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartAs {
    /// This node does.
    Primary,
    /// The peer does.
    Backup,
}

/// What a node does that lost the arbitration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFenced {
    /// It looks at the cell, and comes back as the backup.
    #[default]
    Rejoin,
    /// Its process ends.
    Exit,
}

/// What a node does that owns a VM whose memory is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLostMemory {
    /// It waits for the operator.
    #[default]
    Wait,
    /// It boots the VM anew after a while.
    Boot,
}

/// Times that may change while the daemon runs. A lease that was granted is promised as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// [`Policy::failure_timeout_us`].
    pub failure_timeout_us: Micros,
    /// [`Policy::takeover_delay_us`].
    pub takeover_delay_us: Micros,
}

/// The configuration that decisions depend on.
#[derive(Clone, Debug)]
pub struct Policy {
    /// This node.
    pub node: String,
    /// The other node.
    pub peer: String,
    /// What to do with an empty cell.
    pub start_as: StartAs,
    /// What this node has recorded of the cell; none: it has never acted on any.
    pub record: Option<NodeRecord>,
    /// What lies on this node's disk of a VM that it could not resume.
    pub on_disk: OnDisk,
    /// Where this node's arbiter is, for people.
    pub place: String,
    /// How long nobody has shown up with the state of a VM whose memory is lost here when it is booted anew; none: it
    /// is not.
    pub boot_lost_after_us: Option<Micros>,
    /// What becomes of this node when it loses the arbitration.
    pub on_fenced: OnFenced,
    /// Whether a guest that resets is booted again, or ends.
    pub restart_on_reset: bool,
    /// What a primary does whose VM nobody reaches any more.
    pub on_uplink_loss: OnUplinkLoss,
    /// How long an answer of the backup permits the primary to release, at least.
    pub lease_us: Micros,
    /// Silence after which the peer counts as lost.
    pub failure_timeout_us: Micros,
    /// How long a backup lets a primary that merely lost the link go first.
    pub takeover_delay_us: Micros,
    /// Interval of heartbeats.
    pub heartbeat_us: Micros,
    /// Interval between attempts at an arbiter that does not answer.
    pub arbiter_retry_us: Micros,
    /// Interval between questions to the arbiter while there is nothing to be asked of it.
    pub probe_us: Micros,
    /// How long an arbiter's answer counts for the proof that the pair is protected.
    pub proof_us: Micros,
    /// How long a switchover waits for the peer, a backup that is to stop for the primary's going on without it, and
    /// anybody for the answer of the arbiter.
    pub patience_us: Micros,
    /// How often a backup has it shown that the VM could go on from what it holds.
    pub rehearsal_us: Micros,
    /// How long the next pairing waits after one that failed, at first.
    pub pairing_wait_us_min: Micros,
    /// And after many.
    pub pairing_wait_us_max: Micros,
    /// Random, drawn anew by every process: names of pairings start here.
    pub nonce: u64,
}

impl Policy {
    /// A link whose stream brings nothing for this long counts as lost, also while its pulse beats. It is longer than
    /// what a lossy network takes to bring a lost packet after all.
    pub(in crate::role) fn stall_us(&self) -> Micros {
        4 * self.failure_timeout_us
    }

    /// The longest lease: the promise that it rests on is over when a silent peer counts as lost.
    pub(in crate::role) fn lease_us_max(&self) -> Micros {
        self.lease_us.max(self.failure_timeout_us * 3 / 4)
    }
}

/// How long a backup stays quiet that has granted this lease: an eighth more, for the drift between two clocks.
pub(in crate::role) fn promise_us(lease: Micros) -> Micros {
    lease + lease / 8 + 1_000
}
