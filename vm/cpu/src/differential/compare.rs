//! What must be the same on both sides, and what need not be.

use super::assemble::{Assembled, Program};
use super::forms::Image;
use super::generate::undefined_after_instruction;
use super::{Outcome, SCRATCH, WINDOW, WINDOW_BYTES, native};
use iced_x86::{Code, Mnemonic, RflagsBits};

/// Flags by the decoder's name for them and by their place in RFLAGS, then in the x87 status word.
const FLAGS: [(u32, u64); 7] = [
    (RflagsBits::OF, 1 << 11),
    (RflagsBits::SF, 1 << 7),
    (RflagsBits::ZF, 1 << 6),
    (RflagsBits::AF, 1 << 4),
    (RflagsBits::CF, 1),
    (RflagsBits::PF, 1 << 2),
    (RflagsBits::DF, 1 << 10),
];
const CONDITIONS: [(u32, u16); 4] = [
    (RflagsBits::C0, 1 << 8),
    (RflagsBits::C1, 1 << 9),
    (RflagsBits::C2, 1 << 10),
    (RflagsBits::C3, 1 << 14),
];
/// What is above may belong to the host's kernel.
const HOST_KERNEL: u64 = 0x7fff_ffff_0000;
/// In MXCSR: overflow, underflow, precision.
const OE: u16 = 8;
const UE: u16 = 16;
const PE: u16 = 32;
/// Set in the flags that faults leave, and not the program's.
const RF: u64 = 1 << 16;

/// Which exception ended a program, in the words of the architecture.
fn exception(outcome: &Outcome) -> String {
    let name = match outcome.vector {
        0 => "#DE",
        1 => "#DB",
        3 => "#BP",
        6 => "#UD",
        12 => "#SS",
        13 => "#GP",
        14 => "#PF",
        16 => "#MF",
        17 => "#AC",
        19 => "#XM",
        _ => "vector",
    };
    let cr2 = outcome.cr2.map_or(String::new(), |at| format!(" cr2={at:#x}"));
    let error = match native::has_error_code(outcome.vector) {
        true => format!("({:#x})", outcome.error),
        false => String::new(),
    };
    format!("{name}[{}]{error} at {:#x}{cr2}", outcome.vector, outcome.rip)
}

/// The flags and x87 condition codes that the program leaves undefined where it ended.
fn undefined(program: &Program, assembled: &Assembled, rip: u64) -> (u64, u16) {
    // As the generator does, but over the instructions that were reached; those that were jumped over count as if they
    // might not have run.
    let mut undefined = 0;
    for (instruction, &address) in program.instructions().zip(&assembled.addresses) {
        if address >= rip {
            break;
        }
        undefined = undefined_after_instruction(instruction, undefined) | jumped_over(program, undefined);
    }
    let flags = FLAGS.iter().filter(|(name, _)| undefined & name != 0).map(|(_, bit)| bit).sum();
    let conditions = CONDITIONS.iter().filter(|(name, _)| undefined & name != 0).map(|(_, bit)| bit).sum();
    (flags, conditions)
}

/// In a program with branches what is once undefined stays so.
fn jumped_over(program: &Program, undefined: u32) -> u32 {
    let branches =
        program.instructions().any(|i| i.near_branch_target() != 0 || i.is_ip_rel_memory_operand());
    if branches { undefined } else { 0 }
}

