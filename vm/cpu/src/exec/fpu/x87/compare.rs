//! Comparisons, FXAM, and the conditional moves.

use iced_x86::{Code, Mnemonic};

use super::arithmetic::{compare, compare_flags};
use super::number::{DE, IE, Kind, SF, propagate};
use super::operate::memory;
use super::stack::{self, C0, C1, C2, C3};
use crate::cpu::Cpu;
use crate::exec::fpu::state::Extended;
use crate::flags::{CF, PF, ZF};
use crate::op::{Handler, Op, Step};

/// `aux`: how often it pops, or the condition.
pub(super) fn operands(code: Code, op: &mut Op) {
    if let Some((pops, ..)) = comparison(code.mnemonic()) {
        op.aux = pops;
        if matches!(code, Code::Fcompp | Code::Fucompp) {
            op.src = 1;
        }
    } else if let Some(condition) = condition(code.mnemonic()) {
        op.aux = condition;
    }
}

pub(super) fn handler(code: Code) -> Option<Handler> {
    if let Some((_, quiet, eflags)) = comparison(code.mnemonic()) {
        return Some(match code {
            Code::Fcom_m32fp | Code::Fcomp_m32fp => single,
            Code::Fcom_m64fp | Code::Fcomp_m64fp => double,
            Code::Ficom_m16int | Code::Ficomp_m16int => word,
            Code::Ficom_m32int | Code::Ficomp_m32int => dword,
            _ => match (quiet, eflags) {
                (false, false) => registers::<false, false>,
                (true, false) => registers::<true, false>,
                (false, true) => registers::<false, true>,
                (true, true) => registers::<true, true>,
            },
        });
    }
    if condition(code.mnemonic()).is_some() {
        return Some(fcmov);
    }
    Some(match code.mnemonic() {
        Mnemonic::Ftst => ftst,
        Mnemonic::Fxam => fxam,
        _ => return None,
    })
}

/// How often it pops, whether quiet NaNs are no exception, whether the answer goes to EFLAGS.
fn comparison(mnemonic: Mnemonic) -> Option<(u8, bool, bool)> {
    Some(match mnemonic {
        Mnemonic::Fcom | Mnemonic::Ficom => (0, false, false),
        Mnemonic::Fcomp | Mnemonic::Ficomp => (1, false, false),
        Mnemonic::Fcompp => (2, false, false),
        Mnemonic::Fucom => (0, true, false),
        Mnemonic::Fucomp => (1, true, false),
        Mnemonic::Fucompp => (2, true, false),
        Mnemonic::Fcomi => (0, false, true),
        Mnemonic::Fcomip => (1, false, true),
        Mnemonic::Fucomi => (0, true, true),
        Mnemonic::Fucomip => (1, true, true),
        _ => return None,
    })
}

/// Compares, and leaves the answer in the condition codes or in EFLAGS. After an unmasked exception nothing is popped.
fn conclude(
    cpu: &mut Cpu,
    op: &Op,
    operands: Option<(Extended, Extended)>,
    quiet: bool,
    extra: u16,
    eflags: bool,
) {
    use core::cmp::Ordering::{Equal, Greater, Less};
    let (order, flags) = match operands {
        Some((a, b)) => {
            let extra = if propagate(a, b).is_none() { extra } else { 0 };
            (compare(a, b), compare_flags(a, b, quiet) | extra)
        }
        None => (None, IE | SF),
    };
    // C1 is for the comparisons that answer in the condition codes, and for a stack fault.
    let kept = if eflags && flags & SF == 0 { cpu.fpu.status & C1 } else { 0 };
    let goes_on = cpu.fpu.record(flags, false);
    cpu.fpu.status |= kept;
    if eflags {
        cpu.set_status(match order {
            Some(Greater) => 0,
            Some(Less) => CF,
            Some(Equal) => ZF,
            None => ZF | PF | CF,
        });
    } else {
        cpu.fpu.set_conditions(match order {
            Some(Greater) => 0,
            Some(Less) => C0,
            Some(Equal) => C3,
            None => C3 | C2 | C0,
        });
    }
    for _ in 0..if goes_on { op.aux } else { 0 } {
        cpu.fpu.pop();
    }
}

fn registers<const QUIET: bool, const EFLAGS: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    stack::begin(cpu, op)?;
    let operands = cpu.fpu.operands(0, op.src);
    conclude(cpu, op, operands, QUIET, 0, EFLAGS);
    Ok(())
}

fn with_memory(cpu: &mut Cpu, op: &Op, b: Extended, denormal: bool) -> Step {
    let operands = cpu.fpu.operand(0).map(|a| (a, b));
    conclude(cpu, op, operands, false, if denormal { DE } else { 0 }, false);
    Ok(())
}

fn single(cpu: &mut Cpu, op: &Op) -> Step {
    let (b, denormal) = Extended::from_single(memory!(cpu, op, u32));
    with_memory(cpu, op, b, denormal)
}

fn double(cpu: &mut Cpu, op: &Op) -> Step {
    let (b, denormal) = Extended::from_double(memory!(cpu, op, u64));
    with_memory(cpu, op, b, denormal)
}

fn word(cpu: &mut Cpu, op: &Op) -> Step {
    let b = Extended::from_i64((memory!(cpu, op, u16) as i16).into());
    with_memory(cpu, op, b, false)
}

fn dword(cpu: &mut Cpu, op: &Op) -> Step {
    let b = Extended::from_i64((memory!(cpu, op, u32) as i32).into());
    with_memory(cpu, op, b, false)
}

fn ftst(cpu: &mut Cpu, op: &Op) -> Step {
    stack::begin(cpu, op)?;
    let operands = cpu.fpu.operand(0).map(|a| (a, Extended::default()));
    conclude(cpu, &Op { aux: 0, ..*op }, operands, false, 0, false);
    Ok(())
}

fn fxam(cpu: &mut Cpu, op: &Op) -> Step {
    stack::begin(cpu, op)?;
    let fpu = &mut cpu.fpu;
    let a = fpu.st(0);
    let class = match a.kind() {
        _ if fpu.is_empty(0) => C3 | C0,
        Kind::Unsupported => 0,
        Kind::Quiet | Kind::Signalling => C0,
        Kind::Infinity => C2 | C0,
        Kind::Zero => C3,
        Kind::Finite(_) if a.is_denormal() => C3 | C2,
        Kind::Finite(_) => C2,
    };
    fpu.set_conditions(class);
    fpu.status = fpu.status & !C1 | if a.negative() { C1 } else { 0 };
    Ok(())
}

/// The condition code (as of Jcc) of an FCMOV.
fn condition(mnemonic: Mnemonic) -> Option<u8> {
    Some(match mnemonic {
        Mnemonic::Fcmovb => 2,
        Mnemonic::Fcmovnb => 3,
        Mnemonic::Fcmove => 4,
        Mnemonic::Fcmovne => 5,
        Mnemonic::Fcmovbe => 6,
        Mnemonic::Fcmovnbe => 7,
        Mnemonic::Fcmovu => 10,
        Mnemonic::Fcmovnu => 11,
        _ => return None,
    })
}

fn fcmov(cpu: &mut Cpu, op: &Op) -> Step {
    stack::begin(cpu, op)?;
    match cpu.fpu.operands(0, op.src) {
        None => {
            cpu.fpu.finish(0, stack::underflow());
        }
        Some((_, b)) => {
            if cpu.condition(op.aux) {
                cpu.fpu.set_st(0, b);
            }
        }
    }
    Ok(())
}
