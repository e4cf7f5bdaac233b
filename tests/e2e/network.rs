//! The VM's network on its hosts.

use crate::fixture::{Config, Daemon, Pair, Traffic, World, call, eventually};
use ftd::control::api::{Role, State, Status};

#[test]
fn a_vm_that_last_ran_elsewhere_is_reached_as_soon_as_it_boots() {
    World::run("a_vm_that_last_ran_elsewhere_is_reached_as_soon_as_it_boots", |world| {
        world.remember_vm_elsewhere();
        let mut alpha = Daemon::start(world, &Config::alpha(world));
        alpha.wait_until(Role::Primary, State::Solo);
        assert_eq!(call("PING"), "PONG");
    });
}

#[test]
fn a_tap_that_is_taken_off_its_bridge_or_deleted_is_told_and_attached_to_again_when_it_is_back() {
    World::run(
        "a_tap_that_is_taken_off_its_bridge_or_deleted_is_told_and_attached_to_again_when_it_is_back",
        |world| {
            let mut pair = Pair::protected(world);
            let traffic = Traffic::start();
            let says = |daemon: &Daemon, code: i32, what: &str| {
                let told = || Some(daemon.ctl(&["status"])).filter(|output| output.code == code);
                let told = eventually(what, told, || daemon.log());
                assert!(told.stdout.contains(what), "{told:?}");
            };
            // On the backup nobody else would notice.
            world.ip("link set dev vm-beta nomaster");
            says(&pair.beta, 3, "vm-beta is on no bridge");
            world.ip("link set dev vm-beta master lan");
            says(&pair.beta, 0, "vm-beta, well");

            world.ip("link delete dev vm-alpha");
            says(&pair.alpha, 3, "there is no TAP vm-alpha");
            world.ip("tuntap add dev vm-alpha mode tap");
            world.ip("link set dev vm-alpha master lan up");
            says(&pair.alpha, 0, "vm-alpha, well");
            traffic.goes_on();
            // Once each, however long it lasted.
            assert_eq!(pair.alpha.log().matches("there is no TAP").count(), 1, "{}", pair.alpha.log());
            pair.wait_protected();
            traffic.must_have_lost_nothing();
        },
    );
}

#[test]
fn a_vm_whose_host_loses_its_network_moves_to_the_other_where_the_operator_wishes_so() {
    World::run(
        "a_vm_whose_host_loses_its_network_moves_to_the_other_where_the_operator_wishes_so",
        |world| {
            let mut pair =
                Pair::protected_with(world, |config| config.with("machine.net.on_uplink_loss", "switchover"));
            let traffic = Traffic::start();
            // Not where it would be no better.
            world.ip("link set dev vm-beta nomaster");
            let beta_is_cut = |status: &Status| {
                let network = status.network.as_ref().expect("the VM has a card");
                network
                    .peer_trouble
                    .as_ref()
                    .is_some_and(|trouble| trouble.contains("vm-beta is on no bridge"))
            };
            pair.alpha.wait_for("told by beta", beta_is_cut);
            assert_eq!(pair.alpha.ctl(&["status"]).code, 3, "the backup could not be reached");
            world.ip("link set dev vm-alpha nomaster");
            pair.alpha.wait_for_log("the TAP vm-alpha is on no bridge");
            pair.alpha.wait_until(Role::Primary, State::Protected);
            world.ip("link set dev vm-beta master lan");
            pair.wait_protected_the_other_way_round();
            traffic.goes_on();
            traffic.must_have_lost_nothing();
        },
    );
}
