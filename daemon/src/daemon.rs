//! The daemon put together: everything that can be refused is checked first, then the replica runs on its own threads, and
//! control, metrics, signals and systemd are served beside it.

use crate::arbiter::Arbiter;
use crate::config::{self, Config, HostError, OnReset};
use crate::control::api::{
    ArbiterStatus, CopyProgress, Failure, PeerStatus, ReplayStatus, Role, STATUS_SCHEMA, State, Status,
};
use crate::control::http;
use crate::control::server::{BindError, ConsoleAttachment, Controlled, Server};
use crate::exit::DaemonExit;
use crate::fresh::{self, FreshError};
use crate::metrics::{Percentiles, Rate};
use crate::replica::{ConsoleHub, Input, Parts, Progress, Replay, Replica, StartError, Window, prepare_host};
use crate::role::{self, Event, Exit, Policy, ViewRole, ViewState};
use crate::service::{InstanceLock, LockError, Notifier, Watchdog};
use crate::telemetry::Telemetry;
use ft_checkpoint::wire::handshake::PROTOCOL;
use ft_checkpoint::wire::message::{Identity, Mode};
use ft_netbuf::OutputBuffer;
use ft_vm::machine::{MachineError, engine_fingerprint, host_cpu_profile};
use ft_vm::spec::EngineKind;
use parking_lot::Mutex;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

