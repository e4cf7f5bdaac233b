//! A failed call of the kernel.

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
    pub(super) fn of(call: &'static str) -> impl FnOnce(errno::Error) -> Self {
        move |source| Self::Call { call, source: source.into() }
    }

    /// For `map_err` on I/O results.
    pub(super) fn io(call: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Call { call, source }
    }
}
