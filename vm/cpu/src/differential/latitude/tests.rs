//! Outcomes of other processors, made by hand: those that the table permits agree, and no others do.

use super::super::assemble::Program;
use super::super::engine::Engine;
use super::super::{
    CODE, Outcome, Runner, SCRATCH_BYTES, State, UNMAPPED, WINDOW, WINDOW_BYTES, WRITABLE_BYTES,
};
use super::{TABLE, judge};
use iced_x86::{Decoder, DecoderOptions};
use std::collections::BTreeSet;

const UPPER: u64 = 0xabcd_0000_0000_0000;
const RAX: usize = 0;
const RCX: usize = 1;
const RBX: usize = 3;
const RSI: usize = 6;
const RDI: usize = 7;

const MOV_RAX_RDI: &[u8] = &[0x48, 0x89, 0xf8];
const MOV_RAX_AT_RBX: &[u8] = &[0x48, 0x8b, 0x03];
const REP_MOVSB_A32: &[u8] = &[0x67, 0xf3, 0xa4];
const REP_LODSB_A32: &[u8] = &[0x67, 0xf3, 0xac];
const REP_STOSQ_A32: &[u8] = &[0x67, 0xf3, 0x48, 0xab];
const REP_STOSQ: &[u8] = &[0xf3, 0x48, 0xab];
const CMPSB: &[u8] = &[0xa6];
const BSF_EAX_EBX: &[u8] = &[0x0f, 0xbc, 0xc3];
const BSF_RAX_RBX: &[u8] = &[0x48, 0x0f, 0xbc, 0xc3];
// R8 points to the window, R9 to its read-only page, R10 to nothing.
const MMX_STORES: [&[u8]; 3] =
    [&[0x41, 0x0f, 0x7f, 0x11], &[0x41, 0x0f, 0x7e, 0x11], &[0x41, 0x0f, 0xe7, 0x11]];
const MOVQ_AT_R8_MM2: &[u8] = &[0x41, 0x0f, 0x7f, 0x10];
const MOVD_AT_R9_XMM2: &[u8] = &[0x66, 0x41, 0x0f, 0x7e, 0x11];
const PADDB_MM2_AT_R10: &[u8] = &[0x41, 0x0f, 0xfc, 0x12];
const CVTPI2PS_XMM1_AT_R10: &[u8] = &[0x41, 0x0f, 0x2a, 0x0a];
const MASKMOVDQU_XMM1_XMM2: &[u8] = &[0x66, 0x0f, 0xf7, 0xca];
const FISTP_AT_R9: &[u8] = &[0x41, 0xdb, 0x19];
const FSTP_AT_R9: &[u8] = &[0x41, 0xdd, 0x19];
const FISTP_AT_R8: &[u8] = &[0x41, 0xdb, 0x18];
const FIST_AT_R9: &[u8] = &[0x41, 0xdb, 0x11];
const FXSAVE64_AT_R10: &[u8] = &[0x49, 0x0f, 0xae, 0x02];
const LDMXCSR_AT_R8: &[u8] = &[0x41, 0x0f, 0xae, 0x10];
const MULPS_XMM1_XMM1: &[u8] = &[0x0f, 0x59, 0xc9];
const RCPPS_XMM1_XMM2: &[u8] = &[0x0f, 0x53, 0xca];
const FSIN: &[u8] = &[0xd9, 0xfe];

/// What the engine makes of a program, which a test then changes as another processor would.
struct Case {
    program: Program,
    engine: Engine,
    soft: Outcome,
}

impl Case {
    fn new(code: &[&[u8]], prepare: impl FnOnce(&mut State)) -> Self {
        let decode = |bytes: &&[u8]| vec![Decoder::new(64, bytes, DecoderOptions::NONE).decode()];
        let mut fx = [0; 512];
        // All exceptions masked, register 3 on top, four registers in use, each with a number from 1 on.
        fx[..5].copy_from_slice(&[0x7f, 3, 0, 3 << 3, 0b0111_1000]);
        fx[24..26].copy_from_slice(&[0x80, 0x1f]);
        for st in 0..8u8 {
            let at = 32 + usize::from(st) * 16;
            fx[at + 7..at + 10].copy_from_slice(&[0x80 | st, 0xff, 0x3f]);
        }
        let mut regs = [0; 16];
        regs[4] = WINDOW + 0x800;
        regs[8..11].copy_from_slice(&[WINDOW, WINDOW + WRITABLE_BYTES, UNMAPPED]);
        let memory = Box::new([0; (WINDOW_BYTES + SCRATCH_BYTES) as usize]);
        let mut state = State { regs, rflags: 0x202, fx, memory };
        prepare(&mut state);
        let program = Program { steps: code.iter().map(decode).collect(), entry: CODE, state };
        let mut engine = Engine::new();
        let soft = engine.run(&program.assemble().unwrap().code, CODE, &program.state);
        Self { program, engine, soft }
    }

