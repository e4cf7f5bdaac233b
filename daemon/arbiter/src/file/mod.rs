//! The cell on storage that both nodes share: a directory with one small file for each generation, named by its number.
//! The cell is the file with the highest number.
//!
//! A generation is claimed by writing a temporary file, flushing it, and linking it to its number: link(2) fails if the
//! name exists, on the file server itself, so exactly one node wins each number, and the file is complete from the
//! moment it is visible. There is no lock, on purpose: a node that freezes in the middle holds nobody up, and no
//! expired lock lets a node overwrite a decision that others have made meanwhile.
//!
//! The last [`GENERATIONS_KEPT`] files stay, and the oldest is removed first. They are a readable history, and keep a
//! number taken while a sleeping node may still claim it: a claim that finds the cell that far ahead is refused as
//! late.
//!
//! The storage needs hard links and attribute caches that do not lie: any local or cluster file system, or NFS mounted
//! with actimeo=0.
//!
//! [`FileCell`] is the procedure, which does no I/O: each operation is an [`Attempt`] that asks for one [`Call`] after
//! the other. [`FileArbiter`] drives it over a [`Directory`]; a simulator delays, loses and fails the same calls.

mod attempt;
mod directory;
mod procedure;
pub(crate) mod record;

pub use attempt::{Attempt, Next};
pub use directory::{Answer, Call, Directory, Folder, MountedDirectory, Reply};
pub use procedure::{FileCell, GENERATIONS_KEPT};
pub use record::generation_of;

use crate::{Arbiter, ArbiterError, Cell, Outcome, Place};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// The back end "file".
#[derive(Debug)]
pub struct FileArbiter<D = MountedDirectory> {
    cell: FileCell,
    directory: D,
}

impl FileArbiter {
    /// The cell of `vm` at `path`, an absolute path whose parent must exist.
    #[must_use]
    pub fn new(path: &Path, vm: &str) -> Self {
        Self::over(MountedDirectory::new(path), path, vm)
    }
}

impl<D: Directory> FileArbiter<D> {
    /// The cell of `vm` in a directory that is known as `path`.
    #[must_use]
    pub fn over(directory: D, path: &Path, vm: &str) -> Self {
        Self { cell: FileCell::new(path, vm), directory }
    }

    fn drive<T>(&mut self, mut attempt: Attempt<T>) -> T {
        let mut next = attempt.begin();
        loop {
            match next {
                Next::Call(call) => next = attempt.resume(self.directory.perform(&call)),
                Next::Done(result) => return result,
            }
        }
    }
}

impl<D: Directory + Send> Arbiter for FileArbiter<D> {
    fn read(&mut self) -> Result<Option<Cell>, ArbiterError> {
        self.drive(self.cell.read())
    }

    fn compare_and_set(&mut self, expected: Option<u64>, new: Cell) -> Outcome {
        self.drive(self.cell.compare_and_set(expected, new, &unique_name()))
    }

    /// Writes, flushes, links and removes a file of this node's own: in the cell's directory, or beside it while there
    /// is none.
    fn probe(&mut self) -> Result<Option<Cell>, ArbiterError> {
        self.drive(self.cell.probe(&unique_name()))
    }

    fn place(&self) -> Place {
        self.cell.place()
    }
}

/// A name unlike any other's: the nodes share no process table, and may share a clock.
fn unique_name() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let host = nix::unistd::gethostname().unwrap_or_default();
    format!("{}-{}-{nanos:x}-{number:x}", host.to_string_lossy(), std::process::id())
}

#[cfg(test)]
mod tests;
