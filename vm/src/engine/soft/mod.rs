//! The deterministic software engine: an x86-64 processor, its interrupt chips and timers, and virtual time, all of them
//! functions of the instruction count and of the inputs that are delivered at chosen counts.
//!
//! ```text
//!   vcpu (thread) ── run(limit) ──> cpu: block ─> block ─> ...        bus ──> chips (LAPIC, IOAPIC, PIC, PIT, RTC)
//!                                    │  fetch: exec TLB, block cache     └──> devices (virtio, serial, power, platform)
//!                                    │  execute: one handler an op
//!                                    └─ memory: TLB ─> guest RAM, or the bus
//! ```
//!
//! What makes it deterministic: nothing but the guest's instructions changes the processor between two counts at which
//! the owner of [`cpu::Cpu`] stops it. Interrupts are taken only at counts that are themselves functions of the state:
//! right after an instruction that touched the bus or let interrupts in, at a timer's count, or where an input was
//! delivered. Caches (TLB, blocks) never change what an instruction does; what the architecture lets a TLB do (serve a
//! stale translation) depends on the instructions alone, never on where a run was split.

pub(crate) mod block;
pub(crate) mod bus;
pub(crate) mod chips;
pub(crate) mod cpu;
mod debug;
#[cfg(test)]
mod differential;
pub(crate) mod dirty;
mod engine;
pub(crate) mod exec;
pub(crate) mod flags;
mod host_time;
pub(crate) mod interrupt;
pub(crate) mod memory;
pub(crate) mod op;
mod outbox;
mod platform;
mod record;
mod replay;
pub(crate) mod run;
pub(crate) mod state;
mod tape;
pub(crate) mod time;
pub(crate) mod tlb;
mod vcpu;
pub(crate) mod walk;

pub(crate) use engine::SoftEngine;

#[cfg(any(test, feature = "measure"))]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
