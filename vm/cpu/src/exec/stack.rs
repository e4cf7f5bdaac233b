//! push, pop, pusha, popa, pushf, popf, enter, leave.

use super::int::*;
use crate::block::is_long;
use crate::cpu::Cpu;
use crate::flags::{IF, IOPL, RF, VIF, VIP, VM};
use crate::kind::Kind;
use crate::op::{Handler, Op, Step, Stop};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

const RSP: usize = 4;
const RBP: usize = 5;

#[inline(always)]
pub(super) fn stack_pointer<const LONG: bool>(cpu: &Cpu) -> u64 {
    if LONG { cpu.regs[RSP] } else { cpu.regs[RSP] & 0xffff_ffff }
}

#[inline(always)]
pub(super) fn set_stack_pointer<const LONG: bool>(cpu: &mut Cpu, value: u64) {
    cpu.regs[RSP] = if LONG { value } else { value & 0xffff_ffff };
}

/// Linear address of a stack location.
#[inline(always)]
fn linear<const LONG: bool>(cpu: &Cpu, offset: u64) -> u64 {
    if LONG { offset } else { cpu.sys.segs[2].base.wrapping_add(offset & 0xffff_ffff) & 0xffff_ffff }
}

#[inline(always)]
pub(super) fn push<T: Int, const LONG: bool>(cpu: &mut Cpu, value: u64) -> Step {
    let top = stack_pointer::<LONG>(cpu).wrapping_sub(T::BYTES);
    let stored = cpu.store::<T>(linear::<LONG>(cpu, top), T::from_wide(value));
    stored.map_err(|stop| cpu.stack_fault(stop))?;
    set_stack_pointer::<LONG>(cpu, top);
    Ok(())
}

#[inline(always)]
pub(super) fn pop<T: Int, const LONG: bool>(cpu: &mut Cpu) -> Result<u64, Stop> {
    let top = stack_pointer::<LONG>(cpu);
    let loaded = cpu.load::<T>(linear::<LONG>(cpu, top));
    let value = loaded.map_err(|stop| cpu.stack_fault(stop))?.wide();
    set_stack_pointer::<LONG>(cpu, top.wrapping_add(T::BYTES));
    Ok(value)
}

fn push_rm<T: Int, const K: u8, const LONG: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = read::<T, K>(cpu, op, op.dst)?;
    push::<T, LONG>(cpu, value)?;
    next(cpu, op)
}

fn push_imm<T: Int, const LONG: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    push::<T, LONG>(cpu, op.imm)?;
    next(cpu, op)
}

/// A destination that is addressed through RSP is addressed with the value after the pop.
fn pop_rm<T: Int, const K: u8, const LONG: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let before = cpu.regs[RSP];
    let value = pop::<T, LONG>(cpu)?;
    if let Err(stop) = write::<T, K>(cpu, op, op.dst, value) {
        cpu.regs[RSP] = before;
        return Err(stop);
    }
    next(cpu, op)
}

fn pushf<T: Int, const LONG: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let flags = cpu.rflags() & !(VM | RF);
    push::<T, LONG>(cpu, flags)?;
    next(cpu, op)
}

fn popf<T: Int, const LONG: bool>(cpu: &mut Cpu, _: &Op) -> Step {
    let new = pop::<T, LONG>(cpu)?;
    let old = cpu.rflags();
    let mut fixed = !T::MASK | VM | VIF | VIP | RF;
    if cpu.cpl != 0 {
        fixed |= IOPL;
    }
    if u64::from(cpu.cpl) > (old & IOPL) >> 12 {
        fixed |= IF;
    }
    let merged = new & !fixed | old & fixed;
    cpu.set_rflags(merged & !(RF | VIF | VIP));
    Err(Stop::End)
}

/// All eight, 32-bit code only.
fn pusha<T: Int, const LONG: bool>(cpu: &mut Cpu, _: &Op) -> Step {
    let top = stack_pointer::<LONG>(cpu);
    let all = linear::<LONG>(cpu, top.wrapping_sub(8 * T::BYTES));
    cpu.probe_write(all, 8 * T::BYTES)?;
    for register in 0..8u8 {
        let place = linear::<LONG>(cpu, top.wrapping_sub((u64::from(register) + 1) * T::BYTES));
        let value = T::get(cpu, register);
        cpu.store::<T>(place, T::from_wide(value))?;
    }
    set_stack_pointer::<LONG>(cpu, top.wrapping_sub(8 * T::BYTES));
    Ok(())
}

fn popa<T: Int, const LONG: bool>(cpu: &mut Cpu, _: &Op) -> Step {
    let top = stack_pointer::<LONG>(cpu);
    cpu.probe_read(linear::<LONG>(cpu, top), 8 * T::BYTES)?;
    for register in (0..8u8).filter(|register| usize::from(*register) != RSP) {
        let place = linear::<LONG>(cpu, top.wrapping_add((7 - u64::from(register)) * T::BYTES));
        let value = cpu.load::<T>(place)?.wide();
        T::set(cpu, register, value);
    }
    set_stack_pointer::<LONG>(cpu, top.wrapping_add(8 * T::BYTES));
    Ok(())
}

