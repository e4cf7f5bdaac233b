//! The protocol core, checked in every state that two nodes can reach within bounds: so many faults, and so many
//! requests of the operator, at any points of any run, however long. It is the daemon's own core (`ftd::role`) over
//! hands that hold what matters of a VM, and the checker of the crate `stateright`. What is left out is told in
//! docs/model.md.
//!
//! `FTD_MODEL_FAULTS=n` and `FTD_MODEL_REQUESTS=n` are other bounds.

mod arbiter;
mod canon;
mod check;
mod hands;
mod moves;
mod mutant;
mod net;
mod world;

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use canon::fingerprint;
use check::Claim;
use moves::Move;
use mutant::Mutant;
use stateright::report::{ReportData, ReportDiscovery, Reporter};
use stateright::{Checker, HasDiscoveries, Model, Path, Property};
use world::{Budget, World};

/// So many moves after the last fault the pair is in step again, at the latest.
const HEALED_WITHIN: u32 = 1_500;

struct Pair {
    budget: Budget,
    mutant: Option<Mutant>,
    /// Nothing has gone wrong before the pair was protected for the first time.
    begins_in_step: bool,
    /// States from which the pair heals, and within how many moves.
    heals: Mutex<HashMap<u64, u32>>,
    longest: AtomicU32,
}

impl Pair {
    fn new(budget: Budget, mutant: Option<Mutant>) -> Self {
        let begins_in_step = mutant.is_some_and(Mutant::begins_in_step);
        Self { budget, mutant, begins_in_step, heals: Mutex::default(), longest: AtomicU32::new(0) }
    }

    /// Whether the pair heals from here, if nothing more goes wrong.
    fn heals(&self, world: &World) -> bool {
        if world.violation.is_some() || world.known.forked {
            return true;
        }
        let mut world = world.clone();
        world.budget = Budget { faults: 0, requests: 0 };
        let mut path = Vec::new();
        let rest = loop {
            if world.is_healed() {
                break 0;
            }
            let here = fingerprint(&world);
            if let Some(rest) = self.heals.lock().unwrap().get(&here) {
                break *rest;
            }
            path.push(here);
            if path.len() as u32 > HEALED_WITHIN {
                return false;
            }
            match world.after(world.fair()) {
                Some(next) => world = next,
                None => return false,
            }
        };
        let mut heals = self.heals.lock().unwrap();
        for (steps, state) in (rest + 1..).zip(path.iter().rev()) {
            heals.insert(*state, steps);
        }
        let longest = rest + path.len() as u32;
        self.longest.fetch_max(longest, Ordering::Relaxed);
        longest <= HEALED_WITHIN
    }
}

impl Model for Pair {
    type State = World;
    type Action = Move;

    fn init_states(&self) -> Vec<World> {
        let mut world = World::new(self.budget, self.mutant);
        while self.begins_in_step && !world.is_in_step() {
            world = world.after(world.fair()).expect("time passes");
        }
        vec![world]
    }

    fn actions(&self, state: &World, moves: &mut Vec<Move>) {
        state.moves(moves);
    }

    fn next_state(&self, state: &World, step: Move) -> Option<World> {
        state.after(step)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn holds(claim: Claim, world: &World) -> bool {
            world.violation.as_ref().is_none_or(|(offended, _)| *offended != claim)
        }
        let mut properties = vec![
            Property::always(Claim::Covered.name(), |_, world| holds(Claim::Covered, world)),
            Property::always(Claim::OneSpeaks.name(), |_, world| holds(Claim::OneSpeaks, world)),
            Property::always(Claim::Continues.name(), |_, world| holds(Claim::Continues, world)),
            Property::always(Claim::Proven.name(), |_, world| holds(Claim::Proven, world)),
            Property::always(Claim::KeepsCopies.name(), |_, world| holds(Claim::KeepsCopies, world)),
            Property::always(Claim::NeverBack.name(), |_, world| holds(Claim::NeverBack, world)),
        ];
        if self.mutant.is_none_or(|mutant| mutant.offends().contains(&Claim::Heals)) {
            properties.push(Property::always(Claim::Heals.name(), |pair: &Self, world| pair.heals(world)));
        }
        properties
    }
}

