//! The primary: releases, pairings, switchovers, failures of its host.

use super::*;

#[test]
fn nothing_is_released_while_the_cell_is_being_given_up() {
    let mut rig = Rig::protected();
    let commands = rig.on(Event::GuestEnded(GuestEnd::PoweredOff));
    assert!(asks(&commands).is_some_and(|new| *new == cell(3, None, None)));
    assert!(!releases(&rig.on(Event::Ack { conn: 7, epoch: 2, stamp: rig.now })));
    // Nor when the peer is lost in the middle of it, before it was ever named.
    let mut sealing = Rig::solo();
    sealing.on(Event::PeerHello { conn: 7, nonce: 9, generation: 0, held: None });
    sealing.on(Event::FirstCaptured { pairing: PAIRING_OF_A });
    sealing.on(Event::GuestEnded(GuestEnd::PoweredOff));
    assert!(!releases(&sealing.lose(7)));
    // Once it is certain that the cell was not given up, the permission counts again.
    rig.not_attempted();
    assert!(releases(&rig.on(Event::Echo { conn: 7, stamp: rig.now, lease: LEASE_US })));
}

#[test]
fn a_vm_that_never_ran_leaves_a_cell_that_names_nobody() {
    let mut rig = Rig::solo();
    let commands = rig.on(Event::BootFailed("no kernel".into()));
    assert!(asks(&commands).is_some_and(|new| *new == cell(2, None, None)), "{commands:?}");
    rig.not_attempted();
    assert!(asks(&rig.tick_after(10 * LEASE_US)).is_some(), "however long the arbiter is away");
    assert!(exits(&rig.won(cell(2, None, None))));
}

#[test]
fn an_ack_that_cannot_be_ends_the_connection() {
    let mut rig = Rig::protected();
    let commands = rig.on(Event::AckRefused { conn: 7, why: "epoch 9 was never sent".into() });
    assert!(commands.contains(&Command::DropLink { conn: 7 }) && !releases(&commands), "{commands:?}");
}

#[test]
fn a_switchover_goes_on_when_a_lapsed_permit_is_renewed() {
    let mut rig = Rig::protected();
    rig.on(switchover());
    rig.on(Event::FinalCaptured { epoch: 2 });
    rig.tick_after(LEASE_US / 2);
    rig.on(Event::Heard { conn: 7 });
    rig.tick_after(LEASE_US / 2 + 1);
    // The ack answers an old stamp: its permission is over.
    rig.on(Event::Ack { conn: 7, epoch: 2, stamp: 0 });
    let commands = rig.on(Event::Echo { conn: 7, stamp: rig.now, lease: LEASE_US });
    assert!(commands.contains(&Command::SendOffer { conn: 7, epoch: 2 }), "{commands:?}");
}

#[test]
fn a_permission_that_is_missed_for_longer_than_a_moment_is_told_with_since_when() {
    let mut rig = Rig::protected();
    let named = cell(2, Some("a"), Some(("b", PAIRING_OF_A)));
    rig.tick_after(LEASE_US);
    // The ack answers an old stamp, and no heartbeat is answered.
    let missed = rig.now;
    rig.on(Event::Ack { conn: 7, epoch: 2, stamp: 0 });
    let listen = |rig: &mut Rig, us: Micros| {
        for _ in 0..us / 50_000 {
            rig.tick_after(50_000);
            rig.hear(Some(named.clone()));
        }
    };
    listen(&mut rig, 500_000);
    assert_eq!(rig.core.view().state, State::Protected, "for a moment it is nobody's business");
    listen(&mut rig, 600_000);
    let view = rig.core.view();
    assert_eq!(view.state, State::Degraded, "{view:?}");
    let lapses: Vec<_> = view.lapses.iter().map(|lapsed| (lapsed.lapse.kind(), lapsed.since)).collect();
    assert_eq!(lapses, [("no_permit", missed)]);
    assert!(view.detail.contains("output is held"), "{}", view.detail);
    assert!(releases(&rig.on(Event::Echo { conn: 7, stamp: rig.now, lease: LEASE_US })));
    assert_eq!(rig.core.view().state, State::Protected);
}

