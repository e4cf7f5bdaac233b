//! System instructions: everything that sees or changes the processor's mode, privilege, tables and special registers,
//! and port I/O.
//!
//! Refused by name: task switches, call gates, virtual-8086 mode and 16-bit protected mode. Not offered by CPUID, and
//! therefore #UD: monitor/mwait, xgetbv/xsetbv, rdrand/rdseed, rdfsbase and its like, clac/stac, invpcid, sysenter/sysexit,
//! rsm, virtualisation.

mod control;
pub(crate) mod cpuid;
mod io;
pub(crate) mod msr;
mod segments;
pub(crate) mod state;
mod syscall;
#[cfg(test)]
mod tests;
mod transfer;

pub use state::{InvalidSystem, Segment, System};

use super::super::cpu::Cpu;
use super::super::flags::{IF, IOPL};
use super::super::interrupt::{Source, vector};
use super::super::op::{Handler, Mem, NONE, Op, Step, Stop};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
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

fn undefined(cpu: &mut Cpu, _: &Op) -> Step {
    Err(cpu.undefined())
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

/// Where operand `number` is: its register's number, or [`MEMORY`].
fn place(instruction: &Instruction, number: u32) -> u8 {
    match instruction.op_kind(number) {
        OpKind::Register => instruction.op_register(number).number() as u8,
        _ => MEMORY,
    }
}

/// Bytes of operand `number`, if it is a register.
fn width(instruction: &Instruction, number: u32) -> u8 {
    match instruction.op_kind(number) {
        OpKind::Register => instruction.op_register(number).size() as u8,
        _ => 0,
    }
}

/// Chooses the handler of a system instruction, and sets what it takes of `op` besides the memory operand.
pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let handler: Handler = match instruction.mnemonic() {
        Mnemonic::Mov => return lower_mov(instruction, op),
        Mnemonic::Push | Mnemonic::Pop => return lower_segment_stack(instruction, op),
        Mnemonic::In | Mnemonic::Out => return lower_port(instruction, op),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => {
            string_operand(instruction, op, 7);
            io::input_string
        }
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => {
            string_operand(instruction, op, 6);
            io::output_string
        }
        Mnemonic::Hlt => hlt,
        Mnemonic::Cli => cli,
        Mnemonic::Sti => sti,
        Mnemonic::Int => {
            op.imm = instruction.immediate8().into();
            software_interrupt
        }
        Mnemonic::Int3 => {
            op.imm = vector::BP.into();
            software_interrupt
        }
        Mnemonic::Into => {
            op.imm = vector::OF.into();
            overflow_interrupt
        }
        Mnemonic::Int1 => debug_interrupt,
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => undefined,
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => {
            op.aux = match instruction.code() {
                Code::Iretw => 2,
                Code::Iretd => 4,
                _ => 8,
            };
            transfer::interrupt_return
        }
        Mnemonic::Retf => return lower_far_return(instruction, op),
        Mnemonic::Jmp | Mnemonic::Call => return lower_far(instruction, op),
        Mnemonic::Syscall => syscall::syscall,
        Mnemonic::Sysret | Mnemonic::Sysretq => {
            op.src = (instruction.code() == Code::Sysretq).into();
            syscall::sysret
        }
        Mnemonic::Swapgs => syscall::swapgs,
        Mnemonic::Rdmsr => msr::rdmsr,
        Mnemonic::Wrmsr => msr::wrmsr,
        Mnemonic::Cpuid => cpuid::cpuid,
        Mnemonic::Rdtsc => rdtsc,
        Mnemonic::Rdtscp => rdtscp,
        Mnemonic::Rdpmc => rdpmc,
        Mnemonic::Clts => control::clts,
        Mnemonic::Lmsw => {
            op.src = place(instruction, 0);
            control::lmsw
        }
        Mnemonic::Smsw => {
            (op.dst, op.aux) = (place(instruction, 0), width(instruction, 0));
            control::smsw
        }
        Mnemonic::Invlpg => control::invlpg,
        Mnemonic::Invd | Mnemonic::Wbinvd => control::invalidate_caches,
        Mnemonic::Lgdt | Mnemonic::Lidt => {
            op.dst = (instruction.mnemonic() == Mnemonic::Lidt).into();
            op.aux = match instruction.code() {
                Code::Lgdt_m1664 | Code::Lidt_m1664 => 8,
                Code::Lgdt_m1632 | Code::Lidt_m1632 => 4,
                _ => 3,
            };
            segments::load_table
        }
        Mnemonic::Sgdt | Mnemonic::Sidt => {
            op.dst = (instruction.mnemonic() == Mnemonic::Sidt).into();
            op.aux = if matches!(instruction.code(), Code::Sgdt_m1664 | Code::Sidt_m1664) { 8 } else { 4 };
            segments::store_table
        }
        Mnemonic::Lldt | Mnemonic::Ltr => {
            op.src = place(instruction, 0);
            if instruction.mnemonic() == Mnemonic::Ltr { segments::ltr } else { segments::lldt }
        }
        Mnemonic::Sldt | Mnemonic::Str => {
            (op.dst, op.aux) = (place(instruction, 0), width(instruction, 0));
            op.src = (instruction.mnemonic() == Mnemonic::Str).into();
            segments::store_system_selector
        }
        Mnemonic::Lar | Mnemonic::Lsl => {
            (op.dst, op.aux, op.src) = (place(instruction, 0), width(instruction, 0), place(instruction, 1));
            if instruction.mnemonic() == Mnemonic::Lar { segments::lar } else { segments::lsl }
        }
        Mnemonic::Verr | Mnemonic::Verw => {
            op.src = place(instruction, 0);
            op.aux = (instruction.mnemonic() == Mnemonic::Verw).into();
            segments::verify
        }
        Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => {
            (op.dst, op.aux) = (place(instruction, 0), width(instruction, 0));
            op.src = match instruction.mnemonic() {
                Mnemonic::Les => state::ES,
                Mnemonic::Lss => state::SS,
                Mnemonic::Lfs => state::FS,
                Mnemonic::Lgs => state::GS,
                _ => state::DS,
            } as u8;
            segments::load_far_pointer
        }
        _ => return None,
    };
    Some(handler)
}

