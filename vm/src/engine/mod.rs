//! What executes the guest: KVM, or a deterministic processor in software.

pub(crate) mod kvm;
#[allow(dead_code)]
pub(crate) mod soft;