#[test]
fn a_primary_that_waits_for_the_arbiter_says_since_when_its_output_is_held() {
    let mut rig = Rig::alone();
    let lost = rig.now;
    rig.not_attempted();
    rig.tick_after(900_000);
    assert!(rig.core.view().lapses.iter().all(|lapsed| lapsed.lapse.kind() != "no_permit"));
    rig.tick_after(200_000);
    let view = rig.core.view();
    let lapse = view.lapses.iter().find(|lapsed| lapsed.lapse.kind() == "no_permit");
    assert_eq!(lapse.map(|lapsed| lapsed.since), Some(lost), "{view:?}");
    rig.won(cell(3, Some("a"), None));
    assert!(rig.core.view().lapses.is_empty());
}

#[test]
fn a_link_ends_when_its_stream_stands_still_although_its_pulse_beats() {
    let mut rig = Rig::protected();
    let mut dropped_after = 0;
    let dropped = Command::DropLink { conn: 7 };
    while dropped_after < 10_000_000 {
        dropped_after += 20_000;
        if rig.tick_after(20_000).contains(&dropped) {
            break;
        }
        rig.on(Event::Echo { conn: 7, stamp: rig.now, lease: LEASE_US });
    }
    assert!((400_000..=440_000).contains(&dropped_after), "four times the failure time-out: {dropped_after}");
    assert!(rig.core.view().detail.contains("it lives, but nothing else came"), "{}", rig.core.view().detail);
}

#[test]
fn the_lease_follows_the_round_trip_within_its_bound() {
    let mut rig = Rig::protected();
    rig.core.policy.failure_timeout_us = 10 * LEASE_US;
    let mut asked = |round_trip: Micros| {
        let sent = rig.now;
        rig.on(Event::Heard { conn: 7 });
        rig.tick_after(round_trip);
        rig.on(Event::Echo { conn: 7, stamp: sent, lease: LEASE_US });
        rig.on(Event::ReleaseCut).into_iter().find_map(|command| match command {
            Command::SendHeartbeat { lease, .. } => Some(lease),
            _ => None,
        })
    };
    assert_eq!(asked(LEASE_US / 20), Some(LEASE_US), "never below the configured one");
    let longer = asked(LEASE_US / 2).unwrap();
    assert!(longer > LEASE_US, "{longer}");
    let bound = asked(9 * LEASE_US).unwrap();
    assert!(bound > longer && bound < 8 * LEASE_US, "{bound}: the promise is over when silence is a loss");
    assert!(rig.core.view().detail.contains("longer than any lease"), "{}", rig.core.view().detail);
}

#[test]
fn a_backup_that_comes_back_is_told_that_it_is_paired() {
    let mut rig = Rig::alone();
    rig.not_attempted();
    let held = Some(Held { pairing: PAIRING_OF_A, epoch: 1 });
    let commands = rig.on(Event::PeerHello { conn: 8, nonce: 9, generation: 2, held });
    assert!(commands.contains(&Command::SendPaired { conn: 8, generation: 2 }), "{commands:?}");
}

#[test]
fn a_broken_pairing_is_never_resumed() {
    let mut rig = Rig::protected();
    let commands = rig.on(Event::PairingBroken { pairing: PAIRING_OF_A, why: "no memory".into() });
    assert!(commands.contains(&Command::DropLink { conn: 7 }));
    rig.not_attempted();
    let held = Some(Held { pairing: PAIRING_OF_A, epoch: 1 });
    let commands = rig.on(Event::PeerHello { conn: 8, nonce: 9, generation: 2, held });
    assert!(matches!(commands[..], [Command::Refuse { conn: 8, .. }]), "{commands:?}");
    // Alone by the cell's leave, it begins anew, and what follows can be resumed again.
    rig.tick_after(20_000);
    assert!(rig.won(cell(3, Some("a"), None)).contains(&Command::EndPairing));
    let hello = Event::PeerHello { conn: 9, nonce: 9, generation: 3, held };
    let commands = rig.on(hello.clone());
    let later =
        |command: &Command| matches!(command, Command::Refuse { conn: 9, why } if why.ends_with(" 1 s"));
    assert!(commands.iter().all(later), "{commands:?}");
    assert!(rig.core.view().detail.ends_with("takes a backup again in 1 s"), "{:?}", rig.core.view());
    rig.tick_after(1_000_000);
    let commands = rig.on(hello);
    let how = PairingStart::Copy;
    let welcome = Command::Welcome { conn: 9, pairing: PAIRING_OF_A + 1, generation: 3, how };
    assert_eq!(commands, [welcome]);
    rig.on(Event::PairingBroken { pairing: PAIRING_OF_A, why: "news of the past".into() });
    assert_eq!(rig.core.view().state, State::Resyncing);
}

