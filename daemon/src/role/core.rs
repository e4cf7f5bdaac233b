//! The core's frame: start-up, the dispatch of events to the role, and the one arbiter request that may be under way.

use super::backup::Backup;
use super::command::{Command, Exit};
use super::event::{ConnId, Event, Micros};
use super::primary::Primary;
use ft_arbiter::{Cell, Outcome};

/// What a node does with an empty cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAs {
    /// Boots the VM.
    Primary,
    /// Waits for a primary.
    Backup,
}

/// The configuration that decisions depend on.
#[derive(Clone, Debug)]
pub struct Policy {
    /// This node.
    pub node: String,
    /// The other node.
    pub peer: String,
    /// What to do with an empty cell.
    pub start_as: StartAs,
    /// Boot anew although this node's memory of the VM, or the peer's, is lost by it.
    pub fresh: bool,
    /// Whether a guest that resets is booted again, or ends.
    pub restart_on_reset: bool,
    /// How long an answer of the backup permits the primary to release.
    pub lease_us: Micros,
    /// Silence after which the peer counts as lost.
    pub failure_timeout_us: Micros,
    /// How long a backup lets a primary that merely lost the link go first.
    pub takeover_delay_us: Micros,
    /// Interval of heartbeats.
    pub heartbeat_us: Micros,
    /// Interval between attempts at an arbiter that does not answer.
    pub arbiter_retry_us: Micros,
    /// How long an ending VM or a hand-over waits for the arbiter or the peer.
    pub patience_us: Micros,
    /// Random, drawn anew by every process: names of pairings start here.
    pub nonce: u64,
}

impl Policy {
    /// How long a backup stays quiet after an answer: the lease and an eighth for the drift between two clocks.
    pub(super) fn promise_us(&self) -> Micros {
        self.lease_us + self.lease_us / 8 + 1_000
    }
}

/// The role as `status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewRole {
    /// Runs the VM, or ran it last.
    Primary,
    /// Holds its state, or waits for it.
    Backup,
}

/// The state as `status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewState {
    /// The pair is in step.
    Protected,
    /// Running without a backup, by the arbiter's leave.
    Solo,
    /// A backup is receiving a full copy.
    Resyncing,
    /// Waiting for the peer or the arbiter.
    Waiting,
    /// Lost the arbitration.
    Fenced,
}

/// What the core tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Role.
    pub role: ViewRole,
    /// State.
    pub state: ViewState,
    /// The highest generation known.
    pub generation: u64,
    /// One line for the operator: why it is so, or what it waits for.
    pub detail: String,
}

/// The protocol core of one node (see the module's documentation).
#[derive(Clone, Debug)]
pub struct Core {
    pub(super) policy: Policy,
    pub(super) now: Micros,
    role: Role,
    pub(super) arbiter: Arbitration,
    pub(super) out: Vec<Command>,
    pairings: u64,
    generation: u64,
    pub(super) stop_requested: bool,
}

#[derive(Clone, Debug)]
enum Role {
    /// Reading the cell.
    Starting {
        trouble: Option<String>,
    },
    /// Asking for a cell that nobody owns.
    Founding {
        expected: Option<u64>,
        trouble: Option<String>,
    },
    /// The cell says that we own a VM whose memory we have not.
    Bereft {
        cell: Cell,
    },
    Primary(Primary),
    Backup(Backup),
    Ended {
        fenced: bool,
        detail: String,
    },
    /// Only while a role's own code runs.
    Moving,
}

/// What becomes of a role after an event.
pub(super) enum Next {
    Primary(Primary),
    Backup(Backup),
    Start,
    Ended(Exit),
}

/// The one arbiter request that may be under way, and when the next may be.
#[derive(Clone, Debug, Default)]
pub(super) struct Arbitration {
    asked: Option<Asked>,
    retry_at: Micros,
}

#[derive(Clone, Debug)]
enum Asked {
    /// `void`: asked in a situation that is over; the answer concerns nobody.
    Read { void: bool },
    /// `in_doubt`: an earlier attempt at this very request may have been carried out. `resend_at`: its answer was
    /// lost, ask again then.
    Set { expected: Option<u64>, new: Cell, in_doubt: bool, resend_at: Option<Micros> },
}

/// A certain answer to a compare-and-set.
pub(super) enum Settled {
    Won(Cell),
    Lost(Option<Cell>),
    /// Nothing changed and nothing is under way.
    NotAttempted(String),
}

impl Arbitration {
    /// Whether a new request may be made now.
    pub(super) fn is_free(&self, now: Micros) -> bool {
        self.asked.is_none() && now >= self.retry_at
    }

