//! MMX data movement and EMMS; its arithmetic is in `integer` and `shuffle` beside SSE2's. The registers are the
//! significands of the x87's, so all that MMX does shows there.

use iced_x86::Code;

use super::moves::store_masked;
use super::shape::{self, mmx};
use crate::cpu::Cpu;
use crate::op::{Handler, Op, Step};

pub(super) fn handler(code: Code, in_memory: bool) -> Option<Handler> {
    use Code::*;
    Some(match code {
        Movq_mm_mmm64 => mmx!(in_memory, m64, |_: u128, b: u128, _| b),
        Movq_mmm64_mm | Movq_rm64_mm | Movntq_m64_mm if in_memory => store64,
        Movq_mmm64_mm => mmx!(in_memory, m64, |_: u128, b: u128, _| b),
        Movd_mm_rm32 if in_memory => mmx!(in_memory, m32, |_: u128, b: u128, _| b),
        Movq_mm_rm64 if in_memory => mmx!(in_memory, m64, |_: u128, b: u128, _| b),
        Movd_mm_rm32 => |cpu: &mut Cpu, op: &Op| -> Step {
            shape::mmx_ready(cpu)?;
            shape::enter_mmx(cpu);
            let value = shape::gpr(cpu, op.src) as u32;
            shape::set_mm(cpu, op.dst, value.into());
            Ok(())
        },
        Movq_mm_rm64 => |cpu: &mut Cpu, op: &Op| -> Step {
            shape::mmx_ready(cpu)?;
            shape::enter_mmx(cpu);
            let value = shape::gpr(cpu, op.src);
            shape::set_mm(cpu, op.dst, value);
            Ok(())
        },
        Movd_rm32_mm if in_memory => |cpu: &mut Cpu, op: &Op| -> Step {
            shape::mmx_ready(cpu)?;
            let address = cpu.address(op);
            cpu.store::<u32>(address, shape::mm(cpu, op.src) as u32)?;
            shape::enter_mmx(cpu);
            Ok(())
        },
        Movd_rm32_mm => |cpu: &mut Cpu, op: &Op| -> Step {
            shape::mmx_ready(cpu)?;
            shape::enter_mmx(cpu);
            let value = shape::mm(cpu, op.src) as u32;
            shape::set_gpr(cpu, op.dst, value.into());
            Ok(())
        },
        Movq_rm64_mm => |cpu: &mut Cpu, op: &Op| -> Step {
            shape::mmx_ready(cpu)?;
            shape::enter_mmx(cpu);
            let value = shape::mm(cpu, op.src);
            shape::set_gpr(cpu, op.dst, value);
            Ok(())
        },
        Movq2dq_xmm_mm => |cpu: &mut Cpu, op: &Op| -> Step {
            shape::sse_ready(cpu)?;
            shape::x87_wait(cpu)?;
            shape::enter_mmx(cpu);
            let value = shape::mm(cpu, op.src);
            shape::set_xmm(cpu, op.dst, value.into());
            Ok(())
        },
        Movdq2q_mm_xmm => |cpu: &mut Cpu, op: &Op| -> Step {
            shape::sse_ready(cpu)?;
            shape::x87_wait(cpu)?;
            shape::enter_mmx(cpu);
            let value = shape::xmm(cpu, op.src) as u64;
            shape::set_mm(cpu, op.dst, value);
            Ok(())
        },
        Maskmovq_rDI_mm_mm => |cpu: &mut Cpu, op: &Op| -> Step {
            shape::mmx_ready(cpu)?;
            let (data, mask) = (shape::mm(cpu, op.dst), shape::mm(cpu, op.src));
            store_masked(cpu, op, data.into(), mask.into())?;
            shape::enter_mmx(cpu);
            Ok(())
        },
        Emms => |cpu: &mut Cpu, _: &Op| -> Step {
            shape::mmx_ready(cpu)?;
            // As AMD and Intel both do in fact: the top is left at zero.
            cpu.fpu.top = 0;
            cpu.fpu.full = 0;
            Ok(())
        },
        _ => return None,
    })
}

fn store64(cpu: &mut Cpu, op: &Op) -> Step {
    shape::mmx_ready(cpu)?;
    let address = cpu.address(op);
    cpu.store::<u64>(address, shape::mm(cpu, op.src))?;
    shape::enter_mmx(cpu);
    Ok(())
}
