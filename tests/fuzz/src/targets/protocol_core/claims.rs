//! What must hold of a core's commands, whatever comes: they are followed as the executor carries them out, with what
//! each permits.
//!
//! - I1: output is let go only up to what was acked, and passes freely only while the cell names nobody else and no
//!   request to name somebody may still be carried out.
//! - I2: it is let go only by a permission that is alive, no longer than an answer of the peer gives, and only while
//!   the node knows no newer owner. A backup does not ask for the cell while a lease that it granted may be alive, and
//!   grants none from then on.
//! - I11: no generation that was acted on is set again, nor any of another cell.
//! - One request is under way at the arbiter. Each request of the operator has one answer. Nothing is said on a
//!   connection that is closed, and nothing is done after the end.

use super::{ID, ME, MS, PEER};
use ft_arbiter::{Cell, CellId, Outcome, Standby};
use ftd::role::{
    Command, ConnId, Core, Event, Gone, Micros, NodeRecord, PairingStart, Policy, RequestId, Role, State,
    Succession,
};

/// Where the VM's output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// There is no VM.
    Mute,
    Passing,
    Held,
}

/// What the arbiter was asked and has not answered.
#[derive(Default)]
pub(super) enum Asked {
    #[default]
    Nothing,
    Read,
    Set(Option<u64>, Cell),
}

impl Asked {
    pub(super) fn is_reading(&self) -> bool {
        matches!(self, Self::Read)
    }

    pub(super) fn set(&self) -> Option<(Option<u64>, Cell)> {
        match self {
            Self::Set(expected, new) => Some((*expected, new.clone())),
            _ => None,
        }
    }

    pub(super) fn is_answered(&mut self) {
        *self = Self::Nothing;
    }
}

/// A node, and what is known of it from outside.
pub(super) struct Node {
    pub(super) core: Core,
    now: Micros,
    /// The cell.
    pub(super) truth: Option<Cell>,
    /// As it was before its last change.
    pub(super) before: Option<Cell>,
    /// The newest cell that the node was told of for certain.
    told: Option<Cell>,
    pub(super) asked: Asked,
    /// What was asked for and may still be carried out.
    doubt: Option<(Option<u64>, Cell)>,
    /// An answer to it was lost.
    was_lost: bool,
    id: Option<CellId>,
    /// What was to be recorded, and is not durable.
    pub(super) behind: Option<NodeRecord>,
    pub(super) disk_fails: bool,
    acted: u64,
    pub(super) gate: Gate,
    /// The last pairing that was begun, on either side.
    pairing: u64,
    /// What is being shipped.
    pub(super) shipping: Option<u64>,
    acked: u64,
    /// The VM was offered to the peer.
    has_offered: bool,
    /// No permission lasts longer.
    permitted: Micros,
    /// Of a backup: no contest before.
    promised: Micros,
    /// Of a backup: the primary has offered its VM.
    is_offered: bool,
    /// The operator has taken the word of a host.
    pub(super) is_released: bool,
    takes_over: Option<Succession>,
    conn_last: ConnId,
    open: Vec<ConnId>,
    lease_us: Micros,
    failure_timeout_us_max: Micros,
    proof_us: Micros,
    request_last: RequestId,
    requests: Vec<RequestId>,
    pub(super) has_ended: bool,
}

impl Node {
    pub(super) fn start(policy: Policy, truth: Option<Cell>) -> Self {
        let now = 1_000_000 * MS;
        let (lease_us, proof_us) = (policy.lease_us, policy.proof_us);
        let failure_timeout_us_max = policy.failure_timeout_us;
        let policy_id = policy.record.map(|record| record.cell);
        let acted = policy.record.map_or(0, |record| record.generation);
        let (core, commands) = Core::new(policy, now);
        let mut node = Self {
            core,
            now,
            truth,
            before: None,
            told: None,
            asked: Asked::Nothing,
            doubt: None,
            was_lost: false,
            id: policy_id,
            behind: None,
            disk_fails: false,
            acted,
            gate: Gate::Mute,
            pairing: super::OLD_PAIRING,
            shipping: None,
            acked: 0,
            has_offered: false,
            permitted: 0,
            promised: 0,
            is_offered: false,
            is_released: false,
            takes_over: None,
            conn_last: 0,
            open: Vec::new(),
            lease_us,
            failure_timeout_us_max,
            proof_us,
            request_last: 0,
            requests: Vec::new(),
            has_ended: false,
        };
        for command in commands {
            let none = node.follow(command);
            assert_eq!(none, None, "nothing is known yet");
        }
        node
    }

