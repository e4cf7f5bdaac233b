//! The processor: architectural state, and the functions that every handler uses. Memory is in `memory.rs`, the run
//! loop in `run.rs`.

use super::block::{CodeCache, Trail};
use super::bus::{Bus, BusEvent};
use super::dirty::Dirty;
use super::exec::fpu::Fpu;
use super::exec::system::System;
use super::flags::{ALL, DF, Flags, IF, RF, STATUS};
use super::memory::Ram;
use super::op::{Op, Stop};
use super::time::Clock;
use super::tlb::Tlb;
use super::walk::EFER_LMA;
use ft_ram::GuestRam;

/// An exception that an instruction raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub vector: u8,
    /// Pushed by the exceptions that have one.
    pub error: Option<u32>,
}

/// The processor.
pub struct Cpu {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15, in encoding order.
    pub regs: [u64; 16],
    /// Address of the running block's first instruction; between blocks, of the next instruction.
    pub rip: u64,
    /// The arithmetic flags. Read and written as bits by [`Cpu::rflags`] and its like.
    pub(crate) flags: Flags,
    /// The other bits of RFLAGS, with the arithmetic ones and bit 1 clear. Set by [`Cpu::set_rflags`] alone.
    control_flags: u64,
    /// Instructions that had retired when the running block began; between blocks, that have retired.
    pub count: u64,
    /// Ops of the running block that have retired. `count + done` is the exact count inside a handler.
    pub(crate) done: u32,
    /// Where the running block ends for now: its length, or less when the run's limit comes before; zero when the op
    /// that runs must be the last (it touched the bus or wrote code).
    pub(crate) end: u32,
    /// 64-bit code runs; if not, 32-bit code.
    pub(crate) long: bool,
    /// Privilege level.
    pub cpl: u8,
    /// Something is to be looked at before the next block: see `run.rs`.
    pub(crate) pending: bool,
    /// Interrupts and timers are to be looked at before the next block.
    pub(crate) recheck: bool,
    /// The instruction that runs is a single step (TF): #DB follows if it retires.
    pub(crate) stepped: bool,
    /// Breakpoints, as bits of DR6, of which a trap is to follow.
    pub(crate) hits: u64,
    /// The next instruction completes before an interrupt is taken (after sti, mov ss, pop ss).
    pub shadow: bool,
    /// In hlt.
    pub halted: bool,
    pub(crate) fault: Fault,
    /// Times that #UD was raised because this processor lacks what a real one has. The guest cannot see it.
    pub unknown_instructions: u64,
    /// The value that a slow load has read or a slow store is to write.
    pub(crate) scratch: u128,
    /// The running block's ops, for whoever needs to know the op at hand; null when none runs.
    pub(crate) ops: *const Op,
    /// Where the running block was found.
    pub(crate) trail: Trail,
    /// For tests: exceptions end the run instead of being delivered.
    #[cfg(test)]
    pub(crate) hold_exceptions: bool,
    /// What the last bus access asked for.
    pub(crate) event: Option<BusEvent>,
    /// What only system code sees.
    pub sys: System,
    /// x87, MMX and SSE registers.
    pub fpu: Fpu,
    /// Virtual time.
    pub clock: Clock,
    /// Everything beyond RAM.
    pub bus: Box<dyn Bus>,
    pub(crate) ram: Ram,
    pub(crate) dirty: Dirty,
    pub(crate) code: CodeCache,
    pub(crate) tlb: Tlb,
}

// SAFETY: `ops` points into a block that `code` owns and is used only while `run` is on the stack; all else is `Send`.
unsafe impl Send for Cpu {}

impl Cpu {
    /// A processor after reset, with nothing cached.
    pub fn new(ram: &GuestRam, bus: Box<dyn Bus>) -> Self {
        let mut cpu = Self {
            regs: [0; 16],
            rip: 0xfff0,
            flags: Flags::from_status(0),
            control_flags: 0,
            count: 0,
            done: 0,
            end: 0,
            long: false,
            cpl: 0,
            pending: true,
            recheck: true,
            stepped: false,
            hits: 0,
            shadow: false,
            halted: false,
            fault: Fault { vector: 0, error: None },
            unknown_instructions: 0,
            scratch: 0,
            ops: std::ptr::null(),
            trail: Trail::NONE,
            #[cfg(test)]
            hold_exceptions: false,
            event: None,
            sys: System::default(),
            fpu: Fpu::default(),
            clock: Clock::default(),
            bus,
            ram: Ram::new(ram),
            dirty: Dirty::new(ram.pages()),
            code: CodeCache::new(),
            tlb: Tlb::NEW,
        };
        cpu.mode_changed();
        cpu
    }

