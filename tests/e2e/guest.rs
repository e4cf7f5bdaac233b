//! The guest acts on its own: it crashes, resets, powers off, writes to its console.

use crate::fixture::{Config, Daemon, Pair, World, binary, call, call_at, eventually, tell};
use ftd::control::api::{Role, State, Status};
use ftd::exit::DaemonExit;
use std::fs::{self, File};
use std::process::{Command, Stdio};

fn waits_for_a_primary(status: &Status) -> bool {
    (status.role, status.state) == (Role::Backup, State::Waiting)
        && status.detail.contains("the VM has ended")
}

#[test]
fn a_guest_that_crashes_is_booted_again_as_one_that_resets() {
    World::run("a_guest_that_crashes_is_booted_again_as_one_that_resets", |world| {
        let mut pair = Pair::protected(world);
        assert_eq!(call("SET before crash"), "OK");
        let before = pair.alpha.status().expect("it answers").generation;
        let _connection = tell("CRASH");
        pair.alpha.wait_for("of a later generation", |status| {
            status.state == State::Protected && status.generation > before
        });
        assert!(pair.alpha.log().contains("the guest crashed: vCPU 0: triple fault"), "{}", pair.alpha.log());
        pair.wait_protected();
        assert_eq!(call("GET before"), "NONE");
    });
}

#[test]
fn a_guest_that_crashes_ends_the_vm_on_both_nodes_where_a_reset_does() {
    World::run("a_guest_that_crashes_ends_the_vm_on_both_nodes_where_a_reset_does", |world| {
        let mut pair = Pair::protected_with(world, |config| config.with("machine.on_reset", "stop"));
        let _connection = tell("CRASH");
        pair.alpha.must_fail(DaemonExit::GuestCrashed, &["the guest crashed"]);
        // What crashed here would crash there.
        pair.beta.wait_for("a backup that knows of the end", waits_for_a_primary);
        pair.alpha = Daemon::start(world, &pair.alpha_config);
        pair.wait_protected();
        assert_eq!(call("PING"), "PONG");
    });
}

#[test]
fn a_guest_that_powers_off_ends_the_vm_on_both_nodes_and_the_next_start_boots() {
    World::run("a_guest_that_powers_off_ends_the_vm_on_both_nodes_and_the_next_start_boots", |world| {
        let mut pair = Pair::protected(world);
        let _connection = tell("POWEROFF");
        pair.alpha.must_end(DaemonExit::Ok);
        assert!(pair.alpha.log().contains("the guest powered off"), "{}", pair.alpha.log());
        pair.beta.wait_for("a backup that knows of the end", waits_for_a_primary);
        pair.alpha = Daemon::start(world, &pair.alpha_config);
        pair.wait_protected();
        assert_eq!(call("PING"), "PONG");
    });
}

#[test]
fn a_guest_whose_power_button_is_pressed_by_ftctl_powers_off_by_itself() {
    World::run("a_guest_whose_power_button_is_pressed_by_ftctl_powers_off_by_itself", |world| {
        let mut pair = Pair::protected(world);
        let said = pair.alpha.ctl(&["stop", "--power-off", "--timeout", "5m"]);
        assert_eq!(said.code, 0, "{said:?}");
        pair.alpha.must_end(DaemonExit::Ok);
        assert!(pair.alpha.log().contains("the guest powered off"), "{}", pair.alpha.log());
        pair.beta.wait_for("a backup that knows of the end", waits_for_a_primary);
    });
}

#[test]
fn a_guest_that_resets_boots_again_and_is_protected_again() {
    World::run("a_guest_that_resets_boots_again_and_is_protected_again", |world| {
        let mut pair = Pair::protected(world);
        assert_eq!(call("SET before reset"), "OK");
        let before = pair.alpha.status().expect("it answers").generation;
        let _connection = tell("RESET");
        pair.alpha.wait_for("of a later generation", |status| {
            status.state == State::Protected && status.generation > before
        });
        pair.wait_protected();
        assert_eq!(call("GET before"), "NONE");
        // What boots again can be lost again.
        pair.alpha.kill();
        pair.beta.wait_until(Role::Primary, State::Solo);
        assert_eq!(call("PING"), "PONG");
    });
}

#[test]
fn a_guest_that_resets_ends_where_the_configuration_says_so() {
    World::run("a_guest_that_resets_ends_where_the_configuration_says_so", |world| {
        let mut alpha = Daemon::start(world, &Config::alpha(world).with("machine.on_reset", "stop"));
        alpha.wait_until(Role::Primary, State::Solo);
        let _connection = tell("RESET");
        alpha.must_end(DaemonExit::Ok);
        assert!(alpha.log().contains("the guest asked for a reset"), "{}", alpha.log());
    });
}

#[test]
fn a_guest_that_panics_is_told_of_and_left_as_it_is() {
    World::run("a_guest_that_panics_is_told_of_and_left_as_it_is", |world| {
        let mut pair = Pair::protected(world);
        let before = pair.alpha.status().expect("it answers").generation;
        let _connection = tell("PANIC");
        pair.alpha.wait_for("of a guest that has panicked", |status| status.guest_panics == 1);
        assert!(pair.alpha.log().contains("the guest's kernel panicked"), "{}", pair.alpha.log());
        assert_eq!(pair.alpha.metric("ftd_guest_panics_total"), 1);
        // It stands, and so it does on the other host, which does not take it over.
        let status = pair.alpha.status().expect("it answers");
        assert_eq!((status.role, status.state, status.generation), (Role::Primary, State::Protected, before));
        assert_eq!(pair.beta.status().expect("it answers").guest_panics, 0);
    });
}

