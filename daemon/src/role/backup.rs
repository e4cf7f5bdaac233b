//! The backup: it follows the primary, holds its last sealed checkpoint, and contests the cell when it loses the
//! primary.

mod leaving;
mod rehearsing;
mod starting;
mod view;

use super::arbitration::Settled;
use super::attempts::Ending;
use super::command::{Command, Exit, PairingStart, Succession};
use super::core::{Core, Next};
use super::event::{ConnId, Event, Gone, Held, Micros};
use super::hearing::Hearing;
use super::heir::Heir;
use super::policy::{StartAs, promise_us};
use super::rehearsal::{Rehearsals, Unacked};
use super::request::RequestRefusal;
use super::start::Wish;
use ft_arbiter::{Cell, CellId, Standby};

/// A node that follows.
#[derive(Clone, Debug)]
pub(super) struct Backup {
    link: Option<Hearing>,
    hold: Hold,
    stage: Stage,
    /// We promised not to contest before this time (the primary's lease, see the module's documentation).
    promise_until: Micros,
    /// The generation that the primary named when it welcomed us.
    welcomed_in: u64,
    /// The generation in which the cell names us, as the primary said.
    paired: Option<u64>,
    /// The primary's cell, as it said. Only this one can say that the primary went on without us.
    cell: Option<CellId>,
    rehearsals: Rehearsals,
    /// When to dial, after the primary was left alone for a while.
    dial_at: Option<Micros>,
    /// The cell named no owner as this node began, and it is the peer's to found the VM.
    waits_for_founder: bool,
    /// The peer is nobody's primary either: whether anybody owns the VM is to be read.
    ownerless: bool,
    /// The VM has ended, in this generation, and nobody runs it.
    ended_in: Option<u64>,
    /// The operator says that the primary's host is gone for good: the cell is taken for what is sealed here.
    release: Option<Wish>,
    why: String,
}

/// What we have of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    Nothing,
    /// Part of a full copy: of no use.
    Partial {
        pairing: u64,
    },
    Sealed(Held),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// With the primary, or dialling it.
    Following,
    /// The primary is lost and we hold a sealed state: after a while the cell is asked. `named_in`: the cell and the
    /// generation in which it was seen to name us with our state. `verified`: the VM can go on from our state, as far
    /// as anybody can tell.
    Orphaned { since: Micros, named_in: Option<(CellId, u64)>, verified: bool },
    /// The primary has stopped the VM at this epoch and offers it: the machine here is taking our state.
    Offered { epoch: u64 },
    /// The cell is, or may have been, asked to make us the owner. Nothing is acknowledged any more.
    Contesting(Succession),
    /// Asked to stop, or not able to follow, and the primary knows. What we hold may be the last copy until the cell
    /// does not count on it.
    Leaving { since: Micros },
}

impl Backup {
    /// Holds nothing, dials.
    pub(super) fn new(why: &str) -> Self {
        Self {
            link: None,
            hold: Hold::Nothing,
            stage: Stage::Following,
            promise_until: 0,
            welcomed_in: 0,
            paired: None,
            cell: None,
            rehearsals: Rehearsals::default(),
            dial_at: None,
            waits_for_founder: false,
            ownerless: false,
            ended_in: None,
            release: None,
            why: why.into(),
        }
    }

    /// Holds nothing, dials: the VM is the peer's to found.
    pub(super) fn of_nobody() -> Self {
        Self { waits_for_founder: true, ..Self::new("waiting for a primary") }
    }

