//! Runs programs on the host's own processor. A signal is the way in and the way out: one that the harness raises
//! against itself has its context exchanged for the program's, so that returning from the handler enters the program;
//! the exception that ends the program has its context saved and the harness's put back.

use super::{
    CODE, CODE_BYTES, GS_BASE, Memory, Outcome, Runner, SCRATCH, SCRATCH_BYTES, State, WINDOW, WINDOW_BYTES,
    WRITABLE_BYTES,
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, mprotect};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};

/// What follows an `fxsave` image in a signal frame: the extended states that its restoring takes from the frame.
const XSTATE_BV: usize = 512;
/// The image's last bytes are the kernel's own.
const FX_BYTES: usize = 416;
/// The general registers' places in a signal frame, in encoding order.
const REGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    /// The next signal enters the program.
    Enter,
    /// The next signal ends it.
    Program,
    Idle,
}

/// What the harness and the signal handler tell each other.
struct Exchange {
    phase: Phase,
    entry: u64,
    regs: [u64; 16],
    rflags: u64,
    fx: [u8; 512],
    rip: u64,
    vector: u8,
    error: u32,
    cr2: u64,
    harness_regs: [libc::greg_t; 23],
    harness_fx: [u8; 512],
}

static EXCHANGE: AtomicPtr<Exchange> = AtomicPtr::new(std::ptr::null_mut());

pub(super) struct Native {
    exchange: *mut Exchange,
    /// Where the code's pages can be written.
    code: NonNull<u8>,
}

impl Native {
    /// Maps the pages and takes the signals. One in a process, used on the thread that made it.
    pub(super) fn new() -> nix::Result<Self> {
        let code_file =
            nix::sys::memfd::memfd_create(c"ftd-differential", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(&code_file, CODE_BYTES as i64)?;
        let bytes = |n: u64| NonZeroUsize::new(n as usize).ok_or(nix::errno::Errno::EINVAL);
        let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let fixed = MapFlags::MAP_FIXED_NOREPLACE;
        // SAFETY: new mappings, at addresses where nothing was mapped.
        let code = unsafe {
            mmap(
                Some(bytes(CODE)?),
                bytes(CODE_BYTES)?,
                ProtFlags::PROT_READ | ProtFlags::PROT_EXEC,
                MapFlags::MAP_SHARED | fixed,
                code_file.as_fd(),
                0,
            )?;
            mmap_anonymous(
                Some(bytes(WINDOW)?),
                bytes(WINDOW_BYTES)?,
                writable,
                MapFlags::MAP_PRIVATE | fixed,
            )?;
            mmap_anonymous(
                Some(bytes(SCRATCH)?),
                bytes(SCRATCH_BYTES)?,
                writable,
                MapFlags::MAP_PRIVATE | fixed,
            )?;
            mmap(None, bytes(CODE_BYTES)?, writable, MapFlags::MAP_SHARED, code_file.as_fd(), 0)?
        };
        const ARCH_SET_GS: i32 = 0x1001;
        // SAFETY: user space on x86-64 Linux leaves GS to the program.
        nix::errno::Errno::result(unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, GS_BASE) })?;
        let exchange = Box::into_raw(Box::new(Exchange {
            phase: Phase::Idle,
            entry: 0,
            regs: [0; 16],
            rflags: 0,
            fx: [0; 512],
            rip: 0,
            vector: 0,
            error: 0,
            cr2: 0,
            harness_regs: [0; 23],
            harness_fx: [0; 512],
        }));
        EXCHANGE.store(exchange, Ordering::Release);
        take_signals()?;
        Ok(Self { exchange, code: code.cast() })
    }
}

/// Has the exceptions' signals handled, on a stack that no program's RSP points to.
fn take_signals() -> nix::Result<()> {
    let stack = Box::leak(vec![0u8; 1 << 16].into_boxed_slice());
    let stack = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    // SAFETY: the stack lives for ever.
    nix::errno::Errno::result(unsafe { libc::sigaltstack(&stack, std::ptr::null_mut()) })?;
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP] {
        // SAFETY: an all-zero sigaction is valid.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler is async-signal-safe: it copies between its context and a structure of its own.
        nix::errno::Errno::result(unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) })?;
    }
    Ok(())
}

