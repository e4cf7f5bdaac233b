//! Rehearsals: a backup vouches only for what it has tried.

use super::*;

const SECOND_US: Micros = 1_000_000;

/// Node b, which follows pairing 5 over connection 7.
fn following() -> Rig {
    let mut rig = Rig::new("b", "a", StartAs::Backup);
    rig.on(Event::CellRead(Ok(Some(cell(1, Some("a"), None)))));
    rig.on(Event::Welcomed { conn: 7, generation: 1, pairing: 5, how: PairingStart::Copy });
    rig
}

fn sealed(epoch: u64) -> Event {
    Event::Sealed { conn: 7, pairing: 5, epoch, stamp: epoch }
}

fn failed() -> Event {
    Event::RehearsalFailed { pairing: 5, why: "KVM_SET_LAPIC refused the state".into() }
}

/// Lets time pass while the primary is heard.
fn heard_for(rig: &mut Rig, us: Micros) -> Vec<Command> {
    let mut commands = Vec::new();
    let end = rig.now + us;
    while rig.now < end {
        rig.on(Event::Heard { conn: 7 });
        commands.extend(rig.tick_after(50_000.min(end - rig.now)));
    }
    commands
}

#[test]
fn nothing_is_acknowledged_before_it_was_tried_and_then_the_newest() {
    let mut rig = following();
    assert_eq!(rig.on(sealed(1)), [Command::Rehearse { epoch: 1 }]);
    assert_eq!(rig.on(sealed(2)), [], "one is under way");
    let lease = LEASE_US;
    let heartbeat = Event::Heartbeat { conn: 7, stamp: 9, lease };
    assert_eq!(rig.on(heartbeat), [Command::SendEcho { conn: 7, stamp: 9, lease }]);
    assert_eq!(rig.on(Event::Rehearsed { pairing: 4 }), [], "of a pairing that is past");
    let ack = |epoch| Command::SendAck { conn: 7, epoch, stamp: epoch };
    assert_eq!(rig.on(Event::Rehearsed { pairing: 5 }), [ack(2)]);
    assert_eq!(rig.on(sealed(3)), [ack(3)]);
    // What was tried stays so over a lost connection; another full copy has to be tried anew.
    rig.lose(7);
    rig.on(Event::Welcomed { conn: 8, generation: 2, pairing: 5, how: PairingStart::ResumeAfter(3) });
    let next = Event::Sealed { conn: 8, pairing: 5, epoch: 4, stamp: 4 };
    assert_eq!(rig.on(next), [Command::SendAck { conn: 8, epoch: 4, stamp: 4 }]);
    rig.lose(8);
    rig.on(Event::Welcomed { conn: 9, generation: 2, pairing: 6, how: PairingStart::Copy });
    let first = Event::Sealed { conn: 9, pairing: 6, epoch: 1, stamp: 5 };
    assert_eq!(rig.on(first), [Command::Rehearse { epoch: 1 }]);
}

#[test]
fn a_first_rehearsal_that_fails_gives_the_pairing_up_names_why_and_dials_later_and_later() {
    let mut rig = following();
    rig.on(sealed(1));
    let commands = rig.on(failed());
    let said =
        |command: &Command| matches!(command, Command::SendBye { why, .. } if why.contains("KVM_SET_LAPIC"));
    assert!(commands.iter().any(said), "{commands:?}");
    assert!(commands.contains(&Command::Discard), "{commands:?}");
    assert!(rig.core.view().detail.contains("KVM_SET_LAPIC"), "{:?}", rig.core.view());
    assert_eq!(rig.tick_after(SECOND_US / 2), [], "the primary is left alone");
    assert_eq!(rig.tick_after(SECOND_US), [Command::Dial]);
    rig.on(Event::Welcomed { conn: 7, generation: 1, pairing: 5, how: PairingStart::Copy });
    assert_eq!(rig.on(sealed(1)), [Command::Rehearse { epoch: 1 }]);
    rig.on(failed());
    assert_eq!(rig.tick_after(3 * SECOND_US / 2), []);
    assert_eq!(rig.tick_after(SECOND_US), [Command::Dial]);
}

#[test]
fn a_rehearsal_that_comes_to_no_end_has_failed() {
    let mut rig = following();
    rig.on(sealed(1));
    assert_eq!(heard_for(&mut rig, 29 * SECOND_US), []);
    assert!(heard_for(&mut rig, 2 * SECOND_US).contains(&Command::Discard));
}

#[test]
fn what_is_held_is_tried_every_minute_and_soon_again_after_a_failure_that_gives_nothing_up() {
    let mut rig = Rig::sealed();
    let rehearses = |commands: &[Command]| commands.iter().any(|c| matches!(c, Command::Rehearse { .. }));
    assert_eq!(heard_for(&mut rig, 59 * SECOND_US), []);
    assert_eq!(heard_for(&mut rig, 2 * SECOND_US), [Command::Rehearse { epoch: 1 }]);
    assert_eq!(rig.on(failed()), [], "it is kept: it may be the last copy");
    let view = rig.core.view().rehearsal.expect("it is a backup");
    assert!(view.trouble.is_some_and(|why| why.contains("KVM_SET_LAPIC")));
    assert!(view.proven_at.is_some());
    assert!(rehearses(&heard_for(&mut rig, 6 * SECOND_US)));
    rig.on(Event::Rehearsed { pairing: 5 });
    assert_eq!(rig.core.view().rehearsal.expect("it is a backup").trouble, None);
}

#[test]
fn a_later_failure_is_told_to_the_primary_at_once_and_so_is_its_end() {
    let mut rig = Rig::sealed();
    let told = |rig: &mut Rig, event| {
        let mut commands = Vec::new();
        rig.core.handle(rig.now, event, &mut commands);
        let standing = commands.into_iter().find_map(|command| match command {
            Command::SendStanding { standing, .. } => Some(standing),
            _ => None,
        });
        standing.map(|standing| standing.unfit)
    };
    heard_for(&mut rig, 61 * SECOND_US);
    let why = "KVM_SET_LAPIC refused the state".to_owned();
    assert_eq!(told(&mut rig, failed()), Some(Some((why, 0))));
    heard_for(&mut rig, 6 * SECOND_US);
    assert_eq!(told(&mut rig, failed()), None, "nothing new");
    heard_for(&mut rig, 6 * SECOND_US);
    assert_eq!(told(&mut rig, Event::Rehearsed { pairing: 5 }), Some(None));
}
