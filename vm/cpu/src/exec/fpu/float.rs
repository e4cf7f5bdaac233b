//! IEEE arithmetic and comparison in single and double precision, packed and scalar.
//!
//! Each operation is the host's own SSE2 instruction, executed inside one piece of assembly under the guest's rounding
//! and denormal control with all exceptions masked; the host's MXCSR is as Rust needs it before and after. The effect
//! of an unmasked exception is worked out from the flags. For scalars there is a short cut that leaves MXCSR alone:
//! where the guest runs with the default control and has an inexact result on record already, an operation without
//! denormal operands and with a normal result cannot show in MXCSR.

use core::arch::asm;
use core::arch::x86_64::__m128i;

use iced_x86::Code;

use super::shape::{self, bits, lanes};
use super::state::MXCSR_RESET;
use crate::cpu::Cpu;
use crate::flags::{CF, PF, ZF};
use crate::interrupt::vector;
use crate::op::{Handler, Op, Step, Stop};

/// Exception flags of MXCSR; their masks are seven bits further up.
const FLAGS: u32 = 0x3f;
const MASKS: u32 = FLAGS << 7;
const FLUSH_TO_ZERO: u32 = 1 << 15;
/// Invalid, denormal, divide by zero: found before anything is computed.
const BEFORE: u32 = 0x07;
const UNDERFLOW: u32 = 0x10;
const INEXACT: u32 = 0x20;
const CR4_OSXMMEXCPT: u64 = 1 << 10;

/// What Rust code runs under.
pub(super) static RUST_MXCSR: u32 = MXCSR_RESET;

/// Executes one host instruction on (`a`, `b`) under the given MXCSR, and leaves its flags there.
macro_rules! under {
    ($name:ident, $text:expr) => {
        #[inline(always)]
        pub(super) fn $name(a: __m128i, b: __m128i, mxcsr: &mut u32) -> __m128i {
            let mut a = a;
            // SAFETY: SSE2 is in every x86-64 processor; all exceptions are masked in `mxcsr` (the callers' doing, by
            // `execute`), and the host's own control is back before the end.
            unsafe {
                asm!(
                    "ldmxcsr [{m}]",
                    $text,
                    "stmxcsr [{m}]",
                    "ldmxcsr [{own}]",
                    a = inout(xmm_reg) a,
                    b = in(xmm_reg) b,
                    m = in(reg) core::ptr::from_mut(mxcsr),
                    own = in(reg) &raw const RUST_MXCSR,
                    options(nostack),
                );
            }
            a
        }
    };
}
pub(super) use under;

macro_rules! arithmetic {
    ($($name:ident)*) => {
        $(under!($name, concat!(stringify!($name), " {a}, {b}"));)*
    };
}

arithmetic! {
    addps addpd addss addsd subps subpd subss subsd mulps mulpd mulss mulsd divps divpd divss divsd
    minps minpd minss minsd maxps maxpd maxss maxsd sqrtps sqrtpd sqrtss sqrtsd
}

/// Runs `f` as the guest would: its flags go to the guest's MXCSR; an unmasked exception is raised, and there is no
/// result then.
#[inline(always)]
pub(super) fn execute<R>(cpu: &mut Cpu, f: impl Fn(&mut u32) -> R) -> Result<R, Stop> {
    let guest = cpu.fpu.mxcsr;
    let mut host = guest & !FLAGS | MASKS;
    let result = f(&mut host);
    if guest & MASKS == MASKS {
        cpu.fpu.mxcsr = guest | host & FLAGS;
        return Ok(result);
    }
    unmasked(cpu, f, host & FLAGS)?;
    Ok(result)
}

/// Some exceptions are unmasked, and `f` has flagged `raised` with all of them masked.
#[cold]
fn unmasked<R>(cpu: &mut Cpu, f: impl Fn(&mut u32) -> R, mut raised: u32) -> Step {
    let guest = cpu.fpu.mxcsr;
    let open = !(guest >> 7) & FLAGS;
    if raised & BEFORE & open != 0 {
        // The operation stopped before it had a result: nothing of the result is reported.
        cpu.fpu.mxcsr = guest | raised & BEFORE;
        return Err(simd_exception(cpu));
    }
    if open & UNDERFLOW != 0 {
        // An unmasked underflow is flagged for any tiny result, an exact one too, and results are never flushed.
        let mut host = guest & !FLAGS & !FLUSH_TO_ZERO | MASKS;
        f(&mut host);
        raised = host & FLAGS & !UNDERFLOW;
        let mut host = guest & !FLAGS | FLUSH_TO_ZERO | MASKS;
        f(&mut host);
        raised |= host & UNDERFLOW;
    }
    cpu.fpu.mxcsr = guest | raised;
    if raised & open != 0 { Err(simd_exception(cpu)) } else { Ok(()) }
}

