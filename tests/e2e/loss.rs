//! A host is lost, or a thing that it needs.

use crate::fixture::{Daemon, Engine, Pair, Traffic, World, call};
use ftd::control::api::{Role, State};
use std::fs;

#[test]
fn a_vm_with_two_vcpus_survives_the_loss_of_its_host() {
    World::run_on(Engine::Kvm, "a_vm_with_two_vcpus_survives_the_loss_of_its_host", |world| {
        let mut pair = Pair::protected_with(world, |config| config.with("machine.vcpus", 2));
        // The second vCPU writes memory.
        assert_eq!(call("LOAD 2000 256 random"), "OK");
        let traffic = Traffic::start();
        pair.alpha.kill();
        pair.beta.wait_until(Role::Primary, State::Solo);
        traffic.goes_on();
        pair.alpha = Daemon::start(world, &pair.alpha_config);
        pair.wait_protected_the_other_way_round();
        traffic.goes_on();
        // And back again.
        pair.beta.kill();
        pair.alpha.wait_until(Role::Primary, State::Solo);
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn a_killed_backup_is_replaced_without_stopping_the_vm() {
    World::run("a_killed_backup_is_replaced_without_stopping_the_vm", |world| {
        let mut pair = Pair::protected(world);
        let traffic = Traffic::start();
        pair.beta.kill();
        pair.alpha.wait_until(Role::Primary, State::Solo);
        let metrics = pair.alpha.ctl(&["metrics"]).stdout;
        assert!(metrics.contains("ftd_suspicions_total{vm=\"web\",node=\"alpha\"} 1\n"), "{metrics}");
        pair.beta = Daemon::start(world, &pair.beta_config);
        pair.wait_protected();
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn with_a_full_disk_under_the_arbiter_the_primary_waits_until_there_is_room() {
    World::run("with_a_full_disk_under_the_arbiter_the_primary_waits_until_there_is_room", |world| {
        world.mount_arbiter("size=64k");
        let mut pair = Pair::protected(world);
        let traffic = Traffic::start();
        let filler = world.fill_arbiter();
        pair.beta.kill();
        let status = pair.alpha.wait_for("waiting for the arbiter", |status| {
            (status.role, status.state) == (Role::Primary, State::Waiting) && !status.arbiter.reachable
        });
        assert!(status.detail.contains("output is held"), "{status:?}");
        assert!(status.detail.contains("No space left"), "{status:?}");
        pair.alpha.wait_for("telling that its output is held", |status| {
            status.lapses.iter().any(|lapse| lapse.kind == "no_permit")
        });
        pair.alpha.wait_for_log("the VM's output is held");
        assert_eq!(pair.alpha.ctl(&["status"]).code, 3);
        let metrics = pair.alpha.ctl(&["metrics"]).stdout;
        let told =
            metrics.lines().any(|line| line.starts_with("ftd_output_unpermitted{") && line.ends_with(" 1"));
        assert!(told, "{metrics}");
        fs::remove_file(filler).unwrap();
        pair.alpha.wait_until(Role::Primary, State::Solo);
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn with_a_full_disk_under_the_arbiter_the_backup_waits_until_there_is_room() {
    World::run("with_a_full_disk_under_the_arbiter_the_backup_waits_until_there_is_room", |world| {
        world.mount_arbiter("size=64k");
        let mut pair = Pair::protected(world);
        let traffic = Traffic::start();
        let filler = world.fill_arbiter();
        pair.alpha.kill();
        let status = pair.beta.wait_for("waiting for the arbiter", |status| {
            (status.role, status.state) == (Role::Backup, State::Waiting) && !status.arbiter.reachable
        });
        assert!(status.detail.contains("holds a sealed checkpoint"), "{status:?}");
        fs::remove_file(filler).unwrap();
        pair.beta.wait_until(Role::Primary, State::Solo);
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}
