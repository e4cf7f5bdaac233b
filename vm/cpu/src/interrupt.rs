//! Exceptions and interrupts: from a vector to the first instruction of its handler.
//!
//! Delivery goes through 64-bit gates, in long mode. In protected mode without paging, where only the first
//! instructions of a kernel's loader run and interrupts are off, there is no delivery: any exception there is a triple
//! fault. Debug traps and breakpoints are `debug.rs`'s.
//!
//! RFLAGS.RF is set in the image that a fault pushes, and comes back from there only while there is a breakpoint that
//! it could suppress. Alignment checks (RFLAGS.AC at CPL 3) are not made.

use super::cpu::{Cpu, Fault};
use super::exec::system::state::{CS, SS, SegmentRegister, is_canonical};
use super::flags::{IF, NT, RF, TF, VM};
use super::op::{Step, Stop};
use super::run::TripleFault;

/// Exception vectors (AMD APM volume 2, table 8-1).
pub(crate) mod vector {
    pub(crate) const DE: u8 = 0;
    pub(crate) const DB: u8 = 1;
    pub(crate) const NMI: u8 = 2;
    pub(crate) const BP: u8 = 3;
    pub(crate) const OF: u8 = 4;
    pub(crate) const UD: u8 = 6;
    pub(crate) const NM: u8 = 7;
    pub(crate) const DF: u8 = 8;
    pub(crate) const TS: u8 = 10;
    pub(crate) const NP: u8 = 11;
    pub(crate) const SS: u8 = 12;
    pub(crate) const GP: u8 = 13;
    pub(crate) const PF: u8 = 14;
    pub(crate) const MF: u8 = 16;
    pub(crate) const XM: u8 = 19;
}

/// What asks for a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// `int n` and its like: the gate's privilege level must allow it.
    Software,
    Exception,
    /// An interrupt from outside.
    External,
}

/// Gate types (64-bit).
const INTERRUPT_GATE: u64 = 0xe;
const TRAP_GATE: u64 = 0xf;

/// In a 64-bit TSS: RSP for CPL 0, 1, 2, and the first of the seven interrupt stacks.
const TSS_RSP: u64 = 0x4;
const TSS_IST: u64 = 0x24;

/// How exceptions combine (AMD APM volume 2, 8.2.9).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
}

fn class(vector: u8) -> Class {
    match vector {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::PageFault,
        _ => Class::Benign,
    }
}

impl Cpu {
    /// Delivers an exception that the instruction at `rip` has raised. When that fails: what came of it, down to a
    /// double fault, and if that fails, too, the processor shuts down.
    pub(crate) fn deliver_exception(&mut self, fault: Fault) -> Result<(), TripleFault> {
        let mut fault = fault;
        loop {
            let rip = self.rip;
            let Err(_) = self.deliver(fault.vector, fault.error, Source::Exception, rip) else {
                return Ok(());
            };
            if fault.vector == vector::DF {
                return Err(TripleFault);
            }
            let second = self.fault;
            let double = match class(fault.vector) {
                Class::Benign => false,
                Class::Contributory => class(second.vector) == Class::Contributory,
                Class::PageFault => class(second.vector) != Class::Benign,
            };
            fault = if double { Fault { vector: vector::DF, error: Some(0) } } else { second };
        }
    }

    /// Takes an interrupt from outside or an NMI, between instructions.
    pub(crate) fn deliver_interrupt(&mut self, vector: u8) -> Result<(), TripleFault> {
        self.halted = false;
        let rip = self.rip;
        match self.deliver(vector, None, Source::External, rip) {
            Ok(()) => Ok(()),
            // An interrupt does not combine: what its delivery raises stands alone.
            Err(_) => self.deliver_exception(self.fault),
        }
    }

