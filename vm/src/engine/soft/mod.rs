//! The deterministic engine: the processor of [`ft_cpu`] with the machine's devices on its bus, a thread that runs it,
//! and a log that makes the machine repeatable: each input is delivered at a count, noted down, and delivered at that
//! count again.
//!
//! ```text
//!   engine (commands) ── jobs ──> vcpu (thread) ── run(limit) ──> Cpu ── bus ──> platform: chips, devices
//!                                  │  live: inbox, host time               outbox <── frames, console
//!                                  ├─ recorded: record, tape (random bytes)
//!                                  └─ replaying: replay, tape
//! ```

mod engine;
mod host_time;
mod outbox;
mod platform;
mod record;
mod replay;
pub(crate) mod state;
mod tape;
mod vcpu;

pub(crate) use engine::SoftEngine;
