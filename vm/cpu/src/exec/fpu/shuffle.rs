//! Rearranging lanes: unpack, pack, shuffle, insert and extract, SSE, SSE2 and MMX.

use core::arch::x86_64::*;

use iced_x86::Code;

use super::shape::{self, host, mmx, sse, sse_imm};
use crate::cpu::Cpu;
use crate::op::{Handler, Op, Step};

pub(super) fn handler(code: Code, in_memory: bool) -> Option<Handler> {
    unpack(code, in_memory)
        .or_else(|| unpack_mmx(code, in_memory))
        .or_else(|| shuffle(code, in_memory))
        .or_else(|| words(code, in_memory))
}

/// A vector function of two over plain bits.
macro_rules! two {
    ($f:expr) => {
        |a: u128, b: u128| host!($f, a, b)
    };
}

fn unpack(code: Code, in_memory: bool) -> Option<Handler> {
    use Code::*;
    Some(match code {
        Punpcklbw_xmm_xmmm128 => sse!(in_memory, m128, two!(_mm_unpacklo_epi8)),
        Punpcklwd_xmm_xmmm128 => sse!(in_memory, m128, two!(_mm_unpacklo_epi16)),
        Punpckldq_xmm_xmmm128 | Unpcklps_xmm_xmmm128 => sse!(in_memory, m128, two!(_mm_unpacklo_epi32)),
        Punpcklqdq_xmm_xmmm128 | Unpcklpd_xmm_xmmm128 => sse!(in_memory, m128, two!(_mm_unpacklo_epi64)),
        Punpckhbw_xmm_xmmm128 => sse!(in_memory, m128, two!(_mm_unpackhi_epi8)),
        Punpckhwd_xmm_xmmm128 => sse!(in_memory, m128, two!(_mm_unpackhi_epi16)),
        Punpckhdq_xmm_xmmm128 | Unpckhps_xmm_xmmm128 => sse!(in_memory, m128, two!(_mm_unpackhi_epi32)),
        Punpckhqdq_xmm_xmmm128 | Unpckhpd_xmm_xmmm128 => sse!(in_memory, m128, two!(_mm_unpackhi_epi64)),
        Packsswb_xmm_xmmm128 => sse!(in_memory, m128, two!(_mm_packs_epi16)),
        Packssdw_xmm_xmmm128 => sse!(in_memory, m128, two!(_mm_packs_epi32)),
        Packuswb_xmm_xmmm128 => sse!(in_memory, m128, two!(_mm_packus_epi16)),
        _ => return None,
    })
}

/// An MMX unpack, low: the vector's unpack takes the low halves, of which the low half of the result is made of the low
/// quarters. High: its high half. A pack packs both operands side by side.
macro_rules! quarter {
    (low $f:expr) => {
        |a: u128, b: u128, _| host!($f, a, b)
    };
    (high $f:expr) => {
        |a: u128, b: u128, _| host!($f, a, b) >> 64
    };
    (pack $f:expr) => {
        |a: u128, b: u128, _| host!($f, a | b << 64, 0)
    };
}

fn unpack_mmx(code: Code, in_memory: bool) -> Option<Handler> {
    use Code::*;
    Some(match code {
        Punpcklbw_mm_mmm32 => mmx!(in_memory, m32, quarter!(low _mm_unpacklo_epi8)),
        Punpcklwd_mm_mmm32 => mmx!(in_memory, m32, quarter!(low _mm_unpacklo_epi16)),
        Punpckldq_mm_mmm32 => mmx!(in_memory, m32, quarter!(low _mm_unpacklo_epi32)),
        Punpckhbw_mm_mmm64 => mmx!(in_memory, m64, quarter!(high _mm_unpacklo_epi8)),
        Punpckhwd_mm_mmm64 => mmx!(in_memory, m64, quarter!(high _mm_unpacklo_epi16)),
        Punpckhdq_mm_mmm64 => mmx!(in_memory, m64, quarter!(high _mm_unpacklo_epi32)),
        Packsswb_mm_mmm64 => mmx!(in_memory, m64, quarter!(pack _mm_packs_epi16)),
        Packssdw_mm_mmm64 => mmx!(in_memory, m64, quarter!(pack _mm_packs_epi32)),
        Packuswb_mm_mmm64 => mmx!(in_memory, m64, quarter!(pack _mm_packus_epi16)),
        _ => return None,
    })
}

#[inline(always)]
fn dword(v: u128, i: u8) -> u128 {
    v >> (32 * u32::from(i & 3)) & 0xffff_ffff
}

#[inline(always)]
fn pshufd(_: u128, b: u128, imm: u8) -> u128 {
    dword(b, imm) | dword(b, imm >> 2) << 32 | dword(b, imm >> 4) << 64 | dword(b, imm >> 6) << 96
}

#[inline(always)]
fn shufps(a: u128, b: u128, imm: u8) -> u128 {
    dword(a, imm) | dword(a, imm >> 2) << 32 | dword(b, imm >> 4) << 64 | dword(b, imm >> 6) << 96
}

#[inline(always)]
fn shufpd(a: u128, b: u128, imm: u8) -> u128 {
    (a >> (64 * u32::from(imm & 1))) & u128::from(u64::MAX) | b >> (64 * u32::from(imm >> 1 & 1)) << 64
}

/// The four words of `v`, chosen by `imm`.
#[inline(always)]
fn shuffle_words(v: u64, imm: u8) -> u64 {
    let word = |i: u8| v >> (16 * u32::from(i & 3)) & 0xffff;
    word(imm) | word(imm >> 2) << 16 | word(imm >> 4) << 32 | word(imm >> 6) << 48
}

