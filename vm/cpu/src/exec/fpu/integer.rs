//! Packed integers and bitwise logic, SSE2 and MMX. The work is done by the host's own SSE2, which is in every x86-64
//! processor and exactly defined; an MMX register is the low half of a vector.

use core::arch::x86_64::*;

use iced_x86::Code;

use super::shape::{self, host, mmx, sse};
use crate::cpu::Cpu;
use crate::op::{Handler, Op, Step};

/// One instruction in its two widths, where what it does to the low half does not depend on the high half.
macro_rules! packed {
    ($code:expr, $in_memory:expr; $($xmm:ident $mm:ident $f:expr;)*) => {
        match $code {
            $(
                Code::$xmm => Some(sse!($in_memory, m128, |a, b| host!($f, a, b))),
                Code::$mm => {
                    Some(mmx!($in_memory, m64, |a: u128, b: u128, _| host!($f, a, b)))
                }
            )*
            _ => None,
        }
    };
}

pub(super) fn handler(code: Code, in_memory: bool) -> Option<Handler> {
    logic(code, in_memory)
        .or_else(|| add(code, in_memory))
        .or_else(|| compare(code, in_memory))
        .or_else(|| multiply(code, in_memory))
        .or_else(|| shift(code, in_memory))
        .or_else(|| shift_by_immediate(code))
}

fn logic(code: Code, in_memory: bool) -> Option<Handler> {
    use Code::*;
    Some(match code {
        Pand_xmm_xmmm128 | Andps_xmm_xmmm128 | Andpd_xmm_xmmm128 => sse!(in_memory, m128, |a, b| a & b),
        Pandn_xmm_xmmm128 | Andnps_xmm_xmmm128 | Andnpd_xmm_xmmm128 => {
            sse!(in_memory, m128, |a: u128, b| !a & b)
        }
        Por_xmm_xmmm128 | Orps_xmm_xmmm128 | Orpd_xmm_xmmm128 => sse!(in_memory, m128, |a, b| a | b),
        Pxor_xmm_xmmm128 | Xorps_xmm_xmmm128 | Xorpd_xmm_xmmm128 => sse!(in_memory, m128, |a, b| a ^ b),
        Pand_mm_mmm64 => mmx!(in_memory, m64, |a: u128, b: u128, _| a & b),
        Pandn_mm_mmm64 => mmx!(in_memory, m64, |a: u128, b: u128, _| !a & b),
        Por_mm_mmm64 => mmx!(in_memory, m64, |a: u128, b: u128, _| a | b),
        Pxor_mm_mmm64 => mmx!(in_memory, m64, |a: u128, b: u128, _| a ^ b),
        _ => return None,
    })
}

fn add(code: Code, in_memory: bool) -> Option<Handler> {
    packed! { code, in_memory;
        Paddb_xmm_xmmm128 Paddb_mm_mmm64 _mm_add_epi8;
        Paddw_xmm_xmmm128 Paddw_mm_mmm64 _mm_add_epi16;
        Paddd_xmm_xmmm128 Paddd_mm_mmm64 _mm_add_epi32;
        Paddq_xmm_xmmm128 Paddq_mm_mmm64 _mm_add_epi64;
        Paddsb_xmm_xmmm128 Paddsb_mm_mmm64 _mm_adds_epi8;
        Paddsw_xmm_xmmm128 Paddsw_mm_mmm64 _mm_adds_epi16;
        Paddusb_xmm_xmmm128 Paddusb_mm_mmm64 _mm_adds_epu8;
        Paddusw_xmm_xmmm128 Paddusw_mm_mmm64 _mm_adds_epu16;
        Psubb_xmm_xmmm128 Psubb_mm_mmm64 _mm_sub_epi8;
        Psubw_xmm_xmmm128 Psubw_mm_mmm64 _mm_sub_epi16;
        Psubd_xmm_xmmm128 Psubd_mm_mmm64 _mm_sub_epi32;
        Psubq_xmm_xmmm128 Psubq_mm_mmm64 _mm_sub_epi64;
        Psubsb_xmm_xmmm128 Psubsb_mm_mmm64 _mm_subs_epi8;
        Psubsw_xmm_xmmm128 Psubsw_mm_mmm64 _mm_subs_epi16;
        Psubusb_xmm_xmmm128 Psubusb_mm_mmm64 _mm_subs_epu8;
        Psubusw_xmm_xmmm128 Psubusw_mm_mmm64 _mm_subs_epu16;
        Pavgb_xmm_xmmm128 Pavgb_mm_mmm64 _mm_avg_epu8;
        Pavgw_xmm_xmmm128 Pavgw_mm_mmm64 _mm_avg_epu16;
    }
}

