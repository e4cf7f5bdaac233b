//! The operator's requests, and what a node answers to them under the number that each request carries. Each has one
//! answer, which comes when it is certain.

use super::command::Command;
use super::core::Core;
use super::event::Micros;

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
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// The peer runs the VM, and this node is its backup.
    Moved,
    /// This node stops, for this reason.
    Stopped(String),
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
