//! The thread that writes: whatever waits when it is free shares one durable commit, and is answered after it.

use super::figures::ServiceFigures;
use super::message::{LISTED_MAX, Question, REGISTERS_MAX, Refusal, Reply, is_name, short};
use super::store::{CellStore, Cells, Opener, VMS_MAX, list, list_registers};
use super::voter::Voter;
use crate::Cell;
use crate::majority::{AcceptedCell, MemberAnswer, MemberAsk, MemberSet, Register};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use thiserror::Error;

/// So many questions share a commit at most; more wait on their connections.
const BATCH_MAX: usize = 256;
/// Between two attempts to open a store that failed.
const REOPEN: Duration = Duration::from_millis(500);

struct Job {
    question: Question,
    reply: SyncSender<Reply>,
}

/// Why the store is closed, and nobody knows what is durable.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
struct Shut(String);

/// What has been made durable.
type Durable = Arc<RwLock<Result<Cells, Shut>>>;

/// Answers questions. Each connection has one.
#[derive(Clone)]
pub(super) struct Desk {
    jobs: SyncSender<Job>,
    durable: Durable,
    /// Whose member the service is.
    set: Option<MemberSet>,
    figures: Arc<ServiceFigures>,
}

impl Desk {
    /// Starts the thread, which ends when every desk is gone.
    pub(super) fn start(
        store: CellStore,
        figures: Arc<ServiceFigures>,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (sender, jobs) = sync_channel(BATCH_MAX);
        let durable: Durable = Arc::new(RwLock::new(Ok(store.cells.clone())));
        let (path, opener, set) = (store.path().to_owned(), store.opener(), store.set.clone());
        let (tried, shared) = (Instant::now(), Arc::clone(&durable));
        let counted = Arc::clone(&figures);
        let (store, voter) = (Ok(store), Voter::default());
        let mut committer =
            Committer { path, opener, store, voter, tried, durable: shared, figures: counted };
        committer.count();
        let thread =
            std::thread::Builder::new().name("ftd-commit".into()).spawn(move || committer.run(&jobs))?;
        Ok((Self { jobs: sender, durable, set, figures }, thread))
    }

    /// Answers one question, after what it needs is durable.
    pub(super) fn answer(&self, question: Question) -> Reply {
        let asked = question.clone();
        let reply = self.find_answer(question);
        self.figures.answered(&asked, &reply);
        reply
    }

    fn find_answer(&self, question: Question) -> Reply {
        if let Err(reason) = judge(&question) {
            return Reply::Refused(Refusal::Question { reason });
        }
        if let Some(refusal) = misplaced(&question, self.set.as_ref()) {
            return Reply::Refused(refusal);
        }
        match question {
            Question::Read { vm } => match &*self.durable.read() {
                Ok(cells) => cell_of(cells, &vm).map_or_else(Reply::Refused, Reply::Cell),
                Err(why) => shut(why),
            },
            Question::List { after } => match &*self.durable.read() {
                Ok(cells) => Reply::Listed(list(cells, &after, LISTED_MAX)),
                Err(why) => shut(why),
            },
            question => {
                let is_set = matches!(
                    question,
                    Question::Set { .. } | Question::Member { ask: MemberAsk::Accept(_), .. }
                );
                let (reply, answer) = sync_channel(1);
                match self.jobs.try_send(Job { question, reply }) {
                    Ok(()) => answer.recv().unwrap_or_else(|_| match is_set {
                        true => Reply::InDoubt { reason: "the service is ending".into() },
                        false => shut("the service is ending"),
                    }),
                    Err(TrySendError::Full(_)) => shut("more questions wait for the disk than it may"),
                    Err(TrySendError::Disconnected(_)) => shut("the service is ending"),
                }
            }
        }
    }
}

struct Committer {
    path: PathBuf,
    opener: Opener,
    store: Result<CellStore, Shut>,
    voter: Voter,
    /// When it was opened last, or could not be.
    tried: Instant,
    durable: Durable,
    figures: Arc<ServiceFigures>,
}