    /// Puts a processor after reset in this one's place, with nothing cached. What the guest wrote before is still to
    /// be taken by those who track it.
    pub fn reset(&mut self, ram: &GuestRam, bus: Box<dyn Bus>) {
        let mut fresh = Self::new(ram, bus);
        std::mem::swap(&mut fresh.dirty, &mut self.dirty);
        fresh.unknown_instructions = self.unknown_instructions;
        *self = fresh;
    }

    /// Raises an exception.
    #[cold]
    #[inline(never)]
    pub(crate) fn raise(&mut self, vector: u8, error: Option<u32>) -> Stop {
        self.fault = Fault { vector, error };
        Stop::Fault
    }

    /// RFLAGS as the guest sees them.
    pub fn rflags(&self) -> u64 {
        self.flags.status() | self.control_flags | 2
    }

    /// Sets all of RFLAGS; who may change what is the caller's business. Letting interrupts in has them looked at.
    pub fn set_rflags(&mut self, rflags: u64) {
        self.flags = Flags::from_status(rflags);
        let control = rflags & ALL & !STATUS;
        if control & IF != 0 && self.control_flags & IF == 0 {
            self.recheck();
        }
        self.control_flags = control;
        // Single steps are the run loop's business.
        self.pending = true;
    }

    /// Sets the six arithmetic flags.
    pub(crate) fn set_status(&mut self, bits: u64) {
        self.flags = Flags::from_status(bits);
    }

    /// Sets RF alone.
    pub(super) fn set_resume_flag(&mut self) {
        self.control_flags |= RF;
    }

    /// Clears RF; whether it was set.
    pub(super) fn take_resume_flag(&mut self) -> bool {
        let old = self.control_flags;
        self.control_flags = old & !RF;
        old & RF != 0
    }

    /// Sets or clears DF alone.
    pub(crate) fn set_direction(&mut self, down: bool) {
        self.control_flags = self.control_flags & !DF | (u64::from(down) * DF);
    }

    /// Bits of RFLAGS that arithmetic does not set, as cheap as a field.
    #[inline(always)]
    pub(crate) fn control_flags(&self) -> u64 {
        self.control_flags
    }

    /// Whether condition code `cc` (low four bits of the opcode) holds.
    #[inline(always)]
    pub(crate) fn condition(&self, cc: u8) -> bool {
        self.flags.condition(cc)
    }

    /// Virtual time at this instruction.
    pub(crate) fn now_ns(&self) -> u64 {
        self.clock.ns(self.count.wrapping_add(u64::from(self.done)))
    }

    /// The running block ends after the op that runs.
    #[inline(always)]
    pub(crate) fn leave_block(&mut self) {
        self.end = 0;
    }

    /// Interrupts and timers are to be looked at after this instruction (if it ends its block: see `run.rs`).
    pub(crate) fn recheck(&mut self) {
        self.recheck = true;
        self.pending = true;
    }

    /// CS was loaded, or EFER.LMA changed: which instruction set the next fetch decodes.
    pub(crate) fn mode_changed(&mut self) {
        let cs = self.sys.segs[1];
        self.long = self.sys.efer & EFER_LMA != 0 && cs.attributes & 1 << 13 != 0;
    }

    /// The op that runs.
    pub(super) fn current_op(&self) -> Option<&Op> {
        // SAFETY: while a block runs, `ops` is its first op and `done` is less than its length.
        (!self.ops.is_null()).then(|| unsafe { &*self.ops.add(self.done as usize) })
    }

    /// Address of the op that runs.
    #[inline(always)]
    pub(crate) fn op_address(&self, op: &Op) -> u64 {
        self.rip.wrapping_add(u64::from(op.offset))
    }

    /// Address of the instruction after `op`.
    #[inline(always)]
    pub(crate) fn next_address(&self, op: &Op) -> u64 {
        let next = self.rip.wrapping_add(u64::from(op.offset) + u64::from(op.len));
        if self.long { next } else { next & 0xffff_ffff }
    }
}
