//! Both hosts are lost: the VM's memory is gone, and no daemon boots the VM anew without being told to.

use crate::fixture::{Config, Daemon, Pair, World, call};
use ftd::control::api::{Role, State};
use ftd::exit::DaemonExit;

#[test]
fn two_hosts_that_would_both_be_the_backup_say_so_and_what_to_do() {
    World::run("two_hosts_that_would_both_be_the_backup_say_so_and_what_to_do", |world| {
        let mut alpha = Daemon::start(world, &Config::alpha(world).with("start_as", "backup"));
        let mut beta = Daemon::start(world, &Config::beta(world));
        for daemon in [&mut alpha, &mut beta] {
            daemon.wait_for("telling what to do", |status| {
                let told = |text: &str| status.detail.contains(text);
                told("both have start_as = \"backup\"") && told("boot it on one of them with ftctl start")
            });
        }
        assert_eq!(alpha.ctl(&["start"]).code, 0);
        alpha.wait_until(Role::Primary, State::Protected);
    });
}

/// Both daemons die, the backup first, which would take over; alpha, which owns the VM, comes back.
fn lose_both(world: &World, pair: &mut Pair) {
    assert_eq!(call("SET survivor yes"), "OK");
    pair.beta.kill();
    pair.alpha.kill();
    pair.alpha = Daemon::start(world, &pair.alpha_config);
}

#[test]
fn after_both_crashed_they_wait_and_only_fresh_boots() {
    World::run("after_both_crashed_they_wait_and_only_fresh_boots", |world| {
        let mut pair = Pair::protected(world);
        lose_both(world, &mut pair);
        pair.beta = Daemon::start(world, &pair.beta_config);
        let status = pair.alpha.wait_for("bereft", |status| {
            (status.role, status.state) == (Role::Primary, State::Waiting) && status.generation > 0
        });
        assert!(status.detail.contains("ftctl start --fresh"), "{status:?}");
        assert!(status.detail.contains("memory on this node was lost"), "{status:?}");
        pair.beta.wait_until(Role::Backup, State::Waiting);
        // It stays so.
        for daemon in [&pair.alpha, &pair.beta] {
            assert_eq!(daemon.ctl(&["wait", "--for", "solo", "--timeout", "1s"]).code, 6);
        }
        // The node that does not own the VM cannot be told to boot it, nor can the owner without --fresh.
        for (daemon, arguments, says) in [
            (&pair.beta, &["start", "--fresh"][..], "node alpha owns the VM"),
            (&pair.alpha, &["start"][..], "was lost on this node"),
        ] {
            let refused = daemon.ctl(arguments);
            assert!(refused.code == 5 && refused.stderr.contains(says), "{refused:?}");
        }
        let started = pair.alpha.ctl(&["start", "--fresh"]);
        assert_eq!(started.code, 0, "{started:?}");
        pair.wait_protected();
        assert_eq!(call("GET survivor"), "NONE");
        // A VM that runs is not given up.
        let refused = pair.alpha.ctl(&["start", "--fresh"]);
        assert!(refused.code == 5 && refused.stderr.contains("this node runs the VM"), "{refused:?}");
    });
}

#[test]
fn after_both_crashed_an_owner_that_may_boots_by_itself() {
    World::run("after_both_crashed_an_owner_that_may_boots_by_itself", |world| {
        let mut pair = Pair::protected_with(world, |config| {
            config.with("recovery.on_lost_memory", "boot").with("recovery.boot_delay_s", 2)
        });
        lose_both(world, &mut pair);
        pair.alpha.wait_until(Role::Primary, State::Solo);
        assert_eq!(call("GET survivor"), "NONE");
        assert!(pair.alpha.log().contains("the VM boots anew in"), "it waited, and said so");
        pair.beta = Daemon::start(world, &pair.beta_config);
        pair.wait_protected();
    });
}

#[test]
fn a_vm_that_ended_at_the_other_host_boots_by_one_command() {
    World::run("a_vm_that_ended_at_the_other_host_boots_by_one_command", |world| {
        let mut pair = Pair::protected(world);
        assert_eq!(pair.alpha.ctl(&["failover", "--yes"]).code, 0);
        pair.wait_protected_the_other_way_round();
        let ended = pair.beta.ctl(&["stop", "--power-off", "--timeout", "0"]);
        assert_eq!(ended.code, 0, "{ended:?}");
        pair.beta.must_end(DaemonExit::Ok);
        // Nobody boots it unasked, though alpha has start_as = "primary"; and it says what boots it.
        pair.alpha.wait_for("that the VM has ended", |status| {
            status.detail.contains("the VM has ended") && status.detail.contains("ftctl start")
        });
        let started = pair.alpha.ctl(&["start"]);
        assert_eq!(started.code, 0, "{started:?}");
        pair.alpha.wait_until(Role::Primary, State::Solo);
        pair.beta = Daemon::start(world, &pair.beta_config);
        pair.wait_protected();
    });
}

#[test]
fn a_host_that_is_gone_for_good_is_released_by_one_command() {
    World::run("a_host_that_is_gone_for_good_is_released_by_one_command", |world| {
        let mut pair = Pair::protected(world);
        let refused = pair.beta.ctl(&["release", "alpha", "--yes"]);
        assert!(refused.code == 5 && refused.stderr.contains("node alpha was heard"), "{refused:?}");
        // The backup loses what it holds, and then the owner's host is gone.
        pair.beta.kill();
        pair.alpha.wait_until(Role::Primary, State::Solo);
        pair.alpha.kill();
        pair.beta = Daemon::start(world, &pair.beta_config);
        pair.beta.wait_until(Role::Backup, State::Waiting);
        let unsure = pair.beta.ctl(&["release", "alpha"]);
        assert!(unsure.code == 2 && unsure.stderr.contains("nothing was done"), "{unsure:?}");
        let other = pair.beta.ctl(&["release", "gamma", "--yes"]);
        assert!(other.code == 5 && other.stderr.contains("node alpha owns the VM"), "{other:?}");
        let released = pair.beta.ctl(&["release", "alpha", "--yes"]);
        assert!(released.code == 0 && released.stderr.contains("booted anew"), "{released:?}");
        pair.beta.wait_until(Role::Primary, State::Solo);
        // Should the host come back after all, it has nothing to say.
        pair.alpha = Daemon::start(world, &pair.alpha_config);
        pair.wait_protected_the_other_way_round();
    });
}
