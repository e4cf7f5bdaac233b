//! Commands of the core to its executor. They are executed in order, each to its end, before the next event.

use super::event::{ConnId, Micros};
use super::record::NodeRecord;
use super::request::{Done, RequestId, RequestRefusal};
use super::saved::Saved;
use ft_arbiter::{Cell, CellId};
use ft_checkpoint::wire::message::Standing;

/// How a backup is welcomed, and what it receives then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairingStart {
    /// A full copy begins a new pairing.
    Copy,
    /// The pairing goes on: re-send what the backup has not sealed, after this epoch.
    ResumeAfter(u64),
}

/// How a node comes to own the VM that another one ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Succession {
    /// Unplanned: the primary was lost.
    Failover,
    /// Planned: the primary stopped the VM and still holds it. Until the cell stops naming it, it may go on with it.
    Switchover,
    /// Late: there is, or may be, an image on disk from which this node could go on once more, as long as the cell
    /// stands in the image's generation.
    Image,
}

/// How a process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// As asked, nothing lost.
    Stopped(String),
    /// Lost the arbitration.
    Fenced(String),
    /// The guest crashed.
    GuestCrashed(String),
    /// The peer and this node do not fit each other.
    Misfit(String),
    /// Something that should work did not.
    Failed(String),
}

impl Exit {
    /// Why, in words.
    pub fn why(&self) -> &str {
        match self {
            Self::Stopped(why)
            | Self::Fenced(why)
            | Self::GuestCrashed(why)
            | Self::Misfit(why)
            | Self::Failed(why) => why,
        }
    }
}

