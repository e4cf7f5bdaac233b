//! Loads, stores and exchanges: registers, the three floating formats, integers, packed decimals, constants.

use iced_x86::Code;

use super::arithmetic::to_integer;
use super::number::{
    Control, DE, DOUBLE, Format, IE, INDEFINITE, Kind, Outcome, PE, Rounded, SF, SINGLE, pack, propagate,
    round_to,
};
use super::operate::memory;
use super::stack;
use crate::cpu::Cpu;
use crate::exec::fpu::state::Extended;
use crate::op::{Handler, Op, Step};

/// `src`: which register is loaded.
pub(super) fn operands(code: Code, op: &mut Op) {
    if code == Code::Fld_sti {
        op.src = op.dst;
    }
}

pub(super) fn handler(code: Code) -> Option<Handler> {
    use Code::*;
    Some(match code {
        Fld_m32fp => load_single,
        Fld_m64fp => load_double,
        Fld_m80fp => load_extended,
        Fild_m16int => load_word,
        Fild_m32int => load_dword,
        Fild_m64int => load_qword,
        Fbld_m80bcd => load_decimal,
        Fst_m32fp => store_single::<false>,
        Fstp_m32fp => store_single::<true>,
        Fst_m64fp => store_double::<false>,
        Fstp_m64fp => store_double::<true>,
        Fstp_m80fp => store_extended,
        Fist_m16int => store_word::<false>,
        Fistp_m16int => store_word::<true>,
        Fist_m32int => store_dword::<false>,
        Fistp_m32int => store_dword::<true>,
        Fistp_m64int => store_qword,
        Fbstp_m80bcd => store_decimal,
        Fld_sti => load_register,
        Fst_sti => store_register::<false>,
        Fstp_sti | Fstp_sti_DFD0 | Fstp_sti_DFD8 => store_register::<true>,
        Fxch_st0_sti | Fxch_st0_sti_DDC8 | Fxch_st0_sti_DFC8 => exchange,
        Fldz => |cpu, op| constant(cpu, op, 0, 0),
        Fld1 => |cpu, op| constant(cpu, op, 0, 1 << 127),
        Fldpi => |cpu, op| constant(cpu, op, 1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1),
        Fldl2e => |cpu, op| constant(cpu, op, 0, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e89),
        Fldl2t => |cpu, op| constant(cpu, op, 1, 0xd49a_784b_cd1b_8afe_492b_f6ff_4daf_db4d),
        Fldlg2 => |cpu, op| constant(cpu, op, -2, 0x9a20_9a84_fbcf_f798_8f89_59ac_0b7c_9178),
        Fldln2 => |cpu, op| constant(cpu, op, -1, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af),
        _ => return None,
    })
}

/// Rounded as the rounding control says, whatever the precision control; no exception.
fn constant(cpu: &mut Cpu, op: &Op, exponent: i32, significand: u128) -> Step {
    stack::begin(cpu, op)?;
    let value = if significand == 0 {
        Extended::default()
    } else {
        pack(Control::new(cpu.fpu.control).extended(), false, exponent, significand).value
    };
    cpu.fpu.push(Outcome::exact(value));
    Ok(())
}

/// A single or double as it is loaded: a signalling NaN becomes quiet.
fn widened((value, denormal): (Extended, bool)) -> Outcome {
    propagate(value, value).unwrap_or_else(|| Outcome::flagged(value, if denormal { DE } else { 0 }))
}

fn load_single(cpu: &mut Cpu, op: &Op) -> Step {
    let outcome = widened(Extended::from_single(memory!(cpu, op, u32)));
    cpu.fpu.push(outcome);
    Ok(())
}

fn load_double(cpu: &mut Cpu, op: &Op) -> Step {
    let outcome = widened(Extended::from_double(memory!(cpu, op, u64)));
    cpu.fpu.push(outcome);
    Ok(())
}

/// The ten bytes of an extended number or a packed decimal.
fn ten_bytes(cpu: &mut Cpu, op: &Op) -> Result<Extended, crate::op::Stop> {
    stack::ready(cpu)?;
    let address = cpu.address(op);
    let significand = cpu.load::<u64>(address)?;
    let sign_exponent = cpu.load::<u16>(address.wrapping_add(8))?;
    stack::started(cpu, op, Some(address));
    Ok(Extended { significand, sign_exponent })
}