    pub(super) fn pass(&mut self, us: Micros) {
        self.now += us;
    }

    pub(super) fn later(&self, steps: u8) -> Micros {
        self.now + u64::from(steps) * 100 * MS
    }

    /// A stamp or a time, mostly one of lately.
    pub(super) fn stamp(&self, from: u8) -> Micros {
        match from % 8 {
            0..5 => self.now.saturating_sub(u64::from(from) * MS),
            5 => self.now + u64::from(from),
            6 => u64::from(from),
            _ => u64::MAX - u64::from(from),
        }
    }

    /// One of the last connections.
    pub(super) fn conn(&self, from: u8) -> ConnId {
        self.conn_last.saturating_sub(u64::from(from & 3 == 3))
    }

    /// The pairing that there is, or another one.
    pub(super) fn pairing(&self, from: u8) -> u64 {
        if from & 0x80 == 0 { self.pairing } else { u64::from(from) }
    }

    pub(super) fn connect(&mut self) -> ConnId {
        self.conn_last += 1;
        self.open.push(self.conn_last);
        self.conn_last
    }

    pub(super) fn request(&mut self) -> RequestId {
        self.request_last += 1;
        self.requests.push(self.request_last);
        self.request_last
    }

    /// Somebody else sets the cell.
    pub(super) fn cell_moves(&mut self, owner: Option<String>, standby: Option<Standby>) {
        let generation = self.truth.as_ref().map_or(1, |cell| cell.generation + 1);
        let id = self.truth.as_ref().map_or(ID, |cell| cell.id);
        self.before = self.truth.replace(Cell { id, generation, owner, standby });
    }

    /// A request is carried out, if the cell is still as it must be.
    pub(super) fn set(&mut self, expected: Option<u64>, new: Cell) -> Outcome {
        let is_other = self.truth.as_ref().is_some_and(|cell| cell.id != new.id);
        if is_other || self.truth.as_ref().map(|cell| cell.generation) != expected {
            return Outcome::Lost(self.truth.clone());
        }
        self.before = self.truth.replace(new.clone());
        Outcome::Won(new)
    }

    /// A request whose answer was lost is carried out at last. Nobody is told.
    pub(super) fn late_set(&mut self) -> Option<Event> {
        if !matches!(self.asked, Asked::Set(..)) {
            let (expected, new) = self.doubt.clone()?;
            let _ = self.set(expected, new);
        }
        None
    }

    /// The machine takes over, or not, if it was told to.
    pub(super) fn taking_over(&mut self, well: bool) -> Option<Event> {
        let succession = self.takes_over.take()?;
        if !well {
            return Some(Event::TakeOverFailed("it does not".into()));
        }
        self.gate = if succession == Succession::Failover { Gate::Passing } else { Gate::Held };
        Some(Event::TookOver)
    }

    /// The first checkpoint is captured: output is held from now on.
    pub(super) fn hold(&mut self) {
        if self.gate == Gate::Passing {
            self.gate = Gate::Held;
        }
    }

    /// Of the cell that the node acts on.
    pub(super) fn id(&self) -> CellId {
        self.id.unwrap_or(ID)
    }

    /// The node takes an event, and does what it says.
    pub(super) fn take(&mut self, event: Event) {
        self.note(&event);
        // Unless the core takes it, such a connection ends once it has said what it has to say.
        let ending = match &event {
            Event::PeerHello { conn, .. }
            | Event::Welcomed { conn, .. }
            | Event::PeerGone { conn, why: Gone::Unable(_) } => Some(*conn),
            _ => None,
        };
        let generation = self.core.generation();
        let mut commands = Vec::new();
        self.core.handle(self.now, event, &mut commands);
        let keeps = commands.iter().any(|command| match command {
            Command::Welcome { conn, .. } | Command::Follow { conn, .. } => Some(*conn) == ending,
            _ => false,
        });
        let recorded: Vec<_> = commands.into_iter().filter_map(|command| self.follow(command)).collect();
        // These events come before any other.
        recorded.into_iter().for_each(|event| self.take(event));
        if !keeps {
            self.open.retain(|open| Some(*open) != ending);
        }
        assert!(self.core.generation() >= generation, "it knows less than before");
        self.judge();
    }