/// Between two attempts at an arbiter that does not answer.
const ARBITER_RETRY: Duration = Duration::from_millis(200);
/// How long a hand-over, or the end of a VM, waits for the peer or the arbiter.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the status is published when nothing changes.
const STATUS_INTERVAL: Duration = Duration::from_millis(100);

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The host lacks something.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Another daemon for this VM runs here.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The leave for a fresh boot cannot be taken.
    #[error(transparent)]
    Fresh(#[from] FreshError),
    /// No control socket.
    #[error(transparent)]
    Control(#[from] BindError),
    /// No machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A thread.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The specification cannot be written down.
    #[error("cannot describe the machine to the peer: {0}")]
    Describe(String),
    /// The runtime.
    #[error("cannot start the control plane: {0}")]
    Runtime(std::io::Error),
}

impl DaemonError {
    /// How the daemon ends because of it.
    pub fn exit(&self) -> DaemonExit {
        match self {
            Self::Host(e) => e.exit(),
            Self::Fresh(e) => e.exit(),
            Self::Lock(LockError::Held { .. }) | Self::Control(BindError::InUse { .. }) => DaemonExit::InUse,
            Self::Lock(_) | Self::Control(_) | Self::Machine(_) => DaemonExit::Host,
            Self::Start(_) | Self::Describe(_) | Self::Runtime(_) => DaemonExit::Failure,
        }
    }
}

/// Runs until the replica ends.
pub fn run(config: &Config, fresh: bool) -> Result<Exit, DaemonError> {
    let _lock = InstanceLock::acquire(&config.state_dir)?;
    config.check_host()?;
    let fresh = fresh::take(config)? || fresh;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("ftd-control")
        .enable_all()
        .build()
        .map_err(DaemonError::Runtime)?;
    let (host, console) = prepare_host(config)?;
    let listen = config.replication.listen;
    let listener = TcpListener::bind(listen).map_err(|source| HostError::Listen {
        key: "replication.listen",
        address: listen,
        source,
    })?;
    let control = {
        let _context = runtime.enter();
        Server::bind(&config.control_socket, config.control_group.as_deref())?
    };
    let metrics = match config.metrics.listen {
        Some(address) => Some(runtime.block_on(http::bind(address)).map_err(|source| HostError::Listen {
            key: "metrics.listen",
            address,
            source,
        })?),
        None => None,
    };

    let describe = |e: &dyn std::fmt::Display| DaemonError::Describe(e.to_string());
    let identity = Identity {
        protocol: PROTOCOL,
        vm: config.vm.to_string(),
        node: config.node.to_string(),
        generation: 0,
        spec: postcard::to_stdvec(&host.spec).map_err(|e| describe(&e))?,
        boot: config.boot().terms(),
        mode: match config.replication.mode {
            config::Mode::Checkpoint => Mode::Checkpoint,
            config::Mode::Replay => Mode::Replay,
        },
        engine: engine_fingerprint(host.spec.engine),
        cpu: match host.spec.engine {
            EngineKind::Kvm => serde_json::to_vec(&host_cpu_profile()?).map_err(|e| describe(&e))?,
            // The guest sees nothing of the host's.
            EngineKind::Soft => Vec::new(),
        },
        features: 0,
        lease_us: config.replication.lease_ms * 1000,
    };
    let (inputs, received) = channel();
    let window = Arc::new(Window::default());
    let telemetry = Arc::new(Telemetry::default());
    let watchdog = Arc::new(Watchdog::from_environment());
    let arbiter = config.arbiter();
    let replay = Replay {
        on: config.replication.mode == config::Mode::Replay,
        batch: Duration::from_micros(config.replay.batch_us),
        lag_max: Duration::from_millis(config.replay.lag_ms_max),
        progress: Arc::new(Progress::default()),
    };
    let live = Arc::new(Live {
        config: config.clone(),
        arbiter_place: arbiter.describe(),
        window: Arc::clone(&window),
        telemetry: Arc::clone(&telemetry),
        output: host.output.clone(),
        replay: replay.clone(),
        log_rate: Mutex::default(),
        console,
        inputs: inputs.clone(),
        started: Instant::now(),
        published: watch::Sender::new(Arc::new(initial_status(config))),
        notifier: Notifier::default(),
    });
    runtime.spawn(control.serve(Arc::clone(&live)));
    if let Some(listener) = metrics {
        runtime.spawn(http::serve(listener, Arc::clone(&live)));
    }
    runtime.spawn(publish(Arc::clone(&live)));
    runtime.spawn(stop_on_signals(inputs.clone()));

    let r = &config.replication;
    let parts = Parts {
        policy: policy(config, fresh),
        pipeline_depth: r.pipeline_depth,
        inflight_bytes: (r.inflight_mib as usize) << 20,
        epoch: Duration::from_millis(r.epoch_ms),
        replay: replay.clone(),
        shadow_bytes: (r.shadow_mib as usize) << 20,
        peer_address: config.peer.address.to_string(),
        listener,
        identity,
        host,
        arbiter: Box::new(arbiter),
        inputs: (inputs, received),
        window,
        telemetry,
        watchdog,
    };
    let exit = Replica::run(parts)?;
    live.notifier.stopping();
    // Whoever watches shall see how it ended.
    live.publish();
    runtime.shutdown_timeout(Duration::from_millis(200));
    Ok(exit)
}

fn policy(config: &Config, fresh: bool) -> Policy {
    let r = &config.replication;
    let us = |ms: u64| ms * 1000;
    Policy {
        node: config.node.to_string(),
        peer: config.peer.node.to_string(),
        start_as: match config.start_as {
            config::StartAs::Primary => role::StartAs::Primary,
            config::StartAs::Backup => role::StartAs::Backup,
        },
        fresh,
        restart_on_reset: config.machine.on_reset == OnReset::Restart,
        lease_us: us(r.lease_ms),
        failure_timeout_us: us(r.failure_timeout_ms),
        takeover_delay_us: us(r.takeover_delay_ms),
        heartbeat_us: us(r.heartbeat_ms),
        arbiter_retry_us: ARBITER_RETRY.as_micros() as u64,
        patience_us: PATIENCE.as_micros() as u64,
        nonce: random_nonce(),
    }
}

/// Names of pairings must not repeat across restarts.
pub(crate) fn random_nonce() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // Seeded by the system's randomness in every process; the time and the pid only add to it.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u128(std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos());
    hasher.write_u32(std::process::id());
    hasher.finish()
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

/// SIGTERM and SIGINT ask for an orderly stop; a second one does not wait for it.
async fn stop_on_signals(inputs: Sender<Input>) {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("signals cannot be handled: SIGTERM ends this daemon at once");
        return;
    };
    let mut asked = false;
    loop {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        if std::mem::replace(&mut asked, true) {
            tracing::warn!("asked to stop twice: ending at once");
            std::process::exit(i32::from(DaemonExit::Failure as u8));
        }
        tracing::info!("asked to stop");
        let _ = inputs.send(Input::Event(Event::StopRequested));
    }
}

