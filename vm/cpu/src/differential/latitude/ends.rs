//! Exceptions that may leave, or report, different things.

use super::super::{CODE, GS_BASE, Memory, Outcome, SCRATCH, State, WINDOW, WINDOW_BYTES};
use super::{End, RF, UD2};
use iced_x86::{Encoder, Instruction, Mnemonic, OpKind, Register};

const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;
const SIMD: u8 = 19;
/// What is above may belong to the host's kernel.
const HOST_KERNEL: u64 = 0x7fff_ffff_0000;
// In a page fault's error code.
const PRESENT: u32 = 1;
const WRITE: u32 = 2;
const USER: u32 = 4;
// In MXCSR: overflow, underflow, precision, AMD's mask of misalignment.
const OE: u16 = 8;
const UE: u16 = 16;
const PE: u8 = 32;
const MM: u32 = 1 << 17;
// In the x87 status: an exception waits; invalid operation, overflow, underflow.
const X87_ES: u8 = 0x80;
const X87_NOT_STORED: u8 = 1 | 8 | 16;
/// Bits of MXCSR that no processor has.
const RESERVED: u32 = !(MM | 0xffff);

impl End<'_> {
    /// #SS, #GP, #PF, #AC.
    pub(super) fn is_access_fault(&self) -> bool {
        matches!(self.host.vector, 12..=14 | 17)
    }

    fn stores_from(&self, is_source: impl Fn(Register) -> bool) -> bool {
        self.instruction.op0_kind() == OpKind::Memory && is_source(self.instruction.op1_register())
    }

    /// Whether the host's fault is one of an access somewhere in the memory operand `operand`.
    fn faults_within(&self, soft: &Outcome, operand: u32, access: u32) -> bool {
        let Some(start) = address(self.instruction, operand, soft) else { return false };
        let bytes = self.instruction.memory_size().size() as u64;
        match self.host.cr2 {
            Some(at) => at.wrapping_sub(start) < bytes && self.host.error & !PRESENT == USER | access,
            None => {
                let last = start.wrapping_add(bytes - 1);
                self.host.error == 0
                    && self.host.vector != 17
                    && !(is_canonical(start, 48) && is_canonical(last, 48))
            }
        }
    }
}

/// An operand's address when the registers are these.
fn address(instruction: &Instruction, operand: u32, at: &Outcome) -> Option<u64> {
    instruction.virtual_address(operand, 0, |register, _, _| {
        Some(match register {
            Register::GS => GS_BASE,
            _ if register.is_segment_register() => 0,
            _ => {
                let value = at.regs[register.full_register().number()];
                if register.size() == 4 { value & 0xffff_ffff } else { value }
            }
        })
    })
}

fn is_canonical(address: u64, bits: u32) -> bool {
    let shift = 64 - bits;
    ((address << shift) as i64 >> shift) as u64 == address
}

/// ST(0) to ST(7) with another register on top.
fn with_top(soft: &Outcome, top: u8) -> Outcome {
    let old = soft.fx[3] >> 3 & 7;
    let mut other = soft.clone();
    other.fx[3] = soft.fx[3] & !0x38 | top << 3;
    for i in 0..8 {
        let from = usize::from((top + i).wrapping_sub(old) & 7);
        let to = usize::from(i);
        other.fx[32 + to * 16..48 + to * 16].copy_from_slice(&soft.fx[32 + from * 16..48 + from * 16]);
    }
    other
}

/// Gone over to MMX: R0 on top, all registers in use.
fn in_mmx(soft: &Outcome) -> Outcome {
    let mut other = with_top(soft, 0);
    other.fx[4] = 0xff;
    other
}

pub(super) fn mmx_store(end: &mut End<'_>, soft: &Outcome) -> Vec<Outcome> {
    if !end.is_access_fault() || !end.stores_from(Register::is_mm) {
        return Vec::new();
    }
    let mut tags = soft.clone();
    tags.fx[4] = 0xff;
    vec![in_mmx(soft), tags, with_top(soft, 0)]
}

pub(super) fn mmx_other(end: &mut End<'_>, soft: &Outcome) -> Vec<Outcome> {
    if end.is_access_fault() || end.host.vector == SIMD { vec![in_mmx(soft)] } else { Vec::new() }
}

pub(super) fn x87_pop(end: &mut End<'_>, soft: &Outcome) -> Vec<Outcome> {
    if !end.is_access_fault() || end.instruction.op0_kind() != OpKind::Memory {
        return Vec::new();
    }
    let top = soft.fx[3] >> 3 & 7;
    let mut popped = with_top(soft, (top + 1) & 7);
    popped.fx[4] &= !(1 << top);
    let completed = completed(end, soft).map(|fx| Outcome { fx, ..soft.clone() });
    [popped].into_iter().chain(completed).collect()
}

