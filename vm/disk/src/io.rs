//! What is asked of an image, and how it went.

use crate::buffer::Buffer;

/// One request. Offsets and lengths are bytes, multiples of a sector, and lie within the image.
#[derive(Debug)]
pub enum Io {
    /// Fills the buffer.
    Read {
        /// Where.
        offset: u64,
        /// With as many bytes.
        into: Buffer,
    },
    /// Writes the buffer.
    Write {
        /// Where.
        offset: u64,
        /// What.
        from: Buffer,
        /// Until when.
        persist: Persist,
    },
    /// Makes durable what was written before, as far as it was done by then.
    Flush,
    /// Zeroes the bytes. It is also what a discard is: two images stay comparable.
    WriteZeroes {
        /// Where.
        offset: u64,
        /// How many.
        bytes: u64,
        /// Whether their space may be given back.
        unmap: Unmap,
    },
}

/// When a write is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persist {
    /// When a read sees it.
    Later,
    /// When it survives a loss of power.
    Now,
}

/// What becomes of the space under zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmap {
    /// It stays allocated.
    Keep,
    /// It may be given back.
    May,
}

/// A request with its number.
#[derive(Debug)]
pub struct IoOrder {
    /// Comes back with what is done.
    pub tag: u64,
    /// What to do.
    pub io: Io,
}

/// An order that was carried out, or could not be.
#[derive(Debug)]
pub struct IoDone {
    /// The order's.
    pub tag: u64,
    /// The request, with its buffer: filled, if it was a read that went well.
    pub io: Io,
    /// How it went.
    pub result: Result<(), IoFault>,
}

/// The host could not do it. Bytes of a write that failed may be old or new.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} at offset {offset}: {source}")]
pub struct IoFault {
    /// What was tried.
    pub what: &'static str,
    /// From where on it was not done.
    pub offset: u64,
    /// The host's answer.
    pub source: std::io::Error,
}
