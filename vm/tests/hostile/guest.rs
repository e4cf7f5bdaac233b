//! The guest: one page of code at CPL 0 that does the accesses which the test lists in its memory, one after the other,
//! by instructions of the width that is asked for. All of a driver's cunning is on the test's side; its accesses leave
//! the guest as any driver's do.

use ft_vm::testing::between;

// At 0x600000: the number of the list that is to be done, the one that is done, and how many accesses it has. From
// 0x601000 on, each in 24 bytes: what to do, where, and the value.
std::arch::global_asm!(
    ".globl accessor_start",
    "accessor_start:",
    "  mov r12, 0x600000",
    "2:",
    "  pause",
    "  mov r13, [r12]",
    "  cmp r13, [r12 + 8]",
    "  je 2b",
    "  mov r14, [r12 + 16]",
    "  lea rsi, [r12 + 0x1000]",
    "3:",
    "  test r14, r14",
    "  jz 9f",
    "  mov rbx, [rsi]",
    "  mov rdi, [rsi + 8]",
    "  mov edx, edi",
    "  mov rax, [rsi + 16]",
    "  cmp rbx, 1",
    "  je 11f",
    "  cmp rbx, 2",
    "  je 12f",
    "  cmp rbx, 4",
    "  je 14f",
    "  cmp rbx, 8",
    "  je 18f",
    "  cmp rbx, 0x11",
    "  je 21f",
    "  cmp rbx, 0x12",
    "  je 22f",
    "  cmp rbx, 0x14",
    "  je 24f",
    "  cmp rbx, 0x18",
    "  je 28f",
    "  cmp rbx, 0x21",
    "  je 31f",
    "  cmp rbx, 0x22",
    "  je 32f",
    "  cmp rbx, 0x24",
    "  je 34f",
    "  cmp rbx, 0x31",
    "  je 41f",
    "  cmp rbx, 0x32",
    "  je 42f",
    "  out dx, eax",
    "  jmp 8f",
    "11:",
    "  mov al, [rdi]",
    "  jmp 8f",
    "12:",
    "  mov ax, [rdi]",
    "  jmp 8f",
    "14:",
    "  mov eax, [rdi]",
    "  jmp 8f",
    "18:",
    "  mov rax, [rdi]",
    "  jmp 8f",
    "21:",
    "  mov [rdi], al",
    "  jmp 8f",
    "22:",
    "  mov [rdi], ax",
    "  jmp 8f",
    "24:",
    "  mov [rdi], eax",
    "  jmp 8f",
    "28:",
    "  mov [rdi], rax",
    "  jmp 8f",
    "31:",
    "  in al, dx",
    "  jmp 8f",
    "32:",
    "  in ax, dx",
    "  jmp 8f",
    "34:",
    "  in eax, dx",
    "  jmp 8f",
    "41:",
    "  out dx, al",
    "  jmp 8f",
    "42:",
    "  out dx, ax",
    "8:",
    "  mov [rsi + 16], rax",
    "  add rsi, 24",
    "  dec r14",
    "  jmp 3b",
    "9:",
    "  mov [r12 + 8], r13",
    "  jmp 2b",
    ".globl accessor_end",
    "accessor_end:",
);

unsafe extern "C" {
    static accessor_start: u8;
    static accessor_end: u8;
}

/// Where the guest looks for work: wanted, done, how many.
pub const WANTED: u64 = 0x60_0000;
pub const DONE: u64 = WANTED + 8;
pub const COUNT: u64 = WANTED + 16;
/// The list.
pub const LIST: u64 = 0x60_1000;
/// Accesses in one list, at most.
pub const LIST_MAX: usize = (crate::vm::RINGS - LIST) as usize / 24;

/// One access. What it reads comes back in the place of the value, whose upper bytes mean nothing then.
#[derive(Clone, Copy, Debug)]
pub struct GuestAccess {
    /// Width in bytes, and 0x10 for a write, 0x20 for a port.
    pub what: u64,
    pub address: u64,
    pub value: u64,
}

impl GuestAccess {
    pub fn read(address: u64, width: u64) -> Self {
        Self { what: width, address, value: 0 }
    }

    pub fn write(address: u64, width: u64, value: u64) -> Self {
        Self { what: 0x10 | width, address, value }
    }

    pub fn port_read(port: u16, width: u64) -> Self {
        Self { what: 0x20 | width, address: port.into(), value: 0 }
    }

    pub fn port_write(port: u16, width: u64, value: u64) -> Self {
        Self { what: 0x30 | width, address: port.into(), value }
    }

    pub fn bytes(&self) -> Vec<u8> {
        [self.what, self.address, self.value].map(u64::to_le_bytes).concat()
    }

    /// What it has read, if this is in its place.
    pub fn result(&self, value: u64) -> u64 {
        match self.what & 0xf {
            8 => value,
            width => value & ((1 << (8 * width)) - 1),
        }
    }
}

/// The program.
pub fn code() -> Vec<u8> {
    // SAFETY: the labels enclose this program's assembly above.
    unsafe { between(&raw const accessor_start, &raw const accessor_end) }
}
