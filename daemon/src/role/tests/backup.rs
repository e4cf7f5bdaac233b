//! The backup: what it holds, when it asks for the cell, when it gives up what it holds.

use super::*;

#[test]
fn a_cell_read_before_the_peer_came_back_is_not_acted_on_after_it_is_lost_again() {
    let mut rig = Rig::orphaned();
    rig.on(Event::Welcomed { conn: 8, generation: 2, pairing: 5, how: PairingStart::ResumeAfter(1) });
    rig.on(Event::Heartbeat { conn: 8, stamp: 9, lease: LEASE_US });
    rig.lose(8);
    // The promise that went with the echo is fresh: the late answer must not lead to a take-over.
    let commands = rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
    assert_eq!(asks(&commands), None);
    assert_eq!(asks(&rig.tick_after(LEASE_US)), None);
    // Nor to a discard of what the cell came to name in the meantime.
    let mut rig = Rig::orphaned();
    rig.on(Event::Welcomed { conn: 8, generation: 2, pairing: 6, how: PairingStart::Copy });
    rig.on(Event::Sealed { conn: 8, pairing: 6, epoch: 1, stamp: 9 });
    rig.lose(8);
    let commands = rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), None)))));
    assert!(!commands.contains(&Command::Discard));
}

#[test]
fn a_backup_keeps_what_it_sealed_until_the_cell_has_moved_past_its_welcome() {
    let mut rig = Rig::orphaned();
    // Generation 1 is that of the welcome: the request that names us may be on its way.
    let commands = rig.on(Event::CellRead(Ok(Some(cell(1, Some("a"), None)))));
    assert_eq!(commands, []);
    assert_eq!(rig.tick_after(20_000), [Command::ReadCell]);
    let commands = rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
    assert!(asks(&commands).is_some_and(|new| *new == cell(3, Some("b"), None)));

    let mut rig = Rig::orphaned();
    let commands = rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), None)))));
    assert!(commands.contains(&Command::Discard));
}

#[test]
fn a_backup_whose_disks_fail_keeps_what_it_sealed_until_the_primary_has_gone_on_without_it() {
    let unable = || Event::PeerGone { conn: 7, why: Gone::Unable("a disk fails".into()) };
    let why = || "this node cannot follow the primary: a disk fails".to_string();
    let gone =
        || [Command::SendBye { conn: 7, why: why() }, Command::DropLink { conn: 7 }, Command::ReadCell];
    let mut rig = Rig::sealed();
    rig.on(Event::Paired { conn: 7, generation: 2 });
    assert_eq!(rig.on(unable()), gone());
    let detail = rig.core.view().detail;
    assert!(detail.starts_with(&why()) && detail.contains("keeping the VM's state"), "{detail}");
    // The primary goes on without it: a copy begins anew.
    let commands = rig.on(Event::CellRead(Ok(Some(cell(3, Some("a"), None)))));
    assert!(commands.contains(&Command::Discard) && commands.contains(&Command::Dial), "{commands:?}");

    // The primary dies first: what is held is the last copy.
    let mut rig = Rig::sealed();
    rig.on(Event::Paired { conn: 7, generation: 2 });
    rig.on(unable());
    let named = || Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5))))));
    assert_eq!(rig.on(named()), []);
    rig.tick_after(policy().patience_us);
    let commands = rig.on(named());
    assert!(
        commands.contains(&Command::Verify { epoch: 1 }) && commands.contains(&Command::Dial),
        "{commands:?}"
    );
    rig.on(named());
    assert_eq!(asks(&rig.tick_after(2 * LEASE_US)), None, "its disks do not have it yet");
    let mut commands = rig.on(Event::Verified { epoch: 1 });
    commands.extend(rig.tick_after(1));
    assert!(asks(&commands).is_some_and(|new| *new == cell(3, Some("b"), None)), "{commands:?}");

    // In a switchover the primary goes on at once.
    let mut rig = Rig::sealed();
    rig.on(Event::SwitchoverOffered { conn: 7, epoch: 1 });
    let commands = rig.on(unable());
    assert_eq!(commands[0], Command::SendDecline { conn: 7, why: why() });
    assert_eq!(commands[1..], gone());
}

