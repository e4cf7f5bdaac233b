//! The kind of a system instruction, and the fields of an op that its handler takes besides the memory operand.

use super::{MEMORY, Privileged, io, state};
use crate::interrupt::vector;
use crate::kind::Kind;
use crate::op::{Mem, NONE, Op};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

/// Tells a system instruction, and sets what it takes of `op` besides the memory operand.
pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Kind> {
    let what = match instruction.mnemonic() {
        Mnemonic::Mov => return lower_mov(instruction, op),
        Mnemonic::Push | Mnemonic::Pop => return lower_segment_stack(instruction, op),
        Mnemonic::In | Mnemonic::Out => return lower_port(instruction, op),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => {
            string_operand(instruction, op, 7);
            Privileged::Ins
        }
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => {
            string_operand(instruction, op, 6);
            Privileged::Outs
        }
        Mnemonic::Hlt => Privileged::Hlt,
        Mnemonic::Cli => Privileged::Cli,
        Mnemonic::Sti => Privileged::Sti,
        Mnemonic::Int => {
            op.imm = instruction.immediate8().into();
            Privileged::Int
        }
        Mnemonic::Int3 => {
            op.imm = vector::BP.into();
            Privileged::Int
        }
        Mnemonic::Into => {
            op.imm = vector::OF.into();
            Privileged::Into
        }
        Mnemonic::Int1 => Privileged::Int1,
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => return Some(Kind::Undefined),
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => {
            op.aux = match instruction.code() {
                Code::Iretw => 2,
                Code::Iretd => 4,
                _ => 8,
            };
            Privileged::Iret
        }
        Mnemonic::Retf => return lower_far_return(instruction, op),
        Mnemonic::Jmp | Mnemonic::Call => return lower_far(instruction, op),
        Mnemonic::Syscall => Privileged::Syscall,
        Mnemonic::Sysret | Mnemonic::Sysretq => {
            op.src = (instruction.code() == Code::Sysretq).into();
            Privileged::Sysret
        }
        Mnemonic::Swapgs => Privileged::Swapgs,
        Mnemonic::Rdmsr => Privileged::Rdmsr,
        Mnemonic::Wrmsr => Privileged::Wrmsr,
        Mnemonic::Cpuid => Privileged::Cpuid,
        Mnemonic::Rdtsc => Privileged::Rdtsc,
        Mnemonic::Rdtscp => Privileged::Rdtscp,
        Mnemonic::Rdpmc => Privileged::Rdpmc,
        Mnemonic::Clts => Privileged::Clts,
        Mnemonic::Lmsw => {
            op.src = place(instruction, 0);
            Privileged::Lmsw
        }
        Mnemonic::Smsw => {
            (op.dst, op.aux) = (place(instruction, 0), width(instruction, 0));
            Privileged::Smsw
        }
        Mnemonic::Invlpg => Privileged::Invlpg,
        Mnemonic::Invd | Mnemonic::Wbinvd => Privileged::Wbinvd,
        _ => return lower_table(instruction, op),
    };
    Some(Kind::System(what))
}

