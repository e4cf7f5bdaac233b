//! mov, movzx, movsx, movsxd, lea, xchg, cmovcc, setcc, bswap, the sign extensions of the accumulator, xlat.

use super::int::*;
use crate::block::segment_of;
use crate::cpu::Cpu;
use crate::kind::Kind;
use crate::op::{Handler, Op, Step};
use iced_x86::{ConditionCode, FlowControl, Instruction, Mnemonic, OpKind};

fn to_rm<T: Int, const K: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = T::get(cpu, op.src);
    write::<T, K>(cpu, op, op.dst, value)?;
    next(cpu, op)
}

fn imm_to_rm<T: Int, const K: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    write::<T, K>(cpu, op, op.dst, op.imm)?;
    next(cpu, op)
}

fn from_rm<T: Int, const K: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = read::<T, K>(cpu, op, op.src)?;
    T::set(cpu, op.dst, value);
    next(cpu, op)
}

/// movzx and movsx from `T` to a register of `TO` bytes.
fn extend<T: Int, const K: u8, const TO: u8, const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let mut value = read::<T, K>(cpu, op, op.src)?;
    if SIGNED {
        value = T::sign_extend(value);
    }
    match TO {
        2 => u16::set(cpu, op.dst, value),
        4 => u32::set(cpu, op.dst, value),
        _ => u64::set(cpu, op.dst, value),
    }
    next(cpu, op)
}

/// The offset alone: no segment base.
fn lea<T: Int, const K: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let addr = address::<K>(cpu, op);
    T::set(cpu, op.dst, addr);
    next(cpu, op)
}

fn xchg<T: Int, const K: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    modify::<T, K>(cpu, op, op.dst, |cpu, old| {
        let new = T::get(cpu, op.src);
        T::set(cpu, op.src, old);
        new
    })?;
    next(cpu, op)
}

/// Reads also when the condition does not hold; a 32-bit destination is zero-extended then too.
fn cmov<T: Int, const K: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = read::<T, K>(cpu, op, op.src)?;
    let old = T::get(cpu, op.dst);
    let value = if cpu.condition(op.aux) { value } else { old };
    T::set(cpu, op.dst, value);
    next(cpu, op)
}

fn setcc<T: Int, const K: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = u64::from(cpu.condition(op.aux));
    write::<T, K>(cpu, op, op.dst, value)?;
    next(cpu, op)
}

fn bswap<T: Int, const K: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = T::get(cpu, op.dst);
    let swapped = match T::BITS {
        // Undefined; what processors leave is zero.
        16 => 0,
        bits => value.swap_bytes() >> (64 - bits),
    };
    T::set(cpu, op.dst, swapped);
    next(cpu, op)
}

/// cbw, cwde, cdqe: the accumulator's lower half of `T` extended to the whole.
fn widen<T: Int, const K: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let half = cpu.regs[0] << (64 - T::BITS / 2);
    T::set(cpu, 0, (half as i64 >> (64 - T::BITS / 2)) as u64);
    next(cpu, op)
}

/// cwd, cdq, cqo: the accumulator's sign into all of RDX's part.
fn spread<T: Int, const K: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let negative = T::get(cpu, 0) & T::SIGN != 0;
    T::set(cpu, 2, if negative { u64::MAX } else { 0 });
    next(cpu, op)
}

/// The address is `op.mem`'s plus AL.
fn xlat(cpu: &mut Cpu, op: &Op) -> Step {
    let mut op = *op;
    op.mem.disp = u8::get(cpu, 0) as i64;
    let value = cpu.load::<u8>(cpu.address(&op))?;
    u8::set(cpu, 0, u64::from(value));
    Ok(())
}

pub(super) fn condition(instruction: &Instruction) -> Option<u8> {
    Some(match instruction.condition_code() {
        ConditionCode::None => return None,
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        ConditionCode::g => 15,
    })
}

/// What the moves do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// `register = operand`.
    FromOperand,
    /// `operand = register`.
    ToOperand,
    /// `operand = immediate`.
    Immediate,
    /// `register = operand`, extended to this size.
    Extend {
        to: Width,
        signed: bool,
    },
    Lea,
    Xchg,
    Bswap,
    /// cbw, cwde, cdqe, by the size of their result.
    Widen,
    /// cwd, cdq, cqo.
    Spread,
    Xlat,
    /// On the condition in `aux`, as the next one.
    Setcc,
    Cmovcc,
}

