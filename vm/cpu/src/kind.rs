//! The kind of an op, apart from its registers, its address and its number: those are the op's own fields. The handler
//! that executes an op follows from the kind alone. So a translator, which does not execute ops, can also tell from an
//! op what it does.

use super::exec::{self, alu, bits, control, fpu, mov, muldiv, shift, stack, status, string, system};
use super::op::Handler;
use iced_x86::Code;

/// Size of an integer operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    Byte,
    Word,
    Dword,
    Qword,
}

impl Width {
    pub(crate) fn of(bytes: usize) -> Option<Self> {
        Some(match bytes {
            1 => Self::Byte,
            2 => Self::Word,
            4 => Self::Dword,
            8 => Self::Qword,
            _ => return None,
        })
    }
}

/// Where the operand is that the instruction's ModRM byte names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Place {
    Register,
    /// At base + displacement, 64-bit.
    Base,
    /// At base + index * scale + displacement, 64-bit.
    Index,
    /// Anywhere else in memory.
    Anywhere,
}

/// The operand that ModRM names, and with it the size of the whole instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operand {
    pub place: Place,
    pub width: Width,
}

/// What an op does. `long`: in 64-bit mode; if not, in 32-bit mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Raises #UD: no processor has the instruction, or it is meant to.
    Undefined,
    /// Raises #UD: this processor does not have the instruction.
    Unknown,
    /// Raises #GP: the instruction has more than 15 bytes.
    TooLong,
    Move(mov::Move, Operand),
    Arithmetic(alu::Arithmetic, Operand),
    Branch {
        what: control::Branch,
        place: Place,
        long: bool,
    },
    Stack {
        what: stack::Stack,
        operand: Operand,
        long: bool,
    },
    Shift(shift::Shift, Operand),
    Product(muldiv::Product, Operand),
    Bits(bits::Bits, Operand),
    String {
        what: string::Element,
        width: Width,
        repeated: bool,
    },
    Status(status::Status),
    System(system::Privileged),
    /// Of SSE, MMX or the x87: by its code.
    Float {
        code: Code,
        in_memory: bool,
    },
}

impl Kind {
    /// What executes it; none: nothing here does.
    pub(crate) fn handler(self) -> Option<Handler> {
        match self {
            Self::Undefined => Some(exec::undefined),
            Self::Unknown => Some(exec::unknown),
            Self::TooLong => Some(exec::too_long),
            Self::Move(what, operand) => what.handler(operand),
            Self::Arithmetic(what, operand) => Some(what.handler(operand)),
            Self::Branch { what, place, long } => Some(what.handler(place, long)),
            Self::Stack { what, operand, long } => what.handler(operand, long),
            Self::Shift(what, operand) => Some(what.handler(operand)),
            Self::Product(what, operand) => Some(what.handler(operand)),
            Self::Bits(what, operand) => Some(what.handler(operand)),
            Self::String { what, width, repeated } => Some(what.handler(width, repeated)),
            Self::Status(what) => Some(what.handler()),
            Self::System(what) => Some(what.handler()),
            Self::Float { code, in_memory } => fpu::handler(code, in_memory),
        }
    }
}