fn load_extended(cpu: &mut Cpu, op: &Op) -> Step {
    let value = ten_bytes(cpu, op)?;
    cpu.fpu.push(Outcome::exact(value));
    Ok(())
}

fn load_word(cpu: &mut Cpu, op: &Op) -> Step {
    let value = Extended::from_i64((memory!(cpu, op, u16) as i16).into());
    cpu.fpu.push(Outcome::exact(value));
    Ok(())
}

fn load_dword(cpu: &mut Cpu, op: &Op) -> Step {
    let value = Extended::from_i64((memory!(cpu, op, u32) as i32).into());
    cpu.fpu.push(Outcome::exact(value));
    Ok(())
}

fn load_qword(cpu: &mut Cpu, op: &Op) -> Step {
    let value = Extended::from_i64(memory!(cpu, op, u64) as i64);
    cpu.fpu.push(Outcome::exact(value));
    Ok(())
}

/// Eighteen decimal digits and a sign. Digits above nine count as what they are.
fn load_decimal(cpu: &mut Cpu, op: &Op) -> Step {
    let packed = ten_bytes(cpu, op)?;
    let digits = u128::from(packed.significand) | u128::from(packed.sign_exponent & 0xff) << 64;
    let magnitude = (0..18).rev().fold(0i64, |value, i| value * 10 + (digits >> (4 * i) & 15) as i64);
    let value = Extended::from_i64(magnitude).with_sign(packed.negative());
    cpu.fpu.push(Outcome::exact(value));
    Ok(())
}

fn load_register(cpu: &mut Cpu, op: &Op) -> Step {
    stack::begin(cpu, op)?;
    let outcome = cpu.fpu.operand(op.src).map_or_else(stack::underflow, Outcome::exact);
    cpu.fpu.push(outcome);
    Ok(())
}

fn store_register<const POP: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    stack::begin(cpu, op)?;
    let outcome = cpu.fpu.operand(0).map_or_else(stack::underflow, Outcome::exact);
    if cpu.fpu.finish(op.dst, outcome) && POP {
        cpu.fpu.pop();
    }
    Ok(())
}

fn exchange(cpu: &mut Cpu, op: &Op) -> Step {
    stack::begin(cpu, op)?;
    let fpu = &mut cpu.fpu;
    let flags = if fpu.operands(0, op.src).is_none() { IE | SF } else { 0 };
    if fpu.record(flags, false) {
        let a = fpu.operand(0).unwrap_or(INDEFINITE);
        let b = fpu.operand(op.src).unwrap_or(INDEFINITE);
        fpu.set_st(0, b);
        fpu.set_st(op.src, a);
    }
    Ok(())
}

/// Stores what `convert` makes of ST(0) (of an empty register, `indefinite`), unless an unmasked exception forbids it.
/// A fault of the store leaves everything as it was.
fn store<T: Copy>(
    cpu: &mut Cpu,
    op: &Op,
    (pops, bytes): (bool, u64),
    indefinite: T,
    convert: impl Fn(Control, Extended) -> Outcome<T>,
    write: impl Fn(&mut Cpu, u64, T) -> Step,
) -> Step {
    stack::ready(cpu)?;
    let control = Control::new(cpu.fpu.control);
    let outcome = match cpu.fpu.operand(0) {
        Some(a) => convert(control, a),
        None => Outcome::flagged(indefinite, IE | SF),
    };
    let address = cpu.address(op);
    let stores = cpu.fpu.stores(outcome.flags);
    if stores {
        write(cpu, address, outcome.value)?;
    } else {
        // The operand faults also when nothing is stored.
        cpu.probe_write(address, bytes)?;
    }
    stack::started(cpu, op, Some(address));
    if stores {
        cpu.fpu.record(outcome.flags, outcome.up);
        if pops {
            cpu.fpu.pop();
        }
    } else {
        // What is not stored is not inexact.
        cpu.fpu.record(outcome.flags & !PE, false);
    }
    Ok(())
}

