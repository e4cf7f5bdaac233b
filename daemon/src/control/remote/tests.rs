//! Remote operators, observers, and those who are neither, against a real handshake.

use super::super::api::{Failure, Goal, Request, Response};
use super::super::client::{Client, ClientError};
use super::super::host::DaemonPlace;
use super::super::server::tests::{Puppet, status};
use super::*;
use ft_tls::{CertificateSite, CredentialFiles, PartyKind, Validity};
use std::io::{Read, Write};
use std::path::Path;
use tempfile::TempDir;
use tokio::net::TcpSocket;
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(120);

struct Rig {
    runtime: Runtime,
    site: TempDir,
    address: SocketAddr,
    puppet: Arc<Puppet>,
    telemetry: Arc<Telemetry>,
}

impl Rig {
    fn start() -> Self {
        Self::start_with(HANDSHAKE)
    }

    /// Handshakes may take so long.
    fn start_with(handshake: Duration) -> Self {
        let site = make_site();
        // One worker, as the daemon has: whoever could hold it would hold everybody.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let puppet = Arc::new(Puppet::new());
        let own = credentials(site.path(), "alpha");
        let telemetry = Arc::new(Telemetry::default());
        let bind = RemoteServer::bind(([127, 0, 0, 1], 0).into(), own, Arc::clone(&telemetry));
        let mut server = runtime.block_on(bind).unwrap();
        server.handshake = handshake;
        let address = server.address().unwrap();
        runtime.spawn(server.serve(Arc::clone(&puppet), runtime.handle().clone()));
        Self { runtime, site, address, puppet, telemetry }
    }

