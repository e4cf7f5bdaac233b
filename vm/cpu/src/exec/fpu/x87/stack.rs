//! The register stack, and how an operation's outcome reaches it: which exceptions keep a result from being written.

use super::number::{DE, IE, INDEFINITE, Outcome, SF, ZE};
use crate::cpu::Cpu;
use crate::exec::fpu::shape;
use crate::exec::fpu::state::{Extended, Fpu};
use crate::op::{Op, Step};

pub(super) const C0: u16 = 0x0100;
pub(super) const C1: u16 = 0x0200;
pub(super) const C2: u16 = 0x0400;
pub(super) const C3: u16 = 0x4000;

/// A waiting x87 instruction may execute, and nothing is pending.
#[inline]
pub(super) fn ready(cpu: &mut Cpu) -> Step {
    shape::x87_ready(cpu)?;
    shape::x87_wait(cpu)
}

/// An instruction that is no control instruction executes: it becomes the last one, its operand the last operand. After
/// the last fault that its memory operand can raise.
#[inline]
pub(super) fn started(cpu: &mut Cpu, op: &Op, operand: Option<u64>) {
    cpu.fpu.fip = cpu.op_address(op);
    cpu.fpu.fdp = operand.unwrap_or(cpu.fpu.fdp);
}

/// [`ready`] and [`started`] of an instruction without a memory operand.
#[inline]
pub(super) fn begin(cpu: &mut Cpu, op: &Op) -> Step {
    ready(cpu)?;
    started(cpu, op, None);
    Ok(())
}

impl Fpu {
    /// Whether `flags` hold one that is unmasked.
    fn unmasked(&self, flags: u16) -> bool {
        flags & !self.control & 0x3f != 0
    }

    /// Records exceptions and C1. Whether the instruction may go on to write its result: not after an unmasked
    /// exception that is found before there is one.
    pub(super) fn record(&mut self, flags: u16, c1: bool) -> bool {
        let stopped = self.unmasked(flags & (IE | DE | ZE));
        let (flags, c1) = match stopped {
            true => (flags & (IE | DE | ZE | SF), c1 && flags & SF != 0),
            false => (flags, c1),
        };
        self.status = self.status & !C1 | flags | if c1 { C1 } else { 0 };
        self.summarise();
        !stopped
    }

    /// Whether an outcome may be written to memory: not with any unmasked exception but inexact.
    pub(super) fn stores(&self, flags: u16) -> bool {
        !self.unmasked(flags & !super::number::PE)
    }

    pub(super) fn set_st(&mut self, i: u8, value: Extended) {
        let physical = self.physical(i);
        self.x87[physical] = value;
        self.full |= 1 << physical;
    }

    /// Writes an outcome to ST(i); whether it did.
    pub(super) fn finish(&mut self, i: u8, outcome: Outcome) -> bool {
        let goes_on = self.record(outcome.flags, outcome.up);
        if goes_on {
            self.set_st(i, outcome.value);
        }
        goes_on
    }

    /// Pushes an outcome; onto a full register it is a stack overflow. Of unmasked exceptions only invalid keeps it
    /// from being pushed: a denormal is loaded.
    pub(super) fn push(&mut self, outcome: Outcome) {
        let outcome = if self.is_empty(7) || outcome.flags & SF != 0 { outcome } else { overflow() };
        self.record(outcome.flags, outcome.up);
        if !self.unmasked(outcome.flags & IE) {
            self.push_value(outcome.value);
        }
    }

    fn push_value(&mut self, value: Extended) {
        self.top = self.top.wrapping_sub(1) & 7;
        self.set_st(0, value);
    }

    /// Replaces ST(0) and pushes a second result. Without room for that it is a stack overflow, and both are
    /// indefinite.
    pub(super) fn replace_and_push(&mut self, first: Outcome, second: Extended) {
        let (first, second) = if self.is_empty(7) || first.flags & SF != 0 {
            (first, second)
        } else {
            (overflow(), INDEFINITE)
        };
        if self.finish(0, first) {
            self.push_value(second);
        }
    }

    pub(super) fn pop(&mut self) {
        let physical = self.physical(0);
        self.full &= !(1 << physical);
        self.top = self.top.wrapping_add(1) & 7;
    }

    /// ST(i) for an operation; none if it is empty.
    pub(super) fn operand(&self, i: u8) -> Option<Extended> {
        (!self.is_empty(i)).then(|| self.st(i))
    }

    /// ST(i) and ST(j).
    pub(super) fn operands(&self, i: u8, j: u8) -> Option<(Extended, Extended)> {
        self.operand(i).zip(self.operand(j))
    }

    pub(super) fn set_conditions(&mut self, conditions: u16) {
        self.status = self.status & !(C0 | C2 | C3) | conditions;
    }
}

/// What pushing onto a full register gives.
fn overflow() -> Outcome {
    Outcome { value: INDEFINITE, flags: IE | SF, up: true }
}

/// What an operation on an empty register gives: a stack underflow.
pub(super) fn underflow() -> Outcome {
    Outcome { value: INDEFINITE, flags: IE | SF, up: false }
}
