//! ftctl as a program: its output on each stream, and its exit codes.

use ft_checkpoint::wire::message::Mode;
use ft_vm::spec::{CpuModel, EngineKind};
use ftd::control::api::{ArbiterStatus, Failure, PeerStatus, Role, STATUS_SCHEMA, Start, State, Status};
use ftd::control::server::{ConsoleAttachment, Controlled, Server};
use ftd::disks::OnDifference;
use ftd::observe::{Percentiles, ServiceStatus};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::{broadcast, mpsc, watch};

struct Daemon {
    status: watch::Sender<Arc<Status>>,
    output: broadcast::Sender<Arc<[u8]>>,
}

impl Controlled for Daemon {
    fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.status.subscribe()
    }

    async fn switchover(&self, _: Duration) -> Result<String, Failure> {
        if self.status.borrow().state == State::Protected {
            Ok("beta has the VM".into())
        } else {
            Err(Failure::Refused("there is no backup to hand the VM to".into()))
        }
    }

    async fn start(&self, how: Start, _: Duration) -> Result<String, Failure> {
        Ok(format!("started: {how:?}"))
    }

    async fn stop(&self, _: Option<Duration>) -> Result<String, Failure> {
        Ok("stopping".into())
    }

    async fn verify_disks(&self, _: u64, _: OnDifference) -> Result<String, Failure> {
        Err(Failure::Refused("the VM has no writable disk".into()))
    }

    fn console(&self) -> Result<ConsoleAttachment, Failure> {
        // The guest echoes in capitals.
        let (input, mut typed) = mpsc::channel::<Vec<u8>>(4);
        let echo = self.output.clone();
        let output = self.output.subscribe();
        tokio::spawn(async move {
            while let Some(bytes) = typed.recv().await {
                let _ = echo.send(bytes.to_ascii_uppercase().into());
            }
        });
        Ok(ConsoleAttachment { recent: b"login: ".to_vec(), output, input })
    }

    fn metrics(&self) -> String {
        "ftd_epoch 7\n".into()
    }
}

struct Fixture {
    runtime: Runtime,
    directory: tempfile::TempDir,
    daemon: Arc<Daemon>,
}

impl Fixture {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let status = Status {
            schema: STATUS_SCHEMA,
            version: "0.0.0".into(),
            vm: "web".into(),
            node: "alpha".into(),
            role: Role::Primary,
            state: State::Solo,
            detail: "no backup has connected".into(),
            generation: 1,
            epoch: 0,
            acked_epoch: 0,
            checkpoints_per_s: 0.0,
            dirty_pages: 0,
            pause_us: Percentiles::default(),
            hold_us: Percentiles::default(),
            service: ServiceStatus::default(),
            bytes_sent: 0,
            compression_ratio: 0.0,
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
            network: None,
            view_age_ms: 0,
            peer: PeerStatus {
                node: "beta".into(),
                address: "10.0.0.2:7400".into(),
                connected: false,
                from: None,
                for_s: 0,
                trouble: None,
            },
            parts: ftd::observe::CheckpointParts::default(),
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
            uptime_s: 3,
        };
        let daemon =
            Arc::new(Daemon { status: watch::channel(Arc::new(status)).0, output: broadcast::channel(16).0 });
        Self { runtime, directory: tempfile::tempdir().unwrap(), daemon }
    }

    fn started() -> Self {
        let fixture = Self::new();
        fixture.start();
        fixture
    }

    fn start(&self) {
        let _context = self.runtime.enter();
        let server = Server::bind(&self.socket(), None).unwrap();
        self.runtime.spawn(server.serve(self.daemon.clone(), self.runtime.handle().clone()));
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("web.sock")
    }

    fn becomes(&self, state: State) {
        self.daemon.status.send_modify(|status| Arc::make_mut(status).state = state);
    }

    fn spawn(&self, arguments: &str) -> Child {
        Command::new(env!("CARGO_BIN_EXE_ftctl"))
            .arg("--socket")
            .arg(self.socket())
            .args(arguments.split(' '))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    #[track_caller]
    fn ends_with(&self, arguments: &str, code: i32) -> (String, String) {
        let Output { status, stdout, stderr } = self.spawn(arguments).wait_with_output().unwrap();
        let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        assert_eq!(status.code(), Some(code), "{arguments}: {stdout}{stderr}");
        (stdout, stderr)
    }
}

