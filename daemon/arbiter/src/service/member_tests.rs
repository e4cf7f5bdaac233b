//! A service as one member of several: what it keeps, and what it does while its disk fails.

use super::tests::{Rig, arbiter, at, cell, over_failing_disk, pace, serve};
use super::*;
use crate::majority::{AcceptedCell, Ballot, MemberAnswer, MemberAsk, MemberSet, Register, SetCell};
use crate::{Arbiter, Trouble};
use redb::{Database, TableDefinition};
use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::Ordering;
use std::time::Instant;

fn set() -> MemberSet {
    MemberSet::new(&[1, 2, 3].map(|port| ([10, 0, 0, 3], port).into())).unwrap()
}

fn ballot(round: u64) -> Ballot {
    Ballot { round, proposer: 7 }
}

fn accepted(round: u64) -> AcceptedCell {
    let value = SetCell { cell: cell(round, "alpha"), origin: ballot(round), trail: Vec::new() };
    AcceptedCell { ballot: ballot(round), value: Some(value) }
}

/// A rig whose store is a member's.
fn member_rig() -> Rig {
    let rig = Rig::new();
    fs::remove_file(rig.path()).unwrap();
    CellStore::create_member(&rig.path(), &set(), &BTreeMap::new()).unwrap();
    rig
}

fn line(server: &CellServer) -> MemberLine {
    MemberLine::new(at(server).into(), "web", set(), pace())
}

fn asked(line: &mut MemberLine, ask: MemberAsk) -> MemberAnswer {
    line.ask(ask).unwrap_or_else(|no_vote| panic!("{no_vote:?}"))
}

#[test]
fn what_a_member_has_promised_and_accepted_is_there_after_a_restart() {
    let rig = member_rig();
    let server = serve(CellStore::open(&rig.path()).unwrap(), ServerLimits::default());
    let mut web = line(&server);
    assert_eq!(asked(&mut web, MemberAsk::Look), MemberAnswer::Has(None));
    for round in 1..=2 {
        asked(&mut web, MemberAsk::Prepare(ballot(round)));
        assert_eq!(asked(&mut web, MemberAsk::Accept(accepted(round))), MemberAnswer::Accepted);
    }
    // A round that changes nothing is no history.
    asked(&mut web, MemberAsk::Prepare(ballot(3)));
    let same = AcceptedCell { ballot: ballot(3), ..accepted(2) };
    assert_eq!(asked(&mut web, MemberAsk::Accept(same.clone())), MemberAnswer::Accepted);
    asked(&mut web, MemberAsk::Prepare(ballot(9)));
    drop(server);
    let server = serve(CellStore::open(&rig.path()).unwrap(), ServerLimits::default());
    let (theirs, registers) = ServiceDesk::new(at(&server), pace()).registers().unwrap().unwrap();
    assert_eq!(theirs, set());
    let register = Register { promised: Some(ballot(9)), accepted: Some(same) };
    assert_eq!(registers[0].register, Some(register));
    let history = ServiceDesk::new(at(&server), pace()).history("web").unwrap();
    assert_eq!(history.iter().map(|change| change.cell.generation).collect::<Vec<_>>(), [1, 2]);
    let mut web = line(&server);
    assert_eq!(asked(&mut web, MemberAsk::Prepare(ballot(8))), MemberAnswer::Beaten(Some(ballot(9))));
    // Its promise was another process's.
    let late = MemberAsk::Accept(AcceptedCell { ballot: ballot(9), value: None });
    assert_eq!(asked(&mut web, late), MemberAnswer::Beaten(Some(ballot(9))));
}

#[test]
fn a_member_whose_commit_fails_leaves_what_it_should_accept_in_doubt_and_a_promise_undone_or_done() {
    let rig = member_rig();
    let (server, faults) = over_failing_disk(&rig);
    let mut web = line(&server);
    asked(&mut web, MemberAsk::Prepare(ballot(1)));
    faults.fails.store(true, Ordering::SeqCst);
    let no_vote = web.ask(MemberAsk::Accept(accepted(1))).unwrap_err();
    assert!(no_vote.may_happen && matches!(no_vote.trouble, Trouble::StoreInDoubt { .. }), "{no_vote:?}");
    let no_vote = web.ask(MemberAsk::Prepare(ballot(2))).unwrap_err();
    assert!(!no_vote.may_happen && matches!(no_vote.trouble, Trouble::Refused { .. }), "{no_vote:?}");
    faults.fails.store(false, Ordering::SeqCst);
    let began = Instant::now();
    let has = loop {
        match web.ask(MemberAsk::Prepare(ballot(3 + began.elapsed().as_millis() as u64))) {
            Ok(MemberAnswer::Has(has)) => break has,
            other => assert!(began.elapsed().as_secs() < 10, "{other:?}"),
        }
    };
    assert!(has.is_none() || has == Some(accepted(1)), "{has:?}");
}

#[test]
fn a_damaged_register_is_an_error_for_its_own_vm_and_a_damaged_set_for_all() {
    let rig = member_rig();
    let damage = |table: &str, key: &str| {
        let database = Database::open(rig.path()).unwrap();
        let txn = database.begin_write().unwrap();
        let mut damaged = txn.open_table(TableDefinition::<&str, &[u8]>::new(table)).unwrap();
        damaged.insert(key, b"{}\n".as_slice()).unwrap();
        drop(damaged);
        txn.commit().unwrap();
    };
    damage("registers", "web");
    let server = serve(CellStore::open(&rig.path()).unwrap(), ServerLimits::default());
    let no_vote = line(&server).ask(MemberAsk::Prepare(ballot(1))).unwrap_err();
    assert!(no_vote.trouble.is_damage() && !no_vote.may_happen, "{no_vote:?}");
    let mut other = MemberLine::new(at(&server).into(), "db", set(), pace());
    assert_eq!(asked(&mut other, MemberAsk::Prepare(ballot(1))), MemberAnswer::Has(None));
    drop(server);
    damage("set", "members");
    let error = CellStore::open(&rig.path()).unwrap_err();
    assert!(error.to_string().contains("its record of its set"), "{error}");
}

#[test]
fn a_service_alone_is_no_member_and_a_member_is_none_of_another_set() {
    let rig = Rig::new();
    let server = serve(CellStore::open(&rig.path()).unwrap(), ServerLimits::default());
    assert_eq!(ServiceDesk::new(at(&server), pace()).registers(), Ok(None));
    let no_vote = line(&server).ask(MemberAsk::Look).unwrap_err();
    assert_eq!(no_vote.trouble, Trouble::NoMember);
    let rig = member_rig();
    let server = serve(CellStore::open(&rig.path()).unwrap(), ServerLimits::default());
    let other = MemberSet::new(&set().addresses()[..2]).unwrap();
    let mut web = MemberLine::new(at(&server).into(), "web", other, pace());
    for ask in [MemberAsk::Look, MemberAsk::Prepare(ballot(1)), MemberAsk::Accept(accepted(1))] {
        let no_vote = web.ask(ask).unwrap_err();
        assert_eq!(no_vote.trouble, Trouble::OtherSet { theirs: set() });
        assert!(!no_vote.may_happen);
    }
    let error = arbiter(at(&server), "web").read().unwrap_err();
    assert_eq!(error.trouble, Trouble::KeptTogether { set: set() });
}