#[test]
fn a_switchover_is_taken_only_when_what_is_held_is_verified() {
    let mut rig = Rig::sealed();
    let commands = rig.on(Event::SwitchoverOffered { conn: 7, epoch: 1 });
    assert_eq!(commands, [Command::Load { epoch: 1 }]);
    let echo = Command::SendEcho { conn: 7, stamp: 9, lease: LEASE_US };
    let heartbeat = |stamp| Event::Heartbeat { conn: 7, stamp, lease: LEASE_US };
    assert_eq!(rig.on(heartbeat(9)), [echo], "the primary hears that it lives");
    assert_eq!(rig.on(Event::Verified { epoch: 1 }), [Command::ReadCell]);
    assert_eq!(rig.on(heartbeat(10)), [], "it may have asked for the cell");

    let mut rig = Rig::sealed();
    rig.on(Event::SwitchoverOffered { conn: 7, epoch: 1 });
    let commands = rig.on(Event::StateLost("diverged".into()));
    assert!(commands.contains(&Command::Discard), "{commands:?}");
}

#[test]
fn a_second_offer_is_declined_and_the_first_with_it() {
    let mut rig = Rig::sealed();
    let offer = || Event::SwitchoverOffered { conn: 7, epoch: 1 };
    assert_eq!(rig.on(offer()), [Command::Load { epoch: 1 }]);
    assert!(matches!(rig.on(offer())[..], [Command::SendDecline { conn: 7, .. }]));
    // The primary goes on with the VM, and what was promised binds this node.
    assert_eq!(rig.on(Event::Verified { epoch: 1 }), []);

    let mut rig = Rig::sealed();
    rig.on(offer());
    rig.on(Event::Verified { epoch: 1 });
    assert_eq!(rig.on(offer()), [], "it may have asked for the cell, and cannot decline any more");
}

#[test]
fn a_peer_that_never_fits_ends_a_backup_that_holds_nothing() {
    let misfit = || Event::DialFailed { why: "another memory size".into(), permanent: true, answered: true };
    let mut rig = Rig::new("b", "a", StartAs::Backup);
    rig.on(Event::CellRead(Ok(Some(cell(1, Some("a"), None)))));
    assert_eq!(rig.on(Event::DialFailed { why: "no answer".into(), permanent: false, answered: false }), []);
    assert!(exits(&rig.on(misfit())));
    assert!(!exits(&Rig::orphaned().on(misfit())), "it may have to go on with the VM");
}

#[test]
fn two_backups_of_a_vm_that_nobody_owns_tell_each_other_what_to_do() {
    let hello = || Event::PeerHello { conn: 3, nonce: 9, generation: 0, held: None };
    let mut rig = Rig::new("b", "a", StartAs::Backup);
    rig.on(Event::CellRead(Ok(None)));
    let commands = rig.on(hello());
    let [Command::Refuse { why, .. }] = &commands[..] else { panic!("{commands:?}") };
    assert!(why.contains("node b and node a both have start_as = \"backup\""), "{why}");
    assert_eq!(rig.core.view().detail, *why);
    // A backup that knows of an owner is none of these.
    let mut rig = Rig::new("b", "a", StartAs::Backup);
    rig.on(Event::CellRead(Ok(Some(cell(1, Some("a"), None)))));
    let commands = rig.on(hello());
    assert!(
        matches!(&commands[..], [Command::Refuse { why, .. }] if !why.contains("start_as")),
        "{commands:?}"
    );
}

#[test]
fn a_failed_take_over_is_tried_again_for_ever_and_nothing_is_dropped() {
    let mut rig = Rig::orphaned();
    rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
    let take_over = |succession| Command::TakeOver { epoch: 1, generation: 3, succession };
    assert!(rig.won(cell(3, Some("b"), None)).contains(&take_over(Succession::Failover)));
    for times in 1..20 {
        let commands = rig.on(Event::TakeOverFailed("no memory".into()));
        assert!(!exits(&commands) && !commands.contains(&Command::Discard), "{commands:?}");
        rig.on(Event::CellRead(Ok(Some(cell(3, Some("b"), None)))));
        // Its image is on its way to disk then.
        let succession = if times < 4 { Succession::Failover } else { Succession::Image };
        assert!(rig.tick_after(300_000).contains(&take_over(succession)), "{times}");
        assert_eq!(rig.core.view().state, State::Waiting);
    }
    rig.on(Event::CellRead(Ok(Some(cell(3, Some("b"), None)))));
    rig.on(Event::TookOver);
    rig.won(cell(4, Some("b"), None));
    assert_eq!(rig.core.view().state, State::Solo);
}

