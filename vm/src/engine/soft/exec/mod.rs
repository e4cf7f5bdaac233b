//! The instructions. `lower` turns a decoded instruction into an [`Op`]; each file knows one family.

pub(crate) mod fpu;
pub(crate) mod system;

use super::cpu::Cpu;
use super::op::{Handler, Op, Step};
use iced_x86::Instruction;

/// Chooses the handler of an instruction. `op` comes with what `block::prepare` knows; the family adds the rest.
/// None: this processor does not have the instruction.
pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    if instruction.is_invalid() {
        return None;
    }
    system::lower(instruction, op).or_else(|| fpu::lower(instruction, op))
}

/// #UD.
pub(crate) fn undefined(cpu: &mut Cpu, _: &Op) -> Step {
    Err(cpu.raise(6, None))
}

/// #GP: the instruction has more than 15 bytes.
pub(crate) fn too_long(cpu: &mut Cpu, _: &Op) -> Step {
    Err(cpu.raise(13, Some(0)))
}
