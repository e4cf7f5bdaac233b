//! Results that processors only approximate: lane by lane the host's, where it is near enough to the engine's. These
//! instructions are alone in their programs (`forms::is_approximate`), so that the host's end shows what they left.

use super::super::State;
use super::Completion;
use iced_x86::Mnemonic;

/// Twice the error that is allowed: 1.5 * 2^-12.
const RECIPROCAL: f64 = 3.0 / 4096.0;
const FUNCTION: f64 = 1e-9;
/// In the x87 status: C1 (rounded up), precision, underflow, overflow.
const INEXACT: u16 = 0x238;
/// Exceptions in the control word: overflow, underflow, precision.
const MASKS: u8 = 0x38;

pub(super) const TRANSCENDENTAL: &[Mnemonic] = &[
    Mnemonic::Fsin,
    Mnemonic::Fcos,
    Mnemonic::Fsincos,
    Mnemonic::Fptan,
    Mnemonic::Fpatan,
    Mnemonic::F2xm1,
    Mnemonic::Fyl2x,
    Mnemonic::Fyl2xp1,
];

pub(super) fn reciprocal(it: &Completion<'_>) -> Vec<State> {
    let mut other = it.after.clone();
    let register = 160 + it.instruction.op0_register().number() * 16;
    let single = |b: &[u8]| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    for lane in (register..register + 16).step_by(4) {
        let lane = lane..lane + 4;
        if near(single(&other.fx[lane.clone()]), single(&it.host.fx[lane.clone()]), RECIPROCAL) {
            other.fx[lane.clone()].copy_from_slice(&it.host.fx[lane]);
        }
    }
    vec![other]
}

pub(super) fn transcendental(it: &Completion<'_>) -> Vec<State> {
    let (host, mut other) = (&it.host.fx, it.after.clone());
    let fx = &mut other.fx;
    let out_of_range = is_out_of_range(it.instruction.mnemonic(), &it.before.fx);
    if out_of_range {
        // Status and tags, and below the registers.
        fx[2..5].copy_from_slice(&host[2..5]);
    } else {
        // Exactness, direction of rounding, and what becomes of the tiny, are the approximation's own.
        let word = |fx: &[u8; 512]| u16::from_le_bytes([fx[2], fx[3]]);
        let status = word(fx) & !INEXACT | word(host) & INEXACT;
        fx[2..4].copy_from_slice(&status.to_le_bytes());
    }
    // Results are on top.
    let results =
        if matches!(it.instruction.mnemonic(), Mnemonic::Fsincos | Mnemonic::Fptan) { 2 } else { 1 };
    for st in 0..if out_of_range { 8 } else { results } {
        let register = 32 + st * 16..42 + st * 16;
        let (theirs, ours) = (&host[register.clone()], &mut fx[register]);
        if out_of_range || near(extended(theirs), extended(ours), FUNCTION) {
            ours.copy_from_slice(theirs);
        }
    }
    vec![other]
}

/// Whether an x87 function's argument is where its result is undefined, or so large that the processor's pi, of 66
/// bits, matters; or nothing comes of it but a stack fault.
fn is_out_of_range(mnemonic: Mnemonic, before: &[u8; 512]) -> bool {
    let argument = extended(&before[32..42]).abs();
    // Whether the register into which a second result would be pushed is full.
    let top = before[3] >> 3 & 7;
    let full = before[4] >> (top.wrapping_sub(1) & 7) & 1 != 0;
    // Whether something is tiny or inexact is an approximation's own affair; if it is an exception, all is.
    let unmasked = before[0] & MASKS != MASKS;
    match mnemonic {
        Mnemonic::F2xm1 => argument > 1.0 || unmasked,
        Mnemonic::Fyl2xp1 => argument > 0.29 || unmasked,
        Mnemonic::Fyl2x | Mnemonic::Fpatan => unmasked,
        Mnemonic::Fsin | Mnemonic::Fcos => argument > 1024.0 || unmasked,
        Mnemonic::Fsincos | Mnemonic::Fptan => argument > 1024.0 || full || unmasked,
        _ => false,
    }
}

/// A sign, exponent and mantissa as a number, near enough to compare approximations.
fn extended(bytes: &[u8]) -> f64 {
    let mantissa = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as f64;
    let top = u16::from_le_bytes([bytes[8], bytes[9]]);
    let exponent = i32::from(top & 0x7fff);
    let sign = if top & 0x8000 != 0 { -1.0 } else { 1.0 };
    if exponent == 0x7fff {
        return if mantissa == (1u64 << 63) as f64 { sign * f64::INFINITY } else { f64::NAN };
    }
    if exponent < 16383 - 900 {
        return 0.0;
    }
    sign * mantissa * 2f64.powi((exponent - 16383 - 63).clamp(-1000, 1000))
}

fn near(a: f64, b: f64, relative: f64) -> bool {
    a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= relative * a.abs().max(b.abs())
}
