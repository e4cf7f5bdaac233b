//! A guest that dirties an exact number of pages: it writes a word of each of the first N pages from 8 MiB on, over and
//! over. N is at [`PAGES_AT`], finished rounds are counted at [`ROUNDS_AT`].

use ft_ram::GuestRam;
use vm_memory::{Bytes, GuestAddress};

/// Where the guest reads how many pages to write.
pub const PAGES_AT: u64 = 0x70_0000;
/// Where the guest counts its rounds.
pub const ROUNDS_AT: u64 = 0x70_1000;

std::arch::global_asm!(
    ".globl sweep_start",
    "sweep_start:",
    "  mov rdx, [0x700000]",
    "2:",
    "  mov rsi, 0x800000",
    "  mov rcx, rdx",
    "3:",
    "  inc qword ptr [rsi]",
    "  add rsi, 4096",
    "  dec rcx",
    "  jnz 3b",
    "  inc qword ptr [0x701000]",
    "  jmp 2b",
    ".globl sweep_end",
    "sweep_end:",
);

unsafe extern "C" {
    static sweep_start: u8;
    static sweep_end: u8;
}

/// The program, to be booted with `boot_code`.
pub fn code() -> Vec<u8> {
    // SAFETY: the labels enclose this program's assembly above.
    unsafe { super::between(&raw const sweep_start, &raw const sweep_end) }
}

/// Tells the guest how many pages to write; before it runs.
pub fn set_pages(ram: &GuestRam, pages: u64) {
    ram.memory().write_obj(pages, GuestAddress(PAGES_AT)).unwrap();
}

/// Rounds that it has finished.
pub fn rounds(ram: &GuestRam) -> u64 {
    ram.memory().read_obj(GuestAddress(ROUNDS_AT)).unwrap()
}
