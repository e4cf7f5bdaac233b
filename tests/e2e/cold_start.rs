//! Both hosts are lost: the VM's memory is gone, and no daemon boots the VM anew without being told to.

use crate::fixture::{Config, Daemon, Pair, World, binary, call};
use ftd::control::api::{Role, State};
use ftd::exit::DaemonExit;
use std::process::Command;

#[test]
fn two_hosts_that_would_both_be_the_backup_say_so_and_what_to_do() {
    World::run("two_hosts_that_would_both_be_the_backup_say_so_and_what_to_do", |world| {
        let mut alpha = Daemon::start(world, &Config::alpha(world).with("start_as", "backup"));
        let mut beta = Daemon::start(world, &Config::beta(world));
        for daemon in [&mut alpha, &mut beta] {
            daemon.wait_for("telling what to do", |status| {
                let told = |text: &str| status.detail.contains(text);
                told("both have start_as = \"backup\"") && told("set start_as = \"primary\" on one of them")
            });
        }
        drop(alpha);
        let mut alpha = Daemon::start(world, &Config::alpha(world));
        alpha.wait_until(Role::Primary, State::Protected);
    });
}

#[test]
fn after_both_crashed_they_wait_and_only_fresh_boots() {
    World::run("after_both_crashed_they_wait_and_only_fresh_boots", |world| {
        let mut pair = Pair::protected(world);
        assert_eq!(call("SET survivor yes"), "OK");
        // The backup first: it would take over.
        pair.beta.kill();
        pair.alpha.kill();
        pair.alpha = Daemon::start(world, &pair.alpha_config);
        pair.beta = Daemon::start(world, &pair.beta_config);
        let status = pair.alpha.wait_for("bereft", |status| {
            (status.role, status.state) == (Role::Primary, State::Waiting) && status.generation > 0
        });
        assert!(status.detail.contains("--fresh"), "{status:?}");
        assert!(status.detail.contains("memory on this node was lost"), "{status:?}");
        pair.beta.wait_until(Role::Backup, State::Waiting);
        // It stays so.
        for daemon in [&pair.alpha, &pair.beta] {
            assert_eq!(daemon.ctl(&["wait", "--for", "solo", "--timeout", "1s"]).code, 6);
        }

        // The node that does not own the VM cannot be told to boot it.
        pair.beta.kill();
        pair.beta = Daemon::start_with(world, &pair.beta_config, &[], &["--fresh"]);
        pair.beta.must_fail(DaemonExit::Failure, &["refusing a fresh boot", "alpha owns the VM"]);

        pair.alpha.kill();
        pair.alpha = Daemon::start_with(world, &pair.alpha_config, &[], &["--fresh"]);
        pair.beta = Daemon::start(world, &pair.beta_config);
        pair.wait_protected();
        assert_eq!(call("GET survivor"), "NONE");

        // A leave for the next start does the same, once.
        pair.beta.kill();
        let allow = |config: &Config| {
            let file = world.path(format!("{}.toml", config.node));
            Command::new(binary("ftd"))
                .arg("allow-fresh")
                .arg("--config")
                .arg(file)
                .output()
                .expect("it starts")
        };
        let output = allow(&pair.alpha_config);
        assert_eq!(
            output.status.code(),
            Some(DaemonExit::InUse as i32),
            "a VM that runs is not given up: {output:?}"
        );
        pair.alpha.kill();
        let output = allow(&pair.beta_config);
        assert!(String::from_utf8_lossy(&output.stderr).contains("node alpha owns the VM"), "{output:?}");
        let output = allow(&pair.alpha_config);
        assert!(output.status.success(), "{output:?}");
        pair.alpha = Daemon::start(world, &pair.alpha_config);
        pair.alpha.wait_until(Role::Primary, State::Solo);
        assert_eq!(call("SET survivor no"), "OK");
        pair.alpha.kill();
        pair.alpha = Daemon::start(world, &pair.alpha_config);
        pair.alpha.wait_for("bereft again", |status| {
            (status.role, status.state) == (Role::Primary, State::Waiting) && status.generation > 0
        });
    });
}
