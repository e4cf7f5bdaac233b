//! The daemon put together. It first checks everything that can be refused. Then the replica runs on its own threads,
//! beside the control socket, metrics, signals and the talk with systemd.

use crate::config::{Config, ConfigError, OnReset};
use crate::control::remote::RemoteServer;
use crate::control::server::{BindError, Controlled, Server};
use crate::control::{Asking, Desk, Tuning, Wish, clients_thread, http, reload_on_signals, stop_on_signals};
use crate::disks::Disks;
use crate::errand::Errand;
use crate::exit::DaemonExit;
use crate::host::{
    self, ArbiterAnswer, Contents, Crowded, DescribeError, HostError, ImageFile, InstanceLock, LockError,
    Log, Need, RecordError, RecordFile, Trust, Watchdog, identity, prepare_host,
};
use crate::keeper::{Replay, ReplayProgress};
use crate::nonce::random_nonce;
use crate::observe::{Publisher, Sources, Telemetry, Window};
use crate::outlet::Outlet;
use crate::peer::{PeerPlace, Port};
use crate::reload::{Handles, Reload};
use crate::replica::{self, Input, MakeArbiter, Parts, StartError, TellLackBeside};
use crate::role::{Exit, NodeRecord, OnDisk, Policy, Role, Times};
use ft_checkpoint::wire::message::Mode;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// Between two attempts at an arbiter that does not answer.
const ARBITER_RETRY: Duration = Duration::from_millis(200);
/// What an ending daemon gives its answers to be written.
const ANSWERS: Duration = Duration::from_secs(2);
/// Between two questions to an arbiter that answers, while nothing is to be asked of it.
const ARBITER_PROBE: Duration = Duration::from_secs(3);
/// How long an arbiter's answer counts for the proof that the VM is protected.
const PROOF_LIMIT: Duration = Duration::from_secs(10);
/// How long the next pairing waits after one that failed: at first, and after many.
const PAIRING_WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// How long a switchover waits for the peer, a backup that is to stop for the primary's going on without it, and
/// anybody for the answer of the arbiter.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The host lacks something.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Another daemon for this VM runs here.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// This node's record of the cell cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// No control socket.
    #[error(transparent)]
    Control(#[from] BindError),
    /// A thread.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The configuration file has gone in the meantime.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// This host cannot be described to the peer.
    #[error(transparent)]
    Identity(#[from] DescribeError),
    /// The runtime.
    #[error("cannot start the control plane: {0}")]
    Runtime(std::io::Error),
}

impl DaemonError {
    /// How the daemon ends because of it.
    pub fn exit(&self) -> DaemonExit {
        match self {
            Self::Host(e) => e.exit(),
            Self::Lock(LockError::Held { .. }) | Self::Control(BindError::InUse { .. }) => DaemonExit::InUse,
            Self::Lock(_) | Self::Record(_) | Self::Control(_) | Self::Identity(_) => DaemonExit::Host,
            Self::Config(_) => DaemonExit::Usage,
            Self::Start(_) | Self::Runtime(_) => DaemonExit::Failure,
        }
    }
}

/// What the operator should know, though it is no reason to refuse.
fn warn_of(config: &Config) {
    Crowded::say(config);
    for warning in config.security_warnings() {
        tracing::warn!("{warning}");
    }
}

/// Runs until the replica ends. `file` is where `config` comes from.
pub fn run(config: &Config, file: &Path, log: Log) -> Result<Exit, DaemonError> {
    let _lock = InstanceLock::acquire(&config.state_dir)?;
    config.confine()?;
    config.check_host()?;
    let trust = config.trust()?;
    trust.watch().map_err(HostError::Thread)?;
    ask_arbiter(config, &trust)?;
    let record_file = RecordFile::new(&config.state_dir, config.vm.as_str());
    let record = record_file.load()?;
    let image_file = ImageFile::new(&config.state_dir, config.vm.as_str(), config.node.as_str());
    let on_disk = image_file.look(record.map(|record| record.cell));
    let runtime = control_runtime().map_err(DaemonError::Runtime)?;
    let (mut host, console) = prepare_host(config, record)?;
    let telemetry = Arc::new(Telemetry::default());
    let peer = Arc::new(PeerPlace::new(config.peer.clone(), trust.link.clone()));
    let port = open_port(config, &peer, &telemetry)?;
    let control = {
        let _context = runtime.enter();
        Server::bind(&config.control_socket, config.control_group.as_deref())?
    };
    let remote = bind_remote(config, &trust, &telemetry, &runtime)?;
    let metrics = bind_metrics(config, &runtime)?;
    warn_of(config);
    let identity = identity(config, &host.spec)?;
    let contents = Contents::start(config).map_err(HostError::Thread)?;
    let disks = Arc::clone(&contents);
    let (inputs, received) = channel();
    let window = Arc::new(Window::default());
    let watchdog = Arc::new(Watchdog::from_environment());
    let arbiter_place = config.arbiter(&trust).place().to_string();
    let replay = replay(config);
    let progress = replay.on.then(|| Arc::clone(&replay.progress));
    let publisher = Arc::new(Publisher::new(
        config,
        Sources {
            arbiter_place: arbiter_place.clone(),
            trust: trust.clone(),
            window: Arc::clone(&window),
            telemetry: Arc::clone(&telemetry),
            peer: Arc::clone(&peer),
            output: host.output.clone(),
            log: Some(log.clone()),
            position: progress.map(|progress| Box::new(move || (progress.get(), progress.age())) as _),
            disks: host.disks.clone().map(|disks| Box::new(move || disks.status()) as _),
        },
    ));
    let wishes = Outlet::into_queue(&inputs, Input::Control);
    let desk = Arc::new(Desk {
        publisher: Arc::clone(&publisher),
        console,
        wishes: wishes.clone(),
        asking: Asking::default(),
        disks: host.disks.clone(),
        worker: runtime.handle().clone(),
    });
    serve(&runtime, &desk, control, remote, metrics)?;
    runtime.spawn(Arc::clone(&publisher).run());
    let reload = Reload::new(file, handles(&log, &peer, &wishes, host.disks.as_ref()))?;
    runtime.spawn(reload_on_signals(Arc::new(move || reload.reload())));
    runtime.spawn(stop_on_signals(wishes, log));
    runtime.spawn(host::watch(std::mem::take(&mut host.cables), Outlet::into_queue(&inputs, Input::Network)));

    let r = &config.replication;
    let Tuning { service, on_overload, .. } = Tuning::from(r);
    let need = Need { ram_bytes: host.spec.ram_bytes, lock: config.machine.lock_memory };
    let policy = policy(config, arbiter_place, record, on_disk);
    let config = config.clone();
    let parts = Parts {
        pipeline_depth: r.pipeline_depth,
        inflight_bytes: (r.inflight_mib as usize) << 20,
        service,
        on_overload,
        on_panic: config.machine.on_panic,
        on_watchdog: config.machine.on_watchdog,
        epoch: Duration::from_millis(r.epoch_ms),
        replay: replay.clone(),
        shadow_bytes: (r.shadow_mib as usize) << 20,
        backing: config.machine.backing(),
        peer,
        port,
        identity,
        disks: Box::new(move || disks.disks()),
        // Handshakes are confined, and this looks into files.
        contents: Errand::start("ftd-facts", move || contents.facts()).map_err(HostError::Thread)?.into_fn(),
        lacks: lack(need, &window),
        host,
        arbiter: make_arbiter(config, trust, &window),
        record_file,
        image_file,
        inputs: (inputs, received),
        window,
        telemetry,
        watchdog,
    };
    let exit = replica::run(policy, parts)?;
    publisher.stopping();
    await_answers(&desk);
    runtime.shutdown_timeout(Duration::from_millis(200));
    Ok(exit)
}

/// Makes ways to the cell; how each of several services answers shows in the window.
fn make_arbiter(config: Config, trust: Trust, window: &Window) -> MakeArbiter {
    let members = window.arbiter_members().clone();
    Box::new(move || config.arbiter_noting(&trust, &members))
}

/// An arbiter that does not answer yet is waited for.
fn ask_arbiter(config: &Config, trust: &Trust) -> Result<(), HostError> {
    if config.ask_arbiter()? == ArbiterAnswer::Late {
        tracing::warn!(
            "the arbiter at {} does not answer yet; waiting for it",
            config.arbiter(trust).place()
        );
    }
    Ok(())
}

fn control_runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("ftd-control")
        .enable_all()
        .build()
}

