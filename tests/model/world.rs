//! The state: two nodes, each with the daemon's own core and what its hands hold; the connections between them; the
//! arbiter's cell and the calls on it; and the truth that no node knows.
//!
//! Both nodes' clocks are one clock that advances in steps. Numbers of each kind begin at a base of their own, so that
//! a number says of what kind it is (`canon`).

use std::collections::VecDeque;
use std::fmt;

use ft_arbiter::{Cell, CellId};
use ftd::role::{
    Command, ConnId, Core, Event, Held, Micros, NodeRecord, OnDisk, OnFenced, OnUplinkLoss, Policy, StartAs,
};

use crate::arbiter::{Call, LateSet};
use crate::check::{Claim, Known};
use crate::mutant::Mutant;
use crate::net::Wire;

/// One step of time.
pub const STEP_US: Micros = 100_000;
pub const NAMES: [&str; 2] = ["a", "b"];

pub const TIME_BASE: u64 = 1 << 40;
pub const CONN_BASE: u64 = 1 << 44;
pub const NONCE_BASE: u64 = 1 << 46;
pub const GENERATION_BASE: u64 = 1 << 50;
pub const EPOCH_BASE: u64 = 1 << 54;
pub const COUNTER_BASE: u64 = 1 << 58;

/// A VM that was sent so much and let nothing of it out waits: the buffer's bound.
const HELD_MAX: u64 = 3;
/// Checkpoints in flight.
const DEPTH: usize = 2;

/// What may still go wrong, and what the operator may still ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    pub faults: u8,
    pub requests: u8,
}

/// Where a VM's output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    Mute,
    Passing,
    /// Held. What is released may leave before `until`.
    Holding {
        until: Micros,
    },
}

/// The VM: a counter that advances. A frame shows the counter at its emission.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    /// No other run of the VM has begun since. Of one that has been replaced nothing may ever leave.
    pub is_newest: bool,
    pub counter: u64,
    /// Held: the newest counter of each epoch.
    pub held: VecDeque<(u64, u64)>,
}

/// What a primary's hands ship.
#[derive(Clone, Debug)]
pub(crate) struct Shipping {
    pub pairing: u64,
    pub conn: Option<ConnId>,
    pub copying: bool,
    pub next_epoch: u64,
    /// Captured and not acked: epoch and counter.
    pub owed: VecDeque<(u64, u64)>,
    /// The VM stands still: its last checkpoint is captured.
    pub frozen: bool,
}

/// What a backup has sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    pub held: Held,
    pub counter: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// None: the process is down.
    pub core: Option<Core>,
    pub nonce: u64,
    /// Durable.
    pub record: Option<NodeRecord>,
    /// Commands and events of its own that the process has not come to yet: only while it is frozen.
    pub todo: VecDeque<Command>,
    pub own: VecDeque<Event>,
    pub turn_away: Option<ConnId>,
    /// The process stands still.
    pub frozen: bool,
    /// It will, as soon as it is about to let something out.
    pub trips: bool,
    pub guest: Option<Guest>,
    pub port: Port,
    pub ships: Option<Shipping>,
    /// From whom, and which pairing, it receives.
    pub receives: Option<(ConnId, u64)>,
    pub image: Option<Seal>,
    /// The image, taken out to go on from it.
    pub sealed_off: Option<Seal>,
    /// Connections that the core has not judged yet.
    pub arriving: Vec<ConnId>,
    /// Connections that were welcomed or followed.
    pub links: Vec<ConnId>,
    pub dialling: bool,
    pub attempt: Option<(ConnId, Micros)>,
    pub call: Option<Call>,
    /// When the arbiter was asked last that has answered, and what it said.
    pub read: Option<(Micros, Option<Cell>)>,
    /// The highest generation that it has acted on: what its record should say.
    pub acted: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct World {
    pub now: Micros,
    pub nodes: [Host; 2],
    pub wires: Vec<Wire>,
    pub cell: Option<Cell>,
    /// The cell as it was before, and as it is while an older copy is in its place.
    pub before: Option<Cell>,
    pub newest: Option<Cell>,
    pub late: Vec<LateSet>,
    pub budget: Budget,
    pub known: Known,
    pub violation: Option<(Claim, String)>,
    pub mutant: Option<Mutant>,
    /// Names that were given.
    pub serial: Serial,
}

