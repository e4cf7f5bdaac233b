//! Endings: the operator stops a node, the guest comes to an end, the VM is started again.

use super::*;

#[test]
fn a_vm_that_is_shut_down_stands_still_before_the_cell_is_given_up() {
    let mut rig = Rig::solo();
    let commands = rig.on(power_off(0));
    let stop = commands.iter().position(|command| *command == Command::StopVm);
    let ask = commands.iter().position(|command| matches!(command, Command::CompareAndSet { .. }));
    assert!(stop.is_some() && stop < ask, "{commands:?}");
}

#[test]
fn a_guest_has_the_time_given_to_power_off_before_the_cord_is_pulled() {
    let mut rig = Rig::solo();
    assert_eq!(rig.on(power_off(50_000)), [Command::PressPowerButton]);
    assert_eq!(rig.tick_after(40_000), []);
    let commands = rig.tick_after(15_000);
    assert!(commands.contains(&Command::StopVm), "{commands:?}");
    assert!(exits(&rig.won(cell(2, None, None))));

    let mut rig = Rig::solo();
    rig.on(power_off(50_000));
    let commands = rig.on(Event::GuestEnded(GuestEnd::PoweredOff));
    assert!(asks(&commands).is_some_and(|new| *new == cell(2, None, None)), "{commands:?}");
    let commands = rig.won(cell(2, None, None));
    let stopped =
        |command: &Command| matches!(command, Command::Answer { outcome: Ok(Done::Stopped(_)), .. });
    assert!(commands.iter().any(stopped) && exits(&commands), "{commands:?}");
}

#[test]
fn a_stop_that_would_end_the_vm_is_refused() {
    let mut rig = Rig::solo();
    let commands = rig.on(stop());
    assert!(
        matches!(commands[..], [Command::Answer { outcome: Err(RequestRefusal::WouldEnd), .. }]),
        "{commands:?}"
    );
    assert!(!exits(&rig.tick_after(LEASE_US / 2)));
    let mut rig = Rig::enlisting();
    let commands = rig.on(stop());
    assert!(matches!(refusal(&commands), Some(RequestRefusal::Abandoned(_))), "{commands:?}");
    assert!(!exits(&rig.tick_after(LEASE_US / 2)));
    let mut rig = Rig::alone();
    let commands = rig.on(stop());
    assert!(matches!(refusal(&commands), Some(RequestRefusal::Abandoned(_))), "{commands:?}");
    // Nor does it move to a peer that has come back, while the cell may come to say that it is a stranger.
    let held = Some(Held { pairing: PAIRING_OF_A, epoch: 1 });
    rig.on(Event::PeerHello { conn: 8, nonce: 9, generation: 2, held });
    let commands = rig.on(stop());
    assert!(matches!(refusal(&commands), Some(RequestRefusal::Abandoned(_))), "{commands:?}");
    assert!(rig.won(cell(3, Some("a"), None)).contains(&Command::EmitFreely), "it goes on");
}

#[test]
fn a_stop_that_began_protected_and_loses_the_peer_goes_on_with_the_vm() {
    let mut rig = Rig::protected();
    rig.on(stop());
    rig.on(Event::FinalCaptured { epoch: 2 });
    let commands = rig.lose(7);
    assert!(asks(&commands).is_some_and(|new| *new == cell(3, Some("a"), None)));
    let commands = rig.won(cell(3, Some("a"), None));
    assert!(commands.contains(&Command::Thaw) && !commands.contains(&Command::StopVm), "{commands:?}");
    assert!(matches!(refusal(&commands), Some(RequestRefusal::Abandoned(_))), "{commands:?}");
    assert_eq!(rig.core.view().state, State::Solo);
}

#[test]
fn a_stop_that_cannot_move_the_vm_leaves_it_running() {
    let mut rig = Rig::protected();
    rig.on(stop());
    rig.on(Event::FinalCaptured { epoch: 1 });
    let why = "the arbiter does not answer".to_string();
    let commands = rig.on(Event::SwitchoverDeclined { conn: 7, why });
    assert!(commands.contains(&Command::Thaw) && !exits(&commands), "{commands:?}");
    assert!(refusal(&commands).is_some(), "{commands:?}");
    assert_eq!(rig.core.view().state, State::Protected);
}