fn word(fx: &[u8; 512], at: usize) -> u16 {
    u16::from_le_bytes([fx[at], fx[at + 1]])
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

/// How an instruction's outcome on the host may differ from the engine's.
#[derive(Clone, Copy, PartialEq)]
enum Known {
    /// Results are within this relative error; x87 flags may differ in C1 and precision.
    Approximate(f64),
    /// When it faults: x87 top of stack and tags (it has, or has not, gone over to MMX).
    FaultsInMmx,
    /// When it page faults: the address within the page.
    FaultAddress,
    /// When both operands fault, which one is reported.
    FaultOrder,
    /// When its access faults on the host nothing is compared.
    MayFault,
}

/// The known differences, each with its reason.
const KNOWN: &[(&[Mnemonic], Known, &str)] = &[
    (
        &[Mnemonic::Rcpps, Mnemonic::Rcpss, Mnemonic::Rsqrtps, Mnemonic::Rsqrtss],
        Known::Approximate(3.0 / 4096.0),
        "the architecture bounds the error at 1.5 * 2^-12; vendors fill the bound differently",
    ),
    (
        &[
            Mnemonic::Fsin,
            Mnemonic::Fcos,
            Mnemonic::Fsincos,
            Mnemonic::Fptan,
            Mnemonic::Fpatan,
            Mnemonic::F2xm1,
            Mnemonic::Fyl2x,
            Mnemonic::Fyl2xp1,
        ],
        Known::Approximate(1e-9),
        "vendors differ in the last places; the engine computes them in double precision",
    ),
    (
        &[
            Mnemonic::Cvtpi2ps,
            Mnemonic::Cvtps2pi,
            Mnemonic::Cvttps2pi,
            Mnemonic::Cvtpd2pi,
            Mnemonic::Cvttpd2pi,
            Mnemonic::Maskmovq,
        ],
        Known::FaultsInMmx,
        "AMD's processors go over to MMX before they find that the instruction faults, Intel's after",
    ),
    (
        &[
            Mnemonic::Fldenv,
            Mnemonic::Fnstenv,
            Mnemonic::Frstor,
            Mnemonic::Fnsave,
            Mnemonic::Fxsave,
            Mnemonic::Fxsave64,
            Mnemonic::Fxrstor,
            Mnemonic::Fxrstor64,
        ],
        Known::FaultAddress,
        "AMD's processors try the last byte first",
    ),
    (
        &[Mnemonic::Cmpsb, Mnemonic::Cmpsw, Mnemonic::Cmpsd, Mnemonic::Cmpsq],
        Known::FaultOrder,
        "AMD's processors read the second operand first",
    ),
    (
        &[Mnemonic::Maskmovq, Mnemonic::Maskmovdqu],
        Known::MayFault,
        "whether bytes that are masked out can fault, and which address is reported, is the processor's choice",
    ),
];

fn known(code: Code) -> impl Iterator<Item = Known> {
    KNOWN.iter().filter(move |(names, ..)| names.contains(&code.mnemonic())).map(|&(_, known, _)| known)
}

/// Whether an x87 function's argument is where its result is undefined, or so large that the processor's pi, of 66 bits,
/// matters; or nothing comes of it but a stack fault.
fn beyond_range(mnemonic: Mnemonic, program: &Program) -> bool {
    let fx = &program.state.fx;
    let argument = extended(&fx[32..42]).abs();
    // Whether the register into which a second result would be pushed is full.
    let top = fx[3] >> 3 & 7;
    let full = fx[4] >> (top.wrapping_sub(1) & 7) & 1 != 0;
    // Whether something is tiny or inexact is an approximation's own affair; if it is an exception, all is.
    let unmasked = fx[0] & 0x38 != 0x38;
    match mnemonic {
        Mnemonic::F2xm1 => argument > 1.0 || unmasked,
        Mnemonic::Fyl2xp1 => argument > 0.29 || unmasked,
        Mnemonic::Fyl2x | Mnemonic::Fpatan => unmasked,
        Mnemonic::Fsin | Mnemonic::Fcos => argument > 1024.0 || unmasked,
        Mnemonic::Fsincos | Mnemonic::Fptan => argument > 1024.0 || full || unmasked,
        _ => false,
    }
}

/// Every difference, as lines; none when the outcomes agree. `native` first.
pub(super) fn differences(
    program: &Program,
    assembled: &Assembled,
    host: &Outcome,
    soft: &Outcome,
) -> Vec<String> {
    let mut lines = Vec::new();
    // What the instruction that ended the program may do differently.
    let last =
        program.instructions().zip(&assembled.addresses).find(|&(_, &at)| at == host.rip).map(|(i, _)| i);
    let last = |what: Known| last.is_some_and(|i| known(i.code()).any(|known| known == what));
    let mut soft = soft.clone();
    // The host has AMD's mask of misalignment, which the engine does not offer, and the program has set it.
    if host.fx[26] & 2 != 0 && soft.fx[26] & 2 == 0 {
        return Vec::new();
    }
    if last(Known::MayFault) && matches!(host.vector, 12..=14) {
        return Vec::new();
    }
    if last(Known::FaultAddress) && host.cr2.map(|at| at >> 12) == soft.cr2.map(|at| at >> 12) {
        soft.cr2 = host.cr2;
    }
    let faults = [12, 13, 14];
    if last(Known::FaultOrder) && faults.contains(&host.vector) && faults.contains(&soft.vector) {
        (soft.vector, soft.error, soft.cr2) = (host.vector, host.error, host.cr2);
    }
    // PE beside an unmasked overflow or underflow says whether the result would be inexact if exponents were unbounded.
    // The engine has it as if the exception were masked.
    let mxcsr = word(&host.fx, 24);
    if host.vector == 19 && mxcsr & !(mxcsr >> 7) & (OE | UE) != 0 {
        soft.fx[24] = soft.fx[24] & !(PE as u8) | host.fx[24] & PE as u8;
    }
    if last(Known::FaultsInMmx) {
        soft.fx[2..5].copy_from_slice(&host.fx[2..5]);
        soft.fx[32..160].copy_from_slice(&host.fx[32..160]);
    }
    // Where the host's kernel has pages, and where the engine's, is their own affair.
    if host.vector == 14 && host.cr2.is_some_and(|at| at > HOST_KERNEL) {
        soft.error = soft.error & !1 | host.error & 1;
    }
    let soft = &soft;
    let same_exception =
        (host.vector, host.error, host.cr2, host.rip) == (soft.vector, soft.error, soft.cr2, soft.rip);
    if !same_exception {
        lines.push(format!("ends in     host {}   engine {}", exception(host), exception(soft)));
    }
    let names = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15",
    ];
    for (name, (h, s)) in names.iter().zip(host.regs.iter().zip(&soft.regs)) {
        if h != s {
            lines.push(format!("{name:10}  host {h:#018x}   engine {s:#018x}"));
        }
    }
    let (undefined_flags, undefined_conditions) = undefined(program, assembled, host.rip);
    let flags = !(undefined_flags | RF);
    if (host.rflags ^ soft.rflags) & flags != 0 {
        let differ = (host.rflags ^ soft.rflags) & flags;
        lines.push(format!(
            "rflags      host {:#x}   engine {:#x}   bits {differ:#x}",
            host.rflags, soft.rflags
        ));
    }
    let only = if program.steps.len() == 1 { program.instructions().last() } else { None };
    let error = only.and_then(|i| {
        known(i.code())
            .find_map(|known| if let Known::Approximate(error) = known { Some(error) } else { None })
    });
    if only.is_some_and(|i| beyond_range(i.mnemonic(), program)) {
        return lines;
    }
    fx_differences(&mut lines, host, soft, undefined_conditions, error);
    memory_differences(&mut lines, host, soft);
    lines
}