#[cold]
fn simd_exception(cpu: &mut Cpu) -> Stop {
    let vector = if cpu.sys.cr4 & CR4_OSXMMEXCPT != 0 { vector::XM } else { vector::UD };
    cpu.raise(vector, None)
}

/// `dst = f(dst, source)` under the guest's MXCSR.
macro_rules! float {
    ($in_memory:expr, $load:ident, $f:expr) => {{
        fn register(cpu: &mut Cpu, op: &Op) -> Step {
            shape::sse_ready(cpu)?;
            let (a, b) = (lanes(shape::xmm(cpu, op.dst)), lanes(shape::xmm(cpu, op.src)));
            let result = $crate::exec::fpu::float::execute(cpu, |mxcsr| $f(a, b, mxcsr))?;
            shape::set_xmm(cpu, op.dst, bits(result));
            Ok(())
        }
        fn memory(cpu: &mut Cpu, op: &Op) -> Step {
            shape::sse_ready(cpu)?;
            let b = lanes(shape::$load(cpu, op)?);
            let a = lanes(shape::xmm(cpu, op.dst));
            let result = $crate::exec::fpu::float::execute(cpu, |mxcsr| $f(a, b, mxcsr))?;
            shape::set_xmm(cpu, op.dst, bits(result));
            Ok(())
        }
        if $in_memory { memory as Handler } else { register as Handler }
    }};
}
pub(super) use float;

/// `dst = dst predicate source`, lane by lane.
macro_rules! compare {
    ($in_memory:expr, $load:ident, $f:ident) => {{
        fn register(cpu: &mut Cpu, op: &Op) -> Step {
            shape::sse_ready(cpu)?;
            let (a, b) = (lanes(shape::xmm(cpu, op.dst)), lanes(shape::xmm(cpu, op.src)));
            let result = execute(cpu, |mxcsr| $f(a, b, op.aux, mxcsr))?;
            shape::set_xmm(cpu, op.dst, bits(result));
            Ok(())
        }
        fn memory(cpu: &mut Cpu, op: &Op) -> Step {
            shape::sse_ready(cpu)?;
            let b = lanes(shape::$load(cpu, op)?);
            let a = lanes(shape::xmm(cpu, op.dst));
            let result = execute(cpu, |mxcsr| $f(a, b, op.aux, mxcsr))?;
            shape::set_xmm(cpu, op.dst, bits(result));
            Ok(())
        }
        if $in_memory { memory as Handler } else { register as Handler }
    }};
}

/// A result that is normal and not the smallest of those: nothing underflowed or overflowed on the way, and no operand
/// was a NaN.
#[inline(always)]
fn plain64(v: u64) -> bool {
    (v >> 52 & 0x7ff).wrapping_sub(2) < 0x7ff - 2
}

#[inline(always)]
fn plain32(v: u32) -> bool {
    (v >> 23 & 0xff).wrapping_sub(2) < 0xff - 2
}

#[inline(always)]
fn denormal64(v: u64) -> bool {
    (v & (u64::MAX >> 1)).wrapping_sub(1) < (1 << 52) - 1
}

#[inline(always)]
fn denormal32(v: u32) -> bool {
    (v & (u32::MAX >> 1)).wrapping_sub(1) < (1 << 23) - 1
}

/// MXCSR is as after reset but for flags, of which inexact is set.
#[inline(always)]
fn quiet(cpu: &Cpu) -> bool {
    cpu.fpu.mxcsr & !(FLAGS & !INEXACT) == MXCSR_RESET | INEXACT
}

