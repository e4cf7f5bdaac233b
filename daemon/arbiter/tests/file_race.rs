//! The file arbiter under processes that race for it and are killed at any point.

use ft_arbiter::{Arbiter, Cell, CellId, FileArbiter, Outcome};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

fn cell(generation: u64, owner: &str) -> Cell {
    Cell { id: CellId(0xce11), generation, owner: Some(owner.to_owned()), standby: None }
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
        .args(["--exact", "race_worker"])
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
