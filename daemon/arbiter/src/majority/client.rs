//! A node's way to a cell that several services keep: asks them all at once, each on a thread of its own, so that one
//! that hangs holds nobody up.

use super::{
    Ballot, CellIntent, Finding, MemberAnswer, MemberAsk, MemberRoll, MemberSet, Proposal, Proposer,
};
use crate::clock::since_boot;
use crate::service::{MemberLine, NoVote, ServicePace, ServicePlace};
use crate::{Arbiter, ArbiterError, Cell, MemberTrouble, Outcome, Place, Trouble};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// The first wait after a beaten round is at most so long, each later one up to twice as long as the one before.
const WAIT_FIRST_US: u64 = 4_000;
/// No wait is longer.
const WAIT_MAX_US: u64 = 250_000;

/// How long is waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MajorityPace {
    /// For one member.
    pub member: ServicePace,
    /// For an operation with all of its rounds. What a member was not asked by then it is not asked any more: this is
    /// far below [`PROMISE_KEPT`](crate::service::PROMISE_KEPT).
    pub whole: Duration,
}

impl Default for MajorityPace {
    fn default() -> Self {
        Self { member: ServicePace::default(), whole: Duration::from_secs(4) }
    }
}

/// The cell of one VM that several services keep together.
#[derive(Debug)]
pub struct MajorityArbiter {
    set: MemberSet,
    pace: MajorityPace,
    /// As no other proposer has.
    id: u64,
    seen: Option<Ballot>,
    members: Vec<Sender<Job>>,
    roll: MemberRoll,
}

/// A question to a member.
#[derive(Debug)]
struct Job {
    ask: MemberAsk,
    /// Not asked after this, by the clock that goes on while the host is suspended.
    until: Duration,
    votes: Sender<Vote>,
}

/// What became of it.
#[derive(Debug)]
struct Vote {
    member: usize,
    ask: MemberAsk,
    answer: Result<MemberAnswer, NoVote>,
}

impl MajorityArbiter {
    /// The cell of `vm` in these services, which are all members of `set`; each address is there once. How each of them
    /// answers is noted in `roll`.
    #[must_use]
    pub fn new(
        set: MemberSet,
        places: &[ServicePlace],
        vm: &str,
        pace: MajorityPace,
        roll: &MemberRoll,
    ) -> Self {
        let members = places.iter().enumerate().map(|(member, place)| {
            let (jobs, asked) = channel();
            let line = MemberLine::new(place.clone(), vm, set.clone(), pace.member);
            let worker =
                Member { member, address: place.address, line, prepared: Prepared::Not, roll: roll.clone() };
            // It ends with its jobs, after the call that it is in. A member without a thread counts as one that fails.
            let spawned =
                std::thread::Builder::new().name("ftd-member".into()).spawn(move || worker.run(&asked));
            if let Err(e) = spawned {
                tracing::error!("cannot start a thread for the arbiter at {}: {e}", place.address);
            }
            jobs
        });
        let members = members.collect();
        Self { set, pace, id: chance(), seen: None, members, roll: roll.clone() }
    }

    fn error(&self, trouble: Trouble) -> ArbiterError {
        ArbiterError { place: self.place(), trouble }
    }

    /// What a member has said last that no majority of others makes good: it is in another set.
    fn unlike(&self) -> Option<ArbiterError> {
        let unlike = self.roll.look().into_iter().find_map(|member| match member.trouble {
            Some(trouble @ (Trouble::OtherSet { .. } | Trouble::NoMember)) => Some((member.address, trouble)),
            _ => None,
        });
        let (address, trouble) = unlike?;
        Some(self.error(self.no_majority(vec![MemberTrouble { address, trouble: Box::new(trouble) }])))
    }

    fn no_majority(&self, members: Vec<MemberTrouble>) -> Trouble {
        Trouble::NoMajority { needed: self.set.majority(), of: self.set.addresses().len(), members }
    }

    /// Carries out an operation; with the trouble where there was no majority.
    fn operate(&mut self, intent: CellIntent) -> (Finding, Trouble) {
        let until = since_boot() + self.pace.whole;
        let ms = self.pace.whole.as_millis() as u64;
        let mut proposer = Proposer::new(self.members.len(), self.id, self.seen, intent);
        let mut wait_us = WAIT_FIRST_US;
        let mut next = proposer.begin();
        let found = loop {
            let ask = match next {
                Proposal::Found(finding) => break (finding, Trouble::Overtaken),
                Proposal::Ask(ask) => ask,
                Proposal::Again => {
                    std::thread::sleep(Duration::from_micros(chance() % wait_us));
                    wait_us = (wait_us * 2).min(WAIT_MAX_US);
                    if since_boot() >= until {
                        break (proposer.give_up(), Trouble::Contended { ms });
                    }
                    next = proposer.begin();
                    continue;
                }
            };
            match self.vote(&mut proposer, &ask, until) {
                Ok(Proposal::Found(finding @ Finding::NoMajority { .. })) => {
                    unreachable!("{finding:?} has its trouble")
                }
                Ok(proposal) => next = proposal,
                Err((finding, troubles)) => {
                    let of_member = |(member, trouble): (usize, Trouble)| MemberTrouble {
                        address: self.set.addresses()[member],
                        trouble: Box::new(trouble),
                    };
                    break (finding, self.no_majority(troubles.into_iter().map(of_member).collect()));
                }
            }
        };
        self.seen = proposer.seen();
        found
    }

