//! FSIN, FCOS, FSINCOS, FPTAN, FPATAN, F2XM1, FYL2X, FYL2XP1: in double precision, by `libm` in Rust.
//!
//! Makers' results differ in the last bits, and so would a host's; these are the same everywhere, within about 2^-52 of
//! the result, except for the reduction of large angles: the angle is rounded to double precision first. Special
//! operands give the architecture's results. Where a function is all but linear, it is computed as linear, in extended
//! precision. Inexact is flagged for every result that is not one of the special ones.

use iced_x86::{Code, Mnemonic};

use super::arithmetic::{add, divide, multiply};
use super::number::{
    BIAS, Control, DOUBLE, Finite, Kind, Outcome, PE, Rounded, Rounding, ZE, denormal_flag, invalid,
    propagate, round_to,
};
use super::operate::unary;
use super::stack::{self, C2};
use crate::cpu::Cpu;
use crate::exec::fpu::state::Extended;
use crate::op::{Handler, Op, Step};

const ONE: Extended = Extended { significand: 1 << 63, sign_exponent: BIAS as u16 };
const LN_2: Extended = Extended { significand: 0xb172_17f7_d1cf_79ac, sign_exponent: BIAS as u16 - 1 };
const LOG2_E: Extended = Extended { significand: 0xb8aa_3b29_5c17_f0bc, sign_exponent: BIAS as u16 };
/// Below this exponent sin, tan and atan of x are x to double precision: the next term is of the third order.
const LINEAR: i32 = -32;
/// Below this one 2^x - 1 and log2(x + 1) are linear, whose next term is of the second.
const FLAT: i32 = -64;

pub(super) fn handler(code: Code) -> Option<Handler> {
    Some(match code.mnemonic() {
        Mnemonic::Fsin => |cpu, op| angle(cpu, op, |a| (sine(a), None)),
        Mnemonic::Fcos => |cpu, op| angle(cpu, op, |a| (cosine(a), None)),
        Mnemonic::Fsincos => |cpu, op| angle(cpu, op, |a| (sine(a), Some(cosine(a)))),
        Mnemonic::Fptan => |cpu, op| angle(cpu, op, |a| (tangent(a), Some(ONE))),
        Mnemonic::F2xm1 => |cpu, op| unary(cpu, op, power),
        Mnemonic::Fpatan => |cpu, op| binary(cpu, op, arc_tangent),
        Mnemonic::Fyl2x => |cpu, op| binary(cpu, op, y_log2_x),
        Mnemonic::Fyl2xp1 => |cpu, op| binary(cpu, op, y_log2_x_plus_1),
        _ => return None,
    })
}

const NEAREST: Control =
    Control { rounding: Rounding::Nearest, precision: 64, overflow_masked: true, underflow_masked: true };

/// Rounded to double.
fn double(x: Finite) -> f64 {
    let rounded = round_to(DOUBLE, NEAREST, x.negative, x.exponent, u128::from(x.significand) << 64);
    let magnitude = match rounded.value {
        Rounded::Infinity => f64::INFINITY.to_bits(),
        Rounded::Finite { exponent, significand } => {
            (((exponent - DOUBLE.min).max(0) as u64) << 52).wrapping_add(significand)
        }
    };
    f64::from_bits(u64::from(x.negative) << 63 | magnitude)
}

fn extended(v: f64) -> Extended {
    Extended::from_double(v.to_bits()).0
}

fn sine(a: Finite) -> Extended {
    extended(libm::sin(double(a)))
}

fn cosine(a: Finite) -> Extended {
    extended(libm::cos(double(a)))
}

fn tangent(a: Finite) -> Extended {
    extended(libm::tan(double(a)))
}

/// A function of an angle, which for some pushes a second result. Angles from 2^63 on are refused through C2.
fn angle(cpu: &mut Cpu, op: &Op, f: fn(Finite) -> (Extended, Option<Extended>)) -> Step {
    stack::begin(cpu, op)?;
    let fpu = &mut cpu.fpu;
    fpu.status &= !C2;
    let zero = Finite { negative: false, exponent: -16000, significand: 1 << 63 };
    let pushes = f(zero).1.is_some();
    let (outcome, second) = match fpu.operand(0) {
        None => (stack::underflow(), None),
        Some(a) => match (propagate(a, a), a.kind()) {
            (Some(nan), _) => (nan, None),
            (None, Kind::Finite(x)) if x.exponent >= 63 => {
                fpu.record(0, false);
                fpu.status |= C2;
                return Ok(());
            }
            (None, Kind::Finite(x)) => {
                let (first, second) = f(x);
                // What is linear is the operand itself, beyond the range of doubles too; a cosine is not.
                let linear = x.exponent < LINEAR && first != ONE;
                let first = if linear { a } else { first };
                (Outcome::flagged(first, PE | denormal_flag(a, a)), second)
            }
            (None, Kind::Zero) => {
                let (first, second) = f(zero);
                (Outcome::exact(if first == ONE { ONE } else { a }), second)
            }
            (None, _) => (invalid(), None),
        },
    };
    if pushes {
        fpu.replace_and_push(outcome, second.unwrap_or(outcome.value));
    } else {
        fpu.finish(0, outcome);
    }
    Ok(())
}

