//! The operator's requests, and what a node answers to them under the number that each request carries. Each has one
//! answer, which comes when it is certain.

use super::command::Command;
use super::core::Core;
use super::event::Micros;
use serde::{Deserialize, Serialize};

/// Names a request until it is answered. Never used twice in a process.
pub type RequestId = u64;

/// What becomes of the VM when its node is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It moves to the peer. If it cannot, it goes on, and so does the node.
    Move,
    /// It ends: its power button is pressed, and the cord is pulled if it is not off after this time.
    PowerOff {
        /// How long it is waited for.
        within_us: Micros,
    },
    /// Its host goes down. It moves for as long as there is time; then the host's end is a failover. A VM that nobody
    /// else could go on with ends with its host: its guest is asked to power off first.
    HostDown {
        /// How long the guest is waited for.
        within_us: Micros,
    },
}

/// What the operator gives up when he has the VM booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Nothing: the VM has ended, or was never booted.
    Ended,
    /// Its state, which is lost on this node, and what the peer may still hold of it.
    Fresh,
    /// Whatever this node, the VM's owner, has of it: its host is gone for good. What is held here is gone on from.
    From(String),
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// The peer runs the VM, and this node is its backup.
    Moved,
    /// This node stops, for this reason.
    Stopped(String),
    /// The VM runs here now: how it came to that.
    Started(String),
}

/// Why it was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestRefusal {
    /// It would be the second.
    #[error("a switchover is under way")]
    UnderWay,
    /// There will be nothing to hand over.
    #[error("the VM is ending")]
    VmEnding,
    /// Nobody could go on.
    #[error("the VM is not protected: there is no backup that could take over")]
    NotProtected,
    /// The backup could not go on, or could not be made to: this is missing.
    #[error("the VM stays where it is: {0}")]
    Unproven(String),
    /// Asked on the wrong side.
    #[error("this node is the backup; ask the primary")]
    IsBackup,
    /// Asked before the node has a role.
    #[error("this node does not run the VM")]
    NoRole,
    /// Asked while the VM is being restored.
    #[error("the VM does not run yet: its state is still being restored, and this node has the only copy")]
    NotRunning,
    /// A stop of a node that cannot put what it holds into safety.
    #[error(
        "the VM's state is still being restored, this node has the only copy, and cannot write it to disk: {0}"
    )]
    Unsaved(String),
    /// The host failed the machine meanwhile.
    #[error("the machine failed on this host")]
    MachineFailed,
    /// It was for the VM's network, which has changed meanwhile.
    #[error("the VM would not be better reached on the other host any more")]
    CutOff,
    /// The guest asked for a reset meanwhile.
    #[error("the guest is rebooting")]
    GuestReboots,
    /// The cell went to somebody else meanwhile.
    #[error("lost the arbitration")]
    LostArbitration,
    /// A stop would end the VM.
    #[error("the VM runs here and no backup could go on with it; stop --power-off shuts the guest down")]
    WouldEnd,
    /// A stop of a node whose copy may be the last.
    #[error("this node holds a state of the VM that may be the last copy, and does not hear the primary")]
    LastCopy,
    /// A stop of a backup that its primary does not let go.
    #[error("the primary does not go on without this node ({0})")]
    Needed(String),
    /// A stop that was overtaken.
    #[error("this node has taken the VM over, and runs it now")]
    TookOver,
    /// A start of a VM that is being started.
    #[error("the VM is being started already")]
    Starting,
    /// A start of a VM that runs here.
    #[error("this node runs the VM")]
    AlreadyRuns,
    /// A start of another node's VM.
    #[error(
        "node {0} owns the VM: start it there; if that host is gone for good, ftctl release {0} starts the VM here"
    )]
    OwnedBy(String),
    /// A release of a VM that nobody owns.
    #[error("nobody owns the VM: ftctl start boots it")]
    OwnedByNobody,
    /// A start of a VM whose state would be given up by it.
    #[error(
        "the VM's memory of generation {generation} was lost on this node{}; ftctl start --fresh gives it up and \
         boots the VM anew",
        holder.as_ref().map(|node| format!(", and node {node} may still hold it")).unwrap_or_default()
    )]
    StateLost {
        /// The generation that is lost.
        generation: u64,
        /// Who may still hold it.
        holder: Option<String>,
    },
    /// A start of a VM that this node can go on with.
    #[error(
        "this node holds a state of the VM, and goes on from it when the arbiter lets it; if the other host is gone \
         for good: ftctl release"
    )]
    HoldsState,
    /// A release from another node than the peer.
    #[error("node {0} is not the peer of this node")]
    NotThePeer(String),
    /// A release from a host that is there.
    #[error("node {node} was heard {heard_s} s ago: a host that is gone for good is silent; stop it first")]
    PeerLives {
        /// The node.
        node: String,
        /// How long ago.
        heard_s: u64,
    },
    /// It had begun, and this came between.
    #[error("{0}")]
    Abandoned(String),
    /// Its time was over while nothing had changed yet: the VM is where it was.
    #[error("not done in the time given; the VM stays where it is")]
    TimedOut,
    /// Its time was over when it could not be called back any more.
    #[error("the backup was asked to go on with the VM, and has not answered in the time given")]
    Undecided,
}

impl RequestRefusal {
    /// Whether time was all that it lacked.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::TimedOut | Self::Undecided)
    }
}

impl Core {
    pub(super) fn answer(&mut self, request: RequestId, outcome: Result<Done, RequestRefusal>) {
        self.out.push(Command::Answer { request, outcome });
    }

    pub(super) fn refuse(&mut self, request: RequestId, why: RequestRefusal) {
        self.answer(request, Err(why));
    }

    /// This node is to stop as soon as it can; the request is answered then.
    pub(super) fn leave(&mut self, request: RequestId) {
        self.stop_requested = true;
        self.leaving.push(request);
    }

    /// This node does not stop after all.
    pub(super) fn stay(&mut self, why: &RequestRefusal) {
        self.stop_requested = false;
        for request in std::mem::take(&mut self.leaving) {
            self.refuse(request, why.clone());
        }
    }
}