    pub(super) fn on_event(&mut self, core: &mut Core, event: Event) -> Option<Next> {
        match event {
            Event::Tick => return self.on_tick(core),
            Event::PeerHello { conn, .. } => self.on_hello(core, conn),
            Event::Welcomed { conn, generation, pairing, how } => {
                return self.on_welcome(core, conn, generation, pairing, how);
            }
            Event::DialFailed { why, permanent: true, .. } if self.hold == Hold::Nothing => {
                return Some(Next::Ended(Exit::Misfit(why)));
            }
            Event::PeerGone { conn, why } if self.is_linked(conn) => match why {
                Gone::Lost(why) => {
                    core.suspicions += 1;
                    self.lose_peer(core, why);
                }
                Gone::Unable(why) => self.stand_back(core, why),
                // It says that it has ended the VM, or will not have us. The cell decides, not the peer's word.
                Gone::Bye(why) => self.lose_peer(core, format!("it left: {why}")),
            },
            Event::Heard { conn } => self.hear(conn, |hearing| hearing.stream(core.now)),
            Event::Heartbeat { conn, stamp, lease } if self.is_linked(conn) => {
                self.hear(conn, |hearing| hearing.pulse(core.now));
                if self.may_answer() {
                    let lease = lease.min(core.policy.lease_us_max());
                    self.promise(core, lease);
                    core.out.push(Command::SendEcho { conn, stamp, lease });
                } else {
                    // Nothing is permitted or promised any more, but we live.
                    core.tell_standing(conn, false);
                }
            }
            Event::Standing { conn, said } if self.is_linked(conn) => {
                self.hear(conn, |hearing| hearing.stream(core.now));
                core.on_standing(said);
                self.cell = core.their_cell().or(self.cell);
            }
            Event::Sealed { conn, pairing, epoch, stamp } => {
                self.on_sealed(core, conn, pairing, epoch, stamp)
            }
            Event::Verified { epoch } => self.on_verified(core, epoch),
            Event::LoadFailed(why) => return self.on_load_failed(core, &why),
            Event::Rehearsed { pairing } if self.pairing() == Some(pairing) => self.on_rehearsed(core),
            Event::RehearsalFailed { pairing, why } if self.pairing() == Some(pairing) => {
                return self.on_rehearsal_failed(core, why);
            }
            Event::Paired { conn, generation } if self.is_linked(conn) => {
                core.learn_generation(generation);
                self.paired = Some(generation);
                core.attempts.reach_protection(core.now);
                self.why = "in step".into();
                core.begin_proof();
                core.probe_soon();
            }
            Event::SwitchoverOffered { conn, epoch } if self.is_linked(conn) => {
                self.on_offer(core, conn, epoch)
            }
            // The cell may be ours already. If it is, the take-over fails over what is lost here, and says so.
            Event::StateLost(_) if core.arbiter.is_setting() => {}
            Event::StateLost(why) if self.hold != Hold::Nothing => {
                if let Some(link) = &self.link {
                    core.out.push(Command::SendBye { conn: link.conn, why: why.clone() });
                }
                self.discard(core, why, Ending::Failed);
                return self.stop_if_asked(core);
            }
            Event::MachineFailed(why) => return self.on_machine_failure(core, why),
            Event::SwitchoverRequested { request, .. } => core.refuse(request, RequestRefusal::IsBackup),
            Event::StopRequested { request, vm } => return self.on_stop(core, request, vm),
            _ => {}
        }
        None
    }

    fn is_contesting(&self) -> bool {
        matches!(self.stage, Stage::Contesting(_))
    }

    fn on_sealed(&mut self, core: &mut Core, conn: ConnId, pairing: u64, epoch: u64, stamp: Micros) {
        self.hear(conn, |hearing| hearing.stream(core.now));
        // Whatever is sealed is what we hold, also when we may not say so any more, and when the news was
        // still under way as we gave the connection up.
        if self.pairing() == Some(pairing) && self.sealed_epoch() < epoch {
            self.hold = Hold::Sealed(Held { pairing, epoch });
            if self.is_linked(conn) && self.may_answer() {
                self.ack(core, Unacked { conn, epoch, stamp });
            }
            if let Stage::Orphaned { verified, .. } = &mut self.stage {
                *verified = false;
                core.out.push(Command::Verify { epoch });
            }
        }
    }

    fn on_verified(&mut self, core: &mut Core, epoch: u64) {
        let held = self.sealed_epoch();
        match &mut self.stage {
            Stage::Orphaned { verified, .. } => *verified |= epoch == held,
            // The primary emits nothing more by its own word: no promise binds us.
            Stage::Offered { epoch: offered } if *offered == epoch && epoch == held => {
                self.stage = Stage::Contesting(Succession::Switchover);
                core.arbiter.hurry();
            }
            _ => {}
        }
    }

    /// The machine here does not take our state: the primary goes on with the VM.
    fn on_load_failed(&mut self, core: &mut Core, why: &str) -> Option<Next> {
        let (Stage::Offered { .. }, Some(link)) = (self.stage, &self.link) else { return None };
        let why = format!("the VM cannot be resumed there: {why}");
        core.out.push(Command::SendDecline { conn: link.conn, why });
        self.stage = Stage::Following;
        self.stop_if_asked(core)
    }

    pub(super) fn conn(&self) -> Option<ConnId> {
        self.link.as_ref().map(|link| link.conn)
    }

    fn is_linked(&self, conn: ConnId) -> bool {
        self.link.as_ref().is_some_and(|link| link.conn == conn)
    }

    fn pairing(&self) -> Option<u64> {
        match self.hold {
            Hold::Nothing => None,
            Hold::Partial { pairing } => Some(pairing),
            Hold::Sealed(held) => Some(held.pairing),
        }
    }