/// Publishes the status as it changes, and to systemd.
async fn publish(live: Arc<Live>) {
    let mut ticks = tokio::time::interval(STATUS_INTERVAL);
    loop {
        ticks.tick().await;
        live.publish();
    }
}

/// The running daemon as its operator sees it.
struct Live {
    config: Config,
    arbiter_place: String,
    window: Arc<Window>,
    telemetry: Arc<Telemetry>,
    output: OutputBuffer,
    replay: Replay,
    log_rate: Mutex<Rate>,
    console: ConsoleHub,
    inputs: Sender<Input>,
    started: Instant,
    published: watch::Sender<Arc<Status>>,
    notifier: Notifier,
}

fn initial_status(config: &Config) -> Status {
    Status {
        schema: STATUS_SCHEMA,
        version: env!("CARGO_PKG_VERSION").into(),
        vm: config.vm.to_string(),
        node: config.node.to_string(),
        role: Role::Backup,
        state: State::Waiting,
        detail: "starting".into(),
        generation: 0,
        epoch: 0,
        acked_epoch: 0,
        checkpoints_per_s: 0.0,
        dirty_pages: 0,
        pause_us: Percentiles::default(),
        hold_us: Percentiles::default(),
        bytes_sent: 0,
        compression_ratio: 0.0,
        parts: crate::telemetry::Parts::default(),
        mode: match config.replication.mode {
            config::Mode::Checkpoint => Mode::Checkpoint.to_string(),
            config::Mode::Replay => Mode::Replay.to_string(),
        },
        engine: config.machine.engine.to_string(),
        unknown_instructions: 0,
        replay: None,
        copy: None,
        take_over: None,
        peer: PeerStatus {
            node: config.peer.node.to_string(),
            address: config.peer.address.to_string(),
            connected: false,
            trouble: None,
        },
        arbiter: ArbiterStatus { place: String::new(), reachable: true },
        uptime_s: 0,
    }
}

impl Live {
    fn publish(&self) {
        let Some(view) = self.window.view() else { return };
        let now = Instant::now();
        let metrics = &self.telemetry.metrics;
        let held = self.output.stats();
        let peer = self.window.peer();
        let copy_total = metrics.copy_total_bytes.get();
        metrics.generation.set(view.generation);
        metrics.is_primary.set((view.role == ViewRole::Primary).into());
        metrics.is_protected.set((view.state == ViewState::Protected).into());
        metrics.is_peer_connected.set(peer.connected.into());
        metrics.held_frames.set(held.held_frames as u64);
        metrics.held_bytes.set(held.held_bytes as u64);
        metrics.frames_released.set_total(held.released);
        metrics.hold_full.set_total(held.full_events);
        metrics.bytes_sent.set_total(self.telemetry.bytes_sent());
        metrics.hold_us.lock().absorb(&held.hold_us, now);

        // Each lock is let go before the next: `parts` takes one of them again.
        let checkpoints_per_s = metrics.commit_us.lock().rate(now);
        let pause_us = metrics.pause_us.lock().percentiles(now);
        let hold_us = metrics.hold_us.lock().percentiles(now);
        let status = Status {
            role: match view.role {
                ViewRole::Primary => Role::Primary,
                ViewRole::Backup => Role::Backup,
            },
            state: match view.state {
                ViewState::Protected => State::Protected,
                ViewState::Solo => State::Solo,
                ViewState::Resyncing => State::Resyncing,
                ViewState::Waiting => State::Waiting,
                ViewState::Fenced => State::Fenced,
            },
            detail: view.detail,
            generation: view.generation,
            epoch: metrics.epoch.get(),
            acked_epoch: metrics.acked_epoch.get(),
            checkpoints_per_s,
            dirty_pages: metrics.dirty_pages.get(),
            pause_us,
            hold_us,
            bytes_sent: metrics.bytes_sent.get(),
            compression_ratio: self.telemetry.compression_ratio(),
            parts: self.telemetry.parts(),
            unknown_instructions: metrics.unknown_instructions.get(),
            replay: self.replay.on.then(|| self.replay_status(view.role, now)),
            copy: (copy_total > 0)
                .then(|| CopyProgress { done_bytes: metrics.copy_done_bytes.get(), total_bytes: copy_total }),
            take_over: self.telemetry.take_over(),
            peer: PeerStatus {
                node: self.config.peer.node.to_string(),
                address: self.config.peer.address.to_string(),
                connected: peer.connected,
                trouble: peer.trouble,
            },
            arbiter: ArbiterStatus {
                place: self.arbiter_place.clone(),
                reachable: self.window.is_arbiter_reachable(),
            },
            uptime_s: self.started.elapsed().as_secs(),
            ..initial_status(&self.config)
        };
        self.tell_systemd(&status);
        self.published.send_replace(Arc::new(status));
    }

