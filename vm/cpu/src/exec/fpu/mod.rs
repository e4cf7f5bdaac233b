//! Floating point and vectors: SSE, SSE2, MMX and the x87, as CPUID offers them and nothing later.
//!
//! The same bits on every host: packed integers and IEEE arithmetic in single and double precision are the host's own
//! SSE2 (the architecture defines every bit of their results, NaNs included, and it is in every x86-64 processor);
//! results that the architecture leaves to the maker (reciprocal estimates, transcendental functions, undefined flags)
//! are computed here in one fixed way; the x87 is computed in software.

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

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::block::segment_of;
use crate::kind::Kind;
use crate::op::{Handler, Mem, NONE, Op};

/// Tells a floating point or vector instruction; none if it is not one, or is of an extension that CPUID does not
/// offer. `op` comes with its registers and memory operand.
pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Kind> {
    let code = instruction.code();
    let kind = Kind::Float { code, in_memory: shape::has_memory(instruction) };
    kind.handler()?;
    let operands = instruction.op_count();
    if matches!(instruction.mnemonic(), Mnemonic::Maskmovq | Mnemonic::Maskmovdqu) {
        // At (R)DI, data and mask in registers.
        op.mem = masked_move(instruction);
        op.dst = instruction.op1_register().number() as u8;
        op.src = instruction.op2_register().number() as u8;
    }
    if operands > 1 && instruction.op_kind(operands - 1) == OpKind::Immediate8 {
        op.aux = instruction.immediate8();
    }
    x87::operands(code, op);
    save::operands(instruction, op);
    Some(kind)
}

/// What executes it.
pub(crate) fn handler(code: Code, in_memory: bool) -> Option<Handler> {
    moves::handler(code, in_memory)
        .or_else(|| integer::handler(code, in_memory))
        .or_else(|| shuffle::handler(code, in_memory))
        .or_else(|| float::handler(code, in_memory))
        .or_else(|| convert::handler(code, in_memory))
        .or_else(|| mmx::handler(code, in_memory))
        .or_else(|| x87::handler(code))
        .or_else(|| save::handler(code))
}

/// The memory operand of MASKMOVDQU and MASKMOVQ: the data segment (or the one that a prefix names) and RDI.
fn masked_move(instruction: &Instruction) -> Mem {
    let cut = match instruction.op0_kind() {
        OpKind::MemorySegRDI => 0,
        OpKind::MemorySegEDI => 32,
        _ => 48,
    };
    Mem {
        base: 7,
        index: NONE,
        scale: 0,
        seg: segment_of(instruction, instruction.memory_segment()),
        disp: 0,
        cut,
    }
}

#[cfg(test)]
mod tests;
