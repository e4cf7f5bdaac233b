//! The tests, and the process that does their work: this test binary again, so that whatever a program does to it is
//! seen from outside.

use super::engine::Engine;
use super::forms::{forms, named};
use super::generate::Generator;
use super::native::Native;
use super::report::{Coverage, mismatch, run};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// `seed first count`: tells the worker what to do.
const ORDER: &str = "FTD_DIFFERENTIAL";
/// Mnemonics, features or forms, separated by commas: programs are made of these alone.
const ONLY: &str = "FTD_DIFFERENTIAL_ONLY";
/// So many mismatches are told in full.
const TOLD_MAX: u64 = 25;
/// Another number than [`TOLD_MAX`].
const TOLD: &str = "FTD_DIFFERENTIAL_TOLD";
/// A program that does not end in so many seconds never will.
const STUCK_S: u32 = 120;

/// Runs the cases `first..first + count` of a seed.
fn work(seed: u64, first: u64, count: u64) -> u64 {
    let mut host = Native::new().expect("pages at their addresses, and signals");
    let mut soft = Engine::new();
    let forms = chosen();
    let mut generator = Generator::new(seed, forms.clone());
    let mut coverage = Coverage::default();
    let told_max = std::env::var(TOLD).ok().and_then(|n| n.parse().ok()).unwrap_or(TOLD_MAX);
    let mut mismatches = 0;
    for case in first..first + count {
        if case % 1000 == 0 {
            // Its signal ends the process.
            nix::unistd::alarm::set(STUCK_S);
        }
        let program = generator.program(case);
        // What cannot be encoded is one operand's fault, not the form's: the coverage tells if a form is never there.
        let Some((assembled, outcome, lines)) = run(&program, &mut host, &mut soft) else { continue };
        coverage.note(&program, &assembled, outcome.rip);
        if !lines.is_empty() {
            mismatches += 1;
            if mismatches <= told_max {
                println!("{}", mismatch(seed, case, &program, &mut host, &mut soft));
            }
        }
        if case % 50_000 == 49_999 {
            eprintln!("cases {first} to {case}: {mismatches} mismatches");
        }
    }
    println!("mismatches {mismatches}");
    for (form, (cases, completed)) in coverage.counts() {
        println!("coverage {form} {cases} {completed}");
    }
    mismatches
}

/// All forms, or those that are asked for.
fn chosen() -> Vec<iced_x86::Code> {
    std::env::var(ONLY).map_or_else(|_| forms(), |words| named(&words))
}

/// What the processes found.
struct Verdict {
    mismatches: u64,
    failures: Vec<String>,
    coverage: Coverage,
}

/// Shares the cases between processes.
fn share(seed: u64, first: u64, count: u64, processes: u64) -> Verdict {
    let program = std::env::current_exe().expect("this program's path");
    let module = module_path!().split_once("::").expect("a path within the crate").1;
    let part = count.div_ceil(processes);
    let workers: Vec<_> = (0..processes)
        .map(|n| {
            let from = first + n * part;
            let some = part.min((first + count).saturating_sub(from));
            Command::new(&program)
                .args(["--ignored", "--exact", &format!("{module}::worker"), "--nocapture"])
                .env(ORDER, format!("{seed} {from} {some}"))
                .stdout(Stdio::piped())
                .spawn()
                .expect("this program starts again")
        })
        .collect();
    let mut verdict = Verdict { mismatches: 0, failures: Vec::new(), coverage: Coverage::default() };
    let readers: Vec<_> =
        workers.into_iter().map(|worker| std::thread::spawn(move || listen(worker))).collect();
    for reader in readers {
        let (said, counts, mismatches, status) = reader.join().expect("a reader of lines");
        verdict.mismatches += mismatches;
        for (form, cases, completed) in counts {
            verdict.coverage.add(&form, cases, completed);
        }
        if !status.success() {
            verdict.failures.push(format!("{}\na worker ended with {status}", said.join("\n")));
        }
    }
    verdict
}

type Heard = (Vec<String>, Vec<(String, u64, u64)>, u64, std::process::ExitStatus);

/// What a worker says: coverage, and all the rest.
fn listen(mut worker: std::process::Child) -> Heard {
    let (mut said, mut counts, mut mismatches) = (Vec::new(), Vec::new(), 0);
    for line in BufReader::new(worker.stdout.take().expect("a pipe")).lines().map_while(Result::ok) {
        match line.strip_prefix("coverage ").map(|rest| rest.split(' ').collect::<Vec<_>>()).as_deref() {
            Some(&[form, cases, completed]) => {
                counts.push((form.to_owned(), cases.parse().unwrap_or(0), completed.parse().unwrap_or(0)));
            }
            _ => {
                if let Some(number) = line.strip_prefix("mismatches ") {
                    mismatches = number.parse().unwrap_or(0);
                } else {
                    said.push(line);
                }
            }
        }
    }
    (said, counts, mismatches, worker.wait().expect("a worker's end"))
}

#[test]
#[ignore = "the others start it"]
fn worker() {
    let order = std::env::var(ORDER).expect("started by another test");
    let numbers: Vec<u64> = order.split(' ').map(|n| n.parse().expect("a number")).collect();
    assert_eq!(work(numbers[0], numbers[1], numbers[2]), 0, "mismatches");
}

#[test]
fn programs_do_the_same_in_the_engine_and_on_the_host() {
    let verdict = share(1, 0, 16_000, 2);
    assert!(verdict.failures.is_empty(), "{}", verdict.failures.join("\n"));
    let missing = verdict.coverage.missing(&forms());
    assert!(missing.is_empty(), "never in a program: {missing:?}");
}

/// `scripts/differential`.
#[test]
#[ignore = "takes minutes: scripts/differential"]
fn campaign() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect(name));
    let count = number("FTD_DIFFERENTIAL_COUNT").unwrap_or(1_000_000);
    let seed = number("FTD_DIFFERENTIAL_SEED").unwrap_or(1);
    let first = number("FTD_DIFFERENTIAL_FIRST").unwrap_or(0);
    let processes = std::thread::available_parallelism().map_or(1, |n| n.get() as u64).min(count);
    let verdict = share(seed, first, count, processes);
    let missing = verdict.coverage.missing(&chosen());
    println!("{}", verdict.coverage.table(&chosen()));
    for failure in &verdict.failures {
        println!("{failure}");
    }
    println!("seed {seed}: {count} cases, {} forms, {} mismatches", chosen().len(), verdict.mismatches);
    assert!(verdict.failures.is_empty(), "mismatches: see above");
    assert!(missing.is_empty() || count < chosen().len() as u64, "never in a program: {missing:?}");
}
