//! Shapes of vector instructions: where operands come from and go to, and the checks that all instructions of a kind
//! share. The macros make the handlers of one instruction: one for a register operand, one for a memory operand.

use core::arch::x86_64::__m128i;

use crate::cpu::Cpu;
use crate::interrupt::vector;
use crate::op::{Op, Step, Stop};

const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR4_OSFXSR: u64 = 1 << 9;

/// SSE may execute: #UD without the system's consent, #NM while another task's registers are loaded.
#[inline(always)]
pub(super) fn sse_ready(cpu: &mut Cpu) -> Step {
    if cpu.sys.cr0 & (CR0_EM | CR0_TS) != 0 || cpu.sys.cr4 & CR4_OSFXSR == 0 {
        return Err(sse_refused(cpu));
    }
    Ok(())
}

#[cold]
fn sse_refused(cpu: &mut Cpu) -> Stop {
    let vector =
        if cpu.sys.cr0 & CR0_EM != 0 || cpu.sys.cr4 & CR4_OSFXSR == 0 { vector::UD } else { vector::NM };
    cpu.raise(vector, None)
}

/// x87 may execute, whatever exception is pending (the FN instructions).
#[inline(always)]
pub(super) fn x87_ready(cpu: &mut Cpu) -> Step {
    if cpu.sys.cr0 & (CR0_EM | CR0_TS) != 0 {
        return Err(cpu.raise(vector::NM, None));
    }
    Ok(())
}

/// No unmasked x87 exception is pending. (With CR0.NE clear a PC would raise an interrupt through its chips, for DOS;
/// it is #MF here in any case.)
#[inline(always)]
pub(super) fn x87_wait(cpu: &mut Cpu) -> Step {
    if cpu.fpu.pending() {
        return Err(cpu.raise(vector::MF, None));
    }
    Ok(())
}

/// FWAIT minds TS only together with MP, and never EM.
pub(super) fn fwait(cpu: &mut Cpu, _: &Op) -> Step {
    if cpu.sys.cr0 & (CR0_MP | CR0_TS) == CR0_MP | CR0_TS {
        return Err(cpu.raise(vector::NM, None));
    }
    x87_wait(cpu)
}

/// MMX may execute: #UD under emulation, and what x87 minds besides.
#[inline(always)]
pub(super) fn mmx_ready(cpu: &mut Cpu) -> Step {
    if cpu.sys.cr0 & CR0_EM != 0 {
        return Err(cpu.raise(vector::UD, None));
    }
    if cpu.sys.cr0 & CR0_TS != 0 {
        return Err(cpu.raise(vector::NM, None));
    }
    x87_wait(cpu)
}

#[inline(always)]
pub(super) fn bits(v: __m128i) -> u128 {
    // SAFETY: both are sixteen bytes for which every bit pattern is valid.
    unsafe { core::mem::transmute::<__m128i, u128>(v) }
}

#[inline(always)]
pub(super) fn lanes(v: u128) -> __m128i {
    // SAFETY: both are sixteen bytes for which every bit pattern is valid.
    unsafe { core::mem::transmute::<u128, __m128i>(v) }
}

#[inline(always)]
pub(super) fn xmm(cpu: &Cpu, register: u8) -> u128 {
    cpu.fpu.xmm[usize::from(register & 15)]
}

#[inline(always)]
pub(super) fn set_xmm(cpu: &mut Cpu, register: u8, value: u128) {
    cpu.fpu.xmm[usize::from(register & 15)] = value;
}

#[inline(always)]
pub(super) fn mm(cpu: &Cpu, register: u8) -> u64 {
    cpu.fpu.x87[usize::from(register & 7)].significand
}

/// Writes an MMX register: its x87 exponent becomes all ones.
#[inline(always)]
pub(super) fn set_mm(cpu: &mut Cpu, register: u8, value: u64) {
    let slot = &mut cpu.fpu.x87[usize::from(register & 7)];
    slot.significand = value;
    slot.sign_exponent = 0xffff;
}

/// What every MMX instruction but EMMS does to the x87: all registers are in use, and R0 is on top.
#[inline(always)]
pub(super) fn enter_mmx(cpu: &mut Cpu) {
    cpu.fpu.top = 0;
    cpu.fpu.full = 0xff;
}

#[inline(always)]
pub(super) fn gpr(cpu: &Cpu, register: u8) -> u64 {
    cpu.regs[usize::from(register & 15)]
}

#[inline(always)]
pub(super) fn set_gpr(cpu: &mut Cpu, register: u8, value: u64) {
    cpu.regs[usize::from(register & 15)] = value;
}

