//! The nodes' arbiter threads: each drives the real file arbiter, one call after the other, over the one shared
//! directory. Calls arrive late, fail before or after they took effect, hang, or are carried out twice; a process may
//! die with a call on its way.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::path::Path;

use ft_arbiter::file::{Answer, Attempt, Call, FileCell, Next, generation_of};
use ft_arbiter::{ArbiterError, Cell, CellId, Outcome, Trouble};
use ftd::role::{Event, Micros};
use nix::errno::Errno;
use rand::Rng;

use crate::directory::SharedDirectory;
use crate::model::{Ask, Input, NAMES, index_of};
use crate::mutant::Mutant;
use crate::schedule::{Act, Hook};
use crate::stats::Count;
use crate::trace;
use crate::world::{End, World};

/// Errors that leave it open whether the call was carried out.
const DOUBTFUL: [Errno; 3] = [Errno::EIO, Errno::ETIMEDOUT, Errno::ESTALE];
/// Errors of a storage that has refused the call.
const REFUSED: [Errno; 3] = [Errno::ENOSPC, Errno::EROFS, Errno::EACCES];

/// Who set a generation.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub cell: Cell,
    pub node: usize,
    pub inc: u32,
}

/// The cell, all that it ever was, the directory that it is in, and what is on its way there.
#[derive(Debug, Default)]
pub(crate) struct Arbiter {
    /// The truth: the highest generation that was ever linked, and not lost before anybody was told of it.
    pub cell: Option<Cell>,
    pub log: BTreeMap<u64, Entry>,
    directory: SharedDirectory,
    /// A node's path leads to another directory.
    elsewhere: [Option<SharedDirectory>; 2],
    threads: [Thread; 2],
    flights: BTreeMap<u64, Flight>,
    calls: u64,
    /// The highest generation that any process was told of.
    told: u64,
    /// When a node's arbiter last told it the cell as it is, by the world's clock, and the highest generation of all.
    answered: [Option<(Micros, u64)>; 2],
    pub down: [u32; 2],
    /// Calls that this node makes now do not return.
    pub swallows: [u32; 2],
    /// This node's next link fails, and is carried out later.
    pub jam: [bool; 2],
    pub flaky: u32,
    pub slow_us: Micros,
}

/// A process's thread that talks to the arbiter.
#[derive(Debug, Default)]
struct Thread {
    inc: u32,
    questions: VecDeque<Ask>,
    work: Option<Work>,
    /// Operations that it no longer waits for, each on a thread that goes on with it.
    left: Vec<Work>,
}

impl Thread {
    /// Everything that it or a thread left behind may still do.
    fn works(&self) -> impl Iterator<Item = &Work> {
        self.work.iter().chain(&self.left)
    }
}

/// An operation, and the call that it waits for.
#[derive(Debug)]
struct Work {
    ask: Ask,
    steps: Steps,
    awaits: u64,
}

#[derive(Debug)]
enum Steps {
    Read(Attempt<Result<Option<Cell>, ArbiterError>>),
    Probe(Attempt<Result<Option<Cell>, ArbiterError>>),
    Set(Attempt<Outcome>),
}

impl Steps {
    fn advance(&mut self, answer: Option<Answer>) -> Next<Event> {
        fn one<T>(attempt: &mut Attempt<T>, answer: Option<Answer>, event: fn(T) -> Event) -> Next<Event> {
            let next = match answer {
                None => attempt.begin(),
                Some(answer) => attempt.resume(answer),
            };
            match next {
                Next::Call(call) => Next::Call(call),
                Next::Done(result) => Next::Done(event(result)),
            }
        }
        match self {
            Self::Read(attempt) | Self::Probe(attempt) => one(attempt, answer, Event::CellRead),
            Self::Set(attempt) => one(attempt, answer, Event::CellSet),
        }
    }
}

/// A call on its way to the storage.
#[derive(Clone, Debug)]
struct Flight {
    n: usize,
    inc: u32,
    call: Call,
    /// What the operation that it belongs to would set.
    new: Option<Cell>,
    /// Nobody waits for it any more, or it has suffered enough: it is carried out now.
    late: bool,
    /// Until then, nothing else that its node asks comes through.
    jams: bool,
}

