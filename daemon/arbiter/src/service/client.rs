//! A node's way to its VM's cell in a service, and an operator's to all of them.

use super::ARBITER_NAME;
use super::frame::{BadFrame, NoFrame, SERVICE_VERSION, receive, send};
use super::message::{CellChange, Listed, ListedRegister, Question, Refusal, Reply, enclose, open};
use crate::majority::{MemberAnswer, MemberAsk, MemberSet};
use crate::{Arbiter, ArbiterError, Cell, Outcome, Place, Trouble};
use ft_tls::{Channel, Party, PartyKind, Protection, SecuredService, TlsError};
use serde::Serialize;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How long a client waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicePace {
    /// For the connection and its greeting.
    pub connect: Duration,
    /// For an answer.
    pub answer: Duration,
}

impl Default for ServicePace {
    fn default() -> Self {
        Self { connect: Duration::from_millis(800), answer: Duration::from_millis(2000) }
    }
}

/// Which service, and how it is spoken to.
#[derive(Clone, Debug)]
pub struct ServicePlace {
    /// Where it listens.
    pub address: SocketAddr,
    /// The name in its certificate.
    pub name: String,
    /// How connections are made.
    pub protection: Protection,
}

/// In the clear.
impl From<SocketAddr> for ServicePlace {
    fn from(address: SocketAddr) -> Self {
        Self { address, name: ARBITER_NAME.to_owned(), protection: Protection::None }
    }
}

/// The back end "service": the cell of one VM.
#[derive(Debug)]
pub struct ServiceArbiter {
    vm: String,
    line: Line,
}

impl ServiceArbiter {
    /// The cell of `vm` in the service at `place`. Connects when it is asked.
    #[must_use]
    pub fn new(place: impl Into<ServicePlace>, vm: &str, pace: ServicePace) -> Self {
        Self { vm: vm.to_owned(), line: Line::new(place.into(), pace) }
    }

    fn ask_for_cell(&mut self, question: &Question) -> Result<Option<Cell>, ArbiterError> {
        let reply = self.line.ask_again(question);
        let trouble = match reply {
            Ok(Reply::Cell(cell)) => return Ok(cell),
            Ok(Reply::Refused(refusal)) => refusal.into_trouble(&self.vm),
            Ok(other) => unfitting(&other),
            Err(failure) => failure.trouble,
        };
        Err(self.line.error(trouble))
    }
}

impl Arbiter for ServiceArbiter {
    fn read(&mut self) -> Result<Option<Cell>, ArbiterError> {
        self.ask_for_cell(&Question::Read { vm: self.vm.clone() })
    }

    fn compare_and_set(&mut self, expected: Option<u64>, new: Cell) -> Outcome {
        if expected.unwrap_or(0).checked_add(1) != Some(new.generation) {
            return Outcome::NotAttempted(
                self.line.error(Trouble::Generation { expected, new: new.generation }),
            );
        }
        let question = Question::Set { vm: self.vm.clone(), expected, new: new.clone() };
        match self.line.ask(&question) {
            Ok(Reply::Won) => Outcome::Won(new),
            Ok(Reply::Lost(cell)) => Outcome::Lost(cell),
            Ok(Reply::Refused(refusal)) => {
                Outcome::NotAttempted(self.line.error(refusal.into_trouble(&self.vm)))
            }
            Ok(Reply::InDoubt { reason }) => {
                Outcome::Unknown(self.line.error(Trouble::StoreInDoubt { reason }))
            }
            Ok(other) => Outcome::Unknown(self.line.error(unfitting(&other))),
            Err(Failure { trouble, is_sent: false }) => Outcome::NotAttempted(self.line.error(trouble)),
            Err(Failure { trouble, is_sent: true }) => Outcome::Unknown(self.line.error(trouble)),
        }
    }

    /// Has the service write beside the cells, in the commit that sets share.
    fn probe(&mut self) -> Result<Option<Cell>, ArbiterError> {
        self.ask_for_cell(&Question::Probe { vm: self.vm.clone() })
    }

    fn place(&self) -> Place {
        Place::Service(self.line.place.address)
    }
}

/// An operator's way to all cells of a service.
#[derive(Debug)]
pub struct ServiceDesk(Line);

impl ServiceDesk {
    /// The service at `place`.
    #[must_use]
    pub fn new(place: impl Into<ServicePlace>, pace: ServicePace) -> Self {
        Self(Line::new(place.into(), pace))
    }

    /// All cells, by the names of their VMs.
    pub fn list(&mut self) -> Result<Vec<Listed>, ArbiterError> {
        let mut all: Vec<Listed> = Vec::new();
        loop {
            let after = all.last().map_or_else(String::new, |last| last.vm.clone());
            match self.0.ask_again(&Question::List { after }) {
                Ok(Reply::Listed(some)) if some.is_empty() => return Ok(all),
                Ok(Reply::Listed(some)) => all.extend(some),
                other => return Err(self.failed("", other)),
            }
        }
    }

