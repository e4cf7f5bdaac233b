//! Operands for an instruction form, and the instructions before it that give it a chance.

use super::super::assemble::Step;
use super::super::forms::{Image, image};
use super::super::{GS_BASE, SCRATCH, SCRATCH_BYTES, State, UNMAPPED, WINDOW, values};
use iced_x86::{Code, Instruction, Mnemonic, OpCodeOperandKind as Kind, OpKind, Register};
use rand::Rng;
use rand::rngs::StdRng;

const GPR8: [Register; 20] = [
    Register::AL,
    Register::CL,
    Register::DL,
    Register::BL,
    Register::SPL,
    Register::BPL,
    Register::SIL,
    Register::DIL,
    Register::R8L,
    Register::R9L,
    Register::R10L,
    Register::R11L,
    Register::R12L,
    Register::R13L,
    Register::R14L,
    Register::R15L,
    Register::AH,
    Register::CH,
    Register::DH,
    Register::BH,
];

/// Chooses operands; knows the values of the general registers that nothing has written yet.
pub(super) struct Operands {
    known: [Option<u64>; 16],
}

fn register(first: Register, number: usize) -> Register {
    first + number as u32
}

/// Where a memory operand shall lie.
fn target(rng: &mut StdRng) -> u64 {
    let near = rng.random_range(1..20);
    match rng.random_range(0..100) {
        0..55 => WINDOW + rng.random_range(0..0x200) * 16,
        55..65 => WINDOW + rng.random_range(0..0x3ff) * 8,
        65..80 => WINDOW + rng.random_range(0..0x1ff0),
        80..87 => WINDOW + 0x1000 - near,
        87..91 => WINDOW + 0x2000 + rng.random_range(0..0xff) * 16,
        91..94 => WINDOW + 0x2000 - near,
        94..96 => WINDOW + 0x3000 - near,
        96..98 => WINDOW - near,
        _ => UNMAPPED + rng.random_range(0..0x2000),
    }
}

impl Operands {
    pub(super) fn new(state: &State) -> Self {
        Self { known: state.regs.map(Some) }
    }

    pub(super) fn forget(&mut self, number: usize) {
        self.known[number] = None;
    }

    /// An instruction of this form, and its preparations. Branches go to `label`.
    pub(super) fn step(&self, rng: &mut StdRng, code: Code, label: u64) -> Step {
        let mut step = Step::new();
        let mut i = Instruction::new();
        i.set_code(code);
        let info = code.op_code();
        for (at, &kind) in info.op_kinds().iter().enumerate() {
            self.operand(rng, &mut i, at as u32, kind, label);
        }
        let to_memory = i.op_count() > 0 && i.op0_kind() == OpKind::Memory;
        if info.can_use_lock_prefix() && (to_memory && rng.random_bool(0.3) || rng.random_bool(0.01)) {
            i.set_has_lock_prefix(true);
        }
        if (info.can_use_rep_prefix() || info.can_use_repne_prefix()) && rng.random_bool(0.6) {
            match info.can_use_repne_prefix() && rng.random_bool(0.5) {
                true => i.set_has_repne_prefix(true),
                false => i.set_has_rep_prefix(true),
            }
            let is_short = (0..i.op_count())
                .any(|at| matches!(i.op_kind(at), OpKind::MemorySegESI | OpKind::MemoryESEDI));
            if is_short && rng.random_bool(0.5) {
                // Only ECX counts.
                let count = (rng.random_range(0..4u64) * rng.random_range(0..12u64))
                    | (1 << rng.random_range(32..64));
                step.push(Instruction::with2(Code::Mov_r64_imm64, Register::RCX, count).expect("mov"));
            } else if self.known[1].is_none_or(|count| count >= 0x40) {
                let count = rng.random_range(0..0x30);
                step.push(Instruction::with2(Code::Mov_r32_imm32, Register::ECX, count).expect("mov"));
            }
        }
        self.prepare(rng, &mut step, &mut i, label);
        step.push(i);
        step
    }

