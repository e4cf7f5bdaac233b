//! The instructions. `lower` turns a decoded instruction into an [`Op`]; each file knows one family.

mod alu;
mod bits;
mod control;
pub(crate) mod fpu;
mod fuse;
pub(crate) mod int;
mod mov;
mod muldiv;
mod shift;
mod stack;
mod status;
mod string;
pub(crate) mod system;

use super::cpu::Cpu;
use super::interrupt::vector;
use super::op::{Handler, Op, Step};
use iced_x86::Instruction;

/// Chooses the handler of an instruction. `op` comes with what `block::prepare` knows; the family adds the rest.
/// None: this processor does not have the instruction.
pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    if instruction.is_invalid() {
        return None;
    }
    integer(instruction, op)
        .or_else(|| system::lower(instruction, op))
        .or_else(|| fpu::lower(instruction, op))
}

fn integer(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    // The families share no mnemonic but movsd (a string instruction and a vector one), which they tell by its operands.
    let prepared = *op;
    let families: [fn(&Instruction, &mut Op) -> Option<Handler>; 8] = [
        mov::lower,
        alu::lower,
        control::lower,
        stack::lower,
        shift::lower,
        muldiv::lower,
        bits::lower,
        string::lower,
    ];
    families
        .into_iter()
        .find_map(|lower| {
            *op = prepared;
            lower(instruction, op)
        })
        .or_else(|| {
            *op = prepared;
            status::lower(instruction)
        })
}

/// A handler for `first` and the instruction after it together, if there is one.
pub(crate) fn fuse(first: &Instruction, second: &Instruction) -> Option<Handler> {
    (second.is_jcc_short_or_near() && super::block::is_long(second))
        .then(|| fuse::fuse(first, mov::condition(second)?))
        .flatten()
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
