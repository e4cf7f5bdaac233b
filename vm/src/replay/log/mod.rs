//! The event log: every input of a machine on the deterministic engine, with the instruction count at which it took
//! effect. It travels in batches. A batch states its index, the count at which it starts and the count up to which the
//! machine may execute with it. So a batch that is missing, repeated, swapped or damaged is found before any of it is
//! executed. Batches come from a file or a peer and are not trusted.
//!
//! ```text
//! batch:  "FL"  version u8  flags u8  crc32c u32 over all the rest  length varint  body (length bytes)
//! body:   index varint  start varint  (cut - start) varint  [bytes of the entries when decompressed, varint]  entries
//! entry:  tag u8  (count - count of the one before, or start) varint  content
//! ```
//!
//! Varints are LEB128 of at most 64 bits and have one form only. The last part of an entry never implies its own
//! length, except for a page list, which is counted.

mod bytes;
mod digest;
mod error;
mod format;
mod input;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use digest::{Digest, Mismatch, REGISTERS, page_hash};
pub use error::LogError;
pub use format::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, DIGEST_PAGES_MAX, INPUT_BYTES_MAX, LOG_VERSION};
pub use input::{Batch, ControlAction, LogCut, LogEntry, LogInput};
pub use read::{LogReader, batch_bytes};
pub use write::LogWriter;
