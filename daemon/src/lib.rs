//! ftd: the daemon's library: configuration, roles, arbitration, replication, control.

pub mod arbiter;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod exit;
pub mod fresh;
pub mod lifeline;
pub mod metrics;
pub mod recording;
pub mod replica;
pub mod role;
pub mod service;
pub mod telemetry;
