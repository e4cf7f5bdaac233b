//! The filters: for each kind of thread the calls that it may make, and with which arguments.

use crate::kind::{KINDS, ThreadKind};
use crate::{ThreadConfineError, kick_signal};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};
use std::collections::BTreeMap;
use std::io;

/// Calls and what their arguments must be: one of these rules, or anything where there are none.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Memory, locks, the time, randomness, and the thread itself.
const ANY_THREAD: [i64; 22] = [
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
/// Descriptors that the thread has. None of these makes one that leads elsewhere.
const OWN_DESCRIPTORS: [i64; 18] = [
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_fstat,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_eventfd2,
    libc::SYS_epoll_wait,
];
/// What is on a disk, by its descriptor.
const STORAGE: [i64; 6] = [
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fadvise64,
];
/// Connections that are there.
const CONNECTIONS: [i64; 9] = [
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
];
/// Files by their paths. None of these makes one that can be executed, or changes whose one is.
const FILES: [i64; 11] = [
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_mkdir,
    libc::SYS_rename,
    libc::SYS_unlink,
    libc::SYS_flock,
    libc::SYS_umask,
];

/// The type that KVM's requests have (`KVMIO`), and userfaultfd's (`UFFDIO`), in bits 8 to 15 of the request.
const KVM_REQUESTS: u64 = 0xae;
const USERFAULTFD_REQUESTS: u64 = 0xaa;
const REQUEST_TYPE: u64 = 0xff00;
/// An interrupt for the guest: of those requests, what a device needs that is not on a vCPU's thread.
const KVM_IRQ_LINE: u64 = 0x4008_ae61;
const KVM_SIGNAL_MSI: u64 = 0x4020_aea5;
/// What the VM takes in frames for it: asked of the TAP when its driver says so.
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
/// The TAP's name.
const TUNGETIFF: u64 = 0x8004_54d2;
/// Of a block device: to give up, or to zero, a range.
const BLKDISCARD: u64 = 0x1277;
const BLKZEROOUT: u64 = 0x127f;

/// What makes a thread or a process. The C library blocks all signals around it, and a trap that is blocked kills: so
/// these fail by a filter of their own, without one.
const BEGINNINGS: [i64; 4] = [libc::SYS_clone, libc::SYS_clone3, libc::SYS_fork, libc::SYS_vfork];

/// Made once: a thread's start does not wait for it.
pub(crate) struct Filters {
    beginnings: BpfProgram,
    of_kinds: Vec<BpfProgram>,
}

impl Filters {
    pub fn new() -> Result<Self, ThreadConfineError> {
        let of_kinds = KINDS.iter().map(|&kind| program(kind)).collect::<Result<_, _>>()?;
        Ok(Self { beginnings: no_beginnings()?, of_kinds })
    }

    pub fn apply(&self, kind: ThreadKind) -> Result<(), seccompiler::Error> {
        apply_filter(&self.beginnings)?;
        apply_filter(&self.of_kinds[kind.index()])
    }
}

fn no_beginnings() -> Result<BpfProgram, BackendError> {
    let rules = BEGINNINGS.into_iter().map(|call| (call, Vec::new())).collect();
    let fails = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, fails, TargetArch::x86_64)?.try_into()
}

fn program(kind: ThreadKind) -> Result<BpfProgram, BackendError> {
    let rules = rules(kind)?;
    // A trap: the handler has the call fail, and counts it.
    SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

fn rules(kind: ThreadKind) -> Result<Rules, BackendError> {
    let mut rules: Rules = ANY_THREAD
        .into_iter()
        .chain(OWN_DESCRIPTORS)
        .chain(BEGINNINGS)
        .map(|call| (call, Vec::new()))
        .collect();
    let not_executable = argument(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)?;
    rules.insert(libc::SYS_mmap, vec![not_executable.clone()]);
    rules.insert(libc::SYS_mprotect, vec![not_executable]);
    let options = [libc::PR_SET_NAME, libc::PR_SET_TIMERSLACK].map(|option| option as u64);
    rules.insert(libc::SYS_prctl, equal_to(0, options)?);
    // A second descriptor of the same file; whether reading waits.
    let ways = [libc::F_DUPFD_CLOEXEC, libc::F_GETFL, libc::F_SETFL, libc::F_GETFD, libc::F_SETFD];
    rules.insert(libc::SYS_fcntl, equal_to(1, ways.map(|way| way as u64))?);
    // About a descriptor, and about nothing that a path names.
    rules.insert(libc::SYS_statx, vec![argument(2, SeccompCmpOp::MaskedEq(AT_EMPTY_PATH), AT_EMPTY_PATH)?]);
    let own = u64::from(std::process::id());
    let to_own_threads = |signal: libc::c_int| {
        let whom = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, own)?;
        let what = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, signal as u64)?;
        SeccompRule::new(vec![whom, what])
    };
    rules.insert(libc::SYS_tgkill, vec![to_own_threads(kick_signal())?, to_own_threads(libc::SIGABRT)?]);
    let mut free = |calls: &[i64]| rules.extend(calls.iter().map(|&call| (call, Vec::new())));
    let with_interrupts =
        |requests: [u64; 2]| equal_to(1, [KVM_IRQ_LINE, KVM_SIGNAL_MSI].into_iter().chain(requests));
    let requests = match kind {
        ThreadKind::Vcpu => {
            free(&STORAGE);
            let others = equal_to(1, [TUNSETOFFLOAD, TUNGETIFF, BLKDISCARD, BLKZEROOUT])?;
            [vec![of_type(KVM_REQUESTS)?], others].concat()
        }
        ThreadKind::Disk => {
            free(&STORAGE);
            // Its ring is restricted to what a disk does.
            free(&[libc::SYS_io_uring_enter]);
            with_interrupts([BLKDISCARD, BLKZEROOUT])?
        }
        ThreadKind::Frames => with_interrupts([TUNGETIFF, TUNSETOFFLOAD])?,
        ThreadKind::Link => {
            free(&CONNECTIONS);
            Vec::new()
        }
        ThreadKind::Stream => {
            free(&CONNECTIONS);
            free(&STORAGE);
            free(&FILES);
            Vec::new()
        }
        ThreadKind::Checkpoint => vec![of_type(USERFAULTFD_REQUESTS)?],
        ThreadKind::Control => {
            free(&CONNECTIONS);
            free(&[libc::SYS_epoll_ctl]);
            vec![argument(1, SeccompCmpOp::Eq, libc::FIONBIO)?]
        }
    };
    if !requests.is_empty() {
        rules.insert(libc::SYS_ioctl, requests);
    }
    Ok(rules)
}

const AT_EMPTY_PATH: u64 = libc::AT_EMPTY_PATH as u64;

fn argument(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?])
}

/// A rule for each value.
fn equal_to(index: u8, values: impl IntoIterator<Item = u64>) -> Result<Vec<SeccompRule>, BackendError> {
    values.into_iter().map(|value| argument(index, SeccompCmpOp::Eq, value)).collect()
}

/// Requests to a device's driver of this type.
fn of_type(number: u64) -> Result<SeccompRule, BackendError> {
    argument(1, SeccompCmpOp::MaskedEq(REQUEST_TYPE), number << 8)
}

/// Gives up the calling thread's capabilities: they are each thread's own.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Sets {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`: two words a set.
    const THIRD_FORM: u32 = 0x2008_0522;
    let header = Header { version: THIRD_FORM, pid: 0 };
    let sets = [Sets::default(), Sets::default()];
    // SAFETY: reads both, which are as capset(2) says; it changes this thread alone.
    match unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