    /// Whether the cell may be changing by our own request right now.
    pub(super) fn is_setting(&self) -> bool {
        matches!(self.asked, Some(Asked::Set { .. }))
    }

    /// The answer to a read under way is not to be used: the situation that it was asked in is over.
    pub(super) fn void_read(&mut self) {
        if let Some(Asked::Read { void }) = &mut self.asked {
            *void = true;
        }
    }

    /// Allows the next request no sooner than then.
    pub(super) fn wait_until(&mut self, at: Micros) {
        self.retry_at = self.retry_at.max(at);
    }

    /// Allows the next request at once.
    pub(super) fn hurry(&mut self) {
        self.retry_at = 0;
    }
}

impl Core {
    /// A node that has just started. Its first command reads the cell.
    pub fn new(policy: Policy, now: Micros) -> (Self, Vec<Command>) {
        let mut core = Self {
            policy,
            now,
            role: Role::Starting { trouble: None },
            arbiter: Arbitration::default(),
            out: Vec::new(),
            pairings: 0,
            generation: 0,
            stop_requested: false,
        };
        core.pursue();
        let commands = std::mem::take(&mut core.out);
        (core, commands)
    }

    /// Takes one event at `now` and appends what is to be done. Time never goes backwards here.
    ///
    /// `now` is read after the event was taken from its queue: a promise that starts before the stamp which it answers
    /// would end before the permission.
    pub fn handle(&mut self, now: Micros, event: Event, commands: &mut Vec<Command>) {
        let gap = now.saturating_sub(self.now);
        self.now = self.now.max(now);
        if gap > self.policy.failure_timeout_us / 2 {
            // We were stopped or starved ourselves: what we did not hear in that time says nothing about the peer.
            match &mut self.role {
                Role::Primary(primary) => primary.excuse_silence(self.now),
                Role::Backup(backup) => backup.excuse_silence(self.now),
                _ => {}
            }
        }
        match event {
            Event::CellRead(answer) => {
                if let Some(Asked::Read { void }) = self.arbiter.asked {
                    self.arbiter.asked = None;
                    let answer = answer.map_err(|error| error.to_string());
                    let answer = answer.and_then(|cell| self.believe(cell));
                    if answer.is_err() {
                        self.arbiter.retry_at = self.now + self.policy.arbiter_retry_us;
                    }
                    if !void {
                        self.on_cell(answer);
                    }
                }
            }
            Event::CellSet(outcome) => {
                if let Some(settled) = self.settle(outcome) {
                    self.on_settled(settled);
                }
            }
            // The cell may be becoming ours: its answer comes first, else it would name a node that never ran the VM.
            Event::StopRequested if !self.in_role() && self.arbiter.is_setting() => {
                self.stop_requested = true
            }
            Event::StopRequested if !self.in_role() => {
                self.end(Exit::Stopped("stopped before it had a role".into()));
            }
            other => self.with_role(|core, role| match role {
                Role::Primary(primary) => primary.on_event(core, other),
                Role::Backup(backup) => backup.on_event(core, other),
                Role::Starting { .. } | Role::Founding { .. } | Role::Bereft { .. } => {
                    let why = "this node does not run the VM".to_string();
                    match other {
                        Event::PeerHello { conn, .. } => core.out.push(Command::Refuse { conn, why }),
                        Event::SwitchoverRequested => core.out.push(Command::SwitchoverDone(Err(why))),
                        _ => {}
                    }
                    None
                }
                Role::Ended { .. } | Role::Moving => None,
            }),
        }
        self.pursue();
        commands.append(&mut self.out);
    }

    fn in_role(&self) -> bool {
        matches!(self.role, Role::Primary(_) | Role::Backup(_) | Role::Ended { .. })
    }

    /// Runs a role's code with the rest of the core at hand, and moves to what it answers.
    fn with_role(&mut self, run: impl FnOnce(&mut Core, &mut Role) -> Option<Next>) {
        let mut role = std::mem::replace(&mut self.role, Role::Moving);
        let next = run(self, &mut role);
        self.role = role;
        if let Some(next) = next {
            self.advance(next);
        }
    }

    fn advance(&mut self, next: Next) {
        match next {
            Next::Primary(primary) => self.role = Role::Primary(primary),
            Next::Backup(backup) => {
                self.out.push(Command::Dial);
                self.role = Role::Backup(backup);
            }
            Next::Start => self.role = Role::Starting { trouble: None },
            Next::Ended(exit) => self.end(exit),
        }
    }

    fn end(&mut self, exit: Exit) {
        let (fenced, detail) = match &exit {
            Exit::Fenced(why) => (true, why.clone()),
            Exit::Stopped(why) | Exit::GuestCrashed(why) | Exit::Failed(why) | Exit::Misfit(why) => {
                (false, why.clone())
            }
        };
        self.role = Role::Ended { fenced, detail };
        self.out.push(Command::Exit(exit));
    }

