//! Floating point and vectors: SSE, SSE2, MMX and the x87, as CPUID offers them and nothing later.
//!
//! The same bits on every host: packed integers and IEEE arithmetic in single and double precision are the host's own
//! SSE2 (the architecture defines every bit of their results, NaNs included, and it is in every x86-64 processor);
//! whatever the architecture leaves to the maker (reciprocal estimates, transcendental functions, undefined flags) is
//! computed here in one fixed way; the x87 is computed in software.

mod convert;
mod float;
mod integer;
mod mmx;
mod moves;
mod save;
mod shape;
mod shuffle;
mod state;

pub(crate) use state::{Extended, Fpu, FpuStateError};

use iced_x86::{Instruction, OpKind};

use crate::engine::soft::block::segment_of;
use crate::engine::soft::op::{Handler, Mem, NONE, Op};

/// The handler of a floating point or vector instruction, with its register numbers and immediate put into `op`; none
/// if it is not one, or is of an extension that CPUID does not offer. `op.mem` is the caller's.
pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let mut lowered = *op;
    let register = |operand: u32| match instruction.op_kind(operand) {
        OpKind::Register => Some(instruction.op_register(operand).number() as u8),
        _ => None,
    };
    let operands = instruction.op_count();
    match instruction.op0_kind() {
        OpKind::MemorySegRDI | OpKind::MemorySegEDI | OpKind::MemorySegDI if operands == 3 => {
            // MASKMOV: at (R)DI, data and mask in registers.
            lowered.mem = masked_move(instruction);
            lowered.dst = register(1)?;
            lowered.src = register(2)?;
        }
        _ => {
            lowered.dst = if operands > 0 { register(0).unwrap_or(0) } else { 0 };
            lowered.src = if operands > 1 { register(1).unwrap_or(0) } else { 0 };
        }
    }
    if operands > 1 && instruction.op_kind(operands - 1) == OpKind::Immediate8 {
        lowered.aux = instruction.immediate8();
    }
    let handler = moves::lower(instruction)
        .or_else(|| integer::lower(instruction))
        .or_else(|| shuffle::lower(instruction))
        .or_else(|| float::lower(instruction))
        .or_else(|| convert::lower(instruction))
        .or_else(|| mmx::lower(instruction))
        .or_else(|| save::lower(instruction, &mut lowered))?;
    *op = lowered;
    Some(handler)
}

/// The memory operand of MASKMOVDQU and MASKMOVQ: the data segment (or the one that a prefix names) and RDI.
fn masked_move(instruction: &Instruction) -> Mem {
    let mask = match instruction.op0_kind() {
        OpKind::MemorySegRDI => u64::MAX,
        OpKind::MemorySegEDI => 0xffff_ffff,
        _ => 0xffff,
    };
    Mem {
        base: 7,
        index: NONE,
        scale: 0,
        seg: segment_of(instruction, instruction.memory_segment()),
        disp: 0,
        mask,
    }
}
