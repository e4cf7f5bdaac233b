//! What the guest is booted with: files of the host, or what lies in the VM's first disk (`guest = "image"`), which is
//! read anew at each boot. That disk is the guest's own, so a child process reads it, which can do nothing else:
//!
//! ```text
//!   daemon ── DiskReader ── "the bytes from here on" ──> child: ft-image, confined (`confine`)
//!      ^                                                    │
//!      └────────── kernel, initrd, command line <───────────┘   over one socket (`wire`)
//! ```
//!
//! A child that crashes, hangs or says nonsense is an error of this boot, and of nothing else.

mod ask;
mod child;
mod confine;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod wire;

pub use child::{COMMAND as IMAGE_READER_COMMAND, run as run_image_reader};
pub use error::{ConfineError, ImageBootError};

use crate::config::{Config, DiskConfig, GuestKind};
use crate::disks::{DiskReader, Disks};
use ft_image::{BootEntry, BootOrigin};
use ft_vm::spec::{Boot, BootContent};
use std::path::Path;
use std::sync::Arc;

/// See the module.
pub enum Booted {
    /// Files of the host, or what is built in.
    Fixed(Boot),
    /// What lies in the first disk.
    Image(ImageBoot),
}

/// The disk that is booted from.
pub struct ImageBoot {
    disk: DiskConfig,
    disks: Option<Arc<Disks>>,
    /// Follows the entry's own command line.
    cmdline: String,
    ram_bytes: u64,
}

impl Booted {
    /// As the configuration says. Writable disks are open already.
    #[must_use]
    pub fn new(config: &Config, disks: Option<Arc<Disks>>) -> Self {
        match (config.machine.guest, config.machine.disks.first()) {
            (GuestKind::Image, Some(disk)) => Self::Image(ImageBoot {
                disk: disk.clone(),
                disks,
                cmdline: config.machine.cmdline.clone(),
                ram_bytes: config.machine.memory_mib << 20,
            }),
            _ => Self::Fixed(config.boot()),
        }
    }

    /// What is booted now, and where that was found if it is not the configuration that says it. Of a writable disk: no
    /// machine has anything in hand that it was asked for.
    pub fn resolve(&self) -> Result<(Boot, Option<BootOrigin>), ImageBootError> {
        match self {
            Self::Fixed(boot) => Ok((boot.clone(), None)),
            Self::Image(image) => {
                let disk = DiskReader::first(&image.disk, image.disks.as_deref())?;
                let entry = look(&disk, &image.disk.image, image.ram_bytes)?;
                let (boot, origin, cmdline) = boot_of(entry, &image.cmdline);
                tracing::info!(%cmdline, "boots {origin}");
                Ok((boot, Some(origin)))
            }
        }
    }
}

/// What a configuration's VM would boot now, while no daemon has its disks.
pub fn would_boot(config: &Config) -> Result<Boot, ImageBootError> {
    match (config.machine.guest, config.machine.disks.first()) {
        (GuestKind::Image, Some(first)) => {
            let disk = DiskReader::open_first(config)?;
            let entry = look(&disk, &first.image, config.machine.memory_mib << 20)?;
            Ok(boot_of(entry, &config.machine.cmdline).0)
        }
        _ => Ok(config.boot()),
    }
}

/// What lies in a disk to be booted, in a machine with so many bytes of memory. `image` names it in messages.
pub fn look(disk: &DiskReader, image: &Path, ram_bytes: u64) -> Result<BootEntry, ImageBootError> {
    let nothing = |why| ImageBootError::Nothing { image: image.to_owned(), why };
    ask::ask(disk, ram_bytes)?.map_err(nothing)
}

fn boot_of(entry: BootEntry, more: &str) -> (Boot, BootOrigin, String) {
    let BootEntry { kernel, initrd, cmdline, origin } = entry;
    let cmdline = format!("{cmdline} {more}").trim().to_owned();
    let kernel = BootContent { name: origin.kernel.clone(), bytes: kernel.into() };
    let initrd = initrd.map(|bytes| BootContent { name: origin.initrds.join(", "), bytes: bytes.into() });
    (Boot::LinuxRead { kernel, initrd, cmdline: cmdline.clone() }, origin, cmdline)
}
