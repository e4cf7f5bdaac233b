//! shl, shr, sar, rol, ror, rcl, rcr, shld, shrd.
//!
//! Where the architecture leaves OF undefined (counts above one) it gets what the formula for a count of one gives with
//! the final result, which is what most processors do; AF becomes clear.

use super::int::*;
use crate::cpu::Cpu;
use crate::flags::Flags;
use crate::kind::Kind;
use crate::op::{Handler, Op, Step};
use iced_x86::{Instruction, Mnemonic, OpKind};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Turn {
    Shl,
    Shr,
    Sar,
    Rol,
    Ror,
    Rcl,
    Rcr,
}

const SHL: u8 = Turn::Shl as u8;
const SHR: u8 = Turn::Shr as u8;
const SAR: u8 = Turn::Sar as u8;
const ROL: u8 = Turn::Rol as u8;
const ROR: u8 = Turn::Ror as u8;
const RCL: u8 = Turn::Rcl as u8;
const RCR: u8 = Turn::Rcr as u8;

fn top<T: Int>(value: u64) -> bool {
    value & T::SIGN != 0
}

fn below_top<T: Int>(value: u64) -> bool {
    value & (T::SIGN >> 1) != 0
}

#[inline(always)]
fn shifted<T: Int>(cpu: &mut Cpu, result: u64, carry: bool, overflow: bool) -> u64 {
    cpu.flags = Flags { result: T::sign_extend(result), aux: 0 };
    cpu.flags.set_carry_overflow(carry, overflow);
    result & T::MASK
}

/// `count` is masked to 5 or 6 bits, and not zero.
#[inline(always)]
fn shift<T: Int, const F: u8>(cpu: &mut Cpu, value: u64, count: u32) -> u64 {
    match F {
        SHL => {
            let wide = u128::from(value) << count;
            let result = wide as u64 & T::MASK;
            let carry = wide >> T::BITS & 1 != 0;
            shifted::<T>(cpu, result, carry, carry ^ top::<T>(result))
        }
        SHR => {
            let carry = value >> (count - 1) & 1 != 0;
            let result = value.checked_shr(count).unwrap_or(0);
            shifted::<T>(cpu, result, carry, top::<T>(result) ^ below_top::<T>(result))
        }
        SAR => {
            let value = T::sign_extend(value) as i64;
            let carry = value >> (count - 1) & 1 != 0;
            shifted::<T>(cpu, (value >> count.min(63)) as u64, carry, false)
        }
        ROL => {
            let by = count % T::BITS;
            let result = (value << by | value.checked_shr(T::BITS - by).unwrap_or(0)) & T::MASK;
            let carry = result & 1 != 0;
            cpu.flags.set_carry_overflow(carry, carry ^ top::<T>(result));
            result
        }
        ROR => {
            let by = count % T::BITS;
            let result = (value >> by | value.checked_shl(T::BITS - by).unwrap_or(0)) & T::MASK;
            cpu.flags.set_carry_overflow(top::<T>(result), top::<T>(result) ^ below_top::<T>(result));
            result
        }
        _ => {
            let by = count % (T::BITS + 1);
            if by == 0 {
                return value;
            }
            // The operand with the carry flag above it, rotated as a whole.
            let bits = T::BITS + 1;
            let wide = u128::from(value) | u128::from(cpu.flags.carry()) << T::BITS;
            let by = if F == RCL { by } else { bits - by };
            let rotated = (wide << by | wide >> (bits - by)) & (u128::MAX >> (128 - bits));
            let result = rotated as u64 & T::MASK;
            let carry = rotated >> T::BITS & 1 != 0;
            let overflow =
                if F == RCL { carry ^ top::<T>(result) } else { top::<T>(result) ^ below_top::<T>(result) };
            cpu.flags.set_carry_overflow(carry, overflow);
            result
        }
    }
}

#[inline(always)]
fn apply<T: Int, const K: u8, const F: u8>(cpu: &mut Cpu, op: &Op, count: u32) -> Step {
    let count = count & if T::BITS == 64 { 63 } else { 31 };
    modify::<T, K>(
        cpu,
        op,
        op.dst,
        |cpu, value| {
            if count == 0 { value } else { shift::<T, F>(cpu, value, count) }
        },
    )?;
    next(cpu, op)
}