extern "C" fn on_signal(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let exchange = EXCHANGE.load(Ordering::Acquire);
    // SAFETY: the kernel passes a context that is this handler's until it returns, with an x87 and SSE image in 64-bit
    // programs always, followed by the extended states' header on every processor with XSAVE. The exchange is set
    // before the handler is, and nobody else touches it while the harness waits for this handler.
    let (exchange, context, fx, xstate_bv) = unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        let fx = context.uc_mcontext.fpregs.cast::<u8>();
        let software = fx.add(464).cast::<u32>().read_unaligned();
        let xstate_bv = (software == 0x4650_5853).then(|| &mut *fx.add(XSTATE_BV).cast::<u64>());
        (
            &mut *exchange,
            &mut context.uc_mcontext.gregs,
            std::slice::from_raw_parts_mut(fx, FX_BYTES),
            xstate_bv,
        )
    };
    match exchange.phase {
        Phase::Enter => {
            exchange.harness_regs = *context;
            exchange.harness_fx[..FX_BYTES].copy_from_slice(fx);
            for (value, at) in exchange.regs.iter().zip(REGS) {
                context[at as usize] = *value as i64;
            }
            context[libc::REG_RIP as usize] = exchange.entry as i64;
            context[libc::REG_EFL as usize] = exchange.rflags as i64;
            fx.copy_from_slice(&exchange.fx[..FX_BYTES]);
            exchange.phase = Phase::Program;
        }
        Phase::Program => {
            for (value, at) in exchange.regs.iter_mut().zip(REGS) {
                *value = context[at as usize] as u64;
            }
            exchange.rip = context[libc::REG_RIP as usize] as u64;
            exchange.rflags = context[libc::REG_EFL as usize] as u64;
            exchange.vector = context[libc::REG_TRAPNO as usize] as u8;
            exchange.error = context[libc::REG_ERR as usize] as u32;
            exchange.cr2 = context[libc::REG_CR2 as usize] as u64;
            exchange.fx[..FX_BYTES].copy_from_slice(fx);
            *context = exchange.harness_regs;
            // Past the instruction that raised the first signal.
            context[libc::REG_RIP as usize] += 2;
            fx.copy_from_slice(&exchange.harness_fx[..FX_BYTES]);
            exchange.phase = Phase::Idle;
        }
        Phase::Idle => {
            // The harness's own fault: die of it.
            // SAFETY: async-signal-safe; the instruction faults again.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
            return;
        }
    }
    if let Some(states) = xstate_bv {
        *states |= 3;
    }
}

/// The page that programs see as read-only, while the harness fills it.
fn protect(protection: ProtFlags) {
    let page = NonNull::new((WINDOW + WRITABLE_BYTES) as *mut libc::c_void).expect("not null");
    // SAFETY: a page that `Native::new` mapped.
    unsafe { mprotect(page, (WINDOW_BYTES - WRITABLE_BYTES) as usize, protection).expect("a mapped page") };
}

impl Runner for Native {
    fn run(&mut self, code: &[u8], entry: u64, state: &State) -> Outcome {
        assert!(entry >= CODE && entry + code.len() as u64 <= CODE + CODE_BYTES, "code within its pages");
        let (window, scratch) = state.memory.split_at(WINDOW_BYTES as usize);
        // SAFETY: the pages that `new` mapped, none of which the harness uses otherwise; the code fits (see above).
        // The assembler's ud2 returns when the handler has restored every register.
        unsafe {
            self.code
                .add((entry - CODE) as usize)
                .as_ptr()
                .copy_from_nonoverlapping(code.as_ptr(), code.len());
            let read_only = WRITABLE_BYTES as usize;
            let at = (WINDOW + WRITABLE_BYTES) as *mut u8;
            if std::slice::from_raw_parts(at, window.len() - read_only) != &window[read_only..] {
                protect(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
                at.copy_from_nonoverlapping(window[read_only..].as_ptr(), window.len() - read_only);
                protect(ProtFlags::PROT_READ);
            }
            (WINDOW as *mut u8).copy_from_nonoverlapping(window.as_ptr(), read_only);
            (SCRATCH as *mut u8).copy_from_nonoverlapping(scratch.as_ptr(), scratch.len());
            let exchange = self.exchange;
            (*exchange).regs = state.regs;
            (*exchange).rflags = state.rflags;
            (*exchange).fx = state.fx;
            (*exchange).entry = entry;
            (*exchange).phase = Phase::Enter;
            std::arch::asm!("ud2");
            assert!((*exchange).phase == Phase::Idle, "the program ended");
            let mut memory = Box::new([0; size_of::<Memory>()]);
            let (w, s) = memory.split_at_mut(WINDOW_BYTES as usize);
            w.copy_from_slice(std::slice::from_raw_parts(WINDOW as *const u8, w.len()));
            s.copy_from_slice(std::slice::from_raw_parts(SCRATCH as *const u8, s.len()));
            let vector = (*exchange).vector;
            Outcome {
                vector,
                // Linux leaves the last one that the processor pushed.
                error: if has_error_code(vector) { (*exchange).error } else { 0 },
                cr2: (vector == 14).then_some((*exchange).cr2),
                rip: (*exchange).rip,
                regs: (*exchange).regs,
                rflags: (*exchange).rflags,
                fx: (*exchange).fx,
                memory,
            }
        }
    }
}

/// Whether an exception pushes an error code.
pub(super) fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17)
}