    /// Whose member the service is, and what it keeps; none: it keeps cells alone.
    pub fn registers(&mut self) -> Result<Option<(MemberSet, Vec<ListedRegister>)>, ArbiterError> {
        let mut all: Vec<ListedRegister> = Vec::new();
        loop {
            let after = all.last().map_or_else(String::new, |last| last.vm.clone());
            match self.0.ask_again(&Question::Registers { after }) {
                Ok(Reply::Registers { set: None, .. }) => return Ok(None),
                Ok(Reply::Registers { set: Some(set), some }) if some.is_empty() => {
                    return Ok(Some((set, all)));
                }
                Ok(Reply::Registers { some, .. }) => all.extend(some),
                // One that knows no members refuses what it does not know.
                Ok(Reply::Refused(Refusal::Question { reason })) if reason.contains("unknown variant") => {
                    return Ok(None);
                }
                other => return Err(self.failed("", other)),
            }
        }
    }

    /// The last changes of a VM's cell, the oldest first.
    pub fn history(&mut self, vm: &str) -> Result<Vec<CellChange>, ArbiterError> {
        match self.0.ask_again(&Question::History { vm: vm.to_owned() }) {
            Ok(Reply::Changes(changes)) => Ok(changes),
            other => Err(self.failed(vm, other)),
        }
    }

    fn failed(&self, vm: &str, reply: Result<Reply, Failure>) -> ArbiterError {
        self.0.error(match reply {
            Ok(Reply::Refused(refusal)) => refusal.into_trouble(vm),
            Ok(other) => unfitting(&other),
            Err(failure) => failure.trouble,
        })
    }
}

/// A node's way to one of the members that keep a cell together.
#[derive(Debug)]
pub(crate) struct MemberLine {
    line: Line,
    vm: String,
    set: MemberSet,
}

/// A member gave no answer: why, and whether it may do what it was asked.
#[derive(Debug)]
pub(crate) struct NoVote {
    pub trouble: Trouble,
    pub may_happen: bool,
}

impl MemberLine {
    pub(crate) fn new(place: ServicePlace, vm: &str, set: MemberSet, pace: ServicePace) -> Self {
        Self { line: Line::new(place, pace), vm: vm.to_owned(), set }
    }

    /// Asks. A look and a preparation may be asked twice: the second preparation is beaten by the first.
    pub(crate) fn ask(&mut self, ask: MemberAsk) -> Result<MemberAnswer, NoVote> {
        let is_repeatable = !matches!(ask, MemberAsk::Accept(_));
        let question = Question::Member { vm: self.vm.clone(), set: self.set.clone(), ask };
        let reply = match is_repeatable {
            true => self.line.ask_again(&question),
            false => self.line.ask(&question),
        };
        let not = |trouble, may_happen| Err(NoVote { trouble, may_happen });
        match reply {
            Ok(Reply::Member(answer)) => Ok(answer),
            Ok(Reply::Refused(refusal)) => not(refusal.into_trouble(&self.vm), false),
            Ok(Reply::InDoubt { reason }) => not(Trouble::StoreInDoubt { reason }, true),
            Ok(other) => not(unfitting(&other), true),
            Err(Failure { trouble, is_sent }) => not(trouble, is_sent),
        }
    }
}

/// No answer: why, and whether the question may have reached the service.
#[derive(Debug)]
struct Failure {
    trouble: Trouble,
    is_sent: bool,
}

/// A connection that is made when it is needed.
#[derive(Debug)]
struct Line {
    place: ServicePlace,
    pace: ServicePace,
    stream: Option<Channel>,
    /// Of the question asked last.
    id: u64,
}

impl Line {
    fn new(place: ServicePlace, pace: ServicePace) -> Self {
        Self { place, pace, stream: None, id: 0 }
    }

    fn error(&self, trouble: Trouble) -> ArbiterError {
        ArbiterError { place: Place::Service(self.place.address), trouble }
    }

    /// Asks what may be asked twice: a connection that has ended meanwhile is made anew.
    fn ask_again(&mut self, question: &impl Serialize) -> Result<Reply, Failure> {
        let had_stream = self.stream.is_some();
        match self.ask(question) {
            Err(Failure { trouble: Trouble::Cut { .. }, .. }) if had_stream => self.ask(question),
            reply => reply,
        }
    }

