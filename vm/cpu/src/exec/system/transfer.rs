//! Transfers of control that load CS: far jumps, calls and returns, and iret. Far jumps and calls stay at the same
//! privilege: call gates, task gates and task switches are refused (#GP with the gate's selector), as are returns to
//! virtual-8086 mode.

use super::segments::rpl;
use super::state::{SS, SegmentRegister, is_canonical};
use crate::cpu::Cpu;
use crate::flags::{AC, AF, CF, DF, ID, IF, IOPL, NT, OF, PF, RF, SF, TF, VIF, VIP, VM, ZF};
use crate::interrupt::vector;
use crate::op::{Op, Step, Stop};

/// What a return brings back of RFLAGS, whatever the privilege.
const FLAGS_ALWAYS: u64 = CF | PF | AF | ZF | SF | TF | DF | OF | NT | AC | ID;

impl Cpu {
    /// Linear address of the stack, `offset` bytes above its pointer.
    fn stack_address(&self, offset: u64) -> u64 {
        let pointer = self.regs[4].wrapping_add(offset);
        if self.long {
            pointer
        } else {
            self.sys.segs[SS].base.wrapping_add(pointer & 0xffff_ffff) & 0xffff_ffff
        }
    }

    /// RSP when `bytes` more have been popped.
    pub(super) fn stack_pointer(&self, bytes: u64) -> u64 {
        let pointer = self.regs[4].wrapping_add(bytes);
        if self.long { pointer } else { pointer & 0xffff_ffff }
    }

    /// Where a push of `bytes` goes: linear address, and RSP after it.
    pub(super) fn stack_below(&self, bytes: u64) -> (u64, u64) {
        (self.stack_address(bytes.wrapping_neg()), self.stack_pointer(bytes.wrapping_neg()))
    }

    /// A value on the stack, `offset` bytes above its pointer, and the offset of what is above it.
    pub(super) fn stack_value(&mut self, offset: u64, bytes: u64) -> Result<(u64, u64), Stop> {
        let address = self.stack_address(offset);
        let value = match bytes {
            2 => self.load::<u16>(address)?.into(),
            4 => self.load::<u32>(address)?.into(),
            _ => self.load::<u64>(address)?,
        };
        Ok((value, offset.wrapping_add(bytes)))
    }

    /// Offset and selector of a far pointer in memory. `aux`: bytes of the offset.
    pub(super) fn far_pointer(&mut self, op: &Op) -> Result<(u64, u16), Stop> {
        let address = self.address(op);
        let offset = match op.aux {
            2 => self.load::<u16>(address)?.into(),
            4 => self.load::<u32>(address)?.into(),
            _ => self.load::<u64>(address)?,
        };
        let selector = self.load::<u16>(address.wrapping_add(op.aux.into()))?;
        Ok((offset, selector))
    }

    /// Whether `segment`'s code may begin at `rip`.
    fn require_target(&mut self, segment: &SegmentRegister, rip: u64) -> Step {
        let long = self.sys.is_long_mode() && segment.is_long();
        let good = if long { is_canonical(rip) } else { rip <= segment.limit.into() };
        if good { Ok(()) } else { Err(self.general_protection()) }
    }