    /// Makes the arbiter request that the state calls for, if none is under way.
    fn pursue(&mut self) {
        if let Some(Asked::Set { expected, new, resend_at, .. }) = &mut self.arbiter.asked
            && resend_at.is_some_and(|at| self.now >= at)
        {
            *resend_at = None;
            self.out.push(Command::CompareAndSet { expected: *expected, new: new.clone() });
            return;
        }
        if !self.arbiter.is_free(self.now) {
            return;
        }
        match &self.role {
            Role::Starting { .. } => self.ask_read(),
            Role::Bereft { .. } => {
                self.arbiter.retry_at = self.now + self.policy.arbiter_retry_us;
                self.ask_read();
            }
            Role::Founding { expected, .. } => {
                let expected = *expected;
                let owner = Some(self.policy.node.clone());
                self.ask_set(expected, Cell { generation: expected.unwrap_or(0) + 1, owner, standby: None });
            }
            Role::Primary(_) | Role::Backup(_) => self.with_role(|core, role| {
                match role {
                    Role::Primary(primary) => primary.pursue(core),
                    Role::Backup(backup) => backup.pursue(core),
                    _ => {}
                }
                None
            }),
            Role::Ended { .. } | Role::Moving => {}
        }
    }

    pub(super) fn ask_read(&mut self) {
        self.arbiter.asked = Some(Asked::Read { void: false });
        self.out.push(Command::ReadCell);
    }

    pub(super) fn ask_set(&mut self, expected: Option<u64>, new: Cell) {
        self.out.push(Command::CompareAndSet { expected, new: new.clone() });
        self.arbiter.asked = Some(Asked::Set { expected, new, in_doubt: false, resend_at: None });
    }

    /// A cell never goes back. One that is missing, or older than what this node has seen, is trouble with the arbiter:
    /// nothing follows from it.
    fn believe(&mut self, cell: Option<Cell>) -> Result<Option<Cell>, String> {
        let generation = cell.as_ref().map_or(0, |cell| cell.generation);
        if generation < self.generation {
            let found = cell.map_or("is empty".into(), |cell| format!("says {cell}"));
            return Err(format!(
                "the cell went back: it {found}, but generation {} was seen",
                self.generation
            ));
        }
        self.generation = generation;
        Ok(cell)
    }

    /// Turns an answer into a certain one, or arranges for the request to be repeated.
    fn settle(&mut self, outcome: Outcome) -> Option<Settled> {
        let retry_at = self.now + self.policy.arbiter_retry_us;
        let answer = match outcome {
            Outcome::Won(cell) => Some(Settled::Won(cell)),
            Outcome::Lost(cell) => Some(self.believe(cell).map_or_else(Settled::NotAttempted, Settled::Lost)),
            Outcome::NotAttempted(error) => Some(Settled::NotAttempted(error.to_string())),
            Outcome::Unknown(_) => None,
        };
        let Some(Asked::Set { new, in_doubt, resend_at, .. }) = &mut self.arbiter.asked else {
            return None;
        };
        let settled = match answer {
            // Nobody else writes a cell that is equal to what we asked for: an earlier attempt was carried out.
            Some(Settled::Lost(Some(cell))) if cell == *new => Settled::Won(cell),
            Some(settled) if !*in_doubt || !matches!(settled, Settled::NotAttempted(_)) => settled,
            _ => {
                *in_doubt = true;
                *resend_at = Some(retry_at);
                return None;
            }
        };
        self.arbiter.asked = None;
        if matches!(settled, Settled::NotAttempted(_)) {
            self.arbiter.retry_at = retry_at;
        }
        if let Settled::Won(cell) | Settled::Lost(Some(cell)) = &settled {
            self.generation = self.generation.max(cell.generation);
        }
        Some(settled)
    }

    fn on_settled(&mut self, settled: Settled) {
        self.with_role(|core, role| match role {
            Role::Primary(primary) => primary.on_settled(core, settled),
            Role::Backup(backup) => backup.on_settled(core, settled),
            Role::Founding { trouble, .. } => match settled {
                Settled::Won(cell) if core.stop_requested => {
                    let mut primary = Primary::solo(cell, "stopped before it booted");
                    primary.on_event(core, Event::StopRequested);
                    Some(Next::Primary(primary))
                }
                Settled::Won(cell) => {
                    core.out.push(Command::Boot);
                    Some(Next::Primary(Primary::solo(cell, "booted")))
                }
                Settled::Lost(_) | Settled::NotAttempted(_) if core.stop_requested => {
                    Some(Next::Ended(Exit::Stopped("stopped before it had a role".into())))
                }
                Settled::Lost(_) => Some(Next::Start),
                Settled::NotAttempted(why) => {
                    *trouble = Some(why);
                    None
                }
            },
            _ => None,
        });
    }

