//! The core's frame: start-up, the dispatch of events to the node's current part, and the view from outside.

use super::arbitration::{Arbitration, Asked, Settled};
use super::attempts::Attempts;
use super::backup::Backup;
use super::command::{Command, Exit};
use super::event::{ConnId, Event, Micros};
use super::fenced::Fenced;
use super::heir::Heir;
use super::network::Networks;
use super::policy::{Fresh, Policy, StartAs, Times};
use super::primary::Primary;
use super::proof::Lapsed;
use super::record::NodeRecord;
use super::request::{Done, RequestId, RequestRefusal};
use super::standing::Words;
use super::streak::Streak;
use super::view::{Role, State, View};
use ft_arbiter::{Cell, CellId};

/// The protocol core of one node (see the module's documentation).
#[derive(Clone, Debug)]
pub struct Core {
    pub(super) policy: Policy,
    pub(super) now: Micros,
    part: Part,
    pub(super) arbiter: Arbitration,
    pub(super) out: Vec<Command>,
    pairings: u64,
    generation: u64,
    pub(super) record: Option<NodeRecord>,
    pub(super) words: Words,
    /// Times the peer was lost: it fell silent, or its connection broke.
    pub(super) suspicions: u64,
    pub(super) stop_requested: bool,
    /// Requests to stop that are answered when this node ends.
    pub(super) leaving: Vec<RequestId>,
    pub(super) resets: Streak,
    pub(super) fences: Streak,
    pub(super) attempts: Attempts,
    /// The operator's other name for the peer, until nobody counts on the old one.
    next_peer: Option<String>,
    pub(super) networks: Networks,
}

/// The part that the node plays.
#[derive(Clone, Debug)]
enum Part {
    /// Reading the cell.
    Starting {
        trouble: Option<String>,
    },
    /// Asking for a cell that nobody owns.
    Founding {
        /// The cell as it was read; none: it is to be founded too.
        expected: Option<(CellId, u64)>,
        trouble: Option<String>,
    },
    /// The cell says that we own a VM whose memory we have not.
    Bereft {
        cell: Cell,
        /// How it came to that.
        why: String,
    },
    Primary(Primary),
    Backup(Backup),
    /// The cell is ours, and what we sealed is becoming a running VM.
    Heir(Heir),
    /// It lost the arbitration, and comes back.
    Fenced(Fenced),
    /// It is over: what it was last, and why.
    Ended {
        role: Role,
        state: State,
        detail: String,
    },
    /// Only while a part's own code runs.
    Moving,
}

/// What a part becomes after an event.
pub(super) enum Next {
    Primary(Primary),
    Backup(Backup),
    Heir(Heir),
    Fenced(Fenced),
    /// The machine is gone, and the cell still says that we own the VM.
    Bereft {
        cell: Cell,
        why: String,
    },
    Start,
    Ended(Exit),
}