/// A scalar operation with the short cut.
macro_rules! scalar {
    ($name:ident, $load:ident, $bits:ty, $float:ty, $plain:ident, $denormal:ident, $operator:tt, $full:ident) => {
        mod $name {
            use super::*;

            #[inline(always)]
            fn finish(cpu: &mut Cpu, op: &Op, b: u128) -> Step {
                let a = shape::xmm(cpu, op.dst);
                if quiet(cpu) && !$denormal(a as $bits) && !$denormal(b as $bits) {
                    let result = (<$float>::from_bits(a as $bits) $operator <$float>::from_bits(b as $bits)).to_bits();
                    if $plain(result) {
                        let kept = a & !u128::from(<$bits>::MAX);
                        shape::set_xmm(cpu, op.dst, kept | u128::from(result));
                        return Ok(());
                    }
                }
                full(cpu, op, a, b)
            }

            #[inline(never)]
            fn full(cpu: &mut Cpu, op: &Op, a: u128, b: u128) -> Step {
                let result = execute(cpu, |mxcsr| $full(lanes(a), lanes(b), mxcsr))?;
                shape::set_xmm(cpu, op.dst, bits(result));
                Ok(())
            }

            pub(super) fn register(cpu: &mut Cpu, op: &Op) -> Step {
                shape::sse_ready(cpu)?;
                let b = shape::xmm(cpu, op.src);
                finish(cpu, op, b)
            }

            pub(super) fn memory(cpu: &mut Cpu, op: &Op) -> Step {
                shape::sse_ready(cpu)?;
                let b = shape::$load(cpu, op)?;
                finish(cpu, op, b)
            }
        }
    };
}

scalar!(add64, m64, u64, f64, plain64, denormal64, +, addsd);
scalar!(sub64, m64, u64, f64, plain64, denormal64, -, subsd);
scalar!(mul64, m64, u64, f64, plain64, denormal64, *, mulsd);
scalar!(div64, m64, u64, f64, plain64, denormal64, /, divsd);
scalar!(add32, m32, u32, f32, plain32, denormal32, +, addss);
scalar!(sub32, m32, u32, f32, plain32, denormal32, -, subss);
scalar!(mul32, m32, u32, f32, plain32, denormal32, *, mulss);
scalar!(div32, m32, u32, f32, plain32, denormal32, /, divss);

pub(super) fn handler(code: Code, in_memory: bool) -> Option<Handler> {
    use Code::*;
    let either = |register: Handler, memory: Handler| if in_memory { memory } else { register };
    Some(match code {
        Addsd_xmm_xmmm64 => either(add64::register, add64::memory),
        Subsd_xmm_xmmm64 => either(sub64::register, sub64::memory),
        Mulsd_xmm_xmmm64 => either(mul64::register, mul64::memory),
        Divsd_xmm_xmmm64 => either(div64::register, div64::memory),
        Addss_xmm_xmmm32 => either(add32::register, add32::memory),
        Subss_xmm_xmmm32 => either(sub32::register, sub32::memory),
        Mulss_xmm_xmmm32 => either(mul32::register, mul32::memory),
        Divss_xmm_xmmm32 => either(div32::register, div32::memory),
        Addps_xmm_xmmm128 => float!(in_memory, m128, addps),
        Addpd_xmm_xmmm128 => float!(in_memory, m128, addpd),
        Subps_xmm_xmmm128 => float!(in_memory, m128, subps),
        Subpd_xmm_xmmm128 => float!(in_memory, m128, subpd),
        Mulps_xmm_xmmm128 => float!(in_memory, m128, mulps),
        Mulpd_xmm_xmmm128 => float!(in_memory, m128, mulpd),
        Divps_xmm_xmmm128 => float!(in_memory, m128, divps),
        Divpd_xmm_xmmm128 => float!(in_memory, m128, divpd),
        Minps_xmm_xmmm128 => float!(in_memory, m128, minps),
        Minpd_xmm_xmmm128 => float!(in_memory, m128, minpd),
        Minss_xmm_xmmm32 => float!(in_memory, m32, minss),
        Minsd_xmm_xmmm64 => float!(in_memory, m64, minsd),
        Maxps_xmm_xmmm128 => float!(in_memory, m128, maxps),
        Maxpd_xmm_xmmm128 => float!(in_memory, m128, maxpd),
        Maxss_xmm_xmmm32 => float!(in_memory, m32, maxss),
        Maxsd_xmm_xmmm64 => float!(in_memory, m64, maxsd),
        Sqrtps_xmm_xmmm128 => float!(in_memory, m128, sqrtps),
        Sqrtpd_xmm_xmmm128 => float!(in_memory, m128, sqrtpd),
        Sqrtss_xmm_xmmm32 => float!(in_memory, m32, sqrtss),
        Sqrtsd_xmm_xmmm64 => float!(in_memory, m64, sqrtsd),
        Rcpps_xmm_xmmm128 => shape::sse!(in_memory, m128, |_, b| each(b, reciprocal)),
        Rsqrtps_xmm_xmmm128 => shape::sse!(in_memory, m128, |_, b| each(b, reciprocal_root)),
        Rcpss_xmm_xmmm32 => shape::sse!(in_memory, m32, |a, b| first(a, b, reciprocal)),
        Rsqrtss_xmm_xmmm32 => shape::sse!(in_memory, m32, |a, b| first(a, b, reciprocal_root)),
        Cmpps_xmm_xmmm128_imm8 => compare!(in_memory, m128, ps),
        Cmppd_xmm_xmmm128_imm8 => compare!(in_memory, m128, pd),
        Cmpss_xmm_xmmm32_imm8 => compare!(in_memory, m32, ss),
        Cmpsd_xmm_xmmm64_imm8 => compare!(in_memory, m64, sd),
        Ucomiss_xmm_xmmm32 => either(flags32::<false>, flags32_memory::<false>),
        Comiss_xmm_xmmm32 => either(flags32::<true>, flags32_memory::<true>),
        Ucomisd_xmm_xmmm64 => either(flags64::<false>, flags64_memory::<false>),
        Comisd_xmm_xmmm64 => either(flags64::<true>, flags64_memory::<true>),
        _ => return None,
    })
}

