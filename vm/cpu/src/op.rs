//! One decoded instruction: its kind, the handler that follows from it, and its operands. Blocks are slices of these;
//! see `block.rs` for how they are made.

use super::cpu::Cpu;
use super::kind::Kind;

/// Executes one instruction. `Ok`: it has retired and the next op of the block follows.
pub(crate) type Handler = fn(&mut Cpu, &Op) -> Step;

/// What a handler returns. One byte.
pub(crate) type Step = Result<(), Stop>;

/// Why the block does not simply go on with its next op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stop {
    /// The instruction has retired and has set `cpu.rip` (every branch, taken or not, iretq, syscall...).
    Jump,
    /// The instruction has retired and ends its block; `rip` goes to the next instruction. (sti, cli, popf, hlt, wrmsr,
    /// mov to a control register, invlpg...: after whatever may let an interrupt in or change how code is fetched.)
    End,
    /// The instruction has not retired: `cpu.fault` says which exception it raises. Registers, flags and `rip` are as
    /// before it, except where the architecture says otherwise.
    Fault,
    /// The instruction (a REP string instruction) has done a part of its work, counts as one retired instruction, and
    /// is to be executed again from the same `rip`.
    Again,
}

/// No register, in a memory operand.
pub(crate) const NONE: u8 = 0xff;

/// A memory operand: `segment base + (base + index * 2^scale + disp)`, cut to the address size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mem {
    /// Index into `cpu.regs`, or [`NONE`]. RIP-relative operands have `base == RIP_BASE`: the base is the address of
    /// the block (`cpu.rip` while it runs), and `disp` is relative to that.
    pub base: u8,
    pub index: u8,
    /// 0 to 3.
    pub scale: u8,
    /// Index into `cpu.sys.segs` (0 ES, 1 CS, 2 SS, 3 DS, 4 FS, 5 GS) of the segment whose base is added, or [`NONE`]
    /// where it is known to be zero (64-bit mode, all but FS and GS).
    pub seg: u8,
    pub disp: i64,
    /// High bits of the sum that are dropped before the segment base is added: none for 64-bit addresses, 32 for 32-bit
    /// ones, 48 for 16-bit ones.
    pub cut: u8,
}

impl Mem {
    /// No memory operand.
    pub(crate) const ABSENT: Self = Self { base: NONE, index: NONE, scale: 0, seg: NONE, disp: 0, cut: 0 };

    /// The bits that an address has before the segment base is added.
    pub(crate) fn mask(&self) -> u64 {
        u64::MAX >> (self.cut & 63)
    }
}

/// [`Mem::base`] of a RIP-relative operand.
pub(crate) const RIP_BASE: u8 = 0xfe;

/// One decoded instruction.
#[derive(Clone, Copy)]
pub(crate) struct Op {
    /// What executes it: its kind's handler, or one that does the next op's work along with it.
    pub run: Handler,
    pub kind: Kind,
    /// Register operands: indices into `cpu.regs` (general), `cpu.fpu.xmm`, x87 stack, segments... as the handler
    /// takes them. 8-bit AH, CH, DH, BH are 16 to 19 (the core's handlers are chosen by that, see `exec`).
    pub dst: u8,
    pub src: u8,
    /// Immediate's low byte, condition code, or what else the handler needs besides.
    pub aux: u8,
    /// Bytes of this instruction.
    pub len: u8,
    /// Offset of this instruction from the start of its block, in bytes.
    pub offset: u16,
    /// Memory operand, where there is one.
    pub mem: Mem,
    /// Immediate, sign- or zero-extended as the instruction defines; near branch targets relative to the block's
    /// address (as iced's `near_branch_target()` has them: blocks are decoded as if they lay at address zero).
    pub imm: u64,
}

// How many of them the host's caches hold is the interpreter's speed.
const _: () = assert!(size_of::<Op>() == 48);

impl Op {
    /// An op of this kind without operands.
    pub(crate) fn of(kind: Kind, offset: u16) -> Self {
        let run = kind.handler().unwrap_or(super::exec::undefined);
        Self { run, kind, dst: 0, src: 0, aux: 0, len: 1, offset, mem: Mem::ABSENT, imm: 0 }
    }
}