    /// What an event makes known or permits.
    fn note(&mut self, event: &Event) {
        match event {
            Event::CellRead(Ok(Some(cell))) => self.learn(cell),
            Event::CellSet(Outcome::Won(cell)) => self.learn(cell),
            Event::CellSet(Outcome::Lost(Some(cell))) => self.learn(cell),
            Event::CellSet(Outcome::NotAttempted(_)) if !self.was_lost => self.doubt = None,
            Event::CellSet(Outcome::Unknown(_)) => self.was_lost = true,
            Event::Ack { conn, epoch, stamp } if self.open.contains(conn) => {
                if self.gate != Gate::Passing {
                    self.acked = self.acked.max(*epoch);
                }
                self.permit(*stamp, self.lease_us);
            }
            Event::Echo { conn, stamp, lease } if self.open.contains(conn) => {
                let max = self.lease_us.max(self.failure_timeout_us_max * 3 / 4);
                self.permit(*stamp, (*lease).min(max));
            }
            Event::PeerGone { conn, why: Gone::Lost(_) | Gone::Bye(_) } => {
                self.open.retain(|open| open != conn)
            }
            Event::Retimed(times) => {
                self.failure_timeout_us_max = self.failure_timeout_us_max.max(times.failure_timeout_us);
            }
            Event::Recorded(_) => self.behind = None,
            Event::Unrecorded { record, .. } => self.behind = Some(*record),
            _ => {}
        }
    }

    fn permit(&mut self, stamp: Micros, lease: Micros) {
        if stamp <= self.now {
            self.permitted = self.permitted.max(stamp + lease);
        }
    }

    /// The node is told of a cell. One that went back, or is another, tells nothing.
    fn learn(&mut self, cell: &Cell) {
        let known = self.told.as_ref().map_or(0, |told| told.generation);
        if self.id.is_some_and(|id| cell.id != id) || cell.generation < known {
            return;
        }
        if self.doubt.as_ref().is_some_and(|(_, new)| new.generation <= cell.generation) {
            self.doubt = None;
        }
        self.told = Some(cell.clone());
    }

    fn owns(&self) -> bool {
        self.told.as_ref().is_some_and(|cell| cell.owner.as_deref() == Some(ME))
    }

    /// The cell names this node, and nobody else; nor may it come to by a request of this node's.
    fn is_alone(&self) -> bool {
        let named = |cell: &Cell| cell.standby.is_some() || cell.owner.as_deref() != Some(ME);
        self.told.as_ref().is_some_and(|cell| !named(cell))
            && !self.doubt.as_ref().is_some_and(|(_, new)| named(new))
    }

    fn is_open(&self, conn: ConnId, command: &Command) {
        assert!(self.open.contains(&conn), "{command:?}: the connection is closed");
    }

    /// Carries out a command. The event that comes of it at once.
    fn follow(&mut self, command: Command) -> Option<Event> {
        let said = format!("{command:?}");
        assert!(!self.has_ended, "{said} after the end");
        match &command {
            Command::ReadCell | Command::ProbeCell => {
                assert!(matches!(self.asked, Asked::Nothing), "{said} beside another request");
                self.asked = Asked::Read;
            }
            Command::CompareAndSet { expected, new } => self.check_set(*expected, new),
            Command::LeaveArbiter => {
                assert!(!matches!(self.asked, Asked::Nothing), "nothing is under way");
            }
            Command::Record(record) => {
                assert!(self.id.is_none_or(|id| record.cell == id), "{said}, of {:?}", self.id);
                assert!(record.generation >= self.acted, "{said}, acted {}", self.acted);
                self.id = Some(record.cell);
                self.acted = record.generation;
                return Some(match self.disk_fails {
                    true => Event::Unrecorded { record: *record, why: "it is full".into() },
                    false => Event::Recorded(*record),
                });
            }
            Command::Boot => {
                assert!(self.is_alone(), "it boots, told {:?}, in doubt {:?}", self.told, self.doubt);
                assert_eq!(self.gate, Gate::Mute, "it boots beside a VM");
                (self.gate, self.has_offered) = (Gate::Passing, false);
            }
            Command::EmitFreely => {
                assert!(self.is_alone(), "output passes, told {:?}, in doubt {:?}", self.told, self.doubt);
                self.has_offered = false;
                if self.gate == Gate::Held {
                    self.gate = Gate::Passing;
                }
            }
            Command::Release { through, until } => {
                assert!(self.owns() && !self.has_offered, "{said}, told {:?}", self.told);
                assert!(*through <= self.acked, "{said}, acked {}", self.acked);
                assert!(
                    self.now < *until && *until <= self.permitted,
                    "{said}, permitted {}",
                    self.permitted
                );
            }
            Command::TakeOver { succession, .. } => {
                assert!(self.owns(), "{said}, told {:?}", self.told);
                assert!(
                    *succession != Succession::Failover || self.is_alone(),
                    "{said}, told {:?}",
                    self.told
                );
                assert_eq!(self.gate, Gate::Mute, "it takes over beside a VM");
                self.takes_over = Some(*succession);
            }
            Command::StopVm => (self.gate, self.takes_over) = (Gate::Mute, None),
            Command::Discard => self.takes_over = None,
            Command::EndPairing => self.shipping = None,
            Command::Thaw => self.has_offered = false,
            Command::Load { .. } => self.is_offered = true,
            Command::Dial | Command::Verify { .. } => self.is_offered = false,
            Command::Answer { request, .. } => {
                let at = self.requests.iter().position(|asked| asked == request);
                self.requests.swap_remove(at.expect("it was asked, and has no answer yet"));
            }
            Command::Exit(_) => self.has_ended = true,
            _ => self.follow_link(&command),
        }
        None
    }

