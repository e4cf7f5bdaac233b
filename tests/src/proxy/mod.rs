//! A TCP proxy that stands between the two daemons and harms the stream at one chosen byte.
//!
//! [`mangle`] decides the fate of the bytes and does no I/O; [`relay`] moves them, over a [`distance`] if wanted.

pub mod distance;
pub mod mangle;
pub mod relay;
