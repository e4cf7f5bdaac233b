//! Descriptor tables and segment registers: loading them with all checks, and the instructions that look at them.

use super::state::{
    CS, DS, FS, GS, SS, SYSTEM_LDT, SYSTEM_TSS, SYSTEM_TSS_BUSY, SegmentRegister, TYPE_ACCESSED, is_canonical,
};
use super::write_register;
use crate::cpu::Cpu;
use crate::flags::{STATUS, ZF};
use crate::interrupt::vector;
use crate::op::{Op, Step, Stop};

/// The part of a selector that names a descriptor, as in error codes.
fn index_of(selector: u16) -> u32 {
    u32::from(selector & 0xfffc)
}

pub(super) fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

impl Cpu {
    /// An exception about a selector. `external`: 1 when an interrupt or an earlier exception was being delivered.
    #[cold]
    pub(crate) fn selector_fault(&mut self, vector: u8, selector: u16, external: u32) -> Stop {
        self.raise(vector, Some(index_of(selector) | external))
    }

    /// Linear address of a selector's descriptor, if `bytes` bytes of it are in its table.
    fn descriptor_address(&self, selector: u16, bytes: u32) -> Option<u64> {
        let (base, limit) = if selector & 4 == 0 {
            (self.sys.gdtr.0, self.sys.gdtr.1.into())
        } else if self.sys.ldtr.is_present() {
            (self.sys.ldtr.base, self.sys.ldtr.limit)
        } else {
            return None;
        };
        let offset = u32::from(selector & !7);
        (offset + bytes - 1 <= limit).then(|| base.wrapping_add(offset.into()))
    }

    /// A descriptor's low eight bytes; none when the table ends before it.
    pub(super) fn descriptor(&mut self, selector: u16) -> Result<Option<u64>, Stop> {
        match self.descriptor_address(selector, 8) {
            Some(address) => self.load_system::<u64>(address).map(Some),
            None => Ok(None),
        }
    }

    /// Sets the accessed bit of a code or data descriptor that is being loaded.
    fn mark_accessed(&mut self, segment: &mut SegmentRegister) -> Step {
        if segment.attributes & TYPE_ACCESSED == 0 {
            segment.attributes |= TYPE_ACCESSED;
            if let Some(address) = self.descriptor_address(segment.selector, 8) {
                self.store_system(address.wrapping_add(5), segment.attributes as u8)?;
            }
        }
        Ok(())
    }

    /// The code segment that `selector` names, checked but for privilege, presence and mode.
    pub(crate) fn code_segment(&mut self, selector: u16, external: u32) -> Result<SegmentRegister, Stop> {
        if index_of(selector) == 0 {
            return Err(self.raise(vector::GP, Some(external)));
        }
        let segment = self
            .descriptor(selector)?
            .map(|descriptor| SegmentRegister::from_descriptor(selector, descriptor))
            .filter(SegmentRegister::is_code);
        segment.ok_or_else(|| self.selector_fault(vector::GP, selector, external))
    }

    /// The last checks of a code segment, and its accessed bit.
    pub(crate) fn settle_code(&mut self, segment: &mut SegmentRegister, external: u32) -> Step {
        if self.sys.is_long_mode() && segment.is_long() && segment.is_big() {
            return Err(self.selector_fault(vector::GP, segment.selector, external));
        }
        if !segment.is_present() {
            return Err(self.selector_fault(vector::NP, segment.selector, external));
        }
        self.mark_accessed(segment)
    }

    /// Makes a checked segment CS at privilege level `cpl`.
    pub(crate) fn set_code(&mut self, mut segment: SegmentRegister, cpl: u8) {
        segment.selector = segment.selector & !3 | u16::from(cpl);
        let old = self.sys.segs[CS];
        self.sys.segs[CS] = segment;
        self.cpl = cpl;
        // 64-bit, 32-bit, 16-bit code.
        if (old.attributes ^ segment.attributes) & 0x6000 != 0 {
            self.mode_changed();
        }
    }

