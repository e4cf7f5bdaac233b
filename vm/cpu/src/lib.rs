//! The deterministic processor in software: x86-64, its interrupt chips and timers, and virtual time, all of them
//! functions of the instruction count and of the inputs that are delivered at chosen counts.
//!
//! ```text
//!   owner ── run(limit) ──> cpu: block ─> block ─> ...        bus ──> chips (LAPIC, IOAPIC, PIC, PIT, RTC)
//!                            │  fetch: exec TLB, block cache     └──> devices, which the owner brings along
//!                            │  execute: one handler an op
//!                            └─ memory: TLB ─> guest RAM, or the bus
//! ```
//!
//! It is deterministic because only the guest's instructions change the processor between two counts at which the owner
//! of [`Cpu`] stops it. Interrupts are taken only at counts that are themselves functions of the state: right after an
//! instruction that touched the bus or let interrupts in, at a timer's count, or where an input was delivered. Caches
//! (TLB, blocks) never change what an instruction does; a TLB's freedom under the architecture (to serve a stale
//! translation) depends on the instructions alone, never on where a run was split.
//!
//! ```
//! use ft_cpu::CpuExit;
//! use ft_cpu::testing::{machine, run_to};
//!
//! // mov eax, 6; imul eax, eax, 7; hlt
//! let (mut cpu, _ram) = machine(&[0xb8, 6, 0, 0, 0, 0x6b, 0xc0, 7, 0xf4]);
//! assert_eq!(run_to(&mut cpu, 2), CpuExit::Limit);
//! assert_eq!((cpu.count, cpu.regs[0]), (2, 42));
//! assert_eq!(run_to(&mut cpu, 1_000), CpuExit::Halted);
//! assert_eq!(cpu.count, 3);
//! ```

mod block;
mod bus;
mod chips;
mod cpu;
mod debug;
#[cfg(test)]
mod differential;
mod dirty;
mod exec;
pub mod flags;
mod interrupt;
mod kind;
mod memory;
mod op;
mod run;
mod state;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(test)]
mod tests;
mod time;
mod tlb;
mod walk;

pub use bus::{Bus, BusEvent};
pub use chips::{ChipError, Chips, Rtc};
pub use cpu::Cpu;
pub use dirty::Tracker;
pub use exec::fpu::{Fpu, FpuStateError};
pub use exec::system::{InvalidSystem, SegmentRegister, System};
pub use run::CpuExit;
pub use state::CpuState;
pub use time::{Clock, PACES, Pace};
