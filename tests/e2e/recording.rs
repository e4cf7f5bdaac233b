//! `ftd record` and `ftd replay`: a run that was recorded runs again, to the last bit, and a file that holds no such
//! run is refused.

use crate::fixture::{
    Config, Daemon, Engine, PATIENCE, Pair, Traffic, World, binary, call, eventually, tell,
};
use ftd::exit::DaemonExit;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

/// An `ftd record` under way.
struct Recorder {
    child: Child,
    recording: PathBuf,
    console: PathBuf,
    messages: PathBuf,
}

impl Recorder {
    fn start(world: &World, config: &Config, arguments: &[&str]) -> Self {
        let path = |name: &str| world.path(name);
        let file = world.file("record.toml", config.text());
        let (recording, console, messages) = (path("run.ftdrec"), path("console"), path("messages"));
        let mut command = Command::new(binary("ftd"));
        command.arg("record").arg("--config").arg(file).arg("--out").arg(&recording).args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(File::create(&console).expect("the directory is writable"))
            .stderr(File::create(&messages).expect("the directory is writable"));
        // SAFETY: between fork and exec only prctl(2) is called, which is a plain system call.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let child = command.spawn().expect("the program can be started");
        Self { child, recording, console, messages }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("the child is ours, and not reaped");
    }

