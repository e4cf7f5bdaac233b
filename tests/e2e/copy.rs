//! What a pairing's full copy of memory costs: what the guest uses, and not what it has.

use crate::fixture::{Config, Daemon, Traffic, World};
use ftd::control::api::{Role, State};
use std::time::Instant;

const MEMORY_MIB: u64 = 1024;
/// What a small guest uses, with a margin.
const USED_MIB_MAX: u64 = 64;

#[test]
fn memory_that_a_guest_never_used_is_neither_read_nor_sent_nor_held_by_either_host() {
    World::run("memory_that_a_guest_never_used_is_neither_read_nor_sent_nor_held_by_either_host", |world| {
        let large = |config: Config| config.with("machine.memory_mib", MEMORY_MIB as i64);
        let mut alpha = Daemon::start(world, &large(Config::alpha(world)));
        alpha.wait_until(Role::Primary, State::Solo);
        let traffic = Traffic::start();
        let before = alpha.shared_mib();

        let began = Instant::now();
        let mut beta = Daemon::start(world, &large(Config::beta(world)));
        alpha.wait_until(Role::Primary, State::Protected);
        let took = began.elapsed();
        let (primary, backup) = (alpha.shared_mib(), beta.shared_mib());
        let sent = alpha.metric("ftd_sent_bytes_total") >> 20;
        eprintln!(
            "{MEMORY_MIB} MiB: protected in {took:?}, {sent} MiB sent; alpha {before} to {primary} MiB, beta {backup}"
        );
        // Each page that is in use is mapped twice: by the guest and by who copies.
        assert!(before <= USED_MIB_MAX, "the guest uses {before} MiB: this shows nothing");
        assert!(primary <= 2 * USED_MIB_MAX, "alpha holds {primary} MiB, {before} before the copy");
        assert!(backup <= 2 * USED_MIB_MAX, "beta holds {backup} MiB");
        assert!(sent <= USED_MIB_MAX, "{sent} MiB were sent");

        // What was not sent is there: zeros.
        alpha.kill();
        beta.wait_until(Role::Primary, State::Solo);
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}