impl Move {
    pub(crate) fn handler(self, operand: Operand) -> Option<Handler> {
        Some(match self {
            Self::FromOperand => instance!(operand, from_rm),
            Self::ToOperand => instance!(operand, to_rm),
            Self::Immediate => instance!(operand, imm_to_rm),
            Self::Extend { to, signed } => match (to, signed) {
                (Width::Byte, _) => return None,
                (Width::Word, false) => instance!(operand, extend, 2, false),
                (Width::Dword, false) => instance!(operand, extend, 4, false),
                (Width::Qword, false) => instance!(operand, extend, 8, false),
                (Width::Word, true) => instance!(operand, extend, 2, true),
                (Width::Dword, true) => instance!(operand, extend, 4, true),
                (Width::Qword, true) => instance!(operand, extend, 8, true),
            },
            Self::Lea => instance!(operand, lea),
            Self::Xchg => rare_instance!(operand, xchg),
            Self::Bswap => rare_instance!(operand, bswap),
            Self::Widen => rare_instance!(operand, widen),
            Self::Spread => rare_instance!(operand, spread),
            Self::Xlat => xlat,
            Self::Setcc => instance!(operand, setcc),
            Self::Cmovcc => instance!(operand, cmov),
        })
    }
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Kind> {
    use Mnemonic::*;
    let mnemonic = instruction.mnemonic();
    let accumulator = |width| Operand { place: Place::Register, width };
    let (what, operand) = match mnemonic {
        Mov => {
            let destination = operand(instruction, op, 0)?;
            match instruction.op_kind(1) {
                OpKind::Memory => (Move::FromOperand, operand(instruction, op, 1)?),
                OpKind::Register => {
                    operand(instruction, op, 1)?;
                    (Move::ToOperand, destination)
                }
                _ => (Move::Immediate, destination),
            }
        }
        Movzx | Movsx | Movsxd => {
            let to = operand(instruction, op, 0)?.width;
            (Move::Extend { to, signed: mnemonic != Movzx }, operand(instruction, op, 1)?)
        }
        Lea => {
            let width = operand(instruction, op, 0)?.width;
            op.mem.seg = crate::op::NONE;
            (Move::Lea, Operand { place: place(instruction, op, 1), width })
        }
        Xchg => {
            // Either operand may be the memory one.
            if instruction.op_kind(1) == OpKind::Memory {
                op.src = op.dst;
                (Move::Xchg, operand(instruction, op, 1)?)
            } else {
                (Move::Xchg, operand(instruction, op, 0)?)
            }
        }
        Bswap => (Move::Bswap, operand(instruction, op, 0)?),
        Cbw => (Move::Widen, accumulator(Width::Word)),
        Cwde => (Move::Widen, accumulator(Width::Dword)),
        Cdqe => (Move::Widen, accumulator(Width::Qword)),
        Cwd => (Move::Spread, accumulator(Width::Word)),
        Cdq => (Move::Spread, accumulator(Width::Dword)),
        Cqo => (Move::Spread, accumulator(Width::Qword)),
        Xlatb => {
            let base = instruction.memory_base();
            op.mem.base = 3;
            op.mem.index = crate::op::NONE;
            op.mem.seg = segment_of(instruction, instruction.memory_segment());
            op.mem.cut = 64 - base.size() as u8 * 8;
            (Move::Xlat, Operand { place: Place::Anywhere, width: Width::Byte })
        }
        _ => return lower_conditional(instruction, op),
    };
    Some(Kind::Move(what, operand))
}

/// setcc and cmovcc.
fn lower_conditional(instruction: &Instruction, op: &mut Op) -> Option<Kind> {
    op.aux = condition(instruction)?;
    if instruction.flow_control() != FlowControl::Next {
        return None;
    }
    if instruction.op_count() == 1 {
        return Some(Kind::Move(Move::Setcc, operand(instruction, op, 0)?));
    }
    let to = operand(instruction, op, 0)?;
    (to.place == Place::Register).then_some(())?;
    Some(Kind::Move(Move::Cmovcc, operand(instruction, op, 1)?))
}
