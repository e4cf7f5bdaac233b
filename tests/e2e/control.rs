//! ftctl and its exit codes, and control clients that misbehave.

use crate::fixture::{Config, Daemon, PATIENCE, Pair, Traffic, World, eventually};
use ftd::control::api::{Role, State};
use ftd::control::server::CLIENTS_MAX;
use nix::sys::signal::Signal;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

#[test]
fn exit_codes_tell_protected_degraded_unreachable_refused_and_timed_out() {
    World::run("exit_codes_tell_protected_degraded_unreachable_refused_and_timed_out", |world| {
        let alpha_config = Config::alpha(world);
        let mut alpha = Daemon::start(world, &alpha_config);
        alpha.wait_until(Role::Primary, State::Solo);
        let expect = |daemon: &Daemon, arguments: &[&str], code: i32, says: &str| {
            let output = daemon.ctl(arguments);
            let said = format!("{}{}", output.stdout, output.stderr);
            assert!(output.code == code && said.contains(says), "ftctl {arguments:?}: {output:?}");
        };
        expect(&alpha, &["status"], 3, "solo");
        expect(&alpha, &["failover", "--yes"], 5, "not protected");
        expect(&alpha, &["failover"], 2, "--yes");
        expect(&alpha, &["wait", "--for", "protected", "--timeout", "200ms"], 6, "primary solo");
        expect(&alpha, &["wait", "--for", "solo", "--timeout", "300s"], 0, "solo");
        expect(&alpha, &["wait", "--for", "bliss"], 2, "bliss");

        let mut beta = Daemon::start(world, &Config::beta(world));
        expect(&alpha, &["wait", "--for", "protected", "--timeout", "300s"], 0, "protected");
        expect(&alpha, &["status"], 0, "protected");
        expect(&alpha, &["status", "--json"], 0, "\"state\":\"protected\"");
        beta.wait_until(Role::Backup, State::Protected);
        expect(&beta, &["status"], 0, "backup");
        expect(&beta, &["failover", "--yes"], 5, "ask the primary");
        expect(&alpha, &["metrics"], 0, "# TYPE");

        alpha.kill();
        expect(&alpha, &["status"], 4, "no daemon answers");
        expect(&alpha, &["stop"], 4, "no daemon answers");
        expect(&alpha, &["wait", "--for", "solo", "--timeout", "300ms"], 4, "no daemon answers");
    });
}

#[test]
fn a_wait_sees_a_daemon_that_starts_only_later() {
    World::run("a_wait_sees_a_daemon_that_starts_only_later", |world| {
        let config = Config::alpha(world);
        let mut waiting = std::process::Command::new(crate::fixture::binary("ftctl"))
            .arg("--socket")
            .arg(config.socket())
            .args(["wait", "--for", "solo", "--timeout", "300s"])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut alpha = Daemon::start(world, &config);
        alpha.wait_until(Role::Primary, State::Solo);
        assert_eq!(waiting.wait().unwrap().code(), Some(0));
    });
}

