//! Hardware breakpoints: DR0 to DR3, as DR7 enables them. While DR7 enables none, they cost nothing.
//!
//! An instruction breakpoint has the run loop execute one instruction at a time and ask before each; RFLAGS.RF, which
//! only then means anything, lets one pass. A watchpoint takes its page out of the TLB's fast path, and the slow path
//! sees the bytes of each access; a hit is a trap after the instruction, or after the iteration of a repeated one.
//! There is no general detect (DR7.GD stays clear), and a load of SS does not delay a trap.

use super::cpu::{Cpu, Fault};
use super::exec::system::System;
use super::exec::system::state::CR4_DE;
use super::interrupt::vector;
use super::run::TripleFault;
use super::tlb::PAGE_MASK;

/// In DR6: a single step.
pub(super) const DR6_BS: u64 = 1 << 14;

/// A set of conditions, each a bit at the value that DR7 has for it.
type Conditions = u8;
const EXECUTED: Conditions = 1 << 0;
const WRITTEN: Conditions = 1 << 1;
const PORT: Conditions = 1 << 2;
const ACCESSED: Conditions = 1 << 3;

/// What an instruction does with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    Read,
    Write,
}

impl System {
    /// The enabled breakpoints of these conditions: their bits in DR6, first bytes and lengths.
    fn breakpoints(&self, conditions: Conditions) -> impl Iterator<Item = (u64, u64, u64)> {
        let control = self.dr[7];
        let of = move |index: usize| {
            let settings = control >> (16 + 4 * index);
            let enabled = control >> (2 * index) & 3 != 0;
            let bytes = [1, 2, 8, 4][(settings >> 2 & 3) as usize];
            (enabled && conditions >> (settings & 3) & 1 != 0)
                .then(|| (1 << index, self.dr[index] & !(bytes - 1), bytes))
        };
        let any = if control & 0xff == 0 { 0 } else { 4 };
        (0..any).filter_map(of)
    }

    /// The bits in DR6 of those that an access meets.
    fn met(&self, conditions: Conditions, addr: u64, bytes: u64) -> u64 {
        self.breakpoints(conditions)
            .filter(|(_, start, length)| {
                addr.wrapping_sub(*start) < *length || start.wrapping_sub(addr) < bytes
            })
            .fold(0, |met, (bit, ..)| met | bit)
    }

    /// Whether an instruction breakpoint is enabled.
    pub(super) fn breaks(&self) -> bool {
        self.breakpoints(EXECUTED).next().is_some()
    }

    /// Whether a watchpoint is enabled.
    pub(crate) fn watches(&self) -> bool {
        self.breakpoints(WRITTEN | ACCESSED).next().is_some()
    }

    /// Whether one is on this page.
    pub(super) fn watches_page(&self, page: u64) -> bool {
        self.breakpoints(WRITTEN | ACCESSED).any(|(_, start, _)| start & PAGE_MASK == page)
    }
}

impl Cpu {
    /// Memory was accessed, the slow way.
    #[inline(always)]
    pub(super) fn touched(&mut self, addr: u64, bytes: u64, touch: Touch) {
        if self.sys.dr[7] & 0xff != 0 {
            let conditions = if touch == Touch::Write { WRITTEN | ACCESSED } else { ACCESSED };
            let met = self.sys.met(conditions, addr, bytes);
            self.hit(met);
        }
    }

    /// A port was accessed.
    pub(super) fn touched_port(&mut self, port: u16, bytes: u8) {
        if self.sys.cr4 & CR4_DE != 0 {
            let met = self.sys.met(PORT, port.into(), bytes.into());
            self.hit(met);
        }
    }

    fn hit(&mut self, met: u64) {
        if met != 0 {
            self.hits |= met;
            self.pending = true;
            self.leave_block();
        }
    }

    /// Delivers the debug trap that the last instruction, or a delivery, has left behind, if any.
    pub(super) fn debug_trap(&mut self) -> Result<(), TripleFault> {
        let step = if std::mem::take(&mut self.stepped) { DR6_BS } else { 0 };
        let hits = step | std::mem::take(&mut self.hits);
        if hits != 0 {
            self.sys.dr[6] |= hits;
            self.halted = false;
            self.deliver_exception(Fault { vector: vector::DB, error: None })?;
            // Of a watchpoint on the handler's own stack there would be no end.
            self.hits = 0;
        }
        Ok(())
    }

    /// Whether an instruction breakpoint keeps the next instruction from being executed: the fault is ready then.
    pub(super) fn breaks_here(&mut self) -> bool {
        if !self.sys.breaks() || self.take_resume_flag() {
            return false;
        }
        let met = self.sys.met(EXECUTED, self.rip, 1);
        if met != 0 {
            self.sys.dr[6] |= met;
            // In the image that is pushed: the return executes the instruction.
            self.set_resume_flag();
            self.fault = Fault { vector: vector::DB, error: None };
        }
        met != 0
    }
}
