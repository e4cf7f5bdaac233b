//! A TCP proxy that stands between the two daemons and harms the stream at one chosen byte.
//!
//! What is done to the bytes is decided by [`mangle`], which does no I/O; [`relay`] moves them.

pub mod mangle;
pub mod relay;
