//! The nouns of the simulated world: knobs drawn by a seed, messages, a virtual machine that is a counter, frames,
//! checkpoints, and what a node's executor holds. No behaviour here.

use std::collections::VecDeque;

use ft_arbiter::Cell;
use ftd::role::{Command, ConnId, Core, Event, Held, Micros};

/// The nodes' names, by index.
pub const NAMES: [&str; 2] = ["a", "b"];

/// The index of a node by its name.
pub fn index_of(name: &str) -> Option<usize> {
    NAMES.iter().position(|known| *known == name)
}

/// What is drawn once for a schedule.
#[derive(Clone, Debug)]
pub struct Knobs {
    pub lease_us: Micros,
    pub failure_timeout_us: Micros,
    pub takeover_delay_us: Micros,
    pub heartbeat_us: Micros,
    pub arbiter_retry_us: Micros,
    pub patience_us: Micros,
    pub tick_us: Micros,
    pub epoch_us: Micros,
    /// Checkpoints captured and not acked at which the VM waits.
    pub depth: usize,
    pub net_us: Micros,
    pub arbiter_us: Micros,
    /// A call on a storage that cannot be reached hangs until it can; else it fails.
    pub hard_mount: bool,
    pub restart_on_reset: bool,
    /// The receiver seals when the bytes arrive, ahead of the events that still wait for the core.
    pub eager: [bool; 2],
    /// Both nodes would boot the VM on an empty cell.
    pub both_primary: bool,
    /// When the faults stop.
    pub heal_at: Micros,
}

/// A message between the nodes.
#[derive(Clone, Debug)]
pub enum Msg {
    Hello {
        generation: u64,
        held: Option<Held>,
    },
    Welcome {
        generation: u64,
        pairing: u64,
        resumed: bool,
    },
    Refuse,
    /// A piece of the full copy.
    Progress,
    /// The first piece of a checkpoint.
    Part {
        pairing: u64,
        epoch: u64,
        counter: u64,
    },
    /// A checkpoint's last piece: it is complete.
    End {
        pairing: u64,
        epoch: u64,
        counter: u64,
        stamp: Micros,
    },
    Ack {
        epoch: u64,
        stamp: Micros,
    },
    Heartbeat {
        stamp: Micros,
    },
    Echo {
        stamp: Micros,
    },
    Paired {
        generation: u64,
    },
    HandOver {
        epoch: u64,
    },
    TookOver {
        generation: u64,
    },
    Decline {
        why: String,
    },
    Bye {
        why: String,
    },
}

/// What travels on a connection.
#[derive(Clone, Debug)]
pub enum Item {
    Msg(Msg),
    /// In-order end of the stream.
    Fin,
}

/// The VM: a counter that advances. A frame carries the counter at its emission.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Which boot or take-over this is, in the whole schedule.
    pub run: u32,
    pub counter: u64,
    /// It powered off, reset or crashed by itself.
    pub ended: bool,
}

/// A frame of the VM.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    pub run: u32,
    pub counter: u64,
    /// The epoch whose checkpoint covers it.
    pub epoch: u64,
    /// When the VM sent it.
    pub born: Micros,
}

/// The output gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Passing,
    Holding,
    Muted,
}

/// A captured checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Checkpoint {
    pub epoch: u64,
    pub counter: u64,
}

/// The primary's replication.
#[derive(Clone, Debug)]
pub struct Replication {
    pub id: u32,
    pub conn: Option<ConnId>,
    pub pairing: u64,
    pub copying: bool,
    pub next_epoch: u64,
    /// Captured and not acked, oldest first.
    pub owed: VecDeque<Checkpoint>,
    /// Paused for a last checkpoint: which request of that kind.
    pub last: Option<u32>,
    /// Nothing can be shipped any more.
    pub broken: bool,
    /// And the core has heard of it.
    pub known_broken: bool,
}

/// What a backup has sealed.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    pub pairing: u64,
    pub epoch: u64,
    pub counter: u64,
    /// Every piece of it came in. Only a mutant seals without that.
    pub complete: bool,
}

/// What a node's executor holds.
#[derive(Clone, Debug)]
pub struct Exec {
    pub vm: Option<Vm>,
    pub gate: Gate,
    pub frames: VecDeque<Frame>,
    pub repl: Option<Replication>,
    pub image: Option<Image>,
    /// The image is not the VM's state any more, whatever it was.
    pub diverged: bool,
    /// The epoch up to which the image was looked at to its end: it diverges no more.
    pub verified: Option<u64>,
    /// The connection and pairing that checkpoints are taken from.
    pub recv: Option<(ConnId, u64)>,
    pub dialling: bool,
    /// A dial loop is scheduled.
    pub dial_loop: bool,
    pub attempt: Option<(ConnId, Micros)>,
}

impl Default for Exec {
    fn default() -> Self {
        Self {
            vm: None,
            gate: Gate::Muted,
            frames: VecDeque::new(),
            repl: None,
            image: None,
            diverged: false,
            verified: None,
            recv: None,
            dialling: false,
            dial_loop: false,
            attempt: None,
        }
    }
}