    /// Asks once. A connection whose question has no answer is not used again, so that a late answer finds nobody.
    fn ask(&mut self, question: &impl Serialize) -> Result<Reply, Failure> {
        let unsent = |trouble| Failure { trouble, is_sent: false };
        let mut stream = match self.stream.take().filter(is_quiet) {
            Some(stream) => stream,
            None => self.connect().map_err(unsent)?,
        };
        self.id += 1;
        let mut converse = || -> Result<Reply, NoFrame> {
            let deadline = Instant::now() + self.pace.answer;
            send(&mut stream, &enclose(self.id, question), self.pace.answer)?;
            let left = deadline.saturating_duration_since(Instant::now());
            let frame = receive(&mut stream, left, left)?;
            if frame.id != self.id {
                let what = format!("it answers question {} instead of {}", frame.id, self.id);
                return Err(io::Error::new(io::ErrorKind::InvalidData, what).into());
            }
            Ok(open(&frame).map_err(|reason| io::Error::new(io::ErrorKind::InvalidData, reason))?)
        };
        let reply =
            converse().map_err(|e| Failure { trouble: self.trouble(e, self.pace.answer), is_sent: true })?;
        self.stream = Some(stream);
        Ok(reply)
    }

    /// Connects and waits for the greeting.
    fn connect(&self) -> Result<Channel, Trouble> {
        let limit = self.pace.connect;
        let deadline = Instant::now() + limit;
        let unreachable = |e: io::Error| match e.kind() {
            io::ErrorKind::TimedOut => Trouble::ServiceSilent { ms: limit.as_millis() as u64 },
            _ => Trouble::Unreachable { reason: e.to_string() },
        };
        let socket = TcpStream::connect_timeout(&self.place.address, limit).map_err(unreachable)?;
        socket.set_nodelay(true).map_err(unreachable)?;
        let unproven = |reason: String| Trouble::Unproven { reason };
        let party = Party::new(PartyKind::Arbiter, &self.place.name).map_err(|e| unproven(e.to_string()))?;
        let shaken = self.place.protection.dial(socket, &party, SecuredService::Arbiter, deadline);
        let mut stream = shaken.map_err(|e| match e {
            TlsError::TimedOut => Trouble::ServiceSilent { ms: limit.as_millis() as u64 },
            TlsError::Io(e) => Trouble::Cut { reason: e.to_string() },
            e => unproven(e.to_string()),
        })?;
        let left = deadline.saturating_duration_since(Instant::now());
        let greeting = receive(&mut stream, left, left).map_err(|e| self.trouble(e, limit))?;
        match open(&greeting).map_err(|reason| Trouble::NotAService { reason })? {
            Reply::Welcome => Ok(stream),
            Reply::Refused(refusal) => Err(refusal.into_trouble("")),
            other => Err(unfitting(&other)),
        }
    }

    fn trouble(&self, e: NoFrame, limit: Duration) -> Trouble {
        match e {
            e if e.is_timeout() => Trouble::ServiceSilent { ms: limit.as_millis() as u64 },
            NoFrame::Bad(BadFrame::Version(theirs)) => {
                Trouble::ServiceVersion { theirs, ours: SERVICE_VERSION }
            }
            NoFrame::Bad(bad) => Trouble::NotAService { reason: bad.to_string() },
            // It has judged this side's certificate after the handshake was over here.
            NoFrame::Io(e) if e.get_ref().is_some_and(|e| e.is::<TlsError>()) => {
                Trouble::Unproven { reason: e.to_string() }
            }
            NoFrame::Io(e) if e.kind() == io::ErrorKind::InvalidData => {
                Trouble::NotAService { reason: e.to_string() }
            }
            NoFrame::Io(e) => Trouble::Cut { reason: e.to_string() },
        }
    }
}

impl Refusal {
    fn into_trouble(self, vm: &str) -> Trouble {
        match self {
            Self::Busy { reason } => Trouble::Refused { reason },
            Self::Question { reason } => Trouble::Refused { reason },
            Self::Damaged { reason } => Trouble::DamagedRecord { vm: vm.to_owned(), reason },
            Self::Store { reason } => Trouble::Refused { reason },
            Self::OtherSet { set } => Trouble::OtherSet { theirs: set },
            Self::Alone => Trouble::NoMember,
            Self::Together { set } => Trouble::KeptTogether { set },
            Self::Full => Trouble::Refused { reason: "its store has as many cells as it may".into() },
        }
    }
}

/// Whether nothing has come over it meanwhile, neither bytes nor its end.
fn is_quiet(stream: &Channel) -> bool {
    let socket = stream.socket();
    let peeked = || {
        socket.set_nonblocking(true)?;
        let nothing = (&*socket).read(&mut [0]).map(drop);
        socket.set_nonblocking(false)?;
        nothing
    };
    peeked().is_err_and(|e: io::Error| e.kind() == io::ErrorKind::WouldBlock)
}

fn unfitting(reply: &Reply) -> Trouble {
    Trouble::NotAService { reason: format!("its answer fits no such question: {reply:?}") }
}
