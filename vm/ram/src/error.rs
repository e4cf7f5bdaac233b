//! Reasons why memory cannot be had.

/// Why RAM could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is not one that a machine can have.
    #[error("{0} bytes of guest memory: must be a multiple of 2 MiB, from 16 MiB to 4 TiB")]
    Size(u64),
    /// The kernel gave no memory.
    #[error("cannot get {bytes} bytes of guest memory: {source}")]
    Allocate {
        /// Bytes asked for.
        bytes: u64,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The kernel does not lock the memory.
    #[error(
        "cannot lock {bytes} bytes of guest memory: {source}; the limit is RLIMIT_MEMLOCK: raise it \
         (LimitMEMLOCK=infinity in the systemd unit, ulimit -l unlimited in a shell), or set \
         machine.lock_memory = false"
    )]
    Lock {
        /// Bytes to be locked.
        bytes: u64,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// vm-memory refused the layout.
    #[error("cannot map guest memory: {0}")]
    Map(String),
}
