//! A pair whose arbiter is a real etcd of three members.

#[path = "../../daemon/arbiter/tests/common/cluster.rs"]
mod cluster;

use crate::fixture::{Daemon, Pair, Traffic, World};
use cluster::Cluster;
use ftd::control::api::{Role, State};
use toml::{Table, Value};

fn kill(etcd: &mut Cluster, member: usize) {
    etcd.process(member).kill().unwrap();
    etcd.process(member).wait().unwrap();
}

#[test]
fn with_one_of_three_members_away_a_host_is_lost_and_with_two_the_pair_says_so_until_they_are_back() {
    let name =
        "with_one_of_three_members_away_a_host_is_lost_and_with_two_the_pair_says_so_until_they_are_back";
    World::run(name, move |world| {
        let Some(mut etcd) = Cluster::start(name, 3, None) else { return };
        let endpoints = etcd.settings("/").endpoints.into_iter().map(Value::from).collect::<Vec<_>>();
        let arbiter = Table::from_iter([
            ("kind".to_owned(), Value::from("etcd")),
            ("endpoints".to_owned(), Value::from(endpoints)),
        ]);
        let mut pair = Pair::protected_with(world, |config| config.with("arbiter", arbiter.clone()));
        let traffic = Traffic::start();
        kill(&mut etcd, 0);
        pair.alpha.kill();
        pair.beta.wait_until(Role::Primary, State::Solo);
        traffic.goes_on();
        pair.alpha = Daemon::start(world, &pair.alpha_config);
        pair.wait_protected_the_other_way_round();

        kill(&mut etcd, 1);
        pair.alpha.wait_until(Role::Backup, State::Degraded);
        let status = pair.beta.wait_until(Role::Primary, State::Degraded);
        let said = status.lapses.iter().any(|lapse| lapse.kind == "arbiter_silent");
        assert!(said && status.arbiter.place.contains("key /ftd/web/cell"), "{status:?}");
        traffic.goes_on();
        (0..2).for_each(|member| etcd.start_member(member));
        pair.wait_protected_the_other_way_round();
        traffic.must_have_lost_nothing();
    });
}
