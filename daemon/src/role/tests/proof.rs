//! What "protected" rests on, and what follows from a cell that proves nothing.

use super::*;

fn named(generation: u64) -> Cell {
    cell(generation, Some("a"), Some(("b", PAIRING_OF_A)))
}

fn elsewhere(found: Cell) -> Cell {
    Cell { id: CellId(0xbad), ..found }
}

#[test]
fn a_backup_with_another_cell_is_never_said_to_protect_and_both_places_are_named() {
    for found in [None, Some(elsewhere(named(2))), Some(elsewhere(cell(9, None, None)))] {
        let mut rig = Rig::enlisting();
        rig.won(named(2));
        rig.hear(found);
        let view = rig.core.view();
        assert_eq!(view.state, State::Degraded);
        for place in ["file /shared/web.cell", "file /other/web.cell"] {
            assert!(view.detail.contains(place), "{}", view.detail);
        }
        assert_eq!(view.lapses[0].lapse.kind(), "other_cell");
    }
}

#[test]
fn an_arbiter_that_falls_silent_on_either_node_ends_the_word_protected() {
    let mut rig = Rig::protected();
    rig.arbiter = None;
    rig.tick_after(1_500_000);
    // The connection has to live on meanwhile.
    assert_eq!(rig.core.view().state, State::Waiting, "the peer was silent too");

    for own in [true, false] {
        let mut rig = Rig::protected();
        let began = rig.now;
        if own {
            rig.arbiter = None;
        }
        while rig.now < began + 1_300_000 {
            rig.tick_after(20_000);
            rig.on(Event::Heard { conn: 7 });
            if own {
                rig.hear(Some(named(2)));
            }
        }
        let view = rig.core.view();
        assert_eq!(view.state, State::Degraded);
        assert!(view.lapses[0].since <= began + 200_000, "{:?}", view.lapses);
        rig.arbiter = Some(Some(named(2)));
        if own {
            // What it says was true when it was asked, at the latest: that is too long ago. It is asked again.
            let mut commands = Vec::new();
            rig.core.handle(rig.now, Event::CellRead(Ok(Some(named(2)))), &mut commands);
            assert_eq!(rig.core.view().state, State::Degraded);
            assert!(commands.contains(&Command::ProbeCell), "{commands:?}");
            rig.on(Event::CellRead(Ok(Some(named(2)))));
        } else {
            rig.hear(Some(named(2)));
        }
        assert_eq!(rig.core.view().state, State::Protected);
    }
}

#[test]
fn a_switchover_asks_both_arbiters_before_it_pauses_the_vm() {
    let mut rig = Rig::protected();
    rig.now += 10;
    let commands = rig.on(switchover());
    assert!(!commands.contains(&Command::FinalCheckpoint), "{commands:?}");
    assert!(rig.hear(Some(named(2))).contains(&Command::FinalCheckpoint));

    let mut rig = Rig::protected();
    rig.now += 10;
    rig.on(switchover());
    let mut commands = Vec::new();
    for _ in 0..40 {
        commands.extend(rig.tick_after(20_000));
        rig.on(Event::Heard { conn: 7 });
    }
    let refused =
        matches!(refusal(&commands), Some(RequestRefusal::Unproven(why)) if why.contains("arbiter of b"));
    assert!(refused && !commands.contains(&Command::FinalCheckpoint), "{commands:?}");
    assert!(!commands.contains(&Command::Thaw), "it never stood still");
}

#[test]
fn what_the_peer_asked_before_the_switchover_began_is_no_answer_however_late_it_comes() {
    let mut rig = Rig::protected();
    rig.now += 10;
    let began = rig.now;
    rig.on(switchover());
    rig.now += 5_000;
    for (asked_us, is_answer) in [(None, false), (Some(began - 1), false), (Some(began), true)] {
        let said = Standing { asked_us, ..rig.word(Some(named(2))) };
        let commands = rig.on(Event::Standing { conn: 7, said });
        assert_eq!(commands.contains(&Command::FinalCheckpoint), is_answer, "{asked_us:?}");
    }
}

