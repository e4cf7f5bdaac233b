//! The daemon: `ftd run` protects one VM on this node, and `ftd check-config` says whether it could. `ftd record` runs
//! a VM alone and records it; `ftd replay` executes the recording again.

mod arbiter;
mod disk;
mod image;
mod keygen;
mod seed;

use arbiter::ArbiterArgs;
use clap::{CommandFactory, Parser, Subcommand};
use disk::DiskCmd;
use ftd::boot::{IMAGE_READER_COMMAND, run_image_reader};
use ftd::config::Config;
use ftd::daemon;
use ftd::exit::DaemonExit;
use ftd::host::{self, Earlier, InitError, Log, RunningHere};
use ftd::manual::{completion_script, write_command_pages, write_configuration_pages};
use ftd::peer::{self, LIFELINE_COMMAND, run_lifeline};
use ftd::recording::{self, Proof, RecordOptions, ReplayOptions};
use ftd::role::Exit;
use ftd::user::{Explained, act_as_owner};
use image::ImageCmd;
use keygen::KeygenArgs;
use seed::SeedArgs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Protects a virtual machine against the loss of its host.
///
/// Two hosts each run ftd for the same VM. One host runs the VM; the other holds its state and takes over when the
/// first one dies. Clients keep their TCP connections. Operators control a running ftd with ftctl.
#[derive(Parser)]
#[command(version, after_help = DaemonExit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Run this node of the VM until it is stopped or fenced
    Run {
        /// The configuration, as in ftd.example.toml
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Say which cell of the arbiter this node's VM is in: found it if there is none, else take the one there
    ///
    /// Not needed where start_as = "primary" boots the VM for the first time. A node records the cell that it acts on,
    /// and refuses another one, an older one, or none. When the cell is gone for good, stop both nodes, and run this
    /// with --forget on each: the VM then boots anew.
    Init {
        /// The configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Forget the cell that this node has recorded
        #[arg(long)]
        forget: bool,
    },
    /// Check a configuration, this host, and what lies between it and the peer's; runs nothing
    ///
    /// Only creates the daemon's missing directories, and keeps the hashes of the VM's files there. If the peer's
    /// daemon answers, warns of what the handshake would refuse, of clocks that are apart, of two MTUs on the link, of
    /// two versions of ftd, and of memory that a backup lacks. That is no failure, nor is a peer that does not answer.
    /// While the VM's daemon runs here, what it has in use is not checked: its ports, its TAP and its memory.
    CheckConfig {
        /// The configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Check only the file, not the hosts
        #[arg(long)]
        syntax_only: bool,
    },
    /// The images of writable disks: whose is right, comparing, importing
    #[command(subcommand)]
    Disk(DiskCmd),
    /// Boot the VM alone and unprotected on the deterministic engine, and record its run into a file
    ///
    /// The recording begins when the machine boots. It ends when the guest powers off, crashes or resets (whatever
    /// on_reset says), when the time is over, or on SIGINT or SIGTERM. A recorder that dies leaves a recording of all
    /// but the last moments. The VM uses its own network address: stop it on both hosts first, or give it another TAP.
    Record {
        /// The configuration; only its [machine] section matters
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The file to record into; it must not exist yet
        #[arg(long, value_name = "LOG")]
        out: PathBuf,
        /// Stop after this time
        #[arg(long = "for", value_name = "SECONDS", value_parser = seconds)]
        limit: Option<Duration>,
        /// Type standard input into the guest's console
        #[arg(long)]
        stdin: bool,
        /// Do not show the guest's console
        #[arg(long)]
        quiet: bool,
    },
    /// Execute a recording again, instruction by instruction, as fast as this host can
    ///
    /// The guest's console goes to standard output, the outcome of the replay to standard error. The digests in the
    /// recording are compared on the way and at its end.
    Replay {
        /// The recording
        log: PathBuf,
        /// Stop after this many instructions and show the registers
        #[arg(long, value_name = "COUNT")]
        until: Option<u64>,
        /// Also fail when the recording has no end because its recorder was killed or the file was cut off
        #[arg(long)]
        verify: bool,
        /// Do not show the guest's console
        #[arg(long)]
        quiet: bool,
        /// A disk's image, once for each disk in the VM's order, if the images have moved
        #[arg(long = "disk", value_name = "IMAGE")]
        disks: Vec<PathBuf>,
    },
    /// Serve the arbiter's cells of many VMs until told to stop: on a third machine, for nodes without shared storage
    Arbiter(ArbiterArgs),
    /// Make the certificates of a site: two hosts, an arbiter, an operator
    ///
    /// Makes a certificate authority and, signed by it, a certificate and a key for each name. What lies in
    /// DIRECTORY/NAME belongs on that machine, in /etc/ftd/tls; with [tls] in its configuration, it speaks TLS 1.3 with
    /// the others of its site, and with nobody else.
    Keygen(KeygenArgs),
    /// Images that VMs boot from
    #[command(subcommand)]
    Image(ImageCmd),
    /// Make the disk that tells a cloud image its user, keys, host name and network (cloud-init's NoCloud)
    ///
    /// A vfat of 1 MiB with the label CIDATA, to be attached as a read-only disk. Equal arguments make equal images, so
    /// that each host can make its own. Never overwrites a file without --force.
    Seed(SeedArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Writes the manual pages of ftd and of the configurations into a directory that exists
    #[command(hide = true)]
    Manual {
        /// The directory
        directory: PathBuf,
        /// The day at their foot: 2026-01-31
        date: String,
    },
    /// Looks into a disk for what is to be booted; the daemon gives it the disk's bytes over standard input
    #[command(name = IMAGE_READER_COMMAND, hide = true)]
    ReadImage {
        /// Bytes of the disk
        disk_bytes: u64,
        /// Bytes of a file, at most
        file_bytes_max: u64,
    },
    /// Closes the connection on standard input when the daemon that made it dies
    #[command(name = LIFELINE_COMMAND, hide = true)]
    Lifeline {
        /// The daemon
        maker: u32,
    },
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Cmd::Run { config } => run(&config),
        Cmd::Init { config, forget } => init(&config, if forget { Earlier::Forget } else { Earlier::Keep }),
        Cmd::CheckConfig { config, syntax_only } => check(&config, syntax_only),
        Cmd::Disk(command) => disk::run(&command),
        Cmd::Record { config, out, limit, stdin, quiet } => {
            record(&config, &RecordOptions { out, limit, stdin, quiet })
        }
        Cmd::Replay { log, until, verify, quiet, disks } => {
            let proof = if verify { Proof::Demanded } else { Proof::Welcome };
            ended(
                recording::replay(&ReplayOptions { log, until, proof, quiet, disks })
                    .map(|()| DaemonExit::Ok),
            )
        }
        Cmd::Arbiter(args) => arbiter::run(&args),
        Cmd::Keygen(args) => keygen::run(&args),
        Cmd::Seed(args) => seed::run(&args),
        Cmd::Image(command) => image::run(&command),
        Cmd::Completions { shell } => {
            written(io::stdout().write_all(completion_script("ftd", &Cli::command(), shell).as_bytes()))
        }
        Cmd::Manual { directory, date } => written(
            write_command_pages(Cli::command(), &date, &directory)
                .and_then(|()| write_configuration_pages(&date, &directory)),
        ),
        Cmd::ReadImage { disk_bytes, file_bytes_max } => match run_image_reader(disk_bytes, file_bytes_max) {
            Ok(()) => DaemonExit::Ok,
            Err(_) => DaemonExit::Failure,
        },
        Cmd::Lifeline { maker } => match run_lifeline(maker) {
            Ok(()) => DaemonExit::Ok,
            Err(_) => DaemonExit::Failure,
        },
    }
    .into()
}

