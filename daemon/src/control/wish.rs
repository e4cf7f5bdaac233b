//! The operator's wishes to the daemon.

use crate::role::SwitchoverFailure;

/// News of this room.
pub enum Wish {
    /// A switchover; this is where its outcome goes.
    Switchover(SwitchoverReply),
    /// An orderly stop.
    Stop,
    /// The configuration names another node as the peer.
    ReplacePeer(String),
}

/// Where the outcome of a switchover goes.
pub type SwitchoverReply = Box<dyn FnOnce(Result<(), SwitchoverError>) + Send>;

/// Why the backup did not go on with the VM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchoverError {
    /// Not in this state, not on this node, or the peer will not have it.
    #[error(transparent)]
    Failed(#[from] SwitchoverFailure),
    /// The daemon ends before it is done.
    #[error("the daemon is ending")]
    Ending,
}
