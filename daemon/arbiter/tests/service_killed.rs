//! A service that is killed, or stands still: what it told is there when it is back.

use ft_arbiter::service::{CellStore, ServiceArbiter, ServicePace};
use ft_arbiter::{Arbiter, Cell, CellId, Outcome};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

#[path = "common/process.rs"]
mod process;

use process::ServiceProcess;

fn cell(generation: u64) -> Cell {
    Cell { id: CellId(0xce11), generation, owner: Some("alpha".into()), standby: None }
}

fn pace() -> ServicePace {
    ServicePace { connect: Duration::from_millis(500), answer: Duration::from_millis(500) }
}

#[test]
fn what_was_won_is_there_after_the_service_was_killed_among_many_sets() {
    const VMS: usize = 8;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("cells");
    CellStore::create(&store).unwrap();
    let mut reached: BTreeMap<String, u64> = BTreeMap::new();
    let mut address = "127.0.0.1:0".to_owned();
    for round in 0..5 {
        let service = ServiceProcess::start(&store, &address);
        address = service.address.to_string();
        let at = service.address;
        let told: Vec<(String, u64, bool)> = std::thread::scope(|scope| {
            let setters: Vec<_> = (0..VMS)
                .map(|nth| {
                    let vm = format!("vm-{nth}");
                    let mut won = reached.get(&vm).copied().unwrap_or(0);
                    scope.spawn(move || {
                        let mut arbiter = ServiceArbiter::new(at, &vm, pace());
                        loop {
                            let expected = (won > 0).then_some(won);
                            match arbiter.compare_and_set(expected, cell(won + 1)) {
                                Outcome::Won(_) => won += 1,
                                Outcome::NotAttempted(_) => return (vm, won, false),
                                Outcome::Unknown(_) => return (vm, won, true),
                                Outcome::Lost(found) => panic!("nobody else sets {vm}: {found:?}"),
                            }
                        }
                    })
                })
                .collect();
            std::thread::sleep(Duration::from_millis(150 + 37 * round));
            service.signal(Signal::SIGKILL);
            setters.into_iter().map(|setter| setter.join().unwrap()).collect()
        });
        drop(service);
        let service = ServiceProcess::start(&store, &address);
        for (vm, won, is_in_doubt) in told {
            let found = ServiceArbiter::new(service.address, &vm, pace()).read().unwrap();
            let found = found.map_or(0, |cell| cell.generation);
            assert!(won > 0, "nothing was set of {vm}");
            let in_doubt = u64::from(is_in_doubt);
            assert!((won..=won + in_doubt).contains(&found), "{vm}: {won} were won, and {found} is there");
            reached.insert(vm, found);
        }
    }
}

#[test]
fn a_service_that_stands_still_leaves_a_set_in_doubt_in_time_and_a_new_one_not_attempted() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("cells");
    CellStore::create(&store).unwrap();
    let service = ServiceProcess::start(&store, "127.0.0.1:0");
    let connect = || ServiceArbiter::new(service.address, "web", pace());
    let mut arbiter = connect();
    assert_eq!(arbiter.compare_and_set(None, cell(1)), Outcome::Won(cell(1)));
    service.signal(Signal::SIGSTOP);
    let asked = Instant::now();
    assert!(matches!(arbiter.compare_and_set(Some(1), cell(2)), Outcome::Unknown(_)));
    assert!(asked.elapsed() < Duration::from_secs(2));
    // Without a greeting nothing was sent.
    assert!(matches!(arbiter.compare_and_set(Some(1), cell(2)), Outcome::NotAttempted(_)));
    assert!(connect().read().is_err());
    service.signal(Signal::SIGCONT);
    // What was in doubt is done, and its late answer is nobody's.
    let deadline = Instant::now() + Duration::from_secs(20);
    while arbiter.read() != Ok(Some(cell(2))) {
        assert!(Instant::now() < deadline, "{:?}", arbiter.read());
    }
    assert_eq!(arbiter.compare_and_set(Some(2), cell(3)), Outcome::Won(cell(3)));
}
