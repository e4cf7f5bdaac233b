//! Events that can happen to a node. The protocol core learns everything about the world through them.

use super::command::PairingStart;
use super::policy::Times;
use super::record::NodeRecord;
use super::request::{Leave, RequestId, Start};
use super::saved::OnDisk;
use super::surroundings::{Reach, Whose};
use ft_arbiter::{ArbiterError, Cell, Outcome};
pub use ft_checkpoint::wire::message::Held;
use ft_checkpoint::wire::message::Standing;

/// Microseconds on this node's monotonic clock. It must go on while the host is suspended (CLOCK_BOOTTIME, not
/// CLOCK_MONOTONIC): a clock that stands still lets a permission outlive the promise that it rests on.
pub type Micros = u64;

/// One connection to the peer. Numbers are never used twice in a process, so that late news of an old connection is
/// recognised.
pub type ConnId = u64;

/// Why a connection is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gone {
    /// Closed or reset, unreadable, or given up by us: nothing is known of the peer.
    Lost(String),
    /// This node could not do its part on it: no machine, no memory, or disks that fail. What is sealed is as it was.
    Unable(String),
    /// The peer said good-bye: its VM has ended, or it has given up what it held.
    Bye(String),
}

/// Why the image on disk is not held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageTrouble {
    /// The host does not give it, or has no memory for it: that may pass.
    ForNow(String),
    /// It is whole, and of another machine than is configured.
    Unfit(String),
    /// It is damaged, or not there.
    ForGood(String),
}

/// How the guest came to an end by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEnd {
    /// It powered off.
    PoweredOff,
    /// It asked for a reset.
    Reset,
    /// It crashed its processor (a triple fault), which is a reset as well: what the machine says of it.
    Crashed(String),
    /// It works no more, and the configuration says what is done about that.
    Fallen {
        /// What shows it.
        why: String,
        /// Whether it is booted again, or the VM ends.
        restart: bool,
    },
}

