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
pub(crate) mod state;
mod x87;

pub use state::{Fpu, FpuStateError};

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::block::segment_of;
use crate::op::{Handler, Mem, NONE, Op};

/// The handler of a floating point or vector instruction, none if it is not one, or is of an
/// extension that CPUID does not offer. `op` comes with its registers and memory operand.
pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let mut lowered = *op;
    let operands = instruction.op_count();
    if instruction.mnemonic() == Mnemonic::Maskmovq || instruction.mnemonic() == Mnemonic::Maskmovdqu {
        // At (R)DI, data and mask in registers.
        lowered.mem = masked_move(instruction);
        lowered.dst = instruction.op1_register().number() as u8;
        lowered.src = instruction.op2_register().number() as u8;
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
        .or_else(|| x87::lower(instruction, &mut lowered))
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

#[cfg(test)]
mod tests;
