//! What the operator wants of the daemon.

/// News of this room.
pub enum Wish {
    /// A switchover; this is where its outcome goes.
    Switchover(SwitchoverReply),
    /// An orderly stop.
    Stop,
}

/// Where the outcome of a switchover goes.
pub type SwitchoverReply = Box<dyn FnOnce(Result<(), String>) + Send>;