    /// By which entries of the table a host agrees that does this differently; none: it does not.
    fn used(&mut self, change: impl FnOnce(&mut Outcome)) -> Option<Vec<&'static str>> {
        let mut host = self.soft.clone();
        change(&mut host);
        let assembled = self.program.assemble().unwrap();
        let comparison = judge(&self.program, &assembled, &host, &self.soft, &mut self.engine);
        comparison.lines.is_empty().then_some(comparison.used)
    }

    /// By this entry alone.
    #[track_caller]
    fn agrees(&mut self, name: &str, change: impl FnOnce(&mut Outcome)) {
        assert_eq!(self.used(change), Some(vec![name]));
    }

    #[track_caller]
    fn differs(&mut self, change: impl FnOnce(&mut Outcome)) {
        assert_eq!(self.used(change), None);
    }
}

/// Another x87 register on top.
fn turn(outcome: &mut Outcome, top: u8) {
    let by = usize::from(top.wrapping_sub(outcome.fx[3] >> 3) & 7);
    outcome.fx[3] = outcome.fx[3] & !0x38 | top << 3;
    outcome.fx[32..160].rotate_left(16 * by);
}

fn go_over_to_mmx(outcome: &mut Outcome) {
    turn(outcome, 0);
    outcome.fx[4] = 0xff;
}

fn pop(outcome: &mut Outcome) {
    let top = outcome.fx[3] >> 3 & 7;
    outcome.fx[4] &= !(1 << top);
    turn(outcome, (top + 1) & 7);
}

fn page_fault(outcome: &mut Outcome, rip: u64, error: u32, cr2: u64) {
    (outcome.vector, outcome.rip, outcome.error, outcome.cr2) = (14, rip, error, Some(cr2));
}

#[test]
fn the_same_outcome_needs_no_entry_and_every_entry_has_a_source() {
    let mut case = Case::new(&[MOV_RAX_RDI], |_| {});
    assert_eq!(case.used(|_| {}), Some(vec![]));
    case.differs(|host| host.regs[RAX] ^= 1);
    case.differs(|host| host.vector = 13);
    case.differs(|host| host.fx[32] ^= 1);
    case.differs(|host| host.memory[5] ^= 1);
    let names: BTreeSet<_> = TABLE.iter().map(|entry| entry.name).collect();
    assert_eq!(names.len(), TABLE.len());
    assert!(TABLE.iter().all(|entry| entry.source.len() > 40));
}

#[test]
fn a_short_repetition_without_elements_may_clear_upper_halves_and_the_program_goes_on_with_them() {
    let entry = "upper halves of a32 rep";
    let upper = |state: &mut State| [RCX, RSI, RDI].iter().for_each(|&register| state.regs[register] = UPPER);
    let mut movs = Case::new(&[REP_MOVSB_A32], upper);
    for register in [RCX, RSI, RDI] {
        movs.agrees(entry, |host| host.regs[register] = 0);
        movs.differs(|host| host.regs[register] = 1);
        movs.differs(|host| host.regs[register] = 1 << 63);
    }
    movs.agrees(entry, |host| [RCX, RSI, RDI].iter().for_each(|&register| host.regs[register] = 0));
    movs.differs(|host| (host.regs[RDI], host.regs[8]) = (0, 0));

    let mut then_used = Case::new(&[REP_MOVSB_A32, MOV_RAX_RDI], upper);
    then_used.agrees(entry, |host| (host.regs[RDI], host.regs[RAX]) = (0, 0));
    then_used.differs(|host| host.regs[RDI] = 0);
    then_used.differs(|host| host.regs[RAX] = 0);

    let mut lods = Case::new(&[REP_LODSB_A32], upper);
    lods.agrees(entry, |host| host.regs[RCX] = 0);
    lods.differs(|host| host.regs[RSI] = 0);
    let mut long = Case::new(&[REP_STOSQ], |state| state.regs[RDI] = UPPER);
    long.differs(|host| host.regs[RDI] = 0);
    let mut with_elements = Case::new(&[REP_STOSQ_A32], |state| {
        (state.regs[RCX], state.regs[RDI]) = (UPPER | 2, UPPER | WINDOW);
    });
    assert_eq!((with_elements.soft.regs[RCX], with_elements.soft.regs[RDI]), (0, WINDOW + 16));
    with_elements.differs(|host| host.regs[RDI] |= UPPER);
    with_elements.differs(|host| host.regs[RCX] |= UPPER);
}

