//! Bulk traffic of a Linux guest, whose driver leaves checksums and the cutting of segments to its card.

use crate::fixture::{Config, Engine, PATIENCE, Pair, World, eventually, linux, vm_address};
use ftd::control::api::{Role, State};
use nix::sys::socket::{getsockopt, sockopt::TcpMaxSeg};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// Values that are asked for, 60 KiB each, and bytes of one that is set.
const VALUES: usize = 3;
const PIECES: usize = 66;
const PIECE_BYTES: usize = 930;
/// Requests of a round.
const SETS: usize = 64;
const GETS: usize = 8;

/// A connection that moves some 60 KiB to the guest and 480 KiB from it, again and again, and looks at every byte.
struct Bulk {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
    rng: StdRng,
    values: Vec<String>,
}

impl Bulk {
    fn open() -> Self {
        let stream = eventually(
            "the guest's service answers",
            || TcpStream::connect_timeout(&vm_address(), PATIENCE).ok(),
            || "it does not".into(),
        );
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let answers = BufReader::new(stream.try_clone().unwrap());
        let mut bulk = Self { stream, answers, rng: StdRng::seed_from_u64(9), values: Vec::new() };
        for value in 0..VALUES {
            let pieces: Vec<_> = (0..PIECES).map(|_| bulk.piece()).collect();
            let requests: String = pieces.iter().map(|piece| format!("APPEND v{value} {piece}\n")).collect();
            bulk.stream.write_all(requests.as_bytes()).unwrap();
            (0..PIECES).for_each(|_| assert!(!bulk.answer().starts_with("ERR")));
            bulk.values.push(pieces.concat());
        }
        bulk
    }

    /// What does not compress.
    fn piece(&mut self) -> String {
        (0..PIECE_BYTES).map(|_| char::from(self.rng.random_range(b'0'..=b'z'))).collect()
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the connection survives");
        line.trim_end().to_owned()
    }

    fn round(&mut self) {
        let mut requests = String::new();
        let set: Vec<_> = (0..SETS).map(|_| self.piece()).collect();
        set.iter().enumerate().for_each(|(at, piece)| requests += &format!("SET s{at} {piece}\n"));
        (0..GETS).for_each(|at| requests += &format!("GET v{}\n", at % VALUES));
        self.stream.write_all(requests.as_bytes()).expect("the connection survives");
        (0..SETS).for_each(|_| assert_eq!(self.answer(), "OK"));
        for at in 0..GETS {
            assert!(
                self.answer().strip_prefix("VALUE ") == Some(&self.values[at % VALUES]),
                "a wrong answer"
            );
        }
        let at = self.rng.random_range(0..SETS);
        self.stream.write_all(format!("GET s{at}\n").as_bytes()).expect("the connection survives");
        assert_eq!(self.answer().strip_prefix("VALUE "), Some(&*set[at]));
    }
}

/// One at work on a thread of its own.
struct Rounds {
    thread: JoinHandle<()>,
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Rounds {
    fn start(mut bulk: Bulk) -> Self {
        let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (Arc::clone(&done), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                bulk.round();
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { thread, done, stop }
    }

    fn go_on(&self) {
        let wanted = self.done.load(Ordering::Relaxed) + 3;
        let done = || {
            assert!(!self.thread.is_finished(), "the client has ended");
            (self.done.load(Ordering::Relaxed) >= wanted).then_some(())
        };
        eventually("rounds of the client", done, || "the VM does not answer".into());
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("every answer was right");
    }
}

/// Mean bytes of the frames that came out of the VM over this TAP, and of those that went in.
fn mean_frames(world: &World, tap: &str) -> (u64, u64) {
    let link: serde_json::Value =
        serde_json::from_str(&world.ask_ip(&format!("-j -s link show dev {tap}"))).unwrap();
    let mean = |way: &str| {
        let count = |what: &str| link[0]["stats64"][way][what].as_u64().unwrap();
        count("bytes") / count("packets").max(1)
    };
    (mean("rx"), mean("tx"))
}

fn bulk_outlives_the_primary(name: &'static str, mode: &'static str, mtu: u16) {
    let Some(linux) = linux(name) else { return };
    // Where the host emulates KVM, a kernel that boots in epochs takes minutes.
    World::run_on(Engine::Soft, name, move |world| {
        world.ip(&format!("link set dev lan mtu {mtu}"));
        let change = |config: Config| {
            linux(config).with("replication.mode", mode).with("machine.net.mtu", i64::from(mtu))
        };
        let mut pair = Pair::protected_with(world, change);
        let bulk = Bulk::open();
        // 40 bytes of IP and TCP, and 12 of time stamps.
        assert_eq!(getsockopt(&bulk.stream, TcpMaxSeg).unwrap(), u32::from(mtu) - 52);
        let rounds = Rounds::start(bulk);
        rounds.go_on();
        pair.wait_protected();
        // Acknowledgements among them: the others are segments of many frames.
        let is_uncut = |tap: &str| {
            let (out, into) = mean_frames(world, tap);
            eprintln!("{tap}: {out} bytes a frame out of the VM, {into} into it");
            out > 2000
        };
        assert!(is_uncut("vm-alpha"));
        pair.alpha.kill();
        pair.beta.wait_until(Role::Primary, State::Solo);
        rounds.go_on();
        assert!(is_uncut("vm-beta"), "what the driver takes and leaves is known after the take-over");
        rounds.end();
    });
}

#[test]
fn bulk_traffic_without_checksums_and_uncut_outlives_the_primary() {
    const NAME: &str = "bulk_traffic_without_checksums_and_uncut_outlives_the_primary";
    bulk_outlives_the_primary(NAME, "checkpoint", 1500);
}

#[test]
fn bulk_traffic_without_checksums_and_uncut_outlives_the_primary_in_replay_mode() {
    const NAME: &str = "bulk_traffic_without_checksums_and_uncut_outlives_the_primary_in_replay_mode";
    bulk_outlives_the_primary(NAME, "replay", 1500);
}

#[test]
fn frames_of_nine_kilobytes_reach_the_guest_and_leave_it() {
    bulk_outlives_the_primary("frames_of_nine_kilobytes_reach_the_guest_and_leave_it", "checkpoint", 9000);
}
