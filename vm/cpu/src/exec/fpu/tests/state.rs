//! The state's images and checks, the faults before any operation, and the results that makers leave open.

use super::super::state::{Extended, Fpu, FpuStateError, MXCSR_RESET};
use super::{CODE, DATA};
use crate::cpu::{Cpu, Fault};
use crate::testing::{machine, run_to};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

/// Executes one instruction with RDI at the data; the exception that it raises.
fn fault_of(code: &[u8], change: impl FnOnce(&mut Cpu)) -> Option<Fault> {
    let (mut cpu, _ram) = machine(code);
    cpu.regs[7] = DATA;
    change(&mut cpu);
    cpu.run_until_fault(CODE + code.len() as u64, 8)
}

fn raised(vector: u8) -> Option<Fault> {
    Some(Fault { vector, error: None })
}

const MOVAPS_LOAD: &[u8] = &[0x0f, 0x28, 0x07];
const MOVUPS_LOAD: &[u8] = &[0x0f, 0x10, 0x07];
const PADDB_LOAD: &[u8] = &[0x66, 0x0f, 0xfc, 0x07];
const PADDB_MMX: &[u8] = &[0x0f, 0xfc, 0xc1];
const FLD1: &[u8] = &[0xd9, 0xe8];
const FWAIT: &[u8] = &[0x9b];
const FXSAVE: &[u8] = &[0x0f, 0xae, 0x07];
const DIVSD: &[u8] = &[0xf2, 0x0f, 0x5e, 0xc1];

#[test]
fn another_tasks_registers_are_device_not_available() {
    let switched = |cpu: &mut Cpu| cpu.sys.cr0 |= 8;
    for code in [MOVAPS_LOAD, PADDB_LOAD, PADDB_MMX, FLD1, FWAIT, FXSAVE, DIVSD] {
        assert_eq!(fault_of(code, switched), raised(7), "{code:02x?}");
        assert_eq!(fault_of(code, |_| ()), None, "{code:02x?}");
    }
}

#[test]
fn emulation_and_a_system_without_fxsr_make_vector_instructions_undefined() {
    let emulated = |cpu: &mut Cpu| cpu.sys.cr0 |= 0xc;
    let without = |cpu: &mut Cpu| cpu.sys.cr4 &= !(1 << 9);
    assert_eq!(fault_of(MOVAPS_LOAD, emulated), raised(6));
    assert_eq!(fault_of(PADDB_MMX, emulated), raised(6));
    assert_eq!(fault_of(FLD1, emulated), raised(7));
    assert_eq!(fault_of(MOVAPS_LOAD, without), raised(6));
    assert_eq!(fault_of(PADDB_MMX, without), None);
    assert_eq!(fault_of(FXSAVE, without), None);
}

#[test]
fn only_instructions_that_ask_for_alignment_mind() {
    let askew = |cpu: &mut Cpu| cpu.regs[7] += 8;
    let general = Some(Fault { vector: 13, error: Some(0) });
    assert_eq!(fault_of(MOVAPS_LOAD, askew), general);
    assert_eq!(fault_of(PADDB_LOAD, askew), general);
    assert_eq!(fault_of(FXSAVE, askew), general);
    assert_eq!(fault_of(MOVUPS_LOAD, askew), None);
}

#[test]
fn an_unmasked_vector_exception_is_raised_with_the_result_unwritten() {
    let (mut cpu, _ram) = machine(DIVSD);
    cpu.fpu.mxcsr = MXCSR_RESET & !(1 << 9);
    cpu.fpu.xmm[0] = 1.0f64.to_bits().into();
    cpu.fpu.xmm[1] = 0;
    assert_eq!(cpu.run_until_fault(CODE + 4, 8), raised(19));
    assert_eq!(cpu.fpu.xmm[0], u128::from(1.0f64.to_bits()));
    assert_eq!(cpu.fpu.mxcsr, MXCSR_RESET & !(1 << 9) | 4);
    cpu.sys.cr4 &= !(1 << 10);
    assert_eq!(cpu.run_until_fault(CODE + 4, 8), raised(6));
}

#[test]
fn an_unmasked_underflow_is_raised_for_an_exact_denormal_too() {
    // mulsd: 2^-1022 / 2 is exact, and tiny.
    let (mut cpu, _ram) = machine(&[0xf2, 0x0f, 0x59, 0xc1]);
    cpu.fpu.mxcsr = MXCSR_RESET & !(1 << 11);
    cpu.fpu.xmm[0] = f64::MIN_POSITIVE.to_bits().into();
    cpu.fpu.xmm[1] = 0.5f64.to_bits().into();
    assert_eq!(cpu.run_until_fault(CODE + 4, 8), raised(19));
    assert_eq!(cpu.fpu.mxcsr & 0x3f, 0x10);
}

