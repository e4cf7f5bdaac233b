//! FXSAVE and FXRSTOR, and MXCSR.

use iced_x86::{Code, Instruction};

use super::shape;
use super::state::{FXSAVE_WRITTEN, MXCSR_MASK};
use crate::block::is_long;
use crate::cpu::Cpu;
use crate::interrupt::vector;
use crate::op::{Handler, Op, Step};

/// Where the registers stop that exist outside 64-bit mode.
const FXSAVE_WRITTEN_32: usize = 288;

pub(super) fn handler(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Fxsave_m512byte => fxsave::<false>,
        Code::Fxsave64_m512byte => fxsave::<true>,
        Code::Fxrstor_m512byte => fxrstor::<false>,
        Code::Fxrstor64_m512byte => fxrstor::<true>,
        Code::Ldmxcsr_m32 => ldmxcsr,
        Code::Stmxcsr_m32 => stmxcsr,
        _ => return None,
    })
}

/// `aux`: it is 64-bit code.
pub(super) fn operands(instruction: &Instruction, op: &mut Op) {
    if handler(instruction.code()).is_some() {
        op.aux = u8::from(is_long(instruction));
    }
}

/// FXSAVE and FXRSTOR: #NM for EM as for TS, then the alignment.
fn area(cpu: &mut Cpu, op: &Op) -> Result<u64, crate::op::Stop> {
    shape::x87_ready(cpu)?;
    shape::aligned(cpu, op)
}

fn fxsave<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let address = area(cpu, op)?;
    cpu.probe_write(address, 512)?;
    let image = cpu.fpu.to_fxsave_form(WIDE);
    let written = if op.aux == 1 { FXSAVE_WRITTEN } else { FXSAVE_WRITTEN_32 };
    for (at, part) in (address..).step_by(16).zip(image[..written].as_chunks::<16>().0) {
        cpu.store::<u128>(at, u128::from_le_bytes(*part))?;
    }
    Ok(())
}

fn fxrstor<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let address = area(cpu, op)?;
    let mut image = [0; 512];
    for (offset, part) in (0u64..).step_by(16).zip(image.as_chunks_mut::<16>().0) {
        *part = cpu.load::<u128>(address.wrapping_add(offset))?.to_le_bytes();
    }
    let kept = cpu.fpu.xmm;
    if cpu.fpu.set_fxsave_form(&image, WIDE).is_err() {
        return Err(cpu.raise(vector::GP, Some(0)));
    }
    if op.aux == 0 {
        cpu.fpu.xmm[8..].copy_from_slice(&kept[8..]);
    }
    Ok(())
}

fn ldmxcsr(cpu: &mut Cpu, op: &Op) -> Step {
    shape::sse_ready(cpu)?;
    let value = shape::m32(cpu, op)? as u32;
    if value & !MXCSR_MASK != 0 {
        return Err(cpu.raise(vector::GP, Some(0)));
    }
    cpu.fpu.mxcsr = value;
    Ok(())
}

fn stmxcsr(cpu: &mut Cpu, op: &Op) -> Step {
    shape::sse_ready(cpu)?;
    let address = cpu.address(op);
    cpu.store::<u32>(address, cpu.fpu.mxcsr)
}