#[test]
fn a_short_repetition_whose_first_element_faults_may_clear_upper_halves() {
    let entry = "upper halves of a faulting a32 rep";
    let mut stos = Case::new(&[REP_STOSQ_A32], |state| {
        (state.regs[RCX], state.regs[RDI]) = (UPPER | 5, UPPER | UNMAPPED);
    });
    assert_eq!((stos.soft.regs[RCX], stos.soft.regs[RDI]), (UPPER | 5, UPPER | UNMAPPED));
    stos.agrees(entry, |host| host.regs[RDI] = UNMAPPED);
    stos.agrees(entry, |host| (host.regs[RCX], host.regs[RDI]) = (5, UNMAPPED));
    stos.differs(|host| host.regs[RDI] = UNMAPPED + 8);
    stos.differs(|host| host.regs[RCX] = 4);
    stos.differs(|host| (host.regs[RDI], host.cr2) = (UNMAPPED, Some(UNMAPPED + 8)));
    let mut long = Case::new(&[REP_STOSQ], |state| (state.regs[RCX], state.regs[RDI]) = (UPPER | 5, UPPER));
    long.differs(|host| host.regs[RCX] = 5);
}

#[test]
fn a_scan_of_zero_may_clear_the_upper_half_of_a_short_destination() {
    let mut short = Case::new(&[BSF_EAX_EBX], |state| state.regs[RAX] = UPPER | 7);
    short.agrees("upper half of bsf and bsr of zero", |host| host.regs[RAX] = 7);
    short.differs(|host| host.regs[RAX] = 0);
    let mut long = Case::new(&[BSF_RAX_RBX], |state| state.regs[RAX] = UPPER | 7);
    long.differs(|host| host.regs[RAX] = 7);
    let mut found = Case::new(&[BSF_EAX_EBX], |state| (state.regs[RAX], state.regs[RBX]) = (UPPER, 8));
    found.differs(|host| host.regs[RAX] |= UPPER);
}

#[test]
fn a_faulting_mmx_store_may_have_gone_over_to_mmx_and_no_other_instruction() {
    let entry = "MMX state after a faulting store";
    for store in MMX_STORES {
        let mut case = Case::new(&[store], |_| {});
        assert_eq!((case.soft.vector, case.soft.fx[4]), (14, 0b0111_1000));
        case.agrees(entry, go_over_to_mmx);
        case.agrees(entry, |host| host.fx[4] = 0xff);
        case.agrees(entry, |host| turn(host, 0));
        case.differs(|host| host.fx[3] &= !0x38);
        case.differs(|host| (go_over_to_mmx(host), turn(host, 1)).1);
        case.differs(|host| (go_over_to_mmx(host), host.fx[4] = 0xfe).1);
        case.differs(|host| (go_over_to_mmx(host), host.fx[40] ^= 1).1);
        case.differs(|host| (go_over_to_mmx(host), host.cr2 = Some(WINDOW)).1);
    }
    Case::new(&[MOVQ_AT_R8_MM2], |_| {}).differs(|host| turn(host, 3));
    Case::new(&[MOVD_AT_R9_XMM2], |_| {}).differs(go_over_to_mmx);
    Case::new(&[PADDB_MM2_AT_R10], |_| {}).differs(go_over_to_mmx);
    let mut conversion = Case::new(&[CVTPI2PS_XMM1_AT_R10], |_| {});
    conversion.agrees("MMX state after a faulting conversion or masked store", go_over_to_mmx);
    conversion.differs(|host| host.fx[4] = 0xff);
}

