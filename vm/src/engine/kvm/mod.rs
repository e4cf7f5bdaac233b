//! The guest on KVM: the host's abilities ([`host`]), the virtual machine and its slots ([`vm`]), its processors as
//! threads ([`vcpu`]), their state ([`state`]), what they have written ([`dirty`]), and all of it as the machine commands it
//! ([`engine`]).

pub(crate) mod cpuid;
mod dirty;
pub(crate) mod engine;
mod host;
mod ioctl;
mod run_page;
mod state;
mod vcpu;
mod vm;

use vmm_sys_util::errno;

/// A KVM call that failed.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The kernel refused.
    #[error("{call} failed: {source}")]
    Call {
        /// The ioctl or system call.
        call: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A register that could be read at the start cannot be read any more.
    #[error("MSR {index:#x} cannot be read any more")]
    Msr {
        /// The register's number.
        index: u32,
    },
    /// More of something than KVM takes.
    #[error("too many {0}")]
    TooMany(&'static str),
}

impl KvmError {
    /// For `map_err` on kvm-ioctls' results.
    fn of(call: &'static str) -> impl FnOnce(errno::Error) -> Self {
        move |source| Self::Call { call, source: source.into() }
    }

    /// For `map_err` on I/O results.
    fn io(call: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Call { call, source }
    }
}
