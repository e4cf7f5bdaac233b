//! The x87's control instructions: control and status words, environment, whole state, the stack's top and tags.
//!
//! Of the environment's pointers only offsets are kept: selectors are stored as zero, as processors do that have
//! deprecated them, and the opcode of the last instruction is not recorded.

use iced_x86::Code;

use super::stack::{self, C1};
use crate::cpu::Cpu;
use crate::exec::fpu::shape::{fwait, x87_ready};
use crate::exec::fpu::state::Extended;
use crate::op::{Handler, Op, Step, Stop};

/// `aux`: by how much the stack's top turns.
pub(super) fn operands(code: Code, op: &mut Op) {
    match code {
        Code::Fincstp => op.aux = 1,
        Code::Fdecstp => op.aux = 7,
        _ => {}
    }
}

pub(super) fn handler(code: Code) -> Option<Handler> {
    use Code::*;
    Some(match code {
        Wait => fwait,
        Fninit => fninit,
        Fnclex => fnclex,
        Fldcw_m2byte => fldcw,
        Fnstcw_m2byte => fnstcw,
        Fnstsw_m2byte => fnstsw,
        Fnstsw_AX => fnstsw_ax,
        Fnstenv_m14byte => fnstenv::<2>,
        Fnstenv_m28byte => fnstenv::<4>,
        Fldenv_m14byte => fldenv::<2>,
        Fldenv_m28byte => fldenv::<4>,
        Fnsave_m94byte => fnsave::<2>,
        Fnsave_m108byte => fnsave::<4>,
        Frstor_m94byte => frstor::<2>,
        Frstor_m108byte => frstor::<4>,
        Ffree_sti => ffree::<false>,
        Ffreep_sti => ffree::<true>,
        Fincstp | Fdecstp => turn,
        Fnop => |cpu, _| stack::ready(cpu),
        Fneni | Fndisi | Fnsetpm => |cpu, _| x87_ready(cpu),
        _ => return None,
    })
}

fn fninit(cpu: &mut Cpu, _: &Op) -> Step {
    x87_ready(cpu)?;
    cpu.fpu.initialise();
    Ok(())
}

fn fnclex(cpu: &mut Cpu, _: &Op) -> Step {
    x87_ready(cpu)?;
    cpu.fpu.status &= 0x7f00;
    Ok(())
}

fn fldcw(cpu: &mut Cpu, op: &Op) -> Step {
    stack::ready(cpu)?;
    let address = cpu.address(op);
    let word = cpu.load::<u16>(address)?;
    cpu.fpu.set_control_word(word);
    Ok(())
}

fn fnstcw(cpu: &mut Cpu, op: &Op) -> Step {
    x87_ready(cpu)?;
    let address = cpu.address(op);
    cpu.store::<u16>(address, cpu.fpu.control)
}

fn fnstsw(cpu: &mut Cpu, op: &Op) -> Step {
    x87_ready(cpu)?;
    let address = cpu.address(op);
    cpu.store::<u16>(address, cpu.fpu.status_word())
}

fn fnstsw_ax(cpu: &mut Cpu, _: &Op) -> Step {
    x87_ready(cpu)?;
    cpu.regs[0] = cpu.regs[0] & !0xffff | u64::from(cpu.fpu.status_word());
    Ok(())
}

/// The environment: seven fields of `SIZE` bytes. What is above a field's sixteen bits is ones.
fn environment<const SIZE: u64>(cpu: &Cpu) -> [u32; 7] {
    let fpu = &cpu.fpu;
    let word = |v: u16| 0xffff_0000 | u32::from(v);
    [
        word(fpu.control),
        word(fpu.status_word()),
        word(fpu.tag_word()),
        fpu.fip as u32,
        u32::from(fpu.fop) << 16,
        fpu.fdp as u32,
        0xffff_0000,
    ]
}