impl Committer {
    fn run(&mut self, jobs: &Receiver<Job>) {
        loop {
            // Nodes that ask all the time do not keep it closed.
            if self.tried.elapsed() >= REOPEN {
                self.reopen();
            }
            let first = match jobs.recv_timeout(REOPEN) {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let batch: Vec<Job> = std::iter::once(first).chain(jobs.try_iter().take(BATCH_MAX - 1)).collect();
            self.serve(batch);
        }
    }

    fn serve(&mut self, batch: Vec<Job>) {
        let store = match &mut self.store {
            Ok(store) => store,
            Err(why) => return batch.iter().for_each(|job| tell(job, shut(&*why))),
        };
        let mut staged = Staged::default();
        let replies: Vec<Reply> =
            batch.iter().map(|job| decide(store, &mut self.voter, &mut staged, &job.question)).collect();
        let changes: Vec<(String, Cell)> = staged.cells.into_values().flatten().collect();
        let registers = staged.registers;
        let is_to_write = |job: &Job| matches!(job.question, Question::Probe { .. });
        let is_changed = !changes.is_empty() || !registers.is_empty();
        let failure = match !is_changed && !batch.iter().any(is_to_write) {
            true => None,
            false => {
                let began = Instant::now();
                let failure = store.commit_all(&changes, &registers).err();
                self.figures.committed(began.elapsed(), failure.is_none());
                failure
            }
        };
        match failure {
            None => {
                if let Ok(cells) = &mut *self.durable.write() {
                    cells.extend(changes.into_iter().map(|(vm, cell)| (vm, Ok(cell))));
                }
                self.count();
                batch.iter().zip(replies).for_each(|(job, reply)| tell(job, reply));
            }
            Some(e) => {
                let reason = short(format!("the commit failed: {e}"));
                tracing::error!("{}: {reason}; the store is opened anew", self.path.display());
                *self.durable.write() = Err(Shut(reason.clone()));
                for (job, reply) in batch.iter().zip(replies) {
                    // Whatever else was decided may rest on a change of the same commit.
                    tell(
                        job,
                        match reply {
                            Reply::Won | Reply::Member(MemberAnswer::Accepted) => {
                                Reply::InDoubt { reason: reason.clone() }
                            }
                            _ => shut(&reason),
                        },
                    );
                }
                self.store = Err(Shut(reason));
                self.reopen();
            }
        }
    }

    /// Opens the store anew if it is closed.
    fn reopen(&mut self) {
        let Err(before) = &self.store else { return };
        self.tried = Instant::now();
        self.store = CellStore::open_by(&self.path, Arc::clone(&self.opener)).map_err(|e| {
            let why = Shut(short(&e));
            if why != *before {
                tracing::error!("the store cannot be opened: {e}");
            }
            why
        });
        *self.durable.write() = match &self.store {
            Ok(store) => {
                tracing::warn!("{}: the store is open again", self.path.display());
                Ok(store.cells.clone())
            }
            Err(why) => Err(why.clone()),
        };
        self.count();
    }

    /// How the store is.
    fn count(&self) {
        let cells = self.store.as_ref().map_or(0, |store| (store.cells.len() + store.registers.len()) as u64);
        self.figures.cells.store(cells, Ordering::Relaxed);
        self.figures.is_open.store(self.store.is_ok().into(), Ordering::Relaxed);
    }
}

/// The changes of a commit.
#[derive(Default)]
struct Staged {
    /// By VM.
    cells: BTreeMap<String, Vec<(String, Cell)>>,
    /// In the order of the questions.
    registers: Vec<(String, Register)>,
}

/// The answer to a question if the commit succeeds.
fn decide(store: &CellStore, voter: &mut Voter, all: &mut Staged, question: &Question) -> Reply {
    let staged = &mut all.cells;
    let now = |staged: &BTreeMap<String, Vec<(String, Cell)>>, vm: &str| match staged
        .get(vm)
        .and_then(|of| of.last())
    {
        Some((_, cell)) => Ok(Some(cell.clone())),
        None => cell_of(&store.cells, vm),
    };
    match question {
        Question::Set { vm, expected, new } => match now(staged, vm) {
            Err(refusal) => Reply::Refused(refusal),
            Ok(cell) => {
                let fits = cell.as_ref().map(|cell| cell.generation) == *expected
                    && cell.as_ref().is_none_or(|cell| cell.id == new.id);
                if !fits {
                    return Reply::Lost(cell);
                }
                let founded = staged.keys().filter(|vm| !store.cells.contains_key(*vm)).count();
                if cell.is_none() && store.cells.len() + founded >= VMS_MAX {
                    return Reply::Refused(Refusal::Full);
                }
                staged.entry(vm.clone()).or_default().push((vm.clone(), new.clone()));
                Reply::Won
            }
        },
        Question::Probe { vm } => now(staged, vm).map_or_else(Reply::Refused, Reply::Cell),
        Question::History { vm } => match store.history(vm) {
            Ok(changes) => Reply::Changes(changes),
            Err(e) => shut(e),
        },
        Question::Member { vm, ask, .. } => vote(store, voter, &mut all.registers, vm, ask),
        Question::Registers { after } => Reply::Registers {
            set: store.set.clone(),
            some: list_registers(&store.registers, after, REGISTERS_MAX),
        },
        Question::Read { .. } | Question::List { .. } => {
            Reply::Refused(Refusal::Question { reason: "it is answered elsewhere".into() })
        }
    }
}

fn vote(
    store: &CellStore,
    voter: &mut Voter,
    staged: &mut Vec<(String, Register)>,
    vm: &str,
    ask: &MemberAsk,
) -> Reply {
    let newest = staged.iter().rev().find(|(other, _)| other == vm).map(|(_, register)| Ok(register.clone()));
    let register = match newest.or_else(|| store.registers.get(vm).cloned()) {
        Some(Ok(register)) => register,
        Some(Err(reason)) => return Reply::Refused(Refusal::Damaged { reason: short(reason) }),
        None => Register::default(),
    };
    let (next, answer) = voter.answer(vm, &register, ask);
    if next != register {
        let founded = staged.iter().filter(|(vm, _)| !store.registers.contains_key(vm)).count();
        if register == Register::default() && store.registers.len() + founded >= VMS_MAX {
            return Reply::Refused(Refusal::Full);
        }
        staged.push((vm.to_owned(), next));
    }
    Reply::Member(answer)
}

/// Why this service, a member of `set` or of none, is not to be asked this.
fn misplaced(question: &Question, set: Option<&MemberSet>) -> Option<Refusal> {
    match (question, set) {
        (Question::Member { .. }, None) => Some(Refusal::Alone),
        (Question::Member { set: asked, .. }, Some(set)) if asked != set => {
            Some(Refusal::OtherSet { set: set.clone() })
        }
        (
            Question::Read { .. } | Question::Probe { .. } | Question::Set { .. } | Question::List { .. },
            Some(set),
        ) => Some(Refusal::Together { set: set.clone() }),
        _ => None,
    }
}

fn cell_of(cells: &Cells, vm: &str) -> Result<Option<Cell>, Refusal> {
    match cells.get(vm) {
        None => Ok(None),
        Some(Ok(cell)) => Ok(Some(cell.clone())),
        Some(Err(reason)) => Err(Refusal::Damaged { reason: short(reason) }),
    }
}

fn judge(question: &Question) -> Result<(), String> {
    let name = |name: &str| match is_name(name) {
        true => Ok(()),
        false => Err(short(format!("'{name}' is no name of a VM or a node"))),
    };
    let names = |cell: &Cell| {
        cell.owner.as_deref().map_or(Ok(()), name)?;
        cell.standby.as_ref().map_or(Ok(()), |standby| name(&standby.node))
    };
    match question {
        Question::Read { vm } | Question::Probe { vm } | Question::History { vm } => name(vm),
        Question::List { .. } | Question::Registers { .. } => Ok(()),
        Question::Member { vm, ask, .. } => {
            name(vm)?;
            match ask {
                MemberAsk::Accept(AcceptedCell { value: Some(value), .. }) => names(&value.cell),
                _ => Ok(()),
            }
        }
        Question::Set { vm, expected, new } => {
            name(vm)?;
            names(new)?;
            match expected.unwrap_or(0).checked_add(1) == Some(new.generation) {
                true => Ok(()),
                false => Err(format!("generation {} does not follow {expected:?}", new.generation)),
            }
        }
    }
}

fn shut(reason: impl ToString) -> Reply {
    Reply::Refused(Refusal::Store { reason: short(reason) })
}

/// Whoever does not wait any more has gone.
fn tell(job: &Job, reply: Reply) {
    let _ = job.reply.send(reply);
}
