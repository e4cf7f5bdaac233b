//! What executes the guest: KVM.

pub(crate) mod kvm;