fn number(name: &str) -> Option<u8> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// A run that should not be: what happened, and how it ended.
fn told(path: Path<World, Move>) -> String {
    let mut text = String::new();
    let steps = path.into_vec();
    for (world, step) in &steps {
        let Some(step) = step else { continue };
        let at = (world.now - world::TIME_BASE) / world::STEP_US;
        let letter = match step {
            Move::Deliver { at, from, lane } => world.describe_wire(*at, *from, *lane),
            Move::Answer(n) => format!("{:?}", world.nodes[*n].call),
            _ => String::new(),
        };
        text += &format!("{at:>4} {step:?} {letter}\n");
    }
    if let Some((world, _)) = steps.last() {
        text += &format!("{:?}\n", world.violation);
        for host in &world.nodes {
            text += &format!("{:?}\n", host.core.as_ref().map(|core| core.view()));
        }
        text += &format!("{:?}\n", world.cell);
    }
    text
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get())
}

/// Says every minute how far a long search is.
#[derive(Default)]
struct Progress {
    minutes: u64,
}

impl Reporter<Pair> for Progress {
    fn report_checking(&mut self, data: ReportData) {
        let minutes = data.duration.as_secs() / 60;
        if minutes > self.minutes {
            self.minutes = minutes;
            println!("after {minutes} min: {} states, depth {}", data.unique_states, data.max_depth);
        }
    }

    fn report_discoveries(&mut self, _: &Pair, _: BTreeMap<&'static str, ReportDiscovery<Pair>>) {}
}

/// Goes through every state within the bounds.
fn explore(budget: Budget, limit: Duration) {
    let start = Instant::now();
    let checker = Pair::new(budget, None).checker().threads(threads()).timeout(limit).spawn_bfs();
    let checker = checker.report(&mut Progress::default()).join();
    println!(
        "{budget:?}: {} states, {} moves, depth {}, healed within {} moves, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        checker.model().longest.load(Ordering::Relaxed),
        start.elapsed().as_secs_f64()
    );
    let found = checker.discoveries();
    let told: Vec<String> = found.into_iter().map(|(name, path)| format!("{name}\n{}", told(path))).collect();
    assert!(told.is_empty(), "{}", told.join("\n"));
    assert!(start.elapsed() < limit, "not all states were seen in {limit:?}");
}

#[test]
fn every_state_within_the_bounds_keeps_the_invariants_and_heals() {
    let limit = Duration::from_secs(number("FTD_MODEL_MINUTES").unwrap_or(10) as u64 * 60);
    let (faults, requests) = (number("FTD_MODEL_FAULTS"), number("FTD_MODEL_REQUESTS"));
    if faults.is_some() || requests.is_some() {
        let budget = Budget { faults: faults.unwrap_or(1), requests: requests.unwrap_or(0) };
        return explore(budget, limit);
    }
    explore(Budget { faults: 0, requests: 1 }, limit);
    if cfg!(debug_assertions) {
        return println!("SKIPPED: faults take long in a debug build; FTD_MODEL_FAULTS=1 includes them");
    }
    explore(Budget { faults: 1, requests: 0 }, limit);
}

/// Every mutant is caught, within the bounds that it needs.
#[test]
fn every_mutant_is_caught() {
    let only = std::env::var("FTD_MODEL_MUTANT").ok();
    let mut passed = Vec::new();
    for mutant in Mutant::ALL {
        if only.as_ref().is_some_and(|only| *only != format!("{mutant:?}")) {
            continue;
        }
        let start = Instant::now();
        let checker = Pair::new(mutant.needs(), Some(mutant))
            .checker()
            .threads(threads())
            .finish_when(HasDiscoveries::AnyFailures)
            .timeout(Duration::from_secs(300))
            .spawn_bfs()
            .join();
        let found = checker.discoveries();
        let names: Vec<&str> = found.keys().copied().collect();
        println!(
            "{mutant:?}: {names:?} after {} states, {:.1} s",
            checker.unique_state_count(),
            start.elapsed().as_secs_f64()
        );
        if only.is_some() {
            found.into_values().for_each(|path| println!("{}", told(path)));
        }
        let offended = mutant.offends().iter().any(|claim| names.contains(&claim.name()));
        if !offended {
            passed.push(mutant);
        }
    }
    assert!(passed.is_empty(), "not caught: {passed:?}");
}
