//! End-to-end and simulation tests of ftd, and the tools they use.

pub mod kv;