#[test]
fn a_guest_that_panics_boots_again_where_the_configuration_says_so() {
    World::run("a_guest_that_panics_boots_again_where_the_configuration_says_so", |world| {
        let mut pair = Pair::protected_with(world, |config| config.with("machine.on_panic", "restart"));
        assert_eq!(call("SET before panic"), "OK");
        let before = pair.alpha.status().expect("it answers").generation;
        let _connection = tell("PANIC");
        pair.alpha.wait_for("of a later generation", |status| {
            status.state == State::Protected && status.generation > before
        });
        assert_eq!(call("GET before"), "NONE");
    });
}

#[test]
fn a_guest_that_panics_ends_where_the_configuration_says_so() {
    World::run("a_guest_that_panics_ends_where_the_configuration_says_so", |world| {
        let mut pair = Pair::protected_with(world, |config| config.with("machine.on_panic", "stop"));
        let _connection = tell("PANIC");
        pair.alpha.must_fail(DaemonExit::GuestCrashed, &["the guest's kernel panicked", "on_panic"]);
        pair.beta.wait_for("a backup that knows of the end", waits_for_a_primary);
    });
}

#[test]
fn a_guest_that_hangs_is_booted_again_by_its_watchdog_also_after_a_take_over() {
    World::run("a_guest_that_hangs_is_booted_again_by_its_watchdog_also_after_a_take_over", |world| {
        let mut pair = Pair::protected(world);
        assert_eq!(call("SET before hang"), "OK");
        let before = pair.alpha.status().expect("it answers").generation;
        let _connection = tell("HANG");
        pair.alpha.wait_for("of a guest that has hung", |status| status.watchdog_firings == 1);
        pair.alpha.wait_for("of a later generation", |status| {
            status.state == State::Protected && status.generation > before
        });
        pair.wait_protected();
        assert_eq!(call("GET before"), "NONE");
        assert_eq!(pair.alpha.metric("ftd_guest_watchdog_firings_total"), 1);
        // The countdown goes on where the guest does.
        assert_eq!(call("SET before hang"), "OK");
        let _connection = tell("HANG");
        pair.alpha.kill();
        pair.beta.wait_until(Role::Primary, State::Solo);
        pair.beta.wait_for("of a guest that has hung", |status| status.watchdog_firings == 1);
        assert_eq!(call("GET before"), "NONE");
    });
}

#[test]
fn a_guest_that_hangs_ends_where_the_configuration_says_so() {
    World::run("a_guest_that_hangs_ends_where_the_configuration_says_so", |world| {
        let config = Config::alpha(world).with("machine.on_watchdog", "stop");
        let mut alpha = Daemon::start(world, &config);
        alpha.wait_until(Role::Primary, State::Solo);
        assert_eq!(call("PING"), "PONG");
        let _connection = tell("HANG");
        alpha.must_fail(DaemonExit::GuestCrashed, &["watchdog", "on_watchdog"]);
    });
}

#[test]
fn the_console_shows_what_the_guest_wrote_before_and_after() {
    World::run("the_console_shows_what_the_guest_wrote_before_and_after", |world| {
        let mut alpha = Daemon::start(world, &Config::alpha(world));
        alpha.wait_until(Role::Primary, State::Solo);
        assert_eq!(call("PING"), "PONG");
        let shown = world.path("console");
        let mut ctl = Command::new(binary("ftctl"))
            .arg("--socket")
            .arg(alpha.socket())
            .arg("console")
            .stdin(Stdio::null())
            .stdout(File::create(&shown).unwrap())
            .spawn()
            .unwrap();
        let greetings = |wanted: usize| {
            let text = || fs::read_to_string(&shown).unwrap_or_default();
            let count = || text().matches("guest: 1 vCPUs, 10.77.0.2").count();
            eventually("the guest's greeting", || (count() >= wanted).then_some(()), text);
        };
        greetings(1);
        let _connection = tell("RESET");
        greetings(2);
        alpha.kill();
        assert_eq!(ctl.wait().unwrap().code(), Some(1), "the console ends with the daemon");
    });
}

#[test]
fn the_console_goes_into_a_file_where_the_configuration_says_so() {
    World::run("the_console_goes_into_a_file_where_the_configuration_says_so", |world| {
        let file = world.path("console.log");
        let console = format!("file:{}", file.display());
        let mut alpha = Daemon::start(world, &Config::alpha(world).with("machine.console", console));
        alpha.wait_until(Role::Primary, State::Solo);
        let text = || fs::read_to_string(&file).unwrap_or_default();
        eventually("the guest's greeting", || text().contains("guest: 1 vCPUs").then_some(()), text);
    });
}

#[test]
fn the_builtin_guest_answers_at_the_address_that_is_configured_on_either_node() {
    World::run("the_builtin_guest_answers_at_the_address_that_is_configured_on_either_node", |world| {
        let elsewhere = |config: Config| {
            config
                .with("machine.net.addresses", vec![toml::Value::from("10.77.0.33")])
                .with("machine.cmdline", "port=7070")
        };
        let service = ([10, 77, 0, 33], 7070).into();
        let mut pair = Pair::protected_with(world, elsewhere);
        assert_eq!(call_at(service, "SET key there"), "OK");
        let output = pair.alpha.ctl(&["failover", "--yes"]);
        assert_eq!(output.code, 0, "{output:?}");
        pair.wait_protected_the_other_way_round();
        assert_eq!(call_at(service, "GET key"), "VALUE there");
        // What boots anew on the other node is the same guest.
        let before = pair.beta.status().expect("it answers").generation;
        drop(call_at(service, "RESET"));
        pair.beta.wait_for("of a later generation", |status| status.generation > before);
        assert_eq!(call_at(service, "GET key"), "NONE");
    });
}
