//! Operators on other machines, by `ftctl --host`.

use crate::fixture::{
    Config, CtlOutput, Daemon, PATIENCE, Traffic, World, binary, connect_from, eventually, keygen, secured,
};
use ft_tls::{CredentialFiles, Credentials, Party, PartyKind};
use ftd::control::api::{Role, State};
use ftd::control::client::{Client, ClientError};
use ftd::control::host::DaemonPlace;
use ftd::control::remote::REMOTES_OF_SOURCE_MAX;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ALPHA: &str = "127.0.0.1:7381";
const BETA: &str = "127.0.0.1:7382";

/// The node `name`, which serves remote operators there.
fn serving(config: Config, keys: &Path, name: &str, at: &str) -> Config {
    secured(config, keys, name).with("control.listen", at)
}

/// `ftctl`, with these arguments alone.
fn ftctl(arguments: &[&str]) -> CtlOutput {
    let output = Command::new(binary("ftctl"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("it can be started");
    CtlOutput {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// `ftctl --host`, with the certificate in a directory.
fn remote(host: &str, keys: &Path, arguments: &[&str]) -> CtlOutput {
    let keys = keys.to_str().expect("it is UTF-8");
    ftctl(&[&["--host", host, "--keys", keys], arguments].concat())
}

#[track_caller]
fn ends(output: &CtlOutput, code: i32, says: &str) {
    let said = format!("{}{}", output.stdout, output.stderr);
    assert!(output.code == code && said.contains(says), "want {code}, {says}: {output:?}");
}

/// The certificate and key of a party of the site that has expired, in a directory of the site.
fn write_expired(keys: &Path, party: &Party) {
    let read = |file: &str| std::fs::read_to_string(keys.join(file)).unwrap();
    let authority =
        Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![party.dns_name()]).unwrap();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    let certificate = params.signed_by(&key, &authority).unwrap().pem();
    let identity = keys.join(party.name()).join("identity.pem");
    std::fs::write(identity, format!("{certificate}{}", key.serialize_pem())).unwrap();
}

#[test]
fn an_operator_moves_the_vm_from_afar_and_an_observer_only_looks() {
    World::run("an_operator_moves_the_vm_from_afar", |world| {
        let keys = keygen(world, "keys", &["alpha", "beta", "--operator", "ada", "--observer", "olga"]);
        let (ada, olga) = (keys.join("ada"), keys.join("olga"));
        let mut alpha = Daemon::start(world, &serving(Config::alpha(world), &keys, "alpha", ALPHA));
        let mut beta = Daemon::start(world, &serving(Config::beta(world), &keys, "beta", BETA));
        ends(&remote(ALPHA, &olga, &["wait", "--for", "protected", "--timeout", "300s"]), 0, "protected");
        beta.wait_until(Role::Backup, State::Protected);
        let traffic = Traffic::start();
        for party in [&ada, &olga] {
            ends(&remote(ALPHA, party, &["status"]), 0, "web on alpha");
            ends(&remote(ALPHA, party, &["status", "--json"]), 0, "\"state\":\"protected\"");
            ends(&remote(ALPHA, party, &["metrics"]), 0, "# TYPE");
            ends(&remote(BETA, party, &["--node-name", "beta", "--vm", "web", "status"]), 0, "backup");
        }
        let before = alpha.status().unwrap();
        for (arguments, name) in [
            (&["failover", "--yes"][..], "failover"),
            (&["stop"], "stop"),
            (&["stop", "--power-off"], "stop --power-off"),
            (&["start", "--fresh"], "start --fresh"),
            (&["release", "beta", "--yes"], "release"),
            (&["console"], "console"),
            (&["disk", "verify"], "disk verify"),
        ] {
            let says =
                format!("refused: observer olga may look and change nothing; '{name}' is for operators");
            ends(&remote(ALPHA, &olga, arguments), 5, &says);
        }
        let now = alpha.status().unwrap();
        assert_eq!((now.role, now.generation), (before.role, before.generation), "nothing was changed");
        ends(&remote(BETA, &ada, &["failover", "--yes"]), 5, "ask the primary");
        ends(&remote(ALPHA, &ada, &["failover", "--yes"]), 0, "beta runs the VM now");
        alpha.wait_for_log("operator ada at 127.0.0.1:");
        alpha.wait_for_log("asks for: failover");
        alpha.wait_for_log("asked for: failover: beta runs the VM now");
        assert!(!alpha.log().contains("observer olga at"), "who changes nothing is not told of");
        beta.wait_until(Role::Primary, State::Protected);
        traffic.goes_on();
        traffic.must_have_lost_nothing();
        ends(&remote(ALPHA, &ada, &["stop"]), 0, "the daemon ends");
        alpha.must_end(ftd::exit::DaemonExit::Ok);
        ends(&remote(ALPHA, &ada, &["status"]), 4, "no daemon answers at 127.0.0.1:7381");
    });
}

#[test]
fn who_is_no_operator_of_the_site_is_not_served_and_both_ends_say_why() {
    World::run("who_is_no_operator_of_the_site", |world| {
        let keys = keygen(world, "keys", &["alpha", "beta", "--operator", "ada", "--operator", "eve"]);
        let foreign = keygen(world, "foreign", &["alpha", "--operator", "ada"]);
        let ada = keys.join("ada");
        let config =
            serving(Config::alpha(world), &keys, "alpha", ALPHA).with("metrics.listen", "127.0.0.1:7391");
        let mut alpha = Daemon::start(world, &config);
        alpha.wait_until(Role::Primary, State::Solo);
        // Of another site.
        ends(
            &remote(ALPHA, &foreign.join("ada"), &["status"]),
            4,
            "of another certificate authority than this one's",
        );
        alpha.wait_for_log("no operator is served from 127.0.0.1:");
        // Whose certificate has expired: the daemon's word for it comes back.
        write_expired(&keys, &Party::new(PartyKind::Operator, "eve").unwrap());
        ends(&remote(ALPHA, &keys.join("eve"), &["status"]), 4, "this one's certificate has expired");
        alpha.wait_for_log("the other end's certificate has expired");
        // A node: ftctl does not take its certificate, and nor does the daemon.
        let says = "the certificate is of node beta, and must be of operator or observer";
        ends(&remote(ALPHA, &keys.join("beta"), &["status"]), 2, says);
        let beta =
            Credentials::load(CredentialFiles::within(&keys.join("beta")), &PartyKind::ALL, None).unwrap();
        let at = ALPHA.parse().unwrap();
        let place = DaemonPlace { at, node: None, vm: None, credentials: beta.into() };
        match Client::connect_to(&place).unwrap_err() {
            ClientError::Unproven { why, .. } => {
                assert!(why.contains("this one is not whom it takes"), "{why}")
            }
            other => panic!("{other}"),
        }
        alpha.wait_for_log("it is node beta, and neither an operator nor an observer");
        // In the clear, to the port in TLS; and the reverse; and another port of the daemon's.
        let mut plain = TcpStream::connect(ALPHA).unwrap();
        plain.set_read_timeout(Some(PATIENCE)).unwrap();
        plain.write_all(b"{\"version\":2,\"request\":{\"stop\":{\"power_off_ms\":0}}}\n").unwrap();
        let mut answer = Vec::new();
        let _ = plain.read_to_end(&mut answer);
        assert!(!answer.contains(&b'{'), "{}", answer.escape_ascii());
        alpha.wait_for_log("the other end does not speak TLS");
        ends(&remote("127.0.0.1:7391", &ada, &["status"]), 4, "before it proved who it is");
        let replication = format!("127.0.0.1:{}", Config::port(0));
        ends(&remote(&replication, &ada, &["status"]), 4, "another service of ftd");
        // Not whom the operator means.
        ends(&remote(ALPHA, &ada, &["--node-name", "beta", "status"]), 4, "is node alpha, and not node beta");
        ends(&remote(ALPHA, &ada, &["--vm", "db", "status"]), 2, "is of VM 'web', and not of 'db'");
        // What is lacking, or makes no sense.
        ends(&ftctl(&["--host", ALPHA, "status"]), 2, "--host needs --keys DIRECTORY (or FTCTL_KEYS)");
        ends(&ftctl(&["status", "--node-name", "alpha"]), 2, "the node at --host, which is not given");
        ends(&remote(ALPHA, &ada, &["status", "--socket", "/s"]), 2, "name two daemons");
        ends(&ftctl(&["--host", "a:b:c", "status"]), 2, "not a host's name or address");
        ends(&remote(ALPHA, &ada, &["arbiter", "list"]), 2, "the service's place is its --address");
        ends(&remote(ALPHA, &ada, &["completions", "bash"]), 2, "it speaks to no daemon");
        // All this has changed nothing, and kept nobody out.
        ends(&remote(ALPHA, &ada, &["status"]), 3, "solo");
        assert!(alpha.is_running());
    });
}

#[test]
fn clients_that_trickle_or_say_nothing_hold_up_no_operator() {
    World::run("clients_that_trickle_or_say_nothing", |world| {
        let keys = keygen(world, "keys", &["alpha", "beta", "--operator", "ada", "--observer", "olga"]);
        let ada = keys.join("ada");
        let mut alpha = Daemon::start(world, &serving(Config::alpha(world), &keys, "alpha", ALPHA));
        alpha.wait_until(Role::Primary, State::Solo);
        let traffic = Traffic::start();
        let (far, to): (Ipv4Addr, SocketAddrV4) = ([127, 0, 0, 2].into(), ALPHA.parse().unwrap());
        let begin = |_| {
            let mut stream = connect_from(far, to);
            stream.write_all(&[22]).unwrap();
            stream
        };
        // As many as one source may have, each within a handshake that never ends, a byte at a time.
        let mut trickling: Vec<_> = (0..REMOTES_OF_SOURCE_MAX).map(begin).collect();
        let mut beyond = connect_from(far, to);
        beyond.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(beyond.read(&mut [0; 1]).unwrap_or(0), 0, "there is no place more for it");
        alpha.wait_for_log("127.0.0.2 has 16 connections already");
        for byte in [3, 1, 1, 0, 1] {
            trickling.iter_mut().for_each(|stream| drop(stream.write_all(&[byte])));
            ends(&remote(ALPHA, &ada, &["status"]), 3, "solo");
            assert_eq!(alpha.ctl(&["status"]).code, 3, "and the control socket answers as well");
        }
        // Their time is over, whatever they send.
        alpha.wait_for_log("the TLS handshake was not over in time");
        // Those who have proven who they are, and then send a request byte by byte, or take no answer.
        let olga =
            Credentials::load(CredentialFiles::within(&keys.join("olga")), &PartyKind::ALL, None).unwrap();
        let olga = std::sync::Arc::new(olga);
        let admits = |_: &Party| Ok(());
        let secured = |_| {
            let until = Instant::now() + Duration::from_secs(60);
            let socket = eventually("a place", || TcpStream::connect(ALPHA).ok(), String::new);
            olga.dial_admitted(socket, ft_tls::SecuredService::Control, admits, until).unwrap()
        };
        let mut slow: Vec<_> = (0..REMOTES_OF_SOURCE_MAX / 2).map(secured).collect();
        let mut deaf = secured(0);
        deaf.write_all(b"{\"version\":2,\"request\":{\"watch\":{\"interval_ms\":50}}}\n").unwrap();
        for byte in b"{\"vers" {
            slow.iter_mut().for_each(|channel| channel.write_all(&[*byte]).unwrap());
            ends(&remote(ALPHA, &ada, &["status"]), 3, "solo");
        }
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}
