//! The VM moves on purpose: nothing is lost, and its clients notice nothing.

use crate::fixture::{Daemon, Pair, Traffic, World};
use ftd::control::api::{Role, State};
use ftd::exit::DaemonExit;
use nix::sys::signal::Signal;

#[test]
fn a_switchover_on_request_there_and_back_loses_nothing() {
    World::run("a_switchover_on_request_there_and_back_loses_nothing", |world| {
        let mut pair = Pair::protected(world);
        let traffic = Traffic::start();
        let output = pair.alpha.ctl(&["failover", "--yes"]);
        assert_eq!(output.code, 0, "{output:?}");
        assert!(output.stderr.contains("beta runs the VM now"), "{output:?}");
        pair.wait_protected_the_other_way_round();
        traffic.goes_on();
        let output = pair.beta.ctl(&["switchover", "--yes", "--json"]);
        assert_eq!(output.code, 0, "{output:?}");
        assert!(output.stdout.contains("alpha runs the VM now"), "{output:?}");
        pair.wait_protected();
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn stopping_a_protected_primary_moves_its_vm_first() {
    World::run("stopping_a_protected_primary_moves_its_vm_first", |world| {
        let mut pair = Pair::protected(world);
        let traffic = Traffic::start();
        let output = pair.alpha.ctl(&["stop"]);
        assert_eq!(output.code, 0, "{output:?}");
        assert!(output.stderr.contains("the VM moved to beta"), "{output:?}");
        moved_to_beta(world, &mut pair, traffic);
    });
}

#[test]
fn sigterm_moves_the_vm_of_a_protected_primary_first() {
    World::run("sigterm_moves_the_vm_of_a_protected_primary_first", |world| {
        let mut pair = Pair::protected(world);
        let traffic = Traffic::start();
        pair.alpha.signal(Signal::SIGTERM);
        moved_to_beta(world, &mut pair, traffic);
    });
}

fn moved_to_beta(world: &World, pair: &mut Pair, traffic: Traffic) {
    pair.alpha.must_end(DaemonExit::Ok);
    pair.beta.wait_until(Role::Primary, State::Solo);
    traffic.goes_on();
    pair.alpha = Daemon::start(world, &pair.alpha_config);
    pair.wait_protected_the_other_way_round();
    traffic.goes_on();
    traffic.must_have_lost_nothing();
}

#[test]
fn a_backup_leaves_and_returns_while_the_vm_goes_on() {
    World::run("a_backup_leaves_and_returns_while_the_vm_goes_on", |world| {
        let mut pair = Pair::protected(world);
        let traffic = Traffic::start();
        let output = pair.beta.ctl(&["stop"]);
        assert_eq!(output.code, 0, "{output:?}");
        assert!(output.stderr.contains("the backup was stopped"), "{output:?}");
        pair.beta.must_end(DaemonExit::Ok);
        pair.alpha.wait_until(Role::Primary, State::Solo);
        traffic.goes_on();
        pair.beta = Daemon::start(world, &pair.beta_config);
        pair.wait_protected();
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn a_vm_without_a_backup_ends_only_by_power_off_and_the_next_start_boots() {
    World::run("a_vm_without_a_backup_ends_only_by_power_off_and_the_next_start_boots", |world| {
        let mut pair = Pair::protected(world);
        pair.beta.ctl(&["stop"]);
        pair.alpha.wait_until(Role::Primary, State::Solo);
        let refused = pair.alpha.ctl(&["stop"]);
        assert!(refused.code == 5 && refused.stderr.contains("--power-off"), "{refused:?}");
        pair.alpha.signal(Signal::SIGTERM);
        pair.alpha.wait_for_log("cannot stop");
        Traffic::start().must_have_lost_nothing();
        let output = pair.alpha.ctl(&["stop", "--power-off", "--timeout", "0"]);
        assert_eq!(output.code, 0, "{output:?}");
        pair.alpha.must_end(DaemonExit::Ok);
        pair.alpha = Daemon::start(world, &pair.alpha_config);
        pair.alpha.wait_until(Role::Primary, State::Solo);
    });
}
