//! Why a guest cannot be booted from its image.

use crate::disks::DiskReaderError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum ImageBootError {
    /// The disk cannot be read.
    #[error("machine.guest = \"image\": {0}")]
    Disk(#[from] DiskReaderError),
    /// It was read, and there is nothing, or nothing that can be used.
    #[error("machine.guest = \"image\": {}: {why}", image.display())]
    Nothing {
        /// The image.
        image: PathBuf,
        /// What the reader found.
        why: String,
    },
    /// The child that reads it cannot be started or talked to.
    #[error("machine.guest = \"image\": the process that reads the image: {0}")]
    Io(#[from] io::Error),
    /// It ended without an answer.
    #[error("machine.guest = \"image\": the process that reads the image ended without an answer: {0}")]
    Ended(String),
    /// It took too long.
    #[error("machine.guest = \"image\": the process that reads the image gave no answer in {} s", .0.as_secs())]
    Late(Duration),
    /// What it says is no answer.
    #[error("machine.guest = \"image\": the process that reads the image spoke nonsense: {0}")]
    Nonsense(&'static str),
}

/// Why the child does not confine itself. It reads nothing then.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The kernel refuses a limit.
    #[error("{what}: {source}")]
    Limit {
        /// Which one.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// It refuses the filter of system calls.
    #[error("seccomp: {0}")]
    Filter(#[from] seccompiler::Error),
    /// The filter cannot be made.
    #[error("seccomp: {0}")]
    Rules(#[from] seccompiler::BackendError),
}
