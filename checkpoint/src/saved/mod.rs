//! A saved image: the file that keeps a sealed state of the VM, memory and all, while no machine takes it. It says in
//! which generation of which cell it may be gone on from: only while the cell is exactly there.
//!
//! ```text
//! head:     "FTDIMAGE" version u32, length u32, ImageLabel (postcard), crc32c u32 of all before
//! state:    length u32, the machine's state
//! memory:   length u32, page records; again and again; a length of 0 ends it. Zero pages are left out
//! end:      length u64 of the file, BLAKE3 of all before
//! ```
//!
//! It is written and read as a stream, so neither side holds a second copy of the memory. What is in it is not trusted:
//! every length is bounded by the machine that is to take it, and the digest is compared before anything runs.

mod read;
#[cfg(test)]
mod tests;
mod write;

pub use read::ImageReader;
pub use write::{Unwritten, bytes_max, write};

use crate::page::PageError;
use ft_ram::PageIndex;
use ft_vm::spec::MachineSpec;
use serde::{Deserialize, Serialize};
use std::io;

/// First bytes of the file.
pub const MAGIC: [u8; 8] = *b"FTDIMAGE";
/// Version of the format. Another one is refused, not guessed at.
pub const VERSION: u32 = 2;
/// Most bytes of an [`ImageLabel`].
pub const LABEL_BYTES_MAX: usize = 64 << 10;
/// Page records are written in pieces of about this size.
const PIECE_BYTES: usize = 1 << 20;
/// No piece is longer: the record that fills it comes on top.
const PIECE_BYTES_MAX: usize = PIECE_BYTES + RECORD_BYTES_MAX;
/// A page as it is, and its record's head.
const RECORD_BYTES_MAX: usize = 4096 + 6;
/// Length and digest.
const END_BYTES: usize = 8 + blake3::OUT_LEN;

/// Whose state it is, and as of when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLabel {
    /// The VM's name.
    pub vm: String,
    /// The node that owns it, and wrote this.
    pub node: String,
    /// The cell's identity.
    pub cell: u64,
    /// The generation of the cell in which it may be gone on from.
    pub generation: u64,
    /// The pairing under which it was sealed.
    pub pairing: u64,
    /// Its epoch.
    pub epoch: u64,
    /// The machine.
    pub spec: MachineSpec,
    /// What its disks held: the hash of each by its name, where that was known.
    pub disks: Vec<(String, Vec<u8>)>,
}

/// Why a saved image is not taken. Offsets are into the file.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// The system does not give it.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Some other file.
    #[error("is no saved image: it does not start with FTDIMAGE")]
    Magic,
    /// Another version's.
    #[error("has format version {theirs}, this program reads {VERSION}")]
    Version {
        /// The file's.
        theirs: u32,
    },
    /// It ends too early.
    #[error("is cut off in its {what}")]
    CutOff {
        /// What should be there.
        what: &'static str,
    },
    /// Longer than can be.
    #[error("says that its {what} has {length} bytes, at most {most} are possible")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// What the file says.
        length: u64,
        /// What there can be.
        most: u64,
    },
    /// Not the bytes that were written.
    #[error("is damaged: the checksum of its {what} does not fit")]
    Damaged {
        /// What was checked.
        what: &'static str,
    },
    /// Its head cannot be.
    #[error("is damaged: its head is malformed: {0}")]
    Malformed(String),
    /// Of another machine.
    #[error("is of another machine: it has {theirs:?}, this one is {ours:?}")]
    Machine {
        /// The file's.
        theirs: Box<MachineSpec>,
        /// The configured one.
        ours: Box<MachineSpec>,
    },
    /// A page that cannot be there.
    #[error("is damaged: page {page} is out of order, or outside of a memory of {pages} pages")]
    Page {
        /// Which.
        page: PageIndex,
        /// Pages of the memory.
        pages: PageIndex,
    },
    /// A page's record.
    #[error("is damaged: {0}")]
    Record(#[from] PageError),
    /// It says another length than it has.
    #[error("is damaged: it says that it has {stated} bytes, and has {found}")]
    Length {
        /// What it says.
        stated: u64,
        /// What was read.
        found: u64,
    },
    /// Something behind the end.
    #[error("is damaged: bytes follow its end")]
    BehindEnd,
}

impl SavedError {
    /// Whether it may be a good image all the same, for another machine or another version of this program.
    #[must_use]
    pub fn is_unfit(&self) -> bool {
        matches!(self, Self::Version { .. } | Self::Machine { .. })
    }

    /// Whether another attempt may go better.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Io(_))
    }
}
