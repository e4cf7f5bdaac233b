//! `ftd disk`: what the images of a VM's writable disks are, and what an operator can do about it.

use super::load;
use clap::Subcommand;
use ftd::config::Config;
use ftd::disks::{self, ContentError, NewOverlay};
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
    /// Ends with 1 if they differ, and says where. An overlay is compared with what lies under it, if a configuration
    /// is given that names its base.
    Verify {
        /// An image: a raw file or a block device
        one: PathBuf,
        /// Another one
        other: PathBuf,
        /// A configuration that names a base of an image; may be given twice
        #[arg(long = "config", value_name = "FILE")]
        configs: Vec<PathBuf>,
    },
    /// Make an overlay over the base that the configuration names for a disk: an image that has nothing yet
    ///
    /// Reads all of the base, and says its BLAKE3. Both nodes' must be the same. What the guest writes comes into the
    /// image; the base is only read, and may lie under the disks of many VMs. Never overwrites a file.
    CreateOverlay {
        /// The configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The disk, counted from 1
        #[arg(long, value_name = "N", default_value_t = 1)]
        disk: usize,
        /// A disk of so many MiB; without it, one as large as its base
        #[arg(long, value_name = "MIB")]
        mib: Option<u64>,
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
        /// A configuration that names the base of an overlay: what both hold becomes one image
        #[arg(long = "config", value_name = "FILE")]
        configs: Vec<PathBuf>,
    },
}

/// Carries it out.
pub fn run(command: &DiskCmd) -> DaemonExit {
    match command {
        DiskCmd::Status { config, json } => status(config, *json),
        DiskCmd::Adopt { config } => adopt(config),
        DiskCmd::Verify { one, other, configs } => verify([one, other], configs).unwrap_or_else(failed),
        DiskCmd::CreateOverlay { config, disk, mib } => create_overlay(config, *disk, *mib),
        DiskCmd::Import { source, image, configs } => import(source, image, configs).unwrap_or_else(failed),
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
        ContentError::Beside(why) => host::DiskToolError::from(*why).exit(),
        ContentError::Sizes { .. } | ContentError::Container { .. } | ContentError::Exists(_) => {
            DaemonExit::Usage
        }
        ContentError::Qcow2 { .. }
        | ContentError::Image(_)
        | ContentError::Read(_)
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

fn load_all(configs: &[PathBuf]) -> Result<Vec<Config>, DaemonExit> {
    configs.iter().map(|path| load(path)).collect()
}

fn verify(images: [&Path; 2], configs: &[PathBuf]) -> Result<DaemonExit, ContentError> {
    let configs = match load_all(configs) {
        Ok(configs) => configs,
        Err(exit) => return Ok(exit),
    };
    let mut progress = Progress::new();
    let compared = disks::compare(images, &configs, &mut |done, all| progress.say(done, all))?;
    progress.end();
    for (path, hash) in images.iter().zip(&compared.hashes) {
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

fn import(source: &Path, image: &Path, configs: &[PathBuf]) -> Result<DaemonExit, ContentError> {
    let configs = match load_all(configs) {
        Ok(configs) => configs,
        Err(exit) => return Ok(exit),
    };
    let mut progress = Progress::new();
    let hash = disks::import(source, image, &configs, &mut |done, all| progress.say(done, all))?;
    progress.end();
    println!("{hash}  {}", image.display());
    Ok(DaemonExit::Ok)
}

fn create_overlay(path: &Path, disk: usize, mib: Option<u64>) -> DaemonExit {
    let config = match load(path) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let mut progress = Progress::new();
    let made = host::create_overlay(&config, disk, mib, &mut |done, all| progress.say(done, all));
    progress.end();
    match made {
        Ok(NewOverlay { image, disk_bytes, blake3: base }) => {
            println!("{}  the base of {}, a disk of {disk_bytes} bytes", base, image.display());
            DaemonExit::Ok
        }
        Err(e) => {
            eprintln!("ftd: {e}");
            e.exit()
        }
    }
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