    fn sealed_epoch(&self) -> u64 {
        match self.hold {
            Hold::Sealed(held) => held.epoch,
            Hold::Nothing | Hold::Partial { .. } => 0,
        }
    }

    fn may_answer(&self) -> bool {
        matches!(self.stage, Stage::Following | Stage::Offered { .. })
    }

    /// Not to contest for as long as this lease may be alive.
    fn promise(&mut self, core: &Core, lease: Micros) {
        self.promise_until = self.promise_until.max(core.now + promise_us(lease));
    }

    /// Two backups.
    fn on_hello(&mut self, core: &mut Core, conn: ConnId) {
        if self.waits_for_founder {
            self.why = format!(
                "nobody boots the VM: node {} and node {} both have start_as = \"backup\", and the arbiter names no \
                 owner; boot it on one of them with ftctl start, or set start_as = \"primary\" on one of them, and \
                 restart ftd there",
                core.policy.node, core.policy.peer
            );
        }
        let why = if self.waits_for_founder { &self.why } else { "this node is a backup itself" };
        core.out.push(Command::Refuse { conn, why: why.into() });
        // The VM is over, and the operator has started the peer. This node finds out which one boots it.
        self.ownerless |= self.hold == Hold::Nothing && core.policy.start_as == StartAs::Primary;
    }

    fn hear(&mut self, conn: ConnId, note: impl FnOnce(&mut Hearing)) {
        if let Some(link) = self.link.as_mut().filter(|link| link.conn == conn) {
            note(link);
        }
    }

    pub(super) fn excuse_silence(&mut self, now: Micros) {
        if let Some(link) = &mut self.link {
            link.excuse(now);
        }
    }

    fn on_welcome(
        &mut self,
        core: &mut Core,
        conn: ConnId,
        generation: u64,
        pairing: u64,
        how: PairingStart,
    ) -> Option<Next> {
        if self.is_contesting() {
            return None;
        }
        core.learn_generation(generation);
        self.waits_for_founder = false;
        self.ended_in = None;
        self.end_release(core, RequestRefusal::OwnedBy(core.policy.peer.clone()));
        self.why = match how {
            PairingStart::ResumeAfter(_) if !matches!(self.hold, Hold::Sealed(held) if held.pairing == pairing) =>
            {
                core.out.push(Command::Dial);
                return None;
            }
            PairingStart::ResumeAfter(_) => "in step again".into(),
            PairingStart::Copy => {
                if self.hold != Hold::Nothing {
                    core.out.push(Command::Discard);
                }
                self.hold = Hold::Partial { pairing };
                self.paired = None;
                self.cell = None;
                self.rehearsals.begin_anew();
                core.note_unfit(None, None);
                core.attempts.begin(core.now);
                "receiving a full copy".into()
            }
        };
        self.dial_at = None;
        self.rehearsals.forget_ack();
        // What was read while we were without the primary is old, and we are about to promise anew.
        core.arbiter.void_read();
        core.forget_their_word();
        self.stage = Stage::Following;
        self.welcomed_in = generation;
        // What the primary gave up before it welcomed us again may not have been seen to end here.
        if let Some(old) = self.link.replace(Hearing::begin(conn, core.now)) {
            core.drop_link(old.conn);
        }
        core.out.push(Command::Follow { conn, pairing, how });
        self.stop_if_asked(core)
    }

    fn on_tick(&mut self, core: &mut Core) -> Option<Next> {
        if self.dial_at.is_some_and(|at| core.now >= at) {
            self.dial_at = None;
            core.out.push(Command::Dial);
        }
        self.time_release(core);
        if let Some(next) = self.rehearse_if_due(core) {
            return Some(next);
        }
        if let Some(link) = &mut self.link {
            if let Some(why) = link.verdict(core.now, &core.policy) {
                core.suspicions += 1;
                core.drop_link(link.conn);
                self.lose_peer(core, why);
            } else if link.is_to_tell(core.now, &core.policy) {
                core.tell_standing(link.conn, false);
            }
        }
        None
    }

    fn lose_peer(&mut self, core: &mut Core, why: String) {
        if let Some(link) = self.link.take() {
            core.heard_at = core.heard_at.max(Some(link.heard_at));
        }
        self.why = format!("lost the primary: {why}");
        core.forget_their_word();
        match (self.hold, self.stage) {
            (_, Stage::Contesting(_)) => {}
            (Hold::Sealed(held), _) => {
                self.orphan(core, held);
                core.arbiter.hurry();
            }
            _ => {
                let why = format!("lost the primary before a checkpoint was complete: {why}");
                self.discard(core, why, Ending::Lost);
            }
        }
    }

