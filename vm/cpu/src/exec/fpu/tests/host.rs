//! One instruction on the host's own processor: a page of code that loads the vector and x87 state, executes the
//! instruction and saves the state again, called from Rust with everything restored behind it.

use std::arch::asm;
use std::num::NonZeroUsize;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

/// What an instruction sees and leaves.
#[derive(Clone, Debug, PartialEq)]
#[repr(C, align(64))]
pub(super) struct World {
    /// Operand in memory, at (RDI).
    pub memory: [u8; 128],
    pub fxsave: [u8; 512],
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rflags: u64,
}

/// Room for a thunk.
pub(super) struct Host {
    page: *mut u8,
}

impl Host {
    pub(super) fn new() -> Host {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE | ProtFlags::PROT_EXEC;
        let length = NonZeroUsize::new(4096).unwrap();
        // SAFETY: a fresh anonymous mapping, which nothing else knows.
        let page = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE).unwrap() };
        Host { page: page.as_ptr().cast() }
    }

    /// Makes the thunk for an instruction. It is called with the world in RDI.
    pub(super) fn load(&mut self, instruction: &[u8]) {
        let at = |field: usize| (field as u32).to_le_bytes();
        let fxsave = at(std::mem::offset_of!(World, fxsave));
        let (rax, rcx) = (at(std::mem::offset_of!(World, rax)), at(std::mem::offset_of!(World, rcx)));
        let (rdx, rflags) = (at(std::mem::offset_of!(World, rdx)), at(std::mem::offset_of!(World, rflags)));
        let parts: [&[u8]; 23] = [
            &[0x57],                   // push rdi
            &[0x48, 0x0f, 0xae, 0x8f], // fxrstor64 [rdi + ...]
            &fxsave,
            &[0x48, 0x8b, 0x87], // mov rax, [rdi + ...]
            &rax,
            &[0x48, 0x8b, 0x8f], // mov rcx
            &rcx,
            &[0x48, 0x8b, 0x97], // mov rdx
            &rdx,
            &[0xff, 0xb7], // push [rdi + ...]; popfq
            &rflags,
            &[0x9d],
            instruction,
            &[0x9c, 0x5e, 0x5f], // pushfq; pop rsi; pop rdi
            &[0x48, 0x89, 0xb7], // mov [rdi + ...], rsi
            &rflags,
            &[0x48, 0x89, 0x87], // mov rax
            &rax,
            &[0x48, 0x89, 0x8f], // mov rcx
            &rcx,
            &[0x48, 0x0f, 0xae, 0x87], // fxsave64 [rdi + ...]
            &fxsave,
            &[0xdb, 0xe3, 0xc3], // fninit; ret
        ];
        let code: Vec<u8> = parts.concat();
        // SAFETY: the page is ours and larger than any thunk.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.page, code.len()) };
    }

    pub(super) fn run(&mut self, world: &mut World) {
        let default = 0x1f80u32;
        // SAFETY: the thunk keeps the stack, changes what a call may change, and memory only within `world`; the x87 is
        // left initialised and MXCSR as Rust has it.
        unsafe {
            asm!(
                "call {thunk}",
                "ldmxcsr [{default}]",
                thunk = in(reg) self.page,
                default = in(reg) &raw const default,
                inout("rdi") std::ptr::from_mut(world) => _,
                out("rsi") _,
                out("rax") _,
                out("rcx") _,
                out("rdx") _,
                clobber_abi("sysv64"),
            );
        }
    }
}