#[test]
fn a_client_that_sends_garbage_is_told_so_and_harms_nobody() {
    World::run("a_client_that_sends_garbage_is_told_so_and_harms_nobody", |world| {
        let pair = Pair::protected(world);
        let traffic = Traffic::start();
        for garbage in [
            b"hello, who is there?\n".as_slice(),
            b"\n",
            b"{\"version\":99,\"request\":\"status\"}\n",
            b"{\"version\":2,\"request\":\"self-destruct\"}\n",
            b"{\"version\":2,\"request\":{\"failover\":{\"timeout_ms\":-1}}}\n",
            b"\xff\xfe\x00\x00\n",
            &[b'['; 100_000],
        ] {
            let mut stream = UnixStream::connect(pair.alpha.socket()).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            // What is too long is refused before it is read to its end.
            let _ = stream.write_all(garbage);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = String::new();
            let _ = BufReader::new(&stream).read_line(&mut answer);
            let start = garbage[..garbage.len().min(40)].escape_ascii();
            assert!(answer.contains("bad_request"), "{start}: {answer:?}");
            assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0, "{start}: the connection stays open");
        }
        assert_eq!(pair.alpha.ctl(&["status"]).code, 0);
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn clients_that_hang_keep_nobody_out_for_long() {
    World::run("clients_that_hang_keep_nobody_out_for_long", |world| {
        let pair = Pair::protected(world);
        let traffic = Traffic::start();
        let hanging: Vec<_> =
            (0..CLIENTS_MAX).map(|_| UnixStream::connect(pair.alpha.socket()).unwrap()).collect();
        let busy = eventually(
            "there is no place left",
            || Some(pair.alpha.ctl(&["status"])).filter(|output| output.code == 5),
            String::new,
        );
        assert!(busy.stderr.contains("busy"), "{busy:?}");
        // Nobody hangs up: they are given a limited time.
        eventually(
            "there is a place again",
            || Some(pair.alpha.ctl(&["status"])).filter(|output| output.code == 0),
            String::new,
        );
        drop(hanging);
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn a_client_that_takes_nothing_is_not_waited_for() {
    World::run("a_client_that_takes_nothing_is_not_waited_for", |world| {
        let pair = Pair::protected(world);
        let traffic = Traffic::start();
        let mut deaf = UnixStream::connect(pair.alpha.socket()).unwrap();
        deaf.write_all(b"{\"version\":2,\"request\":{\"watch\":{\"interval_ms\":50}}}\n").unwrap();
        let output = pair.alpha.ctl(&["failover", "--yes"]);
        assert_eq!(output.code, 0, "{output:?}");
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn sighup_reloads_what_it_can_and_names_what_it_cannot_and_a_broken_file_changes_nothing() {
    World::run(
        "sighup_reloads_what_it_can_and_names_what_it_cannot_and_a_broken_file_changes_nothing",
        |world| {
            let config = Config::alpha(world);
            let mut alpha = Daemon::start(world, &config);
            alpha.wait_until(Role::Primary, State::Solo);
            let traffic = Traffic::start();
            world.file("alpha.toml", "vm = [");
            alpha.signal(Signal::SIGHUP);
            alpha.wait_for_log("nothing is changed");
            let changed = config.clone().with("log.level", "debug").with("machine.memory_mib", 64);
            let changed =
                changed.with("replication.hold_ms_max", 170).with("replication.failure_timeout_ms", 9000);
            world.file("alpha.toml", changed.text());
            alpha.signal(Signal::SIGHUP);
            alpha.wait_for_log("these keys count after a restart only: machine.memory_mib");
            let debugs = || {
                let _ = alpha.ctl(&["status"]);
                alpha.log().contains("control request").then_some(())
            };
            eventually("it logs at level debug", debugs, || alpha.log());
            alpha.wait_for_log("changed: log.level, replication.failure_timeout_ms, replication.hold_ms_max");
            alpha.wait_for("declaring it", |status| status.service.hold_ms_max == 170);
            traffic.must_have_lost_nothing();
        },
    );
}

#[test]
fn a_replacement_host_under_another_name_joins_after_a_reload_without_stopping_the_vm() {
    World::run(
        "a_replacement_host_under_another_name_joins_after_a_reload_without_stopping_the_vm",
        |world| {
            let mut pair = Pair::protected(world);
            let traffic = Traffic::start();
            pair.beta.kill();
            pair.alpha.wait_until(Role::Primary, State::Solo);
            world.file("alpha.toml", pair.alpha_config.clone().with("peer.node", "gamma").text());
            pair.alpha.signal(Signal::SIGHUP);
            pair.alpha.wait_for_log("node gamma is the peer now, in place of beta");
            let state = world.path("gamma-state");
            let gamma =
                pair.beta_config.clone().with("node", "gamma").with("state_dir", state.to_str().unwrap());
            pair.beta = Daemon::start(world, &gamma);
            pair.wait_protected();
            // It is the backup in the cell's eyes too.
            pair.alpha.kill();
            pair.beta.wait_until(Role::Primary, State::Solo);
            traffic.must_have_lost_nothing();
        },
    );
}
