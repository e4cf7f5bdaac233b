//! Errors of the machine and of its replication, one enum per operation.

use super::flow::Service;
use crate::boot::ImageBootError;
use crate::disks::{EqualizeError, FollowError};
use crate::host::WiringError;
use ft_checkpoint::arena::ArenaError;
use ft_checkpoint::encoder::EncodeError;
use ft_checkpoint::owed::OwedError;
use ft_checkpoint::receiver::ReceiveError;
use ft_ram::MemoryError;
use ft_vm::boot::BootError;
use ft_vm::machine::MachineError;
use ft_vm::state::StateError;
use std::io;
use std::time::Duration;
use thiserror::Error;

/// Why there is no fresh machine.
#[derive(Debug, Error)]
pub enum PrepareError {
    /// No memory for its guest.
    #[error("guest memory: {0}")]
    Memory(#[from] MemoryError),
    /// The host side of its devices is missing.
    #[error(transparent)]
    Wiring(#[from] WiringError),
    /// The engine refuses it.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Why the guest was not booted.
#[derive(Debug, Error)]
pub enum StartGuestError {
    /// There is no machine for it.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// There is nothing in its image.
    #[error(transparent)]
    Image(#[from] ImageBootError),
    /// The machine does not take it.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The machine does not run.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Why a machine does not go on from a received state.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// None is prepared for it.
    #[error("no machine is prepared here")]
    NotPrepared,
    /// Its disks are not the checkpoint's.
    #[error("the VM's disks: {0}")]
    Disks(#[from] FollowError),
    /// Another epoch is held, or none.
    #[error("epoch {0} is not held here")]
    NotHeld(u64),
    /// The state does not fit the machine.
    #[error(transparent)]
    State(#[from] StateError),
    /// The machine does not run.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Why the machine that executes the log does not go on by itself.
#[derive(Debug, Error)]
pub enum GoLiveError {
    /// There is none.
    #[error("no machine on this node executes the log")]
    NotFollowing,
    /// It is not the primary's likeness.
    #[error("this machine did not execute what the primary executed")]
    Lost,
    /// It has not come to the end of the log.
    #[error("the log has not been executed to its end, instruction {end}")]
    Unexecuted {
        /// The instruction at which it would have been.
        end: u64,
    },
    /// What it has executed is not durable on its disks.
    #[error("the VM's disks on this node do not have, durably, what the machine has executed")]
    Unsettled,
    /// The machine refuses.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Why the guest cannot be kept running, or cannot be captured: the host failed it.
#[derive(Debug, Error)]
pub enum KeepError {
    /// A fault of ftd's own; the log has it.
    #[error("the thread that keeps the machine panicked")]
    Panicked,
    /// Nothing runs here that could be protected.
    #[error("no machine runs here")]
    NoMachine,
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// No memory for the dirty pages.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// No thread to ship checkpoints.
    #[error("cannot start the shipper: {0}")]
    Shipper(io::Error),
}

/// Why nothing more can be shipped under a pairing.
#[derive(Debug, Error)]
pub enum ShipError {
    /// A fault of ftd's own; the log has it.
    #[error("the thread that ships checkpoints panicked")]
    Panicked,
    /// The epoch does not follow the one before.
    #[error(transparent)]
    Owed(#[from] OwedError),
    /// It cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The backup's version of ftd has no place for a part of the machine's state.
    #[error("the backup runs an older version of ftd: {0}: upgrade it")]
    NotCarried(StateError),
    /// The backup's disks are not made equal.
    #[error("the VM's disks: {0}")]
    Disks(#[from] EqualizeError),
    /// A log cannot begin while a disk has something to do.
    #[error("a disk of the VM has not done within {within:?} what the guest has asked of it")]
    DiskBusy {
        /// For so long the guest stood still.
        within: Duration,
    },
    /// What the operator declared cannot be kept.
    #[error(
        "what the VM writes takes link and backup longer than hold_ms_max ({} ms) even at guest_speed_min_pct ({} %)",
        .0.hold_us_max / 1000,
        .0.speed_pct_min
    )]
    Overloaded(Service),
}

/// Why a backup's machine, or the memory that it holds, is not the VM any more.
#[derive(Debug, Error)]
pub enum StateLoss {
    /// It did not take the checkpoint that the log goes on from.
    #[error("cannot execute from the checkpoint: {0}")]
    NotStarted(#[from] RestoreError),
    /// The log does not go on where the machine is.
    #[error("the machine refuses the primary's log: {0}")]
    LogRefused(MachineError),
    /// The host failed it.
    #[error(transparent)]
    MachineFailed(MachineError),
    /// What kept it failed. What was held was in it, and in nothing else.
    #[error("the state was in the machine that executed the log, and that is gone: {0}")]
    MachineGone(Box<KeepError>),
    /// It came no further.
    #[error("the machine does not execute the log beyond instruction {count}")]
    Stuck {
        /// Where it stopped.
        count: u64,
    },
    /// Its memory is not the primary's.
    #[error("the memory held here is not the primary's: {0}")]
    Scrubbed(ReceiveError),
    /// It executed something else.
    #[error("diverged at instruction {count}: {what}")]
    Diverged {
        /// Instructions that had been executed.
        count: u64,
        /// What differs.
        what: String,
    },
}

/// Why a backup cannot receive.
#[derive(Debug, Error)]
pub enum StandbyError {
    /// Its memory cannot be mapped once more.
    #[error("guest memory: {0}")]
    Memory(#[from] MemoryError),
    /// No thread to apply what comes.
    #[error("cannot start a thread to apply checkpoints: {0}")]
    Thread(io::Error),
}

/// Why a standby has no sealed checkpoint to hand out.
#[derive(Debug, Error)]
pub enum SealedError {
    /// It was given up.
    #[error("the received state has been discarded")]
    GivenUp,
    /// None is complete.
    #[error("no sealed checkpoint is held")]
    NothingSealed,
}
