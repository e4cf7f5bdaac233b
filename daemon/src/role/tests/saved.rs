//! A state that no machine takes goes to disk, and the VM goes on from there at most once.

use super::*;

const HELD: Held = Held { pairing: 5, epoch: 1 };
const IMAGE: Saved = Saved { cell: CELL, generation: 3, held: HELD };

/// Node b, which has won generation 3 after a failover. Its machine has failed so often.
fn failing(times: u32) -> Rig {
    let mut rig = Rig::orphaned();
    let commands = rig.on(Event::CellRead(Ok(Some(cell(2, Some("a"), Some(("b", 5)))))));
    assert!(asks(&commands).is_some(), "{commands:?}");
    rig.won(cell(3, Some("b"), None));
    for _ in 0..times {
        rig.on(Event::TakeOverFailed("no memory".into()));
        let commands = until_it_tries(&mut rig);
        assert!(!exits(&commands), "{commands:?}");
    }
    rig
}

/// Time passes until the next attempt.
fn until_it_tries(rig: &mut Rig) -> Vec<Command> {
    let mut commands = Vec::new();
    for _ in 0..200 {
        // It looks at the cell between two attempts.
        rig.on(Event::CellRead(Ok(Some(cell(3, Some("b"), None)))));
        commands.extend(rig.tick_after(5_000));
        if commands.iter().any(|command| matches!(command, Command::TakeOver { .. } | Command::ReadImage(_)))
        {
            return commands;
        }
    }
    panic!("it gave up: {commands:?}");
}

fn succession(commands: &[Command]) -> Option<Succession> {
    commands.iter().find_map(|command| match command {
        Command::TakeOver { succession, .. } => Some(*succession),
        _ => None,
    })
}

/// Node b, started with this on disk, reads this cell.
fn started(on_disk: OnDisk, generation: u64, found: Cell) -> (Rig, Vec<Command>) {
    let record = Some(NodeRecord { cell: CELL, generation });
    let policy =
        Policy { node: "b".into(), peer: "a".into(), start_as: StartAs::Backup, record, on_disk, ..policy() };
    let (core, commands) = Core::new(policy, 0);
    assert_eq!(commands, [Command::ReadCell]);
    let mut rig = Rig { core, now: 0, arbiter: Some(None), looking: false };
    let mut commands = rig.on(Event::CellRead(Ok(Some(found))));
    commands.retain(|command| *command != Command::ReadCell);
    (rig, commands)
}

#[test]
fn a_restore_that_stays_impossible_has_the_image_written_and_goes_on_with_its_output_held() {
    let mut rig = failing(3);
    rig.on(Event::TakeOverFailed("no memory".into()));
    let commands = until_it_tries(&mut rig);
    let saves = commands.iter().position(|command| *command == Command::SaveImage(IMAGE));
    let tries = commands.iter().position(|command| matches!(command, Command::TakeOver { .. }));
    assert!(saves.is_some() && saves < tries, "{commands:?}");
    assert_eq!(succession(&commands), Some(Succession::Image), "an image may be on disk from now on");
    rig.on(Event::ImageProgress { generation: 3, percent: 40 });
    assert!(rig.core.view().detail.contains("40 %"), "{}", rig.core.view().detail);
    assert_eq!(rig.on(Event::ImageSaved { generation: 3 }), []);
    rig.on(Event::TakeOverFailed("no memory".into()));
    assert!(rig.core.view().detail.contains("on disk"), "{}", rig.core.view().detail);
    until_it_tries(&mut rig);
    // It runs; nothing leaves before the image is stale, and then it is removed.
    let commands = rig.on(Event::TookOver);
    assert_eq!(asks(&commands), Some(&cell(4, Some("b"), None)));
    assert!(!releases(&commands), "{commands:?}");
    let commands = rig.won(cell(4, Some("b"), None));
    assert!(
        commands.contains(&Command::EmitFreely) && commands.contains(&Command::DropImage),
        "{commands:?}"
    );
}

#[test]
fn a_take_over_that_needs_no_image_speaks_at_once() {
    let mut rig = failing(1);
    let commands = rig.on(Event::TookOver);
    assert_eq!(asks(&commands), None);
    assert!(rig.core.is_primary());
}

#[test]
fn an_image_that_cannot_be_written_is_said_and_tried_again() {
    let mut rig = failing(4);
    rig.on(Event::ImageUnsaved { generation: 2, why: "of an earlier one".into() });
    rig.on(Event::ImageUnsaved { generation: 3, why: "the disk is full".into() });
    rig.on(Event::TakeOverFailed("no memory".into()));
    assert!(rig.core.view().detail.contains("the disk is full"), "{}", rig.core.view().detail);
    let commands = rig.tick_after(300_000);
    assert!(commands.contains(&Command::SaveImage(IMAGE)), "{commands:?}");
}

