//! The nouns of the simulated world: knobs drawn by a seed, messages, a virtual machine that is a counter, frames,
//! checkpoints, and the holdings of a node's executor. There is no behaviour here.

use std::collections::VecDeque;

use ft_arbiter::Cell;
use ft_checkpoint::wire::Message;
use ftd::peer::Outgoing;
use ftd::replica::Executor;
use ftd::role::{ConnId, Event, Held, Micros, PairingStart, Reach, RequestId};

use crate::card::Card;
use crate::image::Shelf;
use crate::ledger::Ledger;

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
    pub probe_us: Micros,
    pub proof_us: Micros,
    pub patience_us: Micros,
    pub rehearsal_us: Micros,
    pub pairing_wait_us: Micros,
    pub tick_us: Micros,
    pub epoch_us: Micros,
    /// Checkpoints captured and not acked at which the VM waits.
    pub depth: usize,
    pub net_us: Micros,
    pub arbiter_us: Micros,
    /// A call on a storage that cannot be reached hangs until it can; else it fails.
    pub hard_mount: bool,
    pub restart_on_reset: bool,
    /// When a VM whose memory is lost is booted anew, if it is.
    pub boot_lost_after_us: Option<Micros>,
    /// The receiver seals when the bytes arrive, ahead of the events that still wait for the core.
    pub eager: [bool; 2],
    /// Both nodes would boot the VM on an empty cell.
    pub both_primary: bool,
    /// What is held is verified by executing it, which takes a while; else it was verified as it was sealed.
    pub replay: bool,
    /// When the faults stop.
    pub heal_at: Micros,
}

