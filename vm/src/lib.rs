//! ft-vm: one virtual machine on this host. Builds it, runs it, pauses it, captures its complete state and restores
//! that state into a fresh machine. Knows nothing of replication: frames leave through a [`devices::FrameSink`],
//! captures leave through [`machine::Machine`], and what happens to them is the caller's business.

pub mod boot;
pub mod devices;
mod engine;
mod error;
pub mod guest;
pub mod machine;
pub mod replay;
pub mod spec;
pub mod state;
#[cfg(feature = "testing")]
pub mod testing;
