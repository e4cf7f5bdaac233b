//! Near jumps, calls and returns, loops. Blocks are decoded as if they lay at address zero, so a target is `rip + imm`.

use super::int::*;
use super::mov::condition;
use super::stack::{pop, push, set_stack_pointer, stack_pointer};
use crate::block::is_long;
use crate::cpu::Cpu;
use crate::kind::Kind;
use crate::op::{Handler, NONE, Op, Step, Stop};
use iced_x86::{Instruction, Mnemonic, OpKind};

#[inline(always)]
fn go<const LONG: bool>(cpu: &mut Cpu, target: u64) -> Step {
    cpu.rip = if LONG { target } else { target & 0xffff_ffff };
    Err(Stop::Jump)
}

#[inline(always)]
fn target<const LONG: bool>(cpu: &Cpu, op: &Op) -> u64 {
    let target = cpu.rip.wrapping_add(op.imm);
    if LONG { target } else { target & 0xffff_ffff }
}

/// Address of the next instruction.
#[inline(always)]
fn following<const LONG: bool>(cpu: &Cpu, op: &Op) -> u64 {
    let next = cpu.rip.wrapping_add(u64::from(op.offset) + u64::from(op.len));
    if LONG { next } else { next & 0xffff_ffff }
}

fn jmp<const LONG: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let to = target::<LONG>(cpu, op);
    go::<LONG>(cpu, to)
}

/// Goes to the target or to the next instruction: one of two addresses, without a branch of our own.
#[inline(always)]
pub(super) fn branch<const LONG: bool>(cpu: &mut Cpu, op: &Op, taken: bool) -> Step {
    let to = if taken { target::<LONG>(cpu, op) } else { following::<LONG>(cpu, op) };
    go::<LONG>(cpu, to)
}

fn jcc<const CC: u8, const LONG: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let taken = cpu.condition(CC);
    branch::<LONG>(cpu, op, taken)
}

fn jmp_rm<T: Int, const K: u8, const LONG: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let to = read::<T, K>(cpu, op, op.dst)?;
    go::<LONG>(cpu, to)
}

fn call<const LONG: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let back = following::<LONG>(cpu, op);
    if LONG {
        push::<u64, LONG>(cpu, back)?
    } else {
        push::<u32, LONG>(cpu, back)?
    }
    let to = target::<LONG>(cpu, op);
    go::<LONG>(cpu, to)
}

fn call_rm<T: Int, const K: u8, const LONG: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let to = read::<T, K>(cpu, op, op.dst)?;
    let back = following::<LONG>(cpu, op);
    push::<T, LONG>(cpu, back)?;
    go::<LONG>(cpu, to)
}

fn ret<T: Int, const LONG: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let to = pop::<T, LONG>(cpu)?;
    if op.imm != 0 {
        let top = stack_pointer::<LONG>(cpu).wrapping_add(op.imm);
        set_stack_pointer::<LONG>(cpu, top);
    }
    go::<LONG>(cpu, to)
}

/// What a loop instruction goes by, besides the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Loop {
    Always,
    Equal,
    Unequal,
    /// jrcxz: jumps when the counter is zero, and does not count.
    Zero,
}

const ALWAYS: u8 = Loop::Always as u8;
const EQUAL: u8 = Loop::Equal as u8;
const UNEQUAL: u8 = Loop::Unequal as u8;
const ZERO: u8 = Loop::Zero as u8;

/// `aux`: the counter is ECX.
fn count_down<const F: u8, const LONG: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let mut counter = cpu.regs[1];
    if F != ZERO {
        counter = counter.wrapping_sub(1);
    }
    if op.aux != 0 {
        counter &= 0xffff_ffff;
    }
    if F != ZERO {
        cpu.regs[1] = counter;
    }
    let taken = match F {
        ZERO => counter == 0,
        EQUAL => counter != 0 && cpu.flags.zero(),
        UNEQUAL => counter != 0 && !cpu.flags.zero(),
        _ => counter != 0,
    };
    branch::<LONG>(cpu, op, taken)
}

macro_rules! by_condition {
    ($cc:expr, $handler:ident, $($c:tt),*) => {
        match $cc {
            0 => $handler::<0, $($c),*> as Handler,
            1 => $handler::<1, $($c),*>,
            2 => $handler::<2, $($c),*>,
            3 => $handler::<3, $($c),*>,
            4 => $handler::<4, $($c),*>,
            5 => $handler::<5, $($c),*>,
            6 => $handler::<6, $($c),*>,
            7 => $handler::<7, $($c),*>,
            8 => $handler::<8, $($c),*>,
            9 => $handler::<9, $($c),*>,
            10 => $handler::<10, $($c),*>,
            11 => $handler::<11, $($c),*>,
            12 => $handler::<12, $($c),*>,
            13 => $handler::<13, $($c),*>,
            14 => $handler::<14, $($c),*>,
            _ => $handler::<15, $($c),*>,
        }
    };
}