impl Arbiter {
    /// What may still be set by an operation under way, or by a link that nobody waits for any more.
    pub fn may_be_set<'a>(
        &'a self,
        lives: impl Fn(usize, u32) -> bool + 'a,
    ) -> impl Iterator<Item = &'a Cell> {
        let asked = self.threads.iter().enumerate().filter(move |(n, thread)| lives(*n, thread.inc));
        let asked = asked.flat_map(|(_, thread)| thread.works()).filter_map(|work| match &work.ask {
            Ask::Set { new, .. } => Some(new),
            Ask::Read | Ask::Probe => None,
        });
        let linked = self.flights.values().filter(|flight| matches!(flight.call, Call::Link { .. }));
        asked.chain(linked.filter_map(|flight| flight.new.as_ref()))
    }

    /// Whether this process waits for the answer to a request that makes it an owner without a standby.
    pub fn is_asked_for_alone(&self, n: usize, inc: u32) -> bool {
        let thread = &self.threads[n];
        // One that was overtaken by its own second attempt does nothing any more.
        let next = self.cell.as_ref().map_or(1, |cell| cell.generation + 1);
        let is_alone = |work: &Work| match &work.ask {
            Ask::Set { new, .. } => new.generation >= next && new.owner.is_some() && new.standby.is_none(),
            Ask::Read | Ask::Probe => false,
        };
        thread.inc == inc && thread.works().any(is_alone)
    }

    /// Whether something else is in the place of the cell.
    pub fn is_hidden(&self) -> bool {
        self.directory.is_hidden()
    }
}

impl World {
    /// A node asks the arbiter.
    pub fn ask(&mut self, n: usize, ask: Ask) {
        match ask {
            Ask::Read => self.hook(Hook::ReadSent),
            Ask::Probe => {}
            Ask::Set { .. } => self.hook(Hook::SetSent),
        }
        let inc = self.nodes[n].inc;
        let thread = &mut self.arbiter.threads[n];
        if thread.inc != inc {
            if thread.work.is_some() {
                self.stats.add(Count::CutOff);
            }
            *thread = Thread { inc, ..Thread::default() };
        }
        thread.questions.push_back(ask);
        if thread.work.is_none() {
            self.next_question(n);
        }
    }

    /// A node waits no longer for the call under way, if there is one.
    pub fn leave_call(&mut self, n: usize) {
        let inc = self.nodes[n].inc;
        let thread = &mut self.arbiter.threads[n];
        let Some(work) = thread.work.take_if(|_| thread.inc == inc) else { return };
        let error = ArbiterError {
            place: FileCell::new(Path::new("/shared/vm.cell"), "vm").place(),
            trouble: Trouble::NoAnswer { seconds: 10 },
        };
        let event = match work.ask {
            Ask::Read | Ask::Probe => Event::CellRead(Err(error)),
            Ask::Set { .. } => Event::CellSet(Outcome::Unknown(error)),
        };
        let ask = work.ask.clone();
        thread.left.push(work);
        self.stats.add(Count::CallLeft);
        self.told(n, &ask, event);
        self.next_question(n);
    }

    fn next_question(&mut self, n: usize) {
        let Some(ask) = self.arbiter.threads[n].questions.pop_front() else { return };
        let file = FileCell::new(Path::new("/shared/vm.cell"), "vm");
        let unique = format!("{}-{}", NAMES[n], self.arbiter.calls);
        let mut steps = match &ask {
            Ask::Read => Steps::Read(file.read()),
            Ask::Probe => Steps::Probe(file.probe(&unique)),
            Ask::Set { expected, new } => Steps::Set(file.compare_and_set(*expected, new.clone(), &unique)),
        };
        let next = steps.advance(None);
        match self.proceed(n, ask, steps, next) {
            ControlFlow::Continue(work) => self.arbiter.threads[n].work = Some(work),
            ControlFlow::Break((ask, event)) => {
                self.told(n, &ask, event);
                self.next_question(n);
            }
        }
    }

