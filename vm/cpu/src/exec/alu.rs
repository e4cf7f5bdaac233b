//! add, or, adc, sbb, and, sub, xor, cmp, test, inc, dec, neg, not, xadd, cmpxchg.

use super::int::*;
use crate::cpu::Cpu;
use crate::flags::ZF;
use crate::interrupt::vector;
use crate::kind::Kind;
use crate::op::{Handler, Op, Step};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// The operations with two operands, by the number that opcodes give them, and test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Function {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
    Cmp,
    Test,
}

const ADD: u8 = Function::Add as u8;
const OR: u8 = Function::Or as u8;
const ADC: u8 = Function::Adc as u8;
const SBB: u8 = Function::Sbb as u8;
const AND: u8 = Function::And as u8;
const SUB: u8 = Function::Sub as u8;
const XOR: u8 = Function::Xor as u8;
pub(super) const CMP: u8 = Function::Cmp as u8;
pub(super) const TEST: u8 = Function::Test as u8;

/// What a [`Function`] takes, the operand being the one that ModRM names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `operand = operand f register`.
    Register,
    /// `operand = operand f immediate`.
    Immediate,
    /// `register = register f operand`.
    ToRegister,
}

/// What the arithmetic and logic instructions do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Function(Function, Form),
    Inc,
    Dec,
    Neg,
    Not,
    Xadd,
    Cmpxchg,
    Cmpxchg8b,
    Cmpxchg16b,
}

#[inline(always)]
pub(super) fn compute<T: Int, const F: u8>(cpu: &mut Cpu, a: u64, b: u64) -> u64 {
    match F {
        ADD => add::<T>(cpu, a, b),
        OR => logic::<T>(cpu, a | b),
        ADC => adc::<T>(cpu, a, b),
        SBB => sbb::<T>(cpu, a, b),
        AND | TEST => logic::<T>(cpu, a & b),
        XOR => logic::<T>(cpu, a ^ b),
        _ => sub::<T>(cpu, a, b),
    }
}

/// Whether the result is kept.
pub(super) const fn keeps(f: u8) -> bool {
    f < CMP
}

/// `rm = rm f value`.
#[inline(always)]
fn apply<T: Int, const K: u8, const F: u8>(cpu: &mut Cpu, op: &Op, b: u64) -> Step {
    if keeps(F) {
        modify::<T, K>(cpu, op, op.dst, |cpu, a| compute::<T, F>(cpu, a, b))?;
    } else {
        let a = read::<T, K>(cpu, op, op.dst)?;
        compute::<T, F>(cpu, a, b);
    }
    next(cpu, op)
}

fn rm_reg<T: Int, const K: u8, const F: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let b = T::get(cpu, op.src);
    apply::<T, K, F>(cpu, op, b)
}

fn rm_imm<T: Int, const K: u8, const F: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    apply::<T, K, F>(cpu, op, op.imm & T::MASK)
}

fn reg_rm<T: Int, const K: u8, const F: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let b = read::<T, K>(cpu, op, op.src)?;
    let a = T::get(cpu, op.dst);
    let result = compute::<T, F>(cpu, a, b);
    if keeps(F) {
        T::set(cpu, op.dst, result);
    }
    next(cpu, op)
}

fn inc_dec<T: Int, const K: u8, const DOWN: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    modify::<T, K>(cpu, op, op.dst, |cpu, a| step::<T, DOWN>(cpu, a))?;
    next(cpu, op)
}

fn neg<T: Int, const K: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    modify::<T, K>(cpu, op, op.dst, |cpu, a| sub::<T>(cpu, 0, a))?;
    next(cpu, op)
}

fn not<T: Int, const K: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    modify::<T, K>(cpu, op, op.dst, |_, a| !a)?;
    next(cpu, op)
}

fn xadd<T: Int, const K: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    modify::<T, K>(cpu, op, op.dst, |cpu, a| {
        let b = T::get(cpu, op.src);
        T::set(cpu, op.src, a);
        add::<T>(cpu, a, b)
    })?;
    next(cpu, op)
}

/// A register that is not equal is left alone, its upper half too; memory is written in any case.
fn cmpxchg<T: Int, const K: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    if K == REG && T::get(cpu, op.dst) != T::get(cpu, 0) {
        let (expected, old) = (T::get(cpu, 0), T::get(cpu, op.dst));
        sub::<T>(cpu, expected, old);
        T::set(cpu, 0, old);
        return next(cpu, op);
    }
    modify::<T, K>(cpu, op, op.dst, |cpu, old| {
        let expected = T::get(cpu, 0);
        sub::<T>(cpu, expected, old);
        if expected == old {
            return T::get(cpu, op.src);
        }
        T::set(cpu, 0, old);
        old
    })?;
    next(cpu, op)
}

fn set_zero(cpu: &mut Cpu, zero: bool) {
    let status = cpu.flags.status() & !ZF;
    cpu.set_status(status | (u64::from(zero) * ZF));
}

