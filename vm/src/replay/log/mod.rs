//! The event log: every input of a machine on the deterministic engine, with the instruction count at which it took
//! effect. It travels in batches. A batch says which one it is, at which count it starts and up to which count the
//! machine may be executed with it, so that one that is missing, repeated, swapped or damaged is found before anything
//! of it is executed. What is read here comes from a file or a peer and is not trusted.
//!
//! ```text
//! batch:  "FL"  version u8  flags u8  crc32c u32 over all the rest  length varint  body (so many bytes)
//! body:   index varint  start varint  (cut - start) varint  [bytes of the entries when decompressed, varint]  entries
//! entry:  tag u8  (count - count of the one before, or start) varint  content
//! ```
//!
//! Varints are LEB128 of at most 64 bits and have one form only. The length of what comes last is never implied by what
//! it says itself, but for a page list, which is counted.

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
