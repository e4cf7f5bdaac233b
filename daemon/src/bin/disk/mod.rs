//! `ftd disk`: what the images of a VM's writable disks are, and what an operator can do about it.

use super::load;
use clap::Subcommand;
use ftd::config::Config;
use ftd::disks::{self, ContentError};
use ftd::exit::DaemonExit;
use ftd::host::{self, DiskStatus};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// Ranges that are told one by one.
const RANGES_MAX: usize = 20;

/// The commands.
#[derive(Subcommand)]
pub enum DiskCmd {
    /// Say what each image of the VM is on this node, by the arbiter's cell, and what stands beside it
    ///
    /// Changes nothing; the daemon may run. Ends with 1 if an image is stale, nobody's or unknown, or cannot be judged.
    Status {
        /// The configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// As JSON, schema 1
        #[arg(long)]
        json: bool,
    },
    /// Say that this node's images are right: the VM's next boot here takes them as they are
    ///
    /// For a VM whose right image is lost, or that is to begin with images that ftd does not know. What the guest wrote
    /// elsewhere since is given up. The daemon must not run, and no other node may have the VM.
    Adopt {
        /// The configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Compare two images extent by extent; nobody may write to them meanwhile
    ///
    /// Ends with 1 if they differ, and says where.
    Verify {
        /// An image: a raw file or a block device
        one: PathBuf,
        /// Another one
        other: PathBuf,
    },
    /// Make an image of what a raw file, a block device or a qcow2 file holds
    ///
    /// A qcow2 file is known by its content. It must stand alone: with a backing file, a data file of its own,
    /// encryption, or damage that shows it is refused.
    Import {
        /// The file or block device; nobody may write to it meanwhile
        source: PathBuf,
        /// The new file, or a block device that nobody uses
        image: PathBuf,
    },
}

/// Carries it out.
pub fn run(command: &DiskCmd) -> DaemonExit {
    match command {
        DiskCmd::Status { config, json } => status(config, *json),
        DiskCmd::Adopt { config } => adopt(config),
        DiskCmd::Verify { one, other } => verify(one, other).unwrap_or_else(failed),
        DiskCmd::Import { source, image } => import(source, image).unwrap_or_else(failed),
    }
}

/// Says which of this node's images the VM will not boot from.
pub fn warn(config: &Config) {
    match DiskStatus::look(config) {
        Ok(status) => status.doubts().for_each(|doubt| eprintln!("ftd: warning: {doubt}")),
        Err(e) => eprintln!("ftd: warning: {e}"),
    }
}

fn failed(error: ContentError) -> DaemonExit {
    eprintln!("ftd: {error}");
    match error {
        ContentError::Image(ft_disk::DiskImageError::InUse { .. }) => DaemonExit::InUse,
        ContentError::Sizes { .. } | ContentError::Container { .. } | ContentError::Exists(_) => {
            DaemonExit::Usage
        }
        ContentError::Qcow2 { .. }
        | ContentError::Image(_)
        | ContentError::Small { .. }
        | ContentError::Io { .. } => DaemonExit::Host,
    }
}

fn status(path: &Path, json: bool) -> DaemonExit {
    let config = match load(path) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    match DiskStatus::look(&config) {
        Ok(status) => {
            if json {
                println!("{}", status.json());
            } else {
                print!("{}", status.text());
            }
            if status.is_well() { DaemonExit::Ok } else { DaemonExit::Failure }
        }
        Err(e) => {
            eprintln!("ftd: {e}");
            e.exit()
        }
    }
}

fn adopt(path: &Path) -> DaemonExit {
    let config = match load(path) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    match host::adopt(&config) {
        Ok(were) if were.is_empty() => {
            println!("{}: no disk is writable", config.vm);
            DaemonExit::Ok
        }
        Ok(were) => {
            for was in were {
                println!("{}: adopted; before, {}", was.image.display(), was.verdict);
            }
            DaemonExit::Ok
        }
        Err(e) => {
            eprintln!("ftd: {e}");
            e.exit()
        }
    }
}

fn verify(one: &Path, other: &Path) -> Result<DaemonExit, ContentError> {
    let mut progress = Progress::new();
    let compared = disks::compare(one, other, &mut |done, all| progress.say(done, all))?;
    progress.end();
    for (path, hash) in [one, other].iter().zip(&compared.hashes) {
        println!("{hash}  {}", path.display());
    }
    if compared.differ.is_empty() {
        println!("they are the same, {} bytes", compared.bytes);
        return Ok(DaemonExit::Ok);
    }
    for range in compared.differ.iter().take(RANGES_MAX) {
        println!("they differ in bytes {} to {}", range.start, range.end - 1);
    }
    let bytes: u64 = compared.differ.iter().map(|range| range.end - range.start).sum();
    println!("they differ in {} ranges, {bytes} of {} bytes", compared.differ.len(), compared.bytes);
    Ok(DaemonExit::Failure)
}

fn import(source: &Path, image: &Path) -> Result<DaemonExit, ContentError> {
    let mut progress = Progress::new();
    let hash = disks::import(source, image, &mut |done, all| progress.say(done, all))?;
    progress.end();
    println!("{hash}  {}", image.display());
    Ok(DaemonExit::Ok)
}

/// How far it is, for people.
struct Progress {
    is_shown: bool,
    said: Option<Instant>,
}

impl Progress {
    fn new() -> Self {
        Self { is_shown: std::io::stderr().is_terminal(), said: None }
    }

    fn say(&mut self, done: u64, all: u64) {
        if self.is_shown && self.said.is_none_or(|at| at.elapsed() >= PROGRESS_EVERY) {
            self.said = Some(Instant::now());
            eprint!("\r{} of {} MiB ({} %)", done >> 20, all >> 20, 100 * done / all.max(1));
            let _ = std::io::stderr().flush();
        }
    }

    fn end(&self) {
        if self.said.is_some() {
            eprintln!();
        }
    }
}
