//! add, or, adc, sbb, and, sub, xor, cmp, test, inc, dec, neg, not, xadd, cmpxchg.

use super::int::*;
use crate::cpu::Cpu;
use crate::flags::ZF;
use crate::interrupt::vector;
use crate::op::{Handler, Op, Step};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// The operations with two operands, by the number that opcodes give them, and test.
pub(super) const ADD: u8 = 0;
const OR: u8 = 1;
const ADC: u8 = 2;
const SBB: u8 = 3;
pub(super) const AND: u8 = 4;
pub(super) const SUB: u8 = 5;
const XOR: u8 = 6;
pub(super) const CMP: u8 = 7;
pub(super) const TEST: u8 = 8;

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
            ADD => instance!($operand, $handler, ADD),
            OR => instance!($operand, $handler, OR),
            ADC => instance!($operand, $handler, ADC),
            SBB => instance!($operand, $handler, SBB),
            AND => instance!($operand, $handler, AND),
            SUB => instance!($operand, $handler, SUB),
            XOR => instance!($operand, $handler, XOR),
            CMP => instance!($operand, $handler, CMP),
            _ => instance!($operand, $handler, TEST),
        }
    };
}

/// The number of a two-operand operation.
pub(super) fn function(mnemonic: Mnemonic) -> Option<u8> {
    Some(match mnemonic {
        Mnemonic::Add => ADD,
        Mnemonic::Or => OR,
        Mnemonic::Adc => ADC,
        Mnemonic::Sbb => SBB,
        Mnemonic::And => AND,
        Mnemonic::Sub => SUB,
        Mnemonic::Xor => XOR,
        Mnemonic::Cmp => CMP,
        Mnemonic::Test => TEST,
        _ => return None,
    })
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let mnemonic = instruction.mnemonic();
    if let Some(f) = function(mnemonic) {
        let rm = operand(instruction, op, 0)?;
        return Some(match instruction.op_kind(1) {
            OpKind::Memory => by_function!(f, operand(instruction, op, 1)?, reg_rm),
            OpKind::Register => by_function!(f, rm, rm_reg),
            _ => by_function!(f, rm, rm_imm),
        });
    }
    Some(match mnemonic {
        Mnemonic::Inc => instance!(operand(instruction, op, 0)?, inc_dec, false),
        Mnemonic::Dec => instance!(operand(instruction, op, 0)?, inc_dec, true),
        Mnemonic::Neg => rare_instance!(operand(instruction, op, 0)?, neg),
        Mnemonic::Not => rare_instance!(operand(instruction, op, 0)?, not),
        Mnemonic::Xadd => rare_instance!(operand(instruction, op, 0)?, xadd),
        Mnemonic::Cmpxchg => rare_instance!(operand(instruction, op, 0)?, cmpxchg),
        Mnemonic::Cmpxchg8b => cmpxchg8b,
        Mnemonic::Cmpxchg16b => cmpxchg16b,
        _ => return None,
    })
}
