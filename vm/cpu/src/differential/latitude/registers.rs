//! General registers of which the upper half is cleared, or is not.

use super::super::{Outcome, State};
use super::{Completion, End};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

pub(super) const STRINGS: &[Mnemonic] = &[
    Mnemonic::Movsb,
    Mnemonic::Movsw,
    Mnemonic::Movsd,
    Mnemonic::Movsq,
    Mnemonic::Stosb,
    Mnemonic::Stosw,
    Mnemonic::Stosd,
    Mnemonic::Stosq,
    Mnemonic::Lodsb,
    Mnemonic::Lodsw,
    Mnemonic::Lodsd,
    Mnemonic::Lodsq,
    Mnemonic::Cmpsb,
    Mnemonic::Cmpsw,
    Mnemonic::Cmpsd,
    Mnemonic::Cmpsq,
    Mnemonic::Scasb,
    Mnemonic::Scasw,
    Mnemonic::Scasd,
    Mnemonic::Scasq,
];
const ZF: u64 = 1 << 6;
const LOW: u64 = 0xffff_ffff;
const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

/// Whether it is a repeated string instruction that uses ECX, ESI and EDI.
fn is_short_repetition(i: &Instruction) -> bool {
    let short = |kind| matches!(kind, OpKind::MemorySegESI | OpKind::MemoryESEDI);
    // `movsd` and `cmpsd` are vector instructions as well.
    i.is_string_instruction()
        && (i.has_rep_prefix() || i.has_repne_prefix())
        && (0..i.op_count()).any(|at| short(i.op_kind(at)))
}

/// The registers with the upper halves of some cleared that the instruction counts and points with; all choices.
fn shortened(i: &Instruction, regs: &[u64; 16]) -> Vec<[u64; 16]> {
    let registers: &[usize] = match i.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => &[RCX, RSI, RDI],
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => &[RCX, RDI],
        _ => &[RCX],
    };
    let mut all = vec![*regs];
    for &register in registers.iter().filter(|&&register| regs[register] > LOW) {
        for mut other in all.clone() {
            other[register] &= LOW;
            all.push(other);
        }
    }
    all.split_off(1)
}

pub(super) fn string_without_elements(it: &Completion<'_>) -> Vec<State> {
    if !is_short_repetition(it.instruction) || it.before.regs[RCX] & LOW != 0 {
        return Vec::new();
    }
    shortened(it.instruction, &it.after.regs)
        .into_iter()
        .map(|regs| State { regs, ..it.after.clone() })
        .collect()
}

/// Once an element is done the engine has cleared the upper halves itself.
pub(super) fn string_that_faults(end: &mut End<'_>, soft: &Outcome) -> Vec<Outcome> {
    if !is_short_repetition(end.instruction) || !end.is_access_fault() {
        return Vec::new();
    }
    shortened(end.instruction, &soft.regs).into_iter().map(|regs| Outcome { regs, ..soft.clone() }).collect()
}

pub(super) fn scan_of_zero(it: &Completion<'_>) -> Vec<State> {
    let destination = it.instruction.op0_register();
    if !(Register::EAX..=Register::R15D).contains(&destination) || it.after.rflags & ZF == 0 {
        return Vec::new();
    }
    let mut other = it.after.clone();
    other.regs[destination.full_register().number()] &= LOW;
    vec![other]
}