fn replay(config: &Config) -> Replay {
    Replay {
        on: config.replication.mode == Mode::Replay,
        batch: Duration::from_micros(config.replay.batch_us),
        lag_max: Duration::from_millis(config.replay.lag_ms_max),
        progress: Arc::new(ReplayProgress::default()),
    }
}

/// What a reload reaches.
fn handles(log: &Log, peer: &Arc<PeerPlace>, wishes: &Outlet<Wish>, disks: Option<&Arc<Disks>>) -> Handles {
    Handles { log: log.clone(), peer: Arc::clone(peer), wishes: wishes.clone(), disks: disks.cloned() }
}

/// Lets operators in by every way that there is.
fn serve(
    runtime: &Runtime,
    desk: &Arc<Desk>,
    control: Server,
    remote: Option<RemoteServer>,
    metrics: Option<TcpListener>,
) -> Result<(), HostError> {
    let clients = clients_thread().map_err(HostError::Thread)?;
    runtime.spawn(control.serve(Arc::clone(desk), clients.clone()));
    if let Some(remote) = remote {
        runtime.spawn(remote.serve(Arc::clone(desk), clients.clone()));
    }
    if let Some(listener) = metrics {
        let shown = Arc::clone(desk);
        runtime.spawn(http::serve(listener, Arc::new(move || shown.metrics()), clients));
    }
    Ok(())
}

