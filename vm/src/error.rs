//! The errors of a machine's commands, and the events that it reports unasked. Both come from the engines, so this file
//! stands below them.

use crate::devices::DeviceError;
use crate::engine::kvm::error::KvmError;
use crate::engine::kvm::model::CpuLack;
use crate::replay::LogError;
use crate::spec::{CpuModel, EngineKind};
use crate::state::StateError;
use ft_ram::MemoryError;
use std::time::Duration;

/// Why a machine could not be made or driven.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// No KVM.
    #[error("cannot open /dev/kvm: {source} ({hint})")]
    Open {
        /// The kernel's answer.
        source: std::io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// Not the KVM that the world has.
    #[error(
        "/dev/kvm speaks API version {theirs}, but this program speaks {ours}: \
         the device is not KVM, or the kernel is too old or too new"
    )]
    ApiVersion {
        /// The kernel's.
        theirs: i32,
        /// This program's.
        ours: i32,
    },
    /// The kernel cannot do something that a machine needs.
    #[error("this kernel's KVM lacks {0}")]
    Capability(&'static str),
    /// A number of vCPUs that cannot be.
    #[error("{asked} vCPUs: a machine has 1 to {max} on this host")]
    Vcpus {
        /// In the specification.
        asked: u8,
        /// The program's bound or KVM's, whichever is lower.
        max: usize,
    },
    /// A processor with a name that this host's cannot stand in for.
    #[error(
        "cpu = \"{model}\": this host's processor (or its KVM) cannot show it: {lack}; a lower level, or \"host\", \
         may do"
    )]
    Cpu {
        /// Which.
        model: CpuModel,
        /// Why not.
        lack: CpuLack,
    },
    /// A processor with a name on the deterministic engine, which has one of its own.
    #[error("cpu = \"{0}\": the engine \"soft\" has a processor of its own (\"host\")")]
    SoftCpu(CpuModel),
    /// A number of vCPUs that the deterministic engine does not have.
    #[error("{0} vCPUs: the engine \"soft\" has exactly one")]
    SoftVcpus(u8),
    /// No thread for the vCPU.
    #[error("cannot start a vCPU's thread: {0}")]
    Thread(std::io::Error),
    /// Memory cannot be mapped once more.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The memory is not the specification's.
    #[error("the specification says {spec} bytes of RAM, the memory given has {given}")]
    RamBytes {
        /// In the specification.
        spec: u64,
        /// What was given.
        given: u64,
    },
    /// A KVM call failed.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A vCPU could not be created.
    #[error("cannot create vCPU {vcpu}: {source}")]
    Vcpu {
        /// Which.
        vcpu: usize,
        /// Why.
        source: KvmError,
    },
    /// The devices could not be made.
    #[error(transparent)]
    Devices(#[from] DeviceError),
    /// A vCPU thread does not come out of what it is doing.
    #[error("vCPU {vcpu} did not stop within {waited:?}")]
    Unresponsive {
        /// Which.
        vcpu: usize,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The guest's state is not one to go on from.
    #[error("vCPU {vcpu} has crashed, its state is not captured: {why}")]
    Crashed {
        /// Which.
        vcpu: usize,
        /// What happened.
        why: String,
    },
    /// The host failed the guest.
    #[error("the host failed vCPU {vcpu}: {why}")]
    Failed {
        /// Which.
        vcpu: usize,
        /// What happened.
        why: String,
    },
    /// State can be read only while nothing moves.
    #[error("the machine runs: pause it before its state is captured")]
    Running,
    /// There is no guest, or only half of one.
    #[error("the machine has nothing to run: it was not booted, or its boot or restore failed")]
    Incomplete,
    /// Nothing is logged.
    #[error("the dirty log is not on")]
    NotLogging,
    /// The state cannot be encoded.
    #[error(transparent)]
    State(#[from] StateError),
    /// Only the deterministic engine can do this.
    #[error("{what} needs the engine \"soft\", this machine runs on \"{engine}\"")]
    Engine {
        /// What was asked for.
        what: &'static str,
        /// What executes this machine.
        engine: EngineKind,
    },
    /// The machine is not in the mode in which this can be done.
    #[error("{what}: {why}")]
    Mode {
        /// What was asked for.
        what: &'static str,
        /// What it would take, or what is in the way.
        why: &'static str,
    },
    /// The replay is not what was recorded, and its state is nothing to go on from.
    #[error("the replay diverged at count {count}: {what}")]
    Diverged {
        /// Where.
        count: u64,
        /// In what.
        what: String,
    },
    /// The event log refuses what is to be logged.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl MachineError {
    pub(crate) fn open(source: std::io::Error) -> Self {
        let hint = match source.raw_os_error() {
            Some(libc::ENOENT) => "is the kvm module loaded, and virtualisation enabled in the firmware?",
            Some(libc::EACCES | libc::EPERM) => {
                "is this user in the group kvm, and the device allowed to the service?"
            }
            Some(libc::ENODEV | libc::ENXIO) => "the kernel has no KVM for this processor",
            _ => "KVM is needed to run a machine",
        };
        Self::Open { source, hint }
    }
}

/// What a running machine says of its own accord.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest powered off. The vCPU that did it does not go on until the machine is paused and resumed.
    PoweredOff,
    /// The guest asked for a reset. As above; [`Machine::boot`](crate::machine::Machine::boot) on the paused machine
    /// performs it.
    Reset,
    /// The guest's kernel says that it has panicked. Its vCPUs go on; what they do is its own affair.
    Panicked {
        /// Another kernel writes its memory to a disk, and resets then.
        dumps: bool,
    },
    /// The guest has not fed its watchdog: it hangs. As above.
    WatchdogFired,
    /// The guest crashed a processor of its own (a triple fault), which a real machine takes for a reset. What goes on
    /// with the VM elsewhere comes to the same.
    Crashed {
        /// Which.
        vcpu: usize,
        /// What happened, with the registers that tell where.
        why: String,
    },
    /// The host failed the guest: a vCPU cannot go on here, through no doing of the guest's. Another host can go on
    /// from the last state that was captured before.
    Failed {
        /// Which.
        vcpu: usize,
        /// What happened, with the registers that tell where.
        why: String,
    },
    /// The replay is not what was recorded. The machine stands where that was found, and is nothing to go on from.
    Diverged {
        /// Instructions that had been executed.
        count: u64,
        /// What differs: a register, a page, an input that could not be delivered.
        what: String,
    },
}
