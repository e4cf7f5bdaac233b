//! Partitions that are looked into, and the file systems in them.

mod ext;
mod fat;
mod journal;
#[cfg(test)]
mod tests;

use crate::disk::Part;
use crate::table::Slice;
use std::fmt;

pub(crate) use fat::is_vfat;
pub use journal::Jbd2Error;

/// Names of a directory that are read at most.
const NAMES_MAX: usize = 10_000;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is none of this name.
    #[error("there is no {0}")]
    NotFound(String),
    /// It is larger than it may be.
    #[error("{path} has {bytes} bytes, at most {max} fit")]
    TooLarge {
        /// The file.
        path: String,
        /// Its size.
        bytes: u64,
        /// What may be read.
        max: u64,
    },
    /// The file system is damaged, or the disk cannot be read.
    #[error("{path} cannot be read: {why}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
}

/// Why a file system is not read.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Something that ftd has no reader for.
    #[error("{0}, which ftd does not read")]
    Foreign(&'static str),
    /// Nothing that is known.
    #[error("no known file system")]
    Unknown,
    /// It is damaged, or has a feature that is not known.
    #[error("{kind} that cannot be read: {why}")]
    Broken {
        /// Which file system.
        kind: &'static str,
        /// Why.
        why: String,
    },
    /// It was not unmounted, and what its journal has cannot be had.
    #[error("ext4 that was not unmounted, and its journal: {0}")]
    Journal(#[from] Jbd2Error),
}

/// A file system, to be read. Paths begin with '/'; symbolic links are followed.
pub(crate) trait Files {
    /// Its name: "ext4".
    fn kind(&self) -> &'static str;
    /// As `search --fs-uuid` and `root=UUID=` take it.
    fn uuid(&self) -> String;
    fn label(&self) -> String;
    /// A regular file of so many bytes at most.
    fn read(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FileError>;
    /// The names in a directory, sorted.
    fn list(&self, path: &str) -> Result<Vec<String>, FileError>;
    /// Whether there is a file or directory.
    fn has(&self, path: &str) -> bool;
}

/// A partition, and what is in it.
pub(crate) struct Volume {
    pub(crate) slice: Slice,
    pub(crate) files: Result<Box<dyn Files>, VolumeError>,
}

impl Volume {
    pub(crate) fn open(disk: &Part, slice: Slice) -> Self {
        let files = disk.part(&slice.range).ok_or(VolumeError::Unknown).and_then(|part| open(&part));
        Self { slice, files }
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.files {
            Ok(files) => write!(f, "{} ({})", self.slice, files.kind()),
            Err(why) => write!(f, "{} ({why})", self.slice),
        }
    }
}

/// What other file systems, and what is none, begin with: offset, content, name.
const FOREIGN: [(u64, &[u8], &str); 9] = [
    (0, b"XFSB", "xfs"),
    (0x1_0040, b"_BHRfS_M", "btrfs"),
    (0, b"LUKS\xba\xbe", "LUKS encryption"),
    (0x218, b"LVM2 001", "LVM"),
    (4086, b"SWAPSPACE2", "swap space"),
    (0, b"hsqs", "squashfs"),
    (0x8001, b"CD001", "ISO 9660"),
    (1024, b"\x10\x20\xf5\xf2", "f2fs"),
    (3, b"NTFS    ", "NTFS"),
];

fn open(part: &Part) -> Result<Box<dyn Files>, VolumeError> {
    let has = |offset: u64, content: &[u8]| {
        let mut found = vec![0; content.len()];
        part.read(offset, &mut found).is_ok() && found == content
    };
    if let Some((.., name)) = FOREIGN.iter().find(|(offset, content, _)| has(*offset, content)) {
        return Err(VolumeError::Foreign(name));
    }
    if has(1080, b"\x53\xef") {
        return Ok(Box::new(ext::ExtFiles::open(part)?));
    }
    match part.array::<512>(0) {
        Ok(first) if is_vfat(&first) => Ok(Box::new(fat::FatFiles::open(part)?)),
        _ => Err(VolumeError::Unknown),
    }
}
