//! The control socket against good, bad, slow and silent clients.

use super::super::api::{ArbiterStatus, Goal, NetworkStatus, PeerStatus, Role, STATUS_SCHEMA, State};
use super::super::client::{self, ClientError};
use super::super::http;
use super::*;
use crate::observe::{Percentiles, ServiceStatus};
use ft_checkpoint::wire::message::Mode;
use ft_vm::spec::{CpuModel, EngineKind};
use parking_lot::Mutex;
use proptest::prelude::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream as BlockingStream;
use tokio::runtime::{Handle, Runtime};

/// A daemon that does what the test tells it.
pub(in super::super) struct Puppet {
    status: watch::Sender<Arc<Status>>,
    pub(in super::super) output: broadcast::Sender<Arc<[u8]>>,
    input: mpsc::Sender<Vec<u8>>,
    pub(in super::super) typed: Mutex<mpsc::Receiver<Vec<u8>>>,
}

impl Puppet {
    pub(in super::super) fn new() -> Self {
        let (input, typed) = mpsc::channel(4);
        let (status, _) = watch::channel(Arc::new(status()));
        Self { status, output: broadcast::channel(16).0, input, typed: Mutex::new(typed) }
    }

    fn becomes(&self, role: Role, state: State) {
        self.status.send_replace(Arc::new(Status { role, state, ..status() }));
    }
}

impl Controlled for Puppet {
    fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.status.subscribe()
    }

    async fn switchover(&self, timeout: Duration) -> Result<String, Failure> {
        match timeout.as_millis() {
            0 => Err(Failure::Refused("this node is the backup".into())),
            _ => Ok("beta has the VM".into()),
        }
    }

    async fn start(&self, how: Start, _timeout: Duration) -> Result<String, Failure> {
        Ok(format!("started: {how:?}"))
    }

    async fn stop(&self, _: Option<Duration>) -> Result<String, Failure> {
        Ok("stopping".into())
    }

    async fn verify_disks(&self, _: u64, _: OnDifference) -> Result<String, Failure> {
        Err(Failure::Refused("the VM has no writable disk".into()))
    }

    fn console(&self) -> Result<ConsoleAttachment, Failure> {
        let (output, input) = (self.output.subscribe(), self.input.clone());
        Ok(ConsoleAttachment { recent: b"login: ".to_vec(), output, input })
    }

    fn metrics(&self) -> String {
        "ftd_epoch 7\n".into()
    }
}

pub(in super::super) fn status() -> Status {
    Status {
        schema: STATUS_SCHEMA,
        version: "0.0.0".into(),
        vm: "web".into(),
        node: "alpha".into(),
        role: Role::Primary,
        state: State::Resyncing,
        detail: "copying".into(),
        generation: 3,
        epoch: 1200,
        acked_epoch: 1199,
        checkpoints_per_s: 187.5,
        dirty_pages: 150,
        pause_us: Percentiles { p50: 400, p99: 900 },
        hold_us: Percentiles { p50: 6000, p99: 9000 },
        service: ServiceStatus {
            hold_ms_max: 100,
            hold_kept: true,
            guest_speed_min_pct: 10,
            speed_kept: true,
            guest_speed_pct: 100.0,
            slowed_by: None,
            carried_mbit_per_s: None,
        },
        bytes_sent: 1 << 30,
        compression_ratio: 9.5,
        mode: Mode::Checkpoint,
        engine: EngineKind::Kvm,
        cpu: CpuModel::Host,
        unknown_instructions: 0,
        guest_panics: 0,
        watchdog_firings: 0,
        booted: None,
        replay: None,
        copy: None,
        disks: None,
        peer: PeerStatus {
            node: "beta".into(),
            address: "10.0.0.2:7400".into(),
            connected: true,
            from: Some("10.0.0.2:40000".parse().unwrap()),
            for_s: 50,
            trouble: None,
        },
        network: Some(NetworkStatus {
            tap: "ftd-web".into(),
            trouble: None,
            for_s: 60,
            peer_trouble: None,
            peer_for_s: 60,
        }),
        view_age_ms: 1,
        parts: crate::observe::CheckpointParts::default(),
        take_over: None,
        rehearsal: None,
        security: Default::default(),
        arbiter: ArbiterStatus {
            place: "file /shared/web.cell".into(),
            reachable: true,
            hanging_calls: 0,
            age_s: Some(0),
            peer_age_s: None,
            members: Vec::new(),
        },
        lapses: Vec::new(),
        uptime_s: 60,
    }
}