    /// Makes the next call of an operation, or brings its result.
    fn proceed(
        &mut self,
        n: usize,
        ask: Ask,
        steps: Steps,
        next: Next<Event>,
    ) -> ControlFlow<(Ask, Event), Work> {
        match next {
            Next::Call(call) => {
                let new = match &ask {
                    Ask::Set { new, .. } => Some(new.clone()),
                    Ask::Read | Ask::Probe => None,
                };
                if is_claim(&call) {
                    self.hook(Hook::LinkSent);
                }
                let flight = Flight { n, inc: self.nodes[n].inc, call, new, late: false, jams: false };
                let latency = self.arbiter_latency();
                let awaits = self.depart(flight, latency);
                ControlFlow::Continue(Work { ask, steps, awaits })
            }
            Next::Done(event) => ControlFlow::Break((ask, event)),
        }
    }

    fn depart(&mut self, flight: Flight, us: Micros) -> u64 {
        let id = self.arbiter.calls;
        self.arbiter.calls += 1;
        self.arbiter.flights.insert(id, flight);
        self.later(us, Act::CallArrives { id });
        id
    }

    fn arbiter_latency(&mut self) -> Micros {
        // Slow on the way there, or on the way back: then the answer is old.
        let slow = self.arbiter.slow_us;
        let slow = if slow > 0 && self.rng.random_bool(0.15) { self.rng.random_range(0..=slow) } else { 0 };
        self.rng.random_range(0..=self.knobs.arbiter_us / 4) + slow
    }

    /// A call reaches the storage, if it can be reached.
    pub fn call_arrives(&mut self, id: u64) {
        let Some(flight) = self.arbiter.flights.get(&id).cloned() else { return };
        let down = self.arbiter.down[flight.n] > 0;
        if down && self.knobs.hard_mount && !flight.late {
            // Sent again until the storage can be reached.
            self.stats.add(Count::CallHung);
            let again = self.rng.random_range(1_000..10_000);
            return self.later(again, Act::CallArrives { id });
        }
        self.arbiter.flights.remove(&id);
        if self.arbiter.swallows[flight.n] > 0 && !flight.late {
            return self.swallow(id, flight);
        }
        // A claim has one link among many calls: that is where a failure hurts.
        let likely = if is_claim(&flight.call) { 0.5 } else { 0.2 };
        let flaky = self.arbiter.flaky > 0 && self.rng.random_bool(likely);
        if is_claim(&flight.call) && std::mem::take(&mut self.arbiter.jam[flight.n]) {
            self.stats.add(Count::FaultLinkJams);
            return self.jam(id, flight);
        }
        if flight.late || !down && !flaky {
            if flight.jams {
                self.arbiter.down[flight.n] = self.arbiter.down[flight.n].saturating_sub(1);
            }
            return self.carry_out_and_answer(id, flight, 1);
        }
        match self.rng.random_range(0..10) {
            0..3 => {
                let errno = if self.rng.random_bool(0.5) { REFUSED } else { DOUBTFUL };
                self.fail_call(id, &flight, errno);
            }
            3..5 => {
                let _unanswered = self.carry_out(&flight);
                self.stats.add(Count::CallUnanswered);
                // A call that was sent twice may have been carried out by its first try, and refused at its second.
                let refused = is_claim(&flight.call) && self.rng.random_bool(0.5);
                self.fail_call(id, &flight, if refused { REFUSED } else { DOUBTFUL });
            }
            5..7 => self.jam(id, flight),
            7..9 if !down => {
                self.stats.add(Count::CallTwice);
                self.carry_out_and_answer(id, flight, 2);
            }
            _ => {
                self.stats.add(Count::CallHung);
                self.arbiter.flights.insert(id, Flight { late: true, ..flight });
                let long = self.rng.random_range(0..800_000);
                self.later(long, Act::CallArrives { id });
            }
        }
    }

    /// A call does not return before long: the storage was replaced under it. Some never do.
    fn swallow(&mut self, id: u64, flight: Flight) {
        self.stats.add(Count::CallSwallowed);
        if self.rng.random_bool(0.5) {
            self.arbiter.flights.insert(id, Flight { late: true, ..flight });
            let long = self.rng.random_range(0..4_000_000);
            self.later(long, Act::CallArrives { id });
        }
    }