    /// Puts in front what the instruction needs in registers or on the stack.
    fn prepare(&self, rng: &mut StdRng, step: &mut Step, i: &mut Instruction, label: u64) {
        let here = |to: Register| {
            let mut lea = Instruction::new();
            lea.set_code(Code::Lea_r64_m);
            lea.set_op0_register(to);
            lea.set_op1_kind(OpKind::Memory);
            lea.set_memory_base(Register::RIP);
            lea.set_memory_displacement64(label);
            lea.set_memory_displ_size(8);
            lea
        };
        match i.code() {
            Code::Retnq | Code::Retnq_imm16 => {
                step.push(here(Register::R11));
                step.push(Instruction::with1(Code::Push_r64, Register::R11).expect("push"));
                if i.code() == Code::Retnq_imm16 {
                    i.set_immediate16(rng.random_range(0..8) * 8);
                }
            }
            Code::Jmp_rm64 | Code::Call_rm64 => {
                if i.op0_kind() == OpKind::Memory {
                    // Through memory that the stack pointer points to.
                    step.push(here(Register::R11));
                    step.push(Instruction::with1(Code::Push_r64, Register::R11).expect("push"));
                    *i = Instruction::with1(i.code(), iced_x86::MemoryOperand::with_base(Register::RSP))
                        .expect("jmp");
                } else {
                    step.push(here(Register::R11));
                    i.set_op0_register(Register::R11);
                }
            }
            Code::Popfw | Code::Popfq => {
                // Not TF, NT or AC; not ID either, which stays set in the host's process.
                let flags = rng.random::<i32>() & 0x0003_fed7 & !0x5100;
                step.push(Instruction::with1(Code::Pushq_imm32, flags).expect("push"));
            }
            // A count beyond the operand's bits leaves the result undefined.
            Code::Shld_rm16_r16_CL | Code::Shrd_rm16_r16_CL => {
                let count = rng.random_range(0..=16);
                step.push(Instruction::with2(Code::Mov_r8_imm8, Register::CL, count).expect("mov"));
            }
            Code::Shld_rm16_r16_imm8 | Code::Shrd_rm16_r16_imm8 => i.set_immediate8(rng.random_range(0..=16)),
            Code::Enterw_imm16_imm8 | Code::Enterq_imm16_imm8 => {
                i.set_immediate16(rng.random_range(0..0x80));
                i.set_immediate8_2nd(if rng.random_bool(0.7) { 0 } else { rng.random_range(0..64) });
            }
            _ => {}
        }
        // Division by what is near the dividend's upper half would nearly always overflow.
        if matches!(i.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) && rng.random_bool(0.6) {
            match rng.random_range(0..3) {
                0 => step
                    .push(Instruction::with2(Code::Xor_r32_rm32, Register::EDX, Register::EDX).expect("xor")),
                1 => step.push(Instruction::with(Code::Cqo)),
                _ => step.push(Instruction::with2(Code::And_rm32_imm8, Register::EDX, 7).expect("and")),
            }
        }
    }

