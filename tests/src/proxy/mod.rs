//! A TCP proxy that stands between the two daemons and harms the stream at one chosen byte.
//!
//! What is done to the bytes is decided by [`mangle`], which does no I/O; [`relay`] moves them, over a [`distance`] if
//! wanted.

pub mod distance;
pub mod mangle;
pub mod relay;
