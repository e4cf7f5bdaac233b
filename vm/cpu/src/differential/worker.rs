//! The tests, and the process that does their work: this test binary again, so that its parent sees any harm that a
//! program does to it.

use super::engine::Engine;
use super::forms::{forms, named};
use super::generate::Generator;
use super::native::Native;
use super::report::{Coverage, host, mismatch, run};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
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
const STUCK_S: u32 = 600;

/// Runs the cases `first..first + count` of a seed.
fn work(seed: u64, first: u64, count: u64) -> u64 {
    let mut native = Native::new().expect("pages at their addresses, and signals");
    let mut soft = Engine::new();
    let forms = chosen();
    let mut generator = Generator::new(seed, forms.clone());
    let mut coverage = Coverage::default();
    let told_max = std::env::var(TOLD).ok().and_then(|n| n.parse().ok()).unwrap_or(TOLD_MAX);
    let mut used = BTreeMap::<&str, u64>::new();
    let mut mismatches = 0;
    for case in first..first + count {
        if case % 1000 == 0 {
            // Its signal ends the process.
            nix::unistd::alarm::set(STUCK_S);
        }
        let program = generator.program(case);
        // What cannot be encoded is one operand's fault, not the form's: the coverage tells if a form is never there.
        let Some((assembled, outcome, comparison)) = run(&program, &mut native, &mut soft) else { continue };
        coverage.note(&program, &assembled, outcome.rip);
        for latitude in comparison.used {
            *used.entry(latitude).or_default() += 1;
        }
        if !comparison.lines.is_empty() {
            mismatches += 1;
            if mismatches <= told_max {
                println!("{}", mismatch(seed, case, &program, &mut native, &mut soft));
            }
        }
        if case % 50_000 == 49_999 {
            eprintln!("cases {first} to {case}: {mismatches} mismatches");
        }
    }
    println!("mismatches {mismatches}");
    for (latitude, programs) in used {
        println!("latitude {programs} {latitude}");
    }
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
#[derive(Default)]
struct Verdict {
    mismatches: u64,
    failures: Vec<String>,
    coverage: Coverage,
    /// By which entries of the table the host agreed, and in how many programs.
    used: BTreeMap<String, u64>,
}

impl Verdict {
    /// The host's processor, and what of the table it used: on any host, whether the test fails or not.
    fn tell_host(&self) {
        let used: Vec<_> =
            self.used.iter().map(|(name, programs)| format!("\n  {name}: {programs}")).collect();
        // Past the test harness, which shows what it captures only of failures.
        _ = writeln!(std::io::stderr(), "host {}; programs that used a latitude:{}", host(), used.concat());
    }

    /// Adds what a worker said and how it ended.
    fn add(&mut self, lines: Vec<String>, status: std::process::ExitStatus) {
        let mut said = Vec::new();
        for line in lines {
            let words = line.split(' ').collect::<Vec<_>>();
            match *words {
                ["coverage", form, cases, completed] => {
                    self.coverage.add(form, cases.parse().unwrap_or(0), completed.parse().unwrap_or(0));
                }
                ["latitude", programs, ref name @ ..] => {
                    *self.used.entry(name.join(" ")).or_default() += programs.parse().unwrap_or(0);
                }
                ["mismatches", number] => self.mismatches += number.parse().unwrap_or(0),
                _ => said.push(line),
            }
        }
        if !status.success() {
            self.failures.push(format!("{}\na worker ended with {status}", said.join("\n")));
        }
    }
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
    let listen = |mut worker: std::process::Child| {
        let pipe = BufReader::new(worker.stdout.take().expect("a pipe"));
        let lines: Vec<_> = pipe.lines().map_while(Result::ok).collect();
        (lines, worker.wait().expect("a worker's end"))
    };
    let readers: Vec<_> =
        workers.into_iter().map(|worker| std::thread::spawn(move || listen(worker))).collect();
    let mut verdict = Verdict::default();
    for reader in readers {
        let (lines, status) = reader.join().expect("a reader of lines");
        verdict.add(lines, status);
    }
    verdict.tell_host();
    verdict
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