#[test]
fn an_heir_that_is_to_stop_does_so_when_its_state_is_on_disk_and_not_before() {
    let mut rig = failing(0);
    rig.on(Event::TakeOverFailed("no memory".into()));
    let commands = rig.on(stop());
    assert_eq!(commands, [Command::SaveImage(IMAGE)]);
    let commands = rig.on(Event::ImageUnsaved { generation: 3, why: "the disk is full".into() });
    assert_eq!(refusal(&commands), Some(&RequestRefusal::Unsaved("the disk is full".into())));
    assert!(!exits(&commands), "{commands:?}");
    assert_eq!(rig.on(stop()), [Command::SaveImage(IMAGE)]);
    let commands = rig.on(Event::ImageSaved { generation: 3 });
    assert!(exits(&commands) && !commands.contains(&Command::Discard), "{commands:?}");
    assert!(!commands.contains(&Command::DropImage), "{commands:?}");
}

#[test]
fn an_heir_that_runs_after_all_does_not_stop() {
    let mut rig = failing(0);
    rig.on(Event::TakeOverFailed("no memory".into()));
    rig.on(stop());
    until_it_tries(&mut rig);
    let commands = rig.on(Event::TookOver);
    assert_eq!(refusal(&commands), Some(&RequestRefusal::TookOver));
    let commands = rig.on(Event::ImageSaved { generation: 3 });
    assert!(!exits(&commands), "{commands:?}");
}

#[test]
fn an_owner_goes_on_from_the_image_of_its_generation() {
    let (mut rig, commands) = started(OnDisk::Image(IMAGE), 3, cell(3, Some("b"), None));
    assert_eq!(commands, [Command::ReadImage(IMAGE)]);
    assert!(rig.core.view().detail.contains("image on disk"), "{}", rig.core.view().detail);
    rig.on(Event::ImageUnread(ImageTrouble::ForNow("no memory".into())));
    assert!(until_it_tries(&mut rig).contains(&Command::ReadImage(IMAGE)));
    let commands = rig.on(Event::ImageRead);
    let succession = Succession::Image;
    assert_eq!(commands, [Command::TakeOver { epoch: 1, generation: 3, succession }]);
    let commands = rig.on(Event::TookOver);
    assert_eq!(asks(&commands), Some(&cell(4, Some("b"), None)));
    assert!(!releases(&commands), "{commands:?}");
    let commands = rig.won(cell(4, Some("b"), None));
    assert!(
        commands.contains(&Command::EmitFreely) && commands.contains(&Command::DropImage),
        "{commands:?}"
    );
}

#[test]
fn an_image_is_for_its_own_generation_and_cell_only() {
    let stale = Saved { generation: 2, ..IMAGE };
    let (rig, commands) = started(OnDisk::Image(stale), 2, cell(3, Some("b"), None));
    assert_eq!(commands, [Command::DropImage]);
    assert!(rig.core.view().detail.contains("stale"), "{}", rig.core.view().detail);
    // It is another cell's: nothing says that it is of no use, but here it is not used.
    let other = Saved { cell: CellId(77), ..IMAGE };
    let (rig, commands) = started(OnDisk::Image(other), 3, cell(3, Some("b"), None));
    assert_eq!(commands, []);
    assert!(rig.core.view().detail.contains("another cell"), "{}", rig.core.view().detail);
    // The peer has the VM.
    let (_, commands) = started(OnDisk::Image(IMAGE), 3, cell(4, Some("a"), None));
    assert!(commands.contains(&Command::DropImage), "{commands:?}");
    assert!(!commands.contains(&Command::ReadImage(IMAGE)), "{commands:?}");
}

#[test]
fn a_damaged_image_is_lost_memory_and_stays_for_people() {
    let (mut rig, _) = started(OnDisk::Image(IMAGE), 3, cell(3, Some("b"), None));
    let commands = rig.on(Event::ImageUnread(ImageTrouble::ForGood("is damaged".into())));
    assert!(!commands.contains(&Command::DropImage) && !exits(&commands), "{commands:?}");
    assert!(rig.core.view().detail.contains("is damaged"), "{}", rig.core.view().detail);
    let (rig, commands) = started(OnDisk::Unusable("is cut off".into()), 3, cell(3, Some("b"), None));
    assert_eq!(commands, []);
    assert!(rig.core.view().detail.contains("is cut off"), "{}", rig.core.view().detail);
}

#[test]
fn a_former_primary_that_takes_the_vm_back_makes_the_image_stale() {
    let mut rig = failing(4);
    rig.on(Event::ImageSaved { generation: 3 });
    rig.on(Event::TakeOverFailed("no memory".into()));
    rig.tick_after(20_000);
    let commands = rig.on(Event::CellRead(Ok(Some(cell(4, Some("a"), None)))));
    assert!(commands.contains(&Command::Discard) && commands.contains(&Command::DropImage), "{commands:?}");
    assert!(!exits(&commands), "{commands:?}");
}

#[test]
fn an_heir_that_is_to_stop_does_so_when_the_former_primary_takes_the_vm_back() {
    let mut rig = failing(0);
    rig.on(Event::TakeOverFailed("no memory".into()));
    rig.on(stop());
    rig.tick_after(20_000);
    let commands = rig.on(Event::CellRead(Ok(Some(cell(4, Some("a"), None)))));
    assert!(commands.contains(&Command::Discard) && exits(&commands), "{commands:?}");
}