    /// A stack segment for privilege level `cpl`, loaded by an instruction; `vector` is what a bad selector raises.
    pub(super) fn stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        vector: u8,
    ) -> Result<SegmentRegister, Stop> {
        let found = self
            .descriptor(selector)?
            .map(|descriptor| SegmentRegister::from_descriptor(selector, descriptor));
        let good = |s: &SegmentRegister| s.is_writable() && s.dpl() == cpl && rpl(selector) == cpl;
        let Some(mut segment) = found.filter(good) else {
            return Err(self.selector_fault(vector, selector, 0));
        };
        if !segment.is_present() {
            return Err(self.selector_fault(vector::SS, selector, 0));
        }
        self.mark_accessed(&mut segment)?;
        Ok(segment)
    }

    /// Loads ES, SS, DS, FS or GS (not CS) as mov, pop and lds do.
    pub(super) fn load_segment(&mut self, register: usize, selector: u16) -> Step {
        if index_of(selector) == 0 {
            // SS may be null in 64-bit mode below CPL 3, with RPL and CPL the same.
            let good = register != SS || self.sys.is_64bit() && self.cpl != 3 && rpl(selector) == self.cpl;
            if !good {
                return Err(self.general_protection());
            }
            self.sys.segs[register] = SegmentRegister { selector, ..SegmentRegister::default() };
            return Ok(());
        }
        let segment = if register == SS {
            self.stack_segment(selector, self.cpl, vector::GP)?
        } else {
            let found = self
                .descriptor(selector)?
                .map(|descriptor| SegmentRegister::from_descriptor(selector, descriptor));
            let cpl = self.cpl;
            let allowed = |s: &SegmentRegister| {
                s.is_readable() && (s.is_conforming() || s.dpl() >= cpl.max(rpl(selector)))
            };
            let Some(mut segment) = found.filter(allowed) else {
                return Err(self.selector_fault(vector::GP, selector, 0));
            };
            if !segment.is_present() {
                return Err(self.selector_fault(vector::NP, selector, 0));
            }
            self.mark_accessed(&mut segment)?;
            segment
        };
        self.sys.segs[register] = segment;
        Ok(())
    }

    /// After a return to less privilege: data segments that are not for it become null.
    pub(super) fn drop_privileged_segments(&mut self) {
        for register in [super::state::ES, DS, FS, GS] {
            let segment = &mut self.sys.segs[register];
            if segment.is_present() && !segment.is_conforming() && segment.dpl() < self.cpl {
                *segment = SegmentRegister::default();
            }
        }
    }

    /// A system segment (LDT, TSS) with the descriptor's upper half in long mode.
    fn system_segment(&mut self, selector: u16, kind: u16) -> Result<(u64, SegmentRegister), Stop> {
        let long = self.sys.is_long_mode();
        let bytes = if long { 16 } else { 8 };
        let address = (selector & 4 == 0).then(|| self.descriptor_address(selector, bytes)).flatten();
        let Some(address) = address else {
            return Err(self.selector_fault(vector::GP, selector, 0));
        };
        let low = self.load_system::<u64>(address)?;
        let high = if long { self.load_system::<u64>(address.wrapping_add(8))? } else { 0 };
        let mut segment = SegmentRegister::from_descriptor(selector, low);
        segment.base |= high << 32;
        if segment.is_memory()
            || segment.kind() != kind
            || high >> 40 & 0x1f != 0
            || !is_canonical(segment.base)
        {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        if !segment.is_present() {
            return Err(self.selector_fault(vector::NP, selector, 0));
        }
        Ok((address, segment))
    }

    fn set_zero_flag(&mut self, zero: bool) {
        let others = self.rflags() & STATUS & !ZF;
        self.set_status(others | if zero { ZF } else { 0 });
    }

    /// The segment that lar, lsl, verr and verw look at, if the program may.
    fn visible_segment(&mut self, selector: u16) -> Result<Option<(SegmentRegister, u64)>, Stop> {
        if index_of(selector) == 0 {
            return Ok(None);
        }
        let level = self.cpl.max(rpl(selector));
        Ok(self
            .descriptor(selector)?
            .map(|descriptor| (SegmentRegister::from_descriptor(selector, descriptor), descriptor))
            .filter(|(segment, _)| segment.is_conforming() || segment.dpl() >= level))
    }

    /// A 16-bit source operand, register or memory.
    fn source_selector(&mut self, op: &Op) -> Result<u16, Stop> {
        if op.src == super::MEMORY {
            let address = self.address(op);
            return self.load::<u16>(address);
        }
        Ok(self.regs[usize::from(op.src)] as u16)
    }
}

/// `mov r/m, sreg`. `dst`: general register or memory, `src`: segment, `aux`: bytes of the register operand.
pub(super) fn mov_from_segment(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = cpu.sys.segs[usize::from(op.src)].selector;
    if op.dst == super::MEMORY {
        let address = cpu.address(op);
        return cpu.store::<u16>(address, selector);
    }
    write_register(cpu, op.dst, op.aux, selector.into());
    Ok(())
}

/// `mov sreg, r/m`. `dst`: segment, `src`: general register or memory.
pub(super) fn mov_to_segment(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = cpu.source_selector(op)?;
    cpu.load_segment(op.dst.into(), selector)?;
    after_segment_load(cpu, op.dst)
}

/// An SS that was just loaded holds interrupts off until the stack pointer is loaded, too.
fn after_segment_load(cpu: &mut Cpu, register: u8) -> Step {
    if usize::from(register) == SS {
        cpu.shadow = true;
        return Err(Stop::End);
    }
    Ok(())
}

/// `push sreg`. `src`: segment, `aux`: bytes.
pub(super) fn push_segment(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = cpu.sys.segs[usize::from(op.src)].selector;
    let (address, pointer) = cpu.stack_below(op.aux.into());
    let stored = match op.aux {
        2 => cpu.store::<u16>(address, selector),
        4 => cpu.store::<u32>(address, selector.into()),
        _ => cpu.store::<u64>(address, selector.into()),
    };
    stored.map_err(|stop| cpu.stack_fault(stop))?;
    cpu.regs[4] = pointer;
    Ok(())
}