#[inline(always)]
fn pshuflw(_: u128, b: u128, imm: u8) -> u128 {
    b >> 64 << 64 | u128::from(shuffle_words(b as u64, imm))
}

#[inline(always)]
fn pshufhw(_: u128, b: u128, imm: u8) -> u128 {
    u128::from(b as u64) | u128::from(shuffle_words((b >> 64) as u64, imm)) << 64
}

fn shuffle(code: Code, in_memory: bool) -> Option<Handler> {
    use Code::*;
    Some(match code {
        Pshufd_xmm_xmmm128_imm8 => sse_imm!(in_memory, m128, pshufd),
        Pshuflw_xmm_xmmm128_imm8 => sse_imm!(in_memory, m128, pshuflw),
        Pshufhw_xmm_xmmm128_imm8 => sse_imm!(in_memory, m128, pshufhw),
        Shufps_xmm_xmmm128_imm8 => sse_imm!(in_memory, m128, shufps),
        Shufpd_xmm_xmmm128_imm8 => sse_imm!(in_memory, m128, shufpd),
        Pshufw_mm_mmm64_imm8 => mmx!(in_memory, m64, pshuflw),
        _ => return None,
    })
}

/// `v` with the word that `imm` chooses replaced.
#[inline(always)]
fn insert_word(v: u128, word: u16, at: u32) -> u128 {
    v & !(0xffff << at) | u128::from(word) << at
}

/// The top bits of the sixteen bytes.
#[inline(always)]
fn sign_mask(v: u128) -> u64 {
    // SAFETY: the function needs SSE2, which is in every x86-64 processor.
    unsafe { _mm_movemask_epi8(shape::lanes(v)) as u64 & 0xffff }
}

fn words(code: Code, in_memory: bool) -> Option<Handler> {
    use Code::*;
    Some(match code {
        Pinsrw_xmm_r32m16_imm8 | Pinsrw_xmm_r64m16_imm8 if in_memory => |cpu: &mut Cpu, op: &Op| -> Step {
            shape::sse_ready(cpu)?;
            let address = cpu.address(op);
            let word = cpu.load::<u16>(address)?;
            let value = insert_word(shape::xmm(cpu, op.dst), word, 16 * u32::from(op.aux & 7));
            shape::set_xmm(cpu, op.dst, value);
            Ok(())
        },
        Pinsrw_xmm_r32m16_imm8 | Pinsrw_xmm_r64m16_imm8 => |cpu: &mut Cpu, op: &Op| -> Step {
            shape::sse_ready(cpu)?;
            let word = shape::gpr(cpu, op.src) as u16;
            let value = insert_word(shape::xmm(cpu, op.dst), word, 16 * u32::from(op.aux & 7));
            shape::set_xmm(cpu, op.dst, value);
            Ok(())
        },
        Pinsrw_mm_r32m16_imm8 | Pinsrw_mm_r64m16_imm8 if in_memory => |cpu: &mut Cpu, op: &Op| -> Step {
            shape::mmx_ready(cpu)?;
            let address = cpu.address(op);
            let word = cpu.load::<u16>(address)?;
            shape::enter_mmx(cpu);
            let value = insert_word(shape::mm(cpu, op.dst).into(), word, 16 * u32::from(op.aux & 3));
            shape::set_mm(cpu, op.dst, value as u64);
            Ok(())
        },
        Pinsrw_mm_r32m16_imm8 | Pinsrw_mm_r64m16_imm8 => |cpu: &mut Cpu, op: &Op| -> Step {
            shape::mmx_ready(cpu)?;
            let word = shape::gpr(cpu, op.src) as u16;
            shape::enter_mmx(cpu);
            let value = insert_word(shape::mm(cpu, op.dst).into(), word, 16 * u32::from(op.aux & 3));
            shape::set_mm(cpu, op.dst, value as u64);
            Ok(())
        },
        Pextrw_r32_xmm_imm8 | Pextrw_r64_xmm_imm8 => |cpu: &mut Cpu, op: &Op| -> Step {
            shape::sse_ready(cpu)?;
            let word = (shape::xmm(cpu, op.src) >> (16 * u32::from(op.aux & 7))) as u16;
            shape::set_gpr(cpu, op.dst, word.into());
            Ok(())
        },
        Pextrw_r32_mm_imm8 | Pextrw_r64_mm_imm8 => |cpu: &mut Cpu, op: &Op| -> Step {
            shape::mmx_ready(cpu)?;
            shape::enter_mmx(cpu);
            let word = (shape::mm(cpu, op.src) >> (16 * u32::from(op.aux & 3))) as u16;
            shape::set_gpr(cpu, op.dst, word.into());
            Ok(())
        },
        Pmovmskb_r32_xmm | Pmovmskb_r64_xmm => |cpu: &mut Cpu, op: &Op| -> Step {
            shape::sse_ready(cpu)?;
            let mask = sign_mask(shape::xmm(cpu, op.src));
            shape::set_gpr(cpu, op.dst, mask);
            Ok(())
        },
        Pmovmskb_r32_mm | Pmovmskb_r64_mm => |cpu: &mut Cpu, op: &Op| -> Step {
            shape::mmx_ready(cpu)?;
            shape::enter_mmx(cpu);
            let mask = sign_mask(shape::mm(cpu, op.src).into());
            shape::set_gpr(cpu, op.dst, mask);
            Ok(())
        },
        _ => return None,
    })
}
