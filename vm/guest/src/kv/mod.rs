//! The guests' key-value service: its line protocol, its store, its memory load. No I/O and no operating system, so
//! that the built-in guest, the Linux guest's service and the host's tests all compile this same text.
//!
//! One request a line, one answer a line, in order. Lines are printable ASCII, end in LF (a CR before it is ignored)
//! and hold at most [`LINE_MAX`] bytes.
//!
//! | request | answer |
//! |---|---|
//! | `PING` | `PONG` |
//! | `SET key value` | `OK` |
//! | `GET key` | `VALUE value` or `NONE` |
//! | `APPEND key value` | `OK length` |
//! | `INCR key` | `INT n` |
//! | `DEL key` | `OK 1` or `OK 0` |
//! | `DIGEST` | `DIGEST hex keys`: of the whole store |
//! | `MEMDIGEST` | `MEMDIGEST hex pages`: of the load's memory |
//! | `LOAD pages_per_second working_set_pages [count, random or text]` | `OK`; rate 0 stops it |
//! | `SPIN ms` | `SPUN iterations microseconds` |
//! | `STATS` | `STATS name=value ...` |
//! | `POWEROFF`, `RESET`, `CRASH`, `PANIC`, `HANG` | `OK`, and then the machine does |
//!
//! A key is one word of at most [`KEY_MAX`] bytes; a value is the rest of the line. Any other line is answered `ERR
//! why`, and the connection goes on.

extern crate alloc;

mod hash;
mod lines;
mod load;
mod request;
mod store;

pub use hash::Digest;
pub use lines::{Line, Lines};
pub use load::{Load, PAGE, Pacer, Pattern};
pub use request::{Command, Power, RequestError};
pub use store::{Store, StoreError};

use alloc::vec::Vec;
use core::fmt::Write;

/// The port that the service listens on.
pub const PORT: u16 = 7777;
/// Bytes of a request line, without its line end.
pub const LINE_MAX: usize = 1024;
/// Bytes of a key.
pub const KEY_MAX: usize = 128;
/// Bytes of a value; longer ones come about only by `APPEND`.
pub const VALUE_MAX: usize = 64 * 1024;
/// Longest `SPIN`, in milliseconds.
pub const SPIN_MS_MAX: u64 = 10_000;

/// What the service needs of the machine that it runs on.
pub trait Machine {
    /// Starts, changes or (rate 0) stops the memory load. When it returns, the old load writes no more.
    fn set_load(&mut self, load: Load) -> Result<(), LoadError>;
    /// Digest of the memory that the load has written, and its pages.
    fn digest_load(&mut self) -> (u64, u64);
    /// Guest time in nanoseconds.
    fn now_ns(&mut self) -> u64;
    /// Appends ` name=value` pairs to a `STATS` answer.
    fn stats(&mut self, out: &mut dyn Write);
}

/// A working set that the machine has no memory for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadError {
    /// The largest working set that it has.
    pub pages_max: u64,
}

/// Answers one request line; the answer goes to `out`, with its line end. When it asks for the machine to stop, the
/// caller sends the answer and then does so.
pub fn answer(
    store: &mut Store,
    machine: &mut impl Machine,
    line: &[u8],
    out: &mut Vec<u8>,
) -> Option<Power> {
    let power = match Command::parse(line) {
        Ok(command) => execute(store, machine, command, out),
        Err(error) => {
            say(out, format_args!("ERR {error}"));
            None
        }
    };
    out.push(b'\n');
    power
}

/// The answer to a line that was too long to be looked at.
pub fn answer_overlong(out: &mut Vec<u8>) {
    say(out, format_args!("ERR line longer than {LINE_MAX} bytes\n"));
}

fn execute(
    store: &mut Store,
    machine: &mut impl Machine,
    command: Command<'_>,
    out: &mut Vec<u8>,
) -> Option<Power> {
    match command {
        Command::Ping => out.extend_from_slice(b"PONG"),
        Command::Set { key, value } => match store.set(key, value) {
            Ok(()) => out.extend_from_slice(b"OK"),
            Err(error) => say(out, format_args!("ERR {error}")),
        },
        Command::Get { key } => match store.get(key) {
            Some(value) => {
                out.extend_from_slice(b"VALUE ");
                out.extend_from_slice(value);
            }
            None => out.extend_from_slice(b"NONE"),
        },
        Command::Append { key, value } => match store.append(key, value) {
            Ok(length) => say(out, format_args!("OK {length}")),
            Err(error) => say(out, format_args!("ERR {error}")),
        },
        Command::Incr { key } => match store.increment(key) {
            Ok(n) => say(out, format_args!("INT {n}")),
            Err(error) => say(out, format_args!("ERR {error}")),
        },
        Command::Del { key } => say(out, format_args!("OK {}", u8::from(store.delete(key)))),
        Command::Digest => say(out, format_args!("DIGEST {:016x} {}", store.digest(), store.keys())),
        Command::MemDigest => {
            let (digest, pages) = machine.digest_load();
            say(out, format_args!("MEMDIGEST {digest:016x} {pages}"));
        }
        Command::Load(load) => match machine.set_load(load) {
            Ok(()) => out.extend_from_slice(b"OK"),
            Err(LoadError { pages_max }) => {
                say(out, format_args!("ERR working set: at most {pages_max} pages here"));
            }
        },
        Command::Spin { ms } => {
            let (iterations, elapsed_ns) = spin(machine, ms);
            say(out, format_args!("SPUN {iterations} {}", elapsed_ns / 1000));
        }
        Command::Stats => {
            say(out, format_args!("STATS uptime_ns={} keys={}", machine.now_ns(), store.keys()));
            say(out, format_args!(" store_bytes={} store_bytes_max={}", store.bytes(), store.bytes_max()));
            machine.stats(&mut Text(out));
        }
        Command::Power(power) => {
            out.extend_from_slice(b"OK");
            return Some(power);
        }
    }
    None
}

/// Computes until `ms` have passed; returns the iterations done and the nanoseconds that really passed.
fn spin(machine: &mut impl Machine, ms: u64) -> (u64, u64) {
    let start = machine.now_ns();
    let mut state = 1_u64;
    for round in 1.. {
        for _ in 0..SPIN_ITERATIONS {
            state = core::hint::black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
        let elapsed_ns = machine.now_ns().saturating_sub(start);
        if elapsed_ns >= ms.saturating_mul(1_000_000) {
            return (round * SPIN_ITERATIONS, elapsed_ns);
        }
    }
    (0, 0)
}

/// Iterations between two looks at the clock: some 50 microseconds.
const SPIN_ITERATIONS: u64 = 50_000;

fn say(out: &mut Vec<u8>, text: core::fmt::Arguments<'_>) {
    // Text writes to memory and never fails.
    let _ = Text(out).write_fmt(text);
}

/// `core::fmt::Write` onto bytes.
struct Text<'a>(&'a mut Vec<u8>);

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