impl Core {
    /// A node that has just started. Its first command reads the cell.
    pub fn new(policy: Policy, now: Micros) -> (Self, Vec<Command>) {
        let record = policy.record;
        let words = Words::new(policy.place.clone(), now);
        let mut core = Self {
            policy,
            now,
            record,
            words,
            part: Part::Starting { trouble: None },
            arbiter: Arbitration::default(),
            out: Vec::new(),
            pairings: 0,
            generation: record.map_or(0, |record| record.generation),
            suspicions: 0,
            stop_requested: false,
            leaving: Vec::new(),
            resets: Streak::default(),
            fences: Streak::default(),
            attempts: Attempts::default(),
            next_peer: None,
            networks: Networks::default(),
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
            match &mut self.part {
                Part::Primary(primary) => primary.excuse_silence(self.now),
                Part::Backup(backup) => backup.excuse_silence(self.now),
                _ => {}
            }
        }
        match event {
            Event::CellRead(answer) => {
                if let Some(Asked::Read { void }) = self.arbiter.asked {
                    self.arbiter.asked = None;
                    let answer = answer.map_err(|error| error.to_string());
                    let answer = answer.and_then(|cell| self.believe(cell));
                    self.note_answer(answer.as_ref().map(Option::as_ref).map_err(String::as_str));
                    if answer.is_err() {
                        self.arbiter.retry_at = self.now + self.policy.arbiter_retry_us;
                    }
                    if !void {
                        self.on_cell(answer);
                    }
                    self.tell_peer();
                }
            }
            Event::CellSet(outcome) => {
                if let Some(settled) = self.settle(outcome) {
                    self.on_settled(settled);
                }
                self.tell_peer();
            }
            Event::Recorded => self.on_recorded(None),
            Event::Unrecorded(why) => self.on_recorded(Some(why)),
            Event::Retimed(Times { failure_timeout_us, takeover_delay_us }) => {
                self.policy.failure_timeout_us = failure_timeout_us;
                self.policy.takeover_delay_us = takeover_delay_us;
            }
            Event::PeerReplaced { node } => self.next_peer = Some(node),
            Event::NetworkSeen { whose, reach } => self.networks.set(whose, reach),
            // The cell may be becoming ours: its answer comes first, else it would name a node that never ran the VM.
            Event::StopRequested { request, .. } if !self.in_part() && self.arbiter.is_setting() => {
                self.leave(request);
            }
            Event::StopRequested { request, .. } if !self.in_part() => {
                self.leave(request);
                self.end(Exit::Stopped("stopped before it had a role".into()));
            }
            other => self.with_part(|core, part| match part {
                Part::Primary(primary) => primary.on_event(core, other),
                Part::Backup(backup) => backup.on_event(core, other),
                Part::Heir(heir) => heir.on_event(core, other),
                Part::Starting { .. } | Part::Founding { .. } | Part::Bereft { .. } | Part::Fenced(_) => {
                    let why = "this node does not run the VM".to_string();
                    match other {
                        Event::PeerHello { conn, .. } => core.out.push(Command::Refuse { conn, why }),
                        Event::SwitchoverRequested { request, .. } => {
                            core.refuse(request, RequestRefusal::NoRole)
                        }
                        _ => {}
                    }
                    None
                }
                Part::Ended { .. } | Part::Moving => None,
            }),
        }
        self.rename_peer();
        self.pursue();
        commands.append(&mut self.out);
    }

    /// The peer has another name once neither the cell nor a pairing under way knows the old one.
    fn rename_peer(&mut self) {
        let is_free = match &self.part {
            Part::Primary(primary) => primary.has_no_backup(),
            Part::Starting { .. } | Part::Founding { .. } | Part::Fenced(_) => true,
            Part::Bereft { .. } | Part::Backup(_) | Part::Heir(_) | Part::Ended { .. } | Part::Moving => {
                false
            }
        };
        if is_free && let Some(node) = self.next_peer.take() {
            self.policy.peer = node;
        }
    }

    fn in_part(&self) -> bool {
        matches!(self.part, Part::Primary(_) | Part::Backup(_) | Part::Heir(_) | Part::Ended { .. })
    }

    /// Runs a part's code with the rest of the core at hand, and moves to what it answers.
    fn with_part(&mut self, run: impl FnOnce(&mut Core, &mut Part) -> Option<Next>) {
        let mut part = std::mem::replace(&mut self.part, Part::Moving);
        let next = run(self, &mut part);
        self.part = part;
        if let Some(next) = next {
            self.advance(next);
        }
    }

    /// The peer, where there is one, learns what the arbiter has just answered.
    fn tell_peer(&mut self) {
        let conn = match &self.part {
            Part::Primary(primary) => primary.conn(),
            Part::Backup(backup) => backup.conn(),
            _ => None,
        };
        if let Some(conn) = conn {
            self.tell_standing(conn, false);
        }
    }

    pub(super) fn advance(&mut self, next: Next) {
        match next {
            Next::Primary(primary) => {
                self.attempts = Attempts::default();
                self.part = Part::Primary(primary);
            }
            Next::Backup(backup) => {
                self.attempts = Attempts::default();
                self.out.push(Command::Dial);
                self.part = Part::Backup(backup);
            }
            Next::Heir(heir) => self.part = Part::Heir(heir),
            Next::Fenced(fenced) => self.part = Part::Fenced(fenced),
            Next::Bereft { cell, why } => self.part = Part::Bereft { cell, why },
            Next::Start => self.part = Part::Starting { trouble: None },
            Next::Ended(exit) => self.end(exit),
        }
    }