/// A misaligned operand of an instruction that minds.
#[inline(always)]
pub(super) fn aligned(cpu: &mut Cpu, op: &Op) -> Result<u64, Stop> {
    let address = cpu.address(op);
    if address & 15 != 0 {
        return Err(cpu.raise(vector::GP, Some(0)));
    }
    Ok(address)
}

/// The memory operand, 16 bytes and aligned.
#[inline(always)]
pub(super) fn m128(cpu: &mut Cpu, op: &Op) -> Result<u128, Stop> {
    let address = aligned(cpu, op)?;
    cpu.load::<u128>(address)
}

/// The memory operand, 16 bytes, wherever it lies.
#[inline(always)]
pub(super) fn m128u(cpu: &mut Cpu, op: &Op) -> Result<u128, Stop> {
    let address = cpu.address(op);
    cpu.load::<u128>(address)
}

#[inline(always)]
pub(super) fn m64(cpu: &mut Cpu, op: &Op) -> Result<u128, Stop> {
    let address = cpu.address(op);
    Ok(cpu.load::<u64>(address)?.into())
}

#[inline(always)]
pub(super) fn m32(cpu: &mut Cpu, op: &Op) -> Result<u128, Stop> {
    let address = cpu.address(op);
    Ok(cpu.load::<u32>(address)?.into())
}

/// A vector function of two, over plain bits.
macro_rules! host {
    ($f:expr, $a:expr, $b:expr) => {
        // SAFETY: the function needs SSE2, which is in every x86-64 processor.
        shape::bits(unsafe { $f(shape::lanes($a), shape::lanes($b)) })
    };
}

/// `dst = f(dst, source)` over vector registers; `$load` reads the memory form's source. `f` takes and gives `u128`.
macro_rules! sse {
    ($in_memory:expr, $load:ident, $f:expr) => {{
        fn register(cpu: &mut Cpu, op: &Op) -> Step {
            shape::sse_ready(cpu)?;
            let (a, b) = (shape::xmm(cpu, op.dst), shape::xmm(cpu, op.src));
            shape::set_xmm(cpu, op.dst, $f(a, b));
            Ok(())
        }
        fn memory(cpu: &mut Cpu, op: &Op) -> Step {
            shape::sse_ready(cpu)?;
            let b = shape::$load(cpu, op)?;
            let a = shape::xmm(cpu, op.dst);
            shape::set_xmm(cpu, op.dst, $f(a, b));
            Ok(())
        }
        if $in_memory { memory as Handler } else { register as Handler }
    }};
}

/// The same with an immediate: `f(dst, source, immediate)`.
macro_rules! sse_imm {
    ($in_memory:expr, $load:ident, $f:expr) => {{
        fn register(cpu: &mut Cpu, op: &Op) -> Step {
            shape::sse_ready(cpu)?;
            let (a, b) = (shape::xmm(cpu, op.dst), shape::xmm(cpu, op.src));
            shape::set_xmm(cpu, op.dst, $f(a, b, op.aux));
            Ok(())
        }
        fn memory(cpu: &mut Cpu, op: &Op) -> Step {
            shape::sse_ready(cpu)?;
            let b = shape::$load(cpu, op)?;
            let a = shape::xmm(cpu, op.dst);
            shape::set_xmm(cpu, op.dst, $f(a, b, op.aux));
            Ok(())
        }
        if $in_memory { memory as Handler } else { register as Handler }
    }};
}

/// `dst = f(dst, source, immediate)` over MMX registers, by the low halves of vectors: `f` takes and gives `u128`.
macro_rules! mmx {
    ($in_memory:expr, $load:ident, $f:expr) => {{
        fn register(cpu: &mut Cpu, op: &Op) -> Step {
            shape::mmx_ready(cpu)?;
            let (a, b) = (shape::mm(cpu, op.dst).into(), shape::mm(cpu, op.src).into());
            shape::enter_mmx(cpu);
            shape::set_mm(cpu, op.dst, $f(a, b, op.aux) as u64);
            Ok(())
        }
        fn memory(cpu: &mut Cpu, op: &Op) -> Step {
            shape::mmx_ready(cpu)?;
            let b = shape::$load(cpu, op)?;
            let a = shape::mm(cpu, op.dst).into();
            shape::enter_mmx(cpu);
            shape::set_mm(cpu, op.dst, $f(a, b, op.aux) as u64);
            Ok(())
        }
        if $in_memory { memory as Handler } else { register as Handler }
    }};
}

pub(super) use {host, mmx, sse, sse_imm};

/// Whether one of the first two operands is in memory.
pub(super) fn has_memory(instruction: &iced_x86::Instruction) -> bool {
    instruction.op0_kind() == iced_x86::OpKind::Memory || instruction.op1_kind() == iced_x86::OpKind::Memory
}