#[test]
fn an_unmasked_x87_exception_waits_for_the_next_waiting_instruction() {
    // fldz; fld1; fdivrp: one over zero; fnstsw ax; fld1
    let code = [0xd9, 0xee, 0xd9, 0xe8, 0xde, 0xf1, 0xdf, 0xe0, 0xd9, 0xe8];
    let (mut cpu, _ram) = machine(&code);
    cpu.fpu.set_control_word(0x37b);
    assert_eq!(cpu.run_until_fault(CODE + code.len() as u64, 8), raised(16));
    assert_eq!(cpu.rip, CODE + 8);
    assert_eq!(cpu.regs[0] & 0x80ff, 0x8084);
    assert_eq!(cpu.fpu.fip, CODE + 4);
}

#[test]
fn reserved_bits_of_mxcsr_are_refused_everywhere() {
    // ldmxcsr [rdi]; fxrstor [rdi]
    for (code, at) in [(&[0x0f, 0xae, 0x17], 0), (&[0x0f, 0xae, 0x0f], 24)] {
        let (mut cpu, ram) = machine(code);
        cpu.regs[7] = DATA;
        ram.memory().write_obj(0x1_1f80u32, GuestAddress(DATA + at)).unwrap();
        let before = cpu.fpu.clone();
        assert_eq!(cpu.run_until_fault(CODE + 3, 8), Some(Fault { vector: 13, error: Some(0) }));
        assert_eq!(cpu.fpu, before);
    }
    let fpu = Fpu { mxcsr: 0x1_0000, ..Fpu::default() };
    assert_eq!(fpu.validate(), Err(FpuStateError::Mxcsr(0x1_0000)));
}

#[test]
fn a_state_with_an_impossible_top_or_summary_is_refused() {
    assert!(Fpu::default().validate().is_ok());
    assert_eq!(Fpu { top: 8, ..Fpu::default() }.validate(), Err(FpuStateError::Top(8)));
    assert!(Fpu { status: 0x80, ..Fpu::default() }.validate().is_err());
    assert!(Fpu { control: 0xffff, ..Fpu::default() }.validate().is_err());
}

#[test]
fn mmx_registers_are_the_significands_by_physical_number_and_fill_the_stack() {
    // movq mm3, [rdi]
    let (mut cpu, ram) = machine(&[0x0f, 0x6f, 0x1f]);
    cpu.regs[7] = DATA;
    cpu.fpu.top = 5;
    ram.memory().write_obj(0x1122_3344_5566_7788u64, GuestAddress(DATA)).unwrap();
    run_to(&mut cpu, 1);
    assert_eq!((cpu.fpu.top, cpu.fpu.full), (0, 0xff));
    assert_eq!(cpu.fpu.x87[3], Extended { significand: 0x1122_3344_5566_7788, sign_exponent: 0xffff });
}

#[test]
fn the_environment_has_its_fields_where_the_manual_has_them_and_masks_exceptions() {
    // fld1; fnstenv [rdi]
    let (mut cpu, ram) = machine(&[0xd9, 0xe8, 0xd9, 0x37]);
    cpu.regs[7] = DATA;
    cpu.fpu.set_control_word(0x340);
    run_to(&mut cpu, 2);
    let mut fields = [0u8; 28];
    ram.memory().read_slice(&mut fields, GuestAddress(DATA)).unwrap();
    let field = |i: usize| u32::from_le_bytes(fields[4 * i..4 * i + 4].try_into().unwrap());
    assert_eq!(field(0), 0xffff_0340);
    assert_eq!(field(1), 0xffff_3800);
    assert_eq!(field(2), 0xffff_3fff);
    assert_eq!(field(3), CODE as u32);
    assert_eq!(cpu.fpu.control, 0x37f);
}

#[test]
fn fxsave_outside_64_bit_pointers_keeps_32_and_leaves_the_softwares_bytes() {
    let (mut cpu, ram) = machine(FXSAVE);
    cpu.regs[7] = DATA;
    ram.memory().write_slice(&[0xaa; 512], GuestAddress(DATA)).unwrap();
    cpu.fpu.fip = 0x1234_5678_9abc_def0;
    run_to(&mut cpu, 1);
    let mut area = [0u8; 512];
    ram.memory().read_slice(&mut area, GuestAddress(DATA)).unwrap();
    assert_eq!(area[8..16], [0xf0, 0xde, 0xbc, 0x9a, 0, 0, 0, 0]);
    assert!(area[416..].iter().all(|b| *b == 0xaa));
    assert_eq!(area[..416], cpu.fpu.to_fxsave_form(false)[..416]);
}

