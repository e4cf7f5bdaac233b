//! The operator's wishes to the daemon.

use crate::role::{Done, Leave, RequestRefusal, Start};
use std::time::Duration;

/// News of this room.
pub enum Wish {
    /// A switchover.
    Switchover {
        /// It is called off if it has not begun to change anything in this time.
        within: Duration,
        /// Where its outcome goes.
        reply: WishReply,
    },
    /// The VM is to be booted here, or gone on with.
    Start {
        /// What is given up for it.
        how: Start,
        /// It is called off if it has not begun to change anything in this time.
        within: Duration,
        /// Where its outcome goes.
        reply: WishReply,
    },
    /// An orderly stop.
    Stop {
        /// What becomes of the VM.
        vm: Leave,
        /// Where its outcome goes.
        reply: WishReply,
    },
    /// The configuration names another node as the peer.
    ReplacePeer(String),
}

/// Where the outcome of a wish goes. Each wish has its own.
pub type WishReply = Box<dyn FnOnce(Result<Done, WishError>) + Send>;

/// Why a wish did not come true.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// Not in this state, not on this node, or the peer will not have it.
    #[error(transparent)]
    Refused(#[from] RequestRefusal),
    /// The daemon ends before it is done.
    #[error("the daemon is ending")]
    Ending,
}
