//! Concurrent histories of a cell, and whether some order explains them: Wing and Gong's search, which remembers the
//! dead ends that it has seen. A set whose answer is unknown may take effect at any time after it began, or never.

use ft_arbiter::{Arbiter, ArbiterError, Cell, CellId, Outcome};
use std::collections::HashSet;
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

impl Op {
    /// The state after this operation, if it can have met `state`.
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

    /// Whether it must have happened by the time of its answer.
    fn is_certain(&self) -> bool {
        !matches!(self, Self::Set { outcome: Outcome::Unknown(_), .. })
    }
}

/// An operation, when it began and when it was over.
#[derive(Debug)]
pub(crate) struct Call {
    pub op: Op,
    pub began: u64,
    pub ended: u64,
}

/// Notes what several threads do at once.
#[derive(Default)]
pub struct Recorder {
    clock: AtomicU64,
    calls: Mutex<Vec<Call>>,
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

    pub fn into_history(self) -> Vec<Call> {
        self.calls.into_inner().unwrap()
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn note(&self, began: u64, op: Op) {
        let ended = if op.is_certain() { self.now() } else { u64::MAX };
        self.calls.lock().unwrap().push(Call { op, began, ended });
    }
}

/// The cell after `history`, if some order of its operations explains every answer. An operation that was over before
/// another began comes before it.
pub fn last_state(first: &Option<Cell>, history: &[Call]) -> Option<Option<Cell>> {
    assert!(history.len() <= 64, "one bit for each operation");
    search(first.clone(), 0, history, &mut HashSet::new())
}

fn search(
    state: Option<Cell>,
    done: u64,
    history: &[Call],
    dead_ends: &mut HashSet<(u64, Option<Cell>)>,
) -> Option<Option<Cell>> {
    let open = || history.iter().enumerate().filter(|(index, _)| done & 1 << index == 0);
    let certain = open().filter(|(_, call)| call.op.is_certain());
    let Some(first_end) = certain.map(|(_, call)| call.ended).min() else { return Some(state) };
    if dead_ends.contains(&(done, state.clone())) {
        return None;
    }
    for (index, call) in open().filter(|(_, call)| call.began < first_end) {
        if let Some(next) = call.op.apply(&state)
            && let Some(last) = search(next, done | 1 << index, history, dead_ends)
        {
            return Some(last);
        }
    }
    dead_ends.insert((done, state));
    None
}

mod tests {
    use super::*;
    use ft_arbiter::{Place, Trouble};

    fn call(began: u64, ended: u64, op: Op) -> Call {
        Call { op, began, ended }
    }

    fn win(expected: Option<u64>, new: Cell) -> Op {
        Op::Set { expected, new: new.clone(), outcome: Outcome::Won(new) }
    }

    #[test]
    fn a_read_beside_a_win_may_see_either_state_but_none_after_it_the_old_one() {
        let one = || Some(cell(1, "alpha"));
        for seen in [None, one()] {
            let history = [call(0, 9, win(None, cell(1, "alpha"))), call(1, 2, Op::Read(seen))];
            assert_eq!(last_state(&None, &history), Some(one()));
        }
        let backwards = [
            call(0, 9, win(None, cell(1, "alpha"))),
            call(1, 2, Op::Read(one())),
            call(3, 4, Op::Read(None)),
        ];
        assert_eq!(last_state(&None, &backwards), None);
        let stale = [call(0, 1, win(None, cell(1, "alpha"))), call(2, 3, Op::Read(None))];
        assert_eq!(last_state(&None, &stale), None);
    }

    #[test]
    fn a_set_in_doubt_happens_late_or_never_but_not_twice_and_not_before_it_began() {
        let place = Place::File("/shared/web.cell".into());
        let error = ArbiterError { place, trouble: Trouble::NoAnswer { seconds: 1 } };
        let in_doubt = |began| {
            let outcome = Outcome::Unknown(error.clone());
            call(began, u64::MAX, Op::Set { expected: Some(1), new: cell(2, "beta"), outcome })
        };
        let read = |began, seen| call(began, began + 1, Op::Read(seen));
        let (one, two) = (|| Some(cell(1, "alpha")), || Some(cell(2, "beta")));
        assert_eq!(last_state(&one(), &[in_doubt(0), read(1, one())]), Some(one()));
        assert_eq!(last_state(&one(), &[in_doubt(0), read(1, one()), read(3, two())]), Some(two()));
        assert_eq!(last_state(&one(), &[in_doubt(0), read(1, two()), read(3, one())]), None);
        assert_eq!(last_state(&one(), &[in_doubt(9), read(1, two())]), None);
        let overtaken = call(1, 2, win(Some(1), cell(2, "alpha")));
        assert_eq!(last_state(&one(), &[in_doubt(0), overtaken, read(3, two())]), None);
    }

    #[test]
    fn two_winners_of_one_generation_have_no_order() {
        let history = [call(0, 9, win(None, cell(1, "alpha"))), call(0, 9, win(None, cell(1, "beta")))];
        assert_eq!(last_state(&None, &history), None);
    }
}