/// What waits for the core.
#[derive(Clone, Debug)]
pub enum Input {
    Event(Event),
    Net(ConnId, Item),
    /// The kernel says that the connection is gone.
    Reset(ConnId),
}

/// What happens to a process between two of its steps.
#[derive(Clone, Copy, Debug)]
pub enum Trip {
    Freeze { us: Micros },
    Kill { silent: bool, down_us: Micros, fresh: bool },
}

/// A node.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Which process on this node.
    pub inc: u32,
    pub up: bool,
    /// Down, and its host does not even reset connections.
    pub silent: bool,
    pub core: Option<Core>,
    pub offset_us: u64,
    pub drift_ppm: i64,
    pub frozen_until: Option<Micros>,
    pub trip: Option<(u32, Trip)>,
    /// Longest pause between two steps of the executor.
    pub slow_us: Micros,
    pub stepping: bool,
    pub inbox: VecDeque<Input>,
    pub todo: VecDeque<Command>,
    /// Arrived while the process was frozen.
    pub socket: VecDeque<Input>,
    pub exec: Exec,
    /// The operator asked this process to stop.
    pub stopping: bool,
    /// This process was started with leave to give a lost state up.
    pub fresh: bool,
    pub fail_takeover: bool,
}

impl Node {
    /// The node's monotonic clock at a time of the world.
    pub fn clock(&self, now: Micros) -> Micros {
        let drift = (now as i128 * self.drift_ppm as i128 / 1_000_000) as i64;
        self.offset_us.saturating_add(now).saturating_add_signed(drift)
    }
}

/// What is asked of the arbiter.
#[derive(Clone, Debug)]
pub enum Ask {
    Read,
    Set { expected: Option<u64>, new: Cell },
}

/// A behaviour broken on purpose, to show that the checks see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Releases whatever its permit says.
    IgnorePermit,
    /// The executor receives and answers on every connection that was welcomed, also when the core does not follow it
    /// because it is asking for the cell.
    FollowAnyway,
    /// A node keeps no promise after its answers.
    NoPromise,
    /// Frames leave when their checkpoint is captured, not when it is acked.
    ReleaseAtCapture,
    /// A lost answer of the arbiter counts as "nothing happened".
    UnknownIsNotAttempted,
    /// A lost answer of the arbiter counts as won.
    UnknownIsWon,
    /// The backup seals a checkpoint at its first piece.
    SealAtFirstPiece,
    /// What was sent on a lost connection is forgotten.
    ForgetOwed,
    /// A primary that loses its connection lets everything out.
    PassOnLoss,
    /// The output passes on after the first checkpoint.
    HoldTooLate,
    /// Clocks drift by more than the promise's margin.
    WildClocks,
    /// A node's clock stands still while its process is frozen (as CLOCK_MONOTONIC does while a host is suspended).
    ClockStopsInFreeze,
    /// The storage gives a name away that is taken.
    LinkOverwrites,
    /// Flushing the directory does nothing.
    SyncSkipped,
    /// A file's content is not flushed.
    WriteUnflushed,
    /// The storage says that it has refused a call which it has, or may have, carried out.
    DoubtIsRefusal,
    /// A cell that went back counts as one that somebody else has taken.
    WentBackIsLost,
    /// Whatever is held is said to be good.
    VerifiesNothing,
}

impl Mutant {
    /// The check that it must not get past.
    pub fn offends(self) -> &'static str {
        match self {
            Self::ReleaseAtCapture | Self::PassOnLoss | Self::HoldTooLate => "I1",
            Self::UnknownIsNotAttempted => "I1",
            Self::SealAtFirstPiece | Self::VerifiesNothing => "I3",
            Self::ForgetOwed => "I4",
            Self::LinkOverwrites | Self::SyncSkipped | Self::WriteUnflushed => "arbiter",
            Self::DoubtIsRefusal => "I1",
            Self::WentBackIsLost => "the last copy",
            Self::IgnorePermit | Self::FollowAnyway | Self::NoPromise => "I2",
            Self::UnknownIsWon | Self::WildClocks | Self::ClockStopsInFreeze => "I2",
        }
    }

    pub const ALL: [Self; 18] = [
        Self::IgnorePermit,
        Self::FollowAnyway,
        Self::NoPromise,
        Self::ReleaseAtCapture,
        Self::UnknownIsNotAttempted,
        Self::UnknownIsWon,
        Self::SealAtFirstPiece,
        Self::ForgetOwed,
        Self::PassOnLoss,
        Self::HoldTooLate,
        Self::WildClocks,
        Self::ClockStopsInFreeze,
        Self::LinkOverwrites,
        Self::SyncSkipped,
        Self::WriteUnflushed,
        Self::DoubtIsRefusal,
        Self::WentBackIsLost,
        Self::VerifiesNothing,
    ];
}
