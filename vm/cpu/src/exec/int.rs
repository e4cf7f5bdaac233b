//! The shared parts of the integer families: sized operands, addressing, the arithmetic with its flags, and the way
//! from an op to the next.
//!
//! Handlers are generic over the operand size `T` ([`Width`]) and over where the operand is that the instruction's
//! ModRM byte names, `K` ([`Place`]): in a register, or in memory addressed in one of three ways, of which the first
//! two are the common ones and cheap.

use crate::cpu::Cpu;
use crate::flags::Flags;
pub(super) use crate::kind::{Operand, Place, Width};
use crate::memory::Value;
use crate::op::{NONE, Op, RIP_BASE, Step, Stop};
use iced_x86::{Instruction, OpKind};

pub(crate) const REG: u8 = Place::Register as u8;
const BASE: u8 = Place::Base as u8;
const INDEX: u8 = Place::Index as u8;

/// An integer operand. Values travel zero-extended in `u64`.
pub(crate) trait Int: Value {
    const BITS: u32;
    const SIGN: u64 = 1 << (Self::BITS - 1);
    const MASK: u64 = u64::MAX >> (64 - Self::BITS);
    fn from_wide(wide: u64) -> Self;
    fn wide(self) -> u64;
    fn get(cpu: &Cpu, register: u8) -> u64;
    fn set(cpu: &mut Cpu, register: u8, value: u64);

    #[inline(always)]
    fn sign_extend(value: u64) -> u64 {
        ((value << (64 - Self::BITS)) as i64 >> (64 - Self::BITS)) as u64
    }
}

#[inline(always)]
fn slot(cpu: &mut Cpu, register: u8) -> &mut u64 {
    &mut cpu.regs[usize::from(register & 15)]
}

impl Int for u8 {
    const BITS: u32 = 8;
    #[inline(always)]
    fn from_wide(wide: u64) -> Self {
        wide as u8
    }
    #[inline(always)]
    fn wide(self) -> u64 {
        u64::from(self)
    }
    #[inline(always)]
    fn get(cpu: &Cpu, register: u8) -> u64 {
        // 16 to 19 are the second bytes of the first four.
        (cpu.regs[usize::from(register & 15)] >> ((register >> 4 & 1) * 8)) & 0xff
    }
    #[inline(always)]
    fn set(cpu: &mut Cpu, register: u8, value: u64) {
        let shift = (register >> 4 & 1) * 8;
        let place = slot(cpu, register);
        *place = *place & !(0xff << shift) | (value & 0xff) << shift;
    }
}

impl Int for u16 {
    const BITS: u32 = 16;
    #[inline(always)]
    fn from_wide(wide: u64) -> Self {
        wide as u16
    }
    #[inline(always)]
    fn wide(self) -> u64 {
        u64::from(self)
    }
    #[inline(always)]
    fn get(cpu: &Cpu, register: u8) -> u64 {
        cpu.regs[usize::from(register & 15)] & 0xffff
    }
    #[inline(always)]
    fn set(cpu: &mut Cpu, register: u8, value: u64) {
        let place = slot(cpu, register);
        *place = *place & !0xffff | value & 0xffff;
    }
}

impl Int for u32 {
    const BITS: u32 = 32;
    #[inline(always)]
    fn from_wide(wide: u64) -> Self {
        wide as u32
    }
    #[inline(always)]
    fn wide(self) -> u64 {
        u64::from(self)
    }
    #[inline(always)]
    fn get(cpu: &Cpu, register: u8) -> u64 {
        cpu.regs[usize::from(register & 15)] & 0xffff_ffff
    }
    #[inline(always)]
    fn set(cpu: &mut Cpu, register: u8, value: u64) {
        *slot(cpu, register) = value & 0xffff_ffff;
    }
}

impl Int for u64 {
    const BITS: u32 = 64;
    #[inline(always)]
    fn from_wide(wide: u64) -> Self {
        wide
    }
    #[inline(always)]
    fn wide(self) -> u64 {
        self
    }
    #[inline(always)]
    fn get(cpu: &Cpu, register: u8) -> u64 {
        cpu.regs[usize::from(register & 15)]
    }
    #[inline(always)]
    fn set(cpu: &mut Cpu, register: u8, value: u64) {
        *slot(cpu, register) = value;
    }
}

/// Goes on with the block's next op without going back to the run loop, if there is one to be executed. With
/// optimisation this is a jump; without, the calls nest no deeper than a block is long.
#[inline(always)]
pub(crate) fn next(cpu: &mut Cpu, op: &Op) -> Step {
    let done = cpu.done.wrapping_add(1);
    if done >= cpu.end {
        return Ok(());
    }
    cpu.done = done;
    // SAFETY: `op` is element `done - 1` of the running block's ops, and `end` is at most their number.
    let following = unsafe { &*std::ptr::from_ref(op).add(1) };
    (following.run)(cpu, following)
}

