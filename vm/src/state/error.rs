//! Reasons why a machine refuses a captured state.

use crate::devices::DeviceStateError;

/// Why a captured state was refused.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not even a header.
    #[error("machine state of {0} bytes is shorter than its header")]
    TooShort(usize),
    /// Something else than a machine state.
    #[error("not a machine state (magic {0:02x?})")]
    Magic([u8; 4]),
    /// Cut, or followed by something.
    #[error("machine state says {said} bytes of body and has {is}")]
    Length {
        /// What the header says.
        said: usize,
        /// What is there.
        is: usize,
    },
    /// Damaged.
    #[error("machine state is damaged: CRC {is:08x}, should be {said:08x}")]
    Crc {
        /// What the header says.
        said: u32,
        /// What the bytes have.
        is: u32,
    },
    /// From another version of the program.
    #[error("machine state has version {theirs}, this program knows {oldest} to {newest}")]
    Version {
        /// The state's.
        theirs: u16,
        /// The oldest that this program knows.
        oldest: u16,
        /// The newest.
        newest: u16,
    },
    /// An older version has no place for something that the machine has.
    #[error("{field}: machine state of version {version} cannot carry it")]
    NotCarried {
        /// What.
        field: &'static str,
        /// The older version.
        version: u16,
    },
    /// The body is not what this version writes.
    #[error("machine state cannot be decoded: {0}")]
    Decode(String),
    /// The state is too large to be one.
    #[error("machine state of {0} bytes cannot be encoded: too long")]
    Encode(usize),
    /// The state belongs to another machine.
    #[error("machine state is of a machine with {field} {theirs}, this one has {ours}")]
    Spec {
        /// Which part of the spec.
        field: &'static str,
        /// The state's.
        theirs: String,
        /// This machine's.
        ours: String,
    },
    /// KVM would not take a part of it.
    #[error("vCPU {vcpu}: {call} refused the captured state: {source}")]
    Vcpu {
        /// The vCPU.
        vcpu: usize,
        /// The ioctl.
        call: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A model-specific register has another value here and cannot be set.
    #[error("vCPU {vcpu}: MSR {index:#x} was captured as {captured:#x}, is {} here and cannot be set",
        .here.map_or("unreadable".to_owned(), |value| format!("{value:#x}")))]
    Msr {
        /// The vCPU.
        vcpu: usize,
        /// The register's number.
        index: u32,
        /// Its captured value.
        captured: u64,
        /// Its value on this host, if it can be read at all.
        here: Option<u64>,
    },
    /// The captured extended state has components that this host does not know.
    #[error("vCPU {vcpu}: captured extended state has {theirs} bytes, this host takes {ours}")]
    Xsave {
        /// The vCPU.
        vcpu: usize,
        /// The state's.
        theirs: usize,
        /// This host's.
        ours: usize,
    },
    /// The time stamp counters run at different speeds, and this host's KVM cannot scale.
    #[error(
        "vCPU {vcpu}: captured with a time stamp counter of {theirs} kHz, this host has {ours} kHz and cannot scale"
    )]
    TscKhz {
        /// The vCPU.
        vcpu: usize,
        /// The state's.
        theirs: u32,
        /// This host's.
        ours: u32,
    },
    /// KVM would not take a part of the state that all vCPUs share.
    #[error("{call} refused the captured state: {source}")]
    Vm {
        /// The ioctl.
        call: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A device would not take its state.
    #[error("captured device state refused: {0}")]
    Device(#[from] DeviceStateError),
    /// The deterministic processor's state is not one that it can be in.
    #[error("captured processor state refused: {0}")]
    Soft(String),
    /// A rehearsal's machine is not in the state that it was given.
    #[error("the machine took the state and reads {0} back otherwise")]
    Different(String),
    /// A rehearsal's machine cannot enter the guest.
    #[error("the machine took the state and cannot go on from it: {0}")]
    Entry(Box<crate::error::MachineError>),
    /// A vCPU thread is gone.
    #[error("vCPU {vcpu} does not run any more")]
    Gone {
        /// The vCPU.
        vcpu: usize,
    },
    /// The machine runs.
    #[error("the machine runs: pause it before its state is replaced")]
    Running,
}
