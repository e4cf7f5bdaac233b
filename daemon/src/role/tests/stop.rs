//! Endings: the operator stops a node, the guest comes to an end, the VM is started again.

use super::*;

#[test]
fn a_stop_while_the_cell_may_come_to_name_the_backup_waits_for_its_answer() {
    let stops = |commands: &[Command]| commands.contains(&Command::StopVm);
    // The backup was lost meanwhile: nobody but us has the VM, whatever the cell says.
    let mut rig = Rig::enlisting();
    rig.lose(7);
    assert!(!stops(&rig.on(Event::StopRequested)));
    assert!(!stops(&rig.won(cell(2, Some("a"), Some(("b", PAIRING_OF_A))))));
    // It is there: the VM moves.
    let mut rig = Rig::enlisting();
    assert!(!stops(&rig.on(Event::StopRequested)));
    let named = cell(2, Some("a"), Some(("b", PAIRING_OF_A)));
    rig.won(named.clone());
    // As soon as the backup has found itself in the cell.
    let commands = rig.hear_on(7, Some(named));
    assert!(commands.contains(&Command::FinalCheckpoint), "{commands:?}");
    // The cell was never asked.
    let mut rig = Rig::enlisting();
    rig.on(Event::StopRequested);
    assert!(stops(&rig.not_attempted()));
}

#[test]
fn a_vm_that_is_shut_down_stands_still_before_the_cell_is_given_up() {
    let mut rig = Rig::solo();
    let commands = rig.on(Event::StopRequested);
    let stop = commands.iter().position(|command| *command == Command::StopVm);
    let ask = commands.iter().position(|command| matches!(command, Command::CompareAndSet { .. }));
    assert!(stop.is_some() && stop < ask, "{commands:?}");
}

#[test]
fn a_stop_whose_switchover_loses_the_peer_still_stops() {
    let mut rig = Rig::protected();
    rig.on(Event::StopRequested);
    rig.on(Event::FinalCaptured { epoch: 2 });
    let commands = rig.lose(7);
    assert!(asks(&commands).is_some_and(|new| *new == cell(3, Some("a"), None)));
    let commands = rig.won(cell(3, Some("a"), None));
    assert!(asks(&commands).is_some_and(|new| *new == cell(4, None, None)), "{commands:?}");
    assert!(exits(&rig.won(cell(4, None, None))));
}

#[test]
fn a_stop_waits_for_the_cell_that_may_name_this_node_alone() {
    let mut rig = Rig::alone();
    assert!(!exits(&rig.on(Event::StopRequested)));
    // It does name us alone: the VM is ended in order.
    let commands = rig.won(cell(3, Some("a"), None));
    assert!(asks(&commands).is_some_and(|new| *new == cell(4, None, None)));

    let mut rig = Rig::alone();
    rig.on(Event::StopRequested);
    // It still names the backup. Nobody knows whether that one can go on: this copy is kept.
    assert!(!exits(&rig.not_attempted()));
    assert!(!exits(&rig.tick_after(10 * LEASE_US)));
    // The backup is back: the VM moves, as soon as the backup has read the cell.
    let held = Some(Held { pairing: PAIRING_OF_A, epoch: 1 });
    rig.not_attempted();
    rig.on(Event::PeerHello { conn: 8, generation: 2, held });
    let commands = rig.hear_on(8, Some(cell(2, Some("a"), Some(("b", PAIRING_OF_A)))));
    assert!(commands.contains(&Command::FinalCheckpoint), "{commands:?}");
}

#[test]
fn a_stop_that_cannot_move_the_vm_leaves_it_running() {
    let mut rig = Rig::protected();
    rig.on(Event::StopRequested);
    rig.on(Event::FinalCaptured { epoch: 1 });
    let why = "the arbiter does not answer".to_string();
    let commands = rig.on(Event::SwitchoverDeclined { conn: 7, why });
    assert!(commands.contains(&Command::Thaw) && !exits(&commands), "{commands:?}");
    assert_eq!(rig.core.view().state, State::Protected);
}