fn leave<T: Int, const LONG: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let frame = if LONG { cpu.regs[RBP] } else { cpu.regs[RBP] & 0xffff_ffff };
    let loaded = cpu.load::<T>(linear::<LONG>(cpu, frame));
    let value = loaded.map_err(|stop| cpu.stack_fault(stop))?.wide();
    set_stack_pointer::<LONG>(cpu, frame.wrapping_add(T::BYTES));
    T::set(cpu, RBP as u8, value);
    next(cpu, op)
}

/// `imm`: bytes of locals; `aux`: nesting level.
fn enter<T: Int, const LONG: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let before = cpu.regs[RSP];
    let level = u64::from(op.aux & 31);
    let body = |cpu: &mut Cpu| {
        let old_frame = T::get(cpu, RBP as u8);
        push::<T, LONG>(cpu, old_frame)?;
        let frame = stack_pointer::<LONG>(cpu);
        for outer in 1..level {
            let place = linear::<LONG>(cpu, cpu.regs[RBP].wrapping_sub(outer * T::BYTES));
            let link = cpu.load::<T>(place)?.wide();
            push::<T, LONG>(cpu, link)?;
        }
        if level > 0 {
            push::<T, LONG>(cpu, frame)?;
        }
        let top = stack_pointer::<LONG>(cpu).wrapping_sub(op.imm);
        // The new top must be writable, or the instruction faults.
        cpu.probe_write(linear::<LONG>(cpu, top), T::BYTES)?;
        T::set(cpu, RBP as u8, frame);
        set_stack_pointer::<LONG>(cpu, top);
        Ok(())
    };
    body(cpu).inspect_err(|_| cpu.regs[RSP] = before)
}

/// The instance for an operand size and mode.
macro_rules! sized {
    ($width:expr, $long:expr, $f:ident) => {
        match ($width, $long) {
            (Width::Qword, true) => $f::<u64, true> as Handler,
            (Width::Word, true) => $f::<u16, true> as Handler,
            (Width::Dword, false) => $f::<u32, false> as Handler,
            (Width::Word, false) => $f::<u16, false> as Handler,
            _ => return None,
        }
    };
}

/// What the stack instructions do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stack {
    Push,
    PushImmediate,
    Pop,
    Pushf,
    Popf,
    Pusha,
    Popa,
    Leave,
    /// `imm`: the frame's bytes; `aux`: the nesting level.
    Enter,
}

impl Stack {
    pub(crate) fn handler(self, operand: Operand, long: bool) -> Option<Handler> {
        let width = operand.width;
        Some(match (self, long) {
            (Self::Push, true) => instance!(operand, push_rm, true),
            (Self::Push, false) => rare_instance!(operand, push_rm, false),
            (Self::Pop, true) => instance!(operand, pop_rm, true),
            (Self::Pop, false) => rare_instance!(operand, pop_rm, false),
            (Self::PushImmediate, _) => sized!(width, long, push_imm),
            (Self::Pushf, _) => sized!(width, long, pushf),
            (Self::Popf, _) => sized!(width, long, popf),
            (Self::Pusha, _) => sized!(width, long, pusha),
            (Self::Popa, _) => sized!(width, long, popa),
            (Self::Leave, _) => sized!(width, long, leave),
            (Self::Enter, _) => sized!(width, long, enter),
        })
    }
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Kind> {
    use Mnemonic::*;
    let long = is_long(instruction);
    let moved = instruction.stack_pointer_increment().unsigned_abs() as usize;
    let implied = |bytes| Some(Operand { place: Place::Register, width: Width::of(bytes)? });
    let mnemonic = instruction.mnemonic();
    let (what, operand) = match mnemonic {
        Push if !matches!(instruction.op0_kind(), OpKind::Register | OpKind::Memory) => {
            (Stack::PushImmediate, implied(moved)?)
        }
        Push => (Stack::Push, operand(instruction, op, 0)?),
        Pop => (Stack::Pop, operand(instruction, op, 0)?),
        Pushf | Pushfd | Pushfq => (Stack::Pushf, implied(moved)?),
        Popf | Popfd | Popfq => (Stack::Popf, implied(moved)?),
        Pusha | Pushad => (Stack::Pusha, implied(moved / 8)?),
        Popa | Popad => (Stack::Popa, implied(moved / 8)?),
        Leave => {
            let bytes = match instruction.code() {
                Code::Leaveq => 8,
                Code::Leaved => 4,
                _ if long => 2,
                _ => return None,
            };
            (Stack::Leave, implied(bytes)?)
        }
        Enter => {
            op.imm = u64::from(instruction.immediate16());
            op.aux = instruction.immediate8_2nd();
            let bytes = match instruction.code() {
                Code::Enterq_imm16_imm8 => 8,
                Code::Enterd_imm16_imm8 => 4,
                _ if long => 2,
                _ => return None,
            };
            (Stack::Enter, implied(bytes)?)
        }
        _ => return None,
    };
    if op.mem.base == crate::op::NONE && instruction.op0_kind() != OpKind::Memory {
        // A stack access without a memory operand: tells #SS from #GP.
        op.mem.base = if mnemonic == Leave { 5 } else { 4 };
    }
    Some(Kind::Stack { what, operand, long })
}
