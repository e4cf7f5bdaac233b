//! The boot entry of a disk: by the Boot Loader Specification, by grub.cfg, or else the newest kernel in /boot.

mod bare;
mod bls;
mod glob;
mod grub;
#[cfg(test)]
mod tests;
mod version;

use crate::disk::{Part, ReadAt, number};
use crate::table::{self, PartitionTableError};
use crate::volume::{FileError, Files, Volume};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What is read of a configuration file at most.
const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// The initrd files of an entry, at most.
const INITRDS_MAX: usize = 16;

/// What fits into the machine.
#[derive(Clone, Copy, Debug)]
pub struct BootLimits {
    /// Bytes of the kernel's file, and of all initrd files together.
    pub file_bytes_max: u64,
}

/// What is to be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootEntry {
    /// bzImage or vmlinux, as it lies in the file.
    pub kernel: Vec<u8>,
    /// The entry's initrd files, one after the other.
    pub initrd: Option<Vec<u8>>,
    /// The kernel's command line, as the entry says.
    pub cmdline: String,
    /// Where all that is from.
    pub origin: BootOrigin,
}

/// Where a boot entry was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootOrigin {
    /// Its title in the boot menu.
    pub title: String,
    /// What says so: the partition, and the path of a file there.
    pub found_in: String,
    /// The partition and the path of the kernel.
    pub kernel: String,
    /// What the kernel says of its version, if it does.
    pub version: Option<String>,
    /// Paths of its initrd files.
    pub initrds: Vec<String>,
}

impl fmt::Display for BootOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { title, found_in, kernel, version, .. } = self;
        write!(f, "{kernel}")?;
        if let Some(version) = version {
            write!(f, " (Linux {})", version.split(' ').next().unwrap_or(version))?;
        }
        write!(f, ", entry \"{title}\" of {found_in}")
    }
}

/// Why nothing can be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootSearchError {
    /// The disk's partitions are not known.
    #[error("the partition table of the disk: {0}")]
    Table(#[from] PartitionTableError),
    /// There is no entry, and no kernel.
    #[error(
        "no kernel was found: looked for loader/entries/*.conf, grub/grub.cfg, grub2/grub.cfg and vmlinuz* in / and \
         /boot of {}", .looked_at.join(", ")
    )]
    Nothing {
        /// The partitions, and what is in each.
        looked_at: Vec<String>,
    },
    /// There are entries, and none of them can be used.
    #[error("no boot entry can be used: {}", .0.join("; "))]
    Unusable(Vec<String>),
    /// The entry that is to be booted names a file that cannot be read.
    #[error("{origin}: the {what} of entry \"{title}\": {source}")]
    File {
        /// What names it.
        origin: String,
        /// The title of the entry.
        title: String,
        /// Kernel or initrd.
        what: &'static str,
        /// Why it is not read.
        source: FileError,
    },
    /// More than a command line can have.
    #[error("the boot configuration {0} is not understood: {1}")]
    Configuration(String, &'static str),
}

/// An entry, before its files are read.
struct Chosen {
    title: String,
    /// The file that has it.
    found_in: String,
    /// The index of the volume with its files, and their paths there.
    volume: usize,
    kernel: String,
    initrds: Vec<String>,
    cmdline: String,
}

/// Finds what a disk has to be booted, and reads it.
pub fn find(disk: Box<dyn ReadAt>, limits: &BootLimits) -> Result<BootEntry, BootSearchError> {
    let disk = Part::whole(disk);
    let slices = table::read(&disk)?;
    let volumes: Vec<Volume> = slices.into_iter().map(|slice| Volume::open(&disk, slice)).collect();
    let mut unusable = Vec::new();
    let chosen = match bls::choose(&volumes, &mut unusable) {
        Some(chosen) => Some(chosen),
        None => match grub::choose(&volumes, &mut unusable)? {
            Some(chosen) => Some(chosen),
            None => bare::choose(&volumes),
        },
    };
    match chosen {
        Some(chosen) => read(&volumes, chosen, limits),
        None if unusable.is_empty() => {
            Err(BootSearchError::Nothing { looked_at: volumes.iter().map(Volume::to_string).collect() })
        }
        None => Err(BootSearchError::Unusable(unusable)),
    }
}

/// The file systems that can be read, with the indexes of their volumes.
fn readable<'v>(volumes: &'v [Volume]) -> impl Iterator<Item = (usize, &'v Volume, &'v dyn Files)> {
    let files = |(index, volume): (usize, &'v Volume)| match &volume.files {
        Ok(files) => Some((index, volume, files.as_ref())),
        Err(_) => None,
    };
    volumes.iter().enumerate().filter_map(files)
}

fn text_of(files: &dyn Files, path: &str) -> Option<String> {
    let bytes = files.read(path, CONFIG_BYTES_MAX).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn read(volumes: &[Volume], chosen: Chosen, limits: &BootLimits) -> Result<BootEntry, BootSearchError> {
    let Chosen { title, found_in, volume: index, kernel, initrds, cmdline } = chosen;
    let volume = &volumes[index];
    let Ok(files) = &volume.files else {
        return Err(BootSearchError::Nothing { looked_at: vec![volume.to_string()] });
    };
    let file = |what, path: &str, max| {
        let failed =
            |source| BootSearchError::File { origin: found_in.clone(), title: title.clone(), what, source };
        files.read(path, max).map_err(failed)
    };
    let image = file("kernel", &kernel, limits.file_bytes_max)?;
    let mut initrd = Vec::new();
    for path in initrds.iter().take(INITRDS_MAX) {
        // Each archive begins at a multiple of four bytes.
        initrd.resize(initrd.len().next_multiple_of(4), 0);
        let room = limits.file_bytes_max.saturating_sub(initrd.len() as u64);
        initrd.extend(file("initrd", path, room)?);
    }
    let origin = BootOrigin {
        version: version_of(&image),
        kernel: format!("{} of {volume}", kernel),
        title,
        found_in,
        initrds,
    };
    let initrd = (!origin.initrds.is_empty()).then_some(initrd);
    Ok(BootEntry { kernel: image, initrd, cmdline: cmdline.trim().to_owned(), origin })
}

/// What a bzImage says of its version (Documentation/arch/x86/boot.rst, `kernel_version`).
fn version_of(kernel: &[u8]) -> Option<String> {
    if kernel.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let at = 0x200 + usize::from(number::u16_le(kernel, 0x20e));
    let text = kernel.get(at..)?.split(|byte| *byte == 0).next()?;
    let text = std::str::from_utf8(&text[..text.len().min(200)]).ok()?;
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte)).then(|| text.to_owned())
}
