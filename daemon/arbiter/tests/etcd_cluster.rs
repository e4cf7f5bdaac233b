//! The back end "etcd" on three real members that are killed and paused.

#[path = "common/cluster.rs"]
mod cluster;
#[path = "common/history.rs"]
mod history;
#[path = "common/signal.rs"]
mod signal;

use cluster::{AT_LAST, Cluster};
use ft_arbiter::etcd::EtcdSettings;
use ft_arbiter::{Arbiter, Cell, EtcdArbiter, Outcome};
use ft_history::last_state;
use history::{Recorder, cell};
use nix::sys::signal::Signal;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A history of so many is still read by somebody whose test has failed; each thread adds some when it is reached.
const CALLS_MAX: usize = 48;
/// So many are made while all members are there.
const CALLS_BEFORE: usize = 12;
const POLL: Duration = Duration::from_millis(5);

/// What happens to a member, and how it comes back.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Killed,
    Paused,
}

impl Fault {
    fn strike(self, cluster: &mut Cluster, member: usize) {
        match self {
            Self::Killed => {
                cluster.process(member).kill().unwrap();
                cluster.process(member).wait().unwrap();
            }
            Self::Paused => signal::send(cluster.process(member), Signal::SIGSTOP),
        }
    }

    fn heal(self, cluster: &mut Cluster, member: usize) {
        match self {
            Self::Killed => cluster.start_member(member),
            Self::Paused => signal::send(cluster.process(member), Signal::SIGCONT),
        }
    }
}

/// As the daemon asks: each member is waited for briefly.
fn hasty(cluster: &Cluster) -> EtcdSettings {
    EtcdSettings { answer_limit: ft_arbiter::etcd::ANSWER_LIMIT, ..cluster.settings("/ftd/") }
}

/// Each node begins with another member.
fn connect(settings: &EtcdSettings, node: usize) -> EtcdArbiter {
    let mut settings = settings.clone();
    settings.endpoints.rotate_left(node);
    EtcdArbiter::new(&settings, "web")
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + AT_LAST;
    while !is_so() {
        assert!(Instant::now() < deadline, "not {what}");
        sleep(POLL);
    }
}

fn next(current: Option<&Cell>, owner: &str) -> (Option<u64>, Cell) {
    let generation = current.map(|cell| cell.generation);
    (generation, cell(generation.unwrap_or(0) + 1, owner))
}

/// One round: three nodes read and set at once, a member is struck, a set is won without it, and it comes back.
fn round(cluster: &mut Cluster, before: &Option<Cell>, fault: Fault, member: usize) -> Option<Cell> {
    let settings = hasty(cluster);
    let recorder = Recorder::default();
    let (is_over, is_struck, won_since) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for (index, node) in ["alpha", "beta", "gamma"].into_iter().enumerate() {
            let (recorder, is_over, is_struck, won_since) = (&recorder, &is_over, &is_struck, &won_since);
            let mut arbiter = connect(&settings, index);
            scope.spawn(move || {
                while !is_over.load(Ordering::SeqCst) && recorder.noted() < CALLS_MAX {
                    let was_struck = is_struck.load(Ordering::SeqCst);
                    if !was_struck && recorder.noted() >= CALLS_BEFORE {
                        sleep(POLL);
                        continue;
                    }
                    let Ok(known) = recorder.read(&mut arbiter) else { continue };
                    let (expected, new) = next(known.as_ref(), node);
                    let outcome = recorder.set(&mut arbiter, expected, new);
                    if was_struck && matches!(outcome, Outcome::Won(_)) {
                        won_since.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
        wait_until("asked", || recorder.noted() >= CALLS_BEFORE / 2);
        fault.strike(cluster, member);
        is_struck.store(true, Ordering::SeqCst);
        // Without sound members enough, calls fail, and none is noted.
        wait_until("won without it", || won_since.load(Ordering::SeqCst) > 0);
        is_over.store(true, Ordering::SeqCst);
    });
    fault.heal(cluster, member);
    cluster.wait_until_it_serves();
    // What was in doubt is overtaken by a set that is certain: then it never happens any more.
    let mut arbiter = connect(&EtcdSettings { answer_limit: AT_LAST, ..settings }, member);
    wait_until("won at last", || {
        let (expected, new) = next(recorder.read(&mut arbiter).unwrap().as_ref(), "closing");
        matches!(recorder.set(&mut arbiter, expected, new), Outcome::Won(_))
    });
    recorder.read(&mut arbiter).unwrap();
    let history = recorder.into_history();
    match last_state(before, &history) {
        Ok(last) => last,
        Err(call) => panic!("member {member} was {fault:?}, and call {call} has no place in {history:#?}"),
    }
}

#[test]
fn histories_are_linearizable_while_any_one_member_is_killed_or_paused_and_service_goes_on() {
    let Some(mut cluster) = Cluster::start("histories_are_linearizable", 3, None) else { return };
    let mut before = None;
    for fault in [Fault::Killed, Fault::Paused] {
        for member in 0..3 {
            before = round(&mut cluster, &before, fault, member);
        }
    }
    assert_eq!(connect(&cluster.settings("/ftd/"), 0).read(), Ok(before));
}

#[test]
fn with_two_members_away_calls_fail_and_change_nothing_until_one_is_back() {
    let Some(mut cluster) = Cluster::start("with_two_members_away", 3, None) else { return };
    let (patient, settings) = (cluster.settings("/ftd/"), hasty(&cluster));
    let won = cell(1, "alpha");
    assert_eq!(connect(&patient, 0).compare_and_set(None, won.clone()), Outcome::Won(won.clone()));
    for fault in [Fault::Killed, Fault::Paused] {
        (0..2).for_each(|member| fault.strike(&mut cluster, member));
        for node in 0..3 {
            let mut arbiter = connect(&settings, node);
            let error = arbiter.read().unwrap_err();
            assert!(error.to_string().contains("none of the endpoints is of use"), "{error}");
            assert!(arbiter.probe().is_err());
            let outcome = arbiter.compare_and_set(Some(1), cell(2, "beta"));
            assert!(matches!(outcome, Outcome::NotAttempted(_)), "{outcome:?}");
        }
        fault.heal(&mut cluster, 0);
        let mut arbiter = connect(&settings, 2);
        wait_until("served by two", || arbiter.read().is_ok());
        fault.heal(&mut cluster, 1);
        cluster.wait_until_it_serves();
        assert_eq!(connect(&patient, 1).read(), Ok(Some(won.clone())));
    }
}

#[test]
fn what_was_won_outlives_the_sigkill_of_all_members() {
    let Some(mut cluster) = Cluster::start("what_was_won_outlives", 3, None) else { return };
    let patient = cluster.settings("/ftd/");
    let mut last = None;
    for _ in 0..2 {
        for node in 0..3 {
            let (expected, new) = next(last.as_ref(), "alpha");
            let outcome = connect(&patient, node).compare_and_set(expected, new.clone());
            assert_eq!(outcome, Outcome::Won(new.clone()));
            last = Some(new);
        }
        (0..3).for_each(|member| cluster.process(member).kill().unwrap());
        for member in 0..3 {
            cluster.process(member).wait().unwrap();
        }
        (0..3).for_each(|member| cluster.start_member(member));
        cluster.wait_until_it_serves();
        assert_eq!(connect(&patient, 2).read(), Ok(last.clone()));
    }
}
