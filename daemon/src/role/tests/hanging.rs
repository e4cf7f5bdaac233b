//! An arbiter that hangs: what is asked of it never comes back.

use super::*;

/// What the ticks of this time bring; every request stays unanswered, and the peer is heard.
fn wait(rig: &mut Rig, us: Micros) -> Vec<Command> {
    let (mut commands, end) = (Vec::new(), rig.now + us);
    while rig.now < end {
        rig.now += 10_000;
        rig.core.handle(rig.now, Event::Heard { conn: 7 }, &mut commands);
        rig.core.handle(rig.now, Event::Tick, &mut commands);
    }
    commands
}

fn times_left(commands: &[Command]) -> usize {
    commands.iter().filter(|command| **command == Command::LeaveArbiter).count()
}

#[test]
fn a_request_that_is_not_answered_is_left_behind_and_made_again() {
    let mut rig = Rig::alone();
    let patience_us = policy().patience_us;
    assert_eq!(times_left(&wait(&mut rig, patience_us - 10_000)), 0);
    assert_eq!(times_left(&wait(&mut rig, 20_000)), 1);
    assert_eq!(times_left(&wait(&mut rig, patience_us)), 1, "it could not be left: too many hang");
    rig.on(Event::CellSet(Outcome::Unknown(silence())));
    let commands = wait(&mut rig, 20_000);
    assert!(asks(&commands).is_some_and(|new| *new == cell(3, Some("a"), None)), "{commands:?}");
    assert_eq!(times_left(&wait(&mut rig, patience_us - 30_000)), 0, "it has its own time");
    assert_eq!(times_left(&wait(&mut rig, 40_000)), 1);
}

#[test]
fn a_request_in_doubt_that_waits_for_its_turn_is_not_left_behind() {
    let mut rig = Rig::alone();
    rig.now += policy().patience_us;
    let mut commands = Vec::new();
    rig.core.handle(rig.now, Event::CellSet(Outcome::Unknown(silence())), &mut commands);
    assert_eq!(times_left(&commands), 0, "{commands:?}");
}

#[test]
fn a_look_at_the_cell_that_is_not_answered_is_left_behind_and_taken_again() {
    let mut rig = Rig::orphaned();
    let commands = wait(&mut rig, policy().patience_us);
    assert_eq!(times_left(&commands), 1, "{commands:?}");
    rig.on(Event::CellRead(Err(silence())));
    assert!(wait(&mut rig, 20_000).contains(&Command::ReadCell));
    let commands = rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
    assert!(asks(&commands).is_some_and(|new| *new == cell(3, Some("b"), None)), "{commands:?}");
}

#[test]
fn a_backup_goes_on_proving_that_it_lives_while_it_asks_the_arbiter() {
    let mut rig = Rig::sealed();
    rig.arbiter = None;
    for stamp in 1..100 {
        rig.now += 10_000;
        rig.on(Event::Tick);
        rig.on(Event::Heard { conn: 7 });
        let commands = rig.on(Event::Heartbeat { conn: 7, stamp, lease: LEASE_US });
        let echoed = matches!(commands[..], [Command::SendEcho { stamp: echoed, .. }] if echoed == stamp);
        assert!(echoed, "{commands:?}");
    }
    assert!(rig.looking, "it has asked, and waits");
}
