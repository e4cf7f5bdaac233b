//! A state that no machine takes goes to disk, and the VM goes on from there at most once.

use super::*;

const HELD: Held = Held { pairing: 5, epoch: 1 };
const IMAGE: Saved = Saved { cell: CELL, generation: 3, held: HELD };

const DROP_3: Command = Command::DropImage { cell: CELL, below: 3 };

fn drops(commands: &[Command]) -> bool {
    commands.iter().any(|command| matches!(command, Command::DropImage { .. }))
}

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
    assert!(commands.contains(&Command::EmitFreely) && drops(&commands), "{commands:?}");
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
    assert!(!drops(&commands), "{commands:?}");
}

#[test]
fn an_heir_that_is_to_stop_tries_no_machine_meanwhile_not_even_as_its_host_goes_down() {
    for asked in [stop(), host_down()] {
        let mut rig = failing(0);
        rig.on(Event::TakeOverFailed("no memory".into()));
        assert_eq!(rig.on(asked.clone()), [Command::SaveImage(IMAGE)]);
        for _ in 0..20 {
            rig.on(Event::CellRead(Ok(Some(cell(3, Some("b"), None)))));
            let commands = rig.tick_after(50_000);
            assert!(commands.iter().all(|command| *command == Command::ReadCell), "{commands:?}");
        }
        // It is written, or the node stays and goes on trying.
        let commands = rig.on(Event::ImageUnsaved { generation: 3, why: "the disk is full".into() });
        assert!(matches!(refusal(&commands), Some(RequestRefusal::Unsaved(_))), "{commands:?}");
        until_it_tries(&mut rig);
        rig.on(Event::TakeOverFailed("no memory".into()));
        rig.on(asked);
        assert!(exits(&rig.on(Event::ImageSaved { generation: 3 })));
    }
}

/// Node b, which runs the VM from its image and waits for the cell to move past that.
fn runs_from_image() -> Rig {
    let (mut rig, _) = started(OnDisk::Image(IMAGE), 3, cell(3, Some("b"), None));
    rig.core.policy.boot_lost_after_us = Some(100_000);
    rig.on(Event::ImageRead);
    let commands = rig.on(Event::TookOver);
    assert_eq!(asks(&commands), Some(&cell(4, Some("b"), None)));
    rig
}

#[test]
fn a_machine_that_fails_on_an_image_leaves_the_image_good() {
    let mut rig = runs_from_image();
    rig.not_attempted();
    let commands = rig.on(Event::MachineFailed("KVM_RUN: Bad address".into()));
    assert!(commands.contains(&Command::StopVm) && !drops(&commands), "{commands:?}");
    let commands = until_it_tries(&mut rig);
    assert!(commands.contains(&Command::ReadImage(IMAGE)), "{commands:?}");
    assert_eq!(asks(&commands), None, "it is not booted over, whatever the configuration says");
    let commands = rig.on(Event::ImageRead);
    assert_eq!(succession(&commands), Some(Succession::Image));
    // And again, after a pause.
    rig.on(Event::TookOver);
    rig.not_attempted();
    rig.on(Event::MachineFailed("KVM_RUN: Bad address".into()));
    assert!(!rig.tick_after(5_000).contains(&Command::ReadImage(IMAGE)));
    assert!(rig.core.view().detail.contains("KVM_RUN"), "{}", rig.core.view().detail);
}

#[test]
fn a_machine_that_fails_as_the_cell_moves_past_its_image_has_shown_nothing_and_goes_on_from_it() {
    let mut rig = runs_from_image();
    rig.on(Event::MachineFailed("KVM_RUN: Bad address".into()));
    let commands = rig.won(cell(4, Some("b"), None));
    assert!(!drops(&commands) && !releases(&commands), "{commands:?}");
    let commands = rig.tick_after(300_000);
    assert!(commands.contains(&Command::ReadImage(IMAGE)), "{commands:?}");
    assert!(!drops(&commands), "{commands:?}");
    let commands = rig.on(Event::ImageRead);
    let taken = Command::TakeOver { epoch: 1, generation: 4, succession: Succession::Failover };
    assert_eq!(
        commands,
        [taken, Command::DropImage { cell: CELL, below: 4 }],
        "of the old file nobody could go on"
    );
    let commands = rig.on(Event::TookOver);
    assert_eq!(asks(&commands), None);
    assert!(rig.core.is_primary());

    // The same when the answer goes lost.
    let mut rig = runs_from_image();
    rig.on(Event::MachineFailed("KVM_RUN: Bad address".into()));
    rig.on(Event::CellSet(Outcome::Unknown(silence())));
    rig.on(Event::CellRead(Ok(Some(cell(4, Some("b"), None)))));
    assert!(rig.tick_after(300_000).contains(&Command::ReadImage(IMAGE)));
    // A node that is to stop has it written anew, for the generation that the cell is in now.
    assert_eq!(rig.on(stop()), []);
    let saved = Saved { generation: 4, ..IMAGE };
    assert_eq!(rig.on(Event::ImageRead), [Command::SaveImage(saved)]);
    assert!(exits(&rig.on(Event::ImageSaved { generation: 4 })));
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
    assert!(commands.contains(&Command::EmitFreely) && drops(&commands), "{commands:?}");
}

