//! ftd: the daemon's library: configuration, roles, arbitration, replication, control.

pub mod arbiter;
pub mod clock;
pub mod config;
pub mod exit;
pub mod replica;
pub mod role;
pub mod telemetry;