    /// Waits for its end: what it said last.
    fn ends(&mut self, code: DaemonExit) -> String {
        let status = wait(&mut self.child, &self.messages);
        let said = text(&self.messages);
        assert_eq!(status.code(), Some(i32::from(code as u8)), "{said}");
        said
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(child: &mut Child, messages: &Path) -> ExitStatus {
    eventually("ftd record ends", || child.try_wait().expect("the child is ours"), || text(messages))
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// What a replay said.
struct Replayed {
    code: i32,
    console: Vec<u8>,
    said: String,
}

fn replay(recording: &Path, arguments: &[&str]) -> Replayed {
    let since = Instant::now();
    let output = Command::new(binary("ftd"))
        .arg("replay")
        .arg(recording)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the program can be started");
    assert!(since.elapsed() < PATIENCE, "a replay takes longer than anything may");
    Replayed {
        code: output.status.code().unwrap_or(-1),
        console: output.stdout,
        said: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Replayed {
    fn must_end(self, code: DaemonExit, says: &[&str]) -> Self {
        assert_eq!(self.code, i32::from(code as u8), "{}", self.said);
        for text in says {
            assert!(self.said.contains(text), "lacks {text:?}: {}", self.said);
        }
        self
    }
}

/// "count N, digest D" of what was said.
fn result(said: &str) -> (u64, String) {
    let line = said.lines().find_map(|line| line.strip_prefix("ftd: count ")).expect("it says the result");
    let (count, digest) = line.split_once(", digest ").expect("count and digest");
    (count.parse().expect("a count"), digest.to_owned())
}

/// Records the service with a client at work until SIGTERM.
fn recorded(world: &World) -> (Recorder, String) {
    let mut recorder = Recorder::start(world, &Config::alpha(world), &[]);
    let traffic = Traffic::start();
    traffic.goes_on();
    traffic.must_have_lost_nothing();
    recorder.signal(Signal::SIGTERM);
    let said = recorder.ends(DaemonExit::Ok);
    (recorder, said)
}

#[test]
fn a_service_at_work_is_replayed_to_the_same_count_memory_state_and_console() {
    World::run_on(
        Engine::Soft,
        "a_service_at_work_is_replayed_to_the_same_count_memory_state_and_console",
        |world| {
            let (recorder, said) = recorded(world);
            for _ in 0..3 {
                let again =
                    replay(&recorder.recording, &["--verify"]).must_end(DaemonExit::Ok, &["as recorded"]);
                assert_eq!(result(&again.said), result(&said));
                assert_eq!(again.console, fs::read(&recorder.console).unwrap());
            }
        },
    );
}

#[test]
fn a_replay_stops_at_any_count_and_comes_to_the_same_there_each_time() {
    World::run_on(
        Engine::Soft,
        "a_replay_stops_at_any_count_and_comes_to_the_same_there_each_time",
        |world| {
            let (recorder, said) = recorded(world);
            let (count, digest) = result(&said);
            for until in [1, count / 3, count / 2 + 1, count - 1] {
                let stopped = || {
                    let until = until.to_string();
                    let run = replay(&recorder.recording, &["--quiet", "--until", &until]);
                    result(&run.must_end(DaemonExit::Ok, &[&format!("registers at count {until}, cpl")]).said)
                };
                let first = stopped();
                assert_eq!(first.0, until);
                assert_ne!(first.1, digest);
                assert_eq!(stopped(), first);
            }
        },
    );
}

#[test]
fn a_guest_that_powers_off_ends_its_recording_and_its_replay() {
    World::run_on(Engine::Soft, "a_guest_that_powers_off_ends_its_recording_and_its_replay", |world| {
        let mut recorder = Recorder::start(world, &Config::alpha(world), &[]);
        assert_eq!(call("PING"), "PONG");
        let _connection = tell("POWEROFF");
        let said = recorder.ends(DaemonExit::Ok);
        assert!(said.contains("the guest powered off"), "{said}");
        let again = replay(&recorder.recording, &["--verify"]);
        let again = again.must_end(DaemonExit::Ok, &["the guest powered off"]);
        assert_eq!(result(&again.said), result(&said));
    });
}

#[test]
fn a_guest_that_crashes_ends_its_recording_and_its_replay() {
    World::run_on(Engine::Soft, "a_guest_that_crashes_ends_its_recording_and_its_replay", |world| {
        let mut recorder = Recorder::start(world, &Config::alpha(world), &[]);
        assert_eq!(call("PING"), "PONG");
        let _connection = tell("CRASH");
        let said = recorder.ends(DaemonExit::GuestCrashed);
        for _ in 0..3 {
            let again = replay(&recorder.recording, &["--verify"]);
            let again = again.must_end(DaemonExit::Ok, &["as recorded, to the end: the guest crashed"]);
            assert_eq!(result(&again.said), result(&said));
        }
    });
}

#[test]
fn a_guest_that_resets_ends_its_recording_and_its_replay() {
    World::run_on(Engine::Soft, "a_guest_that_resets_ends_its_recording_and_its_replay", |world| {
        let mut recorder = Recorder::start(world, &Config::alpha(world), &[]);
        assert_eq!(call("PING"), "PONG");
        let _connection = tell("RESET");
        let said = recorder.ends(DaemonExit::Ok);
        assert!(said.contains("the guest asked for a reset"), "{said}");
        let again = replay(&recorder.recording, &["--verify"]);
        let again = again.must_end(DaemonExit::Ok, &["the guest asked for a reset"]);
        assert_eq!(result(&again.said), result(&said));
    });
}

#[test]
fn a_recorder_that_was_killed_leaves_what_can_be_replayed_and_replay_says_so() {
    World::run_on(
        Engine::Soft,
        "a_recorder_that_was_killed_leaves_what_can_be_replayed_and_replay_says_so",
        |world| {
            let mut recorder = Recorder::start(world, &Config::alpha(world), &[]);
            assert_eq!(call("SET a b"), "OK");
            recorder.signal(Signal::SIGKILL);
            wait(&mut recorder.child, &recorder.messages);
            let cut = ["cut off at byte", "without an end"];
            replay(&recorder.recording, &["--quiet"]).must_end(DaemonExit::Ok, &cut);
            replay(&recorder.recording, &["--quiet", "--verify"]).must_end(DaemonExit::Failure, &cut);
        },
    );
}

#[test]
fn a_recording_that_is_damaged_or_cut_anywhere_is_replayed_up_to_there_and_refused_there() {
    const NAME: &str =
        "a_recording_that_is_damaged_or_cut_anywhere_is_replayed_up_to_there_and_refused_there";
    World::run_on(Engine::Soft, NAME, |world| {
        let (recorder, _) = recorded(world);
        let whole = fs::read(&recorder.recording).unwrap();
        let mut rng = SmallRng::seed_from_u64(11);
        // Half of the places are in the log, which is short beside the memory that it starts from.
        let mut place = |round: usize| match round % 2 {
            0 => rng.random_range(8..whole.len()),
            _ => whole.len() - rng.random_range(1..whole.len() / 20),
        };
        for round in 0..16 {
            let at = place(round);
            fs::write(&recorder.recording, &whole[..at]).unwrap();
            let run = replay(&recorder.recording, &["--quiet", "--verify"]);
            run.must_end(DaemonExit::Failure, &["cut off at byte"]);
            let at = place(round);
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (round % 8);
            fs::write(&recorder.recording, &bytes).unwrap();
            let run = replay(&recorder.recording, &["--quiet"]).must_end(DaemonExit::Failure, &[]);
            assert!(run.said.contains("corrupt at byte"), "bit of byte {at}: {}", run.said);
        }
    });
}

#[test]
fn a_vm_that_a_daemon_has_here_is_not_recorded_beside_it() {
    World::run_on(Engine::Soft, "a_vm_that_a_daemon_has_here_is_not_recorded_beside_it", |world| {
        let mut pair = Pair::protected(world);
        let traffic = Traffic::start();
        // Neither where it runs nor where it may go on: the VM's address is spoken for.
        for config in [&pair.alpha_config, &pair.beta_config] {
            let mut recorder = Recorder::start(world, config, &[]);
            let said = recorder.ends(DaemonExit::InUse);
            assert!(said.contains("machine.net.tap") && said.contains("in use"), "{said}");
            assert!(!recorder.recording.exists());
        }
        pair.wait_protected();
        traffic.must_have_lost_nothing();
        // And the other way round.
        drop(pair);
        let config = Config::alpha(world);
        let recorder = Recorder::start(world, &config, &[]);
        assert_eq!(call("PING"), "PONG");
        Daemon::start(world, &config).must_fail(DaemonExit::InUse, &["machine.net.tap", "in use"]);
        recorder.signal(Signal::SIGKILL);
    });
}

#[test]
fn recording_for_a_time_ends_by_itself_and_is_not_done_over_another_one() {
    World::run_on(
        Engine::Soft,
        "recording_for_a_time_ends_by_itself_and_is_not_done_over_another_one",
        |world| {
            let config = Config::alpha(world);
            let mut recorder = Recorder::start(world, &config, &["--for", "0.2", "--quiet"]);
            recorder.ends(DaemonExit::Ok);
            assert_eq!(text(&recorder.console), "");
            let recording = fs::read(&recorder.recording).unwrap();
            let said = Recorder::start(world, &config, &[]).ends(DaemonExit::Usage);
            assert!(said.contains("not overwritten"), "{said}");
            assert!(fs::read(&recorder.recording).unwrap() == recording);
        },
    );
}