fn compare(code: Code, in_memory: bool) -> Option<Handler> {
    packed! { code, in_memory;
        Pcmpeqb_xmm_xmmm128 Pcmpeqb_mm_mmm64 _mm_cmpeq_epi8;
        Pcmpeqw_xmm_xmmm128 Pcmpeqw_mm_mmm64 _mm_cmpeq_epi16;
        Pcmpeqd_xmm_xmmm128 Pcmpeqd_mm_mmm64 _mm_cmpeq_epi32;
        Pcmpgtb_xmm_xmmm128 Pcmpgtb_mm_mmm64 _mm_cmpgt_epi8;
        Pcmpgtw_xmm_xmmm128 Pcmpgtw_mm_mmm64 _mm_cmpgt_epi16;
        Pcmpgtd_xmm_xmmm128 Pcmpgtd_mm_mmm64 _mm_cmpgt_epi32;
        Pminub_xmm_xmmm128 Pminub_mm_mmm64 _mm_min_epu8;
        Pmaxub_xmm_xmmm128 Pmaxub_mm_mmm64 _mm_max_epu8;
        Pminsw_xmm_xmmm128 Pminsw_mm_mmm64 _mm_min_epi16;
        Pmaxsw_xmm_xmmm128 Pmaxsw_mm_mmm64 _mm_max_epi16;
    }
}

fn multiply(code: Code, in_memory: bool) -> Option<Handler> {
    packed! { code, in_memory;
        Pmullw_xmm_xmmm128 Pmullw_mm_mmm64 _mm_mullo_epi16;
        Pmulhw_xmm_xmmm128 Pmulhw_mm_mmm64 _mm_mulhi_epi16;
        Pmulhuw_xmm_xmmm128 Pmulhuw_mm_mmm64 _mm_mulhi_epu16;
        Pmuludq_xmm_xmmm128 Pmuludq_mm_mmm64 _mm_mul_epu32;
        Pmaddwd_xmm_xmmm128 Pmaddwd_mm_mmm64 _mm_madd_epi16;
        Psadbw_xmm_xmmm128 Psadbw_mm_mmm64 _mm_sad_epu8;
    }
}

fn shift(code: Code, in_memory: bool) -> Option<Handler> {
    // The count is the low 64 bits of the source, whatever the width.
    packed! { code, in_memory;
        Psllw_xmm_xmmm128 Psllw_mm_mmm64 _mm_sll_epi16;
        Pslld_xmm_xmmm128 Pslld_mm_mmm64 _mm_sll_epi32;
        Psllq_xmm_xmmm128 Psllq_mm_mmm64 _mm_sll_epi64;
        Psrlw_xmm_xmmm128 Psrlw_mm_mmm64 _mm_srl_epi16;
        Psrld_xmm_xmmm128 Psrld_mm_mmm64 _mm_srl_epi32;
        Psrlq_xmm_xmmm128 Psrlq_mm_mmm64 _mm_srl_epi64;
        Psraw_xmm_xmmm128 Psraw_mm_mmm64 _mm_sra_epi16;
        Psrad_xmm_xmmm128 Psrad_mm_mmm64 _mm_sra_epi32;
    }
}

/// `dst = f(dst, immediate)`.
macro_rules! shift_immediate {
    ($code:expr; $($xmm:ident $mm:ident $f:expr;)*) => {
        match $code {
            $(
                Code::$xmm => {
                    fn run(cpu: &mut Cpu, op: &Op) -> Step {
                        shape::sse_ready(cpu)?;
                        let a = shape::xmm(cpu, op.dst);
                        shape::set_xmm(cpu, op.dst, host!($f, a, op.aux.into()));
                        Ok(())
                    }
                    Some(run as Handler)
                }
                Code::$mm => {
                    fn run(cpu: &mut Cpu, op: &Op) -> Step {
                        shape::mmx_ready(cpu)?;
                        shape::enter_mmx(cpu);
                        let a = u128::from(shape::mm(cpu, op.dst));
                        shape::set_mm(cpu, op.dst, host!($f, a, op.aux.into()) as u64);
                        Ok(())
                    }
                    Some(run as Handler)
                }
            )*
            Code::Pslldq_xmm_imm8 => {
                fn run(cpu: &mut Cpu, op: &Op) -> Step {
                    shape::sse_ready(cpu)?;
                    let shifted = shape::xmm(cpu, op.dst).checked_shl(u32::from(op.aux) * 8).unwrap_or(0);
                    shape::set_xmm(cpu, op.dst, shifted);
                    Ok(())
                }
                Some(run as Handler)
            }
            Code::Psrldq_xmm_imm8 => {
                fn run(cpu: &mut Cpu, op: &Op) -> Step {
                    shape::sse_ready(cpu)?;
                    let shifted = shape::xmm(cpu, op.dst).checked_shr(u32::from(op.aux) * 8).unwrap_or(0);
                    shape::set_xmm(cpu, op.dst, shifted);
                    Ok(())
                }
                Some(run as Handler)
            }
            _ => None,
        }
    };
}

fn shift_by_immediate(code: Code) -> Option<Handler> {
    shift_immediate! { code;
        Psllw_xmm_imm8 Psllw_mm_imm8 _mm_sll_epi16;
        Pslld_xmm_imm8 Pslld_mm_imm8 _mm_sll_epi32;
        Psllq_xmm_imm8 Psllq_mm_imm8 _mm_sll_epi64;
        Psrlw_xmm_imm8 Psrlw_mm_imm8 _mm_srl_epi16;
        Psrld_xmm_imm8 Psrld_mm_imm8 _mm_srl_epi32;
        Psrlq_xmm_imm8 Psrlq_mm_imm8 _mm_srl_epi64;
        Psraw_xmm_imm8 Psraw_mm_imm8 _mm_sra_epi16;
        Psrad_xmm_imm8 Psrad_mm_imm8 _mm_sra_epi32;
    }
}
