//! The instructions. `lower` turns a decoded instruction into an [`Op`]; each file knows one family.

pub(crate) mod alu;
pub(crate) mod bits;
pub(crate) mod control;
pub(crate) mod fpu;
mod fuse;
pub(crate) mod int;
pub(crate) mod mov;
pub(crate) mod muldiv;
pub(crate) mod shift;
pub(crate) mod stack;
pub(crate) mod status;
pub(crate) mod string;
pub(crate) mod system;

use super::cpu::Cpu;
use super::interrupt::vector;
use super::kind::Kind;
use super::op::{Handler, Op, Step};
use iced_x86::Instruction;

/// What an instruction is. `op` comes with what `block::prepare` knows; the family adds the rest, the handler included.
/// False: this processor does not have the instruction.
pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> bool {
    if instruction.is_invalid() {
        return false;
    }
    // The families share no mnemonic but movsd (a string instruction and a vector one), which they tell by its
    // operands.
    let families: [fn(&Instruction, &mut Op) -> Option<Kind>; 11] = [
        mov::lower,
        alu::lower,
        control::lower,
        stack::lower,
        shift::lower,
        muldiv::lower,
        bits::lower,
        string::lower,
        status::lower,
        system::lower,
        fpu::lower,
    ];
    let prepared = *op;
    let found = families.into_iter().find_map(|lower| {
        *op = prepared;
        let kind = lower(instruction, op)?;
        Some((kind, kind.handler()?))
    });
    if let Some((kind, run)) = found {
        (op.kind, op.run) = (kind, run);
    } else {
        *op = prepared;
    }
    found.is_some()
}

/// A handler for `first` and the op after it together, if there is one.
pub(crate) fn fuse(first: &Op, second: &Op) -> Option<Handler> {
    fuse::fuse(first.kind, second.kind)
}

/// #UD.
pub(crate) fn undefined(cpu: &mut Cpu, _: &Op) -> Step {
    Err(cpu.raise(vector::UD, None))
}

/// #UD, of an instruction that exists, but not in this processor.
pub(crate) fn unknown(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.unknown_instructions += 1;
    undefined(cpu, op)
}

/// #GP: the instruction has more than 15 bytes.
pub(crate) fn too_long(cpu: &mut Cpu, _: &Op) -> Step {
    Err(cpu.raise(vector::GP, Some(0)))
}