/// A time as people write it, fractions allowed.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

fn written(outcome: io::Result<()>) -> DaemonExit {
    match outcome {
        Ok(()) => DaemonExit::Ok,
        Err(e) => {
            eprintln!("ftd: {e}");
            DaemonExit::Failure
        }
    }
}

fn load(path: &Path) -> Result<Config, DaemonExit> {
    Config::load(path).map_err(|e| {
        eprintln!("ftd: {}", Explained(&e));
        DaemonExit::Usage
    })
}

/// As [`load`], for a command in whose course root acts as the daemon's user, who must be able to read it as well.
fn load_as_daemon(path: &Path) -> Result<Config, DaemonExit> {
    let config = load(path)?;
    match act_as_owner(&config.state_dir) {
        Ok(None) => Ok(config),
        Ok(Some(user)) => {
            eprintln!("ftd: as {user}, to whom {} belongs", config.state_dir.display());
            load(path)
        }
        Err(e) => {
            eprintln!("ftd: {e}");
            Err(DaemonExit::Host)
        }
    }
}

fn init(path: &Path, earlier: Earlier) -> DaemonExit {
    let config = match load_as_daemon(path) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let initialised = config
        .trust()
        .map_err(InitError::from)
        .and_then(|trust| Ok((host::initialise(&config, &trust, earlier)?, config.arbiter(&trust).place())));
    match initialised {
        Ok((cell, place)) => {
            println!("{}: cell {} at {}: {cell}", config.vm, cell.id, place);
            disk::warn(&config);
            DaemonExit::Ok
        }
        Err(e) => {
            eprintln!("ftd: {}", Explained(&e));
            e.exit()
        }
    }
}

