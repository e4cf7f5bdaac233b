//! Comparisons of registers together with the conditional jump after them, in one handler. Both count as instructions;
//! where the run's limit comes between them the comparison does its own work alone.

use super::alu::{Arithmetic, CMP, Form, Function, TEST, compute};
use super::control::{Branch, branch, by_condition};
use super::int::*;
use crate::cpu::Cpu;
use crate::kind::Kind;
use crate::op::{Handler, Op, Step};

/// Whether the condition holds after the comparison, from the operands where that is shorter than from the flags.
#[inline(always)]
fn holds<T: Int, const F: u8, const CC: u8>(cpu: &Cpu, a: u64, b: u64) -> bool {
    let signed = |value: u64| T::sign_extend(value) as i64;
    let holds = match (F, CC >> 1) {
        (CMP, 1) => a < b,
        (CMP, 2) => a == b,
        (CMP, 3) => a <= b,
        (CMP, 6) => signed(a) < signed(b),
        (CMP, 7) => signed(a) <= signed(b),
        (TEST, 2) => a & b == 0,
        (TEST, 4 | 6) => signed(a & b) < 0,
        (TEST, 7) => signed(a & b) <= 0,
        _ => return cpu.condition(CC),
    };
    holds ^ (CC & 1 != 0)
}

#[inline(always)]
fn compare<T: Int, const F: u8, const CC: u8>(cpu: &mut Cpu, op: &Op, a: u64, b: u64) -> Step {
    compute::<T, F>(cpu, a, b);
    let done = cpu.done.wrapping_add(1);
    if done >= cpu.end {
        return Ok(());
    }
    cpu.done = done;
    let taken = holds::<T, F, CC>(cpu, a, b);
    // SAFETY: as in `int::next`; the jump is the op that follows.
    let jump = unsafe { &*std::ptr::from_ref(op).add(1) };
    branch::<true>(cpu, jump, taken)
}

fn with_reg<const CC: u8, T: Int, const F: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let (a, b) = (T::get(cpu, op.dst), T::get(cpu, op.src));
    compare::<T, F, CC>(cpu, op, a, b)
}

fn with_imm<const CC: u8, T: Int, const F: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let a = T::get(cpu, op.dst);
    compare::<T, F, CC>(cpu, op, a, op.imm & T::MASK)
}

/// The handler for a comparison and the jump after it together, in 64-bit code, if there is one.
pub(super) fn fuse(comparison: Kind, jump: Kind) -> Option<Handler> {
    let Kind::Branch { what: Branch::Jcc(cc), long: true, .. } = jump else { return None };
    let Kind::Arithmetic(Arithmetic::Function(f, form), operand) = comparison else { return None };
    if operand.place != Place::Register {
        return None;
    }
    macro_rules! pick {
        ($handler:ident) => {
            match (operand.width, f) {
                (Width::Byte, Function::Cmp) => by_condition!(cc, $handler, u8, CMP),
                (Width::Dword, Function::Cmp) => by_condition!(cc, $handler, u32, CMP),
                (Width::Qword, Function::Cmp) => by_condition!(cc, $handler, u64, CMP),
                (Width::Byte, Function::Test) => by_condition!(cc, $handler, u8, TEST),
                (Width::Dword, Function::Test) => by_condition!(cc, $handler, u32, TEST),
                (Width::Qword, Function::Test) => by_condition!(cc, $handler, u64, TEST),
                _ => return None,
            }
        };
    }
    Some(match form {
        Form::Register => pick!(with_reg),
        Form::Immediate => pick!(with_imm),
        Form::ToRegister => return None,
    })
}
