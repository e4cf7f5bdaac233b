//! Why the files beside the images cannot be used, each with what an operator can do.

use super::overlay::OverlayError;
use ft_disk::DiskImageError;
use ft_mirror::{IntentError, JournalError, StampError};
use std::io;
use std::path::PathBuf;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum BesideError {
    /// The host refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file, or its directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file system is full.
    #[error(
        "{}: it takes {} MiB, and its file system has {} MiB left: make room there, move state_dir, or lower \
         replication.journal_mib", path.display(), need.div_ceil(1 << 20), left >> 20
    )]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// Bytes that it takes.
        need: u64,
        /// Bytes that are left.
        left: u64,
    },
    /// The system gives no more threads.
    #[error("cannot start the thread of the intent maps: {0}")]
    Thread(io::Error),
    /// An image.
    #[error("machine.disk.image: {0}")]
    Image(#[from] DiskImageError),
    /// Two disks would write over one another.
    #[error(
        "machine.disk.image: {} and {} are one and the same, by a link, another name or a loop device: give each disk \
         an image of its own", one.display(), other.display()
    )]
    Same {
        /// An image.
        one: PathBuf,
        /// And again.
        other: PathBuf,
    },
    /// A file of another program.
    #[error(
        "machine.disk.image = {}: it is a {format} file, and ftd takes raw images: make one of it ({})",
        image.display(), container_help(format)
    )]
    Container {
        /// The image.
        image: PathBuf,
        /// What it is.
        format: &'static str,
    },
    /// An image became shorter or longer.
    #[error(
        "machine.disk.image = {}: it had {then} bytes when ftd last used it, and has {now}: bring back the image as it \
         was; if its content is right all the same, ftd disk adopt says so", image.display()
    )]
    Resized {
        /// The image.
        image: PathBuf,
        /// Its size then.
        then: u64,
        /// Its size now.
        now: u64,
    },
    /// The journal.
    #[error("{}: {source}; {}", path.display(), journal_help(source))]
    Journal {
        /// The file.
        path: PathBuf,
        /// Why.
        source: JournalError,
    },
    /// The journal is to have another size, and is in use.
    #[error(
        "{}: it has {has_mib} MiB and is to have {wanted_mib} (replication.journal_mib), but {waiting} bytes in it are \
         not in the images yet: start with {has_mib} once more, and change it after the next stop", path.display()
    )]
    JournalSize {
        /// The file.
        path: PathBuf,
        /// What it has.
        has_mib: u64,
        /// What the configuration says.
        wanted_mib: u64,
        /// Bytes to be carried out.
        waiting: u64,
    },
    /// The map of an image.
    #[error("{}: {source}", path.display())]
    Intents {
        /// The file.
        path: PathBuf,
        /// Why.
        source: IntentError,
    },
    /// An overlay, or its base.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// The stamp of an image.
    #[error("{}: {source}; {}", path.display(), stamp_help(source))]
    Stamp {
        /// The file.
        path: PathBuf,
        /// Why.
        source: StampError,
    },
}

fn container_help(format: &str) -> &'static str {
    match format {
        ft_disk::QCOW2 => "ftd disk import",
        _ => "qemu-img convert -O raw",
    }
}

fn journal_help(source: &JournalError) -> &'static str {
    match source {
        JournalError::Version(_) => "start the version of ftd that wrote it",
        JournalError::NoJournal | JournalError::Cut { .. } | JournalError::Damaged { .. } => {
            "the images beside it may lack what it held: move it away, and they are made equal to the peer's before \
             they count"
        }
        _ => "see whether its storage is well, and start ftd again",
    }
}

fn stamp_help(source: &StampError) -> &'static str {
    match source {
        StampError::Version(_) => "start the version of ftd that wrote it",
        StampError::Damaged | StampError::Cut { .. } => {
            "it is not known what its image holds: move the stamp away; where this node owns the VM, ftd disk adopt \
             says that the image is right"
        }
        StampError::Io(_) => "see whether its storage is well, and start ftd again",
    }
}
