//! Add, subtract, multiply, divide, square root, remainder, rounding to an integer, scaling.
//!
//! The four operations are done in quadruple precision by `rustc_apfloat`, toward zero, on operands scaled to exponents
//! near zero; the last bit keeps whether anything was lost. 113 bits rounded to odd are more than twice what any
//! precision control asks for plus two, so the one rounding that follows is that of the exact result.

use rustc_apfloat::ieee::Quad;
use rustc_apfloat::{Category, Float, Round, Status, StatusAnd};

use super::number::{
    BIAS, Control, DE, Finite, IE, INTEGER, Kind, Outcome, PE, Rounding, ZE, denormal_flag, invalid, pack,
    propagate, round, shift_right_sticky,
};
use crate::exec::fpu::state::Extended;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Operation {
    Add,
    Multiply,
    Subtract,
    /// Source minus destination.
    SubtractReversed,
    Divide,
    /// Source over destination.
    DivideReversed,
}

impl Operation {
    pub(super) fn of(number: u8) -> Operation {
        match number {
            0 => Operation::Add,
            1 => Operation::Multiply,
            2 => Operation::Subtract,
            3 => Operation::SubtractReversed,
            4 => Operation::Divide,
            _ => Operation::DivideReversed,
        }
    }

    /// Of the destination and the source; `flags` are what loading the source has raised.
    pub(super) fn apply(self, control: Control, a: Extended, b: Extended) -> Outcome {
        match self {
            Operation::Add => add(control, a, b, false),
            Operation::Multiply => multiply(control, a, b),
            Operation::Subtract => add(control, a, b, true),
            Operation::SubtractReversed => add(control, b, a, true),
            Operation::Divide => divide(control, a, b),
            Operation::DivideReversed => divide(control, b, a),
        }
    }
}

/// The number at another exponent, in quadruple precision.
fn quad(number: Finite, exponent: i32) -> Quad {
    let fraction = u128::from(number.significand & !INTEGER) << (112 - 63);
    let biased = (exponent + BIAS) as u128 & 0x7fff;
    Quad::from_bits(u128::from(number.negative) << 127 | biased << 112 | fraction)
}

/// Sign, exponent and significand (top bit at 127, last bit sticky) of a result; none if it is zero.
fn parts(result: StatusAnd<Quad>) -> Option<(bool, i32, u128)> {
    if result.value.category() != Category::Normal {
        return None;
    }
    let bits = result.value.to_bits();
    let exponent = (bits >> 112 & 0x7fff) as i32 - BIAS;
    let sticky = u128::from(result.status.contains(Status::INEXACT));
    Some((bits >> 127 == 1, exponent, 1 << 127 | bits << 16 >> 1 | sticky))
}

pub(super) fn add(control: Control, a: Extended, b: Extended, subtract: bool) -> Outcome {
    if let Some(nan) = propagate(a, b) {
        return nan;
    }
    let b = b.with_sign(b.negative() != subtract);
    let flags = denormal_flag(a, b);
    let zero = Extended::zero(control.rounding == Rounding::Down);
    match (a.kind(), b.kind()) {
        (Kind::Infinity, Kind::Infinity) if a.negative() != b.negative() => invalid(),
        (Kind::Infinity, _) => Outcome::flagged(a, flags),
        (_, Kind::Infinity) => Outcome::flagged(b, flags),
        (Kind::Zero, Kind::Zero) if a.negative() == b.negative() => Outcome::exact(a),
        (Kind::Zero, Kind::Zero) => Outcome::exact(zero),
        (Kind::Finite(x), Kind::Zero) | (Kind::Zero, Kind::Finite(x)) => {
            pack(control, x.negative, x.exponent, u128::from(x.significand) << 64).and(flags)
        }
        (Kind::Finite(x), Kind::Finite(y)) => {
            let (large, small) = if x.exponent >= y.exponent { (x, y) } else { (y, x) };
            // Farther apart than this the smaller one is only a sticky bit, wherever it lies.
            let apart = (large.exponent - small.exponent).min(200);
            let sum = quad(large, 0).add_r(quad(small, -apart), Round::TowardZero);
            match parts(sum) {
                Some((negative, exponent, significand)) => {
                    pack(control, negative, exponent + large.exponent, significand).and(flags)
                }
                None => Outcome::flagged(zero, flags),
            }
        }
        _ => invalid(),
    }
}

