//! The simulated world: time, the scheduled events, two nodes, the run of one schedule from its seed to its verdict.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ftd::replica::Executor;
use ftd::role::{
    ConnId, Event, Micros, OnFenced, OnUplinkLoss, Policy, RequestId, Role, Start, StartAs, State,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::arbiter::Arbiter;
use crate::check::Truth;
use crate::draw;
use crate::faults::{Fault, When};
use crate::hands::SimHands;
use crate::model::{Exec, Input, Knobs, NAMES, Node};
use crate::mutant::Mutant;
use crate::net::Net;
use crate::schedule::{Act, Entry, Hook};
use crate::stats::{Count, Stats};
use crate::surroundings;

/// Adds a line to the trace of a replay; costs nothing otherwise.
#[macro_export]
macro_rules! trace {
    ($world:expr, $($text:tt)*) => {
        if $world.tracing {
            let line = format!($($text)*);
            println!("{:>9} {line}", $world.now);
        }
    };
}

/// What a schedule is to be like.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Setup {
    pub mutant: Option<Mutant>,
    pub tracing: bool,
    /// No faults but a planned switchover, which must succeed and lose nothing.
    pub calm: bool,
}

/// How a schedule ended, legitimately.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The pair is protected again, and frames pass.
    Protected,
    /// No copy of the state is left: the owner's memory is gone and no standby that the cell names holds a sealed one.
    StateLost(String),
    /// The process that owns the cell was killed before it booted the VM, or when it had ended it and not told the
    /// cell, or the node that would boot it has lost its disk: only the operator can say that nothing is lost.
    NeverBooted,
    /// A double fault: a copy of the cell was put in its place that is older than the cell, but not older than what a
    /// node knows that was away meanwhile, or has lost its disk too.
    Forked,
}

/// One schedule.
pub(crate) struct World {
    pub now: Micros,
    seq: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    pub rng: SmallRng,
    pub knobs: Knobs,
    pub nodes: [Node; 2],
    pub net: Net,
    pub arbiter: Arbiter,
    pub truth: Truth,
    pub stats: Stats,
    pub mutant: Option<Mutant>,
    pub tracing: bool,
    pub violation: Option<String>,
    pub hooks: Vec<(Hook, u32, Fault)>,
    pub healed: bool,
    pub repls: u32,
    /// The last number given to a request of the operator.
    pub requests: RequestId,
    /// Connections of a second self of the backup, made while the first was linked.
    pub strangers: Vec<ConnId>,
    calm: bool,
    switchovers_asked: u64,
    protected_at: Option<Micros>,
    end: Option<End>,
}

/// How long after the last fault the pair must be in step again. Requests given up may still be carried out for most of
/// the first second; an ending VM and a hand-over each have their patience.
const HEALTHY_WITHIN_US: Micros = 8_000_000;

/// A schedule with more than this many events does not end by itself.
const EVENTS_MAX: u64 = 400_000;

fn draw_knobs(rng: &mut SmallRng, calm: bool) -> Knobs {
    // At times shorter than the link needs for a checkpoint.
    let lease_us = if rng.random_bool(0.2) {
        rng.random_range(20_000..60_000)
    } else {
        rng.random_range(60_000..200_000)
    };
    let failure_timeout_us = rng.random_range(60_000..200_000);
    Knobs {
        lease_us,
        failure_timeout_us,
        takeover_delay_us: [0, 5_000, 30_000][rng.random_range(0..3)],
        heartbeat_us: (lease_us.min(failure_timeout_us)) / rng.random_range(4..8),
        arbiter_retry_us: rng.random_range(10_000..60_000),
        probe_us: 100_000,
        proof_us: 400_000,
        patience_us: rng.random_range(300_000..700_000),
        rehearsal_us: rng.random_range(50_000..500_000),
        pairing_wait_us: 30_000,
        tick_us: rng.random_range(5_000..12_000),
        epoch_us: rng.random_range(10_000..25_000),
        depth: rng.random_range(1..4),
        net_us: [200, 1_000, 5_000][rng.random_range(0..3)],
        hard_mount: rng.random_bool(0.5),
        arbiter_us: [500, 3_000, 15_000][rng.random_range(0..3)],
        restart_on_reset: rng.random_bool(0.5),
        boot_lost_after_us: None,
        eager: [rng.random_bool(0.5), rng.random_bool(0.5)],
        both_primary: rng.random_bool(0.2),
        replay: rng.random_bool(0.5),
        heal_at: if calm { 700_000 } else { rng.random_range(600_000..1_800_000) },
    }
}