/// ST(1) = f(ST(0), ST(1)), and pops.
fn binary(cpu: &mut Cpu, op: &Op, f: fn(Extended, Extended) -> Outcome) -> Step {
    stack::begin(cpu, op)?;
    let outcome = cpu.fpu.operands(0, 1).map_or_else(stack::underflow, |(x, y)| f(x, y));
    if cpu.fpu.finish(1, outcome) {
        cpu.fpu.pop();
    }
    Ok(())
}

/// 2^x - 1.
fn power(_: Control, a: Extended) -> Outcome {
    if let Some(nan) = propagate(a, a) {
        return nan;
    }
    match a.kind() {
        Kind::Finite(x) if x.exponent < FLAT => multiply(NEAREST, a, LN_2).and(PE),
        Kind::Finite(x) => {
            let v = double(x);
            let result =
                if v.abs() < 0.5 { libm::expm1(v * core::f64::consts::LN_2) } else { libm::exp2(v) - 1.0 };
            Outcome::flagged(extended(result), PE)
        }
        Kind::Infinity if a.negative() => Outcome::exact(ONE.with_sign(true)),
        _ => Outcome::exact(a),
    }
}

/// The angle of the point (x, y).
fn arc_tangent(x: Extended, y: Extended) -> Outcome {
    if let Some(nan) = propagate(x, y) {
        return nan;
    }
    let flags = denormal_flag(x, y);
    let signed = |v: Extended, magnitude: f64| if v.negative() { -magnitude } else { magnitude };
    let coordinates = match (x.kind(), y.kind()) {
        (Kind::Finite(a), Kind::Finite(b)) => {
            if !a.negative && b.exponent - a.exponent < LINEAR {
                return divide(NEAREST, y, x).and(PE);
            }
            let largest = a.exponent.max(b.exponent);
            let scaled = |v: Finite| double(Finite { exponent: v.exponent - largest, ..v });
            (scaled(a), scaled(b))
        }
        (a, b) => {
            let plain = |v: Extended, kind: Kind| match kind {
                Kind::Zero => signed(v, 0.0),
                Kind::Infinity => signed(v, f64::INFINITY),
                _ => signed(v, 1.0),
            };
            (plain(x, a), plain(y, b))
        }
    };
    let result = libm::atan2(coordinates.1, coordinates.0);
    Outcome::flagged(extended(result), flags | if result == 0.0 { 0 } else { PE })
}

/// y * log2(x).
fn y_log2_x(x: Extended, y: Extended) -> Outcome {
    if let Some(nan) = propagate(x, y) {
        return nan;
    }
    let flags = denormal_flag(x, y);
    match x.kind() {
        Kind::Zero if y.kind() == Kind::Zero => invalid(),
        Kind::Zero if y.kind() == Kind::Infinity => Outcome::exact(Extended::infinity(!y.negative())),
        Kind::Zero => Outcome::flagged(Extended::infinity(!y.negative()), ZE),
        _ if x.negative() => invalid(),
        Kind::Finite(a) => {
            let exact = a.significand == 1 << 63;
            let log = if exact {
                f64::from(a.exponent)
            } else if a.exponent == 0 || a.exponent == -1 {
                // Near one, what counts is the distance from it, which is exact.
                match add(NEAREST, x, ONE, true).value.kind() {
                    Kind::Finite(distance) => libm::log1p(double(distance)) * core::f64::consts::LOG2_E,
                    _ => 0.0,
                }
            } else {
                f64::from(a.exponent) + libm::log2(double(Finite { exponent: 0, ..a }))
            };
            let inexact = if exact || y.kind() == Kind::Zero || y.kind() == Kind::Infinity { 0 } else { PE };
            let product = multiply(NEAREST, y, extended(log));
            if product.flags & super::number::IE != 0 { product } else { product.and(inexact | flags) }
        }
        // Infinity; times zero that is invalid.
        _ => multiply(NEAREST, y, x),
    }
}

/// y * log2(x + 1).
fn y_log2_x_plus_1(x: Extended, y: Extended) -> Outcome {
    if let Some(nan) = propagate(x, y) {
        return nan;
    }
    match x.kind() {
        Kind::Finite(a) if a.exponent < LINEAR => {
            multiply(NEAREST, multiply(NEAREST, x, LOG2_E).value, y).and(PE | denormal_flag(x, y))
        }
        Kind::Finite(a) => {
            let v = double(a);
            if v <= -1.0 {
                return invalid();
            }
            multiply(NEAREST, y, extended(libm::log1p(v) * core::f64::consts::LOG2_E)).and(PE)
        }
        Kind::Infinity if x.negative() => invalid(),
        // Zero and infinity: as by a product.
        _ => multiply(NEAREST, y, x),
    }
}