pub(super) fn multiply(control: Control, a: Extended, b: Extended) -> Outcome {
    if let Some(nan) = propagate(a, b) {
        return nan;
    }
    let flags = denormal_flag(a, b);
    let negative = a.negative() != b.negative();
    match (a.kind(), b.kind()) {
        (Kind::Infinity, Kind::Zero) | (Kind::Zero, Kind::Infinity) => invalid(),
        (Kind::Infinity, _) | (_, Kind::Infinity) => Outcome::flagged(Extended::infinity(negative), flags),
        (Kind::Finite(x), Kind::Finite(y)) => {
            let product = quad(x, 0).mul_r(quad(y, 0), Round::TowardZero);
            finish(control, product, x.exponent + y.exponent).and(flags)
        }
        _ => Outcome::flagged(Extended::zero(negative), flags),
    }
}

pub(super) fn divide(control: Control, a: Extended, b: Extended) -> Outcome {
    if let Some(nan) = propagate(a, b) {
        return nan;
    }
    let flags = denormal_flag(a, b);
    let negative = a.negative() != b.negative();
    match (a.kind(), b.kind()) {
        (Kind::Infinity, Kind::Infinity) | (Kind::Zero, Kind::Zero) => invalid(),
        (Kind::Infinity, _) => Outcome::flagged(Extended::infinity(negative), flags),
        (Kind::Finite(_), Kind::Zero) => Outcome::flagged(Extended::infinity(negative), ZE),
        (Kind::Finite(x), Kind::Finite(y)) => {
            let quotient = quad(x, 0).div_r(quad(y, 0), Round::TowardZero);
            finish(control, quotient, x.exponent - y.exponent).and(flags)
        }
        _ => Outcome::flagged(Extended::zero(negative), flags),
    }
}

/// Rounds a product or a quotient, which is never zero.
fn finish(control: Control, result: StatusAnd<Quad>, scale: i32) -> Outcome {
    match parts(result) {
        Some((negative, exponent, significand)) => pack(control, negative, exponent + scale, significand),
        None => invalid(),
    }
}

/// A root is found exactly as an integer: there is none in the soft-float crate.
pub(super) fn square_root(control: Control, a: Extended) -> Outcome {
    if let Some(nan) = propagate(a, a) {
        return nan;
    }
    match a.kind() {
        Kind::Zero => Outcome::exact(a),
        _ if a.negative() => invalid(),
        Kind::Finite(x) => {
            // An even exponent, and a radicand from 2^126 on: the root has exactly 64 bits.
            let radicand = u128::from(x.significand) << if x.exponent & 1 == 0 { 63 } else { 64 };
            let root = radicand.isqrt();
            let rest = radicand - root * root;
            // Two more bits: above the middle between this root and the next one, or not, or exact. It is never the
            // middle.
            let tail: u128 = if rest == 0 {
                0
            } else if rest > root {
                3
            } else {
                1
            };
            pack(control, false, x.exponent >> 1, root << 64 | tail << 62).and(denormal_flag(a, a))
        }
        _ => Outcome::exact(a),
    }
}

/// FRNDINT.
pub(super) fn to_integral(control: Control, a: Extended) -> Outcome {
    if let Some(nan) = propagate(a, a) {
        return nan;
    }
    match a.kind() {
        Kind::Finite(x) if x.exponent < 63 => {
            let significand =
                shift_right_sticky(u128::from(x.significand) << 63, (-1 - x.exponent).max(0) as u32);
            // Now the binary point is above bit 126 - exponent, or above bit 127 for numbers below one half.
            let dropped = (126 - x.exponent).min(127) as u32;
            let (kept, inexact, up) = round(control.rounding, x.negative, significand, dropped);
            let value = u64::try_from(kept).unwrap_or(0);
            let value = match value {
                0 => Extended::zero(x.negative),
                _ => {
                    let shift = value.leading_zeros();
                    Extended { significand: value << shift, sign_exponent: (BIAS + 63) as u16 - shift as u16 }
                        .with_sign(x.negative)
                }
            };
            let flags = if inexact { PE } else { 0 };
            Outcome { value, flags: flags | denormal_flag(a, a), up }
        }
        _ => Outcome::exact(a),
    }
}

