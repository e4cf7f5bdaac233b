//! Errors of the daemon's hands.

use crate::disks::{BesideError, FollowError, Unfit};
use crate::keeper::{GoLiveError, PrepareError, RestoreError, SealedError, StandbyError, StartGuestError};
use crate::replica::record_thread::Undurable;
use ft_checkpoint::owed::OwedError;
use ft_checkpoint::wire::FrameError;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum HandsError {
    /// The connection is gone already.
    #[error("the connection is gone")]
    NotArriving,
    /// The welcome could not be sent.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The connection's threads could not be started.
    #[error("cannot serve the connection: {0}")]
    Link(std::io::Error),
    /// The keeper's thread has ended.
    #[error("the keeper has ended")]
    KeeperGone,
    /// What is known of the cell is not recorded durably.
    #[error(transparent)]
    Record(#[from] Undurable),
    /// There is no fresh machine.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// Its guest was not booted.
    #[error(transparent)]
    StartGuest(#[from] StartGuestError),
    /// It does not go on from the sealed state.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The machine that executes the log does not go on by itself.
    #[error(transparent)]
    GoLive(#[from] GoLiveError),
    /// Nothing can be received into it.
    #[error(transparent)]
    WarmStandby(#[from] StandbyError),
    /// There is no sealed checkpoint to go on from.
    #[error(transparent)]
    Sealed(#[from] SealedError),
    /// This node's disks do not follow.
    #[error("the VM's disks: {0}")]
    Disks(#[from] FollowError),
    /// There is nothing to go on from.
    #[error("no state is held")]
    NothingHeld,
    /// What is held is older than what was sealed.
    #[error("epoch {wanted} was to be resumed, but epoch {held} is held")]
    Older {
        /// What the core knows to be sealed.
        wanted: u64,
        /// What the receiver has.
        held: u64,
    },
    /// The VM may not run from its images.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// What stands beside them cannot be written.
    #[error(transparent)]
    Beside(#[from] BesideError),
    /// What the backup says that it holds does not fit what is owed to it.
    #[error(transparent)]
    Owed(#[from] OwedError),
}

/// Why a replica cannot start.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {what}: {source}")]
pub struct StartError {
    pub(super) what: &'static str,
    pub(super) source: std::io::Error,
}