    /// Waits until as many were refused for this reason.
    fn must_count(&self, reason: &str, count: u64) {
        let sample = format!("service=\"control\",reason=\"{reason}\"}} {count}\n");
        let begun = Instant::now();
        loop {
            let metrics = self.telemetry.metrics.render("web", "alpha");
            if metrics.contains(&sample) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "not {sample}: {metrics}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn place(&self, party: &str) -> DaemonPlace {
        let credentials = credentials(self.site.path(), party);
        DaemonPlace { at: self.address.to_string().parse().unwrap(), node: None, vm: None, credentials }
    }

    fn client(&self, party: &str) -> Result<Client, ClientError> {
        Client::connect_to(&self.place(party))
    }

    /// A connection from another address of loopback, which has said nothing yet.
    fn silent(&self, from: [u8; 4]) -> BlockingSocket {
        let stream = self.runtime.block_on(async {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind((from, 0).into()).unwrap();
            socket.connect(self.address).await.unwrap().into_std().unwrap()
        });
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

fn make_site() -> TempDir {
    let site = tempfile::tempdir().unwrap();
    let of = |kind, name| Party::new(kind, name).unwrap();
    let parties = [
        of(PartyKind::Node, "alpha"),
        of(PartyKind::Node, "beta"),
        of(PartyKind::Arbiter, "arbiter"),
        of(PartyKind::Operator, "ada"),
        of(PartyKind::Observer, "olga"),
    ];
    CertificateSite::create(site.path()).unwrap().issue(&parties, Validity::default()).unwrap();
    site
}

fn credentials(site: &Path, party: &str) -> Arc<Credentials> {
    let files = CredentialFiles::within(&site.join(party));
    Arc::new(Credentials::load(files, &PartyKind::ALL, None).unwrap())
}

fn unproven(outcome: Result<Client, ClientError>, says: &str) {
    match outcome {
        Err(ClientError::Unproven { why, .. }) => assert!(why.contains(says), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_operator_has_every_request_answered_as_at_the_control_socket() {
    let rig = Rig::start();
    let mut client = rig.client("ada").unwrap();
    assert_eq!(client.status().unwrap(), status());
    let done = client.request(Request::Switchover { timeout_ms: 5 }).unwrap();
    assert_eq!(done, Response::Done("beta has the VM".into()));
    assert_eq!(client.request(Request::Metrics).unwrap(), Response::Metrics("ftd_epoch 7\n".into()));
    let error = client.request(Request::Wait { goal: Goal::Protected, timeout_ms: 20 }).unwrap_err();
    assert_eq!(error.to_string(), "timed out: it is primary resyncing: copying");
    let done = client.request(Request::Stop { power_off_ms: None }).unwrap();
    assert_eq!(done, Response::Done("stopping".into()));
}

#[test]
fn the_console_carries_bytes_both_ways_also_more_than_a_socket_takes_at_once() {
    let rig = Rig::start();
    let (mut output, mut input) = rig.client("ada").unwrap().console().unwrap();
    let mut bytes = [0; 7];
    output.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"login: ");
    input.write_all(b"root\r\xff\0").unwrap();
    assert_eq!(rig.puppet.typed.lock().blocking_recv().unwrap(), b"root\r\xff\0");
    let long: Vec<u8> =
        (0..16 << 20_u32).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    rig.puppet.output.send(long.as_slice().into()).unwrap();
    let mut got = vec![0; long.len()];
    output.read_exact(&mut got).unwrap();
    assert!(got == long, "what came is not what was sent");
}

#[test]
fn an_observer_sees_and_is_refused_by_name_what_changes_something() {
    let rig = Rig::start();
    let mut client = rig.client("olga").unwrap();
    assert_eq!(client.status().unwrap(), status());
    client.request(Request::Metrics).unwrap();
    for (request, name) in [
        (Request::Switchover { timeout_ms: 5 }, "failover"),
        (Request::Stop { power_off_ms: Some(0) }, "stop --power-off"),
        (Request::Console, "console"),
    ] {
        let text = format!("refused: observer olga may look and change nothing; '{name}' is for operators");
        match client.request(request).unwrap_err() {
            ClientError::Failure(failure @ Failure::Refused(_)) => assert_eq!(failure.to_string(), text),
            other => panic!("{other}"),
        }
    }
    assert_eq!(client.status().unwrap(), status(), "the connection goes on");
}

#[test]
fn nodes_arbiters_and_strangers_are_not_served_and_told_why() {
    let rig = Rig::start();
    unproven(rig.client("beta"), "by its certificate, this one is not whom it takes there");
    rig.must_count("unadmitted", 1);
    // Its certificate is for those who are dialled.
    unproven(rig.client("arbiter"), "the other end refuses");
    rig.must_count("unproven", 1);
    let foreign = make_site();
    let stranger = DaemonPlace { credentials: credentials(foreign.path(), "ada"), ..rig.place("ada") };
    unproven(Client::connect_to(&stranger), "another certificate authority");
    rig.must_count("unproven", 2);
    let named = |node: &str| DaemonPlace { node: Some(node.into()), ..rig.place("ada") };
    unproven(Client::connect_to(&named("beta")), "the other end is node alpha, and not node beta");
    Client::connect_to(&named("alpha")).unwrap().status().unwrap();
    let of_vm = |vm: &str| DaemonPlace { vm: Some(vm.into()), ..rig.place("ada") };
    let error = Client::connect_to(&of_vm("db")).unwrap_err();
    assert!(
        matches!(&error, ClientError::OtherVm { vm, wanted, .. } if vm == "web" && wanted == "db"),
        "{error}"
    );
    Client::connect_to(&of_vm("web")).unwrap().status().unwrap();
}

#[test]
fn nothing_is_answered_in_the_clear() {
    let rig = Rig::start();
    let mut plain = rig.silent([127, 0, 0, 1]);
    plain.write_all(b"{\"version\":2,\"request\":\"status\"}\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.contains(&b'{'), "{}", answer.escape_ascii());
    rig.client("ada").unwrap().status().unwrap();
}

#[test]
fn who_says_nothing_or_trickles_has_his_sources_places_and_keeps_nobody_else_out() {
    // Longer than anybody waits for an answer.
    let rig = Rig::start_with(PATIENCE);
    let far = [127, 0, 0, 2];
    let mut silent: Vec<_> = (0..REMOTES_OF_SOURCE_MAX).map(|_| rig.silent(far)).collect();
    // Each has a place; a handshake that has begun, and never ends, has no more.
    silent.iter_mut().for_each(|stream| stream.write_all(&[22, 3, 1]).unwrap());
    rig.client("ada").unwrap().status().unwrap();
    let mut beyond = rig.silent(far);
    assert_eq!(beyond.read(&mut [0; 1]).unwrap_or(0), 0, "it is closed, and nothing is said");
    rig.must_count("full", 1);
    for stream in &mut silent {
        stream.set_nonblocking(true).unwrap();
        let waits = stream.read(&mut [0; 1]).unwrap_err().kind();
        assert_eq!(waits, io::ErrorKind::WouldBlock, "all of them had their places meanwhile");
    }
}

#[test]
fn a_handshake_that_is_not_over_in_time_gives_its_place_back() {
    let rig = Rig::start_with(Duration::from_millis(500));
    let here = [127, 0, 0, 1];
    let silent: Vec<_> = (0..REMOTES_OF_SOURCE_MAX).map(|_| rig.silent(here)).collect();
    let begun = Instant::now();
    // Nobody hangs up.
    while rig.client("ada").and_then(|mut client| client.status()).is_err() {
        assert!(begun.elapsed() < PATIENCE, "its source has no place again");
        std::thread::sleep(Duration::from_millis(10));
    }
    rig.must_count("silent", REMOTES_OF_SOURCE_MAX as u64);
    drop(silent);
}

#[test]
fn an_observer_who_sends_a_request_byte_by_byte_holds_nobody_up() {
    let rig = Rig::start();
    let mut trickling: Vec<_> =
        (0..REMOTES_OF_SOURCE_MAX / 2).map(|_| rig.place("olga").connect().unwrap()).collect();
    let mut client = rig.client("ada").unwrap();
    for byte in b"{\"version\":2,\"requ" {
        trickling.iter_mut().for_each(|channel| channel.write_all(&[*byte]).unwrap());
        client.status().unwrap();
    }
    rig.client("ada").unwrap().status().unwrap();
}
