//! Record and replay: a machine on the deterministic engine is a function of its starting state and its [`log`], so
//! that the same log makes the same machine again, on another host or on another day.

pub mod log;
mod position;
mod registers;

pub use log::{LogCut, LogError};
pub use position::ReplayPosition;
pub use registers::Registers;
