//! The VM boots again after an ending: by the operator's word, or by the configuration's.

use super::*;

fn start(how: Start) -> Event {
    Event::StartRequested { request: REQUEST, how, until: 1_000_000_000 }
}

fn from_b() -> Event {
    start(Start::From("b".into()))
}

fn started(commands: &[Command]) -> bool {
    commands
        .iter()
        .any(|command| matches!(command, Command::Answer { request: REQUEST, outcome: Ok(Done::Started(_)) }))
}

/// Node a, whose cell says this as it starts.
fn began(found: Cell) -> Rig {
    let mut rig = Rig::recorded(found.generation);
    rig.on(Event::CellRead(Ok(Some(found))));
    rig
}

/// The cell says this, once what was being read before the operator's word has been answered.
fn reads(rig: &mut Rig, found: &Cell) -> Vec<Command> {
    let answer = || Event::CellRead(Ok(Some(found.clone())));
    let commands = rig.on(answer());
    if !commands.iter().all(|command| *command == Command::ReadCell) {
        return commands;
    }
    rig.tick_after(20_000);
    rig.on(answer())
}

fn bereft() -> Rig {
    began(cell(3, Some("a"), None))
}

#[test]
fn a_backup_that_holds_nothing_says_that_the_vm_has_ended_and_boots_it_when_told() {
    let mut rig = began(cell(3, Some("b"), None));
    rig.arbiter = Some(Some(cell(4, None, None)));
    rig.tick_after(300_000);
    assert!(rig.core.view().detail.contains("ended in generation 4"), "{}", rig.core.view().detail);
    let commands = rig.on(start(Start::Ended));
    assert_eq!(commands, [Command::StopDialling, Command::ReadCell]);
    let commands = rig.on(Event::CellRead(Ok(Some(cell(4, None, None)))));
    assert_eq!(asks(&commands), Some(&cell(5, Some("a"), None)));
    let commands = rig.won(cell(5, Some("a"), None));
    assert!(commands.contains(&Command::Boot) && started(&commands), "{commands:?}");
}

#[test]
fn a_lost_state_is_given_up_only_by_the_word_for_it() {
    let mut rig = bereft();
    rig.on(start(Start::Ended));
    let commands = reads(&mut rig, &cell(3, Some("a"), None));
    assert!(
        matches!(refusal(&commands), Some(RequestRefusal::StateLost { generation: 3, .. })),
        "{commands:?}"
    );
    rig.on(start(Start::Fresh));
    let commands = reads(&mut rig, &cell(3, Some("a"), None));
    assert_eq!(asks(&commands), Some(&cell(4, Some("a"), None)));
    // The peer was faster: it has the VM.
    let commands = rig.on(Event::CellSet(Outcome::Lost(Some(cell(4, Some("b"), None)))));
    assert_eq!(refusal(&commands), Some(&RequestRefusal::LostArbitration));
    assert!(!commands.contains(&Command::Boot), "{commands:?}");
}

#[test]
fn a_vm_of_another_node_is_not_started_here() {
    for how in [Start::Ended, Start::Fresh] {
        let mut rig = began(cell(3, Some("b"), None));
        rig.on(start(how));
        let commands = rig.on(Event::CellRead(Ok(Some(cell(3, Some("b"), None)))));
        assert_eq!(refusal(&commands), Some(&RequestRefusal::OwnedBy("b".into())));
        assert_eq!(asks(&commands), None);
    }
    let mut rig = Rig::solo();
    assert_eq!(refusal(&rig.on(start(Start::Fresh))), Some(&RequestRefusal::AlreadyRuns));
}

#[test]
fn a_host_that_was_heard_lately_is_not_released() {
    let mut rig = began(cell(3, Some("b"), None));
    rig.on(Event::DialFailed { why: "the peer refuses".into(), permanent: false, answered: true });
    assert!(matches!(refusal(&rig.on(from_b())), Some(RequestRefusal::PeerLives { .. })));
    rig.tick_after(600_000);
    rig.on(from_b());
    let commands = rig.on(Event::CellRead(Ok(Some(cell(3, Some("b"), None)))));
    assert_eq!(asks(&commands), Some(&cell(4, Some("a"), None)));
    let commands = rig.won(cell(4, Some("a"), None));
    assert!(commands.contains(&Command::Boot) && started(&commands), "{commands:?}");
}