/// FSCALE: ST(0) times two to the power of ST(1) cut to an integer.
pub(super) fn scale(control: Control, a: Extended, b: Extended) -> Outcome {
    if let Some(nan) = propagate(a, b) {
        return nan;
    }
    let flags = denormal_flag(a, b);
    match (a.kind(), b.kind()) {
        (Kind::Zero, Kind::Infinity) if !b.negative() => invalid(),
        (Kind::Infinity, Kind::Infinity) if b.negative() => invalid(),
        (_, Kind::Infinity) if b.negative() => Outcome::flagged(Extended::zero(a.negative()), flags),
        (_, Kind::Infinity) => Outcome::flagged(Extended::infinity(a.negative()), flags),
        (Kind::Finite(x), by) => {
            // Beyond 2^17 the result has overflowed or underflowed whatever the number. By zero, too, a denormal number
            // underflows if that is unmasked.
            let by = match by {
                Kind::Finite(y) => {
                    let by = match y.exponent {
                        ..0 => 0,
                        0..17 => (y.significand >> (63 - y.exponent)) as i32,
                        _ => 1 << 17,
                    };
                    if y.negative { -by } else { by }
                }
                _ => 0,
            };
            pack(control.extended(), x.negative, x.exponent + by, u128::from(x.significand) << 64).and(flags)
        }
        _ => Outcome::flagged(a, flags),
    }
}

/// FXTRACT: significand and exponent.
pub(super) fn extract(a: Extended) -> (Extended, Outcome) {
    if let Some(nan) = propagate(a, a) {
        return (nan.value, nan);
    }
    match a.kind() {
        Kind::Zero => (a, Outcome::flagged(Extended::infinity(true), ZE)),
        Kind::Finite(x) => {
            let significand =
                Extended { significand: x.significand, sign_exponent: BIAS as u16 }.with_sign(x.negative);
            let exponent = Extended::from_i64(x.exponent.into());
            (significand, Outcome::flagged(exponent, denormal_flag(a, a)))
        }
        _ => (a, Outcome::exact(Extended::infinity(false))),
    }
}

/// How far FPREM or FPREM1 came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reduction {
    Partial,
    /// With the quotient's low three bits.
    Complete(u8),
    /// The operands had no quotient.
    Special,
}

