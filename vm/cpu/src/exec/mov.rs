//! mov, movzx, movsx, movsxd, lea, xchg, cmovcc, setcc, bswap, the sign extensions of the accumulator, xlat.

use super::int::*;
use crate::block::segment_of;
use crate::cpu::Cpu;
use crate::op::{Handler, Op, Step};
use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind};

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

fn accumulator(bytes: usize) -> Operand {
    Operand { kind: REG, bytes }
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    use Mnemonic::*;
    let mnemonic = instruction.mnemonic();
    Some(match mnemonic {
        Mov => {
            let destination = operand(instruction, op, 0)?;
            match instruction.op_kind(1) {
                OpKind::Memory => instance!(operand(instruction, op, 1)?, from_rm),
                OpKind::Register => {
                    operand(instruction, op, 1)?;
                    instance!(destination, to_rm)
                }
                _ => instance!(destination, imm_to_rm),
            }
        }
        Movzx | Movsx | Movsxd => {
            let source = operand(instruction, op, 1)?;
            match (operand(instruction, op, 0)?.bytes, mnemonic == Movzx) {
                (2, true) => instance!(source, extend, 2, false),
                (4, true) => instance!(source, extend, 4, false),
                (8, true) => instance!(source, extend, 8, false),
                (2, false) => instance!(source, extend, 2, true),
                (4, false) => instance!(source, extend, 4, true),
                (8, false) => instance!(source, extend, 8, true),
                _ => return None,
            }
        }
        Lea => {
            let to = operand(instruction, op, 0)?;
            op.mem.seg = crate::op::NONE;
            let from = operand(instruction, op, 1)?;
            instance!(Operand { bytes: to.bytes, ..from }, lea)
        }
        Xchg => {
            // Either operand may be the memory one.
            if instruction.op_kind(1) == OpKind::Memory {
                op.src = op.dst;
                rare_instance!(operand(instruction, op, 1)?, xchg)
            } else {
                rare_instance!(operand(instruction, op, 0)?, xchg)
            }
        }
        Bswap => rare_instance!(operand(instruction, op, 0)?, bswap),
        Cbw => rare_instance!(accumulator(2), widen),
        Cwde => rare_instance!(accumulator(4), widen),
        Cdqe => rare_instance!(accumulator(8), widen),
        Cwd => rare_instance!(accumulator(2), spread),
        Cdq => rare_instance!(accumulator(4), spread),
        Cqo => rare_instance!(accumulator(8), spread),
        Xlatb => {
            let base = instruction.memory_base();
            op.mem.base = 3;
            op.mem.index = crate::op::NONE;
            op.mem.seg = segment_of(instruction, instruction.memory_segment());
            op.mem.mask = u64::MAX >> (64 - base.size() * 8);
            xlat
        }
        _ => {
            let cc = condition(instruction)?;
            match instruction.flow_control() {
                iced_x86::FlowControl::Next => {}
                _ => return None,
            }
            op.aux = cc;
            if instruction.op_count() == 1 {
                instance!(operand(instruction, op, 0)?, setcc)
            } else {
                if !operand(instruction, op, 0)?.kind.eq(&REG) {
                    return None;
                }
                instance!(operand(instruction, op, 1)?, cmov)
            }
        }
    })
}
