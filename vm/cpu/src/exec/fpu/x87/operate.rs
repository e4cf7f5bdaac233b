//! The arithmetic instructions.

use iced_x86::{Code, Mnemonic};

use super::arithmetic::{self, Operation, Reduction};
use super::number::{Control, DE, IE, INDEFINITE, Outcome, ZE, propagate};
use super::stack::{self, C0, C1, C2, C3};
use crate::cpu::Cpu;
use crate::exec::fpu::state::Extended;
use crate::op::{Handler, Op, Step};

/// `aux`: the operation.
pub(super) fn operands(code: Code, op: &mut Op) {
    if let Some((operation, _)) = operation(code.mnemonic()) {
        op.aux = operation as u8;
    }
}

pub(super) fn handler(code: Code) -> Option<Handler> {
    if let Some((_, pops)) = operation(code.mnemonic()) {
        return Some(match code {
            Code::Fadd_m32fp
            | Code::Fmul_m32fp
            | Code::Fsub_m32fp
            | Code::Fsubr_m32fp
            | Code::Fdiv_m32fp
            | Code::Fdivr_m32fp => single,
            Code::Fadd_m64fp
            | Code::Fmul_m64fp
            | Code::Fsub_m64fp
            | Code::Fsubr_m64fp
            | Code::Fdiv_m64fp
            | Code::Fdivr_m64fp => double,
            Code::Fiadd_m16int
            | Code::Fimul_m16int
            | Code::Fisub_m16int
            | Code::Fisubr_m16int
            | Code::Fidiv_m16int
            | Code::Fidivr_m16int => word,
            Code::Fiadd_m32int
            | Code::Fimul_m32int
            | Code::Fisub_m32int
            | Code::Fisubr_m32int
            | Code::Fidiv_m32int
            | Code::Fidivr_m32int => dword,
            _ if pops => registers::<true>,
            _ => registers::<false>,
        });
    }
    Some(match code.mnemonic() {
        Mnemonic::Fsqrt => |cpu, op| unary(cpu, op, arithmetic::square_root),
        Mnemonic::Frndint => |cpu, op| unary(cpu, op, arithmetic::to_integral),
        Mnemonic::Fchs => |cpu, op| unary(cpu, op, |_, a| Outcome::exact(a.with_sign(!a.negative()))),
        Mnemonic::Fabs => |cpu, op| unary(cpu, op, |_, a| Outcome::exact(a.with_sign(false))),
        Mnemonic::Fscale => fscale,
        Mnemonic::Fxtract => fxtract,
        Mnemonic::Fprem => fprem::<false>,
        Mnemonic::Fprem1 => fprem::<true>,
        _ => return None,
    })
}

/// The operation, and whether the register form pops.
fn operation(mnemonic: Mnemonic) -> Option<(Operation, bool)> {
    Some(match mnemonic {
        Mnemonic::Fadd | Mnemonic::Fiadd => (Operation::Add, false),
        Mnemonic::Fmul | Mnemonic::Fimul => (Operation::Multiply, false),
        Mnemonic::Fsub | Mnemonic::Fisub => (Operation::Subtract, false),
        Mnemonic::Fsubr | Mnemonic::Fisubr => (Operation::SubtractReversed, false),
        Mnemonic::Fdiv | Mnemonic::Fidiv => (Operation::Divide, false),
        Mnemonic::Fdivr | Mnemonic::Fidivr => (Operation::DivideReversed, false),
        Mnemonic::Faddp => (Operation::Add, true),
        Mnemonic::Fmulp => (Operation::Multiply, true),
        Mnemonic::Fsubp => (Operation::Subtract, true),
        Mnemonic::Fsubrp => (Operation::SubtractReversed, true),
        Mnemonic::Fdivp => (Operation::Divide, true),
        Mnemonic::Fdivrp => (Operation::DivideReversed, true),
        _ => return None,
    })
}

fn registers<const POP: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    stack::begin(cpu, op)?;
    let control = Control::new(cpu.fpu.control);
    let outcome = match cpu.fpu.operands(op.dst, op.src) {
        Some((a, b)) => Operation::of(op.aux).apply(control, a, b),
        None => stack::underflow(),
    };
    if cpu.fpu.finish(op.dst, outcome) && POP {
        cpu.fpu.pop();
    }
    Ok(())
}

