//! Histories of a register, broken in the ways that a service breaks them.

use super::*;
use Op::{Add, Read, Write};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Write(u64),
    Read(u64),
    /// The value afterwards.
    Add(u64),
}

impl Answered for Op {
    type State = u64;

    fn apply(&self, state: &u64) -> Option<u64> {
        match *self {
            Write(value) => Some(value),
            Read(value) => (value == *state).then_some(value),
            Add(after) => (after == state + 1).then_some(after),
        }
    }
}

fn call(began: u64, ended: u64, op: Op) -> TimedCall<Op> {
    TimedCall { op, began, ended: Some(ended) }
}

#[test]
fn an_answer_beside_a_write_may_be_either_and_after_it_only_the_new_one() {
    for seen in [0, 7] {
        assert_eq!(last_state(&0, &[call(0, 9, Write(7)), call(1, 2, Read(seen))]), Ok(7));
    }
    let stale = [call(0, 1, Write(7)), call(2, 3, Read(0))];
    assert_eq!(last_state(&0, &stale), Err(1));
}

#[test]
fn a_lost_update_is_found() {
    let both = [call(0, 1, Add(1)), call(2, 3, Add(2)), call(4, 5, Read(2))];
    assert_eq!(last_state(&0, &both), Ok(2));
    // An answered one is gone: the next one counts from before it.
    let lost = [call(0, 1, Add(1)), call(2, 3, Add(2)), call(4, 5, Add(2))];
    assert_eq!(last_state(&0, &lost), Err(2));
    // Two at a time have made one.
    assert!(last_state(&0, &[call(0, 9, Add(1)), call(0, 9, Add(1))]).is_err());
}

#[test]
fn a_pair_whose_answers_changed_places_is_found() {
    let right = [call(0, 1, Write(1)), call(2, 3, Write(2)), call(4, 5, Read(2))];
    assert_eq!(last_state(&0, &right), Ok(2));
    let reordered = [call(2, 3, Write(1)), call(0, 1, Write(2)), call(4, 5, Read(2))];
    assert_eq!(last_state(&0, &reordered), Err(2));
    // Seen in one order by one reader and in the other by another.
    let seen_both_ways =
        [call(0, 9, Write(1)), call(0, 9, Write(2)), call(10, 11, Read(1)), call(12, 13, Read(2))];
    assert_eq!(last_state(&0, &seen_both_ways), Err(3));
}

#[test]
fn what_was_not_answered_happens_late_or_never_but_not_twice_and_not_before_it_began() {
    let open = |began, op| TimedCall { op, began, ended: None };
    let history = |seen: &[u64]| {
        let mut history = vec![open(5, Write(9))];
        history.extend(seen.iter().zip(10..).map(|(value, at)| call(2 * at, 2 * at + 1, Read(*value))));
        history
    };
    assert_eq!(last_state(&1, &history(&[1, 1])), Ok(1));
    assert_eq!(last_state(&1, &history(&[1, 9])), Ok(9));
    assert_eq!(last_state(&1, &history(&[1, 9, 1])), Err(3));
    assert_eq!(last_state(&1, &[open(5, Write(9)), call(0, 1, Read(9))]), Err(1));
}

#[test]
fn a_long_history_with_many_connections_is_checked_and_one_wrong_answer_in_it_found() {
    const CALLS: u64 = 100_000;
    // Each lasts as long as the seven after it.
    let mut history: Vec<_> = (0..CALLS).map(|i| call(10 * i, 10 * i + 75, Add(i + 1))).collect();
    assert_eq!(last_state(&0, &history), Ok(CALLS));
    history[70_000].op = Add(69_990);
    assert!(last_state(&0, &history).is_err());
}

/// Every order is tried.
fn explained_by_force(state: u64, left: &[TimedCall<Op>]) -> bool {
    let first_end = left.iter().filter_map(|call| call.ended).min();
    let Some(first_end) = first_end else { return true };
    (0..left.len()).filter(|&next| left[next].began <= first_end).any(|next| {
        let mut rest = left.to_vec();
        let call = rest.remove(next);
        call.op.apply(&state).is_some_and(|state| explained_by_force(state, &rest))
    })
}

prop_compose! {
    fn any_call()(
        began in 0..12_u64, lasts in 0..6_u64, value in 0..3_u64, kind in 0..3, answered in 0..5
    ) -> TimedCall<Op> {
        let op = match kind { 0 => Write(value), 1 => Read(value), _ => Add(value + 1) };
        TimedCall { op, began, ended: (answered > 0).then_some(began + lasts) }
    }
}

proptest! {
    #[test]
    fn the_verdict_is_that_of_trying_every_order(history in prop::collection::vec(any_call(), 0..8)) {
        prop_assert_eq!(last_state(&0, &history).is_ok(), explained_by_force(0, &history));
    }

    /// Each takes effect at a moment between its beginning and its end, and answers what it finds.
    #[test]
    fn whatever_a_true_register_answers_is_explained(
        plans in prop::collection::vec((0..1000_u64, 0..15_u64, 0..15_u64, 0..3_u8, 0..80_u8), 0..300)
    ) {
        let mut plans = plans;
        plans.sort_by_key(|(effect, ..)| *effect);
        let mut state = 0;
        let mut history = Vec::new();
        for (effect, before, after, kind, answered) in plans {
            let effect = effect + 60;
            let op = match kind { 0 => Write(effect), 1 => Read(state), _ => Add(state + 1) };
            let ended = (answered > 0).then_some(effect + after);
            // One without an answer has taken effect or not.
            if ended.is_some() || after % 2 == 0 {
                state = op.apply(&state).expect("it answers what it finds");
            }
            history.push(TimedCall { op, began: effect - before, ended });
        }
        prop_assert!(last_state(&0, &history).is_ok());
    }
}
