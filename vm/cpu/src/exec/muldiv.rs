//! mul, imul, div, idiv. The flags that multiplications leave undefined are set from the low half of the product, as by
//! a bitwise operation; divisions leave the flags alone.

use super::int::*;
use crate::cpu::Cpu;
use crate::interrupt::vector;
use crate::kind::Kind;
use crate::op::{Handler, Op, Step, Stop};
use iced_x86::{Instruction, Mnemonic};

#[inline(always)]
fn product<T: Int>(cpu: &mut Cpu, low: u64, overflow: bool) {
    logic::<T>(cpu, low);
    cpu.flags.set_carry_overflow(overflow, overflow);
}

fn signed<T: Int>(value: u64) -> i128 {
    i128::from(T::sign_extend(value) as i64)
}

/// Into AX, or into RDX and RAX.
fn set_wide<T: Int>(cpu: &mut Cpu, low: u64, high: u64) {
    if T::BITS == 8 {
        u16::set(cpu, 0, low & 0xff | high << 8);
    } else {
        T::set(cpu, 0, low);
        T::set(cpu, 2, high);
    }
}

fn mul<T: Int, const K: u8, const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let b = read::<T, K>(cpu, op, op.dst)?;
    let a = T::get(cpu, 0);
    let (wide, overflow) = if SIGNED {
        let wide = signed::<T>(a).wrapping_mul(signed::<T>(b));
        (wide as u128, wide != signed::<T>(wide as u64 & T::MASK))
    } else {
        let wide = u128::from(a) * u128::from(b);
        (wide, wide >> T::BITS != 0)
    };
    let low = wide as u64 & T::MASK;
    set_wide::<T>(cpu, low, (wide >> T::BITS) as u64 & T::MASK);
    product::<T>(cpu, low, overflow);
    next(cpu, op)
}

#[inline(always)]
fn truncated<T: Int>(cpu: &mut Cpu, op: &Op, a: u64, b: u64) -> Step {
    let (result, overflow) = if T::BITS == 64 {
        let (result, overflow) = (a as i64).overflowing_mul(b as i64);
        (result as u64, overflow)
    } else {
        let wide = (T::sign_extend(a) as i64).wrapping_mul(T::sign_extend(b) as i64) as u64;
        (wide, wide != T::sign_extend(wide))
    };
    T::set(cpu, op.dst, result);
    product::<T>(cpu, result, overflow);
    next(cpu, op)
}

fn imul_reg_rm<T: Int, const K: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let b = read::<T, K>(cpu, op, op.src)?;
    let a = T::get(cpu, op.dst);
    truncated::<T>(cpu, op, a, b)
}

fn imul_rm_imm<T: Int, const K: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let a = read::<T, K>(cpu, op, op.src)?;
    truncated::<T>(cpu, op, a, op.imm & T::MASK)
}

#[cold]
#[inline(never)]
fn divide_error(cpu: &mut Cpu) -> Stop {
    cpu.raise(vector::DE, None)
}

fn div<T: Int, const K: u8, const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let divisor = read::<T, K>(cpu, op, op.dst)?;
    if divisor == 0 {
        return Err(divide_error(cpu));
    }
    let (low, high) = if T::BITS == 8 {
        (cpu.regs[0] & 0xff, cpu.regs[0] >> 8 & 0xff)
    } else {
        (T::get(cpu, 0), T::get(cpu, 2))
    };
    let (quotient, remainder) = if SIGNED {
        let dividend = ((u128::from(low) | u128::from(high) << T::BITS) << (128 - 2 * T::BITS)) as i128
            >> (128 - 2 * T::BITS);
        let divisor = signed::<T>(divisor);
        let quotient = dividend.wrapping_div(divisor);
        // The division of the least number by -1 wraps for 64-bit operands; its quotient fits no less for that.
        if quotient != signed::<T>(quotient as u64 & T::MASK) {
            return Err(divide_error(cpu));
        }
        (quotient as u64, dividend.wrapping_rem(divisor) as u64)
    } else {
        if high >= divisor {
            return Err(divide_error(cpu));
        }
        if T::BITS < 64 {
            let dividend = low | high << T::BITS;
            (dividend / divisor, dividend % divisor)
        } else if high == 0 {
            (low / divisor, low % divisor)
        } else {
            let dividend = u128::from(low) | u128::from(high) << 64;
            ((dividend / u128::from(divisor)) as u64, (dividend % u128::from(divisor)) as u64)
        }
    };
    set_wide::<T>(cpu, quotient & T::MASK, remainder & T::MASK);
    next(cpu, op)
}

/// What the multiplications and divisions do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Product {
    Mul,
    Imul,
    /// `register = register * operand`.
    ImulRegister,
    /// `register = operand * immediate`.
    ImulImmediate,
    Div,
    Idiv,
}

impl Product {
    pub(crate) fn handler(self, operand: Operand) -> Handler {
        match self {
            Self::Mul => rare_instance!(operand, mul, false),
            Self::Imul => rare_instance!(operand, mul, true),
            Self::ImulRegister => instance!(operand, imul_reg_rm),
            Self::ImulImmediate => instance!(operand, imul_rm_imm),
            Self::Div => rare_instance!(operand, div, false),
            Self::Idiv => rare_instance!(operand, div, true),
        }
    }
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Kind> {
    let (what, number) = match (instruction.mnemonic(), instruction.op_count()) {
        (Mnemonic::Mul, _) => (Product::Mul, 0),
        (Mnemonic::Imul, 1) => (Product::Imul, 0),
        (Mnemonic::Imul, 2) => (Product::ImulRegister, 1),
        (Mnemonic::Imul, _) => (Product::ImulImmediate, 1),
        (Mnemonic::Div, _) => (Product::Div, 0),
        (Mnemonic::Idiv, _) => (Product::Idiv, 0),
        _ => return None,
    };
    Some(Kind::Product(what, operand(instruction, op, number)?))
}