fn cmpxchg8b(cpu: &mut Cpu, op: &Op) -> Step {
    let addr = cpu.address(op);
    cpu.modify::<u64>(addr, |cpu, old| {
        let half = |cpu: &Cpu, register: u8| u32::get(cpu, register);
        let equal = old == half(cpu, 0) | half(cpu, 2) << 32;
        set_zero(cpu, equal);
        if equal {
            return half(cpu, 3) | half(cpu, 1) << 32;
        }
        u32::set(cpu, 0, old);
        u32::set(cpu, 2, old >> 32);
        old
    })?;
    next(cpu, op)
}

fn cmpxchg16b(cpu: &mut Cpu, op: &Op) -> Step {
    let addr = cpu.address(op);
    if !addr.is_multiple_of(16) {
        return Err(cpu.raise(vector::GP, Some(0)));
    }
    cpu.modify::<u128>(addr, |cpu, old| {
        let pair = |low: u64, high: u64| u128::from(low) | u128::from(high) << 64;
        let equal = old == pair(cpu.regs[0], cpu.regs[2]);
        set_zero(cpu, equal);
        if equal {
            return pair(cpu.regs[3], cpu.regs[1]);
        }
        cpu.regs[0] = old as u64;
        cpu.regs[2] = (old >> 64) as u64;
        old
    })?;
    next(cpu, op)
}

/// The instances for each of the nine operations.
macro_rules! by_function {
    ($f:expr, $operand:expr, $handler:ident) => {
        match $f {
            Function::Add => instance!($operand, $handler, ADD),
            Function::Or => instance!($operand, $handler, OR),
            Function::Adc => instance!($operand, $handler, ADC),
            Function::Sbb => instance!($operand, $handler, SBB),
            Function::And => instance!($operand, $handler, AND),
            Function::Sub => instance!($operand, $handler, SUB),
            Function::Xor => instance!($operand, $handler, XOR),
            Function::Cmp => instance!($operand, $handler, CMP),
            Function::Test => instance!($operand, $handler, TEST),
        }
    };
}

impl Arithmetic {
    pub(crate) fn handler(self, operand: Operand) -> Handler {
        match self {
            Self::Function(f, Form::Register) => by_function!(f, operand, rm_reg),
            Self::Function(f, Form::Immediate) => by_function!(f, operand, rm_imm),
            Self::Function(f, Form::ToRegister) => by_function!(f, operand, reg_rm),
            Self::Inc => instance!(operand, inc_dec, false),
            Self::Dec => instance!(operand, inc_dec, true),
            Self::Neg => rare_instance!(operand, neg),
            Self::Not => rare_instance!(operand, not),
            Self::Xadd => rare_instance!(operand, xadd),
            Self::Cmpxchg => rare_instance!(operand, cmpxchg),
            Self::Cmpxchg8b => cmpxchg8b,
            Self::Cmpxchg16b => cmpxchg16b,
        }
    }
}

/// A two-operand operation.
fn function(mnemonic: Mnemonic) -> Option<Function> {
    Some(match mnemonic {
        Mnemonic::Add => Function::Add,
        Mnemonic::Or => Function::Or,
        Mnemonic::Adc => Function::Adc,
        Mnemonic::Sbb => Function::Sbb,
        Mnemonic::And => Function::And,
        Mnemonic::Sub => Function::Sub,
        Mnemonic::Xor => Function::Xor,
        Mnemonic::Cmp => Function::Cmp,
        Mnemonic::Test => Function::Test,
        _ => return None,
    })
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Kind> {
    let mnemonic = instruction.mnemonic();
    if let Some(f) = function(mnemonic) {
        let first = operand(instruction, op, 0)?;
        let (form, operand) = match instruction.op_kind(1) {
            OpKind::Memory => (Form::ToRegister, operand(instruction, op, 1)?),
            OpKind::Register => (Form::Register, first),
            _ => (Form::Immediate, first),
        };
        return Some(Kind::Arithmetic(Arithmetic::Function(f, form), operand));
    }
    let pair = |width| Operand { place: place(instruction, op, 0), width };
    let (what, operand) = match mnemonic {
        Mnemonic::Inc => (Arithmetic::Inc, operand(instruction, op, 0)?),
        Mnemonic::Dec => (Arithmetic::Dec, operand(instruction, op, 0)?),
        Mnemonic::Neg => (Arithmetic::Neg, operand(instruction, op, 0)?),
        Mnemonic::Not => (Arithmetic::Not, operand(instruction, op, 0)?),
        Mnemonic::Xadd => (Arithmetic::Xadd, operand(instruction, op, 0)?),
        Mnemonic::Cmpxchg => (Arithmetic::Cmpxchg, operand(instruction, op, 0)?),
        // Of two of these in a row.
        Mnemonic::Cmpxchg8b => (Arithmetic::Cmpxchg8b, pair(Width::Dword)),
        Mnemonic::Cmpxchg16b => (Arithmetic::Cmpxchg16b, pair(Width::Qword)),
        _ => return None,
    };
    Some(Kind::Arithmetic(what, operand))
}