    /// Asks all members, and what follows from the answers; or the end, with who gave none.
    fn vote(
        &self,
        proposer: &mut Proposer,
        ask: &MemberAsk,
        until: Duration,
    ) -> Result<Proposal, (Finding, BTreeMap<usize, Trouble>)> {
        let (votes, answers) = channel();
        for member in &self.members {
            // One without a thread gives no answer.
            let _ = member.send(Job { ask: ask.clone(), until, votes: votes.clone() });
        }
        drop(votes);
        let mut troubles: BTreeMap<usize, Trouble> = BTreeMap::new();
        let mut silent: Vec<usize> = (0..self.members.len()).collect();
        loop {
            let left = until.saturating_sub(since_boot());
            let Ok(Vote { member, ask, answer }) = answers.recv_timeout(left) else {
                let ms = self.pace.whole.as_millis() as u64;
                troubles.extend(silent.into_iter().map(|member| (member, Trouble::ServiceSilent { ms })));
                return Err((proposer.give_up(), troubles));
            };
            silent.retain(|other| *other != member);
            let proposal = match answer {
                Ok(answer) => proposer.heard(member, &ask, Some(answer)),
                Err(NoVote { trouble, may_happen }) => {
                    troubles.insert(member, trouble);
                    match may_happen {
                        true => proposer.heard(member, &ask, None),
                        false => proposer.unasked(member, &ask),
                    }
                }
            };
            match proposal {
                Some(Proposal::Found(finding @ Finding::NoMajority { .. })) => {
                    return Err((finding, troubles));
                }
                Some(proposal) => return Ok(proposal),
                None => {}
            }
        }
    }

    fn look(&mut self, intent: CellIntent) -> Result<Option<Cell>, ArbiterError> {
        let (finding, trouble) = self.operate(intent);
        match (finding, self.unlike()) {
            (_, Some(unlike)) => Err(unlike),
            (Finding::Holds(cell), None) => Ok(cell),
            (_, None) => Err(self.error(trouble)),
        }
    }
}

impl Arbiter for MajorityArbiter {
    fn read(&mut self) -> Result<Option<Cell>, ArbiterError> {
        self.look(CellIntent::Read)
    }

    fn compare_and_set(&mut self, expected: Option<u64>, new: Cell) -> Outcome {
        if expected.unwrap_or(0).checked_add(1) != Some(new.generation) {
            return Outcome::NotAttempted(self.error(Trouble::Generation { expected, new: new.generation }));
        }
        if let Some(unlike) = self.unlike() {
            return Outcome::NotAttempted(unlike);
        }
        let (finding, trouble) = self.operate(CellIntent::Set { expected, new: new.clone() });
        match finding {
            Finding::Won => Outcome::Won(new),
            Finding::Lost(cell) => Outcome::Lost(cell),
            Finding::NoMajority { in_doubt: false } => Outcome::NotAttempted(self.error(trouble)),
            Finding::NoMajority { in_doubt: true } | Finding::Overtaken | Finding::Holds(_) => {
                Outcome::Unknown(self.error(trouble))
            }
        }
    }

    /// A whole round, which proposes the cell as it is.
    fn probe(&mut self) -> Result<Option<Cell>, ArbiterError> {
        self.look(CellIntent::Probe)
    }

    fn place(&self) -> Place {
        Place::Services(self.set.clone())
    }
}

/// What a member's last preparation came to.
#[derive(Debug)]
enum Prepared {
    Not,
    Promised(Ballot),
    Beaten,
    Failed(Trouble),
}

/// One member, on its thread.
struct Member {
    member: usize,
    address: std::net::SocketAddr,
    line: MemberLine,
    prepared: Prepared,
    roll: MemberRoll,
}

impl Member {
    fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(Job { ask, until, votes }) = jobs.recv() {
            let answer = match since_boot() < until {
                true => self.ask(&ask),
                // Nobody listens any more.
                false => Err(NoVote { trouble: Trouble::ServiceSilent { ms: 0 }, may_happen: false }),
            };
            let _ = votes.send(Vote { member: self.member, ask, answer });
        }
    }

    fn ask(&mut self, ask: &MemberAsk) -> Result<MemberAnswer, NoVote> {
        // It would refuse what it has not promised.
        if let MemberAsk::Accept(accepted) = ask {
            match &self.prepared {
                Prepared::Promised(ballot) if *ballot == accepted.ballot => {}
                Prepared::Failed(trouble) => {
                    return Err(NoVote { trouble: trouble.clone(), may_happen: false });
                }
                Prepared::Promised(_) | Prepared::Beaten | Prepared::Not => {
                    return Ok(MemberAnswer::Beaten(None));
                }
            }
        }
        let answer = self.line.ask(ask.clone());
        if let MemberAsk::Prepare(ballot) = ask {
            self.prepared = match &answer {
                Ok(MemberAnswer::Has(_)) => Prepared::Promised(*ballot),
                Ok(_) => Prepared::Beaten,
                Err(NoVote { trouble, .. }) => Prepared::Failed(trouble.clone()),
            };
        }
        self.roll.note(self.address, answer.as_ref().err().map(|no_vote| no_vote.trouble.clone()));
        answer
    }
}

/// A number never given before, as far as chance allows.
fn chance() -> u64 {
    // Seeded by the system's randomness in every process; the time and the pid only add to it.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u128(std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos());
    hasher.write_u32(std::process::id());
    hasher.finish()
}
