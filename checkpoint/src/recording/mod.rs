//! A recording: the file from which a machine's run is executed again. It begins with the machine's description and its
//! whole state when recording began, and goes on with the event log.
//!
//! ```text
//! file:     "FTDREC" version u16   About  State  Pages*  Begin   Log*   End
//! section:  kind u32, recording u32, sequence u32, length u32, crc32c u32 of the payload, crc32c u32 of these, payload
//! ```
//!
//! `recording` is drawn at random for each file and stands in all its sections. Sections are counted, so an error names
//! a section that is missing, repeated, swapped, damaged or of another file. The file is at any moment a recording up
//! to its last whole log section, so a recorder that dies leaves a shorter recording. Only [`End`] says that nothing is
//! missing. A recording may come from anywhere, and is not trusted.

mod read;
mod section;
#[cfg(test)]
mod tests;
mod write;

pub use read::{NextSection, Reader};
pub use section::{SECTION_BYTES_MAX, SECTION_HEADER_BYTES};
pub use write::Writer;

use crate::page::{PageError, ZERO_PAGE, is_zero};
use ft_ram::{PageIndex, RamView};
use ft_vm::replay::log::LogError;
use ft_vm::spec::MachineSpec;
use serde::{Deserialize, Serialize};
use std::io;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// First bytes of the file.
pub const MAGIC: [u8; 6] = *b"FTDREC";
/// Version of the format. Another one is refused, not guessed at.
pub const VERSION: u16 = 2;

/// Whose recording it is, and who can execute it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The VM's name.
    pub vm: String,
    /// The machine.
    pub spec: MachineSpec,
    /// The engine that recorded: another one might do something else with the same log.
    pub engine_fingerprint: u64,
    /// The program that recorded, for people.
    pub program: String,
    /// The disks' images, in the machine's order. They are not in the recording.
    pub disks: Vec<DiskImage>,
}

/// A disk image that the machine reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskImage {
    /// Where it was.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Hash of its content, [`DiskImage::hash`].
    pub hash: u64,
}

impl DiskImage {
    /// The hash and the length of an image's content.
    pub fn hash(image: &mut impl io::Read) -> io::Result<(u64, u64)> {
        let (mut hasher, mut bytes, mut buffer) = (Xxh3::new(), 0, vec![0; 1 << 20]);
        loop {
            match image.read(&mut buffer) {
                Ok(0) => return Ok((hasher.digest(), bytes)),
                Ok(n) => {
                    hasher.update(&buffer[..n]);
                    bytes += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// How a recording ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Instructions that had retired.
    pub count: u64,
    /// [`machine_digest`] of the machine at that count.
    pub digest: u64,
    /// Why there.
    pub why: EndReason,
}

/// Why a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndReason {
    /// The guest powered the machine off.
    PoweredOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest crashed.
    Crashed,
    /// The recorder was told to stop, or its time was over.
    Stopped,
}

impl std::fmt::Display for EndReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::PoweredOff => "the guest powered off",
            Self::Reset => "the guest asked for a reset",
            Self::Crashed => "the guest crashed",
            Self::Stopped => "the recording was stopped",
        })
    }
}

/// One number for all of a machine: its captured state, and all its memory.
pub fn machine_digest(state: &[u8], ram: &RamView) -> io::Result<u64> {
    let mut hasher = Xxh3::new();
    hasher.update(&(state.len() as u64).to_le_bytes());
    hasher.update(state);
    each_page(ram, |index, page| {
        hasher.update(&index.to_le_bytes());
        hasher.update(page);
        Ok::<_, io::Error>(())
    })?;
    Ok(hasher.digest())
}

/// Calls `each` with every page of memory that is not zero.
fn each_page<E: From<io::Error>>(
    ram: &RamView,
    mut each: impl FnMut(PageIndex, &crate::page::Page) -> Result<(), E>,
) -> Result<(), E> {
    let mut page = ZERO_PAGE;
    ram.held(|mut pages| {
        pages.try_for_each(|index| {
            ram.read_page(index, &mut page);
            if is_zero(&page) { Ok(()) } else { each(index, &page) }
        })
    })
}

/// The digest of the start: chained over pages and state, so that no section of it can be missing.
#[doc(hidden)]
pub fn fold(digest: u64, bytes: &[u8]) -> u64 {
    (digest ^ xxh3_64(bytes)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

/// Why a recording cannot be written or read. Offsets are into the file.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The system refused.
    #[error("recording: {0}")]
    Io(#[from] io::Error),
    /// Some other file.
    #[error("this is no recording: it does not start with FTDREC")]
    Magic,
    /// Another version's.
    #[error("the recording has format version {theirs}, this program reads {VERSION}")]
    Version {
        /// The file's.
        theirs: u16,
    },
    /// Cut before the machine's start was complete: there is nothing to execute.
    #[error(
        "the recording is cut off at byte {offset}, before the machine's start is complete: nothing can be replayed"
    )]
    NoStart {
        /// How long the file is.
        offset: u64,
    },
    /// Not the bytes that were written.
    #[error(
        "recording corrupt at byte {offset}: section {sequence} has checksum {computed:#010x} where {stated:#010x} \
         is stated"
    )]
    Crc {
        /// Where the section begins.
        offset: u64,
        /// Its number as due.
        sequence: u32,
        /// In the file.
        stated: u32,
        /// Over the section.
        computed: u32,
    },
    /// Of another file.
    #[error(
        "recording, byte {offset}: a section of another recording ({theirs:#010x}, this is {ours:#010x})"
    )]
    Foreign {
        /// Where the section begins.
        offset: u64,
        /// The section's.
        theirs: u32,
        /// This file's.
        ours: u32,
    },
    /// Missing, repeated or swapped.
    #[error("recording, byte {offset}: section {theirs} where section {due} is due")]
    Sequence {
        /// Where the section begins.
        offset: u64,
        /// The section's number.
        theirs: u32,
        /// The number due.
        due: u32,
    },
    /// Not a section that can be here.
    #[error("recording, byte {offset}: a section of kind {kind} where {due} is due")]
    Kind {
        /// Where the section begins.
        offset: u64,
        /// What it says it is.
        kind: u32,
        /// What would be right.
        due: &'static str,
    },
    /// Longer than any.
    #[error("recording, byte {offset}: section of {length} bytes, at most {SECTION_BYTES_MAX} are allowed")]
    TooLong {
        /// Where the section begins.
        offset: u64,
        /// What it says.
        length: u64,
    },
    /// A section's content cannot be.
    #[error("recording, byte {offset}: malformed {what}: {why}")]
    Malformed {
        /// Where the section begins.
        offset: u64,
        /// What it should be.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A page of the start.
    #[error("recording, byte {offset}: {source}")]
    Page {
        /// Where the section begins.
        offset: u64,
        /// What is wrong.
        source: PageError,
    },
    /// What is to be written is no log.
    #[error("recording: {0}")]
    Log(#[from] LogError),
    /// Something behind the end.
    #[error("recording, byte {offset}: bytes follow the end")]
    BehindEnd {
        /// Where.
        offset: u64,
    },
}
