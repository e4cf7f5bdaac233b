//! bt, bts, btr, btc, bsf, bsr, popcnt. (tzcnt and lzcnt are not offered: their encodings are bsf and bsr.)

use super::int::*;
use crate::cpu::Cpu;
use crate::op::{Handler, Op, Step};
use iced_x86::{Instruction, Mnemonic, OpKind};

const TEST: u8 = 0;
const SET: u8 = 1;
const RESET: u8 = 2;
const COMPLEMENT: u8 = 3;

#[inline(always)]
fn bit<T: Int, const F: u8>(cpu: &mut Cpu, value: u64, number: u64) -> u64 {
    let mask = 1u64 << (number & u64::from(T::BITS - 1));
    cpu.flags.set_carry(value & mask != 0);
    match F {
        SET => value | mask,
        RESET => value & !mask,
        COMPLEMENT => value ^ mask,
        _ => value,
    }
}

fn by_imm<T: Int, const K: u8, const F: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    if F == TEST {
        let value = read::<T, K>(cpu, op, op.dst)?;
        bit::<T, F>(cpu, value, op.imm);
    } else {
        modify::<T, K>(cpu, op, op.dst, |cpu, value| bit::<T, F>(cpu, value, op.imm))?;
    }
    next(cpu, op)
}

/// A bit number in a register reaches beyond the memory operand: it is a bit string there.
fn by_reg<T: Int, const K: u8, const F: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let number = T::get(cpu, op.src);
    if K == REG {
        let value = T::get(cpu, op.dst);
        let value = bit::<T, F>(cpu, value, number);
        if F != TEST {
            T::set(cpu, op.dst, value);
        }
        return next(cpu, op);
    }
    let units = T::sign_extend(number) as i64 >> T::BITS.trailing_zeros();
    let mut at = *op;
    at.mem.disp = at.mem.disp.wrapping_add(units.wrapping_mul(i64::from(T::BITS / 8)));
    let addr = cpu.address(&at);
    if F == TEST {
        let value = cpu.load::<T>(addr)?.wide();
        bit::<T, F>(cpu, value, number);
    } else {
        cpu.modify::<T>(addr, |cpu, value| T::from_wide(bit::<T, F>(cpu, value.wide(), number)))?;
    }
    Ok(())
}

/// The destination keeps its value when the source is zero; the flags besides ZF are as after a bitwise operation.
fn scan<T: Int, const K: u8, const REVERSE: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = read::<T, K>(cpu, op, op.src)?;
    logic::<T>(cpu, value);
    if value != 0 {
        let found = if REVERSE { 63 - value.leading_zeros() } else { value.trailing_zeros() };
        T::set(cpu, op.dst, u64::from(found));
    }
    next(cpu, op)
}

fn popcnt<T: Int, const K: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = read::<T, K>(cpu, op, op.src)?;
    T::set(cpu, op.dst, u64::from(value.count_ones()));
    cpu.set_status(if value == 0 { crate::flags::ZF } else { 0 });
    next(cpu, op)
}

macro_rules! by_function {
    ($f:expr, $operand:expr, $handler:ident) => {
        match $f {
            TEST => rare_instance!($operand, $handler, TEST),
            SET => rare_instance!($operand, $handler, SET),
            RESET => rare_instance!($operand, $handler, RESET),
            _ => rare_instance!($operand, $handler, COMPLEMENT),
        }
    };
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let f = match instruction.mnemonic() {
        Mnemonic::Bt => TEST,
        Mnemonic::Bts => SET,
        Mnemonic::Btr => RESET,
        Mnemonic::Btc => COMPLEMENT,
        Mnemonic::Bsf | Mnemonic::Tzcnt => return Some(instance!(operand(instruction, op, 1)?, scan, false)),
        Mnemonic::Bsr | Mnemonic::Lzcnt => return Some(instance!(operand(instruction, op, 1)?, scan, true)),
        Mnemonic::Popcnt => return Some(rare_instance!(operand(instruction, op, 1)?, popcnt)),
        _ => return None,
    };
    let rm = operand(instruction, op, 0)?;
    Some(if instruction.op_kind(1) == OpKind::Register {
        by_function!(f, rm, by_reg)
    } else {
        by_function!(f, rm, by_imm)
    })
}