    /// A call is carried out when everybody has given up on it. What the node asks next comes after it.
    fn jam(&mut self, id: u64, flight: Flight) {
        self.fail_call(id, &flight, DOUBTFUL);
        self.stats.add(Count::CallLate);
        self.arbiter.down[flight.n] += 1;
        let late = self.rng.random_range(0..800_000);
        self.depart(Flight { late: true, jams: true, ..flight }, late);
    }

    fn fail_call(&mut self, id: u64, flight: &Flight, errno: [Errno; 3]) {
        self.stats.add(Count::CallFailed);
        let wait = self.rng.random_range(500..=self.knobs.failure_timeout_us);
        let errno = errno[self.rng.random_range(0..3)];
        let Flight { n, inc, .. } = *flight;
        self.later(wait, Act::CallAnswered { n, inc, id, answer: Err(errno) });
    }

    fn carry_out_and_answer(&mut self, id: u64, flight: Flight, times: u32) {
        let Flight { n, inc, .. } = flight;
        // With its process, a call may be gone or go on.
        if !self.lives(n, inc) && self.rng.random_bool(0.5) {
            return;
        }
        let mut answer = self.carry_out(&flight);
        for _ in 1..times {
            answer = self.carry_out(&flight);
        }
        let latency = self.arbiter_latency();
        self.later(latency, Act::CallAnswered { n, inc, id, answer });
    }

    fn carry_out(&mut self, flight: &Flight) -> Answer {
        if let Some(elsewhere) = &mut self.arbiter.elsewhere[flight.n] {
            let answer = elsewhere.perform(&flight.call, self.now, self.mutant);
            if is_claim(&flight.call) && answer.is_ok() {
                self.fail(format!(
                    "I11: {} sets a cell that is not its VM's: {:?}",
                    NAMES[flight.n], flight.new
                ));
            }
            return answer;
        }
        let answer = self.arbiter.directory.perform(&flight.call, self.now, self.mutant);
        trace!(self, "storage: {} {:?}: {:?}", NAMES[flight.n], Brief(&flight.call), answer.as_ref().err());
        if let (Call::Link { to, .. }, Ok(_), Some(new)) = (&flight.call, &answer, &flight.new)
            && generation_of(to).is_some()
        {
            let waits = self.arbiter.threads[flight.n].inc == flight.inc && self.lives(flight.n, flight.inc);
            if flight.late || !waits {
                self.stats.add(Count::CasLate);
            }
            self.set_cell(flight.n, flight.inc, new.clone());
        }
        answer
    }

    /// The answer to a call comes back to the process that waits for it, if it still does.
    pub fn call_answered(&mut self, n: usize, id: u64, answer: Answer) {
        let inc = self.nodes[n].inc;
        let thread = &mut self.arbiter.threads[n];
        if thread.inc != inc {
            return;
        }
        if let Some(mut work) = thread.work.take_if(|work| work.awaits == id) {
            let next = work.steps.advance(Some(answer));
            match self.proceed(n, work.ask, work.steps, next) {
                ControlFlow::Continue(work) => self.arbiter.threads[n].work = Some(work),
                ControlFlow::Break((ask, event)) => {
                    self.told(n, &ask, event);
                    self.next_question(n);
                }
            }
        } else if let Some(at) = thread.left.iter().position(|work| work.awaits == id) {
            let mut work = thread.left.swap_remove(at);
            let next = work.steps.advance(Some(answer));
            match self.proceed(n, work.ask, work.steps, next) {
                ControlFlow::Continue(work) => self.arbiter.threads[n].left.push(work),
                // Nobody is told.
                ControlFlow::Break(_) => self.stats.add(Count::ReturnedLate),
            }
        }
    }

