//! Instructions on the flags that any program may use, and instructions that do nothing.

use super::int::next;
use crate::cpu::Cpu;
use crate::flags::{AF, CF, OF, PF, SF, STATUS, ZF};
use crate::kind::Kind;
use crate::op::{Handler, Op, Step};
use iced_x86::{Instruction, Mnemonic};

fn clc(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.flags.set_carry(false);
    next(cpu, op)
}

fn stc(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.flags.set_carry(true);
    next(cpu, op)
}

fn cmc(cpu: &mut Cpu, op: &Op) -> Step {
    let carry = cpu.flags.carry();
    cpu.flags.set_carry(!carry);
    next(cpu, op)
}

fn cld(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.set_direction(false);
    next(cpu, op)
}

fn std(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.set_direction(true);
    next(cpu, op)
}

fn lahf(cpu: &mut Cpu, op: &Op) -> Step {
    let low = cpu.flags.status() & (CF | PF | AF | ZF | SF) | 2;
    cpu.regs[0] = cpu.regs[0] & !0xff00 | low << 8;
    next(cpu, op)
}

fn sahf(cpu: &mut Cpu, op: &Op) -> Step {
    let low = cpu.regs[0] >> 8 & STATUS & 0xff;
    let overflow = cpu.flags.status() & OF;
    cpu.set_status(low | overflow);
    next(cpu, op)
}

fn nop(cpu: &mut Cpu, op: &Op) -> Step {
    next(cpu, op)
}

/// Nothing to flush, but it faults as a load does.
fn clflush(cpu: &mut Cpu, op: &Op) -> Step {
    let addr = cpu.address(op);
    cpu.probe_read(addr, 1)?;
    next(cpu, op)
}

/// What the instructions on flags do, and those that do nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Clc,
    Stc,
    Cmc,
    Cld,
    Std,
    Lahf,
    Sahf,
    Nop,
    Clflush,
}

impl Status {
    pub(crate) fn handler(self) -> Handler {
        match self {
            Self::Clc => clc,
            Self::Stc => stc,
            Self::Cmc => cmc,
            Self::Cld => cld,
            Self::Std => std,
            Self::Lahf => lahf,
            Self::Sahf => sahf,
            Self::Nop => nop,
            Self::Clflush => clflush,
        }
    }
}

pub(crate) fn lower(instruction: &Instruction, _: &mut Op) -> Option<Kind> {
    use Mnemonic::*;
    Some(Kind::Status(match instruction.mnemonic() {
        Clc => Status::Clc,
        Stc => Status::Stc,
        Cmc => Status::Cmc,
        Cld => Status::Cld,
        Std => Status::Std,
        Lahf => Status::Lahf,
        Sahf => Status::Sahf,
        // Of the control-flow enforcement and hint encodings, those that are no-ops where the feature is not on.
        Nop | Reservednop | Endbr64 | Endbr32 | Rdsspd | Rdsspq | Pause | Prefetchw | Prefetchnta
        | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetch | Prefetchwt1 | Prefetchit0 | Prefetchit1
        | Bndmov | Bndldx | Bndstx | Bndcl | Bndcu | Bndcn | Bndmk | Cldemote => Status::Nop,
        Lfence | Mfence | Sfence => Status::Nop,
        Clflush => Status::Clflush,
        _ => return None,
    }))
}
