//! End-to-end and simulation tests of ftd, and the tools they use.

pub mod bench;
pub mod kv;
pub mod proxy;
pub mod wire;
