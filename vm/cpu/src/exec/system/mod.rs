//! System instructions: everything that sees or changes the processor's mode, privilege, tables and special registers,
//! and port I/O.
//!
//! Refused by name: task switches, call gates, virtual-8086 mode and 16-bit protected mode. Not offered by CPUID, and
//! therefore #UD: monitor/mwait, xgetbv/xsetbv, rdrand/rdseed, rdfsbase and its like, clac/stac, invpcid,
//! sysenter/sysexit, rsm, virtualisation.

mod control;
pub(crate) mod cpuid;
mod io;
mod lower;
pub(crate) mod msr;
mod segments;
pub(crate) mod state;
mod syscall;
#[cfg(test)]
mod tests;
mod transfer;

pub(crate) use lower::lower;
pub use state::{InvalidSystem, SegmentRegister, System};

use super::super::cpu::Cpu;
use super::super::flags::{IF, IOPL};
use super::super::interrupt::{Source, vector};
use super::super::op::{Handler, NONE, Op, Step, Stop};
use state::CR4_TSD;

/// In [`Op::dst`] or [`Op::src`]: the operand is in memory.
const MEMORY: u8 = NONE;

impl Cpu {
    /// #GP(0).
    #[cold]
    pub(crate) fn general_protection(&mut self) -> Stop {
        self.raise(vector::GP, Some(0))
    }

    /// #UD.
    #[cold]
    pub(crate) fn undefined(&mut self) -> Stop {
        self.raise(vector::UD, None)
    }

    /// #GP(0) for programs at CPL 1 to 3.
    #[inline]
    pub(crate) fn require_kernel(&mut self) -> Step {
        if self.cpl == 0 { Ok(()) } else { Err(self.general_protection()) }
    }
}

/// Writes `bytes` bytes of a general register: 4 clear the upper half, 2 and 1 leave the rest.
fn write_register(cpu: &mut Cpu, register: u8, bytes: u8, value: u64) {
    let register = &mut cpu.regs[usize::from(register & 15)];
    *register = match bytes {
        1 => *register & !0xff | value & 0xff,
        2 => *register & !0xffff | value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    };
}

fn hlt(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.require_kernel()?;
    cpu.halted = true;
    Err(Stop::End)
}

/// cli and sti: for whom IOPL allows it.
fn require_interrupt_flag(cpu: &mut Cpu) -> Result<u64, Stop> {
    let flags = cpu.rflags();
    if u64::from(cpu.cpl) > (flags & IOPL) >> 12 {
        return Err(cpu.general_protection());
    }
    Ok(flags)
}

fn cli(cpu: &mut Cpu, _: &Op) -> Step {
    let flags = require_interrupt_flag(cpu)?;
    cpu.set_rflags(flags & !IF);
    Ok(())
}

fn sti(cpu: &mut Cpu, _: &Op) -> Step {
    let flags = require_interrupt_flag(cpu)?;
    cpu.shadow = flags & IF == 0;
    cpu.set_rflags(flags | IF);
    Err(Stop::End)
}

/// `int`, `int3`. `imm`: the vector.
fn software_interrupt(cpu: &mut Cpu, op: &Op) -> Step {
    let next = cpu.next_address(op);
    cpu.deliver(op.imm as u8, None, Source::Software, next)?;
    Err(Stop::Jump)
}

/// `into`, of 32-bit code.
fn overflow_interrupt(cpu: &mut Cpu, op: &Op) -> Step {
    if cpu.rflags() & super::super::flags::OF == 0 {
        return Ok(());
    }
    software_interrupt(cpu, op)
}

/// `int1`: a debug trap whatever the gate's privilege.
fn debug_interrupt(cpu: &mut Cpu, op: &Op) -> Step {
    let next = cpu.next_address(op);
    cpu.deliver(vector::DB, None, Source::Exception, next)?;
    Err(Stop::Jump)
}