    /// An operation is over.
    fn told(&mut self, n: usize, ask: &Ask, mut event: Event) {
        let cell = match &event {
            Event::CellRead(Ok(cell)) | Event::CellSet(Outcome::Lost(cell)) => cell.as_ref(),
            Event::CellSet(Outcome::Won(cell)) => Some(cell),
            _ => None,
        };
        let generation = cell.map_or(0, |cell| cell.generation);
        let found = cell.map(|cell| cell.id);
        if found.is_some() && found == self.arbiter.cell.as_ref().map(|cell| cell.id) {
            self.arbiter.told = self.arbiter.told.max(generation);
        }
        match &event {
            Event::CellRead(Err(_)) => self.stats.add(Count::ReadFailed),
            Event::CellSet(Outcome::Lost(_)) => self.stats.add(Count::CasLost),
            Event::CellSet(Outcome::NotAttempted(_)) => self.stats.add(Count::CasNotAttempted),
            Event::CellSet(Outcome::Unknown(_)) => self.stats.add(Count::CasUnknown),
            _ => {}
        }
        if let Event::CellRead(Ok(cell)) | Event::CellSet(Outcome::Lost(cell)) = &mut event
            && cell.as_ref().map_or(0, |cell| cell.generation) < self.knows(n)
        {
            self.stats.add(Count::WentBack);
            if self.mutant == Some(Mutant::WentBackIsLost) {
                let owner = Some(NAMES[1 - n].into());
                let id = self.arbiter.cell.as_ref().map_or(CellId(0), |cell| cell.id);
                *cell = Some(Cell { id, generation: self.knows(n) + 1, owner, standby: None });
            }
        } else if let Some(id) = found
            && self.arbiter.cell.as_ref().is_some_and(|cell| cell.id == id)
        {
            let before = self.arbiter.answered[n].map_or(0, |(_, generation)| generation);
            self.arbiter.answered[n] = Some((self.now, generation.max(before)));
        } else if let (Event::CellRead(Ok(Some(cell))), Some(Mutant::AnyCellIsOurs)) =
            (&mut event, self.mutant)
        {
            cell.id = self.arbiter.cell.as_ref().map_or(cell.id, |cell| cell.id);
        }
        if let (Event::CellRead(Ok(Some(cell))), Some(Mutant::UnnamedDiscards)) = (&mut event, self.mutant)
            && self.nodes[n].exec.image.is_some()
            && cell.owner.as_deref() == Some(NAMES[1 - n])
            && cell.standby.is_none()
        {
            // As if it had moved on from naming this node.
            cell.generation += 1;
        }
        let event = match (self.mutant, event, ask) {
            (Some(Mutant::UnknownIsNotAttempted), Event::CellSet(Outcome::Unknown(why)), _) => {
                Event::CellSet(Outcome::NotAttempted(why))
            }
            (Some(Mutant::UnknownIsWon), Event::CellSet(Outcome::Unknown(_)), Ask::Set { new, .. }) => {
                Event::CellSet(Outcome::Won(new.clone()))
            }
            (_, event, _) => event,
        };
        self.incoming(n, Input::Event(event));
    }

    /// The highest generation that this node's process has heard of.
    fn knows(&self, n: usize) -> u64 {
        self.nodes[n].executor.as_ref().map_or(0, |executor| executor.generation())
    }

    fn set_cell(&mut self, node: usize, inc: u32, new: Cell) {
        trace!(self, "arbiter: {} sets {new:?}", NAMES[node]);
        self.stats.add(Count::CasWon);
        let generation = new.generation;
        let newest = self.arbiter.cell.as_ref().map_or(0, |cell| cell.generation);
        if self.arbiter.is_hidden() && generation <= newest {
            if self.nodes[node].acted >= generation && !self.nodes[node].lost_disk {
                return self.fail(format!("I11: {} acts on a cell that went back: {new:?}", NAMES[node]));
            }
            // It was away while the cell moved on, or has lost its record: nothing that it has could tell it.
            return self.finish(End::Forked);
        }
        let before = self.arbiter.cell.replace(new.clone());
        if generation != newest + 1 {
            self.fail(format!("arbiter: generation {generation} follows {before:?}"));
        }
        if self.arbiter.log.insert(generation, Entry { cell: new.clone(), node, inc }).is_some() {
            self.fail(format!("arbiter: two winners of generation {generation}"));
        }
        if before.as_ref().is_some_and(|cell| cell.standby.is_some() && new.owner == cell.owner)
            && new.standby.is_none()
        {
            self.stats.add(Count::SoloGrants);
        }
        if new.owner.is_none() {
            let lives = self.nodes[node].inc == inc && self.nodes[node].up;
            // It goes down with its host, and nobody else could go on with it.
            let solo = before.as_ref().is_some_and(|cell| cell.standby.is_none());
            let may_end = self.nodes[node].may_end || solo && self.nodes[node].host_down;
            if self.truth.alive && self.truth.lost.is_none() && lives && !may_end {
                self.fail(format!("the VM was ended by {}, and nobody asked for it", NAMES[node]));
            }
            self.truth.alive = false;
        }
        let dead = self.nodes[node].inc != inc || !self.nodes[node].up;
        let by = &self.nodes[node];
        let cause = match (dead, by.failed_in_race, by.fresh) {
            (true, ..) => "a dead process's request was carried out",
            (_, true, _) => "the request of a process whose machine had failed was carried out",
            (_, _, true) => "given up by the operator (--fresh)",
            (false, false, false) => "cell set",
        };
        let excused = self.may_boot_lost(node) || by.fresh || by.failed_in_race || by.powered_off;
        self.check_copies(cause, dead || excused);
        self.hook(Hook::CellSet);
    }