fn fx_differences(
    lines: &mut Vec<String>,
    host: &Outcome,
    soft: &Outcome,
    undefined: u16,
    error: Option<f64>,
) {
    let (h, s) = (&host.fx, &soft.fx);
    // An approximation's exactness, direction of rounding, and what it makes of the tiny, are its own.
    let inexact = error.map_or(0, |_| 0x238);
    for (name, at, mask) in [
        ("x87 control", 0, !0x40),
        ("x87 status", 2, !(undefined | inexact)),
        ("x87 tags", 4, 0xff),
        ("mxcsr", 24, 0xffff),
    ] {
        let (h, s) = (word(h, at), word(s, at));
        if (h ^ s) & mask != 0 {
            lines.push(format!("{name:10}  host {h:#06x}   engine {s:#06x}   bits {:#x}", (h ^ s) & mask));
        }
    }
    for register in 0..8 {
        let at = 32 + register * 16..42 + register * 16;
        let (h, s) = (&h[at.clone()], &s[at]);
        if h != s && !error.is_some_and(|e| near(extended(h), extended(s), e)) {
            lines.push(format!("st{register}         host {}   engine {}", hex(h), hex(s)));
        }
    }
    for register in 0..16 {
        let at = 160 + register * 16..176 + register * 16;
        let (h, s) = (&h[at.clone()], &s[at]);
        let near_lane = |(h, s): (&[u8], &[u8])| {
            let single = |b: &[u8]| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            h == s || error.is_some_and(|e| near(single(h), single(s), e))
        };
        if !h.chunks(4).zip(s.chunks(4)).all(near_lane) {
            lines.push(format!("xmm{register:<2}       host {}   engine {}", hex(h), hex(s)));
        }
    }
}

fn memory_differences(lines: &mut Vec<String>, host: &Outcome, soft: &Outcome) {
    if host.memory == soft.memory {
        return;
    }
    let (mut h, mut s) = (host.memory.clone(), soft.memory.clone());
    Image::blur(&mut h[WINDOW_BYTES as usize..]);
    Image::blur(&mut s[WINDOW_BYTES as usize..]);
    for (at, (h, s)) in h.chunks(16).zip(s.chunks(16)).enumerate() {
        if h != s && lines.len() < 40 {
            let at = at as u64 * 16;
            let address = if at < WINDOW_BYTES { WINDOW + at } else { SCRATCH + at - WINDOW_BYTES };
            lines.push(format!("{address:#x}  host {}   engine {}", hex(h), hex(s)));
        }
    }
}

/// Most significant byte first.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|b| format!("{b:02x}")).collect()
}
