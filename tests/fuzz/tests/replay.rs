//! Every seed of every target, what was found in earlier days, a small set of inputs that reaches much, and simple
//! mutations of the seeds: without the engine, so that every run of the tests has them.

use ft_fuzz::{FuzzTarget, TARGETS};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// What an input may take at most, on a machine however busy.
const TIME_MAX: Duration = Duration::from_secs(60);
/// Mutations of each seed, unless FT_FUZZ_MUTATIONS says another number.
const MUTATIONS: u64 = 60;

fn mutations() -> u64 {
    let wanted = std::env::var("FT_FUZZ_MUTATIONS").ok();
    wanted.map_or(MUTATIONS, |wanted| wanted.parse().expect("FT_FUZZ_MUTATIONS is a number"))
}

fn run(target: &FuzzTarget, what: &str, input: &[u8]) {
    println!("{}: {what}", target.name);
    let begun = Instant::now();
    (target.run)(input);
    assert!(begun.elapsed() < TIME_MAX, "{what} takes {:?}", begun.elapsed());
}

/// The inputs in a directory of the crate.
fn kept(target: &FuzzTarget, directory: &str) -> Vec<(String, Vec<u8>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory).join(target.name);
    let entries = fs::read_dir(path).into_iter().flatten();
    let mut inputs: Vec<_> = entries
        .map(|entry| entry.expect("the directory can be read").path())
        .map(|path| (path.display().to_string(), fs::read(&path).expect("an input can be read")))
        .collect();
    inputs.sort();
    inputs
}

/// A piece is changed, left out, or put in twice.
fn mutated(input: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut mutated = input.to_vec();
    for _ in 0..random.random_range(1..5) {
        let at = random.random_range(0..mutated.len().max(1));
        let end = (at + random.random_range(0..9)).min(mutated.len());
        let Some(piece) = mutated.get(at..end).map(<[u8]>::to_vec) else { continue };
        match random.random_range(0..4) {
            0 => drop(mutated.drain(at..end)),
            1 => drop(mutated.splice(at..at, piece)),
            2 => mutated[at..end].fill([0, 0xff, 0x7f, 0x80][random.random_range(0..4)]),
            _ => mutated[at..end].iter_mut().for_each(|byte| *byte = random.random()),
        }
    }
    mutated
}

macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                let target = ft_fuzz::target(stringify!($name)).expect("it is there");
                for directory in ["findings", "corpus"] {
                    for (path, input) in kept(target, directory) {
                        run(target, &path, &input);
                    }
                }
                let mut random = StdRng::seed_from_u64(1);
                let seeds = (target.seeds)();
                assert!(!seeds.is_empty());
                for (number, seed) in seeds.iter().enumerate() {
                    run(target, &format!("seed {number}"), seed);
                    for mutation in 0..mutations() {
                        let what = format!("mutation {mutation} of seed {number}");
                        run(target, &what, &mutated(seed, &mut random));
                    }
                }
            }
        )*

        #[test]
        fn every_target_has_a_test() {
            let tests = [$(stringify!($name)),*];
            assert_eq!(TARGETS.iter().map(|target| target.name).collect::<Vec<_>>(), tests);
        }
    };
}

tests!(
    arbiter_message,
    boot_child,
    boot_disk,
    boot_file,
    certificate,
    config_text,
    control_request,
    disk_journal,
    disk_maps,
    guest_code,
    guest_devices,
    machine_state,
    peer_stream,
    protocol_core,
    qcow2_file,
    recording_file,
    wire_frames,
);