#[test]
fn a_word_is_dated_by_the_clock_of_the_peer_which_has_asked_for_it() {
    const THEIRS: Micros = 77_000_000;
    let mut rig = Rig::protected();
    let mut commands = Vec::new();
    rig.now += 10;
    let said = Standing { asks: true, stamp_us: THEIRS, ..rig.word(Some(named(2))) };
    rig.core.handle(rig.now, Event::Standing { conn: 7, said }, &mut commands);
    assert!(commands.contains(&Command::ProbeCell), "{commands:?}");
    rig.now += 3_000;
    rig.core.handle(rig.now, Event::CellRead(Ok(Some(named(2)))), &mut commands);
    let told = commands.into_iter().rev().find_map(|command| match command {
        Command::SendStanding { standing, .. } => Some((standing.asked_us, standing.stamp_us)),
        _ => None,
    });
    assert_eq!(told, Some((Some(THEIRS), rig.now)));
}

#[test]
fn a_backup_gives_nothing_up_for_a_cell_that_is_not_its_primarys() {
    for found in [elsewhere(cell(9, Some("a"), None)), elsewhere(cell(9, None, None))] {
        let mut rig = Rig::orphaned();
        assert_eq!(rig.on(Event::CellRead(Ok(Some(found)))), []);
        assert_eq!(rig.core.view().state, State::Waiting);
        assert!(rig.tick_after(20_000).contains(&Command::ReadCell));
        let commands = rig.on(Event::CellRead(Ok(Some(cell(9, Some("a"), None)))));
        assert!(commands.contains(&Command::Discard), "{commands:?}");
    }
}

#[test]
fn a_cell_that_names_this_node_as_owner_is_taken_over_from_what_it_holds() {
    let mut rig = Rig::orphaned();
    let commands = rig.on(Event::CellRead(Ok(Some(cell(9, Some("b"), None)))));
    assert!(
        commands.contains(&Command::TakeOver { epoch: 1, generation: 9, succession: Succession::Failover }),
        "{commands:?}"
    );
}

#[test]
fn a_cell_that_is_found_to_be_ours_is_recorded_before_the_take_over() {
    let mut rig = Rig::orphaned();
    let mut commands = Vec::new();
    rig.core.handle(rig.now, Event::CellRead(Ok(Some(cell(9, Some("b"), None)))), &mut commands);
    let record = Command::Record(NodeRecord { cell: CELL, generation: 9 });
    let recorded = commands.iter().position(|command| *command == record);
    let taken = commands.iter().position(|command| matches!(command, Command::TakeOver { .. }));
    assert!(recorded.is_some() && recorded < taken, "{commands:?}");
}

#[test]
fn an_heir_believes_no_other_cell_and_none_that_went_back() {
    for found in [None, Some(cell(2, Some("a"), None)), Some(elsewhere(cell(9, Some("a"), None)))] {
        let mut rig = Rig::orphaned();
        rig.on(Event::CellRead(Ok(Some(cell(9, Some("b"), None)))));
        rig.on(Event::TakeOverFailed("no memory".into()));
        let commands = rig.on(Event::CellRead(Ok(found)));
        assert!(!commands.contains(&Command::Discard), "{commands:?}");
        assert!(!rig.tick_after(300_000).contains(&Command::Discard));
    }
}

#[test]
fn a_guest_that_ends_while_the_arbiters_are_asked_is_not_checkpointed() {
    let mut rig = Rig::protected();
    rig.now += 10;
    rig.on(switchover());
    rig.on(Event::GuestEnded(GuestEnd::PoweredOff));
    assert!(!rig.hear(Some(named(2))).contains(&Command::FinalCheckpoint));
    assert!(exits(&rig.won(cell(3, None, None))));
}

#[test]
fn a_switchover_that_asks_is_off_when_the_peer_is_lost() {
    let mut rig = Rig::protected();
    rig.now += 10;
    rig.on(switchover());
    let commands = rig.lose(7);
    assert!(matches!(refusal(&commands), Some(RequestRefusal::Abandoned(_))), "{commands:?}");
    assert!(
        !commands.contains(&Command::Thaw) && !commands.contains(&Command::FinalCheckpoint),
        "{commands:?}"
    );
}

