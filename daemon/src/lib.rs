//! ftd: the daemon's library: configuration, roles, arbitration, control.

pub mod arbiter;
pub mod config;
pub mod control;
pub mod exit;
pub mod metrics;
pub mod service;
