//! A node that lost the arbitration comes back as the backup by itself.

use super::*;
use crate::role::core::Next;

/// A solo primary of generation 1 finds that the cell says this.
fn fenced(rig: &mut Rig, found: Cell) -> Vec<Command> {
    rig.arbiter = Some(Some(found));
    rig.tick_after(300_000)
}

#[test]
fn a_fenced_node_stops_its_vm_and_comes_back_as_the_backup() {
    let mut rig = Rig::solo();
    let found = cell(2, Some("b"), None);
    let commands = fenced(&mut rig, found.clone());
    assert_eq!(commands[0], Command::StopVm, "{commands:?}");
    assert!(commands.contains(&Command::ReadCell) && !exits(&commands), "{commands:?}");
    assert!(!commands.contains(&Command::Dial), "it looks at the cell first");
    let view = rig.core.view();
    assert_eq!((view.role, view.state), (Role::Backup, State::Fenced));
    assert!(view.detail.contains("comes back as the backup"), "{}", view.detail);
    assert_eq!(rig.on(Event::CellRead(Ok(Some(found)))), [Command::Dial]);
    assert_eq!((rig.core.view().role, rig.core.view().state), (Role::Backup, State::Waiting));
}

#[test]
fn a_fenced_node_does_not_boot_what_has_ended_elsewhere() {
    let mut rig = Rig::solo();
    let found = cell(3, None, None);
    fenced(&mut rig, found.clone());
    assert_eq!(rig.on(Event::CellRead(Ok(Some(found)))), [Command::Dial]);
    assert_eq!(rig.core.view().role, Role::Backup);
}

#[test]
fn a_fenced_node_waits_for_an_arbiter_that_does_not_answer() {
    let mut rig = Rig::solo();
    fenced(&mut rig, cell(2, Some("b"), None));
    assert_eq!(rig.on(Event::CellRead(Err(silence()))), []);
    assert!(rig.core.view().detail.contains("when the arbiter answers"), "{}", rig.core.view().detail);
    assert_eq!(rig.tick_after(20_000), [Command::ReadCell]);
}

#[test]
fn a_node_that_is_fenced_again_and_again_rests_before_it_comes_back() {
    let mut rig = Rig::solo();
    let mut rests = Vec::new();
    for _ in 0..7 {
        let Next::Fenced(fenced) = rig.core.fence("lost".into()) else { panic!("it ends") };
        rests.push((0..4).find(|s| fenced.is_rested(rig.now + s * 1_000_000)));
    }
    assert_eq!(rests, [Some(0), Some(0), Some(0), Some(0), Some(0), Some(1), Some(2)]);
}

#[test]
fn a_fenced_node_ends_where_the_configuration_or_a_stop_says_so() {
    let mut rig = Rig::solo();
    rig.core.policy.on_fenced = OnFenced::Exit;
    let commands = fenced(&mut rig, cell(2, Some("b"), None));
    assert!(commands.iter().any(|command| matches!(command, Command::Exit(Exit::Fenced(_)))), "{commands:?}");

    let mut rig = Rig::solo();
    rig.on(power_off(1_000_000));
    let commands = fenced(&mut rig, cell(2, Some("b"), None));
    assert!(commands.iter().any(|command| matches!(command, Command::Exit(Exit::Fenced(_)))), "{commands:?}");
}