fn check(path: &Path, syntax_only: bool) -> DaemonExit {
    let loaded = if syntax_only { load(path) } else { load_as_daemon(path) };
    let config = match loaded {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    for warning in config.security_warnings() {
        eprintln!("ftd: warning: {warning}");
    }
    if !syntax_only {
        // Before the check, which makes a TAP that is missing, for a moment.
        match host::look(&config) {
            Ok(trouble) if trouble.is_none() => {}
            Ok(trouble) => eprintln!("ftd: warning: machine.net: {trouble}"),
            Err(e) => eprintln!("ftd: warning: machine.net: cannot look at the host's interfaces: {e}"),
        }
        let running = match config.check() {
            Ok(running) => running,
            Err(e) => {
                eprintln!("ftd: {}", Explained(&e));
                return e.exit();
            }
        };
        if let Some(running) = &running {
            println!("{}: {running}", config.node);
        }
        if let Some(crowded) = host::Crowded::of(&config) {
            eprintln!("ftd: warning: {crowded}");
        }
        if let Err(e) = ft_checkpoint::lazy::is_possible() {
            eprintln!(
                "ftd: warning: {e}: a take-over brings memory up to date before the VM runs (docs/rights.md)"
            );
        }
        match host::processor(&config) {
            Ok(Some(processor)) => println!("{}: the guest's processor is {processor}", config.node),
            Ok(None) => {}
            Err(e) => eprintln!("ftd: warning: machine.cpu: {e}"),
        }
        compare(&config, running.as_ref());
    }
    println!("{}: fine", path.display());
    DaemonExit::Ok
}

/// Says what lies between this host and the peer's.
fn compare(config: &Config, running: Option<&RunningHere>) {
    match peer::compare(config, running) {
        Ok(gaps) if gaps.is_empty() => println!("{}: fits this host, as its daemon says", config.peer.node),
        Ok(gaps) => gaps.iter().for_each(|gap| eprintln!("ftd: warning: {gap}")),
        Err(e) => eprintln!("ftd: {e}"),
    }
}

fn record(path: &Path, options: &RecordOptions) -> DaemonExit {
    match load(path) {
        Ok(config) => ended(recording::record(&config, options)),
        Err(exit) => exit,
    }
}

fn ended(outcome: Result<DaemonExit, recording::RunError>) -> DaemonExit {
    outcome.unwrap_or_else(|e| {
        eprintln!("ftd: {}", Explained(&e));
        e.exit()
    })
}

fn run(path: &Path) -> DaemonExit {
    let config = match load(path) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let (log, _log_drain) = match Log::start(config.log.format, config.log.level) {
        Ok(log) => log,
        Err(e) => {
            eprintln!("ftd: cannot start to log: {e}");
            return DaemonExit::Failure;
        }
    };
    tracing::info!(vm = %config.vm, node = %config.node, "ftd {}", env!("CARGO_PKG_VERSION"));
    match daemon::run(&config, path, log) {
        Ok(exit) => {
            let code = daemon::exit_code(&exit);
            match exit {
                Exit::Stopped(why) => tracing::info!("{why}"),
                Exit::Fenced(why) => tracing::error!("fenced: {why}"),
                Exit::GuestCrashed(why) => tracing::error!("the guest crashed: {why}"),
                Exit::Misfit(why) => tracing::error!("the peer does not fit: {why}"),
                Exit::Failed(why) => tracing::error!("{why}"),
            }
            code
        }
        Err(e) => {
            tracing::error!("{}", Explained(&e));
            e.exit()
        }
    }
}
