//! Errors of an arbiter: why it gave no answer, and at which place.

use nix::errno::Errno;
use std::fmt;
use std::path::PathBuf;
use thiserror::Error;

/// Where an arbiter keeps the cell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In this directory.
    File(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(directory) => write!(f, "file {}", directory.display()),
        }
    }
}

/// The arbiter at `place` gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{place}: {trouble}")]
pub struct ArbiterError {
    /// Which arbiter.
    pub place: Place,
    /// Why.
    pub trouble: Trouble,
}

/// Why an arbiter gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Trouble {
    /// The storage failed.
    #[error("{at}: {}", errno.desc())]
    Storage {
        /// The step that failed.
        at: &'static str,
        /// How.
        errno: Errno,
    },
    /// It has not answered for so long that nobody waits for it any more. It may yet do what was asked.
    #[error("no answer for {seconds} s: the storage hangs, or was replaced under a call")]
    NoAnswer {
        /// How long it was waited for.
        seconds: u64,
    },
    /// The cell is damaged. It is never taken for an empty one.
    #[error("the cell is damaged: {file}: {reason}; find out which node has the VM, then remove that file")]
    Damaged {
        /// The damaged file's name.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The cell belongs to another VM.
    #[error("this is the cell of VM '{found}', not of '{vm}'")]
    OtherVm {
        /// The VM that it belongs to.
        found: String,
        /// The VM that it should belong to.
        vm: String,
    },
    /// A crash of the storage has taken a generation back that was there before.
    #[error(
        "the storage has lost generation {generation}, which it held before: do not mount it asynchronously"
    )]
    TakenBack {
        /// The generation.
        generation: u64,
    },
    /// The caller asked for a generation that does not follow the expected one.
    #[error("generation {new} does not follow {expected:?}")]
    Generation {
        /// The generation expected.
        expected: Option<u64>,
        /// The generation asked for.
        new: u64,
    },
}
