//! The run loop: block after block up to an exact count, and between them all work that the state says is due.
//!
//! Interrupts and timers are looked at only where the instructions executed so far say so (after a bus access, after
//! IF, CR8 or the like changed, at a timer's count) and where the owner delivered an input, that is at the start of a
//! run. Looking when nothing changed finds nothing, so a run may be split anywhere.

use super::block::Trail;
use super::bus::BusEvent;
use super::cpu::Cpu;
#[cfg(test)]
use super::cpu::Fault;
use super::flags::{IF, TF};
use super::interrupt::vector;
use super::op::Stop;
use std::sync::atomic::{AtomicBool, Ordering};

/// Why a run ended. In all cases what was due at this count (timers, an interrupt) has been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuExit {
    /// The count is the limit.
    Limit,
    /// The attention flag was seen, at a block's boundary.
    Attention,
    /// In hlt, and no interrupt may be taken. Nothing happens before an input, or before virtual time moves.
    Halted,
    /// A device asked for something.
    Event(BusEvent),
    /// The processor shut down.
    TripleFault,
}

/// An exception could not be delivered, nor the double fault after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TripleFault;

impl Cpu {
    /// Executes until `count` is `limit`, or until something else ends the run.
    pub fn run(&mut self, limit: u64, attention: &AtomicBool) -> CpuExit {
        self.recheck();
        self.trail = Trail::NONE;
        let mut bound = 0;
        loop {
            if self.pending || self.count >= bound {
                match self.boundary(limit, attention) {
                    Ok(next) => bound = next,
                    Err(exit) => return exit,
                }
                if self.breaks_here() {
                    match self.exception() {
                        Ok(()) => continue,
                        Err(TripleFault) => return CpuExit::TripleFault,
                    }
                }
            } else if attention.load(Ordering::Relaxed) {
                return CpuExit::Attention;
            }
            if self.step(bound).is_err() {
                return CpuExit::TripleFault;
            }
        }
    }

    /// Between blocks: does what is due. Answers the count up to which blocks may run without asking again.
    #[cold]
    #[inline(never)]
    fn boundary(&mut self, limit: u64, attention: &AtomicBool) -> Result<u64, CpuExit> {
        self.debug_trap().map_err(|TripleFault| CpuExit::TripleFault)?;
        let mut timer = u64::MAX;
        if !self.shadow {
            let now_ns = self.clock.ns(self.count);
            timer = self.next_timer();
            if timer <= self.count {
                if let Some(event) = self.bus.run_timers(now_ns) {
                    // Whatever else a device has asked for comes to less, or to the same.
                    self.event = Some(event);
                }
                self.recheck = true;
                // One that stays due is asked again after the next instruction.
                timer = self.next_timer().max(self.count + 1);
            }
            if std::mem::take(&mut self.recheck)
                && let Some(vector) = self.take_interrupt(now_ns)
            {
                self.deliver_interrupt(vector).map_err(|TripleFault| CpuExit::TripleFault)?;
                self.debug_trap().map_err(|TripleFault| CpuExit::TripleFault)?;
                // The handler's first instruction goes before another interrupt (a trap gate leaves IF set): one a
                // count, however often a run is split there.
                self.shadow = true;
            }
        }
        let trap = self.control_flags() & TF != 0;
        let single = self.shadow || trap || self.sys.breaks();
        self.pending = single || self.recheck || self.halted;
        if let Some(event) = self.event.take() {
            self.pending = true;
            return Err(CpuExit::Event(event));
        }
        if self.count >= limit {
            return Err(CpuExit::Limit);
        }
        if self.halted {
            return Err(CpuExit::Halted);
        }
        if attention.load(Ordering::Relaxed) {
            return Err(CpuExit::Attention);
        }
        if single {
            self.stepped = trap;
            self.recheck |= std::mem::take(&mut self.shadow);
            return Ok(self.count + 1);
        }
        Ok(limit.min(timer))
    }

    /// The interrupt that is taken now, if one is: an NMI, which asks for no flag, before others.
    fn take_interrupt(&mut self, now_ns: u64) -> Option<u8> {
        if !self.sys.nmi_blocked && self.bus.take_nmi() {
            self.sys.nmi_blocked = true;
            return Some(vector::NMI);
        }
        if self.control_flags() & IF == 0 || !self.bus.interrupt_pending(now_ns) {
            return None;
        }
        self.bus.acknowledge_interrupt(now_ns)
    }

    /// The count at which a timer is due next.
    fn next_timer(&mut self) -> u64 {
        self.bus.next_timer_ns().map_or(u64::MAX, |ns| self.clock.count_at(ns))
    }

    /// Executes one block, or as much of it as `bound` allows.
    #[inline(always)]
    fn step(&mut self, bound: u64) -> Result<(), TripleFault> {
        let block = match self.next_block() {
            // SAFETY: blocks live until the next fetch.
            Ok(block) => unsafe { &*block },
            Err(_) => return self.exception(),
        };
        self.leave_trail(block);
        let length = block.ops.len() as u32;
        self.done = 0;
        self.end = bound.wrapping_sub(self.count).min(u64::from(length)) as u32;
        let ops = block.ops.as_ptr();
        self.ops = ops;
        let step = loop {
            // SAFETY: `done` is below `end` or zero, and `end` at most the number of ops, of which there is one at
            // least.
            let op = unsafe { &*ops.add(self.done as usize) };
            match (op.run)(self, op) {
                Ok(()) => {
                    self.done = self.done.wrapping_add(1);
                    if self.done >= self.end {
                        break Ok(());
                    }
                }
                stop => break stop,
            }
        };
        let done = std::mem::take(&mut self.done);
        self.count = self.count.wrapping_add(u64::from(done));
        match step {
            Err(Stop::Jump) => self.count = self.count.wrapping_add(1),
            Ok(()) => {
                self.advance(block.ops.get(done as usize).map_or(block.bytes, |op| u32::from(op.offset)))
            }
            Err(stop) => {
                self.trail = Trail::NONE;
                let op = &block.ops[done as usize];
                self.advance(u32::from(op.offset));
                if stop == Stop::Fault {
                    return self.exception();
                }
                self.count = self.count.wrapping_add(1);
                if stop == Stop::End {
                    self.advance(u32::from(op.len));
                    self.recheck();
                }
            }
        }
        Ok(())
    }

    /// Delivers the exception that was raised. That counts as an instruction, so that time passes also for a guest that
    /// does nothing but fault.
    #[cold]
    #[inline(never)]
    fn exception(&mut self) -> Result<(), TripleFault> {
        self.ops = std::ptr::null();
        self.trail = Trail::NONE;
        (self.stepped, self.hits) = (false, 0);
        #[cfg(test)]
        if self.hold_exceptions {
            return Err(TripleFault);
        }
        self.count = self.count.wrapping_add(1);
        self.deliver_exception(self.fault)
    }

    #[inline(always)]
    fn advance(&mut self, bytes: u32) {
        self.rip = self.rip.wrapping_add(u64::from(bytes));
        if !self.long {
            self.rip &= 0xffff_ffff;
        }
    }

    /// For tests: executes instruction by instruction until an exception is raised, which is then not delivered, or
    /// until `rip` is `end` or the count `limit`.
    #[cfg(test)]
    pub(crate) fn run_until_fault(&mut self, end: u64, limit: u64) -> Option<Fault> {
        while self.rip != end && self.count < limit {
            self.hold_exceptions = true;
            let held = self.step(self.count + 1).is_err();
            self.hold_exceptions = false;
            if held {
                return Some(self.fault);
            }
        }
        None
    }
}
