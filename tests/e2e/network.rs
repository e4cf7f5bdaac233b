//! The VM's network on its hosts.

use crate::fixture::{Config, Daemon, World, call};
use ftd::control::api::{Role, State};

#[test]
fn a_vm_that_last_ran_elsewhere_is_reached_as_soon_as_it_boots() {
    World::run("a_vm_that_last_ran_elsewhere_is_reached_as_soon_as_it_boots", |world| {
        world.remember_vm_behind("vm-beta");
        let mut alpha = Daemon::start(world, &Config::alpha(world));
        alpha.wait_until(Role::Primary, State::Solo);
        assert_eq!(call("PING"), "PONG");
    });
}
