//! The state of a processor between two instructions as plain data, without the parts that have types of their own
//! ([`System`], [`Fpu`], [`Clock`]).
//!
//! [`System`]: super::System
//! [`Fpu`]: super::Fpu
//! [`Clock`]: super::Clock

use super::cpu::Cpu;
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub regs: [u64; 16],
    /// Address of the next instruction.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// Instructions that have retired.
    pub count: u64,
    /// Privilege level.
    pub cpl: u8,
    /// The next instruction completes before an interrupt is taken.
    pub shadow: bool,
    /// In hlt.
    pub halted: bool,
}

impl CpuState {
    /// The processor's. It stands between two instructions.
    pub fn of(cpu: &Cpu) -> Self {
        Self {
            regs: cpu.regs,
            rip: cpu.rip,
            rflags: cpu.rflags(),
            count: cpu.count,
            cpl: cpu.cpl,
            shadow: cpu.shadow,
            halted: cpu.halted,
        }
    }

    /// Gives it to a processor that has its system state already.
    pub fn put(&self, cpu: &mut Cpu) {
        let &Self { regs, rip, rflags, count, cpl, shadow, halted } = self;
        (cpu.regs, cpu.rip, cpu.count, cpu.cpl) = (regs, rip, count, cpl);
        (cpu.shadow, cpu.halted) = (shadow, halted);
        cpu.set_rflags(rflags);
        cpu.paging_changed();
    }
}
