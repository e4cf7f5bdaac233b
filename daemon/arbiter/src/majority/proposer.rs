//! One operation on a cell that several members keep: the proposer of CASPaxos, a state machine of events without any
//! I/O.
//!
//! ```text
//!  read: Looking ── a majority has accepted the same ─────────────────────────────> value
//!           │ they differ
//!           v                                                    a majority
//!  set: Preparing ── a majority has promised: carry or change ── Accepting ── has accepted ──> value, won, lost
//!           ^                                                        │
//!           └── some member has promised another round: again ───────┘
//! ```
//!
//! Of what a majority of promises shows, the latest accepted value is the cell, as far as anybody can know: it may be
//! chosen already, and nothing earlier can come to be chosen any more. Whoever changes it proposes the next one in the
//! same round; whoever does not proposes it as it is, and knows after it that it is chosen. So a round that failed
//! at accepting may be completed by any later one. Such a set is known again by the ballot in which it was proposed
//! first ([`SetCell::origin`]); it is won where a later round finds it, or a value that was made of it; lost where a
//! later round has a value chosen whose generations are others' work, or an earlier generation, since generations only
//! grow; and in doubt where that is not known any more.

use super::{AcceptedCell, Ballot, MemberAnswer, MemberAsk, SetCell};
use crate::Cell;
use std::collections::BTreeMap;

/// What an operation is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CellIntent {
    /// To know what the cell holds, if that can be known without a change.
    Read,
    /// To know what it holds, and that it could be set.
    Probe,
    /// To set it.
    Set {
        /// Generation that it must have.
        expected: Option<u64>,
        /// What it becomes.
        new: Cell,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Finding {
    /// To a read and a probe.
    Holds(Option<Cell>),
    /// The set is done.
    Won,
    /// It is not, and cannot happen any more: this is there.
    Lost(Option<Cell>),
    /// Something later is there; nobody knows any more whether the set had been there before it.
    Overtaken,
    /// No majority was to be had.
    NoMajority {
        /// Whether the set may have happened, or may yet.
        in_doubt: bool,
    },
}

/// What is to be done for an operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Proposal {
    /// Every member is to be asked this.
    Ask(MemberAsk),
    /// Another proposer was faster: [`Proposer::begin`] is to be called again, after a while that chance says.
    Again,
    /// It is over.
    Found(Finding),
}

/// The phase of a round.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Looking,
    Preparing,
    Accepting {
        then: Finding,
    },
    /// The round is beaten, or the operation over.
    Idle,
}

/// What a member did in this phase.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Heard {
    Has(Option<AcceptedCell>),
    Accepted,
    Beaten,
    Failed,
}

/// One operation under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proposer {
    members: usize,
    id: u64,
    intent: CellIntent,
    phase: Phase,
    /// Of the round under way.
    ballot: Option<Ballot>,
    /// The highest ballot that any member told.
    seen: Option<Ballot>,
    heard: BTreeMap<usize, Heard>,
    /// The ballot in which the set was proposed first.
    origin: Option<Ballot>,
    /// Members that may have accepted it, as far as no answer denies it: of the round under way, and of those before.
    may_have: usize,
    may_have_had: bool,
}

impl Proposer {
    /// Of an operation on `members` members. `id`: as no other proposer has. `seen`: the highest ballot of this
    /// proposer's operations before.
    #[must_use]
    pub fn new(members: usize, id: u64, seen: Option<Ballot>, intent: CellIntent) -> Self {
        Self {
            members,
            id,
            intent,
            phase: Phase::Idle,
            ballot: None,
            seen,
            heard: BTreeMap::new(),
            origin: None,
            may_have: 0,
            may_have_had: false,
        }
    }

    /// The highest ballot that is known: what the next operation begins from.
    #[must_use]
    pub fn seen(&self) -> Option<Ballot> {
        self.seen
    }

    /// Begins a round.
    pub fn begin(&mut self) -> Proposal {
        self.heard.clear();
        if self.intent == CellIntent::Read && self.ballot.is_none() && self.phase == Phase::Idle {
            self.phase = Phase::Looking;
            return Proposal::Ask(MemberAsk::Look);
        }
        self.prepare()
    }

    fn prepare(&mut self) -> Proposal {
        let ballot = Ballot::above(self.seen, self.id);
        self.may_have_had |= self.may_have > 0;
        self.may_have = 0;
        self.heard.clear();
        (self.phase, self.ballot, self.seen) = (Phase::Preparing, Some(ballot), Some(ballot));
        Proposal::Ask(MemberAsk::Prepare(ballot))
    }

