//! The proposer and the register by themselves.

use super::*;
use crate::{Cell, CellId};

fn cell(generation: u64, owner: &str) -> Cell {
    Cell { id: CellId(0xce11), generation, owner: Some(owner.into()), standby: None }
}

fn set(expected: Option<u64>, owner: &str) -> CellIntent {
    CellIntent::Set { expected, new: cell(expected.unwrap_or(0) + 1, owner) }
}

/// Three members, in one place.
#[derive(Default)]
struct Three([Register; 3]);

impl Three {
    fn ask(&mut self, member: usize, ask: &MemberAsk) -> MemberAnswer {
        let (next, answer) = self.0[member].answer(ask);
        self.0[member] = next;
        answer
    }

    /// One phase of a proposer among these members; the others fail.
    fn phase(&mut self, proposer: &mut Proposer, ask: &MemberAsk, members: &[usize]) -> Option<Proposal> {
        (0..3).find_map(|member| {
            let answer = members.contains(&member).then(|| self.ask(member, ask));
            proposer.heard(member, ask, answer)
        })
    }

    /// A whole operation among these members.
    fn run(&mut self, proposer: &mut Proposer, members: &[usize]) -> Finding {
        let mut next = proposer.begin();
        loop {
            next = match next {
                Proposal::Ask(ask) => {
                    self.phase(proposer, &ask, members).expect("all have answered or failed")
                }
                Proposal::Again => proposer.begin(),
                Proposal::Found(finding) => return finding,
            };
        }
    }

    fn operate(&mut self, id: u64, intent: CellIntent, members: &[usize]) -> Finding {
        self.run(&mut Proposer::new(3, id, None, intent), members)
    }
}

fn asked(proposal: Proposal) -> MemberAsk {
    match proposal {
        Proposal::Ask(ask) => ask,
        other => panic!("{other:?}"),
    }
}

#[test]
fn any_two_of_three_decide_and_know_what_any_other_two_have_decided() {
    let mut three = Three::default();
    assert_eq!(three.operate(1, set(None, "alpha"), &[0, 1]), Finding::Won);
    assert_eq!(three.operate(2, set(None, "beta"), &[1, 2]), Finding::Lost(Some(cell(1, "alpha"))));
    assert_eq!(three.operate(2, set(Some(1), "beta"), &[2, 0]), Finding::Won);
    for members in [[0, 1], [1, 2], [2, 0]] {
        assert_eq!(three.operate(3, CellIntent::Read, &members), Finding::Holds(Some(cell(2, "beta"))));
        assert_eq!(three.operate(4, CellIntent::Probe, &members), Finding::Holds(Some(cell(2, "beta"))));
    }
}

#[test]
fn one_of_three_decides_nothing() {
    let mut three = Three::default();
    for intent in [CellIntent::Read, CellIntent::Probe, set(None, "alpha")] {
        assert_eq!(three.operate(1, intent, &[1]), Finding::NoMajority { in_doubt: false });
    }
}

#[test]
fn a_read_that_finds_the_members_alike_changes_nothing() {
    let mut three = Three::default();
    assert_eq!(three.operate(1, CellIntent::Read, &[0, 1, 2]), Finding::Holds(None));
    assert_eq!(three.0, <[Register; 3]>::default());
}

/// A set that one member has accepted is completed by whoever comes next and asks that member.
#[test]
fn a_set_of_which_one_member_knows_is_in_doubt_and_found_done_or_not_by_later_rounds() {
    for (members, is_done) in [([0, 1], true), ([1, 2], false)] {
        let mut three = Three::default();
        let mut first = Proposer::new(3, 1, None, set(None, "alpha"));
        let prepare = asked(first.begin());
        let accept = asked(three.phase(&mut first, &prepare, &[0, 1]).unwrap());
        assert!(matches!(three.ask(0, &accept), MemberAnswer::Accepted));
        assert_eq!(first.heard(0, &accept, Some(MemberAnswer::Accepted)), None);
        assert_eq!(first.give_up(), Finding::NoMajority { in_doubt: true });
        let expected = is_done.then(|| cell(1, "alpha"));
        assert_eq!(three.operate(2, CellIntent::Probe, &members), Finding::Holds(expected.clone()));
        // From then on everybody sees the same.
        assert_eq!(three.operate(3, CellIntent::Read, &[0, 2]), Finding::Holds(expected));
    }
}

#[test]
fn a_set_that_every_member_refuses_is_certainly_not_done() {
    let mut three = Three::default();
    let mut first = Proposer::new(3, 1, None, set(None, "alpha"));
    let prepare = asked(first.begin());
    let accept = asked(three.phase(&mut first, &prepare, &[0, 1, 2]).unwrap());
    assert_eq!(three.operate(2, set(None, "beta"), &[0, 1, 2]), Finding::Won);
    assert_eq!(three.phase(&mut first, &accept, &[0, 1]), Some(Proposal::Again));
    assert_eq!(first.unasked(2, &accept), None, "the round is over");
    assert_eq!(three.run(&mut first, &[0, 1, 2]), Finding::Lost(Some(cell(1, "beta"))));
}