/// A message between the nodes.
#[derive(Clone, Debug)]
pub enum Msg {
    Hello {
        nonce: u64,
        generation: u64,
        held: Option<Held>,
    },
    Welcome {
        generation: u64,
        pairing: u64,
        how: PairingStart,
    },
    Refuse {
        why: String,
        /// The two nodes do not fit each other.
        permanent: bool,
    },
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
    /// What an executor says.
    Said(Message<'static>),
}

impl Msg {
    /// Its length on the wire, in KiB.
    pub fn kib(&self) -> u64 {
        match self {
            Self::Progress => 256,
            Self::Part { .. } | Self::End { .. } => 32,
            _ => 1,
        }
    }
}

/// What travels on a connection.
#[derive(Clone, Debug)]
pub(crate) enum Item {
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
pub(crate) struct Frame {
    pub run: u32,
    pub counter: u64,
    /// When the VM sent it.
    pub born: Micros,
}

impl Frame {
    pub fn to_bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&self.run.to_le_bytes());
        bytes[4..12].copy_from_slice(&self.counter.to_le_bytes());
        bytes[12..].copy_from_slice(&self.born.to_le_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Self {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        Self { run: u32::from_le_bytes(bytes[..4].try_into().unwrap()), counter: word(4), born: word(12) }
    }
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
    /// The backup's disk images were found to differ.
    pub images_differ: bool,
}

/// What a backup has sealed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Image {
    pub pairing: u64,
    pub epoch: u64,
    pub counter: u64,
    /// Every piece of it came in. Only a mutant seals without that.
    pub complete: bool,
}

/// What a node's hands hold.
#[derive(Debug, Default)]
pub struct Exec {
    pub vm: Option<Vm>,
    /// The real output buffer, and the wire behind it.
    pub card: Card,
    pub repl: Option<Replication>,
    pub image: Option<Image>,
    /// The image, taken out to go on from it.
    pub sealed_off: Option<Image>,
    /// And it came from the disk.
    pub from_disk: bool,
    /// Where it had been kept since the operator released its owner.
    pub released: bool,
    /// The generation whose image is being written to disk.
    pub saving: Option<u64>,
    /// The image on disk is being read.
    pub reading: bool,
    /// The epoch whose state the machine refused to load.
    pub refused: Option<u64>,
    /// The image is not the VM's state any more, whatever it was.
    pub diverged: bool,
    /// And this node knows it.
    pub knows_diverged: bool,
    /// The epoch up to which the image was looked at to its end: it diverges no more.
    pub verified: Option<u64>,
    /// The connection and pairing that checkpoints are taken from.
    pub recv: Option<(ConnId, u64)>,
    /// Connections that the core has not judged yet; the pairing, where it is a welcome.
    pub arriving: Vec<(ConnId, Option<u64>)>,
    /// Connections that were welcomed or followed, and not closed since.
    pub links: Vec<ConnId>,
    /// The last connection that was refused: its peer has heard why.
    pub refused_conn: Option<ConnId>,
    /// What their pulses' writers are to say next.
    pub pulses: Vec<(ConnId, Outgoing)>,
    /// When anything of the peer was last taken in.
    pub heard_at: Micros,
    pub dialling: bool,
    /// A dial loop is scheduled.
    pub dial_loop: bool,
    pub attempt: Option<(ConnId, Micros)>,
    /// When this process last had no machine to follow with, and when it last could ship nothing more.
    pub unprepared_at: Option<Micros>,
    pub broken_at: Option<Micros>,
    /// What the peer said last of its host's network.
    pub peer_reach: Reach,
    /// What it has heard of its disk.
    pub disk_stands: bool,
    /// The operator asked for a move, or for a stop.
    pub was_asked_to_move: bool,
}

/// What waits for the core.
#[derive(Clone, Debug)]
pub(crate) enum Input {
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
#[derive(Debug, Default)]
pub struct Node {
    /// Which process on this node.
    pub inc: u32,
    pub up: bool,
    /// Down, and its host does not even reset connections.
    pub silent: bool,
    /// The real one. It is out of here while it takes a step.
    pub executor: Option<Executor>,
    /// Where the node records what it knows of the cell.
    pub ledger: Ledger,
    /// The highest generation that it was to record.
    pub acted: u64,
    /// The image that an earlier or this process could not resume. The file outlives them.
    pub disk: Option<Shelf>,
    /// The host's disk was lost, and with it the record: the operator lets this node found nothing.
    pub lost_disk: bool,
    /// As the operator declared it last.
    pub failure_timeout_us: Micros,
    /// When the process last took anything in.
    pub took_at: Micros,
    pub offset_us: u64,
    pub drift_ppm: i64,
    pub frozen_until: Option<Micros>,
    pub trip: Option<(u32, Trip)>,
    /// Longest pause between two steps of the executor.
    pub slow_us: Micros,
    /// The executor waits so long before its next step.
    pub held_up_us: Micros,
    pub stepping: bool,
    pub inbox: VecDeque<Input>,
    /// Arrived while the process was frozen.
    pub socket: VecDeque<Input>,
    pub exec: Exec,
    /// Drawn by this process when it started.
    pub nonce: u64,
    /// The VM may be over: its guest ended or never ran, or the operator powers it off here.
    pub may_end: bool,
    /// The operator powers the VM off here.
    pub powered_off: bool,
    /// Its host goes down: a VM that nobody else has ends here.
    pub host_down: bool,
    /// Its machine failed while a request to be alone was under way, which nobody can call back.
    pub failed_in_race: bool,
    /// What the operator asked of this process and was not answered, and when.
    pub asked: Vec<(RequestId, Micros, Desire)>,
    /// The operator gives a state up that this process, or one that is gone for good, has or had.
    pub fresh: bool,
    /// Since when this process has had no machine, if it has none.
    pub bereft_since: Micros,
    /// So many restores to come fail.
    pub fail_takeovers: u32,
    /// So many runs from an image on disk fail soon.
    pub fail_runs: u32,
    /// The next state that is loaded before the cell is asked is refused.
    pub fail_load: bool,
    pub fail_boot: bool,
    /// No machine on this host takes a state over.
    pub unfit: bool,
    /// The pairing whose state the last rehearsal found that no machine takes, and since when they fail.
    pub unfit_for: Option<(u64, Micros)>,
    /// The peer has refused this node for good, and it holds nothing: it has to end.
    pub must_end: bool,
    /// How the VM's network on this host is, in schedules in which that matters.
    pub is_cut_off: Option<bool>,
    /// When it last was cut off.
    pub was_cut_off_at: Option<Micros>,
    /// A disk of the VM stands still on this host.
    pub disk_stands: bool,
    /// Frozen between two frames: nothing wakes it before its time.
    pub frozen_in_release: bool,
}

impl Node {
    /// The node's monotonic clock at a time of the world.
    pub fn clock(&self, now: Micros) -> Micros {
        let drift = (now as i128 * self.drift_ppm as i128 / 1_000_000) as i64;
        self.offset_us.saturating_add(now).saturating_add_signed(drift)
    }
}

/// What the operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Desire {
    Move,
    Stop,
    Start,
}

/// What is asked of the arbiter.
#[derive(Clone, Debug)]
pub enum Ask {
    Read,
    Probe,
    Set { expected: Option<u64>, new: Cell },
}
