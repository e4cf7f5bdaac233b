//! The parts that a program needs beneath it without an operating system: the entry, the memory functions that the
//! compiler calls, the heap, and an end for panics.

use crate::platform;
use core::arch::{asm, global_asm};
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};
use talc::{ErrOnOom, Span, Talc, Talck};

// Every vCPU starts here: RDI is its index, RSI and RDX are address and length of the command line, RSP its stack.
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym crate::main
);

#[global_allocator]
static HEAP: Talck<spin::Mutex<()>, ErrOnOom> = Talc::new(ErrOnOom).lock();

/// Gives the heap its memory. Called once, before the first allocation.
///
/// # Safety
/// Nobody else uses the memory from `start` to `end`.
pub unsafe fn init_heap(start: usize, end: usize) {
    // SAFETY: the caller gives the memory away.
    let claimed = unsafe { HEAP.lock().claim(Span::new(start as *mut u8, end as *mut u8)) };
    if claimed.is_err() {
        panic!("no memory for a heap between {start:#x} and {end:#x}");
    }
}

/// Ends the machine in a way that it cannot survive: an exception without an exception table is a triple fault.
pub fn crash() -> ! {
    loop {
        // SAFETY: an invalid opcode; what follows is not reached.
        unsafe { asm!("ud2") }
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    static PANICKING: AtomicBool = AtomicBool::new(false);
    if !PANICKING.swap(true, Ordering::SeqCst) {
        let _ = writeln!(platform::Console, "guest: {info}");
    }
    // Not a power-off: a guest that failed must not look like one that ended.
    crash()
}

/// Named by the precompiled core library; never called, since panics abort.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// Named likewise.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    crash()
}

// The memory functions. The string instructions are as fast as vectors from a few hundred bytes on, and cannot be
// turned back into calls of themselves, as loops in Rust can.

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: the caller has `bytes` readable at `from` and writable at `to`, not overlapping.
    unsafe {
        asm!("rep movsb", inout("rcx") bytes => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= bytes {
        // SAFETY: the destination does not begin inside the source, so that copying upwards reads before it writes.
        return unsafe { memcpy(to, from, bytes) };
    }
    // SAFETY: as in memcpy, but copied downwards from the last byte; the direction flag is put back.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") bytes => _, inout("rdi") to.add(bytes).sub(1) => _,
            inout("rsi") from.add(bytes).sub(1) => _, options(nostack));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, bytes: usize) -> *mut u8 {
    // SAFETY: the caller has `bytes` writable at `to`.
    unsafe {
        asm!("rep stosb", inout("rcx") bytes => _, inout("rdi") to => _, in("al") byte as u8,
            options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, bytes: usize) -> i32 {
    for i in 0..bytes {
        // SAFETY: the caller has `bytes` readable at both; volatile, so that the loop does not become a call of memcmp.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, bytes: usize) -> i32 {
    // SAFETY: as the caller's.
    unsafe { memcmp(a, b, bytes) }
}