/// The remainder of `a` by `b`, with the quotient cut (FPREM) or rounded to nearest (FPREM1). A difference of exponents
/// of 64 or more is only reduced, by 32 to 63.
pub(super) fn remainder(control: Control, a: Extended, b: Extended, nearest: bool) -> (Outcome, Reduction) {
    if let Some(nan) = propagate(a, b) {
        return (nan, Reduction::Special);
    }
    let flags = denormal_flag(a, b);
    // Always exact, but it may underflow.
    let exact = Control { rounding: Rounding::Nearest, precision: 64, ..control };
    let back = |negative: bool, exponent: i32, significand: u128| {
        if significand == 0 {
            return Outcome::flagged(Extended::zero(negative), flags);
        }
        // The significand counts units of 2^(exponent - 63).
        let shift = significand.leading_zeros();
        pack(exact, negative, exponent + 64 - shift as i32, significand << shift).and(flags)
    };
    let unchanged = |x: Finite| (back(x.negative, x.exponent, x.significand.into()), Reduction::Complete(0));
    let (x, y) = match (a.kind(), b.kind()) {
        (Kind::Infinity, _) | (_, Kind::Zero) => return (invalid(), Reduction::Special),
        (Kind::Finite(x), Kind::Finite(y)) => (x, y),
        (Kind::Finite(x), _) => return unchanged(x),
        _ => return (Outcome::flagged(a, flags), Reduction::Complete(0)),
    };
    let divisor = u128::from(y.significand);
    let apart = x.exponent - y.exponent;
    if apart >= 64 {
        // Subtracts a multiple of b * 2^(apart - step), so that what is left is below that.
        let step = (apart & 0x1f) | 0x20;
        let mut rest = u128::from(x.significand);
        rest %= divisor;
        for _ in 0..step {
            rest = (rest << 1) % divisor;
        }
        return (back(x.negative, x.exponent - step, rest), Reduction::Partial);
    }
    if apart < -1 || apart < 0 && !nearest {
        return unchanged(x);
    }
    if apart == -1 {
        // Less than the divisor; more than half of it rounds up to one of it.
        let twice_b = divisor << 1;
        let value = u128::from(x.significand);
        if value <= divisor {
            return unchanged(x);
        }
        let outcome = back(!x.negative, x.exponent, twice_b - value);
        return (outcome, Reduction::Complete(1));
    }
    let value = u128::from(x.significand);
    let mut quotient = u128::from(value >= divisor);
    let mut rest = value % divisor;
    for _ in 0..apart {
        rest <<= 1;
        quotient = quotient << 1 & 7 | u128::from(rest >= divisor);
        rest %= divisor;
    }
    let mut negative = x.negative;
    if nearest && (rest << 1 > divisor || rest << 1 == divisor && quotient & 1 == 1) {
        rest = divisor - rest;
        negative = !negative;
        quotient += 1;
    }
    (back(negative, y.exponent, rest), Reduction::Complete(quotient as u8 & 7))
}

/// How two numbers compare; none if one is a NaN or unsupported.
pub(super) fn compare(a: Extended, b: Extended) -> Option<core::cmp::Ordering> {
    if propagate(a, b).is_some() {
        return None;
    }
    // Sign and magnitude, zeros alike; a pseudo-denormal has its true exponent of one.
    let key = |v: Extended| {
        let exponent = match v.kind() {
            Kind::Zero => return 0,
            Kind::Finite(_) if v.significand & INTEGER != 0 => (v.sign_exponent & 0x7fff).max(1),
            _ => v.sign_exponent & 0x7fff,
        };
        let magnitude = i128::from(exponent) << 64 | i128::from(v.significand);
        if v.negative() { -magnitude } else { magnitude }
    };
    Some(key(a).cmp(&key(b)))
}

/// Flags of a comparison: `quiet` lets quiet NaNs pass.
pub(super) fn compare_flags(a: Extended, b: Extended, quiet: bool) -> u16 {
    match propagate(a, b) {
        Some(nan) if quiet => nan.flags,
        Some(_) => IE,
        None => denormal_flag(a, b),
    }
}

/// An integer of `bits` (16, 32 or 64), rounded; the most negative one for what does not fit.
pub(super) fn to_integer(control: Control, a: Extended, bits: u32) -> Outcome<i64> {
    let indefinite = Outcome::flagged(i64::MIN >> (64 - bits), IE);
    match a.kind() {
        Kind::Zero => Outcome::exact(0),
        Kind::Finite(x) if x.exponent < 64 => {
            let rounded = if x.exponent == 63 {
                Outcome::exact(Extended { significand: x.significand, sign_exponent: (BIAS + 63) as u16 })
            } else {
                to_integral(control, a)
            };
            let magnitude = match rounded.value.kind() {
                Kind::Finite(r) if r.exponent <= 63 => r.significand >> (63 - r.exponent),
                Kind::Finite(_) => return indefinite,
                _ => 0,
            };
            let limit = 1u64 << (bits - 1);
            if magnitude > limit || magnitude == limit && !x.negative {
                return indefinite;
            }
            let value = if x.negative { (magnitude as i64).wrapping_neg() } else { magnitude as i64 };
            // A denormal operand is not an exception here.
            Outcome { value, flags: rounded.flags & !DE, up: rounded.up }
        }
        _ => indefinite,
    }
}
