//! Calls that were refused: each traps, and the handler has it fail and counts it.

use crate::ThreadConfineError;
use crate::kind::{KINDS, ThreadKind};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// System calls have smaller numbers; what is beyond is counted with the last.
const NUMBERS: usize = 512;

static COUNTS: [[AtomicU64; NUMBERS]; KINDS.len()] =
    [const { [const { AtomicU64::new(0) }; NUMBERS] }; KINDS.len()];

thread_local! {
    /// The calling thread's kind, by its number, if it is confined. Without a destructor: a signal handler reads it.
    static KIND: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Calls that a thread's filter has refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RefusedCall {
    /// Whose.
    pub kind: ThreadKind,
    /// The system call's number (`asm/unistd_64.h`).
    pub number: usize,
    /// How often, since the process has started.
    pub count: u64,
}

impl fmt::Display for RefusedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a thread for {} asked for system call {}", self.kind, self.number)?;
        name(self.number).map_or(Ok(()), |name| write!(f, " ({name})"))
    }
}

/// What has been refused so far. Empty where nothing is wrong.
pub fn refused() -> Vec<RefusedCall> {
    let of_kind = |(&kind, counts): (&ThreadKind, &'static [AtomicU64; NUMBERS])| {
        counts.iter().enumerate().map(move |(number, count)| RefusedCall {
            kind,
            number,
            count: count.load(Ordering::Relaxed),
        })
    };
    KINDS.iter().zip(&COUNTS).flat_map(of_kind).filter(|call| call.count > 0).collect()
}

/// Of the calls that somebody who took over a thread would want most.
fn name(number: usize) -> Option<&'static str> {
    Some(match i64::try_from(number).ok()? {
        libc::SYS_open => "open",
        libc::SYS_openat => "openat",
        libc::SYS_openat2 => "openat2",
        libc::SYS_socket => "socket",
        libc::SYS_connect => "connect",
        libc::SYS_bind => "bind",
        libc::SYS_accept4 => "accept4",
        libc::SYS_ioctl => "ioctl",
        libc::SYS_mmap => "mmap",
        libc::SYS_mprotect => "mprotect",
        libc::SYS_clone => "clone",
        libc::SYS_clone3 => "clone3",
        libc::SYS_fork => "fork",
        libc::SYS_vfork => "vfork",
        libc::SYS_execve => "execve",
        libc::SYS_execveat => "execveat",
        libc::SYS_kill => "kill",
        libc::SYS_tkill => "tkill",
        libc::SYS_tgkill => "tgkill",
        libc::SYS_ptrace => "ptrace",
        libc::SYS_process_vm_readv => "process_vm_readv",
        libc::SYS_process_vm_writev => "process_vm_writev",
        libc::SYS_prctl => "prctl",
        libc::SYS_io_uring_setup => "io_uring_setup",
        libc::SYS_bpf => "bpf",
        _ => return None,
    })
}

/// Whether the calling thread is confined.
pub fn is_confined() -> bool {
    KIND.get().is_some()
}

pub(crate) fn this_thread_is(kind: ThreadKind) {
    KIND.set(Some(kind.index()));
}

/// Whether the kernel can trap a call.
pub(crate) fn can_be_trapped() -> Result<(), ThreadConfineError> {
    let action = libc::SECCOMP_RET_TRAP;
    // SAFETY: reads the action.
    let answer =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    match answer {
        0 => Ok(()),
        _ => Err(ThreadConfineError::Kernel(std::io::Error::last_os_error())),
    }
}

pub(crate) fn handle() -> Result<(), ThreadConfineError> {
    let action = SigAction::new(
        SigHandler::SigAction(refuse),
        SaFlags::SA_SIGINFO | SaFlags::SA_RESTART | SaFlags::SA_ONSTACK,
        SigSet::empty(),
    );
    // SAFETY: the handler takes no lock and no memory, and changes nothing but counters and the interrupted call's
    // result.
    unsafe { sigaction(Signal::SIGSYS, &action) }.map(drop).map_err(ThreadConfineError::Handler)
}

extern "C" fn refuse(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a signal handler with SA_SIGINFO the interrupted thread's context.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let result = &mut registers[libc::REG_RAX as usize];
    // Where a filter traps, the kernel has put the call's number back there.
    let number = usize::try_from(*result).unwrap_or(NUMBERS).min(NUMBERS - 1);
    // Some thread's, then: a filter was there before it said which it is.
    COUNTS[KIND.get().unwrap_or(0)][number].fetch_add(1, Ordering::Relaxed);
    *result = -i64::from(libc::EPERM);
}
