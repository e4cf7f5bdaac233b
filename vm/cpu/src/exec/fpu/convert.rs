//! Conversions between integers, singles and doubles, under the guest's rounding as all floating point here.

use core::arch::asm;
use core::arch::x86_64::__m128i;

use iced_x86::Code;

use super::float::{RUST_MXCSR, execute, float, under};
use super::shape::{self, bits, lanes};
use crate::cpu::Cpu;
use crate::op::{Handler, Op, Step};

macro_rules! conversions {
    ($($name:ident)*) => {
        $(under!($name, concat!(stringify!($name), " {a}, {b}"));)*
    };
}

conversions! {
    cvtps2pd cvtpd2ps cvtss2sd cvtsd2ss cvtdq2ps cvtdq2pd cvtps2dq cvttps2dq cvtpd2dq cvttpd2dq
}

/// A host instruction from a general register to a vector one.
macro_rules! from_integer {
    ($name:ident, $text:literal, $integer:ty) => {
        fn $name(a: __m128i, b: $integer, mxcsr: &mut u32) -> __m128i {
            let mut a = a;
            // SAFETY: SSE2 is in every x86-64 processor; exceptions are masked; the host's control is back at the end.
            unsafe {
                asm!(
                    "ldmxcsr [{m}]",
                    $text,
                    "stmxcsr [{m}]",
                    "ldmxcsr [{own}]",
                    a = inout(xmm_reg) a,
                    b = in(reg) b,
                    m = in(reg) core::ptr::from_mut(mxcsr),
                    own = in(reg) &raw const RUST_MXCSR,
                    options(nostack),
                );
            }
            a
        }
    };
}
from_integer!(cvtsi2ss32, "cvtsi2ss {a}, {b:e}", u32);
from_integer!(cvtsi2ss64, "cvtsi2ss {a}, {b:r}", u64);
from_integer!(cvtsi2sd64, "cvtsi2sd {a}, {b:r}", u64);

/// A host instruction from a vector register to a general one.
macro_rules! to_integer {
    ($name:ident, $text:literal) => {
        fn $name(b: __m128i, mxcsr: &mut u32) -> u64 {
            let result: u64;
            // SAFETY: as above.
            unsafe {
                asm!(
                    "ldmxcsr [{m}]",
                    $text,
                    "stmxcsr [{m}]",
                    "ldmxcsr [{own}]",
                    r = out(reg) result,
                    b = in(xmm_reg) b,
                    m = in(reg) core::ptr::from_mut(mxcsr),
                    own = in(reg) &raw const RUST_MXCSR,
                    options(nostack),
                );
            }
            result
        }
    };
}
to_integer!(cvtss2si32, "cvtss2si {r:e}, {b}");
to_integer!(cvtss2si64, "cvtss2si {r:r}, {b}");
to_integer!(cvtsd2si32, "cvtsd2si {r:e}, {b}");
to_integer!(cvtsd2si64, "cvtsd2si {r:r}, {b}");
to_integer!(cvttss2si32, "cvttss2si {r:e}, {b}");
to_integer!(cvttss2si64, "cvttss2si {r:r}, {b}");
to_integer!(cvttsd2si32, "cvttsd2si {r:e}, {b}");
to_integer!(cvttsd2si64, "cvttsd2si {r:r}, {b}");

/// The handlers of a conversion from a general register or an integer in memory.
macro_rules! integer_source {
    ($in_memory:expr, $load:ident, $integer:ty, $f:ident) => {{
        fn register(cpu: &mut Cpu, op: &Op) -> Step {
            shape::sse_ready(cpu)?;
            let b = shape::gpr(cpu, op.src) as $integer;
            let a = lanes(shape::xmm(cpu, op.dst));
            let result = execute(cpu, |mxcsr| $f(a, b, mxcsr))?;
            shape::set_xmm(cpu, op.dst, bits(result));
            Ok(())
        }
        fn memory(cpu: &mut Cpu, op: &Op) -> Step {
            shape::sse_ready(cpu)?;
            let b = shape::$load(cpu, op)? as $integer;
            let a = lanes(shape::xmm(cpu, op.dst));
            let result = execute(cpu, |mxcsr| $f(a, b, mxcsr))?;
            shape::set_xmm(cpu, op.dst, bits(result));
            Ok(())
        }
        if $in_memory { memory as Handler } else { register as Handler }
    }};
}

