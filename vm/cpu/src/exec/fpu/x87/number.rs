//! Extended precision numbers: the kind of a register's bits, and rounding a result of any exponent into 80 bits, as
//! the precision and rounding controls say. Nothing here knows of the register stack.

use super::super::state::Extended;

/// Exception flags, as in the status word.
pub(super) const IE: u16 = 0x01;
pub(super) const DE: u16 = 0x02;
pub(super) const ZE: u16 = 0x04;
pub(super) const OE: u16 = 0x08;
pub(super) const UE: u16 = 0x10;
pub(super) const PE: u16 = 0x20;
pub(super) const SF: u16 = 0x40;

pub(super) const INTEGER: u64 = 1 << 63;
const QUIET: u64 = 1 << 62;
pub(super) const BIAS: i32 = 16383;
/// Exponent of the smallest normal number.
const MIN: i32 = 1 - BIAS;
/// What an unmasked overflow or underflow moves the exponent by, to bring it back into range.
const WRAP: i32 = 24576;

/// The default NaN ("real indefinite").
pub(super) const INDEFINITE: Extended = Extended { significand: INTEGER | QUIET, sign_exponent: 0xffff };

/// A number taken apart: (-1)^negative * significand / 2^63 * 2^exponent, with the significand's top bit set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finite {
    pub negative: bool,
    pub exponent: i32,
    pub significand: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Zero,
    /// Denormals and pseudo-denormals too, normalised.
    Finite(Finite),
    Infinity,
    Quiet,
    Signalling,
    /// An exponent without the integer bit: an operand as invalid as a signalling NaN.
    Unsupported,
}

impl Extended {
    pub(super) fn negative(self) -> bool {
        self.sign_exponent >> 15 == 1
    }

    fn biased(self) -> u16 {
        self.sign_exponent & 0x7fff
    }

    pub(super) fn kind(self) -> Kind {
        match (self.biased(), self.significand) {
            (0, 0) => Kind::Zero,
            (0, significand) => {
                let shift = significand.leading_zeros();
                Kind::Finite(Finite {
                    negative: self.negative(),
                    exponent: MIN - shift as i32,
                    significand: significand << shift,
                })
            }
            (_, significand) if significand & INTEGER == 0 => Kind::Unsupported,
            (0x7fff, INTEGER) => Kind::Infinity,
            (0x7fff, significand) if significand & QUIET != 0 => Kind::Quiet,
            (0x7fff, _) => Kind::Signalling,
            (biased, significand) => Kind::Finite(Finite {
                negative: self.negative(),
                exponent: i32::from(biased) - BIAS,
                significand,
            }),
        }
    }

    pub(super) fn is_denormal(self) -> bool {
        self.biased() == 0 && self.significand != 0
    }

    pub(super) fn zero(negative: bool) -> Extended {
        Extended { significand: 0, sign_exponent: u16::from(negative) << 15 }
    }

    pub(super) fn infinity(negative: bool) -> Extended {
        Extended { significand: INTEGER, sign_exponent: 0x7fff | u16::from(negative) << 15 }
    }

    pub(super) fn with_sign(self, negative: bool) -> Extended {
        Extended { sign_exponent: self.sign_exponent & 0x7fff | u16::from(negative) << 15, ..self }
    }

    pub(super) fn quieted(self) -> Extended {
        Extended { significand: self.significand | QUIET, ..self }
    }

    pub(in super::super) fn from_i64(value: i64) -> Extended {
        if value == 0 {
            return Extended::default();
        }
        let magnitude = value.unsigned_abs();
        let shift = magnitude.leading_zeros();
        Extended {
            significand: magnitude << shift,
            sign_exponent: (BIAS as u16 + 63 - shift as u16) | u16::from(value < 0) << 15,
        }
    }

    /// The same value, NaN and signalling NaN included; whether it was a denormal single.
    pub(super) fn from_single(v: u32) -> (Extended, bool) {
        let fraction = u64::from(v & 0x7f_ffff) << 40;
        Extended::widen(v >> 31 == 1, (v >> 23 & 0xff) as u16, 0xff, 127, fraction)
    }

    pub(super) fn from_double(v: u64) -> (Extended, bool) {
        let fraction = (v & 0xf_ffff_ffff_ffff) << 11;
        Extended::widen(v >> 63 == 1, (v >> 52 & 0x7ff) as u16, 0x7ff, 1023, fraction)
    }

