//! The differential test: short generated programs run in the engine and, byte for byte, on the host's own processor,
//! from the same state at the same addresses. The test compares what they leave: registers, defined flags, vector and
//! x87 state, memory, and the exception that ends them.
//!
//! ```text
//!   forms (what the engine offers) ─> generate(seed, case) ─> assemble ─┬─> native: the host, by signals ─┬─> compare
//!                                                                       └─> engine: CPL 3 under an IDT ───┘
//! ```
//!
//! The host may be any processor of Intel or AMD. Where processors differ, the engine does one of the permitted things
//! and the table in `latitude` has the others. The test names the processor that it ran on and the entries that this
//! processor used.
//!
//! Every program ends in an exception, if only in the `ud2` that follows its last instruction. `cargo test` runs a
//! seeded part; `scripts/differential` runs the campaign. The work is done in a process of its own, so that a program
//! that breaks the harness is a failure with a name and does not end the tests.

mod assemble;
mod compare;
mod engine;
mod forms;
mod generate;
mod latitude;
mod native;
mod report;
mod values;
mod worker;

/// Two pages of code, readable and executable.
const CODE: u64 = 0x1000_0000;
const CODE_BYTES: u64 = 0x2000;
/// Data: two writable pages and, after them, one that is read-only. What is around them is unmapped.
const WINDOW: u64 = 0x2000_0000;
const WINDOW_BYTES: u64 = 0x3000;
const WRITABLE_BYTES: u64 = 0x2000;
/// A writable page that only instructions that store whole x87 or SSE images use, each at its own place: parts of what
/// they store differ between processors and are not compared.
const SCRATCH: u64 = 0x2001_0000;
const SCRATCH_BYTES: u64 = 0x1000;
/// Base of the GS segment.
const GS_BASE: u64 = 0x1234_5000;
/// Nothing is mapped here.
const UNMAPPED: u64 = 0x2800_0000;

/// What the programs can reach: the window, then the scratch page.
type Memory = [u8; (WINDOW_BYTES + SCRATCH_BYTES) as usize];

/// A processor's state before a program.
#[derive(Clone)]
struct State {
    /// In encoding order.
    regs: [u64; 16],
    rflags: u64,
    /// As `fxsave64` stores it.
    fx: [u8; 512],
    memory: Box<Memory>,
}

/// What a program did.
#[derive(Clone, PartialEq)]
struct Outcome {
    vector: u8,
    /// Zero for exceptions without one.
    error: u32,
    /// Of page faults.
    cr2: Option<u64>,
    rip: u64,
    regs: [u64; 16],
    rflags: u64,
    fx: [u8; 512],
    memory: Box<Memory>,
}

/// Executes programs in user mode until an exception.
trait Runner {
    fn run(&mut self, code: &[u8], entry: u64, state: &State) -> Outcome;
}