/// The last number given of each kind. They are no part of the state.
#[derive(Clone, Copy)]
pub(crate) struct Serial {
    pub conn: u64,
    pub nonce: u64,
    pub epoch: u64,
    pub counter: u64,
    pub request: u64,
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Serial")
    }
}

impl Host {
    fn down() -> Self {
        Self {
            core: None,
            nonce: 0,
            record: None,
            todo: VecDeque::new(),
            own: VecDeque::new(),
            turn_away: None,
            frozen: false,
            trips: false,
            guest: None,
            port: Port::Mute,
            ships: None,
            receives: None,
            image: None,
            sealed_off: None,
            arriving: Vec::new(),
            links: Vec::new(),
            dialling: false,
            attempt: None,
            call: None,
            read: None,
            acted: 0,
        }
    }

    pub fn is_up(&self) -> bool {
        self.core.is_some()
    }

    pub fn is_awake(&self) -> bool {
        self.is_up() && !self.frozen
    }

    /// What it has sealed, wherever that is kept.
    pub fn seal(&self) -> Option<Seal> {
        self.image.or(self.sealed_off)
    }
}

/// A node's policy: every time is a few steps, and the order between them is as it is by default.
fn policy(n: usize, nonce: u64, record: Option<NodeRecord>, mutant: Option<Mutant>) -> Policy {
    Policy {
        node: NAMES[n].into(),
        peer: NAMES[1 - n].into(),
        start_as: if n == 0 { StartAs::Primary } else { StartAs::Backup },
        record,
        on_disk: OnDisk::Nothing,
        place: "the cell".into(),
        boot_lost_after_us: None,
        on_fenced: OnFenced::Rejoin,
        restart_on_reset: true,
        on_uplink_loss: OnUplinkLoss::Stay,
        lease_us: if mutant == Some(Mutant::NoPromise) && n == 1 { 0 } else { 9 * STEP_US / 4 },
        failure_timeout_us: 3 * STEP_US,
        takeover_delay_us: STEP_US,
        heartbeat_us: STEP_US,
        arbiter_retry_us: STEP_US,
        probe_us: 3 * STEP_US,
        proof_us: 6 * STEP_US,
        patience_us: 5 * STEP_US,
        rehearsal_us: TIME_BASE >> 2,
        pairing_wait_us_min: STEP_US,
        pairing_wait_us_max: 8 * STEP_US,
        nonce,
    }
}

impl World {
    /// Both nodes have just started, over a cell that waits for its first boot.
    pub fn new(budget: Budget, mutant: Option<Mutant>) -> Self {
        let id = CellId(NONCE_BASE);
        let cell = Cell { id, generation: GENERATION_BASE, owner: None, standby: None };
        let mut world = Self {
            now: TIME_BASE,
            nodes: [Host::down(), Host::down()],
            wires: Vec::new(),
            cell: Some(cell),
            before: None,
            newest: None,
            late: Vec::new(),
            budget,
            known: Known::default(),
            violation: None,
            mutant,
            serial: Serial {
                conn: CONN_BASE,
                nonce: NONCE_BASE,
                epoch: EPOCH_BASE,
                counter: COUNTER_BASE,
                request: 0,
            },
        };
        world.start(0);
        world.start(1);
        world
    }

    pub fn start(&mut self, n: usize) {
        self.serial.nonce += 1 << 16;
        let nonce = self.serial.nonce;
        let record = match self.mutant {
            Some(Mutant::ForgetsRecord) => None,
            _ => self.nodes[n].record,
        };
        self.forget_silent_ends(n);
        let (core, commands) = Core::new(policy(n, nonce, record, self.mutant), self.now);
        let (record, acted) = (self.nodes[n].record, self.nodes[n].acted);
        let todo = commands.into();
        self.nodes[n] = Host { core: Some(core), nonce, record, acted, todo, ..Host::down() };
        self.drive(n);
    }

