//! A pair whose link is in TLS, and others that do not come about.

use crate::fixture::{Config, Daemon, Traffic, World, binary, eventually, keygen, secured};
use ftd::control::api::{Role, State, Status};
use std::process::Command;

/// Waits until the backup says why it is not connected.
fn is_kept_out(backup: &mut Daemon, why: &str) {
    let says = |status: &Status| status.peer.trouble.as_ref().is_some_and(|trouble| trouble.contains(why));
    let status = backup.wait_for(why, says);
    assert_eq!((status.state, status.peer.connected), (State::Waiting, false), "{status:?}");
}

#[test]
fn a_pair_in_tls_survives_the_loss_of_a_host_and_takes_a_renewed_certificate_without_a_break() {
    World::run("a_pair_in_tls", |world| {
        let keys = keygen(world, "keys", &["alpha", "beta", "--days", "20"]);
        let alpha_config = secured(Config::alpha(world), &keys, "alpha");
        let beta_config = secured(Config::beta(world), &keys, "beta");
        let mut alpha = Daemon::start(world, &alpha_config);
        let mut beta = Daemon::start(world, &beta_config);
        let status = alpha.wait_until(Role::Primary, State::Protected);
        assert!(status.security.link_in_tls, "{status:?}");
        assert!(status.security.warnings[0].contains("expires in 19 d"), "{status:?}");
        let shown = alpha.ctl(&["status"]).stdout;
        assert!(shown.contains("the link is in TLS, certificate valid until 20"), "{shown}");
        assert!(shown.contains("WARNING: this host's certificate expires in 19 d"), "{shown}");
        let expiry = status.security.certificate_expires_unix_s.unwrap();
        let metric =
            format!("ftd_certificate_expiry_timestamp_seconds{{vm=\"web\",node=\"alpha\"}} {expiry}\n");
        eventually(
            "the metric",
            || alpha.ctl(&["metrics"]).stdout.contains(&metric).then_some(()),
            || alpha.ctl(&["metrics"]).stdout,
        );
        let traffic = Traffic::start();
        keygen(world, "keys", &["renew"]);
        let renewed = alpha.wait_for("renewed", |status| status.security.warnings.is_empty());
        assert_eq!(renewed.state, State::Protected);
        alpha.kill();
        beta.wait_until(Role::Primary, State::Solo);
        let _alpha = Daemon::start(world, &alpha_config);
        beta.wait_until(Role::Primary, State::Protected);
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn nobody_but_the_peer_gets_the_vm_and_both_say_why() {
    World::run("nobody_but_the_peer", |world| {
        let keys = keygen(world, "keys", &["alpha", "beta", "gamma"]);
        let foreign = keygen(world, "foreign", &["alpha", "beta"]);
        let alpha = Daemon::start(world, &secured(Config::alpha(world), &keys, "alpha"));
        // Of another site.
        let mut beta = Daemon::start(world, &secured(Config::beta(world), &foreign, "beta"));
        is_kept_out(&mut beta, "another certificate authority");
        alpha.wait_for_log("this one's certificate is of another certificate authority");
        beta.kill();
        // In the clear.
        let mut beta = Daemon::start(world, &Config::beta(world));
        alpha.wait_for_log("the other end does not speak TLS");
        beta.wait_for("not connected", |status| status.peer.trouble.is_some());
        beta.kill();
        // Another node of the site, by the peer's name in its configuration: it would not even start so.
        let gamma = secured(Config::beta(world), &keys, "gamma");
        let file = world.file("gamma.toml", gamma.text());
        let refused = Command::new(binary("ftd")).args(["run", "--config"]).arg(file).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("the certificate is of node gamma, and must be of node beta"), "{said}");
        // By its own name, it is another node.
        let gamma = gamma.with("node", "gamma");
        let mut gamma_daemon = Daemon::start(world, &gamma);
        is_kept_out(&mut gamma_daemon, "this one is not whom it takes there");
        alpha.wait_for_log("it is node gamma, and not the peer, node beta");
        gamma_daemon.kill();
        let mut alpha = alpha;
        assert_eq!(alpha.status().unwrap().state, State::Solo);
        let mut beta = Daemon::start(world, &secured(Config::beta(world), &keys, "beta"));
        alpha.wait_until(Role::Primary, State::Protected);
        beta.kill();
    });
}

#[test]
fn a_node_without_a_certificate_says_that_the_primary_has_one() {
    World::run("a_primary_without_a_certificate", |world| {
        let keys = keygen(world, "keys", &["alpha", "beta"]);
        let alpha = Daemon::start(world, &Config::alpha(world));
        let mut beta = Daemon::start(world, &secured(Config::beta(world), &keys, "beta"));
        is_kept_out(&mut beta, "does not speak TLS");
        alpha.wait_for_log("it speaks TLS, and this node does not: give this node its certificate");
    });
}
