//! The thread that talks to the arbiter. Shared storage can hang for any length of time, and a call on storage that was
//! replaced meanwhile may never return: the rest of the daemon does not wait for it, and leaves it behind when told to.
//!
//! A call that was left behind may still take effect, at any time. So its question is answered with "unknown", once,
//! and its own answer, should it come, goes to nobody.

use crate::outlet::Outlet;
use ft_arbiter::{Arbiter, ArbiterError, Cell, Outcome, Place, Trouble};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

/// So many calls hang at most: the next one is waited for until one of them returns.
const LEFT_MAX: u64 = 8;

/// Makes one more arbiter for the same cell, for another thread.
pub type MakeArbiter = Box<dyn Fn() -> Box<dyn Arbiter> + Send>;

/// What the arbiter is asked.
pub enum Question {
    /// What does the cell say?
    Read,
    /// What does it say, and could it be set?
    Probe,
    /// Compare and set.
    Set {
        /// Generation that the cell must have.
        expected: Option<u64>,
        /// What it becomes.
        new: Cell,
    },
}

impl Question {
    fn ask(self, arbiter: &mut dyn Arbiter) -> CellNews {
        match self {
            Self::Read => CellNews::Read(arbiter.read()),
            Self::Probe => CellNews::Read(arbiter.probe()),
            Self::Set { expected, new } => CellNews::Set(arbiter.compare_and_set(expected, new)),
        }
    }
}

/// What it answers.
#[derive(Debug)]
pub enum CellNews {
    /// The cell, or why it could not be read.
    Read(Result<Option<Cell>, ArbiterError>),
    /// What became of a compare-and-set.
    Set(Outcome),
}

/// Asks one question at a time. The thread ends when this is dropped, and its call has returned.
pub struct ArbiterThread {
    make: MakeArbiter,
    place: Place,
    questions: Sender<Question>,
    desk: Arc<Desk>,
    is_full_told: bool,
}

/// Where answers are handed over: exactly one to each question.
struct Desk {
    answers: Outlet<CellNews>,
    state: Mutex<State>,
    /// Threads whose call was left behind and has not returned.
    left: Arc<AtomicU64>,
}

#[derive(Default)]
struct State {
    /// The thread that is asked now.
    thread: u64,
    open: Option<Open>,
}

/// A question without an answer.
struct Open {
    is_set: bool,
    since: Instant,
}

impl ArbiterThread {
    /// Starts the thread. `left` shows how many calls were left behind and still hang.
    pub fn start(make: MakeArbiter, answers: Outlet<CellNews>, left: Arc<AtomicU64>) -> io::Result<Self> {
        let desk = Arc::new(Desk { answers, state: Mutex::default(), left });
        let arbiter = make();
        let place = arbiter.place();
        let questions = spawn(arbiter, 0, &desk)?;
        Ok(Self { make, place, questions, desk, is_full_told: false })
    }

    /// Asks. The question before has been answered.
    pub fn ask(&self, question: Question) {
        let is_set = matches!(question, Question::Set { .. });
        self.desk.state.lock().open = Some(Open { is_set, since: Instant::now() });
        // The thread lives as long as we hold its sender.
        let _ = self.questions.send(question);
    }

    /// Leaves the call under way behind, unless it has just returned or too many hang already: its question is
    /// answered with "unknown", and the next one is asked by a fresh thread.
    pub fn leave(&mut self) {
        let mut state = self.desk.state.lock();
        let Some(open) = &state.open else { return };
        let (is_set, seconds) = (open.is_set, open.since.elapsed().as_secs());
        let left = self.desk.left.load(Ordering::Relaxed);
        if left >= LEFT_MAX {
            if !std::mem::replace(&mut self.is_full_told, true) {
                tracing::error!(
                    "{left} calls on the arbiter at {} hang, and the next one is waited for: see to the storage, or \
                     restart ftd when the VM runs on the other host",
                    self.place
                );
            }
            return;
        }
        match spawn((self.make)(), state.thread + 1, &self.desk) {
            Ok(questions) => self.questions = questions,
            Err(e) => return tracing::error!("cannot start another thread for the arbiter: {e}"),
        }
        self.is_full_told = false;
        state.thread += 1;
        state.open = None;
        self.desk.left.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            "a call on the arbiter at {} has not returned for {seconds} s: it is left behind, and the arbiter is \
             asked anew; {} such calls hang",
            self.place,
            left + 1
        );
        let error = ArbiterError { place: self.place.clone(), trouble: Trouble::NoAnswer { seconds } };
        // Whoever does not listen any more is ending.
        let _ = self.desk.answers.tell(match is_set {
            true => CellNews::Set(Outcome::Unknown(error)),
            false => CellNews::Read(Err(error)),
        });
    }
}

fn spawn(mut arbiter: Box<dyn Arbiter>, thread: u64, desk: &Arc<Desk>) -> io::Result<Sender<Question>> {
    let (sender, questions): (_, Receiver<Question>) = channel();
    let desk = Arc::clone(desk);
    std::thread::Builder::new().name("ftd-arbiter".into()).spawn(move || {
        while let Ok(question) = questions.recv() {
            if !desk.hand_over(thread, question.ask(&mut *arbiter)) {
                return;
            }
        }
    })?;
    Ok(sender)
}

