//! `ftd arbiter`: serves the cells of many VMs.

mod rejoin;

use clap::Args;
use ft_arbiter::majority::MemberSet;
use ft_arbiter::service::{
    ARBITER_NAME, ARBITER_PORT, CellBackup, CellServer, CellStore, CellStoreError, ServerLimits,
};
use ft_tls::Protection;
use ftd::clock::utc;
use ftd::config::{LogConfig, MetricsConfig, Name, ServedConfig};
use ftd::control::http;
use ftd::exit::DaemonExit;
use ftd::host::Log;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use sd_notify::NotifyState;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// How often the threads are looked at.
const LOOK_MS: u16 = 1000;

/// What is served.
#[derive(Args)]
pub struct ArbiterArgs {
    /// The configuration, as in ftd-arbiter.example.toml
    #[arg(long, value_name = "FILE", required_unless_present = "store", conflicts_with = "store")]
    config: Option<PathBuf>,
    /// The file with the cells
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
    /// Where to listen: an address of loopback, 127.0.0.1:7390 unless given; others need a configuration
    #[arg(long, value_name = "ADDRESS", requires = "store")]
    listen: Option<SocketAddr>,
    /// One of the services that keep the cells together, this one too; several times. Without any it keeps them alone
    #[arg(long, value_name = "ADDRESS", requires = "store")]
    member: Vec<SocketAddr>,
    /// Make the store, which must not exist yet, without any cell; serves nothing
    ///
    /// Not of a member of several that has lost its store: it has promised and accepted what an empty store does not
    /// know, so that a VM could come to run twice. That is what --rejoin is for.
    #[arg(long)]
    create: bool,
    /// Make the store, which must not exist yet, of what the other members have; serves nothing
    ///
    /// For a member of several that has lost its store, or whose store is older than what it has told. A majority must
    /// answer without it. It waits for a minute first, after which nothing is under way any more that rests on the lost
    /// store.
    #[arg(long, conflicts_with_all = ["create", "restore", "forget"])]
    rejoin: bool,
    /// With --rejoin, an operator's directory as ftd keygen makes it, for members with certificates
    #[arg(long, value_name = "DIRECTORY", requires = "rejoin")]
    keys: Option<PathBuf>,
    /// With --rejoin, the names in the other members' certificates: one for all, or one for each in their order
    #[arg(long, value_name = "NAME", requires = "rejoin", default_values_t = [ARBITER_NAME.to_owned()])]
    arbiter_name: Vec<String>,
    /// Make the store, which must not exist yet, of what ftctl arbiter backup has kept; serves nothing
    ///
    /// It says who had the VMs when the backup was taken. A node that knows a later state of its VM's cell refuses it,
    /// until ftd init --forget says, on each node, that the one that has the VM is known.
    #[arg(long, value_name = "BACKUP", conflicts_with = "create")]
    restore: Option<PathBuf>,
    /// Remove the cell of a VM from the store; serves nothing
    ///
    /// For a cell whose record is damaged, and a VM that is gone for good. First find out which node has the VM, and
    /// stop both nodes; then ftd init --forget on each.
    #[arg(long, value_name = "VM", conflicts_with_all = ["create", "restore"])]
    forget: Option<Name>,
}

/// Carries it out.
pub fn run(args: &ArbiterArgs) -> DaemonExit {
    let config = match settle(args) {
        Ok(config) => config,
        Err(e) => {
            eprintln!("ftd: {e}");
            return DaemonExit::Usage;
        }
    };
    let done = match (&args.forget, &args.restore) {
        _ if args.create => create(&config),
        _ if args.rejoin => return rejoin::run(&config, args.keys.as_deref(), &args.arbiter_name),
        (None, Some(_)) if config.set().is_some() => {
            eprintln!(
                "ftd: a member of several does not go back to what it had: --rejoin makes its store of what the others \
                 have. Where a majority is lost, make all stores anew by --create; docs/arbiter.md"
            );
            return DaemonExit::Usage;
        }
        (Some(vm), _) => forget(&config.store, vm),
        (None, Some(backup)) => match read_backup(backup) {
            Ok(backup) => restore(&config.store, &backup),
            Err(why) => {
                eprintln!("ftd: {}: {why}", backup.display());
                return DaemonExit::Usage;
            }
        },
        (None, None) => return serve(&config),
    };
    match done {
        Ok(done) => {
            println!("{}: {done}", config.store.display());
            DaemonExit::Ok
        }
        Err(e) => {
            eprintln!("ftd: {e}");
            exit_of(&e)
        }
    }
}

fn settle(args: &ArbiterArgs) -> Result<ServedConfig, ftd::config::ConfigError> {
    match (&args.config, &args.store) {
        (Some(file), _) => ServedConfig::load(file),
        (None, store) => {
            let listen = args.listen.unwrap_or((Ipv4Addr::LOCALHOST, ARBITER_PORT).into());
            let store = store.clone().unwrap_or_default();
            let store = std::path::absolute(&store).unwrap_or(store);
            let config = ServedConfig {
                listen,
                store,
                members: (!args.member.is_empty()).then(|| args.member.clone()),
                security: None,
                tls: None,
                log: LogConfig::default(),
                metrics: MetricsConfig::default(),
            };
            config.validate(Path::new("ftd arbiter"))?;
            Ok(config)
        }
    }
}

fn create(config: &ServedConfig) -> Result<String, CellStoreError> {
    match config.set() {
        None => {
            CellStore::create(&config.store)?;
            Ok("a store without any cell".to_owned())
        }
        Some(set) => {
            CellStore::create_member(&config.store, &set, &BTreeMap::new())?;
            Ok(format!("a store without any cell, of a member of {set}"))
        }
    }
}