#[test]
fn a_pairing_that_breaks_while_the_peer_is_away_is_not_resumed_either() {
    let mut rig = Rig::alone();
    rig.not_attempted();
    rig.on(Event::PairingBroken { pairing: PAIRING_OF_A, why: "no memory".into() });
    let held = Some(Held { pairing: PAIRING_OF_A, epoch: 1 });
    let commands = rig.on(Event::PeerHello { conn: 8, nonce: 9, generation: 2, held });
    assert!(matches!(commands[..], [Command::Refuse { conn: 8, .. }]), "{commands:?}");
}

/// Node a, which has offered its VM and lost the backup since.
fn offered() -> Rig {
    let mut rig = Rig::protected();
    rig.on(switchover());
    rig.on(Event::FinalCaptured { epoch: 2 });
    let commands = rig.on(Event::Ack { conn: 7, epoch: 2, stamp: rig.now });
    assert!(commands.contains(&Command::SendOffer { conn: 7, epoch: 2 }), "{commands:?}");
    let commands = rig.lose(7);
    assert!(asks(&commands).is_some_and(|new| *new == cell(3, Some("a"), None)));
    rig
}

#[test]
fn a_vm_that_was_offered_is_taken_back_while_the_cell_allows_it() {
    let mut rig = offered();
    let won_by_b = cell(3, Some("b"), Some(("a", PAIRING_OF_A)));
    let commands = rig.on(Event::CellSet(Outcome::Lost(Some(won_by_b))));
    assert!(!commands.contains(&Command::StopVm), "{commands:?}");
    assert!(asks(&commands).is_some_and(|new| *new == cell(4, Some("a"), None)), "{commands:?}");
    let commands = rig.won(cell(4, Some("a"), None));
    assert!(commands.contains(&Command::Thaw), "{commands:?}");
    assert!(matches!(refusal(&commands), Some(RequestRefusal::Abandoned(_))), "{commands:?}");
}

#[test]
fn a_vm_that_was_offered_is_given_up_when_the_cell_names_this_node_no_more() {
    let mut rig = offered();
    rig.on(Event::CellSet(Outcome::Lost(Some(cell(3, Some("b"), Some(("a", PAIRING_OF_A)))))));
    let commands = rig.on(Event::CellSet(Outcome::Lost(Some(cell(4, Some("b"), None)))));
    assert!(commands.contains(&Command::StopVm) && !commands.contains(&Command::Thaw), "{commands:?}");
    let moved = Command::Answer { request: REQUEST, outcome: Ok(Done::Moved) };
    assert!(commands.contains(&moved), "{commands:?}");
}

#[test]
fn a_host_that_fails_the_machine_leaves_the_cell_to_the_backup() {
    let mut rig = Rig::protected();
    let commands = rig.on(Event::MachineFailed("KVM_RUN: EFAULT".into()));
    assert!(commands.contains(&Command::DropLink { conn: 7 }), "it need not wait for silence: {commands:?}");
    assert_eq!(asks(&commands), None);
    assert!(!exits(&commands));
    let taken = Some(cell(3, Some("b"), None));
    let commands = rig.on(Event::CellRead(Ok(taken)));
    assert_eq!(commands, [Command::Dial], "it follows");
}

#[test]
fn a_hello_evicts_no_live_backup_but_that_very_process_come_back() {
    let hello = |conn, nonce| Event::PeerHello { conn, nonce, generation: 2, held: None };
    let mut rig = Rig::protected();
    let commands = rig.on(hello(8, 10));
    assert!(matches!(commands[..], [Command::Refuse { conn: 8, .. }]), "{commands:?}");
    assert_eq!(rig.core.view().state, State::Protected);
    // A misfit is judged before anything is dropped, too.
    let commands = rig.on(Event::PeerHello { conn: 8, nonce: 9, generation: 7, held: None });
    assert!(matches!(commands[..], [Command::Refuse { conn: 8, .. }]), "{commands:?}");
    // Its own process dials only when it has lost the connection.
    assert!(rig.on(hello(8, 9)).contains(&Command::DropLink { conn: 7 }));
    // Another one is heard when the old one has fallen silent.
    let mut rig = Rig::protected();
    assert!(rig.tick_after(150_000).contains(&Command::DropLink { conn: 7 }));
    rig.won(cell(3, Some("a"), None));
    let commands = rig.on(hello(8, 10));
    assert!(matches!(commands[..], [Command::Welcome { conn: 8, .. }]), "{commands:?}");
}

