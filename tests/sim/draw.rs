//! Draws the faults of a schedule and their moments: at a time, or right after an interesting event. What came later is
//! drawn from sources of its own, so that a seed goes on meaning the same.

use ftd::role::Micros;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::faults::{Fault, Return, When, Whom};
use crate::model::Trip;
use crate::schedule::Hook;
use crate::world::World;

const KINDS: u32 = 13;

/// Draws the faults of a schedule. Each schedule uses only some kinds, so that each kind also meets calm water.
pub fn common(rng: &mut SmallRng, until: Micros) -> Vec<(When, Fault)> {
    let rare = [8, 9, 10, 11];
    let kinds: Vec<u32> = (0..KINDS)
        .filter(|kind| {
            let likely = match kind {
                7 => 0.3,
                kind if rare.contains(kind) => 0.15,
                _ => 0.5,
            };
            rng.random_bool(likely)
        })
        .collect();
    if kinds.is_empty() {
        return Vec::new();
    }
    let many = rng.random_range(1..=8);
    (0..many)
        .map(|_| {
            let kind = kinds[rng.random_range(0..kinds.len())];
            let fault = draw_one(rng, kind);
            (moment(rng, until), fault)
        })
        .collect()
}

/// Draws what one side of the pair does to what they share, and what their hosts and their link do, from a source of
/// its own.
pub fn of_the_pair(seed: u64, until: Micros) -> Vec<(When, Fault)> {
    let mut rng = SmallRng::seed_from_u64(!seed);
    let many = if rng.random_bool(0.4) { rng.random_range(1..=3) } else { 0 };
    (0..many)
        .map(|_| {
            let fault = match rng.random_range(0..13) {
                0 | 1 => Fault::BreakPairing,
                12 => Fault::Retime {
                    whom: whom(&mut rng),
                    failure_timeout_us: rng.random_range(60_000..200_000),
                },
                10 | 11 => Fault::Unfit { whom: whom(&mut rng), us: span(&mut rng) },
                kind @ 2..4 => Fault::Diverge { at_once: kind == 2 },
                4 => Fault::FailMachine,
                5 => Fault::FailBoot { whom: whom(&mut rng) },
                6 => Fault::Misfit { us: span(&mut rng) },
                7 => Fault::WildAck,
                _ => Fault::Narrow { us: span(&mut rng), us_per_kib: rng.random_range(100..3_000) },
            };
            (moment(&mut rng, until), fault)
        })
        .collect()
}

/// Draws what happens to the storage itself, in the same way.
pub fn of_the_storage(seed: u64, until: Micros) -> Vec<(When, Fault)> {
    let mut rng = SmallRng::seed_from_u64(seed.rotate_left(32) ^ 0xa5b1);
    let many = if rng.random_bool(0.3) { rng.random_range(1..=3) } else { 0 };
    (0..many)
        .map(|_| {
            let fault = match rng.random_range(0..9) {
                6 => Fault::LoseDisk { whom: whom(&mut rng), down_us: span(&mut rng) },
                7 | 8 => {
                    let generations = [0, 20][rng.random_range(0..2)];
                    Fault::Elsewhere { whom: whom(&mut rng), generations, us: span(&mut rng) }
                }
                0 | 1 => Fault::StorageCrash,
                4 | 5 => Fault::LinkJams { whom: whom(&mut rng) },
                2 => Fault::CellGoesBack { by: None, us: span(&mut rng) },
                _ => Fault::CellGoesBack { by: Some(rng.random_range(1..4)), us: span(&mut rng) },
            };
            (moment(&mut rng, until), fault)
        })
        .collect()
}

/// Draws storage that is replaced under the calls on it, which never return, in the same way.
pub fn of_replacements(seed: u64, until: Micros) -> Vec<(When, Fault)> {
    let mut rng = SmallRng::seed_from_u64(seed.rotate_left(24) ^ 0x57a1);
    let many = if rng.random_bool(0.1) { rng.random_range(1..=2) } else { 0 };
    (0..many)
        .map(|_| {
            let (owner, other) = [(true, true), (true, false), (false, true)][rng.random_range(0..3)];
            (moment(&mut rng, until), Fault::Replaced { owner, other, us: span(&mut rng) })
        })
        .collect()
}