#[test]
fn a_state_that_cannot_be_loaded_is_declined_before_the_cell_is_asked() {
    let mut rig = Rig::sealed();
    rig.on(Event::SwitchoverOffered { conn: 7, epoch: 1 });
    let commands = rig.on(Event::LoadFailed("no memory".into()));
    assert!(matches!(commands[..], [Command::SendDecline { conn: 7, .. }]), "{commands:?}");
    let echo = Command::SendEcho { conn: 7, stamp: 9, lease: LEASE_US };
    let heartbeat = Event::Heartbeat { conn: 7, stamp: 9, lease: LEASE_US };
    assert_eq!(rig.on(heartbeat), [echo], "it follows on");
}

/// Node b, which was offered the VM and has won the cell.
fn heir() -> Rig {
    let mut rig = Rig::sealed();
    rig.on(Event::SwitchoverOffered { conn: 7, epoch: 1 });
    rig.on(Event::Verified { epoch: 1 });
    let commands = rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
    assert!(asks(&commands).is_some_and(|new| *new == cell(3, Some("b"), Some(("a", 5)))), "{commands:?}");
    let commands = rig.won(cell(3, Some("b"), Some(("a", 5))));
    assert_eq!(commands, [Command::TakeOver { epoch: 1, generation: 3, succession: Succession::Switchover }]);
    rig
}

#[test]
fn a_vm_that_moved_speaks_when_the_cell_says_that_the_former_primary_is_out() {
    let mut rig = heir();
    let commands = rig.on(Event::TookOver);
    assert!(asks(&commands).is_some_and(|new| *new == cell(4, Some("b"), None)), "{commands:?}");
    assert!(!releases(&commands));
    let commands = rig.won(cell(4, Some("b"), None));
    assert!(commands.contains(&Command::SendTookOver { conn: 7, generation: 4 }), "{commands:?}");
    assert!(releases(&commands));
}

#[test]
fn an_heir_that_fails_tells_the_former_primary_and_follows_when_that_took_the_vm_back() {
    let mut rig = heir();
    let commands = rig.on(Event::TakeOverFailed("no memory".into()));
    assert!(matches!(
        commands[..],
        [Command::SendBye { conn: 7, .. }, Command::DropLink { conn: 7 }, Command::ReadCell]
    ));
    let commands = rig.on(Event::CellRead(Ok(Some(cell(4, Some("a"), None)))));
    assert_eq!(commands, [Command::Discard, Command::Dial]);

    let mut rig = heir();
    rig.on(Event::TookOver);
    let commands = rig.on(Event::CellSet(Outcome::Lost(Some(cell(4, Some("a"), None)))));
    assert!(commands.contains(&Command::StopVm) && !exits(&commands), "{commands:?}");
}

#[test]
fn a_backup_dials_on_when_it_cannot_take_a_welcome() {
    let mut rig = Rig::sealed();
    rig.lose(7);
    let commands =
        rig.on(Event::Welcomed { conn: 8, generation: 2, pairing: 99, how: PairingStart::ResumeAfter(1) });
    assert_eq!(commands, [Command::Dial]);
}

#[test]
fn a_checkpoint_sealed_as_its_connection_ended_is_held() {
    let mut rig = Rig::sealed();
    rig.lose(7);
    let sealed = Event::Sealed { conn: 7, pairing: 5, epoch: 2, stamp: 4 };
    assert_eq!(rig.on(sealed), [Command::Verify { epoch: 2 }]);
    rig.on(Event::Verified { epoch: 2 });
    rig.tick_after(2 * LEASE_US);
    rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
    let commands = rig.won(cell(3, Some("b"), None));
    let succession = Succession::Failover;
    assert!(commands.contains(&Command::TakeOver { epoch: 2, generation: 3, succession }), "{commands:?}");
}

#[test]
fn a_good_bye_does_not_discard_a_state_that_the_cell_is_being_asked_for() {
    let mut rig = Rig::sealed();
    rig.on(Event::SwitchoverOffered { conn: 7, epoch: 1 });
    rig.on(Event::Verified { epoch: 1 });
    rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
    let commands = rig.on(Event::PeerGone { conn: 7, why: Gone::Bye("the VM has ended".into()) });
    assert!(!commands.contains(&Command::Discard));
    let succession = Succession::Switchover;
    let commands = rig.won(cell(3, Some("b"), Some(("a", 5))));
    assert!(commands.contains(&Command::TakeOver { epoch: 1, generation: 3, succession }));
}