fn by_imm<T: Int, const K: u8, const F: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    apply::<T, K, F>(cpu, op, op.imm as u8 as u32)
}

fn by_cl<T: Int, const K: u8, const F: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    apply::<T, K, F>(cpu, op, cpu.regs[1] as u8 as u32)
}

/// shld and shrd. `aux`: the count is CL.
fn double<T: Int, const K: u8, const LEFT: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let count =
        if op.aux != 0 { cpu.regs[1] } else { op.imm } as u8 as u32 & if T::BITS == 64 { 63 } else { 31 };
    let other = T::get(cpu, op.src);
    modify::<T, K>(cpu, op, op.dst, |cpu, value| {
        if count == 0 {
            return value;
        }
        let bits = T::BITS;
        // For 16-bit operands with counts above 16 the result is undefined; this gives value, other, value in a row.
        let (result, carry) = if LEFT {
            let row = u128::from(value) << bits | u128::from(other);
            if count <= bits {
                ((row << count >> bits) as u64, value >> (bits - count) & 1 != 0)
            } else {
                let row = u128::from(other) << bits | u128::from(value);
                ((row << (count - bits) >> bits) as u64, other >> (2 * bits - count) & 1 != 0)
            }
        } else if count <= bits {
            let row = u128::from(other) << bits | u128::from(value);
            ((row >> count) as u64, value >> (count - 1) & 1 != 0)
        } else {
            let row = u128::from(value) << bits | u128::from(other);
            ((row >> (count - bits)) as u64, other >> (count - bits - 1) & 1 != 0)
        };
        let result = result & T::MASK;
        shifted::<T>(cpu, result, carry, top::<T>(result) ^ top::<T>(value))
    })?;
    next(cpu, op)
}

macro_rules! by_turn {
    ($turn:expr, $operand:expr, $handler:ident) => {
        match $turn {
            Turn::Shl => rare_instance!($operand, $handler, SHL),
            Turn::Shr => rare_instance!($operand, $handler, SHR),
            Turn::Sar => rare_instance!($operand, $handler, SAR),
            Turn::Rol => rare_instance!($operand, $handler, ROL),
            Turn::Ror => rare_instance!($operand, $handler, ROR),
            Turn::Rcl => rare_instance!($operand, $handler, RCL),
            Turn::Rcr => rare_instance!($operand, $handler, RCR),
        }
    };
}

/// What the shifts and rotations do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    /// By the immediate.
    Immediate(Turn),
    /// By CL.
    Cl(Turn),
    /// `aux`: the count is CL, as with the next one.
    Shld,
    Shrd,
}

impl Shift {
    pub(crate) fn handler(self, operand: Operand) -> Handler {
        match self {
            Self::Immediate(turn) => by_turn!(turn, operand, by_imm),
            Self::Cl(turn) => by_turn!(turn, operand, by_cl),
            Self::Shld => rare_instance!(operand, double, true),
            Self::Shrd => rare_instance!(operand, double, false),
        }
    }
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Kind> {
    let turn = match instruction.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => Turn::Shl,
        Mnemonic::Shr => Turn::Shr,
        Mnemonic::Sar => Turn::Sar,
        Mnemonic::Rol => Turn::Rol,
        Mnemonic::Ror => Turn::Ror,
        Mnemonic::Rcl => Turn::Rcl,
        Mnemonic::Rcr => Turn::Rcr,
        double @ (Mnemonic::Shld | Mnemonic::Shrd) => {
            op.aux = u8::from(instruction.op_kind(2) == OpKind::Register);
            let what = if double == Mnemonic::Shld { Shift::Shld } else { Shift::Shrd };
            return Some(Kind::Shift(what, operand(instruction, op, 0)?));
        }
        _ => return None,
    };
    let by_cl = instruction.op_kind(1) == OpKind::Register;
    let what = if by_cl { Shift::Cl(turn) } else { Shift::Immediate(turn) };
    Some(Kind::Shift(what, operand(instruction, op, 0)?))
}
