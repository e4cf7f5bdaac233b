//! An arbiter that stops answering under a protected pair.

use crate::fixture::{Pair, Traffic, World};
use ftd::control::api::{Role, State};
use std::fs;

/// The directory around the cell is moved away: nothing can be read or written there.
#[test]
fn an_arbiter_that_goes_away_under_a_protected_pair_is_told_on_both_nodes() {
    World::run("an_arbiter_that_goes_away_under_a_protected_pair_is_told_on_both_nodes", |world| {
        let mut pair = Pair::protected(world);
        let traffic = Traffic::start();
        let (shared, away) = (world.path("arbiter"), world.path("away"));
        fs::rename(&shared, &away).expect("nobody else has it");
        pair.alpha.wait_until(Role::Primary, State::Degraded);
        pair.beta.wait_until(Role::Backup, State::Degraded);
        for daemon in [&pair.alpha, &pair.beta] {
            let output = daemon.ctl(&["status"]);
            assert_eq!(output.code, 3, "{output:?}");
            assert!(
                output.stdout.contains("not proven") && output.stdout.contains("No such file"),
                "{output:?}"
            );
            let metrics = daemon.ctl(&["metrics"]).stdout;
            let degraded =
                metrics.lines().any(|line| line.starts_with("ftd_degraded{") && line.ends_with(" 1"));
            assert!(degraded, "{metrics}");
        }
        traffic.goes_on();
        fs::rename(&away, &shared).expect("it is there");
        pair.wait_protected();
        traffic.must_have_lost_nothing();
    });
}
