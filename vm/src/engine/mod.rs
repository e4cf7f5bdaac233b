//! What executes the guest: KVM, or a deterministic processor in software.

pub(crate) mod kvm;
#[allow(dead_code)]
pub(crate) mod soft;

use crate::spec::EngineKind;

/// What two hosts must have in common, beside the machine's specification, for one to go on with what the other executed:
/// for the deterministic engine a hash of all that decides what a guest sees of it, so that another build is refused; for
/// KVM zero, since there the processors are compared ([`CpuProfile`](crate::machine::CpuProfile)).
pub fn engine_fingerprint(kind: EngineKind) -> u64 {
    match kind {
        EngineKind::Kvm => 0,
        EngineKind::Soft => SOFT_FINGERPRINT,
    }
}

const SOFT_FINGERPRINT: u64 = match u64::from_str_radix(env!("FTD_SOFT_FINGERPRINT"), 16) {
    Ok(fingerprint) => fingerprint,
    Err(_) => panic!("build.rs writes sixteen hexadecimal digits"),
};