    /// Goes through the gate of `vector`, with `rip` to return to. On a fault, only memory below the handler's stack
    /// pointer has changed.
    pub(crate) fn deliver(&mut self, vector: u8, error: Option<u32>, source: Source, rip: u64) -> Step {
        let external = u32::from(source != Source::Software);
        if !self.sys.is_long_mode() {
            // Whatever it was, and whatever comes of it.
            return Err(self.raise(vector::GP, Some(u32::from(vector) << 3 | 2 | external)));
        }
        let gate = self.gate(vector, source)?;

        let mut code = self.code_segment(gate.selector, external)?;
        if code.dpl() > self.cpl || !code.is_long() {
            return Err(self.selector_fault(vector::GP, gate.selector, external));
        }
        self.settle_code(&mut code, external)?;
        let cpl = if code.is_conforming() { self.cpl } else { code.dpl() };
        if !is_canonical(gate.offset) {
            return Err(self.raise(vector::GP, Some(external)));
        }

        let stack = if gate.stack != 0 {
            self.tss_stack(TSS_IST + 8 * (gate.stack - 1), external)?
        } else if cpl < self.cpl {
            self.tss_stack(TSS_RSP + 8 * u64::from(cpl), external)?
        } else {
            self.regs[4]
        };

        let flags = self.rflags();
        // Faults, which return to the instruction that they are about, say so.
        let is_fault = source == Source::Exception
            && !matches!(vector, vector::DB | vector::BP | vector::OF | vector::DF);
        let frame = [
            self.sys.segs[SS].selector.into(),
            self.regs[4],
            if is_fault { flags | RF } else { flags },
            self.sys.segs[CS].selector.into(),
            rip,
        ];
        let mut pointer = stack & !0xf;
        let bytes = 40 + if error.is_some() { 8 } else { 0 };
        if !is_canonical(pointer.wrapping_sub(bytes)) || !is_canonical(pointer.wrapping_sub(1)) {
            return Err(self.raise(vector::SS, Some(external)));
        }
        for value in frame.into_iter().chain(error.map(u64::from)) {
            pointer = pointer.wrapping_sub(8);
            if cpl == 3 {
                self.store(pointer, value)?;
            } else {
                self.store_system(pointer, value)?;
            }
        }

        if cpl < self.cpl {
            self.sys.segs[SS] = SegmentRegister { selector: cpl.into(), ..SegmentRegister::default() };
        }
        self.set_code(code, cpl);
        self.regs[4] = pointer;
        self.rip = gate.offset;
        let cleared = TF | NT | RF | VM | if gate.kind == INTERRUPT_GATE { IF } else { 0 };
        self.set_rflags(flags & !cleared);
        self.shadow = false;
        Ok(())
    }

    /// The gate of a vector, if it may be used.
    fn gate(&mut self, vector: u8, source: Source) -> Result<Gate, Stop> {
        let external = u32::from(source != Source::Software);
        let code = u32::from(vector) << 3 | 2 | external;
        let (base, limit) = self.sys.idtr;
        let offset = u64::from(vector) * 16;
        if offset + 15 > limit.into() {
            return Err(self.raise(vector::GP, Some(code)));
        }
        let low = self.load_system::<u64>(base.wrapping_add(offset))?;
        let high = self.load_system::<u64>(base.wrapping_add(offset + 8))?;
        let gate = Gate {
            selector: (low >> 16) as u16,
            offset: low & 0xffff | low >> 32 & 0xffff_0000 | high << 32,
            // With the S bit, which is zero in gates.
            kind: low >> 40 & 0x1f,
            stack: low >> 32 & 7,
        };
        let dpl = (low >> 45 & 3) as u8;
        if !matches!(gate.kind, INTERRUPT_GATE | TRAP_GATE) || source == Source::Software && dpl < self.cpl {
            return Err(self.raise(vector::GP, Some(code)));
        }
        if low >> 47 & 1 == 0 {
            return Err(self.raise(vector::NP, Some(code)));
        }
        Ok(gate)
    }

    /// A stack pointer in the TSS.
    fn tss_stack(&mut self, offset: u64, external: u32) -> Result<u64, Stop> {
        let tr = self.sys.tr;
        if offset + 7 > tr.limit.into() {
            return Err(self.selector_fault(vector::TS, tr.selector, external));
        }
        self.load_system::<u64>(tr.base.wrapping_add(offset))
    }
}

struct Gate {
    selector: u16,
    offset: u64,
    kind: u64,
    /// Number of the interrupt stack, or zero.
    stack: u64,
}
