//! The x87, in software. Add, subtract, multiply, divide, square root, remainders, conversions and comparisons are
//! exact to the bit, flags included; the transcendental functions are computed in double precision by `libm`, so they
//! are the same on every host but good to 53 bits only (makers' results differ from each other).

mod arithmetic;
mod compare;
mod control;
mod number;
mod operate;
mod stack;
mod transcendental;
mod transfer;

use iced_x86::Code;

use crate::op::{Handler, Op};

/// What executes an instruction of the x87.
pub(super) fn handler(code: Code) -> Option<Handler> {
    operate::handler(code)
        .or_else(|| transfer::handler(code))
        .or_else(|| compare::handler(code))
        .or_else(|| transcendental::handler(code))
        .or_else(|| control::handler(code))
}

/// Sets what its handler takes of `op` besides registers and memory.
pub(super) fn operands(code: Code, op: &mut Op) {
    operate::operands(code, op);
    transfer::operands(code, op);
    compare::operands(code, op);
    control::operands(code, op);
}