    /// What concerns a connection.
    fn follow_link(&mut self, command: &Command) {
        match command {
            Command::Welcome { conn, pairing, how, .. } => {
                self.is_open(*conn, command);
                assert!(self.owns(), "{command:?}, told {:?}", self.told);
                (self.shipping, self.pairing) = (Some(*pairing), *pairing);
                self.acked = if let PairingStart::ResumeAfter(epoch) = how { *epoch } else { 0 };
            }
            Command::Follow { conn, pairing, .. } => {
                self.is_open(*conn, command);
                (self.pairing, self.is_offered) = (*pairing, false);
            }
            Command::SendOffer { conn, epoch } => {
                self.is_open(*conn, command);
                assert!(*epoch <= self.acked, "{command:?}, acked {}", self.acked);
                self.has_offered = true;
            }
            Command::SendAck { conn, .. } => self.check_answer(*conn, self.lease_us, command),
            Command::SendEcho { conn, lease, .. } => self.check_answer(*conn, *lease, command),
            Command::SendDecline { conn, .. } => {
                self.is_open(*conn, command);
                self.is_offered = false;
            }
            Command::Refuse { conn, .. } | Command::DropLink { conn } => {
                self.is_open(*conn, command);
                self.open.retain(|open| open != conn);
            }
            Command::SendHeartbeat { conn, .. }
            | Command::SendPaired { conn, .. }
            | Command::SendStanding { conn, .. }
            | Command::SendTookOver { conn, .. }
            | Command::SendBye { conn, .. } => self.is_open(*conn, command),
            _ => {}
        }
    }

    /// A backup answers its primary.
    fn check_answer(&mut self, conn: ConnId, lease: Micros, command: &Command) {
        self.is_open(conn, command);
        let takes = |(_, new): &(Option<u64>, Cell)| new.owner.as_deref() == Some(ME);
        assert!(!self.doubt.as_ref().is_some_and(takes), "{command:?} while it asks for the cell");
        self.promised = self.promised.max(self.now + lease);
    }

    fn check_set(&mut self, expected: Option<u64>, new: &Cell) {
        assert!(matches!(self.asked, Asked::Nothing), "{new} is asked for beside another request");
        assert_eq!(new.generation, expected.map_or(1, |expected| expected + 1));
        assert!(expected.unwrap_or(0) >= self.acted, "{new} is asked for, acted {}", self.acted);
        assert!(self.id.is_none_or(|id| new.id == id), "{new} is another cell");
        if new.standby.as_ref().is_some_and(|standby| standby.node == PEER)
            && new.owner.as_deref() == Some(ME)
        {
            assert_ne!(self.gate, Gate::Passing, "{new} is asked for, and output passes");
        }
        let takes = new.owner.as_deref() == Some(ME) && self.core.view().role == Role::Backup;
        if takes && !self.is_offered && !self.is_released {
            assert!(self.now >= self.promised, "{new} is asked for, promised until {}", self.promised);
        }
        if new.owner.is_none() {
            assert_eq!(self.gate, Gate::Mute, "{new} is asked for, and the VM runs");
        }
        self.asked = Asked::Set(expected, new.clone());
        let wanted = Some((expected, new.clone()));
        self.was_lost &= self.doubt == wanted;
        self.doubt = wanted;
    }

    /// What must be so after every event.
    fn judge(&self) {
        let view = self.core.view();
        if let Some(told) = &self.told
            && self.gate == Gate::Passing
        {
            assert_eq!(told.owner.as_deref(), Some(ME), "output passes");
        }
        if view.state == State::Protected {
            assert!(view.arbiter_at.is_some_and(|at| at + self.proof_us >= self.now), "{view:?}");
            assert_eq!(self.behind, None, "{view:?}, and the record is not durable");
        }
    }
}