#[test]
fn a_faulting_x87_store_may_have_popped_with_its_exceptions_or_without() {
    let entry = "x87 state after a faulting store that pops";
    // 1 + 2^-7 is no integer, and in the register below it is 1.
    let inexact = |state: &mut State| state.fx[39] |= 1;
    for store in [FISTP_AT_R9, FSTP_AT_R9] {
        let mut case = Case::new(&[store], inexact);
        assert_eq!((case.soft.vector, case.soft.fx[2]), (14, 0));
        case.agrees(entry, pop);
        case.differs(|host| (pop(host), pop(host)).1);
        case.differs(|host| turn(host, 4));
        case.differs(|host| host.fx[4] &= !(1 << 3));
        case.differs(|host| (pop(host), host.fx[2] = 1).1);
        case.differs(|host| host.fx[2] = 0x20);
    }
    Case::new(&[FISTP_AT_R9], inexact).agrees(entry, |host| (pop(host), host.fx[2] = 0x20).1);
    Case::new(&[FSTP_AT_R9], inexact).differs(|host| (pop(host), host.fx[2] = 0x20).1);
    Case::new(&[FISTP_AT_R8], inexact).differs(|host| turn(host, 3));
    Case::new(&[FIST_AT_R9], inexact).differs(pop);
}

#[test]
fn an_x87_store_that_its_unmasked_exception_keeps_from_memory_may_not_fault() {
    let entry = "x87 store that an exception keeps from memory";
    // The register on top is empty.
    let empty = |control: u8| move |state: &mut State| (state.fx[0], state.fx[4]) = (control, 0b0111_0000);
    let go_on = |host: &mut Outcome| {
        (host.vector, host.error, host.cr2, host.rip) = (6, 0, None, CODE + 3);
        (host.fx[2], host.fx[3]) = (0xc1, host.fx[3] | 0x80);
    };
    for store in [FISTP_AT_R9, FSTP_AT_R9, FIST_AT_R9] {
        let mut case = Case::new(&[store], empty(0x7e));
        assert_eq!((case.soft.vector, case.soft.fx[2]), (14, 0));
        case.agrees(entry, go_on);
        case.differs(|host| (go_on(host), host.fx[2] = 0x41).1);
        case.differs(|host| (go_on(host), host.fx[2] = 0xa0).1);
        Case::new(&[store], empty(0x7f)).differs(go_on);
    }
    Case::new(&[MOVD_AT_R9_XMM2], empty(0x7e)).differs(go_on);
}

#[test]
fn a_fault_may_be_of_another_byte_or_operand_of_the_same_access() {
    let mut image = Case::new(&[FXSAVE64_AT_R10], |_| {});
    image.agrees("which byte of a state image faults", |host| host.cr2 = Some(UNMAPPED + 511));
    image.differs(|host| host.cr2 = Some(UNMAPPED + 512));
    image.differs(|host| host.cr2 = Some(UNMAPPED - 1));
    image.differs(|host| (host.cr2, host.error) = (Some(UNMAPPED + 511), 4));
    Case::new(&[MOV_RAX_AT_RBX], |state| state.regs[RBX] = UNMAPPED)
        .differs(|host| host.cr2 = Some(UNMAPPED + 7));

    let entry = "which operand of cmps faults";
    let mut cmps = Case::new(&[CMPSB], |state| (state.regs[RSI], state.regs[RDI]) = (UNMAPPED, UNMAPPED + 9));
    assert_eq!(cmps.soft.cr2, Some(UNMAPPED));
    cmps.agrees(entry, |host| host.cr2 = Some(UNMAPPED + 9));
    cmps.differs(|host| host.cr2 = Some(UNMAPPED + 10));
    cmps.differs(|host| (host.vector, host.error, host.cr2) = (13, 0, None));
    let mut mixed = Case::new(&[CMPSB], |state| (state.regs[RSI], state.regs[RDI]) = (UNMAPPED, 1 << 62));
    mixed.agrees(entry, |host| (host.vector, host.error, host.cr2) = (13, 0, None));
}

#[test]
fn a_masked_store_may_fault_where_nothing_is_stored() {
    let entry = "faults of masked-out bytes";
    let mut nothing = Case::new(&[MASKMOVDQU_XMM1_XMM2, MOV_RAX_RDI], |state| state.regs[RDI] = UNMAPPED);
    assert_eq!((nothing.soft.vector, nothing.soft.regs[RAX]), (6, UNMAPPED));
    let before = |host: &mut Outcome| host.regs[RAX] = 0;
    nothing.agrees(entry, |host| (before(host), page_fault(host, CODE, 6, UNMAPPED + 3)).1);
    nothing.differs(|host| (before(host), page_fault(host, CODE, 6, UNMAPPED + 16)).1);
    nothing.differs(|host| (before(host), page_fault(host, CODE, 4, UNMAPPED)).1);
    nothing.differs(|host| page_fault(host, CODE, 6, UNMAPPED));
    nothing.differs(|host| (before(host), host.rip = CODE).1);
}