impl World {
    pub fn new(seed: u64, setup: Setup) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut knobs = draw_knobs(&mut rng, setup.calm);
        knobs.boot_lost_after_us = (seed % 3 == 1).then_some(500_000);
        let mut world = Self {
            now: 0,
            seq: 0,
            queue: BinaryHeap::new(),
            rng,
            knobs,
            nodes: Default::default(),
            net: Net::default(),
            arbiter: Arbiter::default(),
            truth: Truth::default(),
            stats: Stats::default(),
            mutant: setup.mutant,
            tracing: setup.tracing,
            violation: None,
            hooks: Vec::new(),
            healed: false,
            repls: 0,
            requests: 0,
            strangers: Vec::new(),
            calm: setup.calm,
            switchovers_asked: 0,
            protected_at: None,
            end: None,
        };
        trace!(world, "{:?}", world.knobs);
        let wild = world.mutant == Some(Mutant::WildClocks);
        for n in 0..2 {
            let node = &mut world.nodes[n];
            node.offset_us = world.rng.random_range(10_000_000..10_000_000_000);
            let most = if wild { 400_000 } else { 20_000 };
            node.drift_ppm = world.rng.random_range(-most..=most);
            let delay = world.rng.random_range(0..50_000);
            world.later(delay, Act::Start { n, fresh: false });
        }
        let heal_at = world.knobs.heal_at;
        world.at(heal_at, Act::Heal);
        if !setup.calm {
            let mut planned = draw::common(&mut world.rng, heal_at);
            planned.extend(draw::of_the_pair(seed, heal_at));
            planned.extend(draw::of_the_storage(seed, heal_at));
            planned.extend(draw::of_replacements(seed, heal_at));
            planned.extend(draw::of_endings(seed, heal_at));
            planned.extend(draw::of_images(seed, heal_at));
            planned.extend(draw::of_hosts(seed, heal_at));
            planned.extend(draw::of_followers(seed, heal_at));
            planned.extend(draw::of_the_link(seed, heal_at));
            planned.extend(draw::of_returns(seed, heal_at));
            planned.extend(draw::of_the_disks(seed, heal_at));
            for (when, fault) in planned {
                trace!(world, "plan: {when:?} {fault:?}");
                match when {
                    When::At(at) => world.at(at, Act::Inject(fault)),
                    When::On(hook, nth) => world.hooks.push((hook, nth, fault)),
                }
            }
            for draw in [surroundings::draw, surroundings::draw_disks, surroundings::draw_images] {
                draw(seed, heal_at).into_iter().for_each(|(at, act)| world.at(at, act));
            }
        }
        world
    }

    pub fn at(&mut self, at: Micros, act: Act) {
        self.seq += 1;
        self.queue.push(Reverse(Entry { at, seq: self.seq, act }));
    }

    pub fn later(&mut self, us: Micros, act: Act) {
        self.at(self.now + us, act);
    }

    /// Something interesting has happened: what waits for it strikes, at once or a moment later.
    pub fn hook(&mut self, hook: Hook) {
        let mut i = 0;
        while i < self.hooks.len() {
            if self.hooks[i].0 == hook {
                if self.hooks[i].1 == 0 {
                    let (_, _, fault) = self.hooks.remove(i);
                    let delay = if self.rng.random_bool(0.5) { 0 } else { self.rng.random_range(0..20_000) };
                    self.later(delay, Act::Inject(fault));
                    continue;
                }
                self.hooks[i].1 -= 1;
            }
            i += 1;
        }
    }

    /// Runs the schedule to its end.
    pub fn run(&mut self) -> Result<End, String> {
        self.stats.add(Count::Schedules);
        let deadline = self.knobs.heal_at + HEALTHY_WITHIN_US;
        let mut events = 0;
        while let Some(Reverse(Entry { at, act, .. })) = self.queue.pop() {
            self.now = at;
            events += 1;
            self.perform(act);
            for n in 0..2 {
                self.check_passing(n);
            }
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
            if let Some(end) = self.end.take() {
                self.stats.add_many(Count::Events, events);
                self.stats.add(match end {
                    End::Protected => Count::EndProtected,
                    End::StateLost(_) => Count::EndStateLost,
                    End::NeverBooted => Count::EndNeverBooted,
                    End::Forked => Count::EndForked,
                });
                return Ok(end);
            }
            if at > deadline {
                return Err(format!(
                    "liveness: not in step {HEALTHY_WITHIN_US} us after the last fault: {}",
                    self.describe()
                ));
            }
            if events > EVENTS_MAX {
                return Err(format!("liveness: {EVENTS_MAX} events and no end: {}", self.describe()));
            }
        }
        Err("liveness: nothing is scheduled any more".into())
    }

    fn describe(&self) -> String {
        let node = |n: usize| match &self.nodes[n].executor {
            Some(executor) => format!("{} {:?}", NAMES[n], executor.view()),
            None => format!("{} is down", NAMES[n]),
        };
        format!("{}; {}; cell {:?}", node(0), node(1), self.arbiter.cell)
    }

    fn perform(&mut self, act: Act) {
        match act {
            Act::Tick { n, inc } => self.tick(n, inc),
            Act::Step { n, inc } => {
                if self.lives(n, inc) {
                    self.nodes[n].stepping = false;
                    self.drive(n);
                }
            }
            Act::Vm { n, inc, run } => {
                if self.awake_or_again(n, inc, &act) {
                    self.run_vm(n, inc, run);
                }
            }
            Act::Capture { n, inc, repl } => {
                if self.awake_or_again(n, inc, &act) {
                    self.capture_tick(n, inc, repl);
                }
            }
            Act::Copy { n, inc, repl, left } => {
                if self.awake_or_again(n, inc, &act) {
                    self.copy_on(n, inc, repl, left);
                }
            }
            Act::Last { n, inc, request } => {
                if self.awake_or_again(n, inc, &act) {
                    self.capture_last(n, request);
                }
            }
            Act::Dial { n, inc } => {
                if self.awake_or_again(n, inc, &act) {
                    self.dial_on(n, inc);
                }
            }
            Act::Deliver { conn, from, lane, nth, item } => self.deliver(conn, from, lane, nth, item),
            Act::Beat { n, inc, conn } => {
                if self.awake_or_again(n, inc, &act) {
                    self.take_beat(n, conn);
                }
            }
            Act::Reset { conn, side } => self.reset(conn, side),
            Act::CallArrives { id } => self.call_arrives(id),
            Act::CallAnswered { n, inc, id, ref answer } => {
                if self.awake_or_again(n, inc, &act) {
                    self.call_answered(n, id, answer.clone());
                }
            }
            Act::Verified { n, inc, epoch } => {
                if self.awake_or_again(n, inc, &act) {
                    self.verified(n, epoch);
                }
            }
            Act::Loaded { n, inc, epoch } => {
                if self.awake_or_again(n, inc, &act) {
                    self.loaded(n, epoch);
                }
            }
            Act::Uplink { n, is_cut_off } => self.uplink(n, is_cut_off),
            Act::Disk { n, stands } => self.disk(n, stands),
            Act::Images { n, differ } => self.images(n, differ),
            Act::Rehearsed { n, inc, pairing } => {
                if self.awake_or_again(n, inc, &act) {
                    self.rehearsed(n, pairing);
                }
            }
            Act::Recorded { n, inc } => {
                if self.awake_or_again(n, inc, &act) {
                    self.take_record(n);
                }
            }
            Act::Imaged { n, inc, job } => {
                if self.awake_or_again(n, inc, &act) {
                    self.end_job(n, job);
                }
            }
            Act::HostDown { n, inc, asks } if self.nodes[n].inc == inc => self.take_host_down(n, asks),
            Act::HostDown { .. } => {}
            Act::Emitted { n, inc, frame } if self.lives(n, inc) => self.emit(n, frame),
            Act::Emitted { .. } => {}
            Act::Inject(fault) => {
                if !self.healed {
                    self.inject(fault);
                }
            }
            Act::Undo(undo) => {
                if !self.healed {
                    self.undo(undo);
                }
            }
            Act::Thaw { n, inc } => self.thaw(n, inc, false),
            Act::Start { n, fresh } => self.start(n, fresh),
            Act::Heal => self.heal(),
        }
    }

    /// A process is given the time, and looked at after that.
    fn tick(&mut self, n: usize, inc: u32) {
        if !self.lives(n, inc) {
            return;
        }
        if let Some(until) = self.nodes[n].frozen_until {
            return self.at(until + 1, Act::Tick { n, inc });
        }
        self.incoming(n, Input::Event(Event::Tick));
        self.check_proof(n);
        self.check_silence(n);
        let tick = self.knobs.tick_us;
        self.later(tick, Act::Tick { n, inc });
        self.look();
    }

    pub fn lives(&self, n: usize, inc: u32) -> bool {
        self.nodes[n].up && self.nodes[n].inc == inc
    }

    /// Whether this process can do something now; a frozen one does it when it is thawed.
    fn awake_or_again(&mut self, n: usize, inc: u32, act: &Act) -> bool {
        if !self.lives(n, inc) {
            return false;
        }
        if let Some(until) = self.nodes[n].frozen_until {
            self.at(until + 1, act.clone());
            return false;
        }
        true
    }

    pub fn thaw(&mut self, n: usize, inc: u32, early: bool) {
        if !self.lives(n, inc) {
            return;
        }
        match self.nodes[n].frozen_until {
            Some(until) if early || until <= self.now => {}
            _ => return,
        }
        trace!(self, "{} thaws", NAMES[n]);
        self.nodes[n].frozen_until = None;
        self.nodes[n].frozen_in_release = false;
        let waiting = std::mem::take(&mut self.nodes[n].socket);
        for input in waiting {
            self.incoming(n, input);
        }
        self.drive(n);
    }

    /// A process starts on a node where none runs.
    pub fn start(&mut self, n: usize, fresh: bool) {
        if self.nodes[n].up {
            return;
        }
        let peer = &self.nodes[1 - n];
        if peer.up && peer.fresh && !peer.asked.is_empty() {
            // The operator has said that this host is gone for good: it stays so until that is done.
            return self.later(100_000, Act::Start { n, fresh });
        }
        let both_primary = self.knobs.both_primary;
        let forgets = self.mutant == Some(Mutant::ForgetsRecord);
        let record = self.nodes[n].ledger.record.filter(|_| !forgets);
        let founds = (n == 0 || both_primary) && !self.nodes[n].lost_disk;
        let promise_less = self.mutant == Some(Mutant::NoPromise) && n == 1;
        let tries_at_once = self.mutant == Some(Mutant::TriesAtOnce);
        let nonce = self.rng.random();
        let on_disk = self.image_found(n);
        let policy = Policy {
            node: NAMES[n].into(),
            peer: NAMES[1 - n].into(),
            start_as: if founds { StartAs::Primary } else { StartAs::Backup },
            record,
            on_disk,
            place: "file /shared/vm.cell".into(),
            boot_lost_after_us: match self.mutant {
                Some(Mutant::WaitsForEver) => None,
                Some(Mutant::BootsLostAtOnce) => Some(0),
                _ => self.knobs.boot_lost_after_us,
            },
            on_fenced: match self.mutant {
                Some(Mutant::FencedStaysDown) => OnFenced::Exit,
                _ => OnFenced::Rejoin,
            },
            restart_on_reset: self.knobs.restart_on_reset,
            on_uplink_loss: OnUplinkLoss::Switchover,
            lease_us: if promise_less { 0 } else { self.knobs.lease_us },
            failure_timeout_us: self.knobs.failure_timeout_us,
            takeover_delay_us: self.knobs.takeover_delay_us,
            heartbeat_us: self.knobs.heartbeat_us,
            arbiter_retry_us: self.knobs.arbiter_retry_us,
            probe_us: self.knobs.probe_us,
            proof_us: if self.mutant == Some(Mutant::ProofNeverAges) {
                Micros::MAX
            } else {
                self.knobs.proof_us
            },
            patience_us: self.knobs.patience_us,
            rehearsal_us: self.knobs.rehearsal_us,
            pairing_wait_us_min: self.knobs.pairing_wait_us,
            pairing_wait_us_max: if tries_at_once { 0 } else { 16 * self.knobs.pairing_wait_us },
            nonce,
        };
        let node = &mut self.nodes[n];
        node.inc += 1;
        node.nonce = nonce;
        node.up = true;
        node.silent = false;
        node.fresh = false;
        node.bereft_since = self.now;
        node.took_at = self.now;
        node.failure_timeout_us = self.knobs.failure_timeout_us;
        node.may_end = false;
        node.powered_off = false;
        node.host_down = false;
        node.failed_in_race = false;
        node.asked.clear();
        node.stepping = false;
        node.must_end = false;
        node.frozen_until = None;
        node.frozen_in_release = false;
        node.exec = Exec::default();
        let output = node.exec.card.output.clone();
        let executor = Executor::new(policy, &SimHands { world: self, n, output });
        let node = &mut self.nodes[n];
        node.executor = Some(executor);
        let inc = node.inc;
        trace!(self, "{} starts process {inc} (fresh: {fresh})", NAMES[n]);
        let tick = self.rng.random_range(1..self.knobs.tick_us);
        self.later(tick, Act::Tick { n, inc });
        self.look_at_network(n);
        self.look_at_disk(n);
        self.drive(n);
        if fresh {
            self.ask_start(n, Start::Fresh);
        }
    }

    /// A process ends.
    pub fn die(&mut self, n: usize, silent: bool, cause: &str, from_outside: bool) {
        trace!(self, "{} dies: {cause} (silently: {silent})", NAMES[n]);
        self.close_all(n, silent);
        let node = &mut self.nodes[n];
        node.up = false;
        node.silent = silent;
        node.executor = None;
        node.inbox.clear();
        node.socket.clear();
        node.exec = Exec::default();
        node.trip = None;
        node.frozen_until = None;
        self.lose_record(n);
        if from_outside {
            let killed = (n, self.nodes[n].inc);
            self.truth.killed.push(killed);
        }
        self.check_copies(cause, from_outside);
    }

    /// The schedule ends here, legitimately.
    pub fn finish(&mut self, end: End) {
        self.end = Some(end);
    }

    /// Looks whether the schedule has come to an end.
    fn look(&mut self) {
        for n in 0..2 {
            self.check_misfit(n);
        }
        if self.calm && self.switchovers_asked == 0 && self.in_step().is_some() && self.now > 300_000 {
            self.switchovers_asked = 1;
            let owner = self.in_step().unwrap_or(0);
            self.stats.add(Count::SwitchoversAsked);
            self.ask_switchover(owner, Self::PATIENT_US);
        }
        if !self.healed {
            return;
        }
        for n in 0..2 {
            self.check_answered(n);
        }
        if self.calm && (self.stats.get(Count::SwitchoversFailed) > 0) {
            self.fail("a planned switchover without any fault failed".into());
        }
        if self.truth.alive && self.truth.lost.is_none() {
            match (self.in_step(), self.protected_at) {
                (None, _) => self.protected_at = None,
                (Some(_), None) => self.protected_at = Some(self.now),
                // A frame born under protection has left, and nobody waits for an answer: nothing is stuck.
                (Some(_), Some(since)) if self.truth.newest_birth > since && self.all_answered() => {
                    if self.calm && self.stats.get(Count::SwitchoversDone) == 0 {
                        self.fail("a planned switchover without any fault did not happen".into());
                    }
                    self.check_end();
                    self.end = Some(End::Protected);
                }
                _ => {}
            }
        } else if let Some(cause) =
            self.truth.lost.as_ref().filter(|_| self.knobs.boot_lost_after_us.is_none())
        {
            self.end = Some(End::StateLost(cause.clone()));
        } else if self.now > self.knobs.heal_at + 1_500_000 && self.nodes.iter().any(|node| node.lost_disk) {
            // The VM is over, and a host that lost its disk founds nothing unasked.
            self.end = Some(End::NeverBooted);
        } else if self.now > self.knobs.heal_at + 1_500_000
            && let Some(cell) = &self.arbiter.cell
            && cell.owner.is_some()
        {
            let owner = &self.arbiter.log[&cell.generation];
            if self.truth.killed.contains(&(owner.node, owner.inc)) {
                self.end = Some(End::NeverBooted);
            }
        }
    }

    /// The owner, when both nodes say that the pair is protected.
    fn in_step(&self) -> Option<usize> {
        let views = [0, 1].map(|n| self.nodes[n].executor.as_ref().map(|executor| executor.view()));
        let role = |n: usize, role: Role| {
            views[n].as_ref().is_some_and(|view| view.role == role && view.state == State::Protected)
        };
        (0..2).find(|n| role(*n, Role::Primary) && role(1 - *n, Role::Backup))
    }
}