    /// A member has answered the question `ask`, or gave no answer. Answers to anything but the question under way
    /// are nobody's.
    pub fn heard(
        &mut self,
        member: usize,
        ask: &MemberAsk,
        answer: Option<MemberAnswer>,
    ) -> Option<Proposal> {
        let is_open = match (ask, &self.phase) {
            (MemberAsk::Look, Phase::Looking) => true,
            (MemberAsk::Prepare(ballot), Phase::Preparing) => Some(*ballot) == self.ballot,
            (MemberAsk::Accept(accepted), Phase::Accepting { .. }) => Some(accepted.ballot) == self.ballot,
            _ => false,
        };
        if !is_open || self.heard.contains_key(&member) {
            return None;
        }
        let heard = match answer {
            None => Heard::Failed,
            Some(MemberAnswer::Has(accepted)) => Heard::Has(accepted),
            Some(MemberAnswer::Accepted) => Heard::Accepted,
            Some(MemberAnswer::Beaten(promised)) => {
                self.seen = self.seen.max(promised);
                self.may_have = self.may_have.saturating_sub(1);
                Heard::Beaten
            }
        };
        self.heard.insert(member, heard);
        self.judge()
    }

    /// A member was certainly not asked this: it cannot do it any more.
    pub fn unasked(&mut self, member: usize, ask: &MemberAsk) -> Option<Proposal> {
        let is_this = matches!(ask, MemberAsk::Accept(accepted) if Some(accepted.ballot) == self.ballot);
        if is_this && !self.heard.contains_key(&member) {
            self.may_have = self.may_have.saturating_sub(1);
        }
        self.heard(member, ask, None)
    }

    /// Nobody waits any longer.
    pub fn give_up(&mut self) -> Finding {
        self.phase = Phase::Idle;
        let in_doubt = self.may_have_had || self.may_have > 0;
        Finding::NoMajority { in_doubt }
    }

    fn majority(&self) -> usize {
        self.members / 2 + 1
    }

    /// Whether what was heard decides the phase.
    fn judge(&mut self) -> Option<Proposal> {
        let majority = self.majority();
        let accepted = self.heard.values().filter(|heard| **heard == Heard::Accepted).count();
        let told: Vec<Option<AcceptedCell>> = self
            .heard
            .values()
            .filter_map(|heard| if let Heard::Has(a) = heard { Some(a.clone()) } else { None })
            .collect();
        match &self.phase {
            Phase::Accepting { then } if accepted >= majority => {
                let then = then.clone();
                return Some(self.over(then));
            }
            Phase::Preparing if told.len() >= majority => return Some(self.propose(told)),
            Phase::Looking if told.len() >= majority => {
                let first = told[0].as_ref().map(|accepted| accepted.ballot);
                let is_same =
                    told.iter().all(|other| other.as_ref().map(|accepted| accepted.ballot) == first);
                return Some(match is_same {
                    true => {
                        let cell = told.into_iter().next().flatten().and_then(|accepted| accepted.value);
                        self.over(Finding::Holds(cell.map(|set| set.cell)))
                    }
                    false => self.prepare(),
                });
            }
            _ => {}
        }
        // A majority is out of reach.
        let against =
            self.heard.values().filter(|heard| matches!(heard, Heard::Beaten | Heard::Failed)).count();
        if against <= self.members - majority {
            return None;
        }
        let is_beaten = self.heard.values().any(|heard| *heard == Heard::Beaten);
        Some(match is_beaten {
            true => {
                self.phase = Phase::Idle;
                Proposal::Again
            }
            false => {
                let finding = self.give_up();
                Proposal::Found(finding)
            }
        })
    }

    fn over(&mut self, finding: Finding) -> Proposal {
        self.phase = Phase::Idle;
        Proposal::Found(finding)
    }

    /// A majority has promised, and has accepted this.
    fn propose(&mut self, told: Vec<Option<AcceptedCell>>) -> Proposal {
        let Some(ballot) = self.ballot else { unreachable!("a round that was prepared has its ballot") };
        let latest = told.into_iter().flatten().max_by_key(|accepted| accepted.ballot);
        self.seen = self.seen.max(latest.as_ref().map(|latest| latest.ballot));
        let found = latest.and_then(|latest| latest.value);
        let (value, then) = self.step(ballot, found);
        if then == Finding::Won {
            self.may_have = self.members;
        }
        self.heard.clear();
        self.phase = Phase::Accepting { then };
        Proposal::Ask(MemberAsk::Accept(AcceptedCell { ballot, value }))
    }

    /// The value that this round proposes after what was found, and what it means if it is chosen.
    fn step(&mut self, ballot: Ballot, found: Option<SetCell>) -> (Option<SetCell>, Finding) {
        let there = found.as_ref().map(|set| set.cell.clone());
        let CellIntent::Set { expected, new } = &self.intent else { return (found, Finding::Holds(there)) };
        let generation = there.as_ref().map(|cell| cell.generation);
        let is_later = generation >= Some(new.generation);
        if let (true, Some(origin), Some(set)) = (is_later, self.origin, &found) {
            let of_ours = set.origin_of(new.generation);
            return match of_ours {
                Some(of_ours) if of_ours == origin => (found, Finding::Won),
                // Beyond what is known of it; but what all members have refused is nowhere.
                None if self.may_have_had => (found, Finding::Overtaken),
                _ => (found, Finding::Lost(there)),
            };
        }
        if generation == *expected && there.as_ref().is_none_or(|cell| cell.id == new.id) {
            let origin = *self.origin.get_or_insert(ballot);
            return (Some(SetCell::after(found.as_ref(), new.clone(), origin)), Finding::Won);
        }
        (found, Finding::Lost(there))
    }
}