    /// The storage crashes: what was not flushed is gone. Nobody may have been told of it.
    pub fn crash_storage(&mut self) {
        if self.arbiter.is_hidden() {
            return;
        }
        self.stats.add(Count::FaultStorageCrash);
        let (left, whole) = self.arbiter.directory.crash();
        trace!(self, "the storage crashes: generation {left:?} is left, whole: {whole}");
        let left = left.unwrap_or(0);
        if left < self.arbiter.told {
            let told = self.arbiter.told;
            self.fail(format!("arbiter: generation {told} was told, generation {left} is left by a crash"));
        }
        if !whole {
            self.fail(format!("arbiter: a crash of the storage has damaged generation {left}"));
        }
        if self.arbiter.log.split_off(&(left + 1)).into_iter().next().is_some() {
            self.stats.add(Count::ClaimsCrashed);
            self.arbiter.cell = self.arbiter.log.get(&left).map(|entry| entry.cell.clone());
            self.check_copies("the storage lost a claim that named it", true);
        }
    }

    /// Somebody puts an older copy in the place of the cell, or nothing.
    pub fn hide_cell(&mut self, back: Option<u64>) -> bool {
        let newest = self.arbiter.cell.as_ref().map_or(0, |cell| cell.generation);
        let last = back.map(|back| newest.saturating_sub(back));
        if self.arbiter.is_hidden() || newest == 0 || last == Some(0) {
            return false;
        }
        self.arbiter.directory.hide(last);
        true
    }

    pub fn unhide_cell(&mut self) {
        self.arbiter.directory.unhide();
    }

    /// A node's path leads to another directory: a mount has failed, or is another one. A node that has never acted on
    /// its cell would take that one for it.
    pub fn lead_elsewhere(&mut self, n: usize, generations: u64) -> bool {
        if self.nodes[n].acted == 0 || self.nodes[n].lost_disk || self.arbiter.elsewhere[n].is_some() {
            return false;
        }
        self.arbiter.elsewhere[n] = Some(SharedDirectory::of_somebody_else(generations));
        true
    }

    pub fn lead_back(&mut self, n: usize) {
        self.arbiter.elsewhere[n] = None;
    }

    /// The generation that a node's arbiter told it last, and when.
    pub fn arbiter_answered(&self, n: usize) -> Option<(Micros, u64)> {
        self.arbiter.answered[n]
    }

    /// The node that the cell names as owner.
    pub fn owner(&self) -> Option<usize> {
        self.arbiter.cell.as_ref().and_then(|cell| cell.owner.as_deref()).and_then(index_of)
    }
}

/// Whether a call gives a generation its file.
fn is_claim(call: &Call) -> bool {
    matches!(call, Call::Link { to, .. } if generation_of(to).is_some())
}

/// A call without its content.
struct Brief<'a>(&'a Call);

impl std::fmt::Debug for Brief<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Call::Write(_, name, _) => write!(f, "Write({name:?})"),
            call => write!(f, "{call:?}"),
        }
    }
}
