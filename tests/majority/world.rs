//! Two nodes that set one cell at three members, and what goes on between them.

use std::collections::{BTreeMap, BTreeSet};

use ft_arbiter::majority::{
    AcceptedCell, Ballot, CellIntent, Finding, MemberAnswer, MemberAsk, Proposal, Proposer, Register, SetCell,
};
use ft_arbiter::{Cell, CellId};

use crate::mutant::Mutant;

pub(crate) const NODES: usize = 2;
pub(crate) const MEMBERS: usize = 3;
const MAJORITY: usize = 2;

/// What an operation of a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wish {
    /// The next generation of the cell that the node knows.
    Set,
    Read,
    Probe,
}

/// What may go wrong, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Bounds {
    /// What each node does, one after the other.
    pub wishes: [&'static [Wish]; NODES],
    /// Answers that are lost, questions that are late or come twice, members that restart, nodes that give up early.
    pub faults: u8,
    /// Members whose store is lost.
    pub losses: u8,
    /// No node begins a round beyond this: then it gives up.
    pub rounds: u64,
}

/// What happens next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// A node begins its next operation.
    Wish(usize),
    /// A node begins another round of it.
    Begin(usize),
    /// A member is asked, and its answer heard.
    Exchange(usize, usize),
    /// A member is asked, and its answer lost.
    AnswerLost(usize, usize),
    /// A member gets a question late, and the node waits for it no more.
    Late(usize, usize),
    /// A question cannot be asked.
    Unasked(usize, usize),
    /// A question that was asked comes again.
    Twice(usize, usize),
    /// What is late arrives, and nobody hears the answer.
    Arrives(usize, MemberAsk),
    /// A node waits no more.
    GivesUp(usize),
    /// A member restarts, with what is durable.
    Restarts(usize),
    /// A member's store is lost, and with it its process.
    Loses(usize),
    /// A member that is away cannot be asked.
    Away(usize, usize),
    /// `--rejoin` has waited at this member: nodes have given up what they did, and promises count no more.
    Waited(usize),
    /// And then another member tells it what it has promised and accepted.
    Tells(usize, usize),
}

/// A node with the operation that it is in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Client {
    done: usize,
    seen: Option<Ballot>,
    known: Option<Cell>,
    work: Option<Work>,
}

/// An operation under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Work {
    proposer: Proposer,
    intent: CellIntent,
    /// The question under way, and who has not answered it; none: a round is to be begun.
    ask: Option<(MemberAsk, [bool; MEMBERS])>,
    /// So much was chosen when it began.
    chosen_before: usize,
    /// Where it proposed its own work first.
    origin: Option<Ballot>,
    /// What the first promise showed, for a mutant.
    first: Option<Option<AcceptedCell>>,
}

/// A member: what is durable, and the promise that its process has made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Keeper {
    register: Register,
    live: Option<Ballot>,
    /// Its store is lost.
    away: Option<Away>,
}

/// How far a member has come again whose store is lost.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Away {
    Waits,
    /// It is told what others have: who has told that, and what.
    Asks([bool; MEMBERS], Register),
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    bounds: Bounds,
    mutant: Option<Mutant>,
    faults: u8,
    losses: u8,
    keepers: [Keeper; MEMBERS],
    clients: [Client; NODES],
    late: BTreeSet<(usize, MemberKey)>,
    /// Who has accepted what in which round, until it is chosen or cannot be any more.
    votes: BTreeMap<Ballot, (AcceptedKey, [bool; MEMBERS])>,
    /// What a majority has accepted, in that order, and the latest round in which one has.
    chosen: Vec<Option<SetCell>>,
    chosen_in: Option<Ballot>,
    /// Work that its node was told to be no part of it.
    denied: Vec<Ballot>,
    pub violation: Option<String>,
}

type AcceptedKey = AcceptedCell;

/// A question in an order, for a set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct MemberKey(MemberAsk);

impl MemberKey {
    fn order(&self) -> (Option<Ballot>, bool) {
        match &self.0 {
            MemberAsk::Look => (None, false),
            MemberAsk::Prepare(ballot) => (Some(*ballot), false),
            MemberAsk::Accept(accepted) => (Some(accepted.ballot), true),
        }
    }
}

impl Ord for MemberKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

