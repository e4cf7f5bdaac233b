//! Concurrent histories of one object, and whether some order explains every answer: the search of Wing and Gong
//! ("Testing and Verifying Concurrent Objects", 1993), which remembers the dead ends that it has seen (Lowe, "Testing
//! for Linearizability", 2017).
//!
//! A history may be long: what is remembered of the calls already in order is the first that is not, and the few beyond
//! it that are. So time and memory grow with the calls, not with their square.
//!
//! ```
//! use ft_history::{Answered, TimedCall, last_state};
//!
//! enum Op { Write(u64), Read(u64) }
//! impl Answered for Op {
//!     type State = u64;
//!     fn apply(&self, state: &u64) -> Option<u64> {
//!         match self {
//!             Op::Write(value) => Some(*value),
//!             Op::Read(value) => (value == state).then_some(*state),
//!         }
//!     }
//! }
//! let write = TimedCall { op: Op::Write(1), began: 0, ended: Some(1) };
//! let stale = TimedCall { op: Op::Read(0), began: 2, ended: Some(3) };
//! assert_eq!(last_state(&0, &[write, stale]), Err(1));
//! ```

use std::collections::HashSet;
use std::hash::Hash;

#[cfg(test)]
mod tests;

/// An operation with its answer, if it has one.
pub trait Answered {
    /// The object's state.
    type State: Clone + Eq + Hash;

    /// The state after this operation, if it can have met `state`.
    fn apply(&self, state: &Self::State) -> Option<Self::State>;
}

/// An operation, when it began, and when its answer was there.
#[derive(Clone, Copy, Debug)]
pub struct TimedCall<O> {
    /// What was asked and answered.
    pub op: O,
    /// Before anybody can have heard of it, on a clock of the caller's choice.
    pub began: u64,
    /// On the same clock. `None`: there was no answer; it took effect at any time after it began, or never.
    pub ended: Option<u64>,
}

/// The state after `history`, if some order of its calls explains every answer, beginning at `first`. A call that ended
/// before another began comes before it.
///
/// # Errors
///
/// The index of a call that has no place in any order: the earliest that the longest order lacks.
pub fn last_state<O: Answered>(first: &O::State, history: &[TimedCall<O>]) -> Result<O::State, usize> {
    Search::new(history).run(first.clone())
}

/// The calls that are in order already.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Done {
    /// All answered ones before this, in the order of their beginnings.
    before: usize,
    /// Answered ones after it, ascending.
    beyond: Vec<usize>,
    /// Unanswered ones, ascending.
    unanswered: Vec<usize>,
}

impl Done {
    fn with_answered(&self, position: usize) -> Self {
        let mut done = self.clone();
        insert(&mut done.beyond, position);
        let run = done.beyond.iter().zip(done.before..).take_while(|(is, next)| **is == *next).count();
        done.beyond.drain(..run);
        done.before += run;
        done
    }

    fn with_unanswered(&self, position: usize) -> Self {
        let mut done = self.clone();
        insert(&mut done.unanswered, position);
        done
    }
}

fn insert(ascending: &mut Vec<usize>, position: usize) {
    let at = ascending.partition_point(|other| *other < position);
    ascending.insert(at, position);
}

/// A place that the search has come to, and the ways on that it has not tried.
struct Step<S> {
    done: Done,
    state: S,
    ways: Vec<Done>,
    /// The call that each way adds, as an index in the history.
    calls: Vec<usize>,
}

struct Search<'a, O> {
    history: &'a [TimedCall<O>],
    /// Indices in the history, in the order of the beginnings.
    answered: Vec<usize>,
    unanswered: Vec<usize>,
}

impl<'a, O: Answered> Search<'a, O> {
    fn new(history: &'a [TimedCall<O>]) -> Self {
        let mut order: Vec<_> = (0..history.len()).collect();
        order.sort_by_key(|&index| history[index].began);
        let (answered, unanswered) = order.into_iter().partition(|&index| history[index].ended.is_some());
        Self { history, answered, unanswered }
    }

    fn run(&self, first: O::State) -> Result<O::State, usize> {
        let mut dead_ends = HashSet::new();
        let (mut furthest, mut lacking) = (0, 0);
        let mut path = vec![self.step(Done::default(), first)];
        while let Some(step) = path.last_mut() {
            if step.done.before == self.answered.len() {
                return Ok(step.state.clone());
            }
            let reached = step.done.before + step.done.beyond.len();
            if reached >= furthest {
                (furthest, lacking) = (reached, step.done.before);
            }
            let Some((done, call)) = step.ways.pop().zip(step.calls.pop()) else {
                let Step { done, state, .. } = path.pop().expect("the loop has looked at it");
                dead_ends.insert((done, state));
                continue;
            };
            if let Some(state) = self.history[call].op.apply(&step.state)
                && !dead_ends.contains(&(done.clone(), state.clone()))
            {
                path.push(self.step(done, state));
            }
        }
        Err(self.answered[lacking])
    }

    /// What may come next is what began before any other that is still to come had ended.
    fn step(&self, done: Done, state: O::State) -> Step<O::State> {
        let mut first_end = u64::MAX;
        let mut open = Vec::new();
        for (position, &index) in self.answered.iter().enumerate().skip(done.before) {
            let call = &self.history[index];
            if call.began > first_end {
                break;
            }
            if done.beyond.binary_search(&position).is_err() {
                open.push((position, index));
                first_end = first_end.min(call.ended.unwrap_or(u64::MAX));
            }
        }
        let may_be_next = |index: usize| self.history[index].began <= first_end;
        let mut step = Step { ways: Vec::new(), calls: Vec::new(), done, state };
        // The last one is tried first: of answered ones the one that began first, and unanswered ones at the very end.
        for (position, &index) in self.unanswered.iter().enumerate() {
            if may_be_next(index) && step.done.unanswered.binary_search(&position).is_err() {
                step.ways.push(step.done.with_unanswered(position));
                step.calls.push(index);
            }
        }
        for (position, index) in open.into_iter().rev().filter(|(_, index)| may_be_next(*index)) {
            step.ways.push(step.done.with_answered(position));
            step.calls.push(index);
        }
        step
    }
}