#[test]
fn a_set_that_somebody_else_has_completed_is_won() {
    let mut three = Three::default();
    let mut first = Proposer::new(3, 1, None, set(None, "alpha"));
    let prepare = asked(first.begin());
    let accept = asked(three.phase(&mut first, &prepare, &[0, 1]).unwrap());
    three.ask(0, &accept);
    assert_eq!(three.operate(2, CellIntent::Probe, &[0, 1]), Finding::Holds(Some(cell(1, "alpha"))));
    assert_eq!(three.phase(&mut first, &accept, &[0, 1]), Some(Proposal::Again));
    assert_eq!(three.run(&mut first, &[1, 2]), Finding::Won);
}

#[test]
fn a_set_that_others_have_gone_beyond_is_known_by_its_trail_and_in_doubt_beyond_that() {
    for (beyond, finding) in [(1, Finding::Won), (8, Finding::Won), (9, Finding::Overtaken)] {
        let mut three = Three::default();
        let mut first = Proposer::new(3, 1, None, set(None, "alpha"));
        let prepare = asked(first.begin());
        let accept = asked(three.phase(&mut first, &prepare, &[0, 1]).unwrap());
        three.ask(0, &accept);
        for generation in 1..=beyond {
            assert_eq!(three.operate(2, set(Some(generation), "beta"), &[0, 1]), Finding::Won);
        }
        assert_eq!(three.phase(&mut first, &accept, &[1, 2]), Some(Proposal::Again));
        assert_eq!(three.run(&mut first, &[0, 1, 2]), finding, "{beyond} beyond");
    }
}

#[test]
fn a_set_in_whose_place_others_have_set_is_lost() {
    let mut three = Three::default();
    let mut first = Proposer::new(3, 1, None, set(None, "alpha"));
    let prepare = asked(first.begin());
    let accept = asked(three.phase(&mut first, &prepare, &[0, 1]).unwrap());
    three.ask(0, &accept);
    assert_eq!(three.operate(2, set(None, "beta"), &[1, 2]), Finding::Won);
    assert_eq!(three.operate(2, set(Some(1), "beta"), &[1, 2]), Finding::Won);
    assert_eq!(three.phase(&mut first, &accept, &[1, 2]), Some(Proposal::Again));
    assert_eq!(three.run(&mut first, &[0, 1, 2]), Finding::Lost(Some(cell(2, "beta"))));
}

/// The first set's value was seen nowhere, so it is proposed again; that it comes up later cannot harm.
#[test]
fn a_set_is_repeated_only_while_the_generation_that_it_expects_is_there() {
    let mut three = Three::default();
    assert_eq!(three.operate(1, set(None, "alpha"), &[0, 1, 2]), Finding::Won);
    let mut slow = Proposer::new(3, 2, None, set(Some(1), "beta"));
    assert_eq!(slow.begin(), Proposal::Ask(MemberAsk::Prepare(Ballot { round: 1, proposer: 2 })));
    let again = MemberAsk::Prepare(Ballot { round: 1, proposer: 2 });
    let accept = asked(three.phase(&mut slow, &again, &[0, 1, 2]).unwrap());
    three.ask(2, &accept);
    // Two others do not see it, and go on.
    assert_eq!(three.operate(3, set(Some(1), "alpha"), &[0, 1]), Finding::Won);
    assert_eq!(three.phase(&mut slow, &accept, &[0, 1]), Some(Proposal::Again));
    assert_eq!(three.run(&mut slow, &[0, 1, 2]), Finding::Lost(Some(cell(2, "alpha"))));
    assert_eq!(three.operate(4, CellIntent::Read, &[1, 2]), Finding::Holds(Some(cell(2, "alpha"))));
}

#[test]
fn answers_of_other_rounds_and_second_answers_count_for_nothing() {
    let mut three = Three::default();
    let mut proposer = Proposer::new(3, 1, None, CellIntent::Probe);
    let prepare = asked(proposer.begin());
    let answer = three.ask(0, &prepare);
    assert_eq!(proposer.heard(0, &prepare, Some(answer.clone())), None);
    assert_eq!(proposer.heard(0, &prepare, Some(answer.clone())), None);
    let other = MemberAsk::Prepare(Ballot { round: 1, proposer: 9 });
    assert_eq!(proposer.heard(1, &other, Some(answer.clone())), None);
    assert!(matches!(proposer.heard(1, &prepare, Some(answer)), Some(Proposal::Ask(MemberAsk::Accept(_)))));
}

#[test]
fn a_set_of_members_is_odd_or_two_and_has_nobody_twice() {
    let at = |port: u16| std::net::SocketAddr::from(([10, 0, 0, 3], port));
    let set = |ports: &[u16]| MemberSet::new(&ports.iter().map(|port| at(*port)).collect::<Vec<_>>());
    assert_eq!(set(&[3, 1, 2]), set(&[1, 2, 3]));
    assert_eq!(set(&[3, 1, 2]).unwrap().to_string(), "10.0.0.3:1 10.0.0.3:2 10.0.0.3:3");
    assert_eq!(set(&[1, 2]).unwrap().majority(), 2);
    assert_eq!(set(&[1, 2, 3, 4, 5]).unwrap().majority(), 3);
    for ports in [&[][..], &[1], &[1, 2, 3, 4], &[1, 2, 3, 4, 5, 6], &[1, 2, 3, 4, 5, 6, 7, 8, 9]] {
        assert_eq!(set(ports), Err(BadMembers::Number(ports.len())));
    }
    assert_eq!(set(&[1, 2, 1]), Err(BadMembers::Twice(at(1))));
    assert_eq!(set(&[1, 2, 0]), Err(BadMembers::Address(at(0))));
}
