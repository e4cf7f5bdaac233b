//! A cell that went back: missing, or older than what the node has seen.

use super::*;

/// Cells that no node may believe that has seen generation 2.
fn gone_back() -> [Option<Cell>; 3] {
    [None, Some(cell(1, Some("a"), None)), Some(cell(1, None, None))]
}

#[test]
fn a_cell_that_went_back_fences_no_primary() {
    for found in gone_back() {
        let mut rig = Rig::alone();
        assert_eq!(rig.on(Event::CellSet(Outcome::Lost(found))), []);
        assert_eq!(rig.core.view().state, State::Waiting);
        let again = rig.tick_after(20_000);
        assert!(asks(&again).is_some_and(|new| *new == cell(3, Some("a"), None)), "{again:?}");
        assert!(rig.won(cell(3, Some("a"), None)).contains(&Command::EmitFreely));
    }
}

#[test]
fn a_cell_that_went_back_settles_no_doubt() {
    for found in gone_back() {
        let mut rig = Rig::alone();
        rig.on(Event::CellSet(Outcome::Unknown(silence())));
        assert_eq!(rig.on(Event::CellSet(Outcome::Lost(found))), []);
        // Nothing certain is known of the first request: the backup that comes back must wait.
        let commands = rig.on(Event::PeerHello { conn: 8, nonce: 9, generation: 2, held: None });
        assert!(matches!(commands[..], [Command::Refuse { conn: 8, .. }]), "{commands:?}");
    }
}

#[test]
fn a_cell_that_went_back_makes_no_backup_discard_what_it_holds() {
    for found in gone_back() {
        let mut rig = Rig::sealed();
        rig.on(Event::Paired { conn: 7, generation: 2 });
        rig.lose(7);
        assert_eq!(rig.on(Event::CellRead(Ok(found.clone()))), []);
        assert!(rig.tick_after(20_000).contains(&Command::ReadCell));
        let commands = rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
        assert_eq!(asks(&commands), None, "not verified, and promised");
        rig.on(Event::Verified { epoch: 1 });
        let commands = rig.tick_after(2 * LEASE_US);
        assert!(asks(&commands).is_some_and(|new| *new == cell(3, Some("b"), None)), "{commands:?}");
        assert_eq!(
            rig.on(Event::CellSet(Outcome::Lost(found))),
            [Command::Verify { epoch: 1 }, Command::Dial]
        );
    }
}

#[test]
fn a_cell_that_went_back_is_founded_by_nobody_who_saw_it_before() {
    let mut rig = Rig::new("a", "b", StartAs::Primary);
    let commands = rig.on(Event::CellRead(Ok(Some(cell(3, None, None)))));
    assert!(asks(&commands).is_some_and(|new| *new == cell(4, Some("a"), None)));
    assert_eq!(rig.on(Event::CellSet(Outcome::Lost(None))), []);
    let again = rig.tick_after(20_000);
    assert!(asks(&again).is_some_and(|new| *new == cell(4, Some("a"), None)), "{again:?}");
}