    /// The code segment of a far jump or call, at the same privilege.
    fn far_target(&mut self, selector: u16, rip: u64) -> Result<SegmentRegister, Stop> {
        let mut segment = self.code_segment(selector, 0)?;
        let allowed = if segment.is_conforming() {
            segment.dpl() <= self.cpl
        } else {
            segment.dpl() == self.cpl && rpl(selector) <= self.cpl
        };
        if !allowed {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        self.settle_code(&mut segment, 0)?;
        self.require_target(&segment, rip)?;
        Ok(segment)
    }

    /// The code segment of a return, to the same or less privilege.
    fn return_target(&mut self, selector: u16, rip: u64) -> Result<SegmentRegister, Stop> {
        let mut segment = self.code_segment(selector, 0)?;
        let level = rpl(selector);
        let allowed = level >= self.cpl
            && if segment.is_conforming() { segment.dpl() <= level } else { segment.dpl() == level };
        if !allowed {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        self.settle_code(&mut segment, 0)?;
        self.require_target(&segment, rip)?;
        Ok(segment)
    }

    /// The stack segment of a return to `code`.
    fn return_stack(&mut self, selector: u16, code: &SegmentRegister) -> Result<SegmentRegister, Stop> {
        let level = rpl(code.selector);
        if selector & 0xfffc == 0 {
            let long = self.sys.is_long_mode() && code.is_long();
            if !long || level == 3 || rpl(selector) != level {
                return Err(self.general_protection());
            }
            return Ok(SegmentRegister { selector, ..SegmentRegister::default() });
        }
        self.stack_segment(selector, level, vector::GP)
    }

    /// Goes to checked segments, with the stack's content behind `pointer`.
    fn finish_return(
        &mut self,
        code: SegmentRegister,
        rip: u64,
        stack: Option<SegmentRegister>,
        pointer: u64,
    ) {
        let outer = rpl(code.selector) > self.cpl;
        self.set_code(code, rpl(code.selector));
        if let Some(stack) = stack {
            self.sys.segs[SS] = stack;
        }
        self.regs[4] =
            if self.long || stack.is_none_or(|s| s.is_big()) { pointer } else { pointer & 0xffff_ffff };
        if outer {
            self.drop_privileged_segments();
        }
        self.rip = rip;
    }
}

/// Target of a far jump or call: in memory, or (`src` is 1) offset and selector in the instruction.
fn far_operand(cpu: &mut Cpu, op: &Op) -> Result<(u64, u16), Stop> {
    if op.src == 1 { Ok((op.imm & 0xffff_ffff, (op.imm >> 32) as u16)) } else { cpu.far_pointer(op) }
}

pub(super) fn far_jump(cpu: &mut Cpu, op: &Op) -> Step {
    let (rip, selector) = far_operand(cpu, op)?;
    let segment = cpu.far_target(selector, rip)?;
    let cpl = cpu.cpl;
    cpu.set_code(segment, cpl);
    cpu.rip = rip;
    Err(Stop::Jump)
}

/// `aux`: bytes of the offset, and of both values that are pushed.
pub(super) fn far_call(cpu: &mut Cpu, op: &Op) -> Step {
    let (rip, selector) = far_operand(cpu, op)?;
    let segment = cpu.far_target(selector, rip)?;
    let bytes = u64::from(op.aux);
    let (address, pointer) = cpu.stack_below(2 * bytes);
    let frame = [cpu.next_address(op), cpu.sys.segs[super::state::CS].selector.into()];
    cpu.probe_write(address, 2 * bytes)?;
    for (value, at) in frame.into_iter().zip([address, address.wrapping_add(bytes)]) {
        match op.aux {
            2 => cpu.store::<u16>(at, value as u16)?,
            4 => cpu.store::<u32>(at, value as u32)?,
            _ => cpu.store::<u64>(at, value)?,
        }
    }
    let cpl = cpu.cpl;
    cpu.set_code(segment, cpl);
    cpu.regs[4] = pointer;
    cpu.rip = rip;
    Err(Stop::Jump)
}

/// `retf`. `aux`: bytes of the values popped; `imm`: bytes that are dropped besides.
pub(super) fn far_return(cpu: &mut Cpu, op: &Op) -> Step {
    let bytes = op.aux.into();
    let (rip, at) = cpu.stack_value(0, bytes)?;
    let (selector, at) = cpu.stack_value(at, bytes)?;
    let code = cpu.return_target(selector as u16, rip)?;
    let at = at.wrapping_add(op.imm);
    if rpl(code.selector) == cpu.cpl {
        let pointer = cpu.stack_pointer(at);
        cpu.finish_return(code, rip, None, pointer);
        return Err(Stop::Jump);
    }
    let (pointer, at) = cpu.stack_value(at, bytes)?;
    let (selector, _) = cpu.stack_value(at, bytes)?;
    let stack = cpu.return_stack(selector as u16, &code)?;
    cpu.finish_return(code, rip, Some(stack), pointer.wrapping_add(op.imm));
    Err(Stop::Jump)
}

/// `iret`. `aux`: bytes of the values popped.
pub(super) fn interrupt_return(cpu: &mut Cpu, op: &Op) -> Step {
    // Also when the return faults (Intel SDM volume 3, "Handling Multiple NMIs" and "NMI Unblocking Due to IRET").
    if std::mem::take(&mut cpu.sys.nmi_blocked) {
        cpu.recheck();
    }
    let old = cpu.rflags();
    if old & NT != 0 {
        // Back to another task, of which there are none.
        return Err(cpu.general_protection());
    }
    let bytes = op.aux.into();
    let (rip, at) = cpu.stack_value(0, bytes)?;
    let (selector, at) = cpu.stack_value(at, bytes)?;
    let (flags, at) = cpu.stack_value(at, bytes)?;
    if flags & VM != 0 && op.aux != 2 && !cpu.sys.is_long_mode() {
        return Err(cpu.general_protection());
    }
    let code = cpu.return_target(selector as u16, rip)?;
    let (stack, pointer) = if cpu.long || rpl(code.selector) != cpu.cpl {
        let (pointer, at) = cpu.stack_value(at, bytes)?;
        let (selector, _) = cpu.stack_value(at, bytes)?;
        (Some(cpu.return_stack(selector as u16, &code)?), pointer)
    } else {
        (None, cpu.stack_pointer(at))
    };

    let mut mask = FLAGS_ALWAYS;
    if cpu.cpl == 0 {
        mask |= IOPL | VIF | VIP;
    }
    if u64::from(cpu.cpl) <= (old & IOPL) >> 12 {
        mask |= IF;
    }
    if cpu.sys.breaks() {
        mask |= RF;
    }
    if op.aux == 2 {
        mask &= 0xffff;
    }
    cpu.finish_return(code, rip, stack, pointer);
    cpu.set_rflags(old & !mask | flags & mask);
    Err(Stop::Jump)
}