impl PartialOrd for MemberKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl World {
    pub fn new(bounds: Bounds, mutant: Option<Mutant>) -> Self {
        let client = Client { done: 0, seen: None, known: None, work: None };
        Self {
            bounds,
            mutant,
            faults: bounds.faults,
            losses: bounds.losses,
            keepers: Default::default(),
            clients: [client.clone(), client],
            late: BTreeSet::new(),
            votes: BTreeMap::new(),
            chosen: vec![None],
            chosen_in: None,
            denied: Vec::new(),
            violation: None,
        }
    }

    /// Everything that may happen next.
    pub fn steps(&self, steps: &mut Vec<Step>) {
        if self.violation.is_some() {
            return;
        }
        for (node, client) in self.clients.iter().enumerate() {
            let Some(work) = &client.work else {
                if client.done < self.bounds.wishes[node].len() {
                    steps.push(Step::Wish(node));
                }
                continue;
            };
            let may_begin = work.proposer.seen().is_none_or(|seen| seen.round < self.bounds.rounds);
            if self.faults > 0 || work.ask.is_none() && !may_begin {
                steps.push(Step::GivesUp(node));
            }
            let Some((_, open)) = &work.ask else {
                if may_begin {
                    steps.push(Step::Begin(node));
                }
                continue;
            };
            for member in (0..MEMBERS).filter(|member| open[*member]) {
                if self.keepers[member].away.is_some() {
                    steps.push(Step::Away(node, member));
                    continue;
                }
                steps.push(Step::Exchange(node, member));
                if self.faults > 0 {
                    steps.push(Step::AnswerLost(node, member));
                    steps.push(Step::Late(node, member));
                    steps.push(Step::Unasked(node, member));
                    steps.push(Step::Twice(node, member));
                }
            }
        }
        steps.extend(self.late.iter().map(|(member, key)| Step::Arrives(*member, key.0.clone())));
        if self.faults > 0 {
            let lives = |member: &usize| self.keepers[*member].live.is_some();
            steps.extend((0..MEMBERS).filter(lives).map(Step::Restarts));
        }
        self.steps_of_losses(steps);
    }

    fn steps_of_losses(&self, steps: &mut Vec<Step>) {
        for (member, keeper) in self.keepers.iter().enumerate() {
            match &keeper.away {
                None if self.losses > 0 && keeper.register.promised.is_some() => {
                    steps.push(Step::Loses(member));
                }
                None => {}
                Some(Away::Waits) => steps.push(Step::Waited(member)),
                Some(Away::Asks(told, _)) => {
                    let tells = |other: &usize| {
                        *other != member && !told[*other] && self.keepers[*other].away.is_none()
                    };
                    steps.extend((0..MEMBERS).filter(tells).map(|other| Step::Tells(member, other)));
                }
            }
        }
    }

