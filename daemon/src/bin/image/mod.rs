//! `ftd image`: what lies in an image to be booted.

use super::load;
use clap::Subcommand;
use ftd::boot::{self, ImageBootError};
use ftd::config::GuestKind;
use ftd::disks::DiskReader;
use ftd::exit::DaemonExit;
use std::path::{Path, PathBuf};

/// The commands.
#[derive(Subcommand)]
pub enum ImageCmd {
    /// Say what a VM with guest = "image" would boot now: kernel, initrd, command line, and where they are from
    ///
    /// Reads the image in the same confined process as the daemon does at each boot. While the VM's daemon runs here
    /// its images are in use, and cannot be shown; its log says what it has booted.
    Show {
        /// The image: a raw file, a block device or a qcow2 file; nobody may write to it meanwhile
        #[arg(required_unless_present = "config", conflicts_with = "config")]
        image: Option<PathBuf>,
        /// A configuration, whose first disk is shown, with its memory and its machine.cmdline
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Memory of a machine that nothing is known of.
const RAM_BYTES: u64 = 1 << 40;

/// Carries it out.
pub fn run(command: &ImageCmd) -> DaemonExit {
    let ImageCmd::Show { image, config } = command;
    let shown = match (image, config) {
        (Some(image), _) => show(image),
        (None, Some(config)) => match show_configured(config) {
            Ok(shown) => shown,
            Err(exit) => return exit,
        },
        (None, None) => return DaemonExit::Usage,
    };
    match shown {
        Ok(()) => DaemonExit::Ok,
        Err(e) => {
            eprintln!("ftd: {e}");
            DaemonExit::Host
        }
    }
}

fn show(image: &Path) -> Result<(), ImageBootError> {
    print(&DiskReader::open(image)?, image, RAM_BYTES, "")
}

fn show_configured(path: &Path) -> Result<Result<(), ImageBootError>, DaemonExit> {
    let config = load(path)?;
    let machine = &config.machine;
    let (GuestKind::Image, Some(first)) = (machine.guest, machine.disks.first()) else {
        eprintln!("ftd: {}: machine.guest is not \"image\": nothing is booted from a disk", path.display());
        return Err(DaemonExit::Usage);
    };
    let shown =
        || print(&DiskReader::open_first(&config)?, &first.image, machine.memory_mib << 20, &machine.cmdline);
    Ok(shown())
}

fn print(disk: &DiskReader, image: &Path, ram_bytes: u64, more: &str) -> Result<(), ImageBootError> {
    let entry = boot::look(disk, image, ram_bytes)?;
    let origin = &entry.origin;
    println!("entry    {}", origin.title);
    println!("found in {}", origin.found_in);
    println!("kernel   {} ({} bytes)", origin.kernel, entry.kernel.len());
    println!("version  {}", origin.version.as_deref().unwrap_or("unknown"));
    let initrd = entry.initrd.map_or(0, |initrd| initrd.len());
    match &origin.initrds[..] {
        [] => println!("initrd   none"),
        paths => println!("initrd   {} ({initrd} bytes)", paths.join(" ")),
    }
    println!("cmdline  {}", format!("{} {more}", entry.cmdline).trim());
    Ok(())
}