fn store_environment<const SIZE: u64>(cpu: &mut Cpu, address: u64) -> Step {
    for (i, field) in (0..).zip(environment::<SIZE>(cpu)) {
        let at = address.wrapping_add(i * SIZE);
        if SIZE == 2 {
            cpu.store::<u16>(at, field as u16)?;
        } else {
            cpu.store::<u32>(at, field)?;
        }
    }
    Ok(())
}

fn load_environment<const SIZE: u64>(cpu: &mut Cpu, address: u64) -> Result<[u32; 7], Stop> {
    let mut fields = [0; 7];
    for (i, field) in (0..).zip(&mut fields) {
        let at = address.wrapping_add(i * SIZE);
        *field = if SIZE == 2 { cpu.load::<u16>(at)?.into() } else { cpu.load::<u32>(at)? };
    }
    Ok(fields)
}

fn set_environment(cpu: &mut Cpu, fields: [u32; 7]) {
    let fpu = &mut cpu.fpu;
    fpu.set_control_word(fields[0] as u16);
    fpu.set_status_word(fields[1] as u16);
    fpu.set_tag_word(fields[2] as u16);
    fpu.fip = fields[3].into();
    fpu.fop = (fields[4] >> 16) as u16 & 0x7ff;
    fpu.fdp = fields[5].into();
}

/// FNSTENV masks all exceptions after storing.
fn fnstenv<const SIZE: u64>(cpu: &mut Cpu, op: &Op) -> Step {
    x87_ready(cpu)?;
    let address = cpu.address(op);
    cpu.probe_write(address, 7 * SIZE)?;
    store_environment::<SIZE>(cpu, address)?;
    let control = cpu.fpu.control | 0x3f;
    cpu.fpu.set_control_word(control);
    Ok(())
}

fn fldenv<const SIZE: u64>(cpu: &mut Cpu, op: &Op) -> Step {
    stack::ready(cpu)?;
    let address = cpu.address(op);
    let fields = load_environment::<SIZE>(cpu, address)?;
    set_environment(cpu, fields);
    Ok(())
}

/// The environment, then ST(0) to ST(7) of ten bytes each; then initialises.
fn fnsave<const SIZE: u64>(cpu: &mut Cpu, op: &Op) -> Step {
    x87_ready(cpu)?;
    let address = cpu.address(op);
    cpu.probe_write(address, 7 * SIZE + 80)?;
    store_environment::<SIZE>(cpu, address)?;
    for i in 0..8 {
        let at = address.wrapping_add(7 * SIZE + 10 * u64::from(i));
        let register = cpu.fpu.st(i);
        cpu.store::<u64>(at, register.significand)?;
        cpu.store::<u16>(at.wrapping_add(8), register.sign_exponent)?;
    }
    cpu.fpu.initialise();
    Ok(())
}

fn frstor<const SIZE: u64>(cpu: &mut Cpu, op: &Op) -> Step {
    stack::ready(cpu)?;
    let address = cpu.address(op);
    let fields = load_environment::<SIZE>(cpu, address)?;
    let mut registers = [Extended::default(); 8];
    for (i, register) in (0..).zip(&mut registers) {
        let at = address.wrapping_add(7 * SIZE + 10 * i);
        register.significand = cpu.load::<u64>(at)?;
        register.sign_exponent = cpu.load::<u16>(at.wrapping_add(8))?;
    }
    set_environment(cpu, fields);
    for (i, register) in (0..).zip(registers) {
        let physical = cpu.fpu.physical(i);
        cpu.fpu.x87[physical] = register;
    }
    Ok(())
}

fn ffree<const POP: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    stack::begin(cpu, op)?;
    let physical = cpu.fpu.physical(op.dst);
    cpu.fpu.full &= !(1 << physical);
    cpu.fpu.status &= !C1;
    if POP {
        cpu.fpu.pop();
    }
    Ok(())
}

/// FINCSTP and FDECSTP: the top moves, tags do not.
fn turn(cpu: &mut Cpu, op: &Op) -> Step {
    stack::begin(cpu, op)?;
    cpu.fpu.top = cpu.fpu.top.wrapping_add(op.aux) & 7;
    cpu.fpu.status &= !C1;
    Ok(())
}