#[test]
fn an_image_is_for_its_own_generation_and_cell_only() {
    let stale = Saved { generation: 2, ..IMAGE };
    let (rig, commands) = started(OnDisk::Image(stale), 2, cell(3, Some("b"), None));
    assert_eq!(commands, [DROP_3]);
    assert!(rig.core.view().detail.contains("stale"), "{}", rig.core.view().detail);
    // It is another cell's: nothing says that it is of no use, but here it is not used.
    let other = Saved { cell: CellId(77), ..IMAGE };
    let (rig, commands) = started(OnDisk::Image(other), 3, cell(3, Some("b"), None));
    assert_eq!(commands, []);
    assert!(rig.core.view().detail.contains("another cell"), "{}", rig.core.view().detail);
    // The peer has the VM.
    let (_, commands) = started(OnDisk::Image(IMAGE), 3, cell(4, Some("a"), None));
    assert!(drops(&commands), "{commands:?}");
    assert!(!commands.contains(&Command::ReadImage(IMAGE)), "{commands:?}");
}

#[test]
fn a_damaged_image_is_lost_memory_and_stays_for_people() {
    let (mut rig, _) = started(OnDisk::Image(IMAGE), 3, cell(3, Some("b"), None));
    let commands = rig.on(Event::ImageUnread(ImageTrouble::ForGood("is damaged".into())));
    assert!(!drops(&commands) && !exits(&commands), "{commands:?}");
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
    assert!(commands.contains(&Command::Discard) && drops(&commands), "{commands:?}");
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

/// Node b, which boots its VM anew when its memory is lost, with this on disk of generation 3.
fn eager(on_disk: OnDisk) -> Rig {
    let (mut rig, commands) = started(on_disk, 3, cell(3, Some("b"), None));
    assert_eq!(commands, []);
    rig.core.policy.boot_lost_after_us = Some(100_000);
    rig
}

/// What it does in a long time, but for its looks at the cell.
fn at_length(rig: &mut Rig) -> Vec<Command> {
    let mut commands = Vec::new();
    for _ in 0..20 {
        commands.extend(rig.on(Event::CellRead(Ok(Some(cell(3, Some("b"), None))))));
        commands.extend(rig.tick_after(20_000));
    }
    commands.retain(|command| *command != Command::ReadCell);
    commands
}

#[test]
fn a_disk_that_cannot_be_seen_is_looked_at_again_and_nothing_boots_meanwhile() {
    let find = Command::FindImage { cell: CELL };
    let mut rig = eager(OnDisk::Unknown("I/O error".into()));
    let commands = at_length(&mut rig);
    assert!(commands.len() >= 3 && commands.iter().all(|command| *command == find), "{commands:?}");
    assert!(rig.core.view().detail.contains("I/O error"), "{}", rig.core.view().detail);
    rig.on(Event::ImageFound(OnDisk::Unknown("another error".into())));
    assert!(rig.core.view().detail.contains("another error"), "{}", rig.core.view().detail);
    assert_eq!(rig.on(Event::ImageFound(OnDisk::Image(IMAGE))), [Command::ReadImage(IMAGE)]);
    // Nothing is there: then the configuration counts.
    let mut rig = eager(OnDisk::Unknown("I/O error".into()));
    rig.on(Event::ImageFound(OnDisk::Nothing));
    assert_eq!(asks(&at_length(&mut rig)), Some(&cell(4, Some("b"), None)));
}

#[test]
fn a_whole_image_that_does_not_fit_waits_for_the_operators_explicit_word() {
    let unfit = |cell, generation| OnDisk::Unfit { cell, generation, why: "is of another machine".into() };
    let fresh = Event::StartRequested { request: REQUEST, how: Start::Fresh, until: Micros::MAX };
    for cell_of_it in [Some(CELL), None] {
        let mut rig = eager(unfit(cell_of_it, 3));
        assert_eq!(at_length(&mut rig), []);
        let detail = rig.core.view().detail;
        assert!(detail.contains("is of another machine") && detail.contains("start --fresh"), "{detail}");
        rig.on(fresh.clone());
        // A read that was under way is not used.
        let commands = at_length(&mut rig);
        assert_eq!(asks(&commands), Some(&cell(4, Some("b"), None)), "{commands:?}");
    }
    // As it is read.
    let (mut rig, _) = started(OnDisk::Image(IMAGE), 3, cell(3, Some("b"), None));
    rig.core.policy.boot_lost_after_us = Some(100_000);
    rig.on(Event::ImageUnread(ImageTrouble::Unfit("is of another machine".into())));
    assert_eq!(at_length(&mut rig), []);
    // Another generation's or cell's keeps nothing from booting.
    for other in [unfit(None, 2), unfit(Some(CellId(77)), 3)] {
        assert!(asks(&at_length(&mut eager(other))).is_some());
    }
    let (_, commands) = started(unfit(Some(CELL), 2), 3, cell(3, Some("b"), None));
    assert_eq!(commands, [DROP_3]);
}
