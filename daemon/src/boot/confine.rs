//! What the child that reads a disk may do: read and write its one socket, and take memory within a limit. Everything
//! else ends it.

use super::error::ConfineError;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};
use std::collections::BTreeMap;
use std::io;

/// Processor time, in seconds.
const CPU_S: u64 = 20;
/// Address space beside the files that are read: the program itself, and what the file systems need.
const MEMORY_BYTES: u64 = 1 << 30;
/// The socket.
const SOCKET: u64 = 0;

/// Confines this process, for good. It reads files of so many bytes.
pub(super) fn confine(file_bytes_max: u64) -> Result<(), ConfineError> {
    let refused = |what| move |source: nix::Error| ConfineError::Limit { what, source: source.into() };
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(refused("PR_SET_PDEATHSIG"))?;
    prctl::set_no_new_privs().map_err(refused("PR_SET_NO_NEW_PRIVS"))?;
    prctl::set_dumpable(false).map_err(refused("PR_SET_DUMPABLE"))?;
    // SAFETY: closes descriptors that nothing in this process uses: it has opened none.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if closed != 0 {
        return Err(ConfineError::Limit { what: "close_range", source: io::Error::last_os_error() });
    }
    // A file is there up to three times: as it grows, and where it is joined with others.
    let memory = MEMORY_BYTES.saturating_add(file_bytes_max.saturating_mul(4));
    let limits = [
        (libc::RLIMIT_AS, memory, "RLIMIT_AS"),
        (libc::RLIMIT_CPU, CPU_S, "RLIMIT_CPU"),
        (libc::RLIMIT_CORE, 0, "RLIMIT_CORE"),
        (libc::RLIMIT_FSIZE, 0, "RLIMIT_FSIZE"),
        (libc::RLIMIT_NOFILE, 0, "RLIMIT_NOFILE"),
    ];
    for (limit, value, what) in limits {
        lower(limit, value).map_err(|source| ConfineError::Limit { what, source })?;
    }
    apply_filter(&filter()?)?;
    Ok(())
}

/// Lowers a limit to this, unless it is lower already.
fn lower(limit: libc::__rlimit_resource_t, value: u64) -> io::Result<()> {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes to `now`.
    if unsafe { libc::getrlimit(limit, &raw mut now) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let value = value.min(now.rlim_max);
    let lowered = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: reads `lowered`.
    match unsafe { libc::setrlimit(limit, &raw const lowered) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn filter() -> Result<BpfProgram, ConfineError> {
    let argument = |index, operator, value| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?;
        Ok(vec![SeccompRule::new(vec![condition])?])
    };
    let on_socket = argument(0, SeccompCmpOp::Eq, SOCKET)?;
    let not_executable = argument(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)?;
    let mut rules = BTreeMap::from([
        (libc::SYS_read, on_socket.clone()),
        (libc::SYS_write, on_socket),
        (libc::SYS_mmap, not_executable.clone()),
        (libc::SYS_mprotect, not_executable),
    ]);
    // Without conditions: memory, randomness and time for the standard library, and the end.
    let free = [
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_futex,
        libc::SYS_getrandom,
        libc::SYS_clock_gettime,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigreturn,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    rules.extend(free.map(|call| (call, Vec::new())));
    let (otherwise, allowed) = (SeccompAction::KillProcess, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules, otherwise, allowed, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}