    fn end(&mut self, exit: Exit) {
        let state = if matches!(exit, Exit::Fenced(_)) { State::Fenced } else { State::Waiting };
        self.part = Part::Ended { role: self.role(), state, detail: exit.why().into() };
        for request in std::mem::take(&mut self.leaving) {
            self.answer(
                request,
                match &exit {
                    Exit::Fenced(_) => Err(RequestRefusal::LostArbitration),
                    _ => Ok(Done::Stopped(exit.why().into())),
                },
            );
        }
        self.out.push(Command::Exit(exit));
    }

    /// Makes the arbiter request that the state calls for, if none is under way.
    fn pursue(&mut self) {
        if let (Part::Bereft { .. }, Some(Asked::Set { resend_at: Some(_), .. })) =
            (&self.part, &self.arbiter.asked)
        {
            // It was asked by a node that had a machine: whoever has the state must not lose it to one without.
            self.arbiter.asked = None;
        }
        if let Some(Asked::Set { expected, new, resend_at, .. }) = &mut self.arbiter.asked
            && resend_at.is_some_and(|at| self.now >= at)
        {
            *resend_at = None;
            self.arbiter.asked_at = self.now;
            self.out.push(Command::CompareAndSet { expected: *expected, new: new.clone() });
            return;
        }
        if !self.arbiter.is_free(self.now) {
            return;
        }
        match &self.part {
            Part::Starting { .. } => self.ask_read(),
            Part::Bereft { .. } => {
                self.arbiter.retry_at = self.now + self.policy.arbiter_retry_us;
                self.ask_read();
            }
            Part::Founding { expected, .. } => {
                let (id, before) = match *expected {
                    Some((id, generation)) => (id, Some(generation)),
                    // A new cell, unlike any other.
                    None => (CellId(self.policy.nonce), None),
                };
                let owner = Some(self.policy.node.clone());
                let generation = before.unwrap_or(0) + 1;
                self.ask_set(before, Cell { id, generation, owner, standby: None });
            }
            Part::Fenced(fenced) if fenced.is_rested(self.now) => self.ask_read(),
            Part::Primary(_) | Part::Backup(_) | Part::Heir(_) => self.with_part(|core, part| {
                match part {
                    Part::Primary(primary) => primary.pursue(core),
                    Part::Backup(backup) => backup.pursue(core),
                    // It reads the cell by itself, and what it asks for next is not to wait for a probe.
                    Part::Heir(heir) => {
                        heir.pursue(core);
                        return None;
                    }
                    _ => {}
                }
                core.probe_if_due();
                None
            }),
            Part::Fenced(_) | Part::Ended { .. } | Part::Moving => {}
        }
    }

