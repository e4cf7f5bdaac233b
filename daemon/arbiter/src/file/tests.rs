//! Tests of the shared cell: races between processes that are killed, full and read-only storage, damage.

use super::*;
use crate::Standby;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

fn cell(generation: u64, owner: &str) -> Cell {
    Cell { generation, owner: Some(owner.to_owned()), standby: None }
}

fn arbiter() -> (tempfile::TempDir, FileArbiter) {
    let directory = tempfile::tempdir().unwrap();
    let arbiter = FileArbiter::new(&directory.path().join("web.cell"), "web");
    (directory, arbiter)
}

fn win(arbiter: &mut FileArbiter, expected: Option<u64>, new: Cell) {
    match arbiter.compare_and_set(expected, new.clone()) {
        Outcome::Won(cell) => assert_eq!(cell, new),
        outcome => panic!("{new}: {outcome:?}"),
    }
}

#[test]
fn a_cell_that_was_never_set_is_empty_and_probing_leaves_it_so() {
    let (directory, mut arbiter) = arbiter();
    arbiter.probe().unwrap();
    assert_eq!(arbiter.read().unwrap(), None);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn the_first_of_two_wins_and_the_second_learns_what_holds() {
    let (_directory, mut arbiter) = arbiter();
    win(&mut arbiter, None, cell(1, "alpha"));
    let standby = Some(Standby { node: "beta".into(), pairing: 7 });
    let protected = Cell { standby, ..cell(2, "alpha") };
    win(&mut arbiter, Some(1), protected.clone());
    assert!(
        matches!(arbiter.compare_and_set(Some(1), cell(2, "beta")), Outcome::Lost(Some(cell)) if cell == protected)
    );
    assert!(matches!(arbiter.compare_and_set(None, cell(1, "beta")), Outcome::Lost(Some(_))));
    assert_eq!(arbiter.read().unwrap(), Some(protected));
}

#[test]
fn a_set_that_expects_what_never_was_is_lost_to_the_empty_cell() {
    let (_directory, mut arbiter) = arbiter();
    assert!(matches!(arbiter.compare_and_set(Some(3), cell(4, "alpha")), Outcome::Lost(None)));
}

#[test]
fn a_generation_that_does_not_follow_is_not_attempted() {
    let (_directory, mut arbiter) = arbiter();
    for (expected, new) in [(None, 2), (Some(1), 1), (Some(1), 3), (Some(u64::MAX), 0)] {
        let outcome = arbiter.compare_and_set(expected, cell(new, "alpha"));
        assert!(
            matches!(
                outcome,
                Outcome::NotAttempted(ArbiterError { trouble: Trouble::Generation { .. }, .. })
            ),
            "{outcome:?}"
        );
    }
}

#[test]
fn history_is_kept_short_and_leaves_no_temporary_files() {
    let (_directory, mut arbiter) = arbiter();
    for generation in 1..=100 {
        win(&mut arbiter, (generation > 1).then(|| generation - 1), cell(generation, "alpha"));
    }
    let names: Vec<_> =
        fs::read_dir(&arbiter.directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len() as u64, GENERATIONS_KEPT);
    assert!(names.iter().all(|name| generation_of(name).is_some_and(|generation| generation > 36)));
}

#[test]
fn a_claim_of_a_number_that_has_become_free_again_comes_too_late() {
    let (_directory, mut arbiter) = arbiter();
    for generation in 1..=100 {
        win(&mut arbiter, (generation > 1).then(|| generation - 1), cell(generation, "alpha"));
    }
    // A sleeper that read generation 4 goes on only now.
    let outcome = arbiter.claim(cell(5, "beta"));
    assert!(matches!(&outcome, Outcome::Lost(Some(found)) if found.generation == 100), "{outcome:?}");
    assert_eq!(arbiter.read().unwrap(), Some(cell(100, "alpha")));
    win(&mut arbiter, Some(100), cell(101, "alpha"));
    assert!(!arbiter.file_of(5).exists());
}

#[test]
fn a_missing_parent_is_an_error_and_not_an_empty_cell() {
    let (directory, _) = arbiter();
    let mut arbiter = FileArbiter::new(&directory.path().join("not-mounted/web.cell"), "web");
    assert!(matches!(arbiter.read(), Err(ArbiterError { trouble: Trouble::Storage { .. }, .. })));
    assert!(arbiter.probe().is_err());
    assert!(matches!(arbiter.compare_and_set(None, cell(1, "alpha")), Outcome::NotAttempted(_)));
}

#[test]
fn the_cell_of_another_vm_is_refused() {
    let (_directory, mut arbiter) = arbiter();
    win(&mut arbiter, None, cell(1, "alpha"));
    let mut other = FileArbiter::new(&arbiter.directory, "db");
    let error = other.read().unwrap_err();
    assert!(matches!(&error.trouble, Trouble::OtherVm { found, .. } if found == "web"), "{error}");
    assert!(matches!(other.compare_and_set(Some(1), cell(2, "alpha")), Outcome::NotAttempted(_)));
}

#[test]
fn a_torn_cell_is_an_error_even_with_sound_older_generations() {
    let (_directory, mut arbiter) = arbiter();
    win(&mut arbiter, None, cell(1, "alpha"));
    win(&mut arbiter, Some(1), cell(2, "alpha"));
    let whole = fs::read(arbiter.file_of(2)).unwrap();
    for len in 0..whole.len() {
        fs::write(arbiter.file_of(2), &whole[..len]).unwrap();
        assert!(
            matches!(arbiter.read(), Err(ArbiterError { trouble: Trouble::Damaged { .. }, .. })),
            "{len} bytes"
        );
    }
    assert!(matches!(arbiter.compare_and_set(Some(2), cell(3, "beta")), Outcome::NotAttempted(_)));
    fs::copy(arbiter.file_of(1), arbiter.file_of(2)).unwrap();
    assert!(
        matches!(arbiter.read(), Err(ArbiterError { trouble: Trouble::Damaged { .. }, .. })),
        "a copy under another number"
    );
}

proptest! {
    #[test]
    fn any_flipped_byte_is_noticed(at in any::<prop::sample::Index>(), flip in 1..=255u8) {
        let mut bytes = encode(&Record { version: FORMAT_VERSION, vm: "web".into(), cell: cell(9, "alpha") });
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn what_is_written_is_read(generation in any::<u64>(), owner in proptest::option::of(".{0,40}"), pairing in any::<u64>()) {
        let standby = owner.clone().map(|node| Standby { node, pairing });
        let cell = Cell { generation, owner, standby };
        let record = Record { version: FORMAT_VERSION, vm: "web".into(), cell: cell.clone() };
        prop_assert_eq!(decode(&encode(&record)).unwrap().cell, cell);
    }
}

/// Runs a test on a tiny tmpfs that only its thread sees.
fn on_tiny_storage(test_name: &str, test: impl FnOnce(&Path, &dyn Fn(MsFlags)) + Send + 'static) {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| format!("unshare(CLONE_NEWNS): {errno}"))?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .map_err(|errno| errno.to_string())?;
        let directory = tempfile::tempdir().unwrap();
        mount(Some("tmpfs"), directory.path(), Some("tmpfs"), MsFlags::empty(), Some("size=64k"))
            .map_err(|errno| format!("mounting tmpfs: {errno}"))?;
        let remount = |flags| {
            mount(none, directory.path(), none, MsFlags::MS_REMOUNT | flags, Some("size=64k")).unwrap();
        };
        test(directory.path(), &remount);
        nix::mount::umount(directory.path()).map_err(|errno| errno.to_string())
    };
    match std::thread::spawn(run).join() {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => eprintln!("SKIPPED {test_name}: {reason}"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[test]
fn full_storage_changes_nothing_and_is_said_for_certain() {
    on_tiny_storage("full_storage_changes_nothing_and_is_said_for_certain", |storage, _| {
        let mut arbiter = FileArbiter::new(&storage.join("web.cell"), "web");
        win(&mut arbiter, None, cell(1, "alpha"));
        let filler = storage.join("filler");
        let _ = fs::write(&filler, vec![1; 1 << 20]);
        let outcome = arbiter.compare_and_set(Some(1), cell(2, "alpha"));
        assert!(
            matches!(&outcome, Outcome::NotAttempted(error)
                if matches!(error.trouble, Trouble::Storage { errno: Errno::ENOSPC, .. })),
            "{outcome:?}"
        );
        assert!(arbiter.probe().is_err());
        assert_eq!(arbiter.read().unwrap(), Some(cell(1, "alpha")));
        fs::remove_file(filler).unwrap();
        win(&mut arbiter, Some(1), cell(2, "alpha"));
    });
}

#[test]
fn read_only_storage_is_said_for_certain() {
    on_tiny_storage("read_only_storage_is_said_for_certain", |storage, remount| {
        let mut arbiter = FileArbiter::new(&storage.join("web.cell"), "web");
        remount(MsFlags::MS_RDONLY);
        assert!(matches!(arbiter.compare_and_set(None, cell(1, "alpha")), Outcome::NotAttempted(_)));
        assert!(arbiter.probe().is_err());
        remount(MsFlags::empty());
        win(&mut arbiter, None, cell(1, "alpha"));
        remount(MsFlags::MS_RDONLY);
        assert!(matches!(arbiter.compare_and_set(Some(1), cell(2, "alpha")), Outcome::NotAttempted(_)));
        assert_eq!(arbiter.read().unwrap(), Some(cell(1, "alpha")));
    });
}

const RACE_DIRECTORY: &str = "FTD_TEST_RACE_DIRECTORY";
const RACE_END: &str = "end";
const RACE_GENERATIONS: u64 = 400;
const RACE_KILLS: usize = 30;

/// Not a test by itself: what each process of the race below runs.
#[test]
fn race_worker() {
    let Ok(directory) = std::env::var(RACE_DIRECTORY) else { return };
    let directory = Path::new(&directory);
    let mut arbiter = FileArbiter::new(&directory.join("web.cell"), "web");
    let own_name = std::process::id().to_string();
    let mut log = OpenOptions::new().create(true).append(true).open(directory.join(&own_name)).unwrap();
    loop {
        let generation = arbiter.read().unwrap().map(|cell| cell.generation);
        if directory.join(RACE_END).exists() {
            return;
        }
        match arbiter.compare_and_set(generation, cell(generation.unwrap_or(0) + 1, &own_name)) {
            // One write call: a kill leaves the whole line or none.
            Outcome::Won(cell) => log.write_all(format!("{}\n", cell.generation).as_bytes()).unwrap(),
            Outcome::Lost(found) => {
                assert!(found.map(|cell| cell.generation) > generation, "lost to nobody");
            }
            Outcome::NotAttempted(error) | Outcome::Unknown(error) => panic!("{error}"),
        }
    }
}

fn start_worker(directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "file::tests::race_worker"])
        .env(RACE_DIRECTORY, directory)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn each_generation_is_won_once_by_racing_processes_that_are_killed_in_between() {
    // In memory: on a busy disk the flushes would leave little time for racing.
    let directory = tempfile::tempdir_in(
        ["/dev/shm", "/tmp"].into_iter().find(|place| Path::new(place).is_dir()).unwrap(),
    );
    let directory = directory.unwrap();
    let mut observer = FileArbiter::new(&directory.path().join("web.cell"), "web");
    let mut workers: Vec<Child> = (0..6).map(|_| start_worker(directory.path())).collect();
    let mut history = BTreeMap::new();
    let mut last = 0;
    let mut kills = 0;
    while last < RACE_GENERATIONS || kills < RACE_KILLS {
        let Some(seen) = observer.read().unwrap() else { continue };
        assert!(seen.generation >= last, "the cell went back from {last} to {}", seen.generation);
        if seen.generation / 10 > last / 10 {
            // Wherever it may be in its work.
            let index = kills % workers.len();
            workers[index].kill().unwrap();
            workers[index].wait().unwrap();
            workers[index] = start_worker(directory.path());
            kills += 1;
        }
        last = seen.generation;
        let before = history.insert(seen.generation, seen.owner.clone());
        assert!(
            before.is_none() || before == Some(seen.owner),
            "generation {} changed its owner",
            seen.generation
        );
    }
    fs::write(directory.path().join(RACE_END), "").unwrap();
    for worker in &mut workers {
        let status = worker.wait().unwrap();
        assert!(status.success(), "a worker failed: {status} (signal {:?})", status.signal());
    }
    let mut wins = 0;
    for log in
        fs::read_dir(directory.path()).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file())
    {
        let owner = log.file_name().into_string().unwrap();
        for line in fs::read_to_string(log.path()).unwrap().lines() {
            let won = history.entry(line.parse().unwrap()).or_insert_with(|| Some(owner.clone()));
            assert_eq!(*won, Some(owner.clone()), "generation {line} was won twice");
            wins += 1;
        }
    }
    // A process may be killed between its win and its note of it, once each.
    assert!(wins + kills as u64 >= last, "{wins} wins noted, {kills} kills");
}