/// The handlers of a conversion into a general register.
macro_rules! integer_result {
    ($in_memory:expr, $load:ident, $f:ident) => {{
        fn register(cpu: &mut Cpu, op: &Op) -> Step {
            shape::sse_ready(cpu)?;
            let b = lanes(shape::xmm(cpu, op.src));
            let result = execute(cpu, |mxcsr| $f(b, mxcsr))?;
            shape::set_gpr(cpu, op.dst, result);
            Ok(())
        }
        fn memory(cpu: &mut Cpu, op: &Op) -> Step {
            shape::sse_ready(cpu)?;
            let b = lanes(shape::$load(cpu, op)?);
            let result = execute(cpu, |mxcsr| $f(b, mxcsr))?;
            shape::set_gpr(cpu, op.dst, result);
            Ok(())
        }
        if $in_memory { memory as Handler } else { register as Handler }
    }};
}

/// The handlers of a conversion of two integers in an MMX register or in memory. A source in memory
/// leaves the x87 alone.
macro_rules! from_mmx {
    ($in_memory:expr, $f:expr) => {{
        fn register(cpu: &mut Cpu, op: &Op) -> Step {
            mmx_ready(cpu)?;
            let (a, b) = (lanes(shape::xmm(cpu, op.dst)), lanes(shape::mm(cpu, op.src).into()));
            let result = execute(cpu, |mxcsr| $f(a, b, mxcsr))?;
            shape::enter_mmx(cpu);
            shape::set_xmm(cpu, op.dst, bits(result));
            Ok(())
        }
        fn memory(cpu: &mut Cpu, op: &Op) -> Step {
            shape::sse_ready(cpu)?;
            let b = lanes(shape::m64(cpu, op)?);
            let a = lanes(shape::xmm(cpu, op.dst));
            let result = execute(cpu, |mxcsr| $f(a, b, mxcsr))?;
            shape::set_xmm(cpu, op.dst, bits(result));
            Ok(())
        }
        if $in_memory { memory as Handler } else { register as Handler }
    }};
}

/// The handlers of a conversion into two integers in an MMX register.
macro_rules! into_mmx {
    ($in_memory:expr, $load:ident, $f:expr) => {{
        fn register(cpu: &mut Cpu, op: &Op) -> Step {
            mmx_ready(cpu)?;
            let b = lanes(shape::xmm(cpu, op.src));
            let result = execute(cpu, |mxcsr| $f(b, mxcsr))?;
            shape::enter_mmx(cpu);
            shape::set_mm(cpu, op.dst, bits(result) as u64);
            Ok(())
        }
        fn memory(cpu: &mut Cpu, op: &Op) -> Step {
            mmx_ready(cpu)?;
            let b = lanes(shape::$load(cpu, op)?);
            let result = execute(cpu, |mxcsr| $f(b, mxcsr))?;
            shape::enter_mmx(cpu);
            shape::set_mm(cpu, op.dst, bits(result) as u64);
            Ok(())
        }
        if $in_memory { memory as Handler } else { register as Handler }
    }};
}

/// The low half, with zeros above that convert without an exception.
fn low(v: __m128i) -> __m128i {
    lanes(u128::from(bits(v) as u64))
}

/// What SSE minds, and the pending x87 exceptions that everything with an MMX register minds.
fn mmx_ready(cpu: &mut Cpu) -> Step {
    shape::sse_ready(cpu)?;
    shape::x87_wait(cpu)
}

/// CVTSI2SD of 32 bits is exact whatever MXCSR says.
fn exact_double(cpu: &mut Cpu, op: &Op, value: u32) -> Step {
    let kept = shape::xmm(cpu, op.dst) >> 64 << 64;
    shape::set_xmm(cpu, op.dst, kept | u128::from(f64::from(value as i32).to_bits()));
    Ok(())
}

fn cvtsi2sd_register(cpu: &mut Cpu, op: &Op) -> Step {
    shape::sse_ready(cpu)?;
    let value = shape::gpr(cpu, op.src) as u32;
    exact_double(cpu, op, value)
}

