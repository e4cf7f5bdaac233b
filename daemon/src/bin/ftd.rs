//! The daemon: `ftd run` protects one VM on this node, `ftd check-config` says whether it could.

use clap::{Parser, Subcommand};
use ftd::config::Config;
use ftd::daemon;
use ftd::exit::DaemonExit;
use ftd::lifeline;
use ftd::role::Exit;
use ftd::service::init_logging;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Protects a virtual machine against the loss of its host.
///
/// Two hosts each run ftd for the same VM: one runs it, the other holds its state and goes on with it when the first
/// dies. Clients keep their TCP connections. Operators talk to a running ftd with ftctl.
#[derive(Parser)]
#[command(version, after_help = DaemonExit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Run this node until it is stopped or fenced
    Run {
        /// The configuration, as in ftd.example.toml
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Boot the VM anew although its memory may still be held by the peer: what ran before is given up.
        /// Only on the node that owns the VM
        #[arg(long)]
        fresh: bool,
    },
    /// Check a configuration and this host for it; nothing runs, only missing directories of the daemon are made
    CheckConfig {
        /// The configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Judge the file only, not this host
        #[arg(long)]
        syntax_only: bool,
    },
    /// Closes the connection on standard input when the daemon that made it dies
    #[command(name = lifeline::COMMAND, hide = true)]
    Lifeline {
        /// The daemon
        maker: u32,
    },
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Cmd::Run { config, fresh } => run(&config, fresh),
        Cmd::CheckConfig { config, syntax_only } => check(&config, syntax_only),
        Cmd::Lifeline { maker } => match lifeline::run(maker) {
            Ok(()) => DaemonExit::Ok,
            Err(_) => DaemonExit::Failure,
        },
    }
    .into()
}

fn load(path: &Path) -> Result<Config, DaemonExit> {
    Config::load(path).map_err(|e| {
        eprintln!("ftd: {e}");
        DaemonExit::Usage
    })
}

fn check(path: &Path, syntax_only: bool) -> DaemonExit {
    let config = match load(path) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    if !syntax_only && let Err(e) = config.check_host() {
        eprintln!("ftd: {e}");
        return e.exit();
    }
    println!("{}: fine", path.display());
    DaemonExit::Ok
}

fn run(path: &Path, fresh: bool) -> DaemonExit {
    let config = match load(path) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    init_logging(config.log.format, config.log.level);
    tracing::info!(vm = %config.vm, node = %config.node, "ftd {}", env!("CARGO_PKG_VERSION"));
    match daemon::run(&config, fresh) {
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
            tracing::error!("{e}");
            e.exit()
        }
    }
}