/// What is about descriptors and their tables.
fn lower_table(instruction: &Instruction, op: &mut Op) -> Option<Kind> {
    let what = match instruction.mnemonic() {
        Mnemonic::Lgdt | Mnemonic::Lidt => {
            op.dst = (instruction.mnemonic() == Mnemonic::Lidt).into();
            op.aux = match instruction.code() {
                Code::Lgdt_m1664 | Code::Lidt_m1664 => 8,
                Code::Lgdt_m1632 | Code::Lidt_m1632 => 4,
                _ => 3,
            };
            Privileged::LoadTable
        }
        Mnemonic::Sgdt | Mnemonic::Sidt => {
            op.dst = (instruction.mnemonic() == Mnemonic::Sidt).into();
            op.aux = if matches!(instruction.code(), Code::Sgdt_m1664 | Code::Sidt_m1664) { 8 } else { 4 };
            Privileged::StoreTable
        }
        Mnemonic::Lldt | Mnemonic::Ltr => {
            op.src = place(instruction, 0);
            if instruction.mnemonic() == Mnemonic::Ltr { Privileged::Ltr } else { Privileged::Lldt }
        }
        Mnemonic::Sldt | Mnemonic::Str => {
            (op.dst, op.aux) = (place(instruction, 0), width(instruction, 0));
            op.src = (instruction.mnemonic() == Mnemonic::Str).into();
            Privileged::StoreSystemSelector
        }
        Mnemonic::Lar | Mnemonic::Lsl => {
            (op.dst, op.aux, op.src) = (place(instruction, 0), width(instruction, 0), place(instruction, 1));
            if instruction.mnemonic() == Mnemonic::Lar { Privileged::Lar } else { Privileged::Lsl }
        }
        Mnemonic::Verr | Mnemonic::Verw => {
            op.src = place(instruction, 0);
            op.aux = (instruction.mnemonic() == Mnemonic::Verw).into();
            Privileged::Verify
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
            Privileged::LoadFarPointer
        }
        _ => return None,
    };
    Some(Kind::System(what))
}

/// `mov` to and from segment, control and debug registers.
fn lower_mov(instruction: &Instruction, op: &mut Op) -> Option<Kind> {
    let (to, from) = (instruction.op0_register(), instruction.op1_register());
    (op.dst, op.src) = (place(instruction, 0), place(instruction, 1));
    let what = if to.is_segment_register() {
        if to == Register::CS {
            return Some(Kind::Undefined);
        }
        Privileged::MovToSegment
    } else if from.is_segment_register() {
        op.aux = width(instruction, 0);
        Privileged::MovFromSegment
    } else if to.is_cr() {
        Privileged::MovToControl
    } else if from.is_cr() {
        op.aux = width(instruction, 0);
        Privileged::MovFromControl
    } else if to.is_dr() {
        Privileged::MovToDebug
    } else if from.is_dr() {
        op.aux = width(instruction, 0);
        Privileged::MovFromDebug
    } else {
        return None;
    };
    Some(Kind::System(what))
}

/// `push` and `pop` of segment registers.
fn lower_segment_stack(instruction: &Instruction, op: &mut Op) -> Option<Kind> {
    let register = instruction.op0_register();
    if !register.is_segment_register() {
        return None;
    }
    op.aux = instruction.stack_pointer_increment().unsigned_abs() as u8;
    if instruction.mnemonic() == Mnemonic::Push {
        op.src = register.number() as u8;
        Some(Kind::System(Privileged::PushSegment))
    } else {
        op.dst = register.number() as u8;
        Some(Kind::System(Privileged::PopSegment))
    }
}

fn lower_port(instruction: &Instruction, op: &mut Op) -> Option<Kind> {
    let input = instruction.mnemonic() == Mnemonic::In;
    let (data, port) = if input { (0, 1) } else { (1, 0) };
    op.aux = width(instruction, data);
    op.src = (instruction.op_kind(port) == OpKind::Register).into();
    if op.src == 0 {
        op.imm = instruction.immediate8().into();
    }
    Some(Kind::System(if input { Privileged::In } else { Privileged::Out }))
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
    let cut = if long { 0 } else { 32 };
    op.mem = Mem { base: pointer, index: NONE, scale: 0, seg: segment, disp: 0, cut };
    op.aux = instruction.memory_size().size() as u8;
    op.imm = if instruction.has_rep_prefix() || instruction.has_repne_prefix() { io::REPEATED } else { 0 };
}

/// Far jumps and calls; near ones are not system instructions.
fn lower_far(instruction: &Instruction, op: &mut Op) -> Option<Kind> {
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
    Some(Kind::System(if instruction.mnemonic() == Mnemonic::Jmp {
        Privileged::FarJump
    } else {
        Privileged::FarCall
    }))
}

fn lower_far_return(instruction: &Instruction, op: &mut Op) -> Option<Kind> {
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
    Some(Kind::System(Privileged::FarReturn))
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
