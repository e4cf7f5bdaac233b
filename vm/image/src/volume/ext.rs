//! ext4 (and ext2, and ext3 where it was unmounted), by the crate `ext4-view`. What a journal has is brought in
//! underneath (see `journal`), so the crate is shown a file system without one.

use super::journal::Journal;
use super::{FileError, Files, NAMES_MAX, VolumeError};
use crate::disk::Part;
use crate::disk::number::{u32_le, u64_le};
use ext4_view::{Ext4, Ext4Error, Ext4Read};
use std::error::Error;

const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
/// Fields of the superblock, and bits in them.
const COMPAT: usize = 0x5c;
const HAS_JOURNAL: u8 = 0x04;
const INCOMPAT: usize = 0x60;
const NEEDS_RECOVERY: u8 = 0x04;
const RO_COMPAT: usize = 0x64;
const HAS_CHECKSUMS: u32 = 0x400;
const CHECKSUM: usize = 0x3fc;

pub(super) struct ExtFiles(Ext4);

impl ExtFiles {
    pub(super) fn open(part: &Part) -> Result<Self, VolumeError> {
        let broken = |why: String| VolumeError::Broken { kind: "ext4", why };
        let superblock = part.array(SUPERBLOCK).map_err(|e| broken(e.to_string()))?;
        let is_dirty = superblock[INCOMPAT] & NEEDS_RECOVERY != 0;
        let journal = match is_dirty {
            true => Journal::read(part, &superblock)?,
            false => Journal::default(),
        };
        let mut replayed = Replayed { part: part.clone(), journal, superblock };
        replayed.without_journal().map_err(|e| broken(e.to_string()))?;
        let opened = Ext4::load(Box::new(replayed));
        Ok(Self(opened.map_err(|e| broken(e.to_string()))?))
    }
}

/// The file system as it would be if it had just been unmounted, and had no journal.
struct Replayed {
    part: Part,
    journal: Journal,
    superblock: [u8; SUPERBLOCK_BYTES],
}

impl Replayed {
    fn without_journal(&mut self) -> std::io::Result<()> {
        let mut superblock = [0; SUPERBLOCK_BYTES];
        self.replayed(SUPERBLOCK, &mut superblock)?;
        superblock[COMPAT] &= !HAS_JOURNAL;
        superblock[INCOMPAT] &= !NEEDS_RECOVERY;
        if u32_le(&superblock, RO_COMPAT) & HAS_CHECKSUMS != 0 {
            let checksum = !crc32c::crc32c(&superblock[..CHECKSUM]);
            superblock[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        }
        self.superblock = superblock;
        Ok(())
    }

    fn replayed(&self, start: u64, into: &mut [u8]) -> std::io::Result<()> {
        self.part.read(start, into)?;
        self.journal.bring_in(&self.part, start, into)
    }
}

impl Ext4Read for Replayed {
    fn read(&mut self, start: u64, into: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.replayed(start, into)?;
        let end = start + into.len() as u64;
        let shared = start.max(SUPERBLOCK)..end.min(SUPERBLOCK + SUPERBLOCK_BYTES as u64);
        if !shared.is_empty() {
            let from = (shared.start - SUPERBLOCK) as usize..(shared.end - SUPERBLOCK) as usize;
            into[(shared.start - start) as usize..(shared.end - start) as usize]
                .copy_from_slice(&self.superblock[from]);
        }
        Ok(())
    }
}

fn failed(path: &str) -> impl Fn(Ext4Error) -> FileError {
    let path = path.to_owned();
    move |error| match error {
        Ext4Error::NotFound | Ext4Error::NotADirectory => FileError::NotFound(path.clone()),
        error => FileError::Unreadable { path: path.clone(), why: error.to_string() },
    }
}

impl Files for ExtFiles {
    fn kind(&self) -> &'static str {
        "ext4"
    }

    fn uuid(&self) -> String {
        self.0.uuid().to_string()
    }

    fn label(&self) -> String {
        self.0.label().display().to_string()
    }

    fn read(&self, path: &str, max: u64) -> Result<Vec<u8>, FileError> {
        let failed = failed(path);
        let bytes = self.0.metadata(path).map_err(&failed)?.len();
        if bytes > max {
            return Err(FileError::TooLarge { path: path.into(), bytes, max });
        }
        self.0.read(path).map_err(&failed)
    }

    fn list(&self, path: &str) -> Result<Vec<String>, FileError> {
        let failed = failed(path);
        let mut names = Vec::new();
        for entry in self.0.read_dir(path).map_err(&failed)?.take(NAMES_MAX) {
            names.extend(entry.map_err(&failed)?.file_name().as_str().ok().map(str::to_owned));
        }
        names.retain(|name| name != "." && name != "..");
        names.sort();
        Ok(names)
    }

    fn has(&self, path: &str) -> bool {
        self.0.exists(path).unwrap_or(false)
    }
}

/// Where the blocks of a file are that is found by its number: the journal's.
pub(super) struct Extents(Vec<Extent>);

struct Extent {
    first: u64,
    blocks: u64,
    at: u64,
}

/// Levels of a tree of extents, and extents, at most.
const DEPTH_MAX: u16 = 5;
const EXTENTS_MAX: usize = 100_000;
const EXTENT_MARK: u32 = 0xf30a;
/// An extent with a greater length has never been written; its true length is so much less.
const UNWRITTEN: u64 = 32_768;

impl Extents {
    /// By the 60 bytes in an inode.
    pub(super) fn of(part: &Part, block_bytes: u64, root: &[u8]) -> std::io::Result<Option<Self>> {
        let mut extents = Self(Vec::new());
        let is_whole = extents.walk(part, block_bytes, root, DEPTH_MAX)?;
        Ok(is_whole.then_some(extents))
    }

    fn walk(&mut self, part: &Part, block_bytes: u64, node: &[u8], depth_max: u16) -> std::io::Result<bool> {
        let head = u64_le(node, 0);
        let (magic, count, depth) = (head as u32 & 0xffff, (head >> 16) as u16, (head >> 48) as u16);
        if magic != EXTENT_MARK || depth > depth_max || self.0.len() > EXTENTS_MAX {
            return Ok(false);
        }
        for entry in node[12..].chunks_exact(12).take(count.into()) {
            let (first, word) = (u64::from(u32_le(entry, 0)), u32_le(entry, 4));
            if depth == 0 {
                let blocks = u64::from(word & 0xffff);
                let blocks = if blocks > UNWRITTEN { blocks - UNWRITTEN } else { blocks };
                let at = u64::from(word >> 16) << 32 | u64::from(u32_le(entry, 8));
                self.0.push(Extent { first, blocks, at });
                continue;
            }
            let at = u64::from(u32_le(entry, 8) & 0xffff) << 32 | u64::from(word);
            let mut child = vec![0; block_bytes as usize];
            part.read(at.saturating_mul(block_bytes), &mut child)?;
            if !self.walk(part, block_bytes, &child, depth - 1)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The block of the file system that this block of the file is.
    pub(super) fn block(&self, of_file: u64) -> Option<u64> {
        let has = |extent: &&Extent| (extent.first..extent.first + extent.blocks).contains(&of_file);
        self.0.iter().find(has).map(|extent| extent.at + (of_file - extent.first))
    }
}