    /// A process ends. `silent`: its host does not even close connections.
    pub fn die(&mut self, n: usize, silent: bool, cause: &'static str, from_outside: bool) {
        for at in 0..self.wires.len() {
            self.abandon_end(n, at, silent);
        }
        self.sweep();
        if let Some(call) = self.nodes[n].call.take() {
            self.leave(n, call);
        }
        let (record, acted) = (self.nodes[n].record, self.nodes[n].acted);
        self.nodes[n] = Host { record, acted, ..Host::down() };
        self.check_copies(cause, from_outside);
    }

    pub fn owner(&self) -> Option<usize> {
        let owner = self.truth_cell()?.owner.as_deref()?;
        NAMES.iter().position(|name| *name == owner)
    }

    /// The cell as it would be, had nobody put an older copy in its place.
    pub fn truth_cell(&self) -> Option<&Cell> {
        self.newest.as_ref().or(self.cell.as_ref())
    }

    pub fn new_counter(&mut self) -> u64 {
        self.serial.counter += 1;
        self.serial.counter
    }

    /// A step of time passes: each VM goes on, is copied or captured; each process is given the time, and dials.
    pub fn pass(&mut self) {
        self.now += STEP_US;
        for n in 0..2 {
            if !self.nodes[n].is_awake() {
                continue;
            }
            self.run_guest(n);
            self.ship(n);
            self.feed(n, Event::Tick);
            if self.nodes[n].is_awake() {
                self.dial_on(n);
            }
        }
    }

    fn run_guest(&mut self, n: usize) {
        let host = &self.nodes[n];
        let Some(guest) = &host.guest else { return };
        let stands = host.ships.as_ref().is_some_and(|ships| ships.frozen);
        if stands || guest.held.len() as u64 >= HELD_MAX {
            return;
        }
        // A state that goes on from an older one has lived through less than the newest.
        let counter = self.new_counter();
        let Host { guest: Some(guest), port, ships, .. } = &mut self.nodes[n] else { return };
        guest.counter = counter;
        match port {
            Port::Mute => {}
            Port::Passing => self.emit(n, counter),
            Port::Holding { .. } => {
                let epoch = ships.as_ref().map_or(u64::MAX, |ships| ships.next_epoch);
                match guest.held.back_mut() {
                    Some((last, newest)) if *last == epoch => *newest = counter,
                    _ => guest.held.push_back((epoch, counter)),
                }
            }
        }
    }

    /// Captures what is to be captured. From the first capture on, output is held.
    fn ship(&mut self, n: usize) {
        let Some(ships) = &mut self.nodes[n].ships else { return };
        if ships.conn.is_none() && (ships.copying || ships.owed.len() >= DEPTH) || ships.frozen {
            return;
        }
        if ships.copying {
            ships.copying = false;
            let pairing = ships.pairing;
            self.nodes[n].port = Port::Holding { until: 0 };
            self.feed(n, Event::FirstCaptured { pairing });
            self.capture(n);
        } else if ships.owed.len() < DEPTH {
            self.capture(n);
        }
    }

    /// Captures a checkpoint and ships it. Its epoch.
    pub fn capture(&mut self, n: usize) -> Option<u64> {
        let Host { ships: Some(ships), guest: Some(guest), .. } = &mut self.nodes[n] else { return None };
        let epoch = ships.next_epoch;
        ships.next_epoch += 1;
        ships.owed.push_back((epoch, guest.counter));
        self.serial.epoch = self.serial.epoch.max(epoch);
        let counter = guest.counter;
        self.send_checkpoint(n, epoch, counter);
        if self.mutant == Some(Mutant::ReleaseAtCapture) {
            self.let_out(n, epoch);
        }
        Some(epoch)
    }

    /// Frames of epochs up to this leave.
    pub fn let_out(&mut self, n: usize, through: u64) {
        while let Some(guest) = &mut self.nodes[n].guest
            && let Some((epoch, counter)) = guest.held.front().copied()
            && epoch <= through
        {
            guest.held.pop_front();
            self.emit(n, counter);
        }
    }
}
