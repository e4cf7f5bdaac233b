//! bt, bts, btr, btc, bsf, bsr, popcnt. (tzcnt and lzcnt are not offered: their encodings are bsf and bsr.)

use super::int::*;
use crate::cpu::Cpu;
use crate::kind::Kind;
use crate::op::{Handler, Op, Step};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// What becomes of a bit after it was copied to the carry flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Bit {
    Test,
    Set,
    Reset,
    Complement,
}

const TEST: u8 = Bit::Test as u8;
const SET: u8 = Bit::Set as u8;
const RESET: u8 = Bit::Reset as u8;
const COMPLEMENT: u8 = Bit::Complement as u8;

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

macro_rules! by_bit {
    ($bit:expr, $operand:expr, $handler:ident) => {
        match $bit {
            Bit::Test => rare_instance!($operand, $handler, TEST),
            Bit::Set => rare_instance!($operand, $handler, SET),
            Bit::Reset => rare_instance!($operand, $handler, RESET),
            Bit::Complement => rare_instance!($operand, $handler, COMPLEMENT),
        }
    };
}

/// What the bit instructions do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    /// The bit of the immediate's number.
    Immediate(Bit),
    /// The bit of the register's number.
    Register(Bit),
    Bsf,
    Bsr,
    Popcnt,
}

impl Bits {
    pub(crate) fn handler(self, operand: Operand) -> Handler {
        match self {
            Self::Immediate(bit) => by_bit!(bit, operand, by_imm),
            Self::Register(bit) => by_bit!(bit, operand, by_reg),
            Self::Bsf => instance!(operand, scan, false),
            Self::Bsr => instance!(operand, scan, true),
            Self::Popcnt => rare_instance!(operand, popcnt),
        }
    }
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Kind> {
    let by_register = instruction.op_kind(1) == OpKind::Register;
    let one = |bit| (if by_register { Bits::Register(bit) } else { Bits::Immediate(bit) }, 0);
    let (what, number) = match instruction.mnemonic() {
        Mnemonic::Bt => one(Bit::Test),
        Mnemonic::Bts => one(Bit::Set),
        Mnemonic::Btr => one(Bit::Reset),
        Mnemonic::Btc => one(Bit::Complement),
        Mnemonic::Bsf | Mnemonic::Tzcnt => (Bits::Bsf, 1),
        Mnemonic::Bsr | Mnemonic::Lzcnt => (Bits::Bsr, 1),
        Mnemonic::Popcnt => (Bits::Popcnt, 1),
        _ => return None,
    };
    Some(Kind::Bits(what, operand(instruction, op, number)?))
}
