//! Every exported metric moves when the event that it counts happens. The tidy test demands each name here, or beside
//! the test of the counter that it shows.

use crate::disk_return::{make_sparse, with_image};
use crate::fixture::{
    Config, Daemon, Engine, PATIENCE, Pair, Traffic, World, connect_from, eventually, write_memory,
};
use ft_tests::proxy::mangle::MangleMode;
use ft_tests::proxy::relay::{self, Direction, ProxyOptions};
use ftd::control::api::{Role, State};
use nix::sys::signal::Signal;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Of a primary that is protected by checkpoints and serves a client.
const AT_WORK: [&str; 23] = [
    "ftd_generation",
    "ftd_epoch",
    "ftd_acked_epoch",
    "ftd_primary",
    "ftd_protected",
    "ftd_peer_connected",
    "ftd_arbiter_age_us",
    "ftd_peer_arbiter_age_us",
    "ftd_dirty_pages",
    "ftd_checkpoints_total",
    "ftd_pages_total",
    "ftd_raw_bytes_total",
    "ftd_encoded_bytes_total",
    "ftd_sent_bytes_total",
    "ftd_frames_released_total",
    "ftd_resyncs_total",
    "ftd_scrubbed_pages_total",
    "ftd_scrub_pass_ms",
    "ftd_pause_us",
    "ftd_hold_us",
    "ftd_hold_kept",
    "ftd_guest_speed_kept",
    "ftd_commit_us",
];
/// While its backup says nothing.
const UNACKED: [&str; 5] =
    ["ftd_held_frames", "ftd_held_bytes", "ftd_oldest_held_us", "ftd_hold_full_total", "ftd_stalls_total"];
/// Of a primary in replay mode.
const REPLAYED: [&str; 4] =
    ["ftd_replay_count", "ftd_lag_us", "ftd_log_bytes_total", "ftd_log_entries_total"];
/// Of a primary while a host comes back whose image of a disk is another.
const DISKS_COPIED: [&str; 4] =
    ["ftd_disk_copy_total_bytes", "ftd_disk_copy_left_s", "ftd_disk_compared_bytes", "ftd_disk_copied_bytes"];
/// In the guest nobody listens there: each attempt is answered with a frame.
const CLOSED_PORT: u16 = 9;
/// The least that may be held.
const HOLD_FRAMES: u16 = 16;

/// The largest sample of this name.
fn value(metrics: &str, name: &str) -> u64 {
    let samples =
        metrics.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).max().unwrap_or(0)
}

/// Waits until each of these has been seen above zero.
pub fn must_move(daemon: &Daemon, names: &[&str]) {
    let unseen = RefCell::new(names.iter().copied().collect::<BTreeSet<_>>());
    eventually(
        "every metric has moved",
        || {
            let metrics = daemon.ctl(&["metrics"]).stdout;
            unseen.borrow_mut().retain(|name| value(&metrics, name) == 0);
            unseen.borrow().is_empty().then_some(())
        },
        || format!("not {:?}", unseen.borrow()),
    );
}