/// Linear address of a memory operand of kind `K`.
#[inline(always)]
pub(crate) fn address<const K: u8>(cpu: &Cpu, op: &Op) -> u64 {
    let mem = &op.mem;
    let base = |register: u8| cpu.regs[usize::from(register & 15)];
    match K {
        BASE => base(mem.base).wrapping_add(mem.disp as u64),
        INDEX => {
            base(mem.base).wrapping_add(base(mem.index) << (mem.scale & 3)).wrapping_add(mem.disp as u64)
        }
        _ => cpu.address(op),
    }
}

/// Reads the operand of kind `K`; `register` is where it is if that is [`REG`].
#[inline(always)]
pub(crate) fn read<T: Int, const K: u8>(cpu: &mut Cpu, op: &Op, register: u8) -> Result<u64, Stop> {
    if K == REG { Ok(T::get(cpu, register)) } else { Ok(cpu.load::<T>(address::<K>(cpu, op))?.wide()) }
}

#[inline(always)]
pub(crate) fn write<T: Int, const K: u8>(cpu: &mut Cpu, op: &Op, register: u8, value: u64) -> Step {
    if K == REG {
        T::set(cpu, register, value);
        Ok(())
    } else {
        cpu.store::<T>(address::<K>(cpu, op), T::from_wide(value))
    }
}

/// Reads, changes and writes the operand; `change` is called only when nothing can fault any more.
#[inline(always)]
pub(crate) fn modify<T: Int, const K: u8>(
    cpu: &mut Cpu,
    op: &Op,
    register: u8,
    change: impl FnOnce(&mut Cpu, u64) -> u64,
) -> Step {
    if K == REG {
        let old = T::get(cpu, register);
        let new = change(cpu, old);
        T::set(cpu, register, new);
        Ok(())
    } else {
        cpu.modify::<T>(address::<K>(cpu, op), |cpu, old| T::from_wide(change(cpu, old.wide())))
    }
}

/// Flags of a sum or difference: `result` is the wrapping 64-bit one of the zero-extended operands (and carry);
/// `carry` is what left bit 63, which counts for 64-bit operands only.
#[inline(always)]
fn arithmetic<T: Int>(a: u64, b: u64, result: u64, carry: bool) -> Flags {
    // Carries (or borrows) into each bit.
    let into = a ^ b ^ result;
    let top = if T::BITS == 64 {
        u64::from(carry) << 63 | (into >> 1) & Flags::OVERFLOW
    } else {
        (into << (63 - T::BITS)) & (Flags::CARRY | Flags::OVERFLOW)
    };
    Flags { result: T::sign_extend(result), aux: top | into & Flags::ADJUST }
}

#[inline(always)]
pub(crate) fn add<T: Int>(cpu: &mut Cpu, a: u64, b: u64) -> u64 {
    let (result, carry) = a.overflowing_add(b);
    cpu.flags = arithmetic::<T>(a, b, result, carry);
    result
}

#[inline(always)]
pub(crate) fn sub<T: Int>(cpu: &mut Cpu, a: u64, b: u64) -> u64 {
    let (result, borrow) = a.overflowing_sub(b);
    cpu.flags = arithmetic::<T>(a, b, result, borrow);
    result
}

#[inline(always)]
pub(crate) fn adc<T: Int>(cpu: &mut Cpu, a: u64, b: u64) -> u64 {
    let (partial, first) = a.overflowing_add(b);
    let (result, second) = partial.overflowing_add(u64::from(cpu.flags.carry()));
    cpu.flags = arithmetic::<T>(a, b, result, first | second);
    result
}

#[inline(always)]
pub(crate) fn sbb<T: Int>(cpu: &mut Cpu, a: u64, b: u64) -> u64 {
    let (partial, first) = a.overflowing_sub(b);
    let (result, second) = partial.overflowing_sub(u64::from(cpu.flags.carry()));
    cpu.flags = arithmetic::<T>(a, b, result, first | second);
    result
}

/// Flags of a bitwise operation: carry and overflow clear, adjust clear (it is undefined).
#[inline(always)]
pub(crate) fn logic<T: Int>(cpu: &mut Cpu, result: u64) -> u64 {
    cpu.flags = Flags { result: T::sign_extend(result), aux: 0 };
    result
}

/// Adds or subtracts one, with the carry flag kept.
#[inline(always)]
pub(crate) fn step<T: Int, const DOWN: bool>(cpu: &mut Cpu, a: u64) -> u64 {
    let old = cpu.flags.aux;
    let result = if DOWN { sub::<T>(cpu, a, 1) } else { add::<T>(cpu, a, 1) };
    let flip = (cpu.flags.aux ^ old) & Flags::CARRY;
    cpu.flags.aux ^= flip | flip >> 1;
    result
}