    fn replay_status(&self, role: ViewRole, now: Instant) -> ReplayStatus {
        let metrics = &self.telemetry.metrics;
        let position = self.replay.progress.get();
        metrics.lag_us.set(position.lag_us);
        if role == ViewRole::Backup {
            metrics.replay_count.set(position.count);
        }
        ReplayStatus {
            count: metrics.replay_count.get(),
            log_bytes_per_s: self.log_rate.lock().of(metrics.log_bytes.get(), now),
            lag_us: position.lag_us,
            throttle_pct: metrics.throttle_permille.get() as f64 / 10.0,
            divergences: metrics.divergences.get(),
            last_divergence: self.telemetry.divergence(),
        }
    }

    /// Up as soon as the node does what it is there for: it runs the VM, or it stands ready to be the backup.
    fn tell_systemd(&self, status: &Status) {
        let serves = matches!(status.state, State::Protected | State::Solo | State::Resyncing);
        let follows = status.role == Role::Backup && status.generation > 0;
        if serves || follows {
            self.notifier.ready_once();
        }
        let line =
            format!("{}, {}, generation {}: {}", status.role, status.state, status.generation, status.detail);
        self.notifier.status(&line);
    }
}

impl Controlled for Live {
    fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.published.subscribe()
    }

    async fn failover(&self, timeout: Duration) -> Result<String, Failure> {
        let (done, outcome) = oneshot::channel();
        let reply = Box::new(move |result| {
            // Who asked may have gone; the switchover goes on all the same.
            let _ = done.send(result);
        });
        let gone = || Failure::Failed("the daemon is ending".into());
        self.inputs.send(Input::Switchover(reply)).map_err(|_| gone())?;
        match tokio::time::timeout(timeout, outcome).await {
            Ok(Ok(Ok(()))) => {
                Ok(format!("{} runs the VM now; this node is its backup", self.config.peer.node))
            }
            Ok(Ok(Err(why))) => Err(Failure::Refused(why)),
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(Failure::TimedOut("the switchover has not ended yet; see status".into())),
        }
    }

    fn stop(&self) -> Result<String, Failure> {
        let status = self.published.borrow().clone();
        let what = match (status.role, status.state) {
            (Role::Primary, State::Protected) => {
                format!("stopping: the VM moves to {} first", status.peer.node)
            }
            (Role::Primary, _) => "stopping: the VM is shut down".into(),
            (Role::Backup, State::Protected) => "stopping: the VM goes on without a backup".into(),
            (Role::Backup, _) => "stopping".into(),
        };
        let gone = |_| Failure::Failed("the daemon is ending".into());
        self.inputs.send(Input::Event(Event::StopRequested)).map_err(gone)?;
        Ok(what)
    }

    fn console(&self) -> Result<ConsoleAttachment, Failure> {
        let (recent, output) = self.console.attach();
        let (input, mut typed) = mpsc::channel::<Vec<u8>>(16);
        let console = self.console.clone();
        tokio::spawn(async move {
            while let Some(bytes) = typed.recv().await {
                console.input(&bytes);
            }
        });
        Ok(ConsoleAttachment { recent, output, input })
    }

    fn metrics(&self) -> String {
        self.telemetry.metrics.render(self.config.vm.as_str(), self.config.node.as_str())
    }
}