/// One vector instruction on single-precision operands.
fn estimate(code: &[u8], v: f32) -> f32 {
    let (mut cpu, _ram) = machine(code);
    cpu.fpu.xmm[1] = v.to_bits().into();
    run_to(&mut cpu, 1);
    f32::from_bits(cpu.fpu.xmm[0] as u32)
}

#[test]
fn reciprocal_estimates_are_within_the_architectures_bound() {
    for v in [1.0, 3.0, 0.1, 1e30, 1.999_999_9, 7e-20, 65537.0f32] {
        let bound = 1.5 / 4096.0;
        assert!((estimate(&[0xf3, 0x0f, 0x53, 0xc1], v) * v - 1.0).abs() <= bound, "{v}");
        assert!((estimate(&[0xf3, 0x0f, 0x52, 0xc1], v) * v.sqrt() - 1.0).abs() <= bound, "{v}");
    }
    assert_eq!(estimate(&[0xf3, 0x0f, 0x53, 0xc1], -0.0), f32::NEG_INFINITY);
    assert_eq!(estimate(&[0xf3, 0x0f, 0x52, 0xc1], -1.0).to_bits(), 0xffc0_0000);
}

/// A function of ST(0) and ST(1), in double precision.
fn x87(code: &[u8], st0: f64, st1: f64) -> f64 {
    // fld qword [rdi+8]; fld qword [rdi]; CODE; fstp qword [rdi]
    let code = [&[0xdd, 0x47, 0x08, 0xdd, 0x07], code, &[0xdd, 0x1f]].concat();
    let (mut cpu, ram) = machine(&code);
    cpu.regs[7] = DATA;
    ram.memory().write_obj(st0.to_bits(), GuestAddress(DATA)).unwrap();
    ram.memory().write_obj(st1.to_bits(), GuestAddress(DATA + 8)).unwrap();
    run_to(&mut cpu, 4);
    f64::from_bits(ram.memory().read_obj(GuestAddress(DATA)).unwrap())
}

#[test]
fn transcendental_functions_are_good_to_double_precision() {
    let near = |found: f64, expected: f64| {
        assert!((found - expected).abs() <= expected.abs() * 4e-16, "{found} for {expected}");
    };
    for v in [0.3, -1.2, 1e-12, 2.5, 0.75] {
        near(x87(&[0xd9, 0xfe], v, 0.0), v.sin());
        near(x87(&[0xd9, 0xff], v, 0.0), v.cos());
        near(x87(&[0xd9, 0xf3], v, 2.0), 2.0f64.atan2(v));
        near(x87(&[0xd9, 0xf1], v.abs(), 3.0), 3.0 * v.abs().log2());
    }
    for v in [0.3, -0.7, 1e-12, 1.0, -1.0] {
        near(x87(&[0xd9, 0xf0], v, 0.0), (v * std::f64::consts::LN_2).exp_m1());
    }
    near(x87(&[0xd9, 0xf9], 0.2, 3.0), 3.0 * 0.2f64.ln_1p() / std::f64::consts::LN_2);
    // Beyond the range of angles: the operand stays.
    assert_eq!(x87(&[0xd9, 0xfe], 1e19, 0.0), 1e19);
}

proptest! {
    #[test]
    fn any_image_is_taken_and_given_back_or_refused(bytes in proptest::collection::vec(any::<u8>(), 512)) {
        let mut image: [u8; 512] = bytes.try_into().unwrap();
        if Fpu::from_fxsave(&image).is_err() {
            image[26..28].fill(0);
        }
        let fpu = Fpu::from_fxsave(&image).unwrap();
        prop_assert!(fpu.validate().is_ok());
        prop_assert_eq!(Fpu::from_fxsave(&fpu.to_fxsave()).unwrap(), fpu);
    }

    #[test]
    fn no_bytes_make_an_instruction_panic(
        code in proptest::collection::vec(any::<u8>(), 15),
        state in proptest::collection::vec(any::<u8>(), 512),
        first in 0xd8..0xe0u8,
        x87 in any::<bool>(),
    ) {
        let mut code = code;
        if x87 { code[0] = first } else { code[0] = 0x0f }
        let Some(instruction) = super::decode_prefix(&code) else { return Ok(()) };
        if !super::lowers(&instruction) { return Ok(()) }
        let mut image: [u8; 512] = state.try_into().unwrap();
        image[26..28].fill(0);
        let (mut cpu, _ram) = machine(&code);
        cpu.fpu = Fpu::from_fxsave(&image).unwrap();
        cpu.run_until_fault(0, 1);
        prop_assert!(cpu.fpu.validate().is_ok());
    }
}