#[test]
fn a_request_in_doubt_does_not_keep_the_peer_away() {
    let mut rig = Rig::alone();
    rig.on(Event::CellSet(Outcome::Unknown(silence())));
    let held = Some(Held { pairing: PAIRING_OF_A, epoch: 1 });
    let commands = rig.on(Event::PeerHello { conn: 7, nonce: 9, generation: 2, held });
    assert!(
        matches!(commands[0], Command::Welcome { how: PairingStart::ResumeAfter(1), .. }),
        "{commands:?}"
    );
    assert_eq!(rig.core.view().state, State::Degraded);
    assert!(
        releases(&rig.on(Event::Echo { conn: 7, stamp: rig.now, lease: LEASE_US })),
        "what the backup acks may leave"
    );
    // It was not carried out: all is as before.
    rig.hear(Some(named(2)));
    let mut settled = rig.core.clone();
    settled.handle(rig.now, Event::CellSet(Outcome::Lost(None)), &mut Vec::new());
    assert_eq!(settled.view().state, State::Degraded, "a cell that is missing settles nothing");
    // It was carried out after all: the cell names nobody, and the backup begins anew.
    let commands = rig.won(cell(3, Some("a"), None));
    assert!(commands.contains(&Command::EmitFreely) && commands.contains(&Command::DropLink { conn: 7 }));
    assert_eq!(rig.core.view().state, State::Solo);
}

#[test]
fn a_solo_primary_finds_out_that_the_cell_was_given_to_the_other_node() {
    let mut rig = Rig::solo();
    rig.arbiter = Some(Some(cell(2, Some("b"), None)));
    let commands = rig.tick_after(300_000);
    assert!(commands.contains(&Command::StopVm), "{commands:?}");
    assert_eq!(rig.core.view().state, State::Fenced);
}

#[test]
fn a_solo_primary_goes_on_when_the_cell_goes_away_or_back_and_says_so() {
    for found in [None, Some(elsewhere(cell(9, None, None)))] {
        let mut rig = Rig::solo();
        rig.arbiter = Some(found);
        assert_eq!(rig.tick_after(1_500_000), []);
        let view = rig.core.view();
        assert_eq!(view.state, State::Solo);
        assert!(view.detail.contains("ftd init"), "{}", view.detail);
    }
}

#[test]
fn what_a_node_acts_on_is_recorded_first() {
    let mut rig = Rig::new("a", "b", StartAs::Primary);
    let mut commands = Vec::new();
    rig.core.handle(0, Event::CellRead(Ok(None)), &mut commands);
    commands.clear();
    rig.core.handle(0, Event::CellSet(Outcome::Won(cell(1, Some("a"), None))), &mut commands);
    let record = NodeRecord { cell: CELL, generation: 1 };
    assert_eq!(commands[..2], [Command::Record(record), Command::Boot]);
}

#[test]
fn a_node_with_a_record_founds_no_other_cell() {
    for found in [None, Some(cell(4, None, None)), Some(elsewhere(cell(9, None, None)))] {
        let mut rig = Rig::recorded(5);
        assert_eq!(rig.on(Event::CellRead(Ok(found))), []);
        let view = rig.core.view();
        assert_eq!(view.state, State::Waiting);
        assert!(view.detail.contains("ftd init"), "{}", view.detail);
    }
}

#[test]
fn a_record_that_is_not_durable_is_a_lapse_until_that_very_one_is() {
    let mut rig = Rig::protected();
    let [older, newest] = [1, 2].map(|generation| NodeRecord { cell: CELL, generation });
    rig.on(Event::Unrecorded { record: newest, why: "the disk is slow".into() });
    assert_eq!(rig.core.view().state, State::Degraded);
    rig.on(Event::Recorded(older));
    assert_eq!(rig.core.view().state, State::Degraded, "an older one is not enough");
    rig.on(Event::Recorded(newest));
    assert_eq!(rig.core.view().state, State::Protected);
    rig.on(Event::Unrecorded { record: older, why: "no space".into() });
    assert_eq!(rig.core.view().state, State::Protected, "a newer one says all that it did");
}