/// An input of the core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time has passed. Comes at least every few milliseconds.
    Tick,

    /// The answer to [`super::Command::ReadCell`] or [`super::Command::ProbeCell`]: the cell, or why it could not be
    /// read.
    CellRead(Result<Option<Cell>, ArbiterError>),
    /// The answer to [`super::Command::CompareAndSet`].
    CellSet(Outcome),
    /// The answer to [`super::Command::Record`], at once or after an `Unrecorded`: this is durable.
    Recorded(NodeRecord),
    /// The answer to [`super::Command::Record`]: this is not durable yet. Nothing waits for it, but nobody says
    /// "protected" meanwhile.
    Unrecorded {
        /// What was to be recorded.
        record: NodeRecord,
        /// Why it is not.
        why: String,
    },

    /// A peer that may be our backup asks to be: its identity was checked, this is what it holds.
    PeerHello {
        /// Connection that it came on.
        conn: ConnId,
        /// Drawn by the peer's process when it started.
        nonce: u64,
        /// The highest generation that the peer knows.
        generation: u64,
        /// What it holds.
        held: Option<Held>,
    },
    /// The primary has accepted us as its backup.
    Welcomed {
        /// Connection.
        conn: ConnId,
        /// The primary's generation.
        generation: u64,
        /// The pairing that begins or goes on.
        pairing: u64,
        /// Whether it goes on where we stopped, or a full copy comes.
        how: PairingStart,
    },
    /// A dial came to nothing; dialling goes on.
    DialFailed {
        /// Why.
        why: String,
        /// No waiting mends it: the two nodes do not fit each other.
        permanent: bool,
        /// The peer's daemon has spoken.
        answered: bool,
    },
    /// A connection has ended.
    PeerGone {
        /// Which.
        conn: ConnId,
        /// How.
        why: Gone,
    },
    /// Something that proves the peer alive came in (any verified frame; progress inside a long one counts).
    Heard {
        /// Connection.
        conn: ConnId,
    },

    /// The peer says what its own arbiter says.
    Standing {
        /// Connection.
        conn: ConnId,
        /// What it says.
        said: Standing,
    },

    /// Primary: the first checkpoint of the pairing is captured; from this capture on output is held.
    FirstCaptured {
        /// The pairing.
        pairing: u64,
    },
    /// Primary: the backup has sealed `epoch`.
    Ack {
        /// Connection.
        conn: ConnId,
        /// The epoch sealed.
        epoch: u64,
        /// Our own clock when we sent what it answers.
        stamp: Micros,
    },
    /// Primary: the backup acked what it cannot have sealed.
    AckRefused {
        /// Connection.
        conn: ConnId,
        /// What is wrong with it.
        why: String,
    },
    /// Primary: the backup answered a heartbeat.
    Echo {
        /// Connection.
        conn: ConnId,
        /// Our own clock when the heartbeat was written.
        stamp: Micros,
        /// The lease granted.
        lease: Micros,
    },
    /// Primary: a release stopped early because its permit had lapsed.
    ReleaseCut,
    /// Primary: nothing can be shipped under this pairing any more, over whatever connection.
    PairingBroken {
        /// The pairing.
        pairing: u64,
        /// Why.
        why: String,
    },

    /// Backup: a heartbeat of the primary.
    Heartbeat {
        /// Connection.
        conn: ConnId,
        /// The primary's clock, to be sent back.
        stamp: Micros,
        /// The lease that it asks for.
        lease: Micros,
    },
    /// Backup: a checkpoint is complete and verified.
    Sealed {
        /// Connection.
        conn: ConnId,
        /// Its pairing.
        pairing: u64,
        /// Its epoch.
        epoch: u64,
        /// The primary's clock, to be sent back.
        stamp: Micros,
    },
    /// Backup: the cell now names us as standby.
    Paired {
        /// Connection.
        conn: ConnId,
        /// The pair's generation.
        generation: u64,
    },
    /// Backup: the answer to [`super::Command::Verify`], and to [`super::Command::Load`].
    Verified {
        /// The epoch that was asked about.
        epoch: u64,
    },
    /// Backup: the answer to [`super::Command::Rehearse`]: the VM could go on from what is held of this pairing.
    Rehearsed {
        /// The pairing.
        pairing: u64,
    },
    /// Backup: the answer to [`super::Command::Rehearse`]: it could not.
    RehearsalFailed {
        /// The pairing.
        pairing: u64,
        /// Why.
        why: String,
    },
    /// Backup: what is held is not the VM's state any more. Nothing may be gone on from it.
    StateLost(String),
    /// Backup: the machine did not take the state that it was to load. What is held is as it was.
    LoadFailed(String),
    /// Heir: the VM runs.
    TookOver,
    /// Heir: the machine did not go on from the sealed state, which is still held.
    TakeOverFailed(String),
    /// Heir: so much of the image is on disk.
    ImageProgress {
        /// The image's.
        generation: u64,
        /// Of its memory.
        percent: u8,
    },
    /// Heir: the answer to [`super::Command::SaveImage`]: the image is durable.
    ImageSaved {
        /// The image's.
        generation: u64,
    },
    /// Heir: the answer to [`super::Command::SaveImage`]: there is no image on disk.
    ImageUnsaved {
        /// The image's.
        generation: u64,
        /// Why.
        why: String,
    },
    /// Heir: the answer to [`super::Command::ReadImage`]: what the image has is held now.
    ImageRead,
    /// Heir: the answer to [`super::Command::ReadImage`]: it is not held.
    ImageUnread(ImageTrouble),

    /// The answer to [`super::Command::FindImage`].
    ImageFound(OnDisk),

    /// Backup: the primary has stopped its VM at `epoch` for good and offers it to us.
    SwitchoverOffered {
        /// Connection.
        conn: ConnId,
        /// The final epoch.
        epoch: u64,
    },
    /// Primary: the backup runs the VM now.
    PeerTookOver {
        /// Connection.
        conn: ConnId,
        /// Its generation.
        generation: u64,
    },
    /// Primary: the backup will not take over, and has changed nothing.
    SwitchoverDeclined {
        /// Connection.
        conn: ConnId,
        /// Why.
        why: String,
    },
    /// Primary: the VM is paused for the switchover; this was the last epoch captured.
    FinalCaptured {
        /// The final epoch.
        epoch: u64,
    },

    /// Whether the VM is reached on a host, or would be, is another matter now.
    NetworkSeen {
        /// Which host's network.
        whose: Whose,
        /// How it is.
        reach: Reach,
    },
    /// A disk of the VM stands still on this host, or goes on again. Told of disks for which the operator wishes that
    /// the VM moves then.
    DiskSeen {
        /// One stands still now.
        stands: bool,
    },
    /// The images of the VM's disks were compared with those of the backup of this pairing.
    ImagesCompared {
        /// How they differ, if they do.
        differ: Option<String>,
    },
    /// The operator's configuration names another node as the peer. It counts once no backup of the old name does.
    PeerReplaced {
        /// Its name.
        node: String,
    },
    /// The operator's configuration has other times. They count from now on.
    Retimed(Times),
    /// The operator asks for a planned switchover.
    SwitchoverRequested {
        /// Names the request in its answer.
        request: RequestId,
        /// What has not begun to change anything by then is called off.
        until: Micros,
    },
    /// The operator asks this node to stop.
    StopRequested {
        /// Names the request in its answer.
        request: RequestId,
        /// What becomes of the VM.
        vm: Leave,
    },
    /// The operator asks this node to boot the VM.
    StartRequested {
        /// Names the request in its answer.
        request: RequestId,
        /// What he gives up for it.
        how: Start,
        /// How long he waits.
        until: Micros,
    },
    /// The guest has come to an end.
    GuestEnded(GuestEnd),
    /// The answer to [`super::Command::Boot`], if the guest could not be booted: it never ran.
    BootFailed(String),
    /// The host failed the machine, which is gone. The guest has not come to an end.
    MachineFailed(String),
}

impl Event {
    /// The answer to [`super::Command::Record`].
    pub(crate) fn of_record(record: NodeRecord, saved: Result<(), impl std::fmt::Display>) -> Self {
        match saved {
            Ok(()) => Self::Recorded(record),
            Err(e) => Self::Unrecorded { record, why: e.to_string() },
        }
    }
}