fn read_backup(file: &Path) -> Result<CellBackup, String> {
    let bytes = std::fs::read(file).map_err(|e| e.to_string())?;
    CellBackup::decode(&bytes).map_err(|e| e.to_string())
}

fn restore(store: &Path, backup: &CellBackup) -> Result<String, CellStoreError> {
    CellStore::create_with(store, &backup.cells)?;
    Ok(format!("a store with the {} cells of {}", backup.cells.len(), utc(backup.taken_unix_ms)))
}

fn forget(store: &Path, vm: &Name) -> Result<String, CellStoreError> {
    Ok(match CellStore::open(store)?.forget(vm.as_str())? {
        true => format!("the cell of '{vm}' is removed"),
        false => format!("there was no cell of '{vm}'"),
    })
}

fn serve(config: &ServedConfig) -> DaemonExit {
    // Before there is any other thread, so that all of them leave the signals to this one.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    let signals = signals.thread_block().and_then(|()| SignalFd::new(&signals));
    let (Ok(signals), Ok((_log, _log_drain))) = (signals, Log::start(config.log.format, config.log.level))
    else {
        eprintln!("ftd: cannot take signals or start to log");
        return DaemonExit::Failure;
    };
    tracing::info!("ftd {}, arbiter", env!("CARGO_PKG_VERSION"));
    if let Err(e) = confine(&config.store) {
        tracing::error!("{e}");
        return DaemonExit::Host;
    }
    let store = match CellStore::open(&config.store) {
        Ok(store) => store,
        Err(e) => {
            tracing::error!("{e}");
            return exit_of(&e);
        }
    };
    if store.set() != config.set().as_ref() {
        let told = |set: Option<&MemberSet>| {
            set.map_or("nobody: it keeps cells alone".to_owned(), ToString::to_string)
        };
        tracing::error!(
            "{}: the store is that of a member of {}; members in the configuration are {}. Both nodes and all members \
             must have the same list; a store is made for one list by --create",
            config.store.display(),
            told(store.set()),
            told(config.set().as_ref()),
        );
        return DaemonExit::Usage;
    }
    let protection = match config.protection() {
        Ok(protection) => protection,
        Err(e) => {
            tracing::error!("[tls]: {e}");
            return DaemonExit::Host;
        }
    };
    if let Err(e) = protection.watch() {
        tracing::error!("cannot start a thread: {e}");
        return DaemonExit::Host;
    }
    let server = TcpListener::bind(config.listen)
        .and_then(|listener| CellServer::start(listener, store, ServerLimits::default(), protection.clone()));
    let server = match server {
        Ok(server) => server,
        Err(e) => {
            tracing::error!("cannot listen on {}: {e}", config.listen);
            return match e.kind() {
                io::ErrorKind::AddrInUse => DaemonExit::InUse,
                _ => DaemonExit::Host,
            };
        }
    };
    if !config.is_local() && matches!(protection, Protection::None) {
        tracing::warn!(
            "connections are neither encrypted nor authenticated: whoever reaches {} can take a VM's cell",
            server.address()
        );
    }
    if let Some(address) = config.metrics.listen {
        let figures = server.figures();
        let expiry = move || {
            let expires = protection.expires().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
            expires.map_or(0, |since_1970| since_1970.as_secs())
        };
        let told = move || format!("{}{}", figures.metrics(), expiry_metric(expiry()));
        if let Err(e) = http::serve_apart(address, Arc::new(told)) {
            tracing::error!("metrics.listen = {address}: {e}");
            return DaemonExit::Host;
        }
    }
    if let Some(set) = config.set() {
        tracing::info!("a member of {set}, of which {} decide", set.majority());
    }
    tracing::info!("serving the cells of {} on {}", config.store.display(), server.address());
    let status = format!("serving on {}", server.address());
    if let Err(e) = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&status)]) {
        tracing::warn!("cannot tell systemd: {e}");
    }
    until_told(&signals, &server)
}

/// From now on it changes no file but its store, starts no program and connects to nobody. Ahead of the threads.
fn confine(store: &Path) -> Result<(), ft_confine::RulesetError> {
    // Where the store itself is, if this is a link to it.
    let file = store.canonicalize().unwrap_or_else(|_| store.to_owned());
    let directory = file.parent().unwrap_or(Path::new("/"));
    if !ft_confine::serve_from(&[directory])? {
        tracing::info!("this kernel has no Landlock, which would keep it from all files but its store");
    }
    Ok(())
}

fn expiry_metric(expires_unix_s: u64) -> String {
    const NAME: &str = "ftd_arbiter_certificate_expiry_timestamp_seconds";
    format!(
        "# HELP {NAME} When the service's certificate expires, in seconds since 1970; 0 where it has none\n\
         # TYPE {NAME} gauge\n{NAME} {expires_unix_s}\n"
    )
}

/// Serves until a signal comes.
fn until_told(signals: &SignalFd, server: &CellServer) -> DaemonExit {
    loop {
        let mut ready = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if matches!(poll(&mut ready, LOOK_MS), Ok(1..)) {
            tracing::info!("ending, as told; what was answered is in the store");
            return DaemonExit::Ok;
        }
        if server.has_failed() {
            tracing::error!("a thread of the service has ended: this is a bug");
            return DaemonExit::Failure;
        }
    }
}

fn exit_of(e: &CellStoreError) -> DaemonExit {
    match e {
        CellStoreError::Exists(_) => DaemonExit::Usage,
        CellStoreError::InUse(_) => DaemonExit::InUse,
        CellStoreError::Missing(_) | CellStoreError::Storage { .. } => DaemonExit::Host,
        CellStoreError::Damaged { .. } => DaemonExit::Arbiter,
    }
}