/// Draws what goes wrong around switchovers and take-overs, in the same way.
pub fn of_endings(seed: u64, until: Micros) -> Vec<(When, Fault)> {
    let mut rng = SmallRng::seed_from_u64(seed.rotate_left(16) ^ 0xe4d1);
    let many = if rng.random_bool(0.3) { rng.random_range(1..=4) } else { 0 };
    (0..many)
        .flat_map(|_| {
            let fault = match rng.random_range(0..6) {
                0 => Fault::Switchover { whom: Whom::Owner, within_us: span(&mut rng) },
                4 => Fault::Stop { whom: whom(&mut rng), power_off: rng.random_bool(0.1) },
                5 => Fault::SecondSelf,
                // Whoever would take the VM over next.
                1 => Fault::FailTakeOver { whom: Whom::Other, times: rng.random_range(1..5) },
                2 => Fault::FailLoad,
                _ => Fault::FailMachine,
            };
            let at = moment(&mut rng, until);
            // Half of the take-overs that fail are those of a switchover.
            let fails = matches!(fault, Fault::FailTakeOver { .. }) && rng.random_bool(0.5);
            let moves = Fault::Switchover { whom: Whom::Owner, within_us: World::PATIENT_US };
            [Some((at, fault)), fails.then_some((at, moves))].into_iter().flatten()
        })
        .collect()
}

/// Draws heirs that cannot resume what they own, and end before they can, in the same way.
pub fn of_images(seed: u64, until: Micros) -> Vec<(When, Fault)> {
    let mut rng = SmallRng::seed_from_u64(seed.rotate_left(16) ^ 0x1a6e);
    if !rng.random_bool(0.1) {
        return Vec::new();
    }
    let at = rng.random_range(0..until);
    let fails = Fault::FailTakeOver { whom: Whom::Other, times: rng.random_range(4..20) };
    let down = Trip::Kill { silent: rng.random_bool(0.5), down_us: 1_000_000, fresh: false };
    let ends = match rng.random_range(0..3) {
        0 => Fault::Stop { whom: Whom::Owner, power_off: false },
        _ => {
            let trip = Trip::Kill { silent: rng.random_bool(0.5), down_us: span(&mut rng), fresh: false };
            Fault::Trip { whom: Whom::Owner, steps: rng.random_range(0..5), trip }
        }
    };
    let later = at + rng.random_range(100_000..1_500_000);
    let primary = Fault::Trip { whom: Whom::Owner, steps: 0, trip: down };
    // The machine of the process that goes on from the image fails in its turn.
    let runs = Fault::FailRun { whom: Whom::Other, times: rng.random_range(0..3) };
    [(at, fails), (at, runs), (at, primary), (later, ends)].map(|(at, fault)| (When::At(at), fault)).into()
}

/// Draws links that end badly, in the same way.
pub fn of_the_link(seed: u64, until: Micros) -> Vec<(When, Fault)> {
    let mut rng = SmallRng::seed_from_u64(seed.rotate_left(48) ^ 0x11f3);
    let many = if rng.random_bool(0.2) { rng.random_range(1..=2) } else { 0 };
    (0..many)
        .flat_map(|_| match rng.random_bool(0.5) {
            // One connection stands still.
            true => vec![(moment(&mut rng, until), Fault::Stick)],
            false => late_answer(&mut rng, until),
        })
        .collect()
}

/// Draws what the operator does to have the VM back, in the same way.
pub fn of_returns(seed: u64, until: Micros) -> Vec<(When, Fault)> {
    let mut rng = SmallRng::seed_from_u64(seed.rotate_left(48) ^ 0x7e7a);
    let many = if rng.random_bool(0.2) { rng.random_range(1..=3) } else { 0 };
    (0..many)
        .map(|_| {
            let fault = match rng.random_range(0..20) {
                0..5 => Return::Bury,
                5..8 => Return::BootFresh(whom(&mut rng)),
                _ => Return::Boot(whom(&mut rng)),
            };
            (moment(&mut rng, until), Fault::Return(fault))
        })
        .collect()
}

/// Draws hosts that go down with a process on them that is told of it, and machines of backups that fail, in the same
/// way.
pub fn of_hosts(seed: u64, until: Micros) -> Vec<(When, Fault)> {
    let mut rng = SmallRng::seed_from_u64(seed.rotate_left(24) ^ 0xd09);
    if !rng.random_bool(0.2) {
        return Vec::new();
    }
    let fault = match rng.random_bool(0.3) {
        true => Fault::FailStandby,
        false => Fault::HostDown { whom: whom(&mut rng), asks: rng.random_range(1..6) },
    };
    vec![(moment(&mut rng, until), fault)]
}

