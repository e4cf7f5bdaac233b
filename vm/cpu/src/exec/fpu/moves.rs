//! SSE and SSE2 data movement: whole registers, halves, scalars, to and from general registers, past the cache.

use iced_x86::Code;

use super::shape::{self, sse};
use crate::cpu::Cpu;
use crate::op::{Handler, Op, Step};

const LOW: u128 = u64::MAX as u128;

fn load_high(a: u128, b: u128) -> u128 {
    a & LOW | b << 64
}

fn load_low(a: u128, b: u128) -> u128 {
    a & !LOW | b & LOW
}

/// Makes a handler out of the body of one, after the check that SSE may execute.
macro_rules! handler {
    (|$cpu:ident, $op:ident| $body:block) => {{
        fn run($cpu: &mut Cpu, $op: &Op) -> Step {
            shape::sse_ready($cpu)?;
            $body
            Ok(())
        }
        run as Handler
    }};
}

pub(super) fn handler(code: Code, in_memory: bool) -> Option<Handler> {
    use Code::*;
    Some(match code {
        Movaps_xmm_xmmm128 | Movapd_xmm_xmmm128 | Movdqa_xmm_xmmm128 => sse!(in_memory, m128, |_, b| b),
        Movups_xmm_xmmm128 | Movupd_xmm_xmmm128 | Movdqu_xmm_xmmm128 => sse!(in_memory, m128u, |_, b| b),
        Movaps_xmmm128_xmm | Movapd_xmmm128_xmm | Movdqa_xmmm128_xmm | Movntps_m128_xmm
        | Movntpd_m128_xmm | Movntdq_m128_xmm
            if in_memory =>
        {
            handler!(|cpu, op| {
                let address = shape::aligned(cpu, op)?;
                cpu.store::<u128>(address, shape::xmm(cpu, op.src))?;
            })
        }
        Movups_xmmm128_xmm | Movupd_xmmm128_xmm | Movdqu_xmmm128_xmm if in_memory => handler!(|cpu, op| {
            let address = cpu.address(op);
            cpu.store::<u128>(address, shape::xmm(cpu, op.src))?;
        }),
        Movaps_xmmm128_xmm | Movapd_xmmm128_xmm | Movdqa_xmmm128_xmm | Movups_xmmm128_xmm
        | Movupd_xmmm128_xmm | Movdqu_xmmm128_xmm => sse!(in_memory, m128u, |_, b| b),

        // A scalar from memory clears the rest; from a register it leaves it.
        Movss_xmm_xmmm32 if in_memory => sse!(in_memory, m32, |_, b| b),
        Movsd_xmm_xmmm64 if in_memory => sse!(in_memory, m64, |_, b| b),
        Movq_xmm_xmmm64 => sse!(in_memory, m64, |_, b| b & LOW),
        Movss_xmmm32_xmm if in_memory => handler!(|cpu, op| {
            let address = cpu.address(op);
            cpu.store::<u32>(address, shape::xmm(cpu, op.src) as u32)?;
        }),
        Movsd_xmmm64_xmm | Movq_xmmm64_xmm | Movlps_m64_xmm | Movlpd_m64_xmm if in_memory => {
            handler!(|cpu, op| {
                let address = cpu.address(op);
                cpu.store::<u64>(address, shape::xmm(cpu, op.src) as u64)?;
            })
        }
        Movss_xmm_xmmm32 | Movss_xmmm32_xmm => {
            sse!(in_memory, m32, |a: u128, b: u128| a & !u128::from(u32::MAX) | b & u128::from(u32::MAX))
        }
        Movsd_xmm_xmmm64 | Movsd_xmmm64_xmm => sse!(in_memory, m64, load_low),
        Movq_xmmm64_xmm => sse!(in_memory, m64, |_, b| b & LOW),

        Movlps_xmm_m64 | Movlpd_xmm_m64 => sse!(in_memory, m64, load_low),
        Movhps_xmm_m64 | Movhpd_xmm_m64 | Movlhps_xmm_xmm => sse!(in_memory, m64, load_high),
        Movhlps_xmm_xmm => sse!(in_memory, m64, |a: u128, b: u128| a & !LOW | b >> 64),
        Movhps_m64_xmm | Movhpd_m64_xmm => handler!(|cpu, op| {
            let address = cpu.address(op);
            cpu.store::<u64>(address, (shape::xmm(cpu, op.src) >> 64) as u64)?;
        }),

        Movd_xmm_rm32 if in_memory => sse!(in_memory, m32, |_, b| b),
        Movq_xmm_rm64 if in_memory => sse!(in_memory, m64, |_, b| b),
        Movd_xmm_rm32 => handler!(|cpu, op| {
            let value = shape::gpr(cpu, op.src) as u32;
            shape::set_xmm(cpu, op.dst, value.into());
        }),
        Movq_xmm_rm64 => handler!(|cpu, op| {
            let value = shape::gpr(cpu, op.src);
            shape::set_xmm(cpu, op.dst, value.into());
        }),
        Movd_rm32_xmm if in_memory => handler!(|cpu, op| {
            let address = cpu.address(op);
            cpu.store::<u32>(address, shape::xmm(cpu, op.src) as u32)?;
        }),
        Movq_rm64_xmm if in_memory => handler!(|cpu, op| {
            let address = cpu.address(op);
            cpu.store::<u64>(address, shape::xmm(cpu, op.src) as u64)?;
        }),
        Movd_rm32_xmm => handler!(|cpu, op| {
            let value = shape::xmm(cpu, op.src) as u32;
            shape::set_gpr(cpu, op.dst, value.into());
        }),
        Movq_rm64_xmm => handler!(|cpu, op| {
            let value = shape::xmm(cpu, op.src) as u64;
            shape::set_gpr(cpu, op.dst, value);
        }),

        Movnti_m32_r32 => movnti32,
        Movnti_m64_r64 => movnti64,
        Maskmovdqu_rDI_xmm_xmm => handler!(|cpu, op| {
            let (data, mask) = (shape::xmm(cpu, op.dst), shape::xmm(cpu, op.src));
            store_masked(cpu, op, data, mask)?;
        }),

        Movmskps_r32_xmm | Movmskps_r64_xmm => handler!(|cpu, op| {
            let value = shape::xmm(cpu, op.src);
            let mask = (0..4).fold(0, |mask, i| mask | (value >> (31 + 32 * i) & 1) << i);
            shape::set_gpr(cpu, op.dst, mask as u64);
        }),
        Movmskpd_r32_xmm | Movmskpd_r64_xmm => handler!(|cpu, op| {
            let value = shape::xmm(cpu, op.src);
            shape::set_gpr(cpu, op.dst, (value >> 63 & 1 | value >> 126 & 2) as u64);
        }),
        _ => return None,
    })
}