    fn on_cell(&mut self, answer: Result<Option<Cell>, String>) {
        match &mut self.role {
            Role::Starting { trouble } => match answer {
                Ok(cell) => self.begin(cell),
                Err(why) => *trouble = Some(why),
            },
            // The peer may have taken over in the meantime; then we are its backup.
            Role::Bereft { cell: known } => {
                if let Ok(Some(cell)) = answer
                    && cell != *known
                {
                    self.begin(Some(cell));
                }
            }
            Role::Primary(_) | Role::Backup(_) => self.with_role(|core, role| match role {
                Role::Backup(backup) => backup.on_cell(core, answer),
                _ => None,
            }),
            Role::Founding { .. } | Role::Ended { .. } | Role::Moving => {}
        }
    }

    /// What this node is, by the cell.
    fn begin(&mut self, cell: Option<Cell>) {
        let expected = cell.as_ref().map(|cell| cell.generation);
        let owner = cell.as_ref().and_then(|cell| cell.owner.clone());
        match (cell, owner) {
            (_, None) => match self.policy.start_as {
                StartAs::Primary => self.role = Role::Founding { expected, trouble: None },
                StartAs::Backup => self.advance(Next::Backup(Backup::new(self.now, "waiting for a primary"))),
            },
            (Some(cell), Some(owner)) if owner == self.policy.node => {
                if self.policy.fresh {
                    self.policy.fresh = false;
                    self.role = Role::Founding { expected: Some(cell.generation), trouble: None };
                } else {
                    self.role = Role::Bereft { cell };
                }
            }
            (_, Some(owner)) if owner == self.policy.peer && self.policy.fresh => {
                self.end(Exit::Failed(format!(
                    "refusing a fresh boot: node {owner} owns the VM; stop it there first, or start without --fresh"
                )));
            }
            (_, Some(owner)) if owner == self.policy.peer => {
                self.advance(Next::Backup(Backup::new(self.now, "dialling the primary")));
            }
            (_, Some(owner)) => self.end(Exit::Failed(format!(
                "the arbiter's cell belongs to node {owner}, which is neither {} nor {}",
                self.policy.node, self.policy.peer
            ))),
        }
    }

    /// A name for a pairing that was never used before.
    pub(super) fn new_pairing(&mut self) -> u64 {
        self.pairings += 1;
        self.policy.nonce.wrapping_add(self.pairings)
    }

    pub(super) fn learn_generation(&mut self, generation: u64) {
        self.generation = self.generation.max(generation);
    }

    /// The highest generation that this node knows of.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn drop_link(&mut self, conn: ConnId) {
        self.out.push(Command::DropLink { conn });
    }

    /// What `status` shows.
    pub fn view(&self) -> View {
        let (role, state, detail) = match &self.role {
            Role::Starting { trouble } => {
                (ViewRole::Backup, ViewState::Waiting, asking("reading the cell", trouble))
            }
            Role::Founding { trouble, .. } => {
                (ViewRole::Primary, ViewState::Waiting, asking("asking for the cell", trouble))
            }
            Role::Bereft { cell } => {
                let held = match &cell.standby {
                    Some(standby) => format!("{} may hold its state and take over", standby.node),
                    None => "nobody holds it".into(),
                };
                let detail = format!(
                    "the VM's memory on this node was lost in generation {}; {held}; --fresh boots anew and gives it up",
                    cell.generation
                );
                (ViewRole::Primary, ViewState::Waiting, detail)
            }
            Role::Primary(primary) => (ViewRole::Primary, primary.view_state(), primary.detail(self.now)),
            Role::Backup(backup) => (ViewRole::Backup, backup.view_state(), backup.detail()),
            Role::Ended { fenced: true, detail } => (ViewRole::Primary, ViewState::Fenced, detail.clone()),
            Role::Ended { fenced: false, detail } => (ViewRole::Backup, ViewState::Waiting, detail.clone()),
            Role::Moving => unreachable!("a role is put back before anybody can look"),
        };
        View { role, state, generation: self.generation, detail }
    }

    /// Whether this node may run the VM now, as far as it knows.
    pub fn is_primary(&self) -> bool {
        matches!(self.role, Role::Primary(_))
    }
}

fn asking(what: &str, trouble: &Option<String>) -> String {
    match trouble {
        Some(why) => format!("{what}: {why}"),
        None => what.to_string(),
    }
}