impl Flags {
    /// Changes CF alone.
    #[inline(always)]
    pub(crate) fn set_carry(&mut self, carry: bool) {
        let flip = (self.aux ^ u64::from(carry) << 63) & Self::CARRY;
        self.aux ^= flip | flip >> 1;
    }

    /// Changes CF and OF alone.
    #[inline(always)]
    pub(crate) fn set_carry_overflow(&mut self, carry: bool, overflow: bool) {
        self.aux = self.aux & !(Self::CARRY | Self::OVERFLOW)
            | u64::from(carry) << 63
            | u64::from(carry ^ overflow) << 62;
    }
}

/// Describes an operand of the instruction: a general register or memory, of a size that integers have.
pub(crate) fn operand(instruction: &Instruction, op: &Op, number: u32) -> Option<Operand> {
    let bytes = match instruction.op_kind(number) {
        OpKind::Register => Some(instruction.op_register(number)).filter(|r| r.is_gpr())?.size(),
        OpKind::Memory => instruction.memory_size().size(),
        _ => return None,
    };
    Some(Operand { place: place(instruction, op, number), width: Width::of(bytes)? })
}

/// Where an operand of the instruction is.
pub(crate) fn place(instruction: &Instruction, op: &Op, number: u32) -> Place {
    let mem = &op.mem;
    if instruction.op_kind(number) != OpKind::Memory {
        return Place::Register;
    }
    if mem.seg != NONE || mem.cut != 0 || mem.base == NONE || mem.base == RIP_BASE {
        return Place::Anywhere;
    }
    if mem.index == NONE { Place::Base } else { Place::Index }
}

/// The instance of a handler `f::<T, K, ...>` for an operand's size and place.
macro_rules! instance {
    ($operand:expr, $f:ident $(, $c:expr)*) => {{
        use $crate::kind::{Operand, Place, Width};
        use $crate::op::Handler;
        let Operand { width, place } = $operand;
        match (width, place) {
            (Width::Byte, Place::Register) => $f::<u8, 0 $(, { $c })*> as Handler,
            (Width::Byte, Place::Base) => $f::<u8, 1 $(, { $c })*> as Handler,
            (Width::Byte, Place::Index) => $f::<u8, 2 $(, { $c })*> as Handler,
            (Width::Byte, Place::Anywhere) => $f::<u8, 3 $(, { $c })*> as Handler,
            (Width::Word, Place::Register) => $f::<u16, 0 $(, { $c })*> as Handler,
            (Width::Word, Place::Base) => $f::<u16, 1 $(, { $c })*> as Handler,
            (Width::Word, Place::Index) => $f::<u16, 2 $(, { $c })*> as Handler,
            (Width::Word, Place::Anywhere) => $f::<u16, 3 $(, { $c })*> as Handler,
            (Width::Dword, Place::Register) => $f::<u32, 0 $(, { $c })*> as Handler,
            (Width::Dword, Place::Base) => $f::<u32, 1 $(, { $c })*> as Handler,
            (Width::Dword, Place::Index) => $f::<u32, 2 $(, { $c })*> as Handler,
            (Width::Dword, Place::Anywhere) => $f::<u32, 3 $(, { $c })*> as Handler,
            (Width::Qword, Place::Register) => $f::<u64, 0 $(, { $c })*> as Handler,
            (Width::Qword, Place::Base) => $f::<u64, 1 $(, { $c })*> as Handler,
            (Width::Qword, Place::Index) => $f::<u64, 2 $(, { $c })*> as Handler,
            (Width::Qword, Place::Anywhere) => $f::<u64, 3 $(, { $c })*> as Handler,
        }
    }};
}

/// The same for handlers that are not worth a version for each kind of addressing.
macro_rules! rare_instance {
    ($operand:expr, $f:ident $(, $c:expr)*) => {{
        use $crate::kind::{Operand, Place, Width};
        use $crate::op::Handler;
        let Operand { width, place } = $operand;
        match (width, place == Place::Register) {
            (Width::Byte, true) => $f::<u8, 0 $(, { $c })*> as Handler,
            (Width::Byte, false) => $f::<u8, 3 $(, { $c })*> as Handler,
            (Width::Word, true) => $f::<u16, 0 $(, { $c })*> as Handler,
            (Width::Word, false) => $f::<u16, 3 $(, { $c })*> as Handler,
            (Width::Dword, true) => $f::<u32, 0 $(, { $c })*> as Handler,
            (Width::Dword, false) => $f::<u32, 3 $(, { $c })*> as Handler,
            (Width::Qword, true) => $f::<u64, 0 $(, { $c })*> as Handler,
            (Width::Qword, false) => $f::<u64, 3 $(, { $c })*> as Handler,
        }
    }};
}

pub(crate) use {instance, rare_instance};