/// Where remote operators are served, if at all.
fn bind_remote(
    config: &Config,
    trust: &Trust,
    telemetry: &Arc<Telemetry>,
    runtime: &Runtime,
) -> Result<Option<RemoteServer>, HostError> {
    // Without a certificate the configuration is refused.
    let (Some(address), Some(credentials)) = (config.control.listen, trust.credentials()) else {
        return Ok(None);
    };
    let listen = |source| HostError::Listen { key: "control.listen", address, source };
    let bind = RemoteServer::bind(address, Arc::clone(credentials), Arc::clone(telemetry));
    let server = runtime.block_on(bind).map_err(listen)?;
    tracing::info!("operators with a certificate are served at {}", server.address().map_err(listen)?);
    Ok(Some(server))
}

/// Where metrics are served, if at all.
fn bind_metrics(config: &Config, runtime: &Runtime) -> Result<Option<TcpListener>, HostError> {
    let Some(address) = config.metrics.listen else { return Ok(None) };
    let listen = |source| HostError::Listen { key: "metrics.listen", address, source };
    runtime.block_on(http::bind(address)).map(Some).map_err(listen)
}

/// Where the peer is waited for.
fn open_port(config: &Config, peer: &Arc<PeerPlace>, telemetry: &Arc<Telemetry>) -> Result<Port, HostError> {
    let listen = config.listen();
    let address = config.peer.address;
    let no_way = |source| HostError::NoWay { address, source };
    let address = listen.address(address).map_err(no_way)?;
    Port::bind(listen, Arc::clone(peer), Arc::clone(telemetry)).map_err(|source| HostError::Listen {
        key: "replication.listen",
        address,
        source,
    })
}

/// The answer of a stop is written before the daemon ends.
fn await_answers(desk: &Desk) {
    let until = Instant::now() + ANSWERS;
    while !desk.has_answered() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What this host lacks to be the backup. Where the VM runs it has its memory already.
fn lack(need: Need, window: &Arc<Window>) -> TellLackBeside {
    let window = Arc::clone(window);
    Box::new(move |kept| {
        let runs_here = window.view().is_some_and(|view| view.what.role == Role::Primary);
        if runs_here { None } else { need.shortage_beside(kept) }
    })
}

fn policy(config: &Config, place: String, record: Option<NodeRecord>, on_disk: OnDisk) -> Policy {
    let r = &config.replication;
    let us = |ms: u64| ms * 1000;
    let Times { failure_timeout_us, takeover_delay_us } = Tuning::from(r).times;
    Policy {
        node: config.node.to_string(),
        peer: config.peer.node.to_string(),
        start_as: config.start_as,
        record,
        on_disk,
        place,
        on_fenced: config.recovery.on_fenced,
        boot_lost_after_us: config.recovery.boot_lost_after_s().map(|s| s * 1_000_000),
        restart_on_reset: config.machine.on_reset == OnReset::Restart,
        on_uplink_loss: config.machine.on_uplink_loss(),
        lease_us: us(r.lease_ms),
        failure_timeout_us,
        takeover_delay_us,
        heartbeat_us: us(r.heartbeat_ms),
        arbiter_retry_us: ARBITER_RETRY.as_micros() as u64,
        probe_us: ARBITER_PROBE.as_micros() as u64,
        proof_us: PROOF_LIMIT.as_micros() as u64,
        patience_us: PATIENCE.as_micros() as u64,
        rehearsal_us: r.rehearsal_s * 1_000_000,
        pairing_wait_us_min: PAIRING_WAIT.0.as_micros() as u64,
        pairing_wait_us_max: PAIRING_WAIT.1.as_micros() as u64,
        nonce: random_nonce(),
    }
}

/// How the daemon's exit code tells how the replica ended.
pub fn exit_code(exit: &Exit) -> DaemonExit {
    match exit {
        Exit::Stopped(_) => DaemonExit::Ok,
        Exit::Fenced(_) => DaemonExit::Fenced,
        Exit::GuestCrashed(_) => DaemonExit::GuestCrashed,
        Exit::Misfit(_) => DaemonExit::Peer,
        Exit::Failed(_) => DaemonExit::Failure,
    }
}