#[test]
fn a_backup_that_is_to_stop_keeps_its_state_until_the_cell_does_not_name_it() {
    let named = || Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5))))));
    let mut rig = Rig::sealed();
    let commands = rig.on(stop());
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
    rig.on(stop());
    rig.tick_after(600_000);
    let commands = rig.on(Event::CellRead(Ok(Some(cell(1, Some("a"), None)))));
    assert_eq!(commands, [Command::Dial]);
    let commands = rig.on(Event::Welcomed { conn: 8, generation: 1, pairing: 6, how: PairingStart::Copy });
    assert!(commands.contains(&Command::Discard) && exits(&commands), "{commands:?}");

    // A primary that never goes on without it is dead, and this is the last copy.
    let mut rig = Rig::sealed();
    rig.on(stop());
    rig.tick_after(600_000);
    let commands = rig.on(named());
    assert!(commands.contains(&Command::Verify { epoch: 1 }) && !exits(&commands), "{commands:?}");

    assert!(matches!(refusal(&commands), Some(RequestRefusal::Needed(_))), "{commands:?}");

    // So is the copy of an orphan.
    let mut rig = Rig::orphaned();
    assert!(matches!(refusal(&rig.on(stop())), Some(RequestRefusal::LastCopy)));
    assert!(asks(&rig.on(named())).is_some());
}

#[test]
fn a_vm_that_is_over_is_booted_when_the_operator_starts_the_other_node() {
    let mut rig = Rig::new("a", "b", StartAs::Primary);
    rig.on(Event::CellRead(Ok(Some(cell(2, Some("b"), None)))));
    rig.on(Event::PeerGone { conn: 7, why: Gone::Bye("the VM has ended".into()) });
    assert_eq!(rig.tick_after(LEASE_US), [], "not by itself");
    let commands = rig.on(Event::PeerHello { conn: 8, nonce: 9, generation: 3, held: None });
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
    assert!(!exits(&rig.on(stop())));
    rig.won(cell(3, Some("b"), None));
    rig.on(Event::TookOver);
    let commands = rig.on(Event::PeerHello { conn: 8, nonce: 9, generation: 2, held: None });
    assert!(matches!(commands[..], [Command::Welcome { conn: 8, generation: 3, .. }]), "{commands:?}");
}

#[test]
fn a_stop_while_founding_leaves_a_cell_that_names_nobody() {
    let mut rig = Rig::new("a", "b", StartAs::Primary);
    rig.on(Event::CellRead(Ok(None)));
    assert!(!exits(&rig.on(stop())));
    let commands = rig.won(cell(1, Some("a"), None));
    assert!(!commands.contains(&Command::Boot));
    assert!(asks(&commands).is_some_and(|new| *new == cell(2, None, None)));
    assert!(exits(&rig.won(cell(2, None, None))));
}

#[test]
fn a_guest_that_resets_while_it_is_to_move_boots_again_here() {
    let mut rig = Rig::protected();
    rig.on(stop());
    let commands = rig.on(Event::GuestEnded(GuestEnd::Reset));
    assert!(asks(&commands).is_some_and(|new| *new == cell(3, Some("a"), None)));
    let commands = rig.won(cell(3, Some("a"), None));
    assert!(commands.contains(&Command::Boot), "{commands:?}");
    assert_eq!(refusal(&commands), Some(&RequestRefusal::GuestReboots));
}

#[test]
fn a_guest_that_resets_when_it_is_to_power_off_is_not_booted_again() {
    let mut rig = Rig::solo();
    rig.on(power_off(50_000));
    let commands = rig.on(Event::GuestEnded(GuestEnd::Reset));
    assert!(!commands.contains(&Command::Boot));
    assert!(asks(&commands).is_some_and(|new| *new == cell(2, None, None)));
    assert!(exits(&rig.won(cell(2, None, None))));
}