#[test]
fn the_metrics_of_a_pair_move_with_what_happens_to_it() {
    World::run("the_metrics_of_a_pair_move_with_what_happens_to_it", |world| {
        let mut pair = Pair::protected_with(world, |config| {
            config
                .with("replication.mode", "checkpoint")
                .with("replication.pipeline_depth", 1)
                .with("replication.hold_frames", i64::from(HOLD_FRAMES))
                .with("replication.failure_timeout_ms", 60_000)
        });
        let traffic = Traffic::start();
        must_move(&pair.alpha, &AT_WORK);
        must_move(&pair.beta, &["ftd_rehearsals_total", "ftd_rehearsal_age_us"]);

        pair.beta.signal(Signal::SIGSTOP);
        let attempts = (0..2 * HOLD_FRAMES).map(|_| {
            std::thread::spawn(|| {
                TcpStream::connect_timeout(&SocketAddr::from(([10, 77, 0, 2], CLOSED_PORT)), PATIENCE)
            })
        });
        let attempts: Vec<_> = attempts.collect();
        must_move(&pair.alpha, &UNACKED);
        pair.beta.signal(Signal::SIGCONT);
        for attempt in attempts {
            assert!(attempt.join().expect("it does not panic").is_err(), "nobody listens there");
        }
        traffic.goes_on();

        pair.wait_protected();
        let output = pair.alpha.ctl(&["switchover", "--yes"]);
        assert_eq!(output.code, 0, "{output:?}");
        must_move(&pair.beta, &["ftd_switchovers_total"]);
        pair.wait_protected_the_other_way_round();
        pair.beta.kill();
        must_move(&pair.alpha, &["ftd_takeovers_total", "ftd_suspicions_total"]);

        pair.alpha.wait_until(Role::Primary, State::Solo);
        world.set_tap("vm-alpha", "down");
        must_move(&pair.alpha, &["ftd_emit_errors_total", "ftd_network_troubled"]);
        world.set_tap("vm-alpha", "up");
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn an_executor_that_is_stuck_is_told_by_status_exit_code_and_metric() {
    World::run("an_executor_that_is_stuck_is_told_by_status_exit_code_and_metric", |world| {
        let pair =
            Pair::protected_with(world, |config| config.with("replication.failure_timeout_ms", 60_000));
        let is_well = || (pair.alpha.ctl(&["status"]).code == 0).then_some(());
        eventually("alpha is well", is_well, || pair.alpha.log());
        pair.alpha.with_executor_stopped(|| {
            let told = eventually(
                "the status says so",
                || Some(pair.alpha.ctl(&["status"])).filter(|output| output.code == 3),
                || pair.alpha.log(),
            );
            assert!(told.stdout.contains("the daemon is stuck"), "{told:?}");
            must_move(&pair.alpha, &["ftd_view_age_ms"]);
            let metrics = pair.alpha.ctl(&["metrics"]).stdout;
            assert_eq!(value(&metrics, "ftd_protected"), 0, "{metrics}");
            let status = pair.alpha.status().expect("the control socket answers");
            assert_eq!(status.state, State::Stuck);
        });
        eventually("alpha is well again", is_well, || pair.alpha.log());
    });
}

#[test]
fn strangers_are_turned_away_and_counted_and_the_peers_real_address_is_shown() {
    World::run("strangers_are_turned_away_and_counted_and_the_peers_real_address_is_shown", |world| {
        let mut pair = Pair::protected(world);
        let traffic = Traffic::start();
        let port = SocketAddrV4::new(Ipv4Addr::LOCALHOST, Config::port(0));
        let strangers: Vec<TcpStream> =
            (0..100).map(|_| connect_from(Ipv4Addr::new(127, 0, 0, 2), port)).collect();
        for mut stranger in strangers {
            assert_eq!(stranger.read(&mut [0; 1]).unwrap_or(0), 0, "it is closed, and nothing is said");
        }
        must_move(&pair.alpha, &["ftd_refused_connections_total"]);
        let metrics = pair.alpha.ctl(&["metrics"]).stdout;
        assert!(metrics.contains("service=\"replication\",reason=\"stranger\"} 100\n"), "{metrics}");
        let lines = pair.alpha.log().matches("closed a connection from 127.0.0.2").count();
        assert!((1..=5).contains(&lines), "{lines} lines about 100 strangers");
        let status = pair.alpha.wait_until(Role::Primary, State::Protected);
        assert_eq!(status.peer.from.map(|from| from.ip()), Some(Ipv4Addr::LOCALHOST.into()), "{status:?}");
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn the_metrics_of_a_full_copy_say_how_far_it_is() {
    World::run("the_metrics_of_a_full_copy_say_how_far_it_is", |world| {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("the world has a loopback");
        let proxy = listener.local_addr().expect("it is bound");
        let options = ProxyOptions {
            to: SocketAddr::from(([127, 0, 0, 1], Config::port(0))),
            // The copy has begun, and gets no further.
            mode: Some(MangleMode::Stall),
            direction: Some(Direction::Back),
            seed: 1,
            after_bytes: 1 << 20,
            spread_bytes: 0,
            count: 1,
            delay: Duration::ZERO,
        };
        let report: Arc<Mutex<dyn Write + Send>> = Arc::new(Mutex::new(std::io::sink()));
        std::thread::spawn(move || relay::serve(&listener, &options, &report));
        let mut alpha = Daemon::start(world, &Config::alpha(world));
        alpha.wait_until(Role::Primary, State::Solo);
        write_memory(4096);
        let mut beta = Daemon::start(world, &Config::beta(world).with("peer.address", proxy.to_string()));
        must_move(&beta, &["ftd_copy_total_bytes"]);
        must_move(&alpha, &["ftd_copy_done_bytes"]);
        // The next attempt passes.
        alpha.wait_until(Role::Primary, State::Protected);
        beta.wait_until(Role::Backup, State::Protected);
    });
}

#[test]
fn the_metrics_of_disks_that_become_the_same_say_how_far_that_is() {
    World::run("the_metrics_of_disks_that_become_the_same_say_how_far_that_is", |world| {
        make_sparse(world, 32);
        let slow = with_image(world, Config::alpha(world)).with("replication.disk_copy_mib_s", 8);
        let mut alpha = Daemon::start(world, &slow);
        alpha.wait_until(Role::Primary, State::Solo);
        let _beta = Daemon::start(world, &with_image(world, Config::beta(world)));
        must_move(&alpha, &DISKS_COPIED);
        alpha.wait_until(Role::Primary, State::Protected);
        let metrics = alpha.ctl(&["metrics"]).stdout;
        assert_eq!(DISKS_COPIED.map(|name| value(&metrics, name)), [0; 4]);
    });
}

#[test]
fn the_metrics_of_replay_mode_move_with_the_log() {
    World::run_on(Engine::Soft, "the_metrics_of_replay_mode_move_with_the_log", |world| {
        let pair = Pair::protected_with(world, |config| {
            config.with("replication.mode", "replay").with("replication.failure_timeout_ms", 60_000)
        });
        let traffic = Traffic::start();
        must_move(&pair.alpha, &REPLAYED);
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}