#[test]
fn status_tells_protected_from_degraded_by_its_exit_code() {
    let fixture = Fixture::started();
    let (stdout, stderr) = fixture.ends_with("status", 3);
    assert!(stdout.contains("state  solo\n               no backup has connected\n"), "{stdout}");
    assert_eq!(stderr, "");
    fixture.becomes(State::Protected);
    let (stdout, _) = fixture.ends_with("status --json", 0);
    let status: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (&status["state"], &status["role"], &status["schema"]),
        (&"protected".into(), &"primary".into(), &1.into())
    );
    assert_eq!(status["pause_us"]["p99"], 0);
    assert_eq!(status["peer"]["node"], "beta");
}

#[test]
fn an_unreachable_daemon_is_said_so() {
    let fixture = Fixture::new();
    let (stdout, stderr) = fixture.ends_with("status", 4);
    assert_eq!(stdout, "");
    assert!(stderr.contains("no daemon answers on") && stderr.contains("web.sock"), "{stderr}");
    fixture.ends_with("wait --for protected --timeout 50ms", 4);
}

#[test]
fn failover_wants_a_yes_and_passes_on_a_refusal() {
    let fixture = Fixture::started();
    let (_, stderr) = fixture.ends_with("failover", 2);
    assert!(stderr.contains("--yes"), "{stderr}");
    let (_, stderr) = fixture.ends_with("failover --yes", 5);
    assert_eq!(stderr, "ftctl: refused: there is no backup to hand the VM to\n");
    fixture.becomes(State::Protected);
    let (stdout, _) = fixture.ends_with("failover --yes --json", 0);
    assert_eq!(stdout, "{\"done\":\"beta has the VM\",\"schema\":1}\n");
}

#[test]
fn waiting_outlasts_the_daemons_start() {
    let fixture = Fixture::new();
    let waiting = fixture.spawn("wait --for protected --timeout 300s");
    fixture.start();
    fixture.becomes(State::Protected);
    assert_eq!(waiting.wait_with_output().unwrap().status.code(), Some(0));
    let (_, stderr) = fixture.ends_with("wait --for solo --timeout 10ms", 6);
    assert!(stderr.contains("timed out: it is primary protected"), "{stderr}");
}

#[test]
fn the_console_goes_both_ways_through_pipes() {
    let fixture = Fixture::started();
    let mut console = fixture.spawn("console");
    console.stdin.take().unwrap().write_all(b"whoami\x1d").unwrap();
    // The input has ended; the output goes on.
    let mut seen = Vec::new();
    let stdout = console.stdout.as_mut().unwrap();
    while !seen.ends_with(b"WHOAMI\x1d") {
        let mut byte = [0];
        stdout.read_exact(&mut byte).unwrap();
        seen.extend(byte);
    }
    assert_eq!(seen, b"login: WHOAMI\x1d");
    console.kill().unwrap();
    console.wait().unwrap();
}

#[test]
fn the_other_commands_do_what_they_say() {
    let fixture = Fixture::started();
    assert_eq!(fixture.ends_with("stop", 0).1, "ftctl: stopping\n");
    assert_eq!(fixture.ends_with("metrics", 0).0, "ftd_epoch 7\n");
    assert!(fixture.ends_with("completions bash", 0).0.contains("complete -F _ftctl"));
    assert!(fixture.ends_with("--help", 0).0.contains("6: not done within the time given"));
    fixture.ends_with("status --nonsense", 2);
    fixture.ends_with("wait --for nirvana", 2);
}