/// CMPcc: the predicate is a part of the host's instruction.
macro_rules! predicates {
    ($($name:ident $($predicate:ident)*;)*) => {
        $(
            mod $name {
                use super::*;
                $(under!($predicate, concat!("cmp", stringify!($predicate), stringify!($name), " {a}, {b}"));)*
            }

            fn $name(a: __m128i, b: __m128i, predicate: u8, mxcsr: &mut u32) -> __m128i {
                match predicate & 7 {
                    0 => $name::eq(a, b, mxcsr),
                    1 => $name::lt(a, b, mxcsr),
                    2 => $name::le(a, b, mxcsr),
                    3 => $name::unord(a, b, mxcsr),
                    4 => $name::neq(a, b, mxcsr),
                    5 => $name::nlt(a, b, mxcsr),
                    6 => $name::nle(a, b, mxcsr),
                    _ => $name::ord(a, b, mxcsr),
                }
            }
        )*
    };
}
predicates! {
    ps eq lt le unord neq nlt nle ord;
    pd eq lt le unord neq nlt nle ord;
    ss eq lt le unord neq nlt nle ord;
    sd eq lt le unord neq nlt nle ord;
}

/// The flags of a comparison of scalars: ZF, PF and CF; the others are cleared.
macro_rules! flags {
    ($quiet:literal, $signalling:literal, $bits:ident, $float:ident, $denormal:ident, $load:ident,
     $compare:ident, $register:ident, $memory:ident) => {
        fn $register<const SIGNALLING: bool>(cpu: &mut Cpu, op: &Op) -> Step {
            shape::sse_ready(cpu)?;
            let b = shape::xmm(cpu, op.src);
            $compare::<SIGNALLING>(cpu, op, b)
        }

        fn $memory<const SIGNALLING: bool>(cpu: &mut Cpu, op: &Op) -> Step {
            shape::sse_ready(cpu)?;
            let b = shape::$load(cpu, op)?;
            $compare::<SIGNALLING>(cpu, op, b)
        }

        #[inline(always)]
        fn $compare<const SIGNALLING: bool>(cpu: &mut Cpu, op: &Op, b: u128) -> Step {
            let a = shape::xmm(cpu, op.dst);
            // Without NaN and denormals there is nothing that MXCSR could say or change.
            if !$denormal(a as $bits) && !$denormal(b as $bits) {
                use core::cmp::Ordering::{Equal, Greater, Less};
                if let Some(order) = $float::from_bits(a as $bits).partial_cmp(&$float::from_bits(b as $bits)) {
                    cpu.set_status(match order {
                        Greater => 0,
                        Less => CF,
                        Equal => ZF,
                    });
                    return Ok(());
                }
            }
            let (a, b) = (lanes(a), lanes(b));
            let (zero, parity, carry) = execute(cpu, |mxcsr| {
                let (zero, parity, carry): (u8, u8, u8);
                // SAFETY: as in `under`.
                unsafe {
                    if SIGNALLING {
                        asm!(
                            "ldmxcsr [{m}]",
                            concat!($signalling, " {a}, {b}"),
                            "sete {zero}", "setp {parity}", "setb {carry}",
                            "stmxcsr [{m}]",
                            "ldmxcsr [{own}]",
                            a = in(xmm_reg) a, b = in(xmm_reg) b,
                            zero = out(reg_byte) zero, parity = out(reg_byte) parity, carry = out(reg_byte) carry,
                            m = in(reg) core::ptr::from_mut(mxcsr), own = in(reg) &raw const RUST_MXCSR,
                            options(nostack),
                        );
                    } else {
                        asm!(
                            "ldmxcsr [{m}]",
                            concat!($quiet, " {a}, {b}"),
                            "sete {zero}", "setp {parity}", "setb {carry}",
                            "stmxcsr [{m}]",
                            "ldmxcsr [{own}]",
                            a = in(xmm_reg) a, b = in(xmm_reg) b,
                            zero = out(reg_byte) zero, parity = out(reg_byte) parity, carry = out(reg_byte) carry,
                            m = in(reg) core::ptr::from_mut(mxcsr), own = in(reg) &raw const RUST_MXCSR,
                            options(nostack),
                        );
                    }
                }
                (zero, parity, carry)
            })?;
            let flag = |set: u8, flag: u64| if set != 0 { flag } else { 0 };
            cpu.set_status(flag(zero, ZF) | flag(parity, PF) | flag(carry, CF));
            Ok(())
        }
    };
}
flags!("ucomiss", "comiss", u32, f32, denormal32, m32, compare32, flags32, flags32_memory);
flags!("ucomisd", "comisd", u64, f64, denormal64, m64, compare64, flags64, flags64_memory);

