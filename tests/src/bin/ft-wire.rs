//! ft-wire: watches from outside that no two replicas ever speak for the VM at once.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use ft_tests::wire::asked::Asker;
use ft_tests::wire::capture::Listener;
use ft_tests::wire::check::check;
use ft_tests::wire::frame::MacAddress;
use ft_tests::wire::owners::{Watcher, now_ns, read_history};
use ft_tests::wire::speakers::{CaptureRecord, CaptureRecorder};
use ftd::config::Config;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Watches from outside that no two replicas ever speak for the VM at once.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Record who speaks for the VM on the bridge, until SIGTERM or SIGINT
    ///
    /// Prints `ready` once it listens. Run it in the bridge's namespace; it needs CAP_NET_RAW.
    Capture(CaptureArgs),
    /// Record the history of the arbiter's cell, until SIGTERM or SIGINT
    ///
    /// Prints `ready` once it watches.
    WatchCell {
        /// The path of a cell on shared storage; the directory it is in must exist
        #[arg(long, required_unless_present = "config", conflicts_with = "config")]
        cell: Option<PathBuf>,
        /// A daemon's configuration: its arbiter is asked as the daemon would, for reading only
        #[arg(long)]
        config: Option<PathBuf>,
        /// Where the history goes, a JSON object a line
        #[arg(long)]
        out: PathBuf,
    },
    /// Hold a capture against a history; prints the verdict as JSON, exits with 1 on any violation
    Check {
        /// What `capture` wrote
        #[arg(long)]
        capture: PathBuf,
        /// What `watch-cell` wrote
        #[arg(long)]
        owners: PathBuf,
    },
}

#[derive(Args)]
struct CaptureArgs {
    /// A node and the bridge's port towards it; give one for each node
    #[arg(long = "port", value_name = "NODE=INTERFACE", required = true, value_parser = parse_port)]
    ports: Vec<(String, String)>,
    /// The VM's MAC address
    #[arg(long)]
    mac: MacAddress,
    /// Where the record goes
    #[arg(long)]
    out: PathBuf,
}

fn parse_port(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((node, interface)) if !node.is_empty() && !interface.is_empty() => {
            Ok((node.into(), interface.into()))
        }
        _ => Err(format!("`{text}` is not NODE=INTERFACE")),
    }
}

fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Capture(args) => capture(&args)?,
        Command::WatchCell { cell, config, out } => watch_cell(cell.as_deref(), config.as_deref(), &out)?,
        Command::Check { capture, owners } => {
            let text =
                fs::read_to_string(&capture).with_context(|| format!("cannot read {}", capture.display()))?;
            let capture: CaptureRecord = serde_json::from_str(&text)
                .with_context(|| format!("{} is no capture", capture.display()))?;
            let verdict = check(&capture, &read_history(&owners)?);
            println!("{}", serde_json::to_string_pretty(&verdict)?);
            return Ok(if verdict.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A descriptor that becomes readable when the process is told to end.
fn stop_signal() -> Result<SignalFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("cannot block signals")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).context("signalfd")
}

fn say_ready() -> Result<()> {
    let mut out = io::stdout();
    writeln!(out, "ready")?;
    Ok(out.flush()?)
}

fn capture(args: &CaptureArgs) -> Result<()> {
    let stop = stop_signal()?;
    let (nodes, interfaces): (Vec<_>, Vec<_>) =
        args.ports.iter().map(|(n, i)| (n.clone(), i.as_str())).unzip();
    let listener = Listener::new(&interfaces, args.mac)?;
    let mut recorder = CaptureRecorder::new(nodes, now_ns()?);
    say_ready()?;
    listener.run(stop.as_fd(), |heard| recorder.add(heard.port, heard.at_ns, heard.frame))?;
    let capture = recorder.finish(now_ns()?, listener.dropped()?);
    // A reader never sees half a record.
    let partial = args.out.with_extension("partial");
    let file = File::create(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    let mut out = BufWriter::new(file);
    serde_json::to_writer(&mut out, &capture)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&partial, &args.out).with_context(|| format!("cannot write {}", args.out.display()))
}

fn watch_cell(cell: Option<&Path>, config: Option<&Path>, out: &Path) -> Result<()> {
    let stop = stop_signal()?;
    let mut file = File::create(out).with_context(|| format!("cannot create {}", out.display()))?;
    if let Some(config) = config {
        let config = Config::load(config)?;
        let asker = Asker::new(config.arbiter(&config.trust()?));
        say_ready()?;
        return asker.run(&mut file, stop.as_fd());
    }
    let watcher = Watcher::new(cell.context("no cell is named")?)?;
    say_ready()?;
    watcher.run(&mut file, stop.as_fd())
}
