//! ftd: the daemon's library, room by room. `role` decides; `replica` carries out what it decides; `keeper` owns the
//! machine, `peer` the connections, `host` what this host gives, `observe` the figures, `control` the operator's
//! socket. A room tells its news through an [`outlet`] and knows nothing of who listens.

pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod exit;
pub mod host;
pub mod keeper;
pub mod nonce;
pub mod observe;
pub mod outlet;
pub mod peer;
pub mod recording;
pub mod replica;
pub mod role;