/// `f` of the four singles.
fn each(v: u128, f: fn(u32) -> u32) -> u128 {
    (0..4).fold(0, |result, i| result | u128::from(f((v >> (32 * i)) as u32)) << (32 * i))
}

/// `f` of the first single of `b`, above it what is in `a`.
fn first(a: u128, b: u128, f: fn(u32) -> u32) -> u128 {
    a & !u128::from(u32::MAX) | u128::from(f(b as u32))
}

const SIGN: u32 = 1 << 31;
const INFINITY: u32 = 0x7f80_0000;
const QUIET: u32 = 1 << 22;
const DEFAULT_NAN: u32 = 0xffc0_0000;

/// RCPPS. The architecture bounds its error by 1.5 * 2^-12 and makers differ within that: here it is the reciprocal
/// rounded to eleven bits of fraction (half a unit is 2^-12), ties away from zero.
fn reciprocal(v: u32) -> u32 {
    match v & !SIGN {
        0..0x80_0000 => v & SIGN | INFINITY,
        INFINITY => v & SIGN,
        nan if nan > INFINITY => v | QUIET,
        _ => estimate(1.0 / f64::from(f32::from_bits(v))),
    }
}

/// RSQRTPS, to the same precision.
fn reciprocal_root(v: u32) -> u32 {
    match v & !SIGN {
        0..0x80_0000 => v & SIGN | INFINITY,
        nan if nan > INFINITY => v | QUIET,
        _ if v & SIGN != 0 => DEFAULT_NAN,
        INFINITY => 0,
        _ => estimate(1.0 / f64::from(f32::from_bits(v)).sqrt()),
    }
}

/// A normal double as a single with eleven bits of fraction; zero where that would be denormal.
fn estimate(v: f64) -> u32 {
    const DROPPED: u32 = 52 - 11;
    let rounded = (v.to_bits() + (1 << (DROPPED - 1))) >> DROPPED << DROPPED;
    let single = (f64::from_bits(rounded) as f32).to_bits();
    if single & !SIGN < 0x80_0000 { single & SIGN } else { single }
}
