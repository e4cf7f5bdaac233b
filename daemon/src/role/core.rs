//! The core's frame: start-up, the dispatch of events to the node's current part, and the view from outside.

use super::arbitration::{Arbitration, Asked, Settled};
use super::attempts::Attempts;
use super::backup::Backup;
use super::bereft::Bereft;
use super::command::{Command, Exit};
use super::event::{ConnId, Event, Micros};
use super::fenced::Fenced;
use super::heir::Heir;
use super::policy::{Policy, Times};
use super::primary::Primary;
use super::proof::Lapsed;
use super::record::NodeRecord;
use super::request::{Done, RequestId, RequestRefusal};
use super::saved::OnDisk;
use super::standing::Words;
use super::start::{Founding, Starting, Wish};
use super::streak::Streak;
use super::surroundings::Surroundings;
use super::view::{Role, State, View};
use ft_arbiter::Cell;

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
    pub(super) on_disk: OnDisk,
    pub(super) words: Words,
    /// Times the peer was lost: it fell silent, or its connection broke.
    pub(super) suspicions: u64,
    /// When the peer was heard last, over a connection that is no more or never came about.
    pub(super) heard_at: Option<Micros>,
    pub(super) stop_requested: bool,
    /// Requests to stop that are answered when this node ends.
    pub(super) leaving: Vec<RequestId>,
    pub(super) resets: Streak,
    pub(super) fences: Streak,
    pub(super) attempts: Attempts,
    /// The operator's other name for the peer, until nobody counts on the old one.
    next_peer: Option<String>,
    pub(super) surroundings: Surroundings,
}

/// The part that the node plays.
#[derive(Clone, Debug)]
enum Part {
    /// Reading the cell.
    Starting(Starting),
    /// Asking for the cell, to boot the VM.
    Founding(Founding),
    /// The cell says that we own a VM whose memory we have not.
    Bereft(Bereft),
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
    Bereft(Bereft),
    Starting(Starting),
    Founding(Founding),
    Ended(Exit),
}