struct Daemon {
    _runtime: Runtime,
    directory: tempfile::TempDir,
    puppet: Arc<Puppet>,
}

impl Daemon {
    fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let puppet = Arc::new(Puppet::new());
        let _context = runtime.enter();
        let server = Server::bind(&directory.path().join("web.sock"), None).unwrap();
        runtime.spawn(server.serve(puppet.clone(), runtime.handle().clone()));
        drop(_context);
        Self { _runtime: runtime, directory, puppet }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("web.sock")
    }

    fn client(&self) -> client::Client {
        client::Client::connect(&self.path()).unwrap()
    }

    fn raw(&self) -> BlockingStream {
        let stream = BlockingStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        stream
    }

    /// Sends bytes and reads until the daemon closes.
    fn answer_to(&self, bytes: &[u8]) -> String {
        let mut stream = self.raw();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }
}

#[test]
fn every_request_has_its_response_on_one_connection() {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    assert_eq!(client.status().unwrap(), status());
    let response = client.request(Request::Switchover { timeout_ms: 5 }).unwrap();
    assert_eq!(response, Response::Done("beta has the VM".into()));
    let error = client.request(Request::Switchover { timeout_ms: 0 }).unwrap_err();
    assert!(matches!(error, ClientError::Failure(Failure::Refused(_))));
    assert_eq!(client.request(Request::Metrics).unwrap(), Response::Metrics("ftd_epoch 7\n".into()));
    assert_eq!(
        client.request(Request::Stop { power_off_ms: None }).unwrap(),
        Response::Done("stopping".into())
    );
}

#[test]
fn waiting_ends_with_the_goal_or_with_the_time() {
    let daemon = Daemon::start();
    let error = daemon.client().request(Request::Wait { goal: Goal::Protected, timeout_ms: 20 }).unwrap_err();
    assert_eq!(error.to_string(), "timed out: it is primary resyncing: copying");
    std::thread::scope(|scope| {
        let waiting = scope
            .spawn(|| daemon.client().request(Request::Wait { goal: Goal::Protected, timeout_ms: 120_000 }));
        daemon.puppet.becomes(Role::Primary, State::Protected);
        assert!(
            matches!(waiting.join().unwrap(), Ok(Response::Status(status)) if status.state == State::Protected)
        );
    });
    let response = daemon.client().request(Request::Wait { goal: Goal::Primary, timeout_ms: 0 }).unwrap();
    assert!(matches!(response, Response::Status(_)), "a goal that is reached needs no time");
}

#[test]
fn watching_shows_every_change_of_state() {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    let mut shown = client.request(Request::Watch { interval_ms: 600_000 }).unwrap();
    for state in [State::Protected, State::Solo, State::Protected] {
        assert!(!matches!(shown, Response::Status(status) if status.state == state));
        daemon.puppet.becomes(Role::Primary, state);
        shown = client.response().unwrap();
        assert!(matches!(&shown, Response::Status(status) if status.state == state));
    }
}

#[test]
fn the_console_carries_bytes_both_ways() {
    let daemon = Daemon::start();
    let (mut output, mut input) = daemon.client().console().unwrap();
    let mut bytes = [0; 7];
    output.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"login: ");
    input.write_all(b"root\r\xff\0").unwrap();
    assert_eq!(daemon.puppet.typed.lock().blocking_recv().unwrap(), b"root\r\xff\0");
    daemon.puppet.output.send(Arc::from(&b"# \x00\xfe"[..])).unwrap();
    output.read_exact(&mut bytes[..4]).unwrap();
    assert_eq!(&bytes[..4], b"# \x00\xfe");
}

#[test]
fn bad_requests_are_answered_and_closed() {
    let daemon = Daemon::start();
    let cases: [(&[u8], &str); 7] = [
        (b"hello\n", "expected"),
        (b"{\"version\":3,\"request\":\"status\"}\n", "protocol version 3; this daemon speaks 2"),
        (b"{\"version\":2,\"request\":\"reboot\"}\n", "unknown variant `reboot`"),
        (b"{\"version\":2,\"request\":\"status\",\"x\":1}\n", "unknown field `x`"),
        (b"{\"version\":2,\"request\":{\"failover\":{\"timeout_ms\":-1}}}\n", "-1"),
        (b"\xff\xfe\n", "bad_request"),
        (&[b'a'; REQUEST_BYTES_MAX + 1], "longer than 65536 bytes"),
    ];
    for (bytes, reason) in cases {
        let answer = daemon.answer_to(bytes);
        assert!(answer.contains("bad_request") && answer.contains(reason), "{answer}");
    }
    assert_eq!(daemon.answer_to(b""), "");
    daemon.client().status().unwrap();
}