/// ST(0) with a source from memory; `denormal`: the source was denormal in its own format.
fn with_memory(cpu: &mut Cpu, op: &Op, b: Extended, denormal: bool) {
    let control = Control::new(cpu.fpu.control);
    let outcome = match cpu.fpu.operand(0) {
        Some(a) => {
            let outcome = Operation::of(op.aux).apply(control, a, b);
            let extra = denormal && outcome.flags & (IE | ZE) == 0 && propagate(a, b).is_none();
            outcome.and(if extra { DE } else { 0 })
        }
        None => stack::underflow(),
    };
    cpu.fpu.finish(0, outcome);
}

/// The memory operand in its width: checks, address, load.
macro_rules! memory {
    ($cpu:ident, $op:ident, $width:ty) => {{
        stack::ready($cpu)?;
        let address = $cpu.address($op);
        let value = $cpu.load::<$width>(address)?;
        stack::started($cpu, $op, Some(address));
        value
    }};
}
pub(super) use memory;

fn single(cpu: &mut Cpu, op: &Op) -> Step {
    let (b, denormal) = Extended::from_single(memory!(cpu, op, u32));
    with_memory(cpu, op, b, denormal);
    Ok(())
}

fn double(cpu: &mut Cpu, op: &Op) -> Step {
    let (b, denormal) = Extended::from_double(memory!(cpu, op, u64));
    with_memory(cpu, op, b, denormal);
    Ok(())
}

fn word(cpu: &mut Cpu, op: &Op) -> Step {
    let b = Extended::from_i64((memory!(cpu, op, u16) as i16).into());
    with_memory(cpu, op, b, false);
    Ok(())
}

fn dword(cpu: &mut Cpu, op: &Op) -> Step {
    let b = Extended::from_i64((memory!(cpu, op, u32) as i32).into());
    with_memory(cpu, op, b, false);
    Ok(())
}

/// ST(0) = f(ST(0)).
pub(super) fn unary(cpu: &mut Cpu, op: &Op, f: fn(Control, Extended) -> Outcome) -> Step {
    stack::begin(cpu, op)?;
    let control = Control::new(cpu.fpu.control);
    let outcome = cpu.fpu.operand(0).map_or_else(stack::underflow, |a| f(control, a));
    cpu.fpu.finish(0, outcome);
    Ok(())
}

fn fscale(cpu: &mut Cpu, op: &Op) -> Step {
    stack::begin(cpu, op)?;
    let control = Control::new(cpu.fpu.control);
    let operands = cpu.fpu.operands(0, 1);
    let outcome = operands.map_or_else(stack::underflow, |(a, b)| arithmetic::scale(control, a, b));
    cpu.fpu.finish(0, outcome);
    Ok(())
}

/// Leaves the exponent where ST(0) was and pushes the significand.
fn fxtract(cpu: &mut Cpu, op: &Op) -> Step {
    stack::begin(cpu, op)?;
    let fpu = &mut cpu.fpu;
    let (significand, exponent) = match fpu.operand(0) {
        Some(a) => arithmetic::extract(a),
        None => (INDEFINITE, stack::underflow()),
    };
    fpu.replace_and_push(exponent, significand);
    Ok(())
}

fn fprem<const NEAREST: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    stack::begin(cpu, op)?;
    let fpu = &mut cpu.fpu;
    let (outcome, reduction) = match fpu.operands(0, 1) {
        Some((a, b)) => arithmetic::remainder(Control::new(fpu.control), a, b, NEAREST),
        None => (stack::underflow(), Reduction::Special),
    };
    fpu.status &= !C2;
    if fpu.finish(0, outcome) {
        let bit = |of: u8, bit: u8, condition: u16| if of >> bit & 1 == 1 { condition } else { 0 };
        match reduction {
            Reduction::Partial => fpu.set_conditions(C2),
            Reduction::Complete(q) => {
                fpu.set_conditions(bit(q, 2, C0) | bit(q, 1, C3));
                fpu.status = fpu.status & !C1 | bit(q, 0, C1);
            }
            Reduction::Special => {}
        }
    }
    Ok(())
}