impl Desk {
    /// Whether this thread is to go on.
    fn hand_over(&self, thread: u64, answer: CellNews) -> bool {
        let mut state = self.state.lock();
        if state.thread != thread {
            self.left.fetch_sub(1, Ordering::Relaxed);
            tracing::info!("a call on the arbiter that was left behind has returned");
            return false;
        }
        state.open = None;
        self.answers.tell(answer).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft_arbiter::CellId;
    use std::path::PathBuf;
    use std::sync::mpsc::RecvTimeoutError;
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(60);

    /// Each arbiter returns from a call when its gate lets it; the gates come out as the arbiters are made.
    struct Gated(Receiver<()>);

    impl Gated {
        fn wait(&self) {
            let _ = self.0.recv();
        }
    }

    impl Arbiter for Gated {
        fn read(&mut self) -> Result<Option<Cell>, ArbiterError> {
            self.wait();
            Ok(None)
        }

        fn compare_and_set(&mut self, _: Option<u64>, new: Cell) -> Outcome {
            self.wait();
            Outcome::Won(new)
        }

        fn probe(&mut self) -> Result<Option<Cell>, ArbiterError> {
            self.read()
        }

        fn place(&self) -> Place {
            Place::File(PathBuf::from("/shared/web.cell"))
        }
    }

    struct Rig {
        thread: ArbiterThread,
        gates: Receiver<Sender<()>>,
        answers: Receiver<CellNews>,
        left: Arc<AtomicU64>,
    }

    impl Rig {
        fn new() -> Self {
            let (made, gates) = channel();
            let (queue, answers) = channel();
            let make = Box::new(move || {
                let (gate, opened) = channel();
                made.send(gate).unwrap();
                Box::new(Gated(opened)) as Box<dyn Arbiter>
            });
            let left = Arc::default();
            let outlet = Outlet::into_queue(&queue, |news| news);
            let thread = ArbiterThread::start(make, outlet, Arc::clone(&left)).unwrap();
            Self { thread, gates, answers, left }
        }

        fn gate(&self) -> Sender<()> {
            self.gates.recv_timeout(SOON).unwrap()
        }

        fn answer(&self) -> CellNews {
            self.answers.recv_timeout(SOON).unwrap()
        }

        fn left(&self) -> u64 {
            self.left.load(Ordering::Relaxed)
        }
    }

    fn set() -> Question {
        let new = Cell { id: CellId(7), generation: 4, owner: Some("alpha".into()), standby: None };
        Question::Set { expected: Some(3), new }
    }

    #[test]
    fn a_call_that_never_returns_is_left_behind_and_the_next_one_is_answered() {
        let mut rig = Rig::new();
        let _hangs = rig.gate();
        rig.thread.ask(set());
        rig.thread.leave();
        let answer = rig.answer();
        assert!(
            matches!(&answer, CellNews::Set(Outcome::Unknown(e)) if e.to_string().contains("no answer")),
            "{answer:?}"
        );
        assert_eq!(rig.left(), 1);
        let gate = rig.gate();
        rig.thread.ask(Question::Read);
        gate.send(()).unwrap();
        assert!(matches!(rig.answer(), CellNews::Read(Ok(None))));
    }

    #[test]
    fn each_question_has_one_answer_whatever_comes_late() {
        let mut rig = Rig::new();
        let late = rig.gate();
        rig.thread.ask(Question::Probe);
        rig.thread.leave();
        assert!(matches!(rig.answer(), CellNews::Read(Err(_))));
        let gate = rig.gate();
        rig.thread.ask(set());
        late.send(()).unwrap();
        while rig.left() > 0 {
            std::thread::yield_now();
        }
        gate.send(()).unwrap();
        assert!(matches!(rig.answer(), CellNews::Set(Outcome::Won(_))), "not the late one's");
        // It has returned: there is nothing to leave.
        rig.thread.leave();
        assert_eq!(rig.left(), 0);
        drop(rig.thread);
        let end = rig.answers.recv_timeout(Duration::ZERO);
        assert!(matches!(end, Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected)), "{end:?}");
    }

    #[test]
    fn calls_beyond_the_bound_are_waited_for() {
        let mut rig = Rig::new();
        let mut hanging = Vec::new();
        for _ in 0..LEFT_MAX {
            hanging.push(rig.gate());
            rig.thread.ask(Question::Read);
            rig.thread.leave();
            assert!(matches!(rig.answer(), CellNews::Read(Err(_))));
        }
        let last = rig.gate();
        rig.thread.ask(Question::Read);
        rig.thread.leave();
        assert_eq!(rig.left(), LEFT_MAX);
        assert!(rig.answers.try_recv().is_err(), "nobody is told that it is over");
        last.send(()).unwrap();
        assert!(matches!(rig.answer(), CellNews::Read(Ok(None))));
    }
}