    fn operand(&self, rng: &mut StdRng, i: &mut Instruction, at: u32, kind: Kind, label: u64) {
        let number = if rng.random_bool(0.8) {
            [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15][rng.random_range(0..15)]
        } else {
            rng.random_range(0..16)
        };
        let mut reg = |r: Register| i.set_op_register(at, r);
        match kind {
            Kind::r8_or_mem
            | Kind::r16_or_mem
            | Kind::r32_or_mem
            | Kind::r64_or_mem
            | Kind::mm_or_mem
            | Kind::xmm_or_mem
                if rng.random_bool(0.5) =>
            {
                self.memory(rng, i, at);
            }
            Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode => reg(GPR8[rng.random_range(0..20)]),
            Kind::r16_or_mem | Kind::r16_reg | Kind::r16_rm | Kind::r16_opcode => {
                reg(register(Register::AX, number))
            }
            Kind::r32_or_mem | Kind::r32_reg | Kind::r32_rm | Kind::r32_opcode => {
                reg(register(Register::EAX, number))
            }
            Kind::r64_or_mem | Kind::r64_reg | Kind::r64_rm | Kind::r64_opcode => {
                reg(register(Register::RAX, number))
            }
            Kind::mm_or_mem | Kind::mm_reg | Kind::mm_rm => reg(register(Register::MM0, number & 7)),
            Kind::xmm_or_mem | Kind::xmm_reg | Kind::xmm_rm => reg(register(Register::XMM0, number)),
            Kind::seg_reg => reg(register(Register::ES, rng.random_range(0..6))),
            Kind::cr_reg => reg(register(Register::CR0, [0, 2, 3, 4, 8][rng.random_range(0..5)])),
            Kind::dr_reg => reg(register(Register::DR0, [0, 1, 2, 3, 6, 7][rng.random_range(0..6)])),
            Kind::es => reg(Register::ES),
            Kind::cs => reg(Register::CS),
            Kind::ss => reg(Register::SS),
            Kind::ds => reg(Register::DS),
            Kind::fs => reg(Register::FS),
            Kind::gs => reg(Register::GS),
            Kind::al => reg(Register::AL),
            Kind::cl => reg(Register::CL),
            Kind::ax => reg(Register::AX),
            Kind::dx => reg(Register::DX),
            Kind::eax => reg(Register::EAX),
            Kind::rax => reg(Register::RAX),
            Kind::st0 => reg(Register::ST0),
            Kind::sti_opcode => reg(register(Register::ST0, rng.random_range(0..8))),
            Kind::mem => self.memory(rng, i, at),
            Kind::mem_offs => {
                i.set_op_kind(at, OpKind::Memory);
                i.set_memory_displ_size(8);
                i.set_memory_displacement64(target(rng));
            }
            Kind::seg_rSI => i.set_op_kind(at, short(rng, OpKind::MemorySegRSI, OpKind::MemorySegESI)),
            Kind::es_rDI => i.set_op_kind(at, short(rng, OpKind::MemoryESRDI, OpKind::MemoryESEDI)),
            Kind::seg_rDI => i.set_op_kind(at, short(rng, OpKind::MemorySegRDI, OpKind::MemorySegEDI)),
            Kind::seg_rBX_al => {
                i.set_op_kind(at, OpKind::Memory);
                i.set_memory_base(Register::RBX);
                i.set_memory_index(Register::AL);
            }
            Kind::br64_1 | Kind::br64_4 => {
                i.set_op_kind(at, OpKind::NearBranch64);
                i.set_near_branch64(label);
            }
            other => immediate(rng, i, at, other),
        }
        // Enter's second immediate.
        if at == 1 && i.op_kind(0) == OpKind::Immediate16 && kind == Kind::imm8 {
            i.set_op_kind(1, OpKind::Immediate8_2nd);
        }
        // Both operands of movs and cmps have the same address size.
        if at == 1 && i.op_kind(0) == OpKind::MemoryESEDI && i.op_kind(1) == OpKind::MemorySegRSI {
            i.set_op_kind(1, OpKind::MemorySegESI);
        } else if at == 1 && i.op_kind(0) == OpKind::MemoryESRDI && i.op_kind(1) == OpKind::MemorySegESI {
            i.set_op_kind(1, OpKind::MemorySegRSI);
        } else if at == 1 && i.op_kind(0) == OpKind::MemorySegRSI && i.op_kind(1) == OpKind::MemoryESEDI {
            i.set_op_kind(1, OpKind::MemoryESRDI);
        } else if at == 1 && i.op_kind(0) == OpKind::MemorySegESI && i.op_kind(1) == OpKind::MemoryESRDI {
            i.set_op_kind(1, OpKind::MemoryESEDI);
        }
    }

    /// A memory operand: base + index * scale + displacement, relative to RIP, or absolute.
    fn memory(&self, rng: &mut StdRng, i: &mut Instruction, at: u32) {
        i.set_op_kind(at, OpKind::Memory);
        if let Some(image) = image(i.code()) {
            // Or where it faults.
            let place = match rng.random_range(0..20) {
                0 => UNMAPPED,
                1 => SCRATCH + SCRATCH_BYTES - 8,
                _ => SCRATCH + image.offset(),
            };
            return wide(i, place as i64, false);
        }
        let mut to = target(rng);
        if i.code() == Code::Ldmxcsr_m32 && rng.random_bool(0.8) {
            // One of the two values of MXCSR in the images there.
            let image = if rng.random_bool(0.5) { Image::Fx32 } else { Image::Fx64 };
            to = SCRATCH + image.offset() + 24;
        }
        if rng.random_bool(0.04) {
            i.set_segment_prefix(Register::GS);
            to = to.wrapping_sub(GS_BASE);
        }
        match rng.random_range(0..100) {
            0..6 => wide(i, to as i64, rng.random_bool(0.2)),
            6..14 => {
                i.set_memory_base(Register::RIP);
                i.set_memory_displ_size(8);
                i.set_memory_displacement64(to);
            }
            // Anything.
            14..16 => {
                i.set_memory_base(register(Register::RAX, rng.random_range(0..16)));
                displace(i, i64::from(rng.random::<i8>()));
            }
            style => self.composed(rng, i, to, style < 24),
        }
    }