    /// The world after a step.
    pub fn after(&self, step: Step) -> Self {
        let mut next = self.clone();
        next.take(step);
        next.forget_what_cannot_matter();
        next
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Wish(node) => self.wish(node),
            Step::Begin(node) => {
                let proposal = self.work(node).proposer.begin();
                self.go_on(node, Some(proposal));
            }
            Step::Exchange(node, member) => {
                let ask = self.open(node, member);
                let answer = self.answer(member, &ask);
                let answer = self.falsified(node, &ask, answer);
                let proposal = self.work(node).proposer.heard(member, &ask, Some(answer.clone()));
                let is_enough = self.mutant == Some(Mutant::OneAnswerIsEnough) && ask == MemberAsk::Look;
                let proposal = match is_enough && proposal.is_none() {
                    true => self.work(node).proposer.heard((member + 1) % MEMBERS, &ask, Some(answer)),
                    false => proposal,
                };
                self.go_on(node, proposal);
            }
            Step::AnswerLost(node, member) => {
                self.faults -= 1;
                let ask = self.open(node, member);
                let _ = self.answer(member, &ask);
                let proposal = self.work(node).proposer.heard(member, &ask, None);
                self.go_on(node, proposal);
            }
            Step::Late(node, member) => {
                self.faults -= 1;
                let ask = self.open(node, member);
                self.late.insert((member, MemberKey(ask.clone())));
                let proposal = self.work(node).proposer.heard(member, &ask, None);
                self.go_on(node, proposal);
            }
            Step::Unasked(node, member) => {
                self.faults -= 1;
                let ask = self.open(node, member);
                let proposal = self.work(node).proposer.unasked(member, &ask);
                self.go_on(node, proposal);
            }
            Step::Twice(node, member) => {
                self.faults -= 1;
                let (ask, _) = self.work(node).ask.clone().expect("it is open");
                self.late.insert((member, MemberKey(ask)));
                self.take(Step::Exchange(node, member));
            }
            Step::Arrives(member, ask) => {
                self.late.remove(&(member, MemberKey(ask.clone())));
                let _ = self.answer(member, &ask);
            }
            Step::GivesUp(node) => {
                self.faults = self.faults.saturating_sub(1);
                let finding = self.work(node).proposer.give_up();
                self.go_on(node, Some(Proposal::Found(finding)));
            }
            Step::Restarts(member) => self.restart(member),
            Step::Loses(member) => {
                self.losses -= 1;
                let away = match self.mutant {
                    Some(Mutant::RejoinsAtOnce) => Away::Asks([false; MEMBERS], Register::default()),
                    _ => Away::Waits,
                };
                self.keepers[member] = Keeper { away: Some(away), ..Keeper::default() };
                // What was on its way to the process is lost with it.
                self.late.retain(|(to, _)| *to != member);
            }
            Step::Away(node, member) => {
                let ask = self.open(node, member);
                let proposal = self.work(node).proposer.unasked(member, &ask);
                self.go_on(node, proposal);
            }
            Step::Waited(member) => self.waited(member),
            Step::Tells(member, other) => self.tell(member, other),
        }
    }

    /// As long as `--rejoin` waits no operation lasts, and no promise is kept.
    fn waited(&mut self, member: usize) {
        for node in 0..NODES {
            if self.clients[node].work.is_some() {
                let finding = self.work(node).proposer.give_up();
                self.go_on(node, Some(Proposal::Found(finding)));
            }
        }
        let keepers = &self.keepers;
        let keeps = self.mutant == Some(Mutant::PromisesForEver);
        // A node has what it proposes accepted only by those whose promises it has heard.
        self.late.retain(|(to, key)| match &key.0 {
            MemberAsk::Accept(accepted) => keeps && keepers[*to].live == Some(accepted.ballot),
            MemberAsk::Look | MemberAsk::Prepare(_) => true,
        });
        if !keeps {
            self.keepers.iter_mut().for_each(|keeper| keeper.live = None);
        }
        self.keepers[member].away = Some(Away::Asks([false; MEMBERS], Register::default()));
    }

    /// The new store is made of what a majority of the others know.
    fn tell(&mut self, member: usize, other: usize) {
        let theirs = self.keepers[other].register.clone();
        let needed = if self.mutant == Some(Mutant::RejoinsByOne) { 1 } else { MAJORITY };
        let Some(Away::Asks(mut told, register)) = self.keepers[member].away.take() else { return };
        told[other] = true;
        let register = register.merged(theirs);
        self.keepers[member] = match told.iter().filter(|told| **told).count() < needed {
            true => Keeper { away: Some(Away::Asks(told, register)), ..Keeper::default() },
            false => Keeper { register, ..Keeper::default() },
        };
    }

    fn restart(&mut self, member: usize) {
        self.faults -= 1;
        let keeper = &mut self.keepers[member];
        keeper.live = None;
        match self.mutant {
            Some(Mutant::ForgetsPromise) => {
                keeper.register.promised = keeper.register.accepted.as_ref().map(|accepted| accepted.ballot);
            }
            Some(Mutant::ComesBackEmpty) => keeper.register = Register::default(),
            _ => {}
        }
    }

    fn work(&mut self, node: usize) -> &mut Work {
        self.clients[node].work.as_mut().expect("it is in an operation")
    }

    fn wish(&mut self, node: usize) {
        let chosen_before = self.chosen.len() - 1;
        let client = &mut self.clients[node];
        let wish = self.bounds.wishes[node][client.done];
        let intent = match wish {
            Wish::Read => CellIntent::Read,
            Wish::Probe => CellIntent::Probe,
            Wish::Set => {
                let expected = client.known.as_ref().map(|cell| cell.generation);
                let owner = Some(format!("{node}-{}", client.done));
                let id = CellId(1);
                let new = Cell { id, generation: expected.unwrap_or(0) + 1, owner, standby: None };
                CellIntent::Set { expected, new }
            }
        };
        let mut proposer = Proposer::new(MEMBERS, node as u64, client.seen, intent.clone());
        let proposal = proposer.begin();
        client.work = Some(Work { proposer, intent, ask: None, chosen_before, origin: None, first: None });
        self.go_on(node, Some(proposal));
    }

    /// The question that the member has not answered, which is answered now.
    fn open(&mut self, node: usize, member: usize) -> MemberAsk {
        let (ask, open) = self.work(node).ask.as_mut().expect("it is open");
        open[member] = false;
        ask.clone()
    }

    fn answer(&mut self, member: usize, ask: &MemberAsk) -> MemberAnswer {
        let mutant = self.mutant;
        let keeper = &mut self.keepers[member];
        let (next, answer) = match ask {
            MemberAsk::Accept(accepted) if mutant == Some(Mutant::AcceptsBelowItsPromise) => {
                let register = Register { promised: Some(accepted.ballot), ..keeper.register.clone() };
                register.answer(ask)
            }
            // As a service does whose process has made no such promise.
            MemberAsk::Accept(accepted) if keeper.live != Some(accepted.ballot) => {
                (keeper.register.clone(), MemberAnswer::Beaten(keeper.register.promised))
            }
            _ => keeper.register.answer(ask),
        };
        keeper.register = next;
        match (ask, &answer) {
            (MemberAsk::Prepare(ballot), MemberAnswer::Has(_)) => keeper.live = Some(*ballot),
            (MemberAsk::Accept(accepted), MemberAnswer::Accepted) => self.note_vote(member, accepted),
            _ => {}
        }
        answer
    }

    /// What a mutant hears in the place of an answer.
    fn falsified(&mut self, node: usize, ask: &MemberAsk, answer: MemberAnswer) -> MemberAnswer {
        let (MemberAsk::Prepare(_), MemberAnswer::Has(has)) = (ask, &answer) else { return answer };
        if self.mutant != Some(Mutant::TakesTheEarliest) {
            return answer;
        }
        // Of two promises the later accepted value has the earlier one's ballot, and the other way round.
        match self.work(node).first.replace(has.clone()) {
            Some(Some(first)) if has.is_some() => {
                let has = has.clone().expect("it is some");
                let (early, late) = if first.ballot < has.ballot { (first, has) } else { (has, first) };
                MemberAnswer::Has(Some(AcceptedCell { ballot: late.ballot, value: early.value }))
            }
            _ => answer,
        }
    }

    /// A member has accepted: what a majority has is chosen, and must follow from what was chosen before.
    fn note_vote(&mut self, member: usize, accepted: &AcceptedCell) {
        let vote = self.votes.entry(accepted.ballot).or_insert_with(|| (accepted.clone(), [false; MEMBERS]));
        if vote.0 != *accepted {
            return self.fail(format!("two values in round {}", accepted.ballot));
        }
        vote.1[member] = true;
        if vote.1.iter().filter(|voted| **voted).count() < MAJORITY {
            return;
        }
        self.votes.remove(&accepted.ballot);
        let last = self.chosen.last().expect("it begins with one");
        if self.chosen_in > Some(accepted.ballot) {
            // It comes to a majority after later rounds, which then must have found it.
            if accepted.value.as_ref().is_some_and(|value| !self.is_part(value.origin)) {
                self.fail(format!("{:?} is chosen besides {last:?}", accepted.value));
            }
            return;
        }
        self.chosen_in = Some(accepted.ballot);
        if accepted.value == *last {
            return;
        }
        let follows = match (last, &accepted.value) {
            (None, Some(_)) => true,
            (Some(last), Some(new)) => new.origin_of(last.cell.generation) == Some(last.origin),
            (_, None) => false,
        };
        if !follows {
            return self.fail(format!("{:?} is chosen after {last:?}", accepted.value));
        }
        self.chosen.push(accepted.value.clone());
        for denied in self.denied.clone() {
            if self.is_part(denied) {
                self.fail(format!("{denied} was told to be no part of it, and is"));
            }
        }
    }

    /// Whether this work is part of what is chosen.
    fn is_part(&self, origin: Ballot) -> bool {
        let last = self.chosen.last().and_then(Option::as_ref);
        last.is_some_and(|last| last.origin == origin || last.trail.contains(&origin))
    }

    fn fail(&mut self, text: String) {
        self.violation.get_or_insert(text);
    }

    /// What follows for a node.
    fn go_on(&mut self, node: usize, proposal: Option<Proposal>) {
        let Some(proposal) = proposal else { return };
        let before = self.work(node).ask.take();
        self.work(node).first = None;
        // What was asked of members that have not answered yet is on its way, or never arrives.
        if let Some((ask, open)) = before
            && ask != MemberAsk::Look
        {
            let open = (0..MEMBERS).filter(|member| open[*member] && self.keepers[*member].away.is_none());
            self.late.extend(open.map(|member| (member, MemberKey(ask.clone()))));
        }
        match proposal {
            Proposal::Ask(ask) => {
                let work = self.work(node);
                if let MemberAsk::Accept(AcceptedCell { ballot, value: Some(value) }) = &ask
                    && value.origin == *ballot
                {
                    work.origin.get_or_insert(*ballot);
                }
                work.ask = Some((ask, [true; MEMBERS]));
            }
            Proposal::Again => {}
            Proposal::Found(finding) => self.end(node, finding),
        }
    }

    /// What a node is told must be true.
    fn end(&mut self, node: usize, finding: Finding) {
        let work = self.clients[node].work.take().expect("it is in an operation");
        let client = &mut self.clients[node];
        client.done += 1;
        client.seen = work.proposer.seen();
        let finding = match (self.mutant, finding) {
            (Some(Mutant::UnknownIsNotAttempted), Finding::NoMajority { .. }) => {
                Finding::NoMajority { in_doubt: false }
            }
            (Some(Mutant::UnknownIsWon), Finding::NoMajority { in_doubt: true }) => Finding::Won,
            (_, finding) => finding,
        };
        // Whatever held at one moment of the operation.
        let held = |cell: &Option<Cell>| {
            let chosen = self.chosen[work.chosen_before..].iter();
            chosen.map(|set| set.as_ref().map(|set| set.cell.clone())).any(|held| held == *cell)
        };
        let told = format!("node {node} is told {finding:?} of {:?}", work.intent);
        match (&finding, &work.intent) {
            (Finding::Holds(cell), _) => {
                if !held(cell) {
                    self.fail(format!("{told}, and that never held since"));
                }
                self.clients[node].known = cell.clone();
            }
            (Finding::Won, CellIntent::Set { new, .. }) => {
                if !work.origin.is_some_and(|origin| self.is_part(origin)) {
                    self.fail(format!("{told}, and it is not so"));
                }
                self.clients[node].known = Some(new.clone());
            }
            (Finding::Lost(cell), _) => {
                if !held(cell) {
                    self.fail(format!("{told}, and that never held since"));
                }
                self.clients[node].known = cell.clone();
                self.deny(work.origin, &told);
            }
            (Finding::NoMajority { in_doubt: false }, _) => self.deny(work.origin, &told),
            _ => {}
        }
    }

    fn deny(&mut self, origin: Option<Ballot>, told: &str) {
        let Some(origin) = origin else { return };
        if self.is_part(origin) {
            self.fail(format!("{told}, and it is done"));
        }
        self.denied.push(origin);
    }

    /// Questions that no member would do anything for, and rounds that cannot be chosen any more.
    fn forget_what_cannot_matter(&mut self) {
        if self.mutant == Some(Mutant::AcceptsBelowItsPromise) {
            return;
        }
        let keepers = &self.keepers;
        let forgets = matches!(self.mutant, Some(Mutant::ForgetsPromise | Mutant::ComesBackEmpty))
            || self.mutant.is_some_and(Mutant::is_of_a_lost_store);
        if !forgets {
            self.late.retain(|(member, key)| {
                let promised = keepers[*member].register.promised;
                match &key.0 {
                    MemberAsk::Look => false,
                    MemberAsk::Prepare(ballot) => promised < Some(*ballot),
                    MemberAsk::Accept(accepted) => promised <= Some(accepted.ballot),
                }
            });
            self.votes.retain(|ballot, (_, voted)| {
                let may =
                    |member: &usize| voted[*member] || keepers[*member].register.promised <= Some(*ballot);
                (0..MEMBERS).filter(may).count() >= MAJORITY
            });
        }
    }
}
