//! What a pairing's full copy of memory costs: what the guest uses, and not what it has; and for a host that still has
//! the memory of an earlier pairing, what has changed of it.

use crate::fixture::{Config, Daemon, Pair, Traffic, World, write_memory};
use ftd::control::api::{Role, State};
use nix::sys::signal::Signal;
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

/// Memory of a VM whose host goes and comes back, and what of it the guest has filled with what does not compress.
const RETURN_MEMORY_MIB: u64 = 256;
const FILLED_MIB: u64 = 64;
/// What a return sends at most: page tables, the service, its client's data, hashes.
const RETURN_MIB_MAX: u64 = 8;

/// A protected pair whose guest has filled memory.
fn filled_pair(world: &World) -> Pair {
    let pair = Pair::protected_with(world, |config| {
        let config = config.with("machine.memory_mib", RETURN_MEMORY_MIB as i64);
        config.with("replication.failure_timeout_ms", 3000)
    });
    write_memory((FILLED_MIB << 20) / 4096);
    pair
}

/// What the primary and its backup have sent since they had sent so much; and what was not sent, as it was there.
fn must_be_little(name: &str, [primary, backup]: [&Daemon; 2], before: [u64; 2]) {
    let sent = [primary, backup].map(|daemon| daemon.metric("ftd_sent_bytes_total"));
    let [primary_sent, backup_sent] = [sent[0] - before[0], sent[1] - before[1]];
    let same = primary.metric("ftd_copy_same_bytes");
    eprintln!("{name}: {primary_sent} bytes sent, {backup_sent} answered, {same} of memory were there");
    // What a host that is stopped had been sent and had not applied is not there.
    assert!(same >= (FILLED_MIB - RETURN_MIB_MAX) << 20, "{same} bytes were found the same");
    assert!(primary_sent <= RETURN_MIB_MAX << 20, "{primary_sent} bytes were sent");
    assert!(backup_sent <= RETURN_MIB_MAX << 20, "{backup_sent} bytes were answered");
}

fn sent<const N: usize>(daemons: [&Daemon; N]) -> [u64; N] {
    daemons.map(|daemon| daemon.metric("ftd_sent_bytes_total"))
}

#[test]
fn a_backup_that_was_away_for_long_is_sent_what_has_changed_of_memory() {
    World::run("a_backup_that_was_away_for_long_is_sent_what_has_changed_of_memory", |world| {
        let mut pair = filled_pair(world);
        pair.wait_protected();
        let mut before = sent([&pair.alpha, &pair.beta]);
        pair.beta.signal(Signal::SIGSTOP);
        pair.alpha.wait_until(Role::Primary, State::Solo);
        // What the backup that stood still was sent, of the pages that the guest has just filled, is of no return.
        [before[0]] = sent([&pair.alpha]);
        let traffic = Traffic::start();
        pair.beta.signal(Signal::SIGCONT);
        pair.beta.wait_for_log("the VM's memory is still here");
        pair.wait_protected();
        must_be_little("after a long cut", [&pair.alpha, &pair.beta], before);
        pair.alpha.kill();
        pair.beta.wait_until(Role::Primary, State::Solo);
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn a_former_primary_is_sent_what_has_changed_of_memory() {
    World::run("a_former_primary_is_sent_what_has_changed_of_memory", |world| {
        let mut pair = filled_pair(world);
        pair.wait_protected();
        let traffic = Traffic::start();
        for [from, to] in [["alpha", "beta"], ["beta", "alpha"]] {
            let before = sent([&pair.alpha, &pair.beta]);
            let (former, before) = match from {
                "alpha" => (&pair.alpha, [before[1], before[0]]),
                _ => (&pair.beta, before),
            };
            let output = former.ctl(&["failover", "--yes"]);
            assert_eq!(output.code, 0, "{output:?}");
            let hosts = if from == "alpha" {
                pair.wait_protected_the_other_way_round();
                [&pair.beta, &pair.alpha]
            } else {
                pair.wait_protected();
                [&pair.alpha, &pair.beta]
            };
            must_be_little(&format!("after a switchover to {to}"), hosts, before);
            traffic.goes_on();
        }
        pair.alpha.kill();
        pair.beta.wait_until(Role::Primary, State::Solo);
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}
