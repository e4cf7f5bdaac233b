//! Both hosts are lost: what the VM had in memory is gone, and nobody boots it anew without being told to.

use crate::fixture::{Daemon, Pair, World, call};
use ftd::control::api::{Role, State};
use ftd::exit::DaemonExit;

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
    });
}