fn require_time_stamp(cpu: &mut Cpu) -> Step {
    if cpu.sys.cr4 & CR4_TSD != 0 { cpu.require_kernel() } else { Ok(()) }
}

fn rdtsc(cpu: &mut Cpu, _: &Op) -> Step {
    require_time_stamp(cpu)?;
    let tsc = cpu.tsc();
    cpu.regs[0] = tsc & 0xffff_ffff;
    cpu.regs[2] = tsc >> 32;
    Ok(())
}

fn rdtscp(cpu: &mut Cpu, op: &Op) -> Step {
    rdtsc(cpu, op)?;
    cpu.regs[1] = cpu.sys.tsc_aux;
    Ok(())
}

/// There are no performance counters.
fn rdpmc(cpu: &mut Cpu, _: &Op) -> Step {
    Err(cpu.general_protection())
}

/// What the system instructions do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privileged {
    Ins,
    Outs,
    Hlt,
    Cli,
    Sti,
    Int,
    Into,
    Int1,
    Iret,
    Syscall,
    Sysret,
    Swapgs,
    Rdmsr,
    Wrmsr,
    Cpuid,
    Rdtsc,
    Rdtscp,
    Rdpmc,
    Clts,
    Lmsw,
    Smsw,
    Invlpg,
    Wbinvd,
    LoadTable,
    StoreTable,
    Ltr,
    Lldt,
    StoreSystemSelector,
    Lar,
    Lsl,
    Verify,
    LoadFarPointer,
    MovToSegment,
    MovFromSegment,
    MovToControl,
    MovFromControl,
    MovToDebug,
    MovFromDebug,
    PushSegment,
    PopSegment,
    In,
    Out,
    FarJump,
    FarCall,
    FarReturn,
}

impl Privileged {
    pub(crate) fn handler(self) -> Handler {
        match self {
            Self::Ins => io::input_string,
            Self::Outs => io::output_string,
            Self::Hlt => hlt,
            Self::Cli => cli,
            Self::Sti => sti,
            Self::Int => software_interrupt,
            Self::Into => overflow_interrupt,
            Self::Int1 => debug_interrupt,
            Self::Iret => transfer::interrupt_return,
            Self::Syscall => syscall::syscall,
            Self::Sysret => syscall::sysret,
            Self::Swapgs => syscall::swapgs,
            Self::Rdmsr => msr::rdmsr,
            Self::Wrmsr => msr::wrmsr,
            Self::Cpuid => cpuid::cpuid,
            Self::Rdtsc => rdtsc,
            Self::Rdtscp => rdtscp,
            Self::Rdpmc => rdpmc,
            Self::Clts => control::clts,
            Self::Lmsw => control::lmsw,
            Self::Smsw => control::smsw,
            Self::Invlpg => control::invlpg,
            Self::Wbinvd => control::invalidate_caches,
            Self::LoadTable => segments::load_table,
            Self::StoreTable => segments::store_table,
            Self::Ltr => segments::ltr,
            Self::Lldt => segments::lldt,
            Self::StoreSystemSelector => segments::store_system_selector,
            Self::Lar => segments::lar,
            Self::Lsl => segments::lsl,
            Self::Verify => segments::verify,
            Self::LoadFarPointer => segments::load_far_pointer,
            Self::MovToSegment => segments::mov_to_segment,
            Self::MovFromSegment => segments::mov_from_segment,
            Self::MovToControl => control::mov_to_control,
            Self::MovFromControl => control::mov_from_control,
            Self::MovToDebug => control::mov_to_debug,
            Self::MovFromDebug => control::mov_from_debug,
            Self::PushSegment => segments::push_segment,
            Self::PopSegment => segments::pop_segment,
            Self::In => io::input,
            Self::Out => io::output,
            Self::FarJump => transfer::far_jump,
            Self::FarCall => transfer::far_call,
            Self::FarReturn => transfer::far_return,
        }
    }
}