impl Core {
    /// A node that has just started. Its first command reads the cell.
    pub fn new(policy: Policy, now: Micros) -> (Self, Vec<Command>) {
        let (record, on_disk) = (policy.record, policy.on_disk.clone());
        let words = Words::new(policy.place.clone(), now);
        let mut core = Self {
            policy,
            now,
            record,
            on_disk,
            words,
            part: Part::Starting(Starting::default()),
            arbiter: Arbitration::default(),
            out: Vec::new(),
            pairings: 0,
            generation: record.map_or(0, |record| record.generation),
            suspicions: 0,
            heard_at: None,
            stop_requested: false,
            leaving: Vec::new(),
            resets: Streak::default(),
            fences: Streak::default(),
            attempts: Attempts::default(),
            next_peer: None,
            surroundings: Surroundings::default(),
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
        if let Event::PeerHello { .. } | Event::Welcomed { .. } | Event::DialFailed { answered: true, .. } =
            event
        {
            self.heard_at = Some(self.now);
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
            Event::Recorded(record) => self.on_recorded(record, None),
            Event::Unrecorded { record, why } => self.on_recorded(record, Some(why)),
            Event::StartRequested { request, how, until } => self.on_start(Wish { request, how, until }),
            Event::Retimed(Times { failure_timeout_us, takeover_delay_us }) => {
                self.policy.failure_timeout_us = failure_timeout_us;
                self.policy.takeover_delay_us = takeover_delay_us;
            }
            Event::PeerReplaced { node } => self.next_peer = Some(node),
            Event::NetworkSeen { whose, reach } => self.surroundings.set(whose, reach),
            Event::DiskSeen { stands } => self.surroundings.set_disk(stands),
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
                Part::Bereft(bereft) => bereft.on_event(core, other),
                Part::Founding(founding) if other == Event::Tick => founding.on_tick(core),
                Part::Starting(_) | Part::Founding(_) | Part::Fenced(_) => {
                    match (other, part) {
                        (Event::PeerHello { conn, .. }, _) => {
                            let why = "this node does not run the VM".into();
                            core.out.push(Command::Refuse { conn, why });
                        }
                        (Event::SwitchoverRequested { request, .. }, _) => {
                            core.refuse(request, RequestRefusal::NoRole)
                        }
                        (Event::Tick, Part::Starting(starting)) => starting.on_tick(core),
                        _ => {}
                    }
                    None
                }
                Part::Ended { .. } | Part::Moving => None,
            }),
        }
        self.rename_peer();
        self.drop_passed_image();
        self.pursue();
        commands.append(&mut self.out);
    }

    /// The peer has another name once neither the cell nor a pairing under way knows the old one.
    fn rename_peer(&mut self) {
        let is_free = match &self.part {
            Part::Primary(primary) => primary.has_no_backup(),
            Part::Starting(_) | Part::Founding(_) | Part::Fenced(_) => true,
            Part::Bereft(_) | Part::Backup(_) | Part::Heir(_) | Part::Ended { .. } | Part::Moving => false,
        };
        if is_free && let Some(node) = self.next_peer.take() {
            self.policy.peer = node;
        }
    }

    /// The image on disk is still to be gone on from, whatever generation the cell is in.
    pub(super) fn reads_image(&self) -> bool {
        matches!(&self.part, Part::Heir(heir) if heir.is_unread())
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

    /// The operator wants the VM started here.
    fn on_start(&mut self, wish: Wish) {
        if let Err(why) = self.judge_silence(&wish) {
            return self.refuse(wish.request, why);
        }
        self.with_part(|core, part| {
            let refusal = match part {
                Part::Starting(starting) => {
                    starting.on_start(core, wish);
                    return None;
                }
                Part::Bereft(bereft) => return Some(bereft.on_start(core, wish)),
                Part::Fenced(_) => return Some(Next::Starting(Starting::by(wish))),
                Part::Backup(backup) => return backup.on_start(core, wish),
                Part::Founding(_) => RequestRefusal::Starting,
                Part::Primary(_) => RequestRefusal::AlreadyRuns,
                Part::Heir(_) => RequestRefusal::NotRunning,
                Part::Ended { .. } | Part::Moving => RequestRefusal::VmEnding,
            };
            core.refuse(wish.request, refusal);
            None
        });
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

    fn advance(&mut self, next: Next) {
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
            Next::Bereft(bereft) => self.part = Part::Bereft(bereft),
            Next::Starting(starting) => self.part = Part::Starting(starting),
            Next::Founding(founding) => self.part = Part::Founding(founding),
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
        self.drop_passed_image();
        self.out.push(Command::Exit(exit));
    }

    /// Makes the arbiter request that the state calls for, if none is under way.
    fn pursue(&mut self) {
        if let (
            Part::Bereft(_) | Part::Starting(_) | Part::Heir(_),
            Some(Asked::Set { resend_at: Some(_), .. }),
        ) = (&self.part, &self.arbiter.asked)
        {
            // It was asked by a node that had a machine: whoever has the state must not lose it to one without.
            self.arbiter.asked = None;
        }
        if let Some(Asked::Set { expected, new, resend_at, .. }) = &mut self.arbiter.asked
            && resend_at.is_some_and(|at| self.now >= at)
        {
            *resend_at = None;
            self.out.push(Command::CompareAndSet { expected: *expected, new: new.clone() });
            return self.note_asking();
        }
        if !self.arbiter.is_free(self.now) {
            return self.leave_if_overdue();
        }
        match &self.part {
            Part::Starting(_) => self.ask_read(),
            Part::Bereft(_) => {
                self.arbiter.retry_at = self.now + self.policy.arbiter_retry_us;
                self.ask_read();
            }
            Part::Founding(_) => self.with_part(|core, part| {
                if let Part::Founding(founding) = part {
                    founding.pursue(core);
                }
                None
            }),
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
            Part::Founding(founding) => founding.on_settled(core, settled),
            Part::Heir(heir) => heir.on_settled(core, settled),
            // Its answer was waited for.
            Part::Starting(_) | Part::Bereft(_) if core.stop_requested => {
                Some(Next::Ended(Exit::Stopped("stopped before it had a role".into())))
            }
            _ => None,
        });
    }

    fn on_cell(&mut self, answer: Result<Option<Cell>, String>) {
        self.with_part(|core, part| match part {
            Part::Starting(starting) => starting.on_cell(core, answer),
            Part::Bereft(bereft) => bereft.on_cell(core, answer),
            Part::Fenced(fenced) => fenced.on_cell(core, answer),
            Part::Primary(primary) => primary.on_cell(core, answer.ok().flatten()),
            Part::Backup(backup) => backup.on_cell(core, answer),
            Part::Heir(heir) => heir.on_cell(core, answer),
            Part::Founding(founding) => founding.on_cell(answer),
            Part::Ended { .. } | Part::Moving => None,
        });
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
            Part::Starting(starting) => (State::Waiting, starting.detail(self)),
            Part::Founding(founding) => (State::Waiting, founding.detail(self)),
            Part::Bereft(bereft) => (State::Waiting, bereft.detail(self)),
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
            Part::Founding(_) | Part::Bereft(_) | Part::Primary(_) | Part::Heir(_) => Role::Primary,
            Part::Starting(_) | Part::Backup(_) | Part::Fenced(_) => Role::Backup,
            Part::Ended { role, .. } => *role,
            Part::Moving => unreachable!("a part is put back before anybody can look"),
        }
    }

    /// Whether this node may run the VM now, as far as it knows.
    pub fn is_primary(&self) -> bool {
        matches!(self.part, Part::Primary(_))
    }
}