/// `mov` to and from segment, control and debug registers.
fn lower_mov(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let (to, from) = (instruction.op0_register(), instruction.op1_register());
    (op.dst, op.src) = (place(instruction, 0), place(instruction, 1));
    let handler: Handler = if to.is_segment_register() {
        if to == Register::CS {
            return Some(undefined);
        }
        segments::mov_to_segment
    } else if from.is_segment_register() {
        op.aux = width(instruction, 0);
        segments::mov_from_segment
    } else if to.is_cr() {
        control::mov_to_control
    } else if from.is_cr() {
        op.aux = width(instruction, 0);
        control::mov_from_control
    } else if to.is_dr() {
        control::mov_to_debug
    } else if from.is_dr() {
        op.aux = width(instruction, 0);
        control::mov_from_debug
    } else {
        return None;
    };
    Some(handler)
}

/// `push` and `pop` of segment registers.
fn lower_segment_stack(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let register = instruction.op0_register();
    if !register.is_segment_register() {
        return None;
    }
    op.aux = instruction.stack_pointer_increment().unsigned_abs() as u8;
    if instruction.mnemonic() == Mnemonic::Push {
        op.src = register.number() as u8;
        Some(segments::push_segment)
    } else {
        op.dst = register.number() as u8;
        Some(segments::pop_segment)
    }
}

fn lower_port(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let input = instruction.mnemonic() == Mnemonic::In;
    let (data, port) = if input { (0, 1) } else { (1, 0) };
    op.aux = width(instruction, data);
    op.src = (instruction.op_kind(port) == OpKind::Register).into();
    if op.src == 0 {
        op.imm = instruction.immediate8().into();
    }
    Some(if input { io::input } else { io::output })
}

/// The memory operand of `ins` or `outs`, which is addressed by RDI or RSI.
fn string_operand(instruction: &Instruction, op: &mut Op, pointer: u8) {
    let operand = if pointer == 7 { 0 } else { 1 };
    let long = matches!(instruction.op_kind(operand), OpKind::MemoryESRDI | OpKind::MemorySegRSI);
    let segment = match instruction.memory_segment() {
        segment @ (Register::FS | Register::GS) if pointer == 6 => segment.number() as u8,
        _ if instruction.code_size() == iced_x86::CodeSize::Code64 => NONE,
        segment if pointer == 6 => segment.number() as u8,
        _ => state::ES as u8,
    };
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    op.mem = Mem { base: pointer, index: NONE, scale: 0, seg: segment, disp: 0, mask };
    op.aux = instruction.memory_size().size() as u8;
    op.imm = if instruction.has_rep_prefix() || instruction.has_repne_prefix() { io::REPEATED } else { 0 };
}

/// Far jumps and calls; near ones are not system instructions.
fn lower_far(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let (bytes, immediate) = match instruction.code() {
        Code::Jmp_m1616 | Code::Call_m1616 => (2, false),
        Code::Jmp_m1632 | Code::Call_m1632 => (4, false),
        Code::Jmp_m1664 | Code::Call_m1664 => (8, false),
        Code::Jmp_ptr1616 | Code::Call_ptr1616 => (2, true),
        Code::Jmp_ptr1632 | Code::Call_ptr1632 => (4, true),
        _ => return None,
    };
    op.aux = bytes;
    op.src = immediate.into();
    if immediate {
        let offset = if bytes == 2 { instruction.far_branch16().into() } else { instruction.far_branch32() };
        op.imm = u64::from(offset) | u64::from(instruction.far_branch_selector()) << 32;
    }
    Some(if instruction.mnemonic() == Mnemonic::Jmp { transfer::far_jump } else { transfer::far_call })
}

fn lower_far_return(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let (bytes, dropped) = match instruction.code() {
        Code::Retfw => (2, 0),
        Code::Retfd => (4, 0),
        Code::Retfq => (8, 0),
        Code::Retfw_imm16 => (2, instruction.immediate16()),
        Code::Retfd_imm16 => (4, instruction.immediate16()),
        Code::Retfq_imm16 => (8, instruction.immediate16()),
        _ => return None,
    };
    (op.aux, op.imm) = (bytes, dropped.into());
    Some(transfer::far_return)
}
