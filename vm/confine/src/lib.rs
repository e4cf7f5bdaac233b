//! What a thread may ask of the kernel. A thread that handles what others send (the guest, the peer) needs memory,
//! locks, the time and the descriptors that it was given, and nothing else: no file, socket, program or signal. If
//! somebody makes it run his code, that is what he has.
//!
//! ```text
//!   the process   confine::on()                  once, ahead of the threads
//!   a thread      confine::this_thread(kind)     first of all: a seccomp filter, and no capability any more; for most
//!                                                kinds Landlock, which lets nothing be reached by its name
//!                 a call that its kind lacks     does nothing, gives EPERM, and is counted
//!   a watcher     confine::refused()             what was asked for: a bug, or somebody else's code
//! ```
//!
//! A refused call fails, rather than kills: a filter that is too narrow for a new C library must not take the VM with
//! it. What is refused is as unreachable either way. What starts a thread or a process is refused uncounted: the C
//! library blocks all signals meanwhile, and a trap would then kill.

mod allocator;
mod filter;
mod kind;
mod reach;
mod refused;

pub use kind::ThreadKind;
pub use landlock::RulesetError;
pub use reach::serve_from;
pub use refused::{RefusedCall, is_confined, refused};

use filter::Filters;
use std::sync::OnceLock;

/// Why the process's threads cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum ThreadConfineError {
    /// The kernel has no seccomp filters, or none that trap.
    #[error("this host's kernel has no seccomp filters (CONFIG_SECCOMP_FILTER): {0}")]
    Kernel(std::io::Error),
    /// No handler for what is refused.
    #[error("cannot handle SIGSYS: {0}")]
    Handler(#[source] nix::Error),
    /// A filter cannot be made.
    #[error("cannot make a seccomp filter: {0}")]
    Filter(#[from] seccompiler::BackendError),
}

/// There from [`on`] on.
static FILTERS: OnceLock<Filters> = OnceLock::new();

/// The signal with which a vCPU is called out of its guest: the one that confined threads may send, to each other.
pub fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// From now on, threads of this process that ask for it are confined. To be called ahead of the threads.
pub fn on() -> Result<(), ThreadConfineError> {
    refused::can_be_trapped()?;
    let filters = Filters::new()?;
    refused::handle()?;
    allocator::settle();
    // A second call finds the first one's.
    let _ = FILTERS.set(filters);
    Ok(())
}

/// Whether [`on`] has been called, and has succeeded.
pub fn is_on() -> bool {
    FILTERS.get().is_some()
}

/// Confines the calling thread, for good, and all threads that it starts. Without [`on`] it does nothing.
///
/// # Panics
///
/// Where the kernel refuses what it has said that it can do: such a thread must not run.
pub fn this_thread(kind: ThreadKind) {
    let Some(filters) = FILTERS.get() else { return };
    filter::drop_capabilities()
        .unwrap_or_else(|e| panic!("a thread for {kind} cannot drop its capabilities: {e}"));
    // Ahead of the filter, which refuses to have more refused.
    if !kind.has_files() {
        reach::nothing()
            .unwrap_or_else(|e| panic!("a thread for {kind} cannot give up what has a name: {e}"));
    }
    refused::this_thread_is(kind);
    filters.apply(kind).unwrap_or_else(|e| panic!("a thread for {kind} cannot be confined: {e}"));
}

#[cfg(test)]
mod tests;