fn cvtsi2sd_memory(cpu: &mut Cpu, op: &Op) -> Step {
    shape::sse_ready(cpu)?;
    let value = shape::m32(cpu, op)? as u32;
    exact_double(cpu, op, value)
}

pub(super) fn handler(code: Code, in_memory: bool) -> Option<Handler> {
    use Code::*;
    Some(match code {
        Cvtps2pd_xmm_xmmm64 => float!(in_memory, m64, cvtps2pd),
        Cvtpd2ps_xmm_xmmm128 => float!(in_memory, m128, cvtpd2ps),
        Cvtss2sd_xmm_xmmm32 => float!(in_memory, m32, cvtss2sd),
        Cvtsd2ss_xmm_xmmm64 => float!(in_memory, m64, cvtsd2ss),
        Cvtdq2ps_xmm_xmmm128 => float!(in_memory, m128, cvtdq2ps),
        Cvtdq2pd_xmm_xmmm64 => float!(in_memory, m64, cvtdq2pd),
        Cvtps2dq_xmm_xmmm128 => float!(in_memory, m128, cvtps2dq),
        Cvttps2dq_xmm_xmmm128 => float!(in_memory, m128, cvttps2dq),
        Cvtpd2dq_xmm_xmmm128 => float!(in_memory, m128, cvtpd2dq),
        Cvttpd2dq_xmm_xmmm128 => float!(in_memory, m128, cvttpd2dq),

        Cvtsi2sd_xmm_rm32 if in_memory => cvtsi2sd_memory,
        Cvtsi2sd_xmm_rm32 => cvtsi2sd_register,
        Cvtsi2sd_xmm_rm64 => integer_source!(in_memory, m64, u64, cvtsi2sd64),
        Cvtsi2ss_xmm_rm32 => integer_source!(in_memory, m32, u32, cvtsi2ss32),
        Cvtsi2ss_xmm_rm64 => integer_source!(in_memory, m64, u64, cvtsi2ss64),

        Cvtss2si_r32_xmmm32 => integer_result!(in_memory, m32, cvtss2si32),
        Cvtss2si_r64_xmmm32 => integer_result!(in_memory, m32, cvtss2si64),
        Cvtsd2si_r32_xmmm64 => integer_result!(in_memory, m64, cvtsd2si32),
        Cvtsd2si_r64_xmmm64 => integer_result!(in_memory, m64, cvtsd2si64),
        Cvttss2si_r32_xmmm32 => integer_result!(in_memory, m32, cvttss2si32),
        Cvttss2si_r64_xmmm32 => integer_result!(in_memory, m32, cvttss2si64),
        Cvttsd2si_r32_xmmm64 => integer_result!(in_memory, m64, cvttsd2si32),
        Cvttsd2si_r64_xmmm64 => integer_result!(in_memory, m64, cvttsd2si64),

        // To and from MMX registers.
        Cvtpi2ps_xmm_mmm64 => from_mmx!(in_memory, |a: __m128i, b: __m128i, mxcsr: &mut u32| {
            // The high half stays.
            let converted = bits(cvtdq2ps(a, b, mxcsr));
            lanes(bits(a) >> 64 << 64 | u128::from(converted as u64))
        }),
        Cvtpi2pd_xmm_mmm64 => from_mmx!(in_memory, cvtdq2pd),
        Cvtps2pi_mm_xmmm64 => into_mmx!(in_memory, m64, |b, mxcsr: &mut u32| cvtps2dq(b, low(b), mxcsr)),
        Cvttps2pi_mm_xmmm64 => into_mmx!(in_memory, m64, |b, mxcsr: &mut u32| cvttps2dq(b, low(b), mxcsr)),
        Cvtpd2pi_mm_xmmm128 => into_mmx!(in_memory, m128, |b, mxcsr: &mut u32| cvtpd2dq(b, b, mxcsr)),
        Cvttpd2pi_mm_xmmm128 => into_mmx!(in_memory, m128, |b, mxcsr: &mut u32| cvttpd2dq(b, b, mxcsr)),
        _ => return None,
    })
}