#[test]
fn another_peer_counts_once_no_backup_of_the_old_name_does() {
    let mut rig = Rig::solo();
    rig.on(Event::PeerReplaced { node: "c".into() });
    assert_eq!(rig.core.view().peer, "c");

    // The cell names b: it may take over, and is who must be looked for in the cell.
    let mut rig = Rig::protected();
    rig.on(Event::PeerReplaced { node: "c".into() });
    assert_eq!(rig.core.view().peer, "b");
    rig.lose(7);
    assert_eq!(rig.core.view().peer, "b");
    rig.won(cell(3, Some("a"), None));
    assert_eq!(rig.core.view().peer, "c");
    rig.on(Event::PeerHello { conn: 8, nonce: 9, generation: 0, held: None });
    let pairing = PAIRING_OF_A + 1;
    rig.on(Event::FirstCaptured { pairing });
    let commands = rig.on(Event::Ack { conn: 8, epoch: 1, stamp: rig.now });
    assert!(
        asks(&commands).is_some_and(|new| *new == cell(4, Some("a"), Some(("c", pairing)))),
        "{commands:?}"
    );
}

/// Whether a primary of generation 2 begins to move its VM, once both arbiters have answered.
fn moves(rig: &mut Rig) -> bool {
    let mut commands = rig.on(Event::Tick);
    commands.extend(rig.hear(Some(cell(2, Some("a"), Some(("b", PAIRING_OF_A))))));
    commands.contains(&Command::FinalCheckpoint)
}

#[test]
fn a_vm_whose_disk_stands_still_moves_unless_it_would_not_be_reached_there() {
    let mut rig = Rig::protected();
    rig.on(Event::DiskSeen { stands: true });
    assert!(moves(&mut rig));
    let mut rig = Rig::protected();
    rig.on(Event::DiskSeen { stands: true });
    rig.on(Event::DiskSeen { stands: false });
    assert!(!moves(&mut rig), "it goes on again");
    rig.on(Event::NetworkSeen { whose: Whose::Peers, reach: Reach::CutOff });
    rig.on(Event::DiskSeen { stands: true });
    assert!(!moves(&mut rig), "nobody would reach it");
    rig.on(Event::NetworkSeen { whose: Whose::Ours, reach: Reach::CutOff });
    assert!(moves(&mut rig), "nobody reaches it here either");
    let mut rig = Rig::solo();
    rig.on(Event::DiskSeen { stands: true });
    assert!(!moves(&mut rig), "there is nobody to move to");
}

#[test]
fn a_vm_that_nobody_reaches_moves_only_to_a_host_where_it_is_reached_and_not_again_at_once() {
    let see = |rig: &mut Rig, whose, reach| rig.on(Event::NetworkSeen { whose, reach });
    let mut rig = Rig::protected();
    see(&mut rig, Whose::Ours, Reach::CutOff);
    assert!(!moves(&mut rig), "nobody has said how it is there");
    see(&mut rig, Whose::Peers, Reach::CutOff);
    assert!(!moves(&mut rig), "it is no better there");
    see(&mut rig, Whose::Peers, Reach::Open);
    assert!(moves(&mut rig));
    // The backup declines: the VM stays, and is not moved at once again.
    rig.on(Event::FinalCaptured { epoch: 2 });
    rig.on(Event::Ack { conn: 7, epoch: 2, stamp: rig.now });
    rig.on(Event::SwitchoverDeclined { conn: 7, why: "no".into() });
    assert!(!moves(&mut rig));

    // What a lost peer said counts no more.
    let mut rig = Rig::protected();
    see(&mut rig, Whose::Peers, Reach::Open);
    rig.lose(7);
    let held = Some(Held { pairing: PAIRING_OF_A, epoch: 1 });
    rig.on(Event::PeerHello { conn: 8, nonce: 9, generation: 2, held });
    see(&mut rig, Whose::Ours, Reach::CutOff);
    assert!(!moves(&mut rig));

    // Nor does it move against the operator's wish.
    let mut rig = Rig::protected();
    rig.core.policy.on_uplink_loss = OnUplinkLoss::Stay;
    see(&mut rig, Whose::Ours, Reach::CutOff);
    see(&mut rig, Whose::Peers, Reach::Open);
    assert!(!moves(&mut rig));
}