#[test]
fn a_good_bye_leaves_what_is_sealed_to_the_cell() {
    let bye = || Event::PeerGone { conn: 7, why: Gone::Bye("the VM has ended".into()) };
    let mut rig = Rig::sealed();
    let commands = rig.on(bye());
    assert!(!commands.contains(&Command::Discard) && commands.contains(&Command::ReadCell), "{commands:?}");
    // The cell does not say so: the primary is gone, and this node goes on.
    rig.on(Event::Verified { epoch: 1 });
    rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
    assert_eq!(asks(&rig.tick_after(2 * LEASE_US)), Some(&cell(3, Some("b"), None)));
    // It does.
    let mut rig = Rig::sealed();
    rig.on(bye());
    let commands = rig.on(Event::CellRead(Ok(Some(cell(2, None, None)))));
    assert!(commands.contains(&Command::Discard), "{commands:?}");
}

#[test]
fn a_backup_whose_machine_fails_keeps_what_is_sealed_and_has_another_stand_ready() {
    let failed = || Event::MachineFailed("the keeper panicked".into());
    let mut rig = Rig::sealed();
    assert_eq!(rig.on(failed()), [Command::Renew]);
    let commands = rig.on(Event::Sealed { conn: 7, pairing: 5, epoch: 2, stamp: 4 });
    assert_eq!(commands, [Command::SendAck { conn: 7, epoch: 2, stamp: 4 }], "it follows on");
    // The last copy.
    let mut rig = Rig::orphaned();
    assert_eq!(rig.on(failed()), [Command::Renew]);
    let commands = rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
    assert_eq!(asks(&commands), Some(&cell(3, Some("b"), None)));
    assert_eq!(rig.on(failed()), [Command::Renew], "while the cell is being asked");
    let succession = Succession::Failover;
    let commands = rig.won(cell(3, Some("b"), None));
    assert!(commands.contains(&Command::TakeOver { epoch: 1, generation: 3, succession }), "{commands:?}");
    // A copy that is not complete begins anew, later.
    let mut rig = Rig::new("b", "a", StartAs::Backup);
    rig.on(Event::CellRead(Ok(Some(cell(1, Some("a"), None)))));
    assert_eq!(rig.on(failed()), []);
    rig.on(Event::Welcomed { conn: 7, generation: 1, pairing: 5, how: PairingStart::Copy });
    let commands = rig.on(failed());
    assert!(matches!(commands[..2], [Command::SendBye { conn: 7, .. }, Command::DropLink { conn: 7 }]));
    assert!(commands.contains(&Command::Discard) && !exits(&commands), "{commands:?}");
}

#[test]
fn the_cell_is_read_at_once_but_asked_for_only_when_every_promise_is_over() {
    let mut rig = Rig::sealed();
    assert!(rig.lose(7).contains(&Command::ReadCell));
    rig.on(Event::Verified { epoch: 1 });
    assert_eq!(rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5))))))), []);
    assert_eq!(rig.tick_after(LEASE_US), []);
    let commands = rig.tick_after(LEASE_US);
    assert!(asks(&commands).is_some_and(|new| *new == cell(3, Some("b"), None)));
}

#[test]
fn a_welcome_that_comes_while_the_cell_is_asked_for_is_not_followed() {
    let mut rig = Rig::orphaned();
    let commands = rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
    assert!(asks(&commands).is_some());
    let follows = |commands: &[Command]| commands.iter().any(|c| matches!(c, Command::Follow { .. }));
    assert!(!follows(&rig.on(Event::Welcomed {
        conn: 8,
        generation: 2,
        pairing: 5,
        how: PairingStart::ResumeAfter(1)
    })));
    rig.won(cell(3, Some("b"), None));
    // It runs the VM now: what was welcomed before must not take the machine down.
    assert!(!follows(&rig.on(Event::Welcomed {
        conn: 9,
        generation: 2,
        pairing: 6,
        how: PairingStart::Copy
    })));
}