/// Draws disks of backups that fail, and primaries that die about then, in the same way.
pub fn of_followers(seed: u64, until: Micros) -> Vec<(When, Fault)> {
    let mut rng = SmallRng::seed_from_u64(seed.rotate_left(40) ^ 0xd15f);
    if !rng.random_bool(0.15) {
        return Vec::new();
    }
    let at = rng.random_range(0..until);
    let kill = Trip::Kill { silent: rng.random_bool(0.7), down_us: span(&mut rng), fresh: false };
    let dies = (When::At(at), Fault::Trip { whom: Whom::Owner, steps: 0, trip: kill });
    let fails = |at| (When::At(at), Fault::FailDisks);
    match rng.random_range(0..3) {
        0 => vec![(moment(&mut rng, until), Fault::FailDisks)],
        1 => vec![dies, fails(at + rng.random_range(0..50_000))],
        _ => vec![fails(at.saturating_sub(rng.random_range(0..50_000))), dies],
    }
}

/// Draws what the disks of the state directories do, in the same way.
pub fn of_the_disks(seed: u64, until: Micros) -> Vec<(When, Fault)> {
    let mut rng = SmallRng::seed_from_u64(seed.rotate_left(48) ^ 0xd15c);
    let many = if rng.random_bool(0.2) { rng.random_range(1..=2) } else { 0 };
    (0..many)
        .map(|_| {
            let fault = Fault::DiskHangs { whom: whom(&mut rng), us: span(&mut rng) };
            (moment(&mut rng, until), fault)
        })
        .collect()
}

/// The owner is held up with an answer before it, and the other one loses the link: what the owner may still do when it
/// goes on is what that answer permits.
fn late_answer(rng: &mut SmallRng, until: Micros) -> Vec<(When, Fault)> {
    let at = rng.random_range(0..until);
    let freeze = Trip::Freeze { us: rng.random_range(20_000..150_000) };
    let held_up = Fault::Trip { whom: Whom::Owner, steps: rng.random_range(0..4), trip: freeze };
    let lost = Fault::Break { spread_us: 1_000, one_side: true };
    vec![(When::At(at), held_up), (When::At(at + rng.random_range(2_000..20_000)), lost)]
}

fn moment(rng: &mut SmallRng, until: Micros) -> When {
    if rng.random_bool(0.5) {
        When::At(rng.random_range(0..until))
    } else {
        let hook = Hook::ALL[rng.random_range(0..Hook::ALL.len())];
        let most = if hook == Hook::Ack { 60 } else { 5 };
        When::On(hook, rng.random_range(0..most))
    }
}

fn span(rng: &mut SmallRng) -> Micros {
    // Short and long ones alike.
    let top = [20_000, 100_000, 300_000, 900_000][rng.random_range(0..4)];
    rng.random_range(1_000..top)
}

fn whom(rng: &mut SmallRng) -> Whom {
    if rng.random_bool(0.6) { Whom::Owner } else { Whom::Other }
}

fn draw_one(rng: &mut SmallRng, kind: u32) -> Fault {
    match kind {
        0 => Fault::Break { spread_us: span(rng), one_side: rng.random_bool(0.3) },
        1 => {
            let (from_owner, from_other) =
                [(true, true), (true, false), (false, true)][rng.random_range(0..3)];
            Fault::Cut { from_owner, from_other, us: span(rng) }
        }
        2 => Fault::Lag { us: span(rng), lag_us: span(rng) / 2 },
        3 => {
            let (owner, other) = [(true, true), (true, false), (false, true)][rng.random_range(0..3)];
            Fault::ArbiterDown { owner, other, us: span(rng) }
        }
        4 => Fault::ArbiterFlaky { us: span(rng) },
        5 => Fault::Trip {
            whom: whom(rng),
            steps: rng.random_range(0..30),
            trip: Trip::Freeze { us: span(rng) },
        },
        6 => {
            let trip =
                Trip::Kill { silent: rng.random_bool(0.4), down_us: span(rng), fresh: rng.random_bool(0.05) };
            Fault::Trip { whom: whom(rng), steps: rng.random_range(0..30), trip }
        }
        7 => Fault::ArbiterSlow { us: span(rng), latency_us: span(rng) },
        8 => Fault::Slow { whom: whom(rng), us: span(rng), step_us: rng.random_range(100..8_000) },
        9 => Fault::Switchover { whom: whom(rng), within_us: World::PATIENT_US },
        10 => match rng.random_range(0..3) {
            0 => Fault::Stop { whom: whom(rng), power_off: rng.random_bool(0.3) },
            1 => Fault::FailTakeOver { whom: whom(rng), times: 1 },
            _ => Fault::Switchover { whom: Whom::Owner, within_us: World::PATIENT_US },
        },
        11 => Fault::Guest { kind: rng.random_range(0..3) },
        _ => Fault::Flap { apart_us: span(rng) / 2, together_us: rng.random_range(5_000..80_000) },
    }
}