#[test]
fn a_backup_goes_on_from_what_it_holds_when_the_owner_is_released() {
    // The primary died before it asked the cell to name us.
    let mut rig = Rig::sealed();
    rig.lose(7);
    assert_eq!(refusal(&rig.on(start(Start::Fresh))), Some(&RequestRefusal::HoldsState));
    rig.tick_after(600_000);
    rig.on(Event::Verified { epoch: 1 });
    rig.on(start(Start::From("a".into())));
    let commands = reads(&mut rig, &cell(1, Some("a"), None));
    assert_eq!(asks(&commands), Some(&cell(2, Some("b"), None)), "{commands:?}");
    let commands = rig.won(cell(2, Some("b"), None));
    assert!(commands.iter().any(|command| matches!(command, Command::TakeOver { .. })), "{commands:?}");
    assert!(started(&commands), "{commands:?}");
}

#[test]
fn an_owner_whose_memory_is_lost_boots_anew_only_when_nobody_shows_up_with_it() {
    let named = cell(3, Some("a"), Some(("b", 9)));
    let mut rig = began(named.clone());
    rig.core.policy.boot_lost_after_us = Some(1_000_000);
    rig.tick_after(900_000);
    let held = Some(Held { pairing: 9, epoch: 4 });
    rig.on(Event::PeerHello { conn: 8, nonce: 1, generation: 3, held });
    rig.tick_after(900_000);
    let detail = rig.core.view().detail;
    assert!(detail.contains("boots anew in 1 s"), "the peer holds it, and will take over: {detail}");
    rig.tick_after(200_000);
    let commands = rig.on(Event::CellRead(Ok(Some(named))));
    assert_eq!(asks(&commands), Some(&cell(4, Some("a"), None)), "{commands:?}");
    assert!(rig.won(cell(4, Some("a"), None)).contains(&Command::Boot));
}

#[test]
fn a_cell_that_went_on_while_it_was_asked_about_is_not_founded_over() {
    let mut rig = began(cell(3, Some("a"), Some(("b", 9))));
    rig.core.policy.boot_lost_after_us = Some(1_000_000);
    rig.tick_after(1_000_000);
    // The peer has taken over just now. That is recorded: nobody asks for an older generation any more.
    let commands = rig.on(Event::CellRead(Ok(Some(cell(4, Some("b"), None)))));
    assert_eq!(asks(&commands), None, "{commands:?}");
    assert!(commands.contains(&Command::ReadCell), "{commands:?}");
}

#[test]
fn an_owner_whose_machine_failed_boots_anew_after_the_delay() {
    let mut rig = Rig::solo();
    rig.core.policy.boot_lost_after_us = Some(1_000_000);
    rig.on(Event::MachineFailed("KVM_RUN: Bad address".into()));
    assert!(rig.core.view().detail.contains("boots anew in 1 s"), "{}", rig.core.view().detail);
    rig.tick_after(1_000_000);
    let commands = rig.on(Event::CellRead(Ok(Some(cell(1, Some("a"), None)))));
    assert_eq!(asks(&commands), Some(&cell(2, Some("a"), None)), "{commands:?}");
}

#[test]
fn a_start_that_the_arbiter_does_not_answer_in_time_is_called_off() {
    let mut rig = began(cell(3, None, None));
    rig.on(Event::CellSet(Outcome::NotAttempted(silence())));
    assert_eq!(refusal(&rig.on(start(Start::Ended))), Some(&RequestRefusal::Starting));
    let mut rig = bereft();
    rig.on(Event::StartRequested { request: REQUEST, how: Start::Fresh, until: rig.now + 50_000 });
    rig.on(Event::CellRead(Err(silence())));
    assert_eq!(refusal(&rig.tick_after(60_000)), Some(&RequestRefusal::TimedOut));
}