#[test]
fn silent_clients_do_not_hinder_others_and_their_number_is_bounded() {
    let daemon = Daemon::start();
    let mut silent: Vec<_> = (0..CLIENTS_MAX - 1).map(|_| daemon.raw()).collect();
    silent.iter_mut().for_each(|stream| stream.write_all(b"{\"version\":2,").unwrap());
    daemon.client().status().unwrap();
    let _last: Vec<_> = (0..CLIENTS_MAX).map(|_| daemon.raw()).collect();
    let error = daemon.client().status().unwrap_err();
    assert!(matches!(error, ClientError::Failure(Failure::Busy(_))), "{error}");
}

#[test]
fn a_console_that_is_not_read_does_not_hold_the_guest_up() {
    let daemon = Daemon::start();
    let (_output, _input) = daemon.client().console().unwrap();
    for _ in 0..10_000 {
        daemon.puppet.output.send(Arc::from(&[b'x'; 1000][..])).unwrap();
    }
    daemon.client().status().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_dropped_in_time() {
    let (ours, theirs) = tokio::io::duplex(64);
    let (reader, writer) = tokio::io::split(theirs);
    let served = Session::new(reader, writer, Caller::local()).serve(&Puppet::new()).await;
    assert!(served.is_ok());
    drop(ours);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_is_dropped_in_time() {
    let (mut ours, theirs) = tokio::io::duplex(64);
    ours.write_all(b"{\"version\":2,\"request\":\"status\"}\n").await.unwrap();
    let (reader, writer) = tokio::io::split(theirs);
    let error = Session::new(reader, writer, Caller::local()).serve(&Puppet::new()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn the_socket_is_for_owner_and_named_group_and_goes_with_the_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/web.sock");
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    let group = nix::unistd::Group::from_gid(nix::unistd::getegid()).unwrap().unwrap();
    let server = Server::bind(&path, Some(&group.name)).unwrap();
    assert_eq!(mode(), 0o660);
    drop(server);
    let server = Server::bind(&path, None).unwrap();
    assert_eq!(mode(), 0o600);
    assert!(matches!(Server::bind(&path, None), Err(BindError::InUse { .. })));
    drop(server);
    assert!(!path.exists());
    assert!(matches!(Server::bind(&path, Some("no-such-group")), Err(BindError::NoGroup { .. })));
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_another_file_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(Server::bind(&path, None).unwrap());
    fs::write(&path, "precious").unwrap();
    assert!(matches!(Server::bind(&path, None), Err(BindError::NotASocket { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[tokio::test]
async fn metrics_are_served_over_http_and_nothing_else_is() {
    let listener = http::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(http::serve(listener, Arc::new(|| Puppet::new().metrics()), Handle::current()));
    for (request, first_line, last) in [
        ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK", "ftd_epoch 7\n"),
        ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found", "/metrics\n"),
        ("\x01\x02\r\n\r\n", "HTTP/1.1 405 Method Not Allowed", "understood\n"),
    ] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(first_line) && answer.ends_with(last), "{answer}");
    }
    server.abort();
}

#[test]
fn the_only_socket_is_found_and_several_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let only = || client::only_socket(directory.path());
    assert!(matches!(only(), Err(ClientError::NoSocket { .. })));
    let listen = |name: &str| std::os::unix::net::UnixListener::bind(directory.path().join(name)).unwrap();
    // Its daemon was killed.
    drop(listen("old.sock"));
    assert!(matches!(only(), Err(ClientError::NoSocket { .. })));
    let _web = listen("web.sock");
    fs::write(directory.path().join("lock"), "").unwrap();
    assert_eq!(only().unwrap(), directory.path().join("web.sock"));
    let _db = listen("db.sock");
    assert_eq!(only().unwrap_err().to_string(), "more than one VM runs here; choose one with --vm: db, web");
}

proptest! {
    #[test]
    fn no_bytes_make_parsing_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn no_json_makes_parsing_panic(request in ".{0,60}", version in any::<i64>()) {
        let _ = parse(format!("{{\"version\":{version},\"request\":{request}}}").as_bytes());
    }
}