/// In a narrower format: its exponent's bits, its fraction's.
fn narrowed(control: Control, a: Extended, format: Format, exponent_bits: u32) -> Outcome<u64> {
    let fraction_bits = format.precision - 1;
    let sign = u64::from(a.negative()) << (exponent_bits + fraction_bits);
    let infinity = ((1 << exponent_bits) - 1) << fraction_bits;
    if let Some(nan) = propagate(a, a) {
        let fraction = (nan.value.significand << 1 >> 1) >> (63 - fraction_bits);
        let sign = u64::from(nan.value.negative()) << (exponent_bits + fraction_bits);
        return Outcome::flagged(sign | infinity | fraction, nan.flags);
    }
    match a.kind() {
        Kind::Finite(x) => {
            let outcome = round_to(format, control, x.negative, x.exponent, u128::from(x.significand) << 64);
            let value = match outcome.value {
                Rounded::Infinity => infinity,
                Rounded::Finite { exponent, significand } => {
                    // The top bit of a normal number adds one to the exponent below it.
                    let below = (exponent - format.min).max(0) as u64;
                    (below << fraction_bits).wrapping_add(significand)
                }
            };
            Outcome { value: sign | value, flags: outcome.flags, up: outcome.up }
        }
        Kind::Zero => Outcome::exact(sign),
        _ => Outcome::exact(sign | infinity),
    }
}

fn store_single<const POP: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let convert = |control, a| narrowed(control, a, SINGLE, 8);
    store(cpu, op, (POP, 4), 0xffc0_0000, convert, |cpu, address, v| cpu.store::<u32>(address, v as u32))
}

fn store_double<const POP: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let convert = |control, a| narrowed(control, a, DOUBLE, 11);
    store(cpu, op, (POP, 8), 0xfff8_0000_0000_0000, convert, |cpu, address, v| cpu.store::<u64>(address, v))
}

fn write_ten_bytes(cpu: &mut Cpu, address: u64, v: Extended) -> Step {
    cpu.probe_write(address, 10)?;
    cpu.store::<u64>(address, v.significand)?;
    cpu.store::<u16>(address.wrapping_add(8), v.sign_exponent)
}

fn store_extended(cpu: &mut Cpu, op: &Op) -> Step {
    store(cpu, op, (true, 10), INDEFINITE, |_, a| Outcome::exact(a), write_ten_bytes)
}

fn store_word<const POP: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let convert = |control, a| to_integer(control, a, 16);
    store(cpu, op, (POP, 2), i16::MIN.into(), convert, |cpu, address, v| cpu.store::<u16>(address, v as u16))
}

fn store_dword<const POP: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let convert = |control, a| to_integer(control, a, 32);
    store(cpu, op, (POP, 4), i32::MIN.into(), convert, |cpu, address, v| cpu.store::<u32>(address, v as u32))
}

fn store_qword(cpu: &mut Cpu, op: &Op) -> Step {
    let convert = |control, a| to_integer(control, a, 64);
    store(cpu, op, (true, 8), i64::MIN, convert, |cpu, address, v| cpu.store::<u64>(address, v as u64))
}

/// The packed decimal for what has none.
const DECIMAL_INDEFINITE: Extended = Extended { significand: 0xc000_0000_0000_0000, sign_exponent: 0xffff };

fn store_decimal(cpu: &mut Cpu, op: &Op) -> Step {
    let convert = |control, a: Extended| {
        let integer = to_integer(control, a, 64);
        if integer.flags & IE != 0 || integer.value.unsigned_abs() >= 1_000_000_000_000_000_000 {
            return Outcome::flagged(DECIMAL_INDEFINITE, IE);
        }
        let mut rest = integer.value.unsigned_abs();
        let digits = (0..18).fold(0u128, |digits, i| {
            let digit = rest % 10;
            rest /= 10;
            digits | u128::from(digit) << (4 * i)
        });
        let sign = u16::from(a.negative()) << 15;
        let value = Extended { significand: digits as u64, sign_exponent: sign | (digits >> 64) as u16 };
        Outcome { value, flags: integer.flags & PE, up: integer.up }
    };
    store(cpu, op, (true, 10), DECIMAL_INDEFINITE, convert, write_ten_bytes)
}