    fn widen(negative: bool, biased: u16, all_ones: u16, bias: u16, fraction: u64) -> (Extended, bool) {
        let sign = u16::from(negative) << 15;
        let shifted = BIAS as u16 - bias;
        match biased {
            0 if fraction == 0 => (Extended::zero(negative), false),
            0 => {
                let shift = fraction.leading_zeros();
                (
                    Extended {
                        significand: fraction << shift,
                        sign_exponent: sign | (shifted + 1 - shift as u16),
                    },
                    true,
                )
            }
            b if b == all_ones => {
                (Extended { significand: INTEGER | fraction, sign_exponent: sign | 0x7fff }, false)
            }
            b => (Extended { significand: INTEGER | fraction, sign_exponent: sign | (b + shifted) }, false),
        }
    }
}

/// What an operation gives: its value with exceptions masked, the flags, and whether it was rounded away from zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome<T = Extended> {
    pub value: T,
    pub flags: u16,
    pub up: bool,
}

impl<T> Outcome<T> {
    pub(super) fn exact(value: T) -> Outcome<T> {
        Outcome { value, flags: 0, up: false }
    }

    pub(super) fn flagged(value: T, flags: u16) -> Outcome<T> {
        Outcome { value, flags, up: false }
    }

    /// The same with more flags.
    pub(super) fn and(self, flags: u16) -> Outcome<T> {
        Outcome { flags: self.flags | flags, ..self }
    }
}

pub(super) fn invalid() -> Outcome {
    Outcome::flagged(INDEFINITE, IE)
}

/// The result of an operation with a NaN or an unsupported operand; none if there is neither. Of two NaNs the quiet one
/// wins over the signalling one, else the larger significand, else the positive.
pub(super) fn propagate(a: Extended, b: Extended) -> Option<Outcome> {
    use Kind::{Quiet, Signalling, Unsupported};
    let (ka, kb) = (a.kind(), b.kind());
    if ka == Unsupported || kb == Unsupported {
        return Some(invalid());
    }
    let flags = if ka == Signalling || kb == Signalling { IE } else { 0 };
    let value = match (ka, kb) {
        (Quiet, Quiet) | (Signalling, Signalling) => {
            let larger_a = match a.significand.cmp(&b.significand) {
                core::cmp::Ordering::Equal => !a.negative(),
                order => order.is_gt(),
            };
            if larger_a { a } else { b }
        }
        (Quiet, _) => a,
        (_, Quiet) => b,
        (Signalling, _) => a,
        (_, Signalling) => b,
        _ => return None,
    };
    Some(Outcome::flagged(value.quieted(), flags))
}

/// [`DE`] if one of the operands is denormal.
pub(super) fn denormal_flag(a: Extended, b: Extended) -> u16 {
    if a.is_denormal() || b.is_denormal() { DE } else { 0 }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    Nearest,
    Down,
    Up,
    Zero,
}

/// How a result is rounded, from the control word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Control {
    pub rounding: Rounding,
    /// Bits of significand: 24, 53 or 64.
    pub precision: u32,
    pub overflow_masked: bool,
    pub underflow_masked: bool,
}

impl Control {
    pub(super) fn new(word: u16) -> Control {
        Control {
            rounding: match word >> 10 & 3 {
                0 => Rounding::Nearest,
                1 => Rounding::Down,
                2 => Rounding::Up,
                _ => Rounding::Zero,
            },
            precision: match word >> 8 & 3 {
                0 => 24,
                2 => 53,
                // One is reserved; it does as extended precision does.
                _ => 64,
            },
            overflow_masked: word & OE != 0,
            underflow_masked: word & UE != 0,
        }
    }

    pub(super) fn extended(self) -> Control {
        Control { precision: 64, ..self }
    }
}

/// `significand` with `dropped` low bits (at most 127) rounded away: what is left, whether that was inexact, and
/// whether it went up.
pub(super) fn round(
    rounding: Rounding,
    negative: bool,
    significand: u128,
    dropped: u32,
) -> (u128, bool, bool) {
    if dropped == 0 {
        return (significand, false, false);
    }
    let kept = significand >> dropped;
    let rest = significand & ((1 << dropped) - 1);
    let half = 1 << (dropped - 1);
    let up = match rounding {
        Rounding::Nearest => rest > half || rest == half && kept & 1 == 1,
        Rounding::Down => negative && rest != 0,
        Rounding::Up => !negative && rest != 0,
        Rounding::Zero => false,
    };
    (kept + u128::from(up), rest != 0, up)
}

/// Shifts right; what falls out is remembered in the last bit.
pub(super) fn shift_right_sticky(significand: u128, by: u32) -> u128 {
    match by {
        0 => significand,
        1..128 => significand >> by | u128::from(significand << (128 - by) != 0),
        _ => u128::from(significand != 0),
    }
}