    fn on_settled(&mut self, settled: Settled) {
        self.with_part(|core, part| match part {
            Part::Primary(primary) => primary.on_settled(core, settled),
            Part::Backup(backup) => backup.on_settled(core, settled),
            Part::Founding { trouble, .. } => match settled {
                Settled::Won(cell) if core.stop_requested => {
                    let mut primary = Primary::solo(cell, "stopped before it booted");
                    primary.shut_down(core, "stopped before it booted");
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
        match &mut self.part {
            Part::Starting { trouble } => match answer {
                Ok(cell) => self.begin(cell),
                Err(why) => *trouble = Some(why),
            },
            Part::Fenced(fenced) => match answer {
                Ok(cell) => self.return_by(cell),
                Err(why) => fenced.note_trouble(why),
            },
            // The peer may have taken over in the meantime; then we are its backup.
            Part::Bereft { cell: known, .. } => {
                if let Ok(Some(cell)) = answer
                    && cell != *known
                {
                    self.begin(Some(cell));
                }
            }
            Part::Primary(_) | Part::Backup(_) | Part::Heir(_) => self.with_part(|core, part| match part {
                Part::Primary(primary) => primary.on_cell(core, answer.ok().flatten()),
                Part::Backup(backup) => backup.on_cell(core, answer),
                Part::Heir(heir) => heir.on_cell(core, answer),
                _ => None,
            }),
            Part::Founding { .. } | Part::Ended { .. } | Part::Moving => {}
        }
    }

    /// What this node is, by the cell.
    pub(super) fn begin(&mut self, cell: Option<Cell>) {
        let expected = cell.as_ref().map(|cell| (cell.id, cell.generation));
        let owner = cell.as_ref().and_then(|cell| cell.owner.clone());
        match (cell, owner) {
            (_, None) => match self.policy.start_as {
                StartAs::Primary => {
                    if let Some((id, generation)) = expected {
                        self.act_on(id, generation);
                    }
                    self.part = Part::Founding { expected, trouble: None };
                }
                StartAs::Backup => self.advance(Next::Backup(Backup::of_nobody())),
            },
            (Some(cell), Some(owner)) if owner == self.policy.node => {
                self.act_on(cell.id, cell.generation);
                let fresh = std::mem::replace(&mut self.policy.fresh, Fresh::No);
                if fresh == Fresh::Any || fresh == Fresh::Over(cell.generation) {
                    self.part = Part::Founding { expected, trouble: None };
                } else {
                    let why = "this process has not run it".into();
                    self.part = Part::Bereft { cell, why };
                }
            }
            (_, Some(owner)) if owner == self.policy.peer && self.policy.fresh == Fresh::Any => {
                self.end(Exit::Failed(format!(
                    "refusing a fresh boot: node {owner} owns the VM; stop it there first, or start without --fresh"
                )));
            }
            (_, Some(owner)) if owner == self.policy.peer => {
                self.advance(Next::Backup(Backup::new("dialling the primary")));
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
        let (state, detail) = match &self.part {
            Part::Starting { trouble } => (
                State::Waiting,
                asking(&format!("reading the arbiter's cell at {}", self.policy.place), trouble),
            ),
            Part::Founding { trouble, .. } => (
                State::Waiting,
                asking(&format!("asking the arbiter at {} for the VM", self.policy.place), trouble),
            ),
            Part::Bereft { cell, why } => {
                let held = match &cell.standby {
                    Some(standby) => format!("node {} may still hold the state and take over", standby.node),
                    None => "no other node holds it".into(),
                };
                let detail = format!(
                    "the VM's memory on this node was lost in generation {} ({why}); {held}; to give the \
                     state up and boot anew: ftd allow-fresh (or ftd run --fresh)",
                    cell.generation
                );
                (State::Waiting, detail)
            }
            Part::Primary(primary) => (primary.state(self), primary.detail(self)),
            Part::Backup(backup) => (backup.state(self), backup.detail(self)),
            Part::Heir(heir) => (State::Waiting, heir.detail()),
            Part::Fenced(fenced) => (State::Fenced, fenced.detail(self)),
            Part::Ended { state, detail, .. } => (*state, detail.clone()),
            Part::Moving => unreachable!("a part is put back before anybody can look"),
        };
        let rehearsal = match &self.part {
            Part::Backup(backup) => backup.rehearsal(),
            _ => None,
        };
        View {
            role: self.role(),
            state,
            generation: self.generation,
            suspicions: self.suspicions,
            rehearsal,
            peer: self.policy.peer.clone(),
            lapses: self.lapses(),
            arbiter_at: self.words.mine.at,
            peer_arbiter_at: self.words.theirs.as_ref().and_then(|theirs| theirs.at),
            detail,
        }
    }

    fn lapses(&self) -> Vec<Lapsed> {
        match &self.part {
            Part::Primary(primary) => primary.lapses(self),
            Part::Backup(backup) => backup.lapses(self),
            _ => self.own_lapses(),
        }
    }

    fn role(&self) -> Role {
        match &self.part {
            Part::Founding { .. } | Part::Bereft { .. } | Part::Primary(_) | Part::Heir(_) => Role::Primary,
            Part::Starting { .. } | Part::Backup(_) | Part::Fenced(_) => Role::Backup,
            Part::Ended { role, .. } => *role,
            Part::Moving => unreachable!("a part is put back before anybody can look"),
        }
    }

    /// Whether this node may run the VM now, as far as it knows.
    pub fn is_primary(&self) -> bool {
        matches!(self.part, Part::Primary(_))
    }
}

fn asking(what: &str, trouble: &Option<String>) -> String {
    match trouble {
        Some(why) => format!("{what}: {why}"),
        None => what.to_string(),
    }
}