#[test]
fn a_backup_that_lost_its_state_says_so_contests_for_nothing_and_follows_anew() {
    let mut rig = Rig::sealed();
    let why = || "diverged".to_string();
    let commands = rig.on(Event::StateLost(why()));
    let bye = Command::SendBye { conn: 7, why: why() };
    assert_eq!(commands, [bye, Command::DropLink { conn: 7 }, Command::Discard, Command::StopDialling]);
    assert!(rig.core.view().detail.ends_with("dials the primary again in 1 s"), "{:?}", rig.core.view());
    assert_eq!(rig.tick_after(9 * LEASE_US), [], "it asks for nothing");
    assert_eq!(rig.tick_after(LEASE_US), [Command::Dial]);
    assert_eq!(rig.on(Event::StateLost(why())), [], "there is nothing to lose any more");
    let welcome = Event::Welcomed { conn: 8, generation: 3, pairing: 6, how: PairingStart::Copy };
    assert_eq!(rig.on(welcome), [Command::Follow { conn: 8, pairing: 6, how: PairingStart::Copy }]);
}

#[test]
fn a_backup_that_cannot_follow_says_why_and_dials_later_and_later() {
    let mut rig = Rig::new("b", "a", StartAs::Backup);
    rig.on(Event::CellRead(Ok(Some(cell(1, Some("a"), None)))));
    for (conn, wait_s) in [(7, 1), (8, 2), (9, 4), (10, 8)] {
        rig.on(Event::Welcomed { conn, generation: 1, pairing: conn, how: PairingStart::Copy });
        let commands = rig.on(Event::PeerGone { conn, why: Gone::Unable("no memory".into()) });
        let bye = Command::SendBye { conn, why: "this node cannot follow the primary: no memory".into() };
        assert_eq!(commands, [bye, Command::DropLink { conn }, Command::Discard, Command::StopDialling]);
        let detail = rig.core.view().detail;
        assert!(detail.contains("no memory"), "{detail}");
        assert!(detail.ends_with(&format!("dials the primary again in {wait_s} s")), "{detail}");
        assert_eq!(rig.tick_after(wait_s * 1_000_000 - 5_000), []);
        assert_eq!(rig.tick_after(5_000), [Command::Dial]);
    }
}

#[test]
fn a_backup_asks_for_the_cell_only_when_all_that_it_holds_is_verified() {
    let named = || Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5))))));
    let mut rig = Rig::sealed();
    rig.lose(7);
    rig.on(named());
    assert_eq!(rig.tick_after(10 * LEASE_US), [], "it is not verified");
    // News that was under way as the connection ended.
    let sealed = Event::Sealed { conn: 7, pairing: 5, epoch: 2, stamp: 0 };
    assert_eq!(rig.on(sealed), [Command::Verify { epoch: 2 }]);
    assert_eq!(rig.on(Event::Verified { epoch: 1 }), [], "more is held since");
    assert!(asks(&rig.on(Event::Verified { epoch: 2 })).is_some());

    // Of two answers the older one may come last.
    let mut rig = Rig::sealed();
    rig.lose(7);
    rig.on(Event::Verified { epoch: 1 });
    rig.on(Event::Verified { epoch: 0 });
    rig.on(named());
    assert!(asks(&rig.tick_after(10 * LEASE_US)).is_some());

    let mut rig = Rig::sealed();
    rig.lose(7);
    rig.on(named());
    assert_eq!(rig.on(Event::StateLost("diverged".into())), [Command::Discard, Command::StopDialling]);
    assert_eq!(rig.tick_after(9 * LEASE_US), [], "it asks for nothing");
}

#[test]
fn a_peer_is_suspected_when_it_falls_silent_or_its_connection_breaks_not_when_it_leaves() {
    let times = |event: fn(&mut Rig)| {
        [Rig::protected(), Rig::sealed()].map(|mut rig| {
            event(&mut rig);
            rig.core.view().suspicions
        })
    };
    assert_eq!(times(|rig| drop(rig.lose(7))), [1, 1]);
    assert_eq!(times(|rig| drop(rig.tick_after(150_000))), [1, 1]);
    let bye = |rig: &mut Rig| drop(rig.on(Event::PeerGone { conn: 7, why: Gone::Bye("stopping".into()) }));
    assert_eq!(times(bye), [0, 0]);
    let stranger = |rig: &mut Rig| drop(rig.on(Event::PeerGone { conn: 9, why: Gone::Lost("reset".into()) }));
    assert_eq!(times(stranger), [0, 0]);
}
