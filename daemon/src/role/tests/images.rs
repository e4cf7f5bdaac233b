//! The backup's disk images were found to differ: the pair says so until they do not, and only the operator decides
//! whose are right.

use super::*;

const SECOND_US: Micros = 1_000_000;

fn differ(rig: &mut Rig) {
    rig.on(Event::ImagesCompared { differ: Some("2 extents of 1 MiB differ from the primary's".into()) });
}

fn kinds(rig: &Rig) -> Vec<&'static str> {
    rig.core.view().lapses.iter().map(|lapsed| lapsed.lapse.kind()).collect()
}

/// Both arbiters answer. What a primary of generation 2 does then.
fn answered(rig: &mut Rig) -> Vec<Command> {
    let mut commands = rig.on(Event::Tick);
    commands.extend(rig.hear(Some(cell(2, Some("a"), Some(("b", PAIRING_OF_A))))));
    commands
}

#[test]
fn images_that_differ_are_no_protection_until_they_are_the_same() {
    let mut rig = Rig::protected();
    differ(&mut rig);
    assert_eq!((rig.core.view().state, kinds(&rig)), (State::Degraded, vec!["images_differ"]));
    assert!(rig.core.view().detail.contains("2 extents"), "{:?}", rig.core.view());
    let since = rig.core.view().lapses[0].since;
    rig.now += SECOND_US;
    differ(&mut rig);
    assert_eq!(rig.core.view().lapses[0].since, since, "it is the same lapse");
    rig.on(Event::ImagesCompared { differ: None });
    answered(&mut rig);
    assert_eq!((rig.core.view().state, kinds(&rig)), (State::Protected, vec![]));
}

#[test]
fn a_new_copy_makes_them_the_same() {
    let mut rig = Rig::protected();
    differ(&mut rig);
    rig.lose(7);
    rig.won(cell(3, Some("a"), None));
    rig.tick_after(SECOND_US);
    rig.on(Event::PeerHello { conn: 8, nonce: 9, generation: 3, held: None });
    let pairing = PAIRING_OF_A + 1;
    rig.on(Event::FirstCaptured { pairing });
    rig.on(Event::Ack { conn: 8, epoch: 1, stamp: rig.now });
    let named = cell(4, Some("a"), Some(("b", pairing)));
    rig.won(named.clone());
    rig.hear_on(8, Some(named));
    assert_eq!((rig.core.view().state, kinds(&rig)), (State::Protected, vec![]));
}

#[test]
fn only_the_operator_moves_the_vm_to_images_that_differ() {
    let mut rig = Rig::protected();
    differ(&mut rig);
    rig.on(Event::DiskSeen { stands: true });
    assert!(!answered(&mut rig).contains(&Command::FinalCheckpoint), "nobody said that those are right");
    rig.on(Event::DiskSeen { stands: false });
    // Nor when they are found so while it is on its way.
    let mut late = Rig::protected();
    late.on(Event::DiskSeen { stands: true });
    assert!(answered(&mut late).contains(&Command::FinalCheckpoint));
    let found = Event::ImagesCompared { differ: Some("1 extent of 1 MiB differs".into()) };
    assert!(late.on(found).contains(&Command::Thaw));
    let until = rig.now + SECOND_US;
    let mut commands = rig.on(Event::SwitchoverRequested { request: 3, until });
    commands.extend(answered(&mut rig));
    assert!(commands.contains(&Command::FinalCheckpoint), "{commands:?}");
}

#[test]
fn a_backup_says_what_its_primary_has_found() {
    let mut rig = Rig::sealed();
    let named = cell(2, Some("a"), Some(("b", 5)));
    rig.arbiter = Some(Some(named.clone()));
    rig.on(Event::Paired { conn: 7, generation: 2 });
    let mut said = rig.word(Some(named));
    rig.on(Event::Standing { conn: 7, said: said.clone() });
    assert_eq!((rig.core.view().state, kinds(&rig)), (State::Protected, vec![]));
    said.unfit = Some(("2 extents of 1 MiB differ from the primary's".into(), 0));
    rig.on(Event::Standing { conn: 7, said });
    assert_eq!((rig.core.view().state, kinds(&rig)), (State::Degraded, vec!["images_differ"]));
}