#[test]
fn what_depends_on_the_hosts_kernel_is_permitted_where_it_can_matter() {
    let five = "bits 47 to 56 of an address";
    let mut wide = Case::new(&[MOV_RAX_AT_RBX], |state| state.regs[RBX] = 1 << 50);
    assert_eq!(wide.soft.vector, 13);
    wide.agrees(five, |host| page_fault(host, CODE, 4, 1 << 50));
    wide.differs(|host| page_fault(host, CODE, 5, 1 << 50));
    wide.differs(|host| page_fault(host, CODE, 4, UNMAPPED));
    Case::new(&[MOV_RAX_AT_RBX], |state| state.regs[RBX] = 1 << 60)
        .differs(|host| page_fault(host, CODE, 4, 1 << 60));

    let kernel = "whether the host's kernel has a page there";
    let mut above = Case::new(&[MOV_RAX_AT_RBX], |state| state.regs[RBX] = 0xffff_8880_0000_0000);
    above.agrees(kernel, |host| host.error ^= 1);
    above.differs(|host| host.error ^= 2);
    Case::new(&[MOV_RAX_AT_RBX], |state| state.regs[RBX] = UNMAPPED).differs(|host| host.error ^= 1);
}

#[test]
fn inexactness_beside_an_unmasked_overflow_is_either_way() {
    let overflow = |state: &mut State| {
        state.fx[24..26].copy_from_slice(&0x1b80u16.to_le_bytes());
        state.fx[176..180].copy_from_slice(&f32::MAX.to_le_bytes());
    };
    let mut case = Case::new(&[MULPS_XMM1_XMM1], overflow);
    assert_eq!(case.soft.vector, 19);
    case.agrees("inexact beside an unmasked overflow or underflow", |host| host.fx[24] ^= 0x20);
    case.differs(|host| host.fx[24] ^= 0x10);
}

#[test]
fn only_a_host_that_took_the_mask_of_misalignment_goes_on() {
    let with = |mxcsr: u32| {
        move |state: &mut State| {
            state.memory[..4].copy_from_slice(&mxcsr.to_le_bytes());
        }
    };
    let go_on = |host: &mut Outcome| {
        (host.vector, host.error, host.rip, host.fx[26]) = (6, 0, CODE + 4, 2);
    };
    let mut case = Case::new(&[LDMXCSR_AT_R8], with(0x21f80));
    assert_eq!(case.soft.vector, 13);
    case.agrees("AMD's mask of misalignment", go_on);
    case.differs(|host| (go_on(host), host.fx[26] = 0).1);
    Case::new(&[LDMXCSR_AT_R8], with(0x61f80)).differs(go_on);
    Case::new(&[LDMXCSR_AT_R8], with(0x11f80)).differs(go_on);
}

#[test]
fn approximations_are_near_and_leave_everything_else_alone() {
    let some = |state: &mut State| {
        for lane in (192..208).step_by(4) {
            state.fx[lane..lane + 4].copy_from_slice(&3f32.to_le_bytes());
        }
    };
    let mut reciprocal = Case::new(&[RCPPS_XMM1_XMM2], some);
    // The lowest bytes are within 2^-13.
    reciprocal.agrees("reciprocal approximations", |host| host.fx[176] ^= 0xff);
    reciprocal.differs(|host| host.fx[178] ^= 0x80);
    reciprocal.differs(|host| host.fx[192] ^= 1);
    reciprocal.differs(|host| (host.fx[176], host.fx[24]) = (!host.fx[176], host.fx[24] ^ 1));

    let mut sine = Case::new(&[FSIN], |_| {});
    sine.agrees("transcendental functions", |host| {
        (host.fx[32], host.fx[2]) = (!host.fx[32], host.fx[2] ^ 0x20)
    });
    sine.differs(|host| host.fx[38] ^= 0x80);
    sine.differs(|host| host.fx[48] ^= 1);
    sine.differs(|host| host.fx[2] ^= 1);
}
