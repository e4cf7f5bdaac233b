//! The x87, in software. Add, subtract, multiply, divide, square root, remainders, conversions and comparisons are exact
//! to the bit, flags included; the transcendental functions are computed in double precision by `libm`, so they are the
//! same on every host but good to 53 bits only (no maker's are the same as another's).

mod arithmetic;
mod compare;
mod control;
mod number;
mod operate;
mod stack;
mod transcendental;
mod transfer;

use iced_x86::Instruction;

use crate::op::{Handler, Op};

pub(super) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    operate::lower(instruction, op)
        .or_else(|| transfer::lower(instruction, op))
        .or_else(|| compare::lower(instruction, op))
        .or_else(|| transcendental::lower(instruction))
        .or_else(|| control::lower(instruction, op))
}