    /// From registers whose values are known, where there are such.
    fn composed(&self, rng: &mut StdRng, i: &mut Instruction, to: u64, short: bool) {
        let cut = |v: u64| if short { u64::from(v as u32) } else { v };
        let first = if short { Register::EAX } else { Register::RAX };
        let fits = |left: u64| if short { true } else { i32::try_from(left as i64).is_ok() };
        let known: Vec<(usize, u64)> =
            self.known.iter().enumerate().filter_map(|(n, v)| v.map(|v| (n, cut(v)))).collect();
        let scale = 1 << rng.random_range(0..4);
        let with_index = rng.random_bool(0.4);
        for _ in 0..16 {
            if known.is_empty() {
                break;
            }
            let mut left = to;
            let base =
                (!with_index || rng.random_bool(0.85)).then(|| known[rng.random_range(0..known.len())]);
            let index = with_index.then(|| known[rng.random_range(0..known.len())]).filter(|&(n, _)| n != 4);
            left = left.wrapping_sub(base.map_or(0, |(_, v)| v));
            left = left.wrapping_sub(index.map_or(0, |(_, v)| v.wrapping_mul(scale)));
            if fits(left) && (base.is_some() || index.is_some()) {
                if let Some((number, _)) = base {
                    i.set_memory_base(register(first, number));
                }
                if let Some((number, _)) = index {
                    i.set_memory_index(register(first, number));
                    i.set_memory_index_scale(scale as u32);
                }
                let left = if short { i64::from(left as i32) } else { left as i64 };
                return if base.is_none() { wide(i, left, short) } else { displace_sized(i, left, short) };
            }
        }
        wide(i, to as i64, false);
    }
}

fn displace(i: &mut Instruction, displacement: i64) {
    displace_sized(i, displacement, false);
}

fn displace_sized(i: &mut Instruction, displacement: i64, short: bool) {
    let value = if short { u64::from(displacement as u32) } else { displacement as u64 };
    i.set_memory_displacement64(value);
    i.set_memory_displ_size(match i8::try_from(displacement) {
        Ok(0) => 0,
        Ok(_) => 1,
        Err(_) => {
            if short {
                4
            } else {
                8
            }
        }
    });
}

/// Without a base a displacement has four bytes.
fn wide(i: &mut Instruction, displacement: i64, short: bool) {
    let value = if short { u64::from(displacement as u32) } else { displacement as u64 };
    i.set_memory_displacement64(value);
    i.set_memory_displ_size(if short { 4 } else { 8 });
}

/// Mostly the first.
fn short(rng: &mut StdRng, long: OpKind, short: OpKind) -> OpKind {
    if rng.random_bool(0.9) { long } else { short }
}

/// An operand that is in the instruction.
fn immediate(rng: &mut StdRng, i: &mut Instruction, at: u32, kind: Kind) {
    match kind {
        Kind::imm8 => {
            i.set_op_kind(at, OpKind::Immediate8);
            i.set_immediate8(values::integer(rng) as u8);
        }
        Kind::imm8_const_1 => {
            i.set_op_kind(at, OpKind::Immediate8);
            i.set_immediate8(1);
        }
        Kind::imm8sex16 => {
            i.set_op_kind(at, OpKind::Immediate8to16);
            i.set_immediate8to16(i16::from(values::integer(rng) as i8));
        }
        Kind::imm8sex32 => {
            i.set_op_kind(at, OpKind::Immediate8to32);
            i.set_immediate8to32(i32::from(values::integer(rng) as i8));
        }
        Kind::imm8sex64 => {
            i.set_op_kind(at, OpKind::Immediate8to64);
            i.set_immediate8to64(i64::from(values::integer(rng) as i8));
        }
        Kind::imm16 => {
            i.set_op_kind(at, OpKind::Immediate16);
            i.set_immediate16(values::integer(rng) as u16);
        }
        Kind::imm32 => {
            i.set_op_kind(at, OpKind::Immediate32);
            i.set_immediate32(values::integer(rng) as u32);
        }
        Kind::imm32sex64 => {
            i.set_op_kind(at, OpKind::Immediate32to64);
            i.set_immediate32to64(i64::from(values::integer(rng) as i32));
        }
        Kind::imm64 => {
            i.set_op_kind(at, OpKind::Immediate64);
            i.set_immediate64(values::integer(rng));
        }
        other => unreachable!("{other:?} in {:?}: no offered form has it", i.code()),
    }
}