#[test]
fn a_backup_that_is_to_stop_keeps_its_state_until_the_cell_does_not_name_it() {
    let named = || Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5))))));
    let mut rig = Rig::sealed();
    let commands = rig.on(Event::StopRequested);
    assert!(matches!(
        commands[..],
        [Command::SendBye { conn: 7, .. }, Command::DropLink { conn: 7 }, Command::ReadCell]
    ));
    assert_eq!(rig.on(named()), [], "the primary may be dying at this moment");
    assert_eq!(rig.tick_after(20_000), [Command::ReadCell]);
    let commands = rig.on(Event::CellRead(Ok(Some(cell(3, Some("a"), None)))));
    assert!(commands.contains(&Command::Discard) && exits(&commands), "{commands:?}");

    // A cell that never named it says nothing; a primary that offers a full copy does.
    let mut rig = Rig::sealed();
    rig.on(Event::StopRequested);
    rig.tick_after(600_000);
    let commands = rig.on(Event::CellRead(Ok(Some(cell(1, Some("a"), None)))));
    assert_eq!(commands, [Command::Dial]);
    let commands = rig.on(Event::Welcomed { conn: 8, generation: 1, pairing: 6, how: PairingStart::Copy });
    assert!(commands.contains(&Command::Discard) && exits(&commands), "{commands:?}");

    // A primary that never goes on without it is dead, and this is the last copy.
    let mut rig = Rig::sealed();
    rig.on(Event::StopRequested);
    rig.tick_after(600_000);
    let commands = rig.on(named());
    assert!(commands.contains(&Command::Verify { epoch: 1 }) && !exits(&commands), "{commands:?}");

    // So is the copy of an orphan.
    let mut rig = Rig::orphaned();
    assert_eq!(rig.on(Event::StopRequested), []);
    assert!(asks(&rig.on(named())).is_some());
}

#[test]
fn a_vm_that_is_over_is_booted_when_the_operator_starts_the_other_node() {
    let mut rig = Rig::new("a", "b", StartAs::Primary);
    rig.on(Event::CellRead(Ok(Some(cell(2, Some("b"), None)))));
    rig.on(Event::PeerGone { conn: 7, why: Gone::Bye("the VM has ended".into()) });
    assert_eq!(rig.tick_after(LEASE_US), [], "not by itself");
    let commands = rig.on(Event::PeerHello { conn: 8, generation: 3, held: None });
    assert!(matches!(commands[..], [Command::Refuse { conn: 8, .. }, Command::ReadCell]), "{commands:?}");
    let commands = rig.on(Event::CellRead(Ok(Some(cell(3, None, None)))));
    assert_eq!(commands, [Command::StopDialling, Command::ReadCell]);
    rig.on(Event::CellRead(Ok(Some(cell(3, None, None)))));
    assert!(rig.won(cell(4, Some("a"), None)).contains(&Command::Boot));
}

#[test]
fn a_backup_that_wins_while_it_is_to_stop_keeps_the_vm_and_welcomes_a_backup() {
    let mut rig = Rig::orphaned();
    rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
    assert!(!exits(&rig.on(Event::StopRequested)));
    rig.won(cell(3, Some("b"), None));
    let commands = rig.on(Event::PeerHello { conn: 8, generation: 2, held: None });
    assert!(matches!(commands[..], [Command::Welcome { conn: 8, generation: 3, .. }]), "{commands:?}");
}

#[test]
fn a_stop_while_founding_leaves_a_cell_that_names_nobody() {
    let mut rig = Rig::new("a", "b", StartAs::Primary);
    rig.on(Event::CellRead(Ok(None)));
    assert!(!exits(&rig.on(Event::StopRequested)));
    let commands = rig.won(cell(1, Some("a"), None));
    assert!(!commands.contains(&Command::Boot));
    assert!(asks(&commands).is_some_and(|new| *new == cell(2, None, None)));
    assert!(exits(&rig.won(cell(2, None, None))));
}

#[test]
fn a_guest_that_resets_while_it_is_to_stop_is_not_booted_again() {
    let mut rig = Rig::protected();
    rig.on(Event::StopRequested);
    let commands = rig.on(Event::GuestEnded(GuestEnd::Reset));
    assert!(asks(&commands).is_some_and(|new| *new == cell(3, Some("a"), None)));
    let commands = rig.won(cell(3, Some("a"), None));
    assert!(!commands.contains(&Command::Boot));
    assert!(asks(&commands).is_some_and(|new| *new == cell(4, None, None)));
    assert!(exits(&rig.won(cell(4, None, None))));
}
