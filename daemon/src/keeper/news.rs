//! The keeper's news: events of the machine, and of its replication.

use super::error::{KeepError, RestoreError, ShipError, StateLoss};
use super::images::SaveError;
use super::rehearsal::RehearsalError;
use crate::disks::FollowError;
use crate::peer::Ticket;
use crate::role::{ConnId, GuestEnd, Micros, OnDisk};
use ft_checkpoint::receiver::SealedImage;
use ft_checkpoint::wire::Message;
use ft_checkpoint::wire::message::{Network, Standing};
use ft_ram::GuestRam;
use std::sync::Arc;

/// What happens to the machine, for the executor.
pub enum KeeperNews {
    /// Primary: the first checkpoint of the pairing is captured; from this capture on output is held.
    FirstCaptured {
        /// The pairing.
        pairing: u64,
    },
    /// Primary: the guest stands still; this was the last epoch captured.
    FinalCaptured {
        /// The final epoch.
        epoch: u64,
    },
    /// Primary: nothing can be shipped under this pairing any more, over whatever connection.
    PairingBroken {
        /// The pairing.
        pairing: u64,
        /// Why.
        why: ShipError,
    },
    /// Heir: so much of the image is written.
    ImageProgress {
        /// The image's.
        generation: u64,
        /// Of its memory.
        percent: u8,
    },
    /// Heir: the image is on disk, or is not.
    ImageWritten {
        /// The image's.
        generation: u64,
        /// Which.
        outcome: Result<(), SaveError>,
    },
    /// Heir: what the image on disk has, in the memory that was prepared for it.
    ImageRead(Result<(GuestRam, Arc<SealedImage>), SaveError>),
    /// The guest has come to an end.
    GuestEnded(GuestEnd),
    /// What is on disk of a VM that could not be resumed.
    ImageFound(OnDisk),
    /// The machine failed for a reason of the host's, and is gone.
    MachineFailed(KeepError),

    /// Backup: the primary says something, or a part of what it sends is complete.
    FromPrimary {
        /// The connection.
        conn: ConnId,
        /// What.
        said: FromPrimary,
        /// To be dropped when it has been handled.
        ticket: Ticket,
    },
    /// Backup: the machine did not take what [`super::order::Order::Load`] asked it to. What is held is as it was.
    LoadFailed(RestoreError),
    /// Backup: the machine has taken what is held, as [`super::order::Order::Load`] asked; in replay mode, all the log
    /// that there was is executed, as [`super::order::Order::Verify`] asked.
    Verified {
        /// The epoch that was asked about.
        epoch: u64,
    },
    /// Backup: the VM could go on from what is held of this pairing.
    Rehearsed {
        /// The pairing.
        pairing: u64,
    },
    /// Backup: it could not.
    RehearsalFailed {
        /// The pairing.
        pairing: u64,
        /// Why.
        why: RehearsalError,
    },
    /// Backup: what is held is not the VM's state any more.
    StateLost(StateLoss),
    /// Backup: its disks do not follow what comes on this connection. What is sealed is as good as before.
    CannotFollow {
        /// Connection.
        conn: ConnId,
        /// Why.
        why: FollowError,
    },
}

/// What came in from the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromPrimary {
    /// It sends: a part of a long checkpoint or copy is a sign of life too.
    Alive,
    /// A checkpoint, or an epoch of the log, is complete and verified.
    Sealed {
        /// Its pairing.
        pairing: u64,
        /// Its epoch.
        epoch: u64,
        /// The primary's clock, to be sent back.
        stamp: Micros,
    },
    /// How the VM's network is on its host.
    Network(Network),
    /// The cell now names us as standby.
    Paired {
        /// The pair's generation.
        generation: u64,
    },
    /// It says what its arbiter says.
    Standing(Standing),
    /// What it asked of the disks, or is to know of them.
    Answers(Vec<Message<'static>>),
    /// It has stopped its VM at `epoch` for good and offers it to us.
    Offered {
        /// The final epoch.
        epoch: u64,
    },
}
