//! The processor: architectural state, and what every handler uses.

use super::bus::{Bus, BusEvent};
use super::exec::fpu::Fpu;
use super::exec::system::System;
use super::op::Stop;
use super::time::Clock;

/// An exception that an instruction raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub vector: u8,
    /// Pushed by the exceptions that have one.
    pub error: Option<u32>,
}

pub(crate) struct Cpu {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15, in encoding order.
    pub regs: [u64; 16],
    /// Address of the running block's first instruction; between blocks, of the next instruction.
    pub rip: u64,
    /// Instructions that had retired when the running block began; between blocks, that have retired.
    pub count: u64,
    /// Ops of the running block that have retired. `count + done` is the exact count inside a handler.
    pub done: u32,
    /// Where the running block ends for now: its length, or less when the run's limit comes before; zero when the op
    /// that runs must be the last (it touched the bus or wrote code).
    pub end: u32,
    pub fault: Fault,
    /// The next instruction completes before an interrupt is taken (after sti, mov ss, pop ss).
    pub shadow: bool,
    /// In hlt.
    pub halted: bool,
    pub cpl: u8,
    pub sys: System,
    pub fpu: Fpu,
    pub clock: Clock,
    pub bus: Box<dyn Bus>,
    /// What the last bus access asked for.
    pub event: Option<BusEvent>,
}

impl Cpu {
    /// Raises an exception.
    #[cold]
    pub(crate) fn raise(&mut self, vector: u8, error: Option<u32>) -> Stop {
        self.fault = Fault { vector, error };
        Stop::Fault
    }
}