/// `pop sreg`. `dst`: segment, `aux`: bytes.
pub(super) fn pop_segment(cpu: &mut Cpu, op: &Op) -> Step {
    let (selector, pointer) = cpu.stack_value(0, op.aux.into())?;
    cpu.load_segment(op.dst.into(), selector as u16)?;
    cpu.regs[4] = cpu.stack_pointer(pointer);
    after_segment_load(cpu, op.dst)
}

/// `lds`, `les`, `lfs`, `lgs`, `lss`. `dst`: general register, `src`: segment, `aux`: bytes of the offset.
pub(super) fn load_far_pointer(cpu: &mut Cpu, op: &Op) -> Step {
    let (offset, selector) = cpu.far_pointer(op)?;
    cpu.load_segment(op.src.into(), selector)?;
    write_register(cpu, op.dst, op.aux, offset);
    Ok(())
}

/// `lgdt`, `lidt`. `dst`: 0 the GDT, 1 the IDT; `aux`: bytes of the base.
pub(super) fn load_table(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_kernel()?;
    let address = cpu.address(op);
    let limit = cpu.load::<u16>(address)?;
    let base = match op.aux {
        8 => cpu.load::<u64>(address.wrapping_add(2))?,
        4 => cpu.load::<u32>(address.wrapping_add(2))?.into(),
        _ => u64::from(cpu.load::<u32>(address.wrapping_add(2))?) & 0xff_ffff,
    };
    if !is_canonical(base) {
        return Err(cpu.general_protection());
    }
    let table = if op.dst == 0 { &mut cpu.sys.gdtr } else { &mut cpu.sys.idtr };
    *table = (base, limit);
    Ok(())
}

/// `sgdt`, `sidt`.
pub(super) fn store_table(cpu: &mut Cpu, op: &Op) -> Step {
    let (base, limit) = if op.dst == 0 { cpu.sys.gdtr } else { cpu.sys.idtr };
    let address = cpu.address(op);
    cpu.probe_write(address, if op.aux == 8 { 10 } else { 6 })?;
    cpu.store::<u16>(address, limit)?;
    if op.aux == 8 {
        cpu.store::<u64>(address.wrapping_add(2), base)
    } else {
        cpu.store::<u32>(address.wrapping_add(2), base as u32)
    }
}

pub(super) fn lldt(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_kernel()?;
    let selector = cpu.source_selector(op)?;
    cpu.sys.ldtr = if index_of(selector) == 0 {
        SegmentRegister { selector, ..SegmentRegister::default() }
    } else {
        cpu.system_segment(selector, SYSTEM_LDT)?.1
    };
    Ok(())
}

pub(super) fn ltr(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_kernel()?;
    let selector = cpu.source_selector(op)?;
    if index_of(selector) == 0 {
        return Err(cpu.general_protection());
    }
    let (address, mut segment) = cpu.system_segment(selector, SYSTEM_TSS)?;
    segment.attributes = segment.attributes & !0xf | SYSTEM_TSS_BUSY;
    cpu.store_system(address.wrapping_add(5), segment.attributes as u8)?;
    cpu.sys.tr = segment;
    Ok(())
}

/// `sldt`, `str`. `aux`: bytes of a register operand; `src`: 0 LDTR, 1 TR.
pub(super) fn store_system_selector(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = if op.src == 0 { cpu.sys.ldtr.selector } else { cpu.sys.tr.selector };
    if op.dst == super::MEMORY {
        let address = cpu.address(op);
        return cpu.store::<u16>(address, selector);
    }
    write_register(cpu, op.dst, op.aux, selector.into());
    Ok(())
}

/// `lar`: access rights, as AMD's manual masks them.
pub(super) fn lar(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = cpu.source_selector(op)?;
    // System types: LDT, TSS, call gate; in legacy mode their 16-bit forms and task gates, too.
    let types: u16 = if cpu.sys.is_long_mode() { 0x1a04 } else { 0x1a3e };
    let found = cpu.visible_segment(selector)?;
    let found = found.filter(|(segment, _)| segment.is_memory() || types >> segment.kind() & 1 != 0);
    if let Some((_, descriptor)) = found {
        write_register(cpu, op.dst, op.aux, descriptor >> 32 & 0xff_ff00);
    }
    cpu.set_zero_flag(found.is_some());
    Ok(())
}

/// `lsl`: limit in bytes.
pub(super) fn lsl(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = cpu.source_selector(op)?;
    let types: u16 = if cpu.sys.is_long_mode() { 0x0a04 } else { 0x0a0e };
    let found = cpu.visible_segment(selector)?;
    let found = found.filter(|(segment, _)| segment.is_memory() || types >> segment.kind() & 1 != 0);
    if let Some((segment, _)) = found {
        write_register(cpu, op.dst, op.aux, segment.limit.into());
    }
    cpu.set_zero_flag(found.is_some());
    Ok(())
}

/// `verr` (`aux` 0), `verw` (`aux` 1).
pub(super) fn verify(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = cpu.source_selector(op)?;
    let found = cpu.visible_segment(selector)?;
    let good = found.is_some_and(|(s, _)| if op.aux == 0 { s.is_readable() } else { s.is_writable() });
    cpu.set_zero_flag(good);
    Ok(())
}
