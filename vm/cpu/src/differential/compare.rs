//! Whether two outcomes are the same: every bit, but for flags that the manuals call undefined, and reserved fields of
//! stored state images. All other things that a processor may do either way are in `latitude`.

use super::assemble::{Assembled, Program};
use super::forms::Image;
use super::generate::undefined_after_instruction;
use super::latitude::RF;
use super::{Outcome, SCRATCH, WINDOW, WINDOW_BYTES, native};
use iced_x86::RflagsBits;

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

/// Every difference, as lines; none when the outcomes agree.
pub(super) fn differences(
    program: &Program,
    assembled: &Assembled,
    host: &Outcome,
    soft: &Outcome,
) -> Vec<String> {
    let mut lines = Vec::new();
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
    fx_differences(&mut lines, host, soft, undefined_conditions);
    memory_differences(&mut lines, host, soft);
    lines
}

fn fx_differences(lines: &mut Vec<String>, host: &Outcome, soft: &Outcome, undefined: u16) {
    let (h, s) = (&host.fx, &soft.fx);
    for (name, at, mask) in [
        ("x87 control", 0, !0x40),
        ("x87 status", 2, !undefined),
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
        if h != s {
            lines.push(format!("st{register}         host {}   engine {}", hex(h), hex(s)));
        }
    }
    for register in 0..16 {
        let at = 160 + register * 16..176 + register * 16;
        let (h, s) = (&h[at.clone()], &s[at]);
        if h != s {
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
