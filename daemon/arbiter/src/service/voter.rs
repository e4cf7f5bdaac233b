//! How long a member's promise is good for: it accepts only what follows its promise soon. So whatever was proposed
//! with the word of a store that was lost since is over when its successor (`ftd arbiter --rejoin`) takes part.

use crate::clock::since_boot;
use crate::majority::{Ballot, MemberAnswer, MemberAsk, Register};
use std::collections::HashMap;
use std::time::Duration;

/// A member accepts only in a round that it promised less than this ago. Nodes propose much sooner.
pub const PROMISE_KEPT: Duration = Duration::from_secs(30);

/// The promises that this process has made, by VM, and when.
#[derive(Debug, Default)]
pub(super) struct Voter {
    made: HashMap<String, (Ballot, Duration)>,
}

impl Voter {
    /// What becomes of the register, and the answer.
    pub(super) fn answer(
        &mut self,
        vm: &str,
        register: &Register,
        ask: &MemberAsk,
    ) -> (Register, MemberAnswer) {
        self.answer_at(since_boot(), vm, register, ask)
    }

    fn answer_at(
        &mut self,
        now: Duration,
        vm: &str,
        register: &Register,
        ask: &MemberAsk,
    ) -> (Register, MemberAnswer) {
        if let MemberAsk::Accept(accepted) = ask {
            let is_kept = |(ballot, at): &(Ballot, Duration)| {
                *ballot == accepted.ballot && now.saturating_sub(*at) < PROMISE_KEPT
            };
            if !self.made.get(vm).is_some_and(is_kept) {
                return (register.clone(), MemberAnswer::Beaten(register.promised));
            }
        }
        let (next, answer) = register.answer(ask);
        if let (MemberAsk::Prepare(ballot), MemberAnswer::Has(_)) = (ask, &answer) {
            self.made.insert(vm.to_owned(), (*ballot, now));
        }
        (next, answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::majority::AcceptedCell;

    #[test]
    fn what_follows_a_promise_late_or_after_a_restart_is_not_accepted() {
        let ballot = Ballot { round: 1, proposer: 7 };
        let accept = MemberAsk::Accept(AcceptedCell { ballot, value: None });
        let at = Duration::from_secs;
        let mut voter = Voter::default();
        let (promised, _) =
            voter.answer_at(at(100), "web", &Register::default(), &MemberAsk::Prepare(ballot));
        let answer = |voter: &mut Voter, now| voter.answer_at(now, "web", &promised, &accept).1;
        assert_eq!(answer(&mut voter, at(129)), MemberAnswer::Accepted);
        assert_eq!(answer(&mut voter, at(130)), MemberAnswer::Beaten(Some(ballot)));
        assert_eq!(answer(&mut Voter::default(), at(101)), MemberAnswer::Beaten(Some(ballot)));
    }
}
