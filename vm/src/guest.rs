//! The guest that is built into this crate: a freestanding key-value service with a memory load (sources in `guest/`,
//! its protocol in `guest/src/kv/mod.rs`). It needs no files, boots at once and runs on every KVM.

/// Its ELF image.
pub static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

/// The address that it takes when the command line does not say another.
pub const CMDLINE_DEFAULT: &str = "ip=10.77.0.2/24 gw=10.77.0.1 port=7777";