// MOVNTI moves general registers: it asks for nothing of the vector unit.
fn movnti32(cpu: &mut Cpu, op: &Op) -> Step {
    let address = cpu.address(op);
    cpu.store::<u32>(address, shape::gpr(cpu, op.src) as u32)
}

fn movnti64(cpu: &mut Cpu, op: &Op) -> Step {
    let address = cpu.address(op);
    cpu.store::<u64>(address, shape::gpr(cpu, op.src))
}

/// Stores the bytes of `data` whose byte of `mask` has its top bit set; touches no memory if none has. The span of
/// stored bytes is checked first, so that a fault leaves nothing behind.
pub(super) fn store_masked(cpu: &mut Cpu, op: &Op, data: u128, mask: u128) -> Step {
    let address = cpu.address(op);
    let chosen: Vec16 = core::array::from_fn(|i| mask >> (8 * i + 7) & 1 == 1);
    let (Some(first), Some(last)) = (chosen.iter().position(|c| *c), chosen.iter().rposition(|c| *c)) else {
        return Ok(());
    };
    cpu.probe_write(address.wrapping_add(first as u64), (last - first + 1) as u64)?;
    for (i, _) in chosen.iter().enumerate().filter(|(_, chosen)| **chosen) {
        cpu.store::<u8>(address.wrapping_add(i as u64), (data >> (8 * i)) as u8)?;
    }
    Ok(())
}

type Vec16 = [bool; 16];