/// Whether the host has stored nothing, for an exception that now waits for the next instruction.
pub(super) fn x87_not_stored(instruction: &Instruction, host: &Outcome, soft: &Outcome) -> bool {
    let pending = |outcome: &Outcome| outcome.fx[2] & X87_ES != 0;
    let unmasked = host.fx[2] & !host.fx[0] & X87_NOT_STORED;
    let is_fault_of_access = matches!(soft.vector, 12..=14 | 17);
    is_fault_of_access
        && instruction.op0_kind() == OpKind::Memory
        && !pending(soft)
        && pending(host)
        && unmasked != 0
}

/// The x87 state that the instruction would leave if its operand could be written.
fn completed(end: &mut End<'_>, soft: &Outcome) -> Option<[u8; 512]> {
    let mut elsewhere = *end.instruction;
    elsewhere.set_segment_prefix(Register::None);
    elsewhere.set_memory_base(Register::None);
    elsewhere.set_memory_index(Register::None);
    elsewhere.set_memory_displacement64(SCRATCH);
    elsewhere.set_memory_displ_size(8);
    let state = State { rflags: soft.rflags & !RF, ..State::from(soft.clone()) };
    let mut encoder = Encoder::new(64);
    encoder.encode(&elsewhere, CODE).ok()?;
    let code = [encoder.take_buffer().as_slice(), UD2].concat();
    let outcome = end.engine.run(&code, CODE, &state);
    (outcome.vector == 6).then_some(outcome.fx)
}

pub(super) fn image_byte(end: &mut End<'_>, soft: &Outcome) -> Vec<Outcome> {
    let page = |outcome: &Outcome| outcome.cr2.map(|at| at >> 12);
    let access = soft.error & WRITE;
    if end.host.vector != PAGE_FAULT || page(end.host) != page(soft) || !end.faults_within(soft, 0, access) {
        return Vec::new();
    }
    vec![Outcome { cr2: end.host.cr2, ..soft.clone() }]
}

pub(super) fn second_operand(end: &mut End<'_>, soft: &Outcome) -> Vec<Outcome> {
    let is_string = end.instruction.is_string_instruction();
    if !is_string || !end.is_access_fault() || !end.faults_within(soft, 1, 0) {
        return Vec::new();
    }
    vec![as_host_faults(end, soft)]
}

/// With the exception that the host has.
fn as_host_faults(end: &End<'_>, soft: &Outcome) -> Outcome {
    let &Outcome { vector, error, cr2, .. } = end.host;
    Outcome { vector, error, cr2, ..soft.clone() }
}

pub(super) fn masked_store(end: &mut End<'_>, soft: &Outcome) -> Vec<Outcome> {
    if !end.is_access_fault() || !end.faults_within(soft, 0, WRITE) {
        return Vec::new();
    }
    vec![as_host_faults(end, soft)]
}

pub(super) fn five_levels(end: &mut End<'_>, soft: &Outcome) -> Vec<Outcome> {
    let Some(at) = end.host.cr2 else { return Vec::new() };
    let beyond = !is_canonical(at, 48) && is_canonical(at, 57);
    let not_canonical = matches!(soft.vector, 12 | GENERAL_PROTECTION) && soft.error == 0;
    if !beyond || !not_canonical || end.host.error & !WRITE != USER {
        return Vec::new();
    }
    vec![as_host_faults(end, soft)]
}

pub(super) fn kernel_page(_: &mut End<'_>, soft: &Outcome) -> Vec<Outcome> {
    if soft.vector != PAGE_FAULT || soft.cr2.is_none_or(|at| at <= HOST_KERNEL) {
        return Vec::new();
    }
    vec![Outcome { error: soft.error ^ PRESENT, ..soft.clone() }]
}

pub(super) fn inexact(_: &mut End<'_>, soft: &Outcome) -> Vec<Outcome> {
    let mxcsr = u16::from_le_bytes([soft.fx[24], soft.fx[25]]);
    if soft.vector != SIMD || mxcsr & !(mxcsr >> 7) & (OE | UE) == 0 {
        return Vec::new();
    }
    let mut other = soft.clone();
    other.fx[24] ^= PE;
    vec![other]
}

/// What a program finds at an address.
fn bytes(memory: &Memory, address: u64) -> Option<[u8; 4]> {
    let in_window = address.checked_sub(WINDOW).filter(|&at| at + 4 <= WINDOW_BYTES);
    let in_scratch = || address.checked_sub(SCRATCH).map(|at| at.saturating_add(WINDOW_BYTES));
    let at = usize::try_from(in_window.or_else(in_scratch)?).ok()?;
    memory.get(at..at.checked_add(4)?)?.try_into().ok()
}

/// Whether the engine found the mask reserved in an otherwise valid value, and the host has taken it.
pub(super) fn misalignment_mask(instruction: &Instruction, host: &Outcome, soft: &Outcome) -> bool {
    let offset = if instruction.mnemonic() == Mnemonic::Ldmxcsr { 0 } else { 24 };
    let value = address(instruction, 0, soft)
        .and_then(|at| bytes(&soft.memory, at.wrapping_add(offset)))
        .map(u32::from_le_bytes);
    soft.vector == GENERAL_PROTECTION
        && value.is_some_and(|value| value & MM != 0 && value & RESERVED == 0)
        && u32::from(host.fx[26]) << 16 & MM != 0
}
