//! ftd: the daemon's library: configuration, roles, arbitration, control.

pub mod arbiter;
pub mod role;
