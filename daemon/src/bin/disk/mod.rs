//! `ftd disk`: what the images of a VM's writable disks are, and what an operator can do about it.

use super::{load, load_as_daemon};
use clap::Subcommand;
use ftd::config::Config;
use ftd::disks::{self, ContentError, NewOverlay};
use ftd::exit::DaemonExit;
use ftd::host::{self, DiskStatus};
use ftd::user::Explained;
use std::io::{IsTerminal, Stderr, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often progress is told on a terminal, in one line that changes, and elsewhere, in a line each time.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
const PROGRESS_LINE_EVERY: Duration = Duration::from_secs(5);
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
    /// Compare two images extent by extent, and say their hashes; nobody may write to them meanwhile
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
    /// Reads all of the base, and says its hash, as `import` says it. Both nodes' must be the same. What the guest
    /// writes comes into the image; the base is only read, and may lie under the disks of many VMs. Never overwrites a
    /// file.
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
    /// Make an image of what a raw file, a block device or a qcow2 file holds, and say its hash
    ///
    /// A qcow2 file is known by its content. It must stand alone: with a backing file, a data file of its own,
    /// encryption, or damage that shows it is refused. So is a source that another program can write to: a running
    /// QEMU, a mount, a loop device. The hash is BLAKE3 of the BLAKE3s of the disk's extents of 1 MiB, as `verify` says
    /// it.
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
    eprintln!("ftd: {}", Explained(&error));
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
    let config = match load_as_daemon(path) {
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
            eprintln!("ftd: {}", Explained(&e));
            e.exit()
        }
    }
}

fn adopt(path: &Path) -> DaemonExit {
    let config = match load_as_daemon(path) {
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
            eprintln!("ftd: {}", Explained(&e));
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
    let compared =
        disks::compare(images, &configs, &mut |done, all| progress.say(Instant::now(), done, all))?;
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
    let mut say = |done, all| progress.say(Instant::now(), done, all);
    let hash = disks::import(source, image, &configs, &mut say)?;
    progress.end();
    println!("{hash}  {}", image.display());
    Ok(DaemonExit::Ok)
}

fn create_overlay(path: &Path, disk: usize, mib: Option<u64>) -> DaemonExit {
    let config = match load_as_daemon(path) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let mut progress = Progress::new();
    let mut say = |done, all| progress.say(Instant::now(), done, all);
    let made = host::create_overlay(&config, disk, mib, &mut say);
    progress.end();
    match made {
        Ok(NewOverlay { image, disk_bytes, base }) => {
            println!("{base}  the base of {}, a disk of {disk_bytes} bytes", image.display());
            DaemonExit::Ok
        }
        Err(e) => {
            eprintln!("ftd: {}", Explained(&e));
            e.exit()
        }
    }
}

/// How far it is, for people.
struct Progress<W> {
    to: W,
    is_terminal: bool,
    /// When it was said last, or began.
    said: Instant,
    is_in_line: bool,
}

impl Progress<Stderr> {
    fn new() -> Self {
        let to = std::io::stderr();
        Self { is_terminal: to.is_terminal(), to, said: Instant::now(), is_in_line: false }
    }
}

impl<W: Write> Progress<W> {
    fn say(&mut self, now: Instant, done: u64, all: u64) {
        let every = if self.is_terminal { PROGRESS_EVERY } else { PROGRESS_LINE_EVERY };
        if now.duration_since(self.said) < every {
            return;
        }
        self.said = now;
        self.is_in_line = self.is_terminal;
        let [before, after] = if self.is_terminal { ["\r", ""] } else { ["", "\n"] };
        let (mib, all_mib, percent) =
            (done >> 20, all >> 20, u128::from(done) * 100 / u128::from(all.max(1)));
        // Nobody needs it.
        let _ = write!(self.to, "{before}{mib} of {all_mib} MiB ({percent} %){after}");
        let _ = self.to.flush();
    }

    fn end(&mut self) {
        if self.is_in_line {
            let _ = writeln!(self.to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a disk of 400 MiB, a fourth of which is done each two seconds.
    fn said(is_terminal: bool) -> String {
        let began = Instant::now();
        let mut progress = Progress { to: Vec::new(), is_terminal, said: began, is_in_line: false };
        for quarter in 0..=4 {
            progress.say(began + Duration::from_secs(2 * quarter), (quarter * 100) << 20, 400 << 20);
        }
        progress.end();
        String::from_utf8(progress.to).unwrap()
    }

    #[test]
    fn progress_is_a_line_that_changes_on_a_terminal_and_a_line_now_and_then_elsewhere() {
        let line =
            "\r100 of 400 MiB (25 %)\r200 of 400 MiB (50 %)\r300 of 400 MiB (75 %)\r400 of 400 MiB (100 %)\n";
        assert_eq!(said(true), line);
        assert_eq!(said(false), "300 of 400 MiB (75 %)\n");
    }
}