pub(super) use by_condition;

macro_rules! by_mode {
    ($long:expr, $handler:ident $(, $c:expr)*) => {
        if $long { $handler::<$({ $c },)* true> as Handler } else { $handler::<$({ $c },)* false> as Handler }
    };
}

/// What the near branches do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Branch {
    Jmp,
    /// To where the operand says.
    JmpOperand,
    Call,
    CallOperand,
    Ret,
    /// On this condition code.
    Jcc(u8),
    /// `aux`: the counter is ECX.
    Loop(Loop),
}

impl Branch {
    pub(crate) fn handler(self, place: Place, long: bool) -> Handler {
        let operand = Operand { place, width: if long { Width::Qword } else { Width::Dword } };
        match (self, long) {
            (Self::Jmp, _) => by_mode!(long, jmp),
            (Self::JmpOperand, true) => instance!(operand, jmp_rm, true),
            (Self::JmpOperand, false) => rare_instance!(operand, jmp_rm, false),
            (Self::Call, _) => by_mode!(long, call),
            (Self::CallOperand, true) => instance!(operand, call_rm, true),
            (Self::CallOperand, false) => rare_instance!(operand, call_rm, false),
            (Self::Ret, true) => ret::<u64, true>,
            (Self::Ret, false) => ret::<u32, false>,
            (Self::Jcc(cc), true) => by_condition!(cc, jcc, true),
            (Self::Jcc(cc), false) => by_condition!(cc, jcc, false),
            (Self::Loop(Loop::Always), _) => by_mode!(long, count_down, ALWAYS),
            (Self::Loop(Loop::Equal), _) => by_mode!(long, count_down, EQUAL),
            (Self::Loop(Loop::Unequal), _) => by_mode!(long, count_down, UNEQUAL),
            (Self::Loop(Loop::Zero), _) => by_mode!(long, count_down, ZERO),
        }
    }
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Kind> {
    let long = is_long(instruction);
    let near = matches!(instruction.op0_kind(), OpKind::NearBranch32 | OpKind::NearBranch64);
    if near {
        op.imm = instruction.near_branch_target();
    }
    let mut place = Place::Register;
    let what = match instruction.mnemonic() {
        Mnemonic::Jmp if near => Branch::Jmp,
        Mnemonic::Call if near => {
            // A stack access without a memory operand: tells #SS from #GP.
            op.mem.base = 4;
            Branch::Call
        }
        mnemonic @ (Mnemonic::Jmp | Mnemonic::Call) => {
            let operand = operand(instruction, op, 0)?;
            if instruction.is_jmp_far_indirect() || instruction.is_call_far_indirect() {
                return None;
            }
            if !matches!((operand.width, long), (Width::Qword, true) | (Width::Dword, false)) {
                return None;
            }
            place = operand.place;
            if mnemonic == Mnemonic::Jmp { Branch::JmpOperand } else { Branch::CallOperand }
        }
        Mnemonic::Ret => {
            op.mem.base = 4;
            op.imm &= 0xffff;
            Branch::Ret
        }
        mnemonic @ (Mnemonic::Loop
        | Mnemonic::Loope
        | Mnemonic::Loopne
        | Mnemonic::Jrcxz
        | Mnemonic::Jecxz) => {
            use iced_x86::Code::*;
            op.mem.base = NONE;
            op.aux = match instruction.code() {
                Loop_rel8_64_RCX | Loope_rel8_64_RCX | Loopne_rel8_64_RCX | Jrcxz_rel8_64 => 0,
                Loop_rel8_64_ECX | Loope_rel8_64_ECX | Loopne_rel8_64_ECX | Jecxz_rel8_64
                | Loop_rel8_32_ECX | Loope_rel8_32_ECX | Loopne_rel8_32_ECX | Jecxz_rel8_32 => 1,
                _ => return None,
            };
            Branch::Loop(match mnemonic {
                Mnemonic::Loop => Loop::Always,
                Mnemonic::Loope => Loop::Equal,
                Mnemonic::Loopne => Loop::Unequal,
                _ => Loop::Zero,
            })
        }
        _ if near => {
            op.aux = condition(instruction)?;
            Branch::Jcc(op.aux)
        }
        _ => return None,
    };
    Some(Kind::Branch { what, place, long })
}
