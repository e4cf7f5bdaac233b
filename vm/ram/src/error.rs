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
    /// The kernel gives no huge pages to shared memory.
    #[error(
        "no huge pages: the kernel's setting for shared memory is \"{setting}\"; let it give some to those who ask \
         (echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled), or set machine.huge_pages = \"none\""
    )]
    HugePages {
        /// Its setting.
        setting: String,
    },
    /// The host has no such node, or no memory there.
    #[error("this host has no node {node} with memory; it has: {nodes}; see machine.numa_node")]
    Node {
        /// The node.
        node: u16,
        /// Those that it has, as the kernel lists them.
        nodes: String,
    },
    /// The kernel does not bind memory to a node.
    #[error("cannot bind guest memory to node {node}: {source}; see machine.numa_node")]
    Bind {
        /// The node.
        node: u16,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// vm-memory refused the layout.
    #[error("cannot map guest memory: {0}")]
    Map(String),
}
