//! An arbiter that stops answering under a protected pair.

use crate::fixture::{Pair, Traffic, World};
use ftd::control::api::{Role, State};
use std::fs;
use std::time::{Duration, Instant};

/// An answer of the arbiter counts for ten seconds.
const TOLD_WITHIN: Duration = Duration::from_secs(15);

/// The directory around the cell is moved away: nothing can be read or written there.
#[test]
fn an_arbiter_that_goes_away_under_a_protected_pair_is_told_on_both_nodes() {
    World::run("an_arbiter_that_goes_away_under_a_protected_pair_is_told_on_both_nodes", |world| {
        let mut pair = Pair::protected(world);
        let traffic = Traffic::start();
        let (shared, away) = (world.path("arbiter"), world.path("away"));
        let struck = Instant::now();
        fs::rename(&shared, &away).expect("nobody else has it");
        let on_alpha = pair.alpha.wait_until(Role::Primary, State::Degraded);
        let on_beta = pair.beta.wait_until(Role::Backup, State::Degraded);
        let told = struck.elapsed();
        assert!(told <= TOLD_WITHIN, "told on both after {told:?} only");
        for (daemon, status) in [(&pair.alpha, on_alpha), (&pair.beta, on_beta)] {
            let since = status.lapses.iter().find(|lapse| lapse.kind == "arbiter_silent").map(|l| l.since_s);
            assert!(since.is_some_and(|s| s <= TOLD_WITHIN.as_secs()), "{:?}", status.lapses);
            daemon.wait_for_log("not proven: the arbiter of ");
            let output = daemon.ctl(&["status"]);
            assert_eq!(output.code, 3, "{output:?}");
            assert!(
                output.stdout.contains("not proven") && output.stdout.contains("No such file"),
                "{output:?}"
            );
            let metrics = daemon.ctl(&["metrics"]).stdout;
            for (gauge, value) in [("ftd_degraded{", " 1"), ("ftd_protected{", " 0")] {
                let said = metrics.lines().any(|line| line.starts_with(gauge) && line.ends_with(value));
                assert!(said, "{gauge}: {metrics}");
            }
        }
        traffic.goes_on();
        fs::rename(&away, &shared).expect("it is there");
        pair.wait_protected();
        traffic.must_have_lost_nothing();
    });
}