/// An output of the core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read the arbiter's cell; answer with `CellRead`. At most one arbiter request is under way.
    ReadCell,
    /// As `ReadCell`, and prove by writing beside it that it could be set.
    ProbeCell,
    /// Make this durable on this host before anything else is done; answer with `Recorded`. If that fails or takes
    /// too long, answer with `Unrecorded`, and with `Recorded` when it is durable after all.
    Record(NodeRecord),
    /// Compare-and-set the whole cell; answer with `CellSet`.
    CompareAndSet {
        /// Generation that the cell must have (none: the cell is empty).
        expected: Option<u64>,
        /// What it becomes.
        new: Cell,
    },
    /// Wait no longer for the arbiter request under way, and be ready for another: answer it as one whose answer is
    /// lost, unless it was answered meanwhile. It may still be carried out.
    LeaveArbiter,

    /// Keep dialling the peer until a connection is welcomed.
    Dial,
    /// Stop dialling.
    StopDialling,
    /// Accept a backup, and start or go on replicating to it.
    Welcome {
        /// Connection.
        conn: ConnId,
        /// The pairing.
        pairing: u64,
        /// The generation we own.
        generation: u64,
        /// Where to begin.
        how: PairingStart,
    },
    /// Decline a peer's hello, or a welcome; the connection closes after it.
    Refuse {
        /// Connection.
        conn: ConnId,
        /// Told to the peer.
        why: String,
    },
    /// Backup: receive what comes on this connection. A welcome that is not answered by this is closed.
    Follow {
        /// Connection.
        conn: ConnId,
        /// The pairing.
        pairing: u64,
        /// Whether it goes on with what is held, or a full copy comes, into fresh memory.
        how: PairingStart,
    },
    /// Close a connection.
    DropLink {
        /// Which.
        conn: ConnId,
    },
    /// Stop replicating: no more checkpoints, what is unacked is forgotten. Frames stay in the buffer.
    EndPairing,

    /// Boot the guest afresh and let its output pass.
    Boot,
    /// Let everything that is held go out in order, and what follows pass: nobody else can own this VM.
    EmitFreely,
    /// Let the frames of epochs up to `through` go out, as long as this node's clock is before `until`.
    Release {
        /// Last epoch that is acked.
        through: u64,
        /// When the permission lapses.
        until: Micros,
    },
    /// Send a heartbeat, which gets our clock as it is written: its stamp.
    SendHeartbeat {
        /// Connection.
        conn: ConnId,
        /// How long the answer shall permit us to release, counted from the stamp.
        lease: Micros,
    },
    /// Tell the backup that the cell names it.
    SendPaired {
        /// Connection.
        conn: ConnId,
        /// The pair's generation.
        generation: u64,
    },
    /// Tell the peer what this node's arbiter says.
    SendStanding {
        /// Connection.
        conn: ConnId,
        /// What it says.
        standing: Standing,
    },
    /// Pause the VM, capture a last checkpoint, keep the VM paused; answer with `FinalCaptured`.
    FinalCheckpoint,
    /// Offer the VM to the backup: it stopped for good at this epoch.
    SendOffer {
        /// Connection.
        conn: ConnId,
        /// The final epoch.
        epoch: u64,
    },
    /// The switchover is off: let the VM run again, checkpoints go on.
    Thaw,

    /// Backup: acknowledge a sealed checkpoint.
    SendAck {
        /// Connection.
        conn: ConnId,
        /// Epoch.
        epoch: u64,
        /// The primary's stamp.
        stamp: Micros,
    },
    /// Backup: try whether the VM could go on from what is held, at this epoch or a later one, beside all else; answer
    /// with `Rehearsed` or `RehearsalFailed`.
    Rehearse {
        /// The epoch that is held.
        epoch: u64,
    },
    /// Backup: answer with `Verified` when what was received up to this epoch has shown, as far as it can, that the VM
    /// can go on from it, or with `StateLost`.
    Verify {
        /// The epoch that is held.
        epoch: u64,
    },
    /// Backup: the machine that stood ready is gone. Have a fresh one stand ready over the memory that is held, if that
    /// is all that there is of the VM.
    Renew,
    /// Backup: answer a heartbeat.
    SendEcho {
        /// Connection.
        conn: ConnId,
        /// The primary's stamp.
        stamp: Micros,
        /// The lease granted, which is promised already.
        lease: Micros,
    },
    /// Backup: we will not take over; nothing has changed.
    SendDecline {
        /// Connection.
        conn: ConnId,
        /// Why.
        why: String,
    },
    /// Backup: have the machine take the state of this epoch, all but the run; answer with `Verified`, `LoadFailed` or
    /// `StateLost`.
    Load {
        /// The epoch that is held.
        epoch: u64,
    },
    /// Heir: resume the VM from the sealed state of this epoch and announce it; answer with `TookOver` or
    /// `TakeOverFailed`, after which what is held is still there. Its output passes after a failover, and is held else.
    TakeOver {
        /// Epoch to resume from.
        epoch: u64,
        /// The generation we own now.
        generation: u64,
        /// How it came to be ours.
        succession: Succession,
    },
    /// Heir: write what is held to disk, beside all else; answer with `ImageSaved` or `ImageUnsaved`. A take-over that
    /// comes about meanwhile calls it off.
    SaveImage(Saved),
    /// Heir: hold what this image on disk has, in fresh memory; answer with `ImageRead` or `ImageUnread`.
    ReadImage(Saved),
    /// Look what is on disk; answer with `ImageFound`.
    FindImage {
        /// The cell that counts.
        cell: CellId,
    },
    /// Remove the images on disk that the cell has moved past, or call their writing off.
    DropImage {
        /// The cell.
        cell: CellId,
        /// Its generation.
        below: u64,
    },
    /// Tell the former primary that we run the VM.
    SendTookOver {
        /// Connection.
        conn: ConnId,
        /// Our generation.
        generation: u64,
    },
    /// Backup: forget what was received.
    Discard,

    /// Stop the VM, mute its output for good, drop its state.
    StopVm,
    /// Say good-bye to the peer.
    SendBye {
        /// Connection.
        conn: ConnId,
        /// Why.
        why: String,
    },
    /// Press the guest's power button. A guest that does not look at it goes on.
    PressPowerButton,
    /// Tell the operator what became of a request.
    Answer {
        /// Which.
        request: RequestId,
        /// What was done, or why not.
        outcome: Result<Done, RequestRefusal>,
    },
    /// End the process.
    Exit(Exit),
}
