//! Concurrent histories of a cell. A set whose answer is unknown may take effect at any time after it began, or never.

use ft_arbiter::{Arbiter, ArbiterError, Cell, CellId, Outcome};
use ft_history::{Answered, TimedCall};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

pub fn cell(generation: u64, owner: &str) -> Cell {
    Cell { id: CellId(0xce11), generation, owner: Some(owner.into()), standby: None }
}

/// An operation with its answer.
#[derive(Debug)]
pub enum Op {
    Read(Option<Cell>),
    Set { expected: Option<u64>, new: Cell, outcome: Outcome },
}

impl Answered for Op {
    type State = Option<Cell>;

    fn apply(&self, state: &Option<Cell>) -> Option<Option<Cell>> {
        let generation = state.as_ref().map(|cell| cell.generation);
        match self {
            Self::Read(cell) => (cell == state).then(|| state.clone()),
            Self::Set { expected, new, outcome: Outcome::Won(cell) } => {
                (generation == *expected && cell == new).then(|| Some(new.clone()))
            }
            Self::Set { expected, outcome: Outcome::Lost(found), .. } => {
                (generation != *expected && found == state).then(|| state.clone())
            }
            Self::Set { expected, new, outcome: Outcome::Unknown(_) } => {
                (generation == *expected).then(|| Some(new.clone()))
            }
            Self::Set { outcome: Outcome::NotAttempted(_), .. } => Some(state.clone()),
        }
    }
}

impl Op {
    /// Whether it must have happened by the time of its answer.
    fn is_certain(&self) -> bool {
        !matches!(self, Self::Set { outcome: Outcome::Unknown(_), .. })
    }
}

/// Notes what several threads do at once.
#[derive(Default)]
pub struct Recorder {
    clock: AtomicU64,
    calls: Mutex<Vec<TimedCall<Op>>>,
}

impl Recorder {
    /// A read that fails says nothing, and is not noted.
    pub fn read(&self, arbiter: &mut dyn Arbiter) -> Result<Option<Cell>, ArbiterError> {
        let began = self.now();
        let cell = arbiter.read()?;
        self.note(began, Op::Read(cell.clone()));
        Ok(cell)
    }

    pub fn set(&self, arbiter: &mut dyn Arbiter, expected: Option<u64>, new: Cell) -> Outcome {
        let began = self.now();
        let outcome = arbiter.compare_and_set(expected, new.clone());
        self.note(began, Op::Set { expected, new, outcome: outcome.clone() });
        outcome
    }

    /// How many calls are noted.
    pub fn noted(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    pub fn into_history(self) -> Vec<TimedCall<Op>> {
        self.calls.into_inner().unwrap()
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn note(&self, began: u64, op: Op) {
        let ended = op.is_certain().then(|| self.now());
        self.calls.lock().unwrap().push(TimedCall { op, began, ended });
    }
}

mod tests {
    use super::*;
    use ft_arbiter::{Place, Trouble};
    use ft_history::last_state;

    fn call(began: u64, ended: u64, op: Op) -> TimedCall<Op> {
        TimedCall { op, began, ended: Some(ended) }
    }

    fn win(expected: Option<u64>, new: Cell) -> Op {
        Op::Set { expected, new: new.clone(), outcome: Outcome::Won(new) }
    }

    #[test]
    fn a_set_in_doubt_may_have_won_late_or_never_but_not_after_another_of_its_generation() {
        let place = Place::File("/shared/web.cell".into());
        let error = ArbiterError { place, trouble: Trouble::NoAnswer { seconds: 1 } };
        let outcome = Outcome::Unknown(error);
        let in_doubt = || Op::Set { expected: Some(1), new: cell(2, "beta"), outcome: outcome.clone() };
        assert!(!in_doubt().is_certain());
        let in_doubt = || TimedCall { op: in_doubt(), began: 0, ended: None };
        let read = |began, seen| call(began, began + 1, Op::Read(seen));
        let (one, two) = (|| Some(cell(1, "alpha")), || Some(cell(2, "beta")));
        assert_eq!(last_state(&one(), &[in_doubt(), read(1, one()), read(3, two())]), Ok(two()));
        let overtaken = call(1, 2, win(Some(1), cell(2, "alpha")));
        assert_eq!(last_state(&one(), &[in_doubt(), overtaken, read(3, two())]), Err(2));
    }

    #[test]
    fn two_winners_of_one_generation_have_no_order_and_a_loser_has_seen_a_winner() {
        let history = [call(0, 9, win(None, cell(1, "alpha"))), call(0, 9, win(None, cell(1, "beta")))];
        assert!(last_state(&None, &history).is_err(), "either has no place beside the other");
        let lost = |found| Op::Set { expected: None, new: cell(1, "beta"), outcome: Outcome::Lost(found) };
        let history = |found| [call(0, 9, win(None, cell(1, "alpha"))), call(0, 9, lost(found))];
        assert_eq!(last_state(&None, &history(Some(cell(1, "alpha")))), Ok(Some(cell(1, "alpha"))));
        assert_eq!(last_state(&None, &history(None)), Err(1));
    }
}