/// A binary format's range.
#[derive(Clone, Copy)]
pub(super) struct Format {
    pub precision: u32,
    pub min: i32,
    pub max: i32,
    /// For an unmasked overflow or underflow in a register.
    wrap: Option<i32>,
}

pub(super) const SINGLE: Format = Format { precision: 24, min: -126, max: 127, wrap: None };
pub(super) const DOUBLE: Format = Format { precision: 53, min: -1022, max: 1023, wrap: None };

/// A rounded magnitude.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounded {
    Infinity,
    /// `significand` of the format's precision; without its top bit it is denormal, of the smallest exponent.
    Finite {
        exponent: i32,
        significand: u64,
    },
}

/// Rounds (-1)^negative * significand / 2^127 * 2^exponent, where the significand has its top bit set and its last bit
/// stands for anything nonzero below it. Tininess is seen after rounding.
pub(super) fn round_to(
    format: Format,
    control: Control,
    negative: bool,
    exponent: i32,
    significand: u128,
) -> Outcome<Rounded> {
    let dropped = 128 - format.precision;
    let top = 1u128 << (format.precision - 1);
    let unbounded = |mut exponent: i32| {
        let (mut kept, inexact, up) = round(control.rounding, negative, significand, dropped);
        if kept == top << 1 {
            kept = top;
            exponent += 1;
        }
        (exponent, kept as u64, inexact, up)
    };
    let (mut rounded_exponent, kept, inexact, up) = unbounded(exponent);
    let precision_flag = |inexact: bool| if inexact { PE } else { 0 };

    if rounded_exponent < format.min {
        if !control.underflow_masked {
            rounded_exponent += format.wrap.unwrap_or(0);
            if format.wrap.is_some() && rounded_exponent < format.min {
                // Only FSCALE gets so far: too small even so.
                let value = Rounded::Finite { exponent: format.min, significand: 0 };
                return Outcome { value, flags: UE | PE, up: false };
            }
            return Outcome {
                value: Rounded::Finite { exponent: rounded_exponent, significand: kept },
                flags: UE | precision_flag(inexact),
                up,
            };
        }
        let shifted = shift_right_sticky(significand, (format.min - exponent) as u32);
        let (kept, inexact, up) = round(control.rounding, negative, shifted, dropped);
        let flags = if inexact { UE | PE } else { 0 };
        return Outcome {
            value: Rounded::Finite { exponent: format.min, significand: kept as u64 },
            flags,
            up,
        };
    }
    if rounded_exponent > format.max {
        if !control.overflow_masked {
            rounded_exponent -= format.wrap.unwrap_or(0);
            if format.wrap.is_some() && rounded_exponent > format.max {
                return Outcome { value: Rounded::Infinity, flags: OE | PE, up: true };
            }
            return Outcome {
                value: Rounded::Finite { exponent: rounded_exponent, significand: kept },
                flags: OE | precision_flag(inexact),
                up,
            };
        }
        let infinite = match control.rounding {
            Rounding::Nearest => true,
            Rounding::Down => negative,
            Rounding::Up => !negative,
            Rounding::Zero => false,
        };
        let largest = Rounded::Finite { exponent: format.max, significand: (top | (top - 1)) as u64 };
        let value = if infinite { Rounded::Infinity } else { largest };
        return Outcome { value, flags: OE | PE, up: infinite };
    }
    let value = Rounded::Finite { exponent: rounded_exponent, significand: kept };
    Outcome { value, flags: precision_flag(inexact), up }
}

/// Rounds as [`round_to`] into a register, to the control word's precision. A denormal is rounded at the same bit as a
/// normal number of that precision, since a register has one place for it.
pub(super) fn pack(control: Control, negative: bool, exponent: i32, significand: u128) -> Outcome {
    let format = Format { precision: control.precision, min: MIN, max: BIAS, wrap: Some(WRAP) };
    let outcome = round_to(format, control, negative, exponent, significand);
    let value = match outcome.value {
        Rounded::Infinity => Extended::infinity(negative),
        Rounded::Finite { exponent, significand } => {
            let significand = significand << (64 - control.precision);
            let biased = if significand & INTEGER == 0 { 0 } else { (exponent + BIAS) as u16 & 0x7fff };
            Extended { significand, sign_exponent: biased | u16::from(negative) << 15 }
        }
    };
    Outcome { value, flags: outcome.flags, up: outcome.up }
}
