//! Whose doing it is that a vCPU does not go back into the guest. The guest's own doing is a part of the VM: another
//! host that goes on with it would come to the same. All else is this host's failure, of which the VM knows nothing.
//!
//! | exit of KVM_RUN | whose | source |
//! |---|---|---|
//! | KVM_EXIT_SHUTDOWN | guest: triple fault | Intel SDM vol. 3 §6.15 (#DF); kvm/x86.c, KVM_REQ_TRIPLE_FAULT |
//! | KVM_EXIT_SYSTEM_EVENT, shutdown or reset | guest | kernel's Documentation/virt/kvm/api.rst §5 |
//! | KVM_EXIT_FAIL_ENTRY | host: the processor refuses what KVM asks of it | the same |
//! | KVM_EXIT_INTERNAL_ERROR | host, see below | the same |
//! | any other that no device answers | host: nothing that would lead there was switched on | |
//! | any errno of KVM_RUN but EINTR and EAGAIN | host | the same, §4.10 |
//!
//! An internal error with suberror 1 says that KVM's emulator lacks an instruction of the guest. Whether it is needed
//! at all depends on the processor and the kernel: another host may execute what this one cannot. So the other host is
//! tried, from its own copy. A guest that provokes it loses nothing but its own VM's protection.

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::VcpuExit;

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Doing {
    /// The guest powered off.
    PoweredOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's processor shut down.
    TripleFault,
    /// The host failed the guest: KVM says by an internal error how.
    InternalError,
    /// The host failed the guest, in these words.
    Host(String),
}

/// Whose doing an exit is that no device answers.
pub(super) fn whose(exit: &VcpuExit<'_>) -> Doing {
    match exit {
        VcpuExit::Shutdown => Doing::TripleFault,
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => Doing::PoweredOff,
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => Doing::Reset,
        VcpuExit::FailEntry(reason, cpu) => Doing::Host(format!(
            "KVM failed to enter the guest, hardware reason {reason:#x}, on processor {cpu}"
        )),
        VcpuExit::InternalError => Doing::InternalError,
        other => Doing::Host(format!("unexpected exit {other:?} of KVM_RUN")),
    }
}

/// What an internal error of KVM's was.
pub(super) fn internal_error(suberror: u32) -> String {
    let what = match suberror {
        KVM_INTERNAL_ERROR_EMULATION => "an instruction of the guest that this host's KVM cannot emulate",
        KVM_INTERNAL_ERROR_SIMUL_EX => "two exceptions at once",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit in the middle of an interrupt's delivery",
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => {
            "an exit of the processor that this host's KVM does not know"
        }
        _ => "of an unknown kind",
    };
    format!("KVM internal error {suberror} ({what})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_guest_asked_for_or_did_to_itself_is_the_guests() {
        assert_eq!(whose(&VcpuExit::Shutdown), Doing::TripleFault);
        assert_eq!(whose(&VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, &[])), Doing::PoweredOff);
        assert_eq!(whose(&VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, &[])), Doing::Reset);
        assert_eq!(whose(&VcpuExit::InternalError), Doing::InternalError);
        for (exit, says) in [
            (VcpuExit::FailEntry(0x8000_0021, 3), "reason 0x80000021, on processor 3"),
            (VcpuExit::Hlt, "unexpected exit"),
            (VcpuExit::Exception, "unexpected exit"),
            (VcpuExit::Unknown, "unexpected exit"),
            (VcpuExit::SystemEvent(77, &[]), "unexpected exit"),
        ] {
            assert!(matches!(whose(&exit), Doing::Host(why) if why.contains(says)), "{exit:?}");
        }
        assert!(internal_error(1).contains("cannot emulate"));
        assert!(internal_error(77).contains("error 77 (of an unknown kind)"));
    }
}