#[test]
fn a_switchover_whose_time_is_over_is_called_off_while_nothing_has_changed() {
    let asked = |rig: &mut Rig| {
        let until = rig.now + 50_000;
        rig.on(Event::SwitchoverRequested { request: REQUEST, until });
        rig.on(Event::SwitchoverRequested { request: 2, until })
    };
    let mut rig = Rig::protected();
    let second = asked(&mut rig);
    assert_eq!(second, [Command::Answer { request: 2, outcome: Err(RequestRefusal::UnderWay) }]);
    let commands = rig.tick_after(55_000);
    assert_eq!(refusal(&commands), Some(&RequestRefusal::TimedOut));
    assert!(commands.contains(&Command::Thaw), "{commands:?}");

    // Nor has it while the arbiters are asked: the VM never stood still.
    let mut rig = Rig::protected();
    rig.now += 10;
    asked(&mut rig);
    let commands = rig.tick_after(55_000);
    assert_eq!(refusal(&commands), Some(&RequestRefusal::TimedOut));
    assert!(!commands.contains(&Command::Thaw), "{commands:?}");
    assert_eq!(rig.core.view().state, State::Protected);

    let mut rig = Rig::protected();
    asked(&mut rig);
    rig.on(Event::FinalCaptured { epoch: 2 });
    rig.on(Event::Ack { conn: 7, epoch: 2, stamp: rig.now });
    let commands = rig.tick_after(55_000);
    assert_eq!(refusal(&commands), Some(&RequestRefusal::Undecided), "the backup may run it");
    assert!(!commands.contains(&Command::Thaw), "{commands:?}");
}

#[test]
fn a_host_that_goes_down_ends_no_vm_that_another_node_may_have() {
    for mut rig in [Rig::enlisting(), Rig::alone()] {
        let commands = rig.on(host_down());
        assert!(matches!(refusal(&commands), Some(RequestRefusal::Abandoned(_))), "{commands:?}");
        let commands = rig.tick_after(60_000);
        assert!(!exits(&commands) && !commands.contains(&Command::StopVm), "{commands:?}");
    }
    // Protected, it moves, and again after a move that came to nothing.
    let mut rig = Rig::protected();
    for conn in [7, 7] {
        rig.on(host_down());
        rig.hear(Some(cell(2, Some("a"), Some(("b", PAIRING_OF_A)))));
        rig.on(Event::FinalCaptured { epoch: 1 });
        let commands = rig.on(Event::SwitchoverDeclined { conn, why: "no memory".into() });
        assert!(refusal(&commands).is_some() && commands.contains(&Command::Thaw), "{commands:?}");
        assert!(!commands.contains(&Command::PressPowerButton), "{commands:?}");
    }
    rig.on(host_down());
    let commands = rig.tick_after(60_000);
    assert!(!commands.contains(&Command::StopVm), "{commands:?}");
}

#[test]
fn a_vm_that_nobody_else_has_is_asked_to_power_off_with_its_host_and_takes_no_backup_meanwhile() {
    let mut rig = Rig::solo();
    assert_eq!(rig.on(host_down()), [Command::PressPowerButton]);
    let commands = rig.on(Event::PeerHello { conn: 7, nonce: 9, generation: 0, held: None });
    assert!(matches!(commands[..], [Command::Refuse { conn: 7, .. }]), "{commands:?}");
    let commands = rig.tick_after(60_000);
    assert_eq!(asks(&commands), Some(&cell(2, None, None)), "{commands:?}");

    let mut rig = Rig::solo();
    rig.on(Event::PeerHello { conn: 7, nonce: 9, generation: 0, held: None });
    rig.on(Event::FirstCaptured { pairing: PAIRING_OF_A });
    let commands = rig.on(host_down());
    assert!(matches!(commands[..2], [Command::SendBye { conn: 7, .. }, Command::DropLink { conn: 7 }]));
    assert!(commands.contains(&Command::PressPowerButton), "{commands:?}");
    assert_eq!(asks(&rig.on(Event::Ack { conn: 7, epoch: 1, stamp: 0 })), None, "nor names one");
}
