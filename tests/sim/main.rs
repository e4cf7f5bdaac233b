//! The seeded simulator: two nodes, each with the daemon's own core, executor, output buffer and file arbiter over
//! simulated hands and a simulated directory; a network that loses, delays and partitions; storage that fails, hangs
//! and crashes; processes that die and freeze. One seed is one schedule.
//!
//! `FTD_SIM_SEED=... cargo test -p ft-tests --test sim -- replay --nocapture` shows one schedule in full.
//! `FTD_SIM_SCHEDULES=n` and `FTD_SIM_FIRST=n` change which seeds `every_schedule...` runs.

mod arbiter;
mod card;
mod check;
mod directory;
mod draw;
mod faults;
mod hands;
mod image;
mod keeper;
mod ledger;
mod model;
mod mutant;
mod net;
mod node;
mod operator;
mod schedule;
mod silence;
mod stats;
mod surroundings;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use mutant::Mutant;
use stats::{Count, Stats};
use world::{Setup, World};

const MUTANT_SCHEDULES: u64 = 100_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(parsed.unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// The setup that a seed stands for: one in 16 is calm.
fn setup_of(seed: u64) -> Setup {
    Setup { calm: seed.is_multiple_of(16), ..Setup::default() }
}

/// Runs seeds on every core; the first failures (lowest seeds first), and what happened in all.
fn run_many(
    first: u64,
    many: u64,
    setup: impl Fn(u64) -> Setup + Sync,
    kind: &str,
    failures_max: usize,
) -> (Stats, Vec<(u64, String)>) {
    let next = AtomicU64::new(first);
    let enough = AtomicBool::new(false);
    let total = Mutex::new(Stats::default());
    let failures = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut stats = Stats::default();
                while !enough.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + many {
                        break;
                    }
                    let mut world = World::new(seed, setup(seed));
                    if let Err(violation) = world.run()
                        && violation.starts_with(kind)
                    {
                        let mut failures = failures.lock().unwrap();
                        failures.push((seed, violation));
                        enough.store(failures.len() >= failures_max, Ordering::Relaxed);
                    }
                    stats.merge(&world.stats);
                }
                total.lock().unwrap().merge(&stats);
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    (total.into_inner().unwrap(), failures)
}

fn report(failures: &[(u64, String)]) -> String {
    let lines = failures.iter().map(|(seed, violation)| {
        format!(
            "\n  {violation}\n    FTD_SIM_SEED={seed} cargo test -p ft-tests --test sim -- replay --nocapture"
        )
    });
    format!("{} schedules failed:{}", failures.len(), lines.collect::<String>())
}

#[test]
fn every_schedule_keeps_the_invariants_and_heals() {
    let default = if cfg!(debug_assertions) { 10_000 } else { 100_000 };
    let many = number("FTD_SIM_SCHEDULES").unwrap_or(default);
    let first = number("FTD_SIM_FIRST").unwrap_or(0);
    let start = Instant::now();
    let (stats, failures) =
        run_many(first, many, setup_of, "", number("FTD_SIM_FAILURES").unwrap_or(10) as usize);
    println!("{stats}{:>12.1}  seconds", start.elapsed().as_secs_f64());
    assert!(failures.is_empty(), "{}", report(&failures));
    if many >= 10_000 {
        demand_coverage(&stats);
    }
}