    /// Without a primary from now on. Whatever else has to be waited for, what is held is verified meanwhile.
    fn orphan(&mut self, core: &mut Core, held: Held) {
        self.stage = Stage::Orphaned { since: core.now, named_in: None, verified: false };
        // What is being read may be older than our loss.
        core.arbiter.void_read();
        core.out.push(Command::Verify { epoch: held.epoch });
        core.out.push(Command::Dial);
    }

    fn on_offer(&mut self, core: &mut Core, conn: ConnId, epoch: u64) {
        self.hear(conn, |hearing| hearing.stream(core.now));
        let refusal = match self.hold {
            // The cell may have been asked for the VM: it says what becomes of that.
            _ if self.is_contesting() => return,
            _ if self.stage != Stage::Following => Some("it does not follow this primary".to_string()),
            _ if core.stop_requested => Some("it is stopping".to_string()),
            Hold::Sealed(held) if held.epoch == epoch => None,
            Hold::Sealed(held) => Some(format!("it holds epoch {}, not {epoch}", held.epoch)),
            _ => Some("it holds no complete checkpoint".to_string()),
        };
        match refusal {
            Some(why) => {
                // The primary goes on with the VM that it offered before, too.
                if let Stage::Offered { .. } = self.stage {
                    self.stage = Stage::Following;
                }
                core.out.push(Command::SendDecline { conn, why });
            }
            None => {
                self.stage = Stage::Offered { epoch };
                core.out.push(Command::Load { epoch });
            }
        }
    }

    /// What the state wants of the arbiter: first its cell, and if that names us with what we hold, the cell itself.
    pub(super) fn pursue(&mut self, core: &mut Core) {
        match self.stage {
            Stage::Following if self.ownerless => core.ask_read(),
            Stage::Following | Stage::Offered { .. } => {}
            // The cell is read at once. It is asked for when our state is verified, and the promise and the primary's
            // head start are over.
            Stage::Orphaned { named_in: None, .. } => core.ask_read(),
            Stage::Orphaned { since, named_in: Some(named), verified } => {
                if verified && core.now >= self.promise_until.max(since + core.policy.takeover_delay_us) {
                    self.contest(core, named, Succession::Failover);
                }
            }
            Stage::Contesting(_) | Stage::Leaving { .. } => core.ask_read(),
        }
    }

    /// Asks the cell, which named us in `generation`, to make us the owner. If it has changed since, it refuses. In a
    /// switchover the primary, which still holds the VM, is the standby until the VM runs here.
    fn contest(&mut self, core: &mut Core, (id, generation): (CellId, u64), succession: Succession) {
        self.stage = Stage::Contesting(succession);
        core.out.push(Command::StopDialling);
        let owner = Some(core.policy.node.clone());
        let standby = match (succession, self.pairing()) {
            (Succession::Switchover, Some(pairing)) => {
                Some(Standby { node: core.policy.peer.clone(), pairing })
            }
            _ => None,
        };
        core.ask_set(Some(generation), Cell { id, generation: generation + 1, owner, standby });
    }

    pub(super) fn on_cell(&mut self, core: &mut Core, answer: Result<Option<Cell>, String>) -> Option<Next> {
        if matches!(self.stage, Stage::Following | Stage::Offered { .. }) {
            self.adopt(core);
            return self.look_for_owner(core, answer);
        }
        let why = match answer {
            Ok(cell) => return self.on_found(core, cell),
            Err(why) => format!("the arbiter does not answer: {why}"),
        };
        if let (true, Hold::Sealed(held)) = (self.has_left(core), self.hold) {
            core.stay(&RequestRefusal::Needed(why));
            self.orphan(core, held);
            return None;
        }
        self.stay_passive(core, why)
    }

    /// This node's cell is the one in which the primary is: from now on this node acts on no other.
    fn adopt(&mut self, core: &mut Core) {
        if let (Some((id, generation)), Some(_)) = (core.words.mine.cell, self.paired)
            && self.cell == Some(id)
        {
            core.act_on(id, generation);
        }
    }

