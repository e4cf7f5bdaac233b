//! One cell that three members keep, checked in every state that two nodes can bring about within bounds: so many
//! operations of each, rounds and faults. Proposer and register are the true ones (`ft_arbiter::majority`), the checker
//! is the crate `stateright`. What is left out is told in docs/model.md.
//!
//! `FTD_MAJORITY_FAULTS=n` and `FTD_MAJORITY_ROUNDS=n` are other bounds.

mod mutant;
mod world;

use std::time::{Duration, Instant};

use mutant::Mutant;
use stateright::{Checker, HasDiscoveries, Model, Path, Property};
use world::{Bounds, Step, Wish, World};

struct Members {
    bounds: Bounds,
    mutant: Option<Mutant>,
}

impl Model for Members {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.bounds, self.mutant)]
    }

    fn actions(&self, state: &World, steps: &mut Vec<Step>) {
        state.steps(steps);
    }

    fn next_state(&self, state: &World, step: Step) -> Option<World> {
        Some(state.after(step))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("one chain, of which each node is told the truth", |_, world: &World| {
            world.violation.is_none()
        })]
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get())
}

fn told(path: Path<World, Step>) -> String {
    let steps = path.into_vec();
    let mut text: String =
        steps.iter().filter_map(|(_, step)| step.as_ref()).map(|step| format!("{step:?}\n")).collect();
    if let Some((world, _)) = steps.last() {
        text += &format!("{:?}\n", world.violation);
    }
    text
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

const SET: &[Wish] = &[Wish::Set];
const SETS: &[Wish] = &[Wish::Set, Wish::Set];
const READ: &[Wish] = &[Wish::Read];
const READS: &[Wish] = &[Wish::Read, Wish::Read];
const PROBE_AND_SET: &[Wish] = &[Wish::Probe, Wish::Set];

fn explore(name: &str, bounds: Bounds, limit: Duration) {
    let start = Instant::now();
    let model = Members { bounds, mutant: None };
    let checker = model.checker().threads(threads()).timeout(limit).spawn_dfs().join();
    println!(
        "{name}, {} faults, {} stores lost, {} rounds: {} states, {} moves, depth {}, {:.1} s",
        bounds.faults,
        bounds.losses,
        bounds.rounds,
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        start.elapsed().as_secs_f64()
    );
    if let Some(path) = checker.discoveries().into_values().next() {
        panic!("{}", told(path));
    }
    assert!(start.elapsed() < limit, "not all states were seen in {limit:?}");
}

#[test]
fn every_state_within_the_bounds_has_one_chain_of_cells_and_tells_the_truth() {
    let limit = Duration::from_secs(number("FTD_MAJORITY_MINUTES").unwrap_or(10) * 60);
    let told = (number("FTD_MAJORITY_FAULTS"), number("FTD_MAJORITY_ROUNDS"));
    let bounds = |wishes, faults, losses, rounds| Bounds {
        wishes,
        faults: told.0.map_or(faults, |told| told as u8),
        losses,
        rounds: told.1.unwrap_or(rounds),
    };
    if cfg!(debug_assertions) && told == (None, None) {
        return println!("SKIPPED: they take long in a debug build; FTD_MAJORITY_FAULTS=0 includes some");
    }
    explore("a set each", bounds([SET, SET], 0, 0, 3), limit);
    explore("a set each", bounds([SET, SET], 1, 0, 2), limit);
    explore("two sets, a set", bounds([SETS, SET], 0, 0, 2), limit);
    explore("two sets, two reads", bounds([SETS, READS], 0, 0, 2), limit);
    explore("a set, a probe and a set", bounds([SET, PROBE_AND_SET], 0, 0, 2), limit);
    explore("a set each", bounds([SET, SET], 0, 1, 2), limit);
}

/// Every mutant is caught, within the same bounds.
#[test]
fn every_mutant_of_the_majority_is_caught() {
    let mut passed = Vec::new();
    for mutant in Mutant::ALL {
        let start = Instant::now();
        let wishes = if mutant == Mutant::OneAnswerIsEnough { [SET, READ] } else { [SET, SET] };
        let (faults, losses) = if mutant.is_of_a_lost_store() { (0, 1) } else { (1, 0) };
        let model = Members { bounds: Bounds { wishes, faults, losses, rounds: 2 }, mutant: Some(mutant) };
        let checker = model
            .checker()
            .threads(threads())
            .finish_when(HasDiscoveries::AnyFailures)
            .timeout(Duration::from_secs(120))
            .spawn_bfs()
            .join();
        let found = checker.discoveries();
        println!(
            "{mutant:?}: {} after {} states, {:.1} s",
            if found.is_empty() { "passed" } else { "caught" },
            checker.unique_state_count(),
            start.elapsed().as_secs_f64()
        );
        if found.is_empty() {
            passed.push(mutant);
        }
        if std::env::var("FTD_MAJORITY_TELL").is_ok() {
            found.into_values().for_each(|path| println!("{}", self::told(path)));
        }
    }
    assert!(passed.is_empty(), "not caught: {passed:?}");
}