/// A set of schedules in which the interesting things hardly happen proves nothing.
fn demand_coverage(stats: &Stats) {
    let schedules = stats.get(Count::Schedules);
    for (count, per_thousand) in [
        (Count::Frames, 1_000),
        (Count::TakeOvers, 100),
        (Count::HandedOver, 50),
        (Count::Fences, 10),
        (Count::SoloGrants, 100),
        (Count::Rehearsals, 1_000),
        (Count::RehearsalsFailed, 10),
        (Count::Resumed, 10),
        (Count::FrozenInRelease, 5),
        (Count::LongLeases, 5),
        (Count::FramesRefused, 2),
        (Count::SwitchoversDone, 50),
        (Count::SwitchoversFailed, 10),
        (Count::CasLost, 50),
        (Count::CasUnknown, 50),
        (Count::CasLate, 20),
        (Count::CasNotAttempted, 20),
        (Count::ReadFailed, 20),
        (Count::CallFailed, 100),
        (Count::CallUnanswered, 20),
        (Count::CallLate, 20),
        (Count::CallHung, 100),
        (Count::CallSwallowed, 20),
        (Count::CallLeft, 20),
        (Count::ReturnedLate, 5),
        (Count::FaultReplaced, 20),
        (Count::CallTwice, 10),
        (Count::CutOff, 10),
        (Count::ClaimsCrashed, 2),
        (Count::WentBack, 30),
        (Count::FaultReset, 100),
        (Count::FaultCut, 100),
        (Count::FaultLag, 100),
        (Count::FaultArbiterDown, 100),
        (Count::FaultArbiterFlaky, 100),
        (Count::FaultArbiterSlow, 50),
        (Count::FaultStorageCrash, 50),
        (Count::FaultLinkJams, 20),
        (Count::FaultCellVanished, 20),
        (Count::FaultCellOlder, 10),
        (Count::FaultElsewhere, 10),
        (Count::FaultLoseDisk, 5),
        (Count::FaultKill, 50),
        (Count::FaultCrash, 50),
        (Count::FaultFreeze, 100),
        (Count::FaultSlow, 20),
        (Count::FaultFlap, 100),
        (Count::FaultTakeOver, 5),
        (Count::ImagesSaved, 5),
        (Count::ImagesRead, 1),
        (Count::FaultLoad, 1),
        (Count::TakenBack, 1),
        (Count::FaultPairing, 20),
        (Count::FaultDiverge, 10),
        (Count::FaultMachine, 10),
        (Count::FaultStandby, 5),
        (Count::FaultDisks, 20),
        (Count::FaultHostDown, 20),
        (Count::FaultUnfit, 10),
        (Count::Unprepared, 5),
        (Count::Retimed, 10),
        (Count::FaultDiskHangs, 50),
        (Count::RecordedLate, 10),
        (Count::FaultBoot, 1),
        (Count::FaultMisfit, 10),
        (Count::Misfits, 1),
        (Count::FaultAck, 10),
        (Count::FaultNarrow, 20),
        (Count::FaultUplink, 100),
        (Count::MovedForNetwork, 5),
        (Count::FaultDisk, 100),
        (Count::MovedForDisk, 5),
        (Count::FaultImages, 20),
        (Count::FaultStuck, 50),
        (Count::OperatorStop, 5),
        (Count::OperatorPowerOff, 5),
        (Count::Stopped, 5),
        (Count::AnsweredLate, 1),
        (Count::BootedLost, 5),
        (Count::OperatorStart, 20),
        (Count::Started, 2),
        (Count::SecondSelves, 5),
        (Count::GuestPowerOff, 5),
        (Count::GuestReset, 5),
        (Count::GuestCrash, 5),
        (Count::EndProtected, 700),
    ] {
        let seen = stats.get(count);
        assert!(
            seen * 1_000 >= schedules * per_thousand,
            "too few {count:?} in {schedules} schedules: {seen}"
        );
    }
}

/// Every broken behaviour is seen within so many schedules, by the check that it should offend.
#[test]
fn each_mutant_is_caught() {
    let mut missed = Vec::new();
    for mutant in Mutant::ALL {
        let setup = |seed| Setup { mutant: Some(mutant), ..setup_of(seed) };
        let (stats, failures) = run_many(0, MUTANT_SCHEDULES, setup, mutant.offends(), 1);
        match failures.first() {
            Some((seed, violation)) => {
                let schedules = stats.get(Count::Schedules);
                println!("{mutant:?}: caught after {schedules} schedules, seed {seed}: {violation}");
            }
            None => missed.push(mutant),
        }
    }
    assert!(missed.is_empty(), "not caught in {MUTANT_SCHEDULES} schedules each: {missed:?}");
}

#[test]
fn replay() {
    let Some(seed) = number("FTD_SIM_SEED") else { return };
    let mut world = World::new(seed, Setup { tracing: true, ..setup_of(seed) });
    let end = world.run();
    println!("{}", world.stats);
    match end {
        Ok(end) => println!("seed {seed}: {end:?}"),
        Err(violation) => panic!("seed {seed}: {violation}"),
    }
}