    /// What the cell says while the primary is lost, or while we have asked for the cell.
    fn on_found(&mut self, core: &mut Core, cell: Option<Cell>) -> Option<Next> {
        let Hold::Sealed(held) = self.hold else { return None };
        let verified = !matches!(self.stage, Stage::Orphaned { verified: false, .. });
        let names_us = |cell: &Cell| {
            cell.owner.as_deref() == Some(&core.policy.peer)
                && cell.standby.as_ref().is_some_and(|standby| {
                    standby.node == core.policy.node && standby.pairing == held.pairing
                })
        };
        match cell {
            Some(cell) if names_us(&cell) => {
                match &mut self.stage {
                    Stage::Orphaned { named_in, .. } => {
                        *named_in = Some((cell.id, cell.generation));
                        core.arbiter.hurry();
                    }
                    Stage::Contesting(succession) => {
                        let succession = *succession;
                        self.contest(core, (cell.id, cell.generation), succession);
                    }
                    Stage::Leaving { since } if core.now >= *since + core.policy.patience_us => {
                        core.stay(&RequestRefusal::Needed("it has not asked the arbiter for that".into()));
                        self.why = format!("{}, but the primary did not go on without this node", self.why);
                        self.orphan(core, held);
                    }
                    _ => core.arbiter.wait_until(core.now + core.policy.arbiter_retry_us),
                }
                None
            }
            // The operator says that its owner is gone for good.
            Some(cell) if verified && self.is_released(&cell) => {
                self.contest(core, (cell.id, cell.generation), Succession::Failover);
                None
            }
            // It is ours: by a request whose answer was lost, or by the operator's word.
            Some(cell) if cell.owner.as_deref() == Some(&core.policy.node) && verified => {
                self.on_settled(core, Settled::Won(cell))
            }
            // The cell is as it was when we were welcomed: the primary may be asking it to name us right now, and once
            // it has asked, it counts on us.
            Some(cell) if cell.generation <= self.welcomed_in => {
                if self.has_left(core) {
                    // It may have lost us before it ever asked. A primary that offers a full copy has given ours up.
                    core.out.push(Command::Dial);
                }
                core.arbiter.wait_until(core.now + core.policy.arbiter_retry_us);
                self.stay_passive(core, "the cell does not name this node yet".into())
            }
            // The primary's own cell has moved on from naming us: somebody else has the VM, or it is over.
            Some(cell) if self.cell == Some(cell.id) && cell.owner.as_deref() != Some(&core.policy.node) => {
                self.discard(
                    core,
                    format!(
                        "the cell does not name the state held here: it says {cell}; this node follows anew"
                    ),
                    Ending::Lost,
                );
                self.stop_if_asked(core)
            }
            cell => {
                core.arbiter.wait_until(core.now + core.policy.arbiter_retry_us);
                let says = cell.map_or("there is none".into(), |cell| format!("it says {cell}"));
                let why = format!(
                    "the cell at {} does not show that anybody else went on with the VM: {says}; what is held \
                     here is kept",
                    core.policy.place
                );
                self.stay_passive(core, why)
            }
        }
    }

    /// The primary was told of our leaving long enough ago that the cell should say so.
    fn has_left(&self, core: &Core) -> bool {
        matches!(self.stage, Stage::Leaving { since } if core.now >= since + core.policy.patience_us)
    }

    /// The cell cannot become ours now, and nothing was changed: an offer is declined, an orphan waits on.
    fn stay_passive(&mut self, core: &mut Core, why: String) -> Option<Next> {
        self.why = why;
        match (self.stage, &self.link) {
            (Stage::Contesting(_), Some(link)) => {
                core.out.push(Command::SendDecline { conn: link.conn, why: self.why.clone() });
                self.stage = Stage::Following;
            }
            (Stage::Contesting(_), None) => {
                if let Hold::Sealed(held) = self.hold {
                    self.orphan(core, held);
                }
            }
            _ => {}
        }
        self.stop_if_asked(core)
    }

    pub(super) fn on_settled(&mut self, core: &mut Core, settled: Settled) -> Option<Next> {
        match settled {
            Settled::Won(cell) => {
                let Hold::Sealed(held) = self.hold else {
                    let why = format!("won the arbitration, but holds no state to resume: {}", self.why);
                    return Some(Next::Ended(Exit::Failed(why)));
                };
                // A stop was asked of the backup. Now this node has the only copy of the VM, which nobody asked to end.
                core.stay(&RequestRefusal::TookOver);
                let succession = match self.stage {
                    Stage::Contesting(succession) => succession,
                    _ => Succession::Failover,
                };
                self.note_released(core, held.epoch);
                let former = self.link.take().map(|link| link.conn);
                Some(Next::Heir(Heir::new(core, cell, held, succession, former)))
            }
            Settled::Lost(cell) => self.on_found(core, cell),
            Settled::NotAttempted(why) => {
                self.stay_passive(core, format!("the arbiter does not answer: {why}"))
            }
        }
    }
}
