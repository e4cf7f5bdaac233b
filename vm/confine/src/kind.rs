//! The kinds of threads.

use std::fmt;

/// What a thread does, and so what it needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ThreadKind {
    /// Runs the guest, and the devices at its accesses.
    Vcpu,
    /// Carries out what a disk's device was asked for.
    Disk,
    /// Takes the network's frames to the guest.
    Frames,
    /// Reads and writes a connection with the peer, also before its handshake.
    Link,
    /// Reads what the primary sends to its backup, and keeps the books of the backup's disks, which are files.
    Stream,
    /// Makes and applies checkpoints: guest memory, and frames in memory.
    Checkpoint,
    /// Reads what operators and readers of metrics ask, and answers.
    Control,
}

/// All of them.
pub(crate) const KINDS: [ThreadKind; 7] = [
    ThreadKind::Vcpu,
    ThreadKind::Disk,
    ThreadKind::Frames,
    ThreadKind::Link,
    ThreadKind::Stream,
    ThreadKind::Checkpoint,
    ThreadKind::Control,
];

impl ThreadKind {
    /// Its place in [`KINDS`].
    pub(crate) fn index(self) -> usize {
        KINDS.iter().position(|&kind| kind == self).expect("all kinds are listed")
    }

    /// Whether it works with files by their names. What these are below may be mounted anew, which a rule of Landlock
    /// would not see.
    pub(crate) fn has_files(self) -> bool {
        self == Self::Stream
    }
}

impl fmt::Display for ThreadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vcpu => "a vCPU",
            Self::Disk => "a disk",
            Self::Frames => "frames",
            Self::Link => "the peer's connections",
            Self::Stream => "the peer's stream",
            Self::Checkpoint => "checkpoints",
            Self::Control => "operators",
        })
    }
}
