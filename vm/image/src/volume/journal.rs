//! What the journal of an ext4 (JBD2) has for a file system that was not unmounted: replayed in memory, by the rules of
//! the kernel (`fs/jbd2/recovery.c`). Only transactions that are complete count; a block that a later transaction
//! revokes is not brought back.

use super::ext::Extents;
use crate::disk::Part;
use crate::disk::number::{u16_be, u16_le, u32_be, u32_le};
use std::collections::BTreeMap;
use std::io;

/// Why a journal is not replayed.
#[derive(Debug, thiserror::Error)]
pub enum Jbd2Error {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is not where it is looked for.
    #[error("{0}")]
    Unsupported(&'static str),
    /// Its content makes no sense.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

const JBD2: u32 = 0xc03b_3998;
/// Kinds of blocks.
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCKS: [u32; 2] = [3, 4];
const REVOKE: u32 = 5;
/// Bits of its features.
const WIDE: u32 = 2;
const ASYNC_COMMIT: u32 = 4;
const CHECKSUM_V2: u32 = 8;
const CHECKSUM_V3: u32 = 16;
const KNOWN: u32 = 1 | WIDE | ASYNC_COMMIT | CHECKSUM_V2 | CHECKSUM_V3;
/// Bits of a tag.
const ESCAPED: u32 = 1;
const SAME_UUID: u32 = 2;
const LAST: u32 = 8;
/// Blocks of a journal, at most: 4 GiB in blocks of 4 KiB.
const BLOCKS_MAX: u64 = 1 << 20;

/// Blocks of the file system whose newest content is in the journal.
#[derive(Default)]
pub(super) struct Journal {
    block_bytes: u64,
    newest: BTreeMap<u64, Copied>,
}

#[derive(Clone, Copy)]
struct Copied {
    /// Its byte in the file system.
    at: u64,
    /// Its first four bytes are those of the magic number, and are left out.
    escaped: bool,
}

/// A transaction's content, until it is known to be complete.
#[derive(Default)]
struct Transaction {
    copies: Vec<(u64, Copied)>,
    revoked: Vec<u64>,
}

struct Reader<'a> {
    part: &'a Part,
    extents: Extents,
    block_bytes: u64,
    first: u64,
    blocks: u64,
    features: u32,
    seed: u32,
}

/// As ext4 computes it: without the last inversion.
fn crc(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

impl Journal {
    /// Replays the journal of the file system with this superblock.
    pub(super) fn read(part: &Part, superblock: &[u8; 1024]) -> Result<Self, Jbd2Error> {
        let block_bytes = match u32_le(superblock, 0x18) {
            log @ 0..=6 => 1024u64 << log,
            _ => return Err(Jbd2Error::Damaged("the file system's block size")),
        };
        let extents = inode(part, superblock, block_bytes)?;
        let at = extents.block(0).ok_or(Jbd2Error::Damaged("it has no first block"))?;
        let head = part.array::<1024>(at.saturating_mul(block_bytes))?;
        if u32_be(&head, 0) != JBD2 || !SUPERBLOCKS.contains(&u32_be(&head, 4)) {
            return Err(Jbd2Error::Damaged("its superblock"));
        }
        let is_v2 = u32_be(&head, 4) == SUPERBLOCKS[1];
        let features = if is_v2 { u32_be(&head, 0x28) } else { 0 };
        if features & !KNOWN != 0 {
            return Err(Jbd2Error::Unsupported("it has features that ftd does not know (fast_commit?)"));
        }
        let (blocks, first, start) = (u32_be(&head, 0x10), u32_be(&head, 0x14), u32_be(&head, 0x1c));
        let is_sane = u64::from(u32_be(&head, 0xc)) == block_bytes && first < blocks && start < blocks;
        if !is_sane || u64::from(blocks) > BLOCKS_MAX {
            return Err(Jbd2Error::Damaged("the sizes in its superblock"));
        }
        let reader = Reader {
            part,
            extents,
            block_bytes,
            first: first.into(),
            blocks: blocks.into(),
            features,
            seed: crc(!0, &head[0x30..0x40]),
        };
        match start {
            0 => Ok(Self { block_bytes, newest: BTreeMap::new() }),
            start => reader.replay(u32_be(&head, 0x18), start.into()),
        }
    }

    /// Puts what the journal has of these bytes of the file system over them.
    pub(super) fn bring_in(&self, part: &Part, start: u64, into: &mut [u8]) -> io::Result<()> {
        if self.newest.is_empty() || into.is_empty() {
            return Ok(());
        }
        let end = start + into.len() as u64;
        let blocks = start / self.block_bytes..end.div_ceil(self.block_bytes);
        for (block, copied) in self.newest.range(blocks) {
            let mut content = vec![0; self.block_bytes as usize];
            part.read(copied.at, &mut content)?;
            if copied.escaped {
                content[..4].copy_from_slice(&JBD2.to_be_bytes());
            }
            let place = block * self.block_bytes;
            let shared = start.max(place)..end.min(place + self.block_bytes);
            into[(shared.start - start) as usize..(shared.end - start) as usize]
                .copy_from_slice(&content[(shared.start - place) as usize..(shared.end - place) as usize]);
        }
        Ok(())
    }
}

/// Where the blocks of the journal are.
fn inode(part: &Part, superblock: &[u8; 1024], block_bytes: u64) -> Result<Extents, Jbd2Error> {
    let (per_group, number) = (u32_le(superblock, 0x28), u32_le(superblock, 0xe0));
    let Some((group, index)) =
        number.checked_sub(1).and_then(|n| Some((n.checked_div(per_group)?, n % per_group)))
    else {
        return Err(Jbd2Error::Unsupported("it is on a device of its own"));
    };
    let is_wide = u32_le(superblock, 0x60) & 0x80 != 0;
    let group_bytes = if is_wide { u64::from(u16_le(superblock, 0xfe)) } else { 32 };
    let groups = (u64::from(u32_le(superblock, 0x14)) + 1) * block_bytes;
    let descriptor = part.array::<64>(groups + u64::from(group) * group_bytes)?;
    let high = if group_bytes >= 64 { u32_le(&descriptor, 0x28) } else { 0 };
    let table = u64::from(high) << 32 | u64::from(u32_le(&descriptor, 8));
    let inode_bytes = u64::from(u16_le(superblock, 0x58));
    let at = table.saturating_mul(block_bytes).saturating_add(u64::from(index) * inode_bytes);
    let inode = part.array::<128>(at)?;
    if u32_le(&inode, 0x20) & 0x8_0000 == 0 {
        return Err(Jbd2Error::Unsupported("its blocks are mapped one by one, as ext3 does"));
    }
    Extents::of(part, block_bytes, &inode[0x28..0x64])?.ok_or(Jbd2Error::Damaged("its extents"))
}

impl Reader<'_> {
    fn byte_of(&self, block: u64) -> Result<u64, Jbd2Error> {
        let block = self.extents.block(block).ok_or(Jbd2Error::Damaged("it has a hole"))?;
        block.checked_mul(self.block_bytes).ok_or(Jbd2Error::Damaged("its extents"))
    }

    /// The block after this one: behind the last comes the first.
    fn next(&self, block: u64) -> u64 {
        if block + 1 < self.blocks { block + 1 } else { self.first }
    }

    fn has_checksums(&self) -> bool {
        self.features & (CHECKSUM_V2 | CHECKSUM_V3) != 0
    }

    /// Whether a block is what its checksum says, which is at this place in it.
    fn is_sound(&self, block: &[u8], checksum_at: usize) -> bool {
        if !self.has_checksums() {
            return true;
        }
        let mut unsigned = block.to_vec();
        unsigned[checksum_at..checksum_at + 4].fill(0);
        crc(self.seed, &unsigned) == u32_be(block, checksum_at)
    }

    fn replay(&self, sequence: u32, start: u64) -> Result<Journal, Jbd2Error> {
        let tail = self.block_bytes as usize - 4;
        let (mut sequence, mut at, mut passed) = (sequence, start, 0);
        let mut open = Transaction::default();
        let mut complete = Vec::new();
        while passed < self.blocks {
            let mut block = vec![0; self.block_bytes as usize];
            self.part.read(self.byte_of(at)?, &mut block)?;
            if u32_be(&block, 0) != JBD2 || u32_be(&block, 8) != sequence {
                break;
            }
            (at, passed) = (self.next(at), passed + 1);
            match u32_be(&block, 4) {
                DESCRIPTOR if self.is_sound(&block, tail) => {
                    for (number, escaped) in self.tags(&block) {
                        open.copies.push((number, Copied { at: self.byte_of(at)?, escaped }));
                        (at, passed) = (self.next(at), passed + 1);
                    }
                }
                REVOKE if self.is_sound(&block, tail) => open.revoked.extend(self.revoked(&block)),
                COMMIT if self.is_sound(&block, 16) => {
                    complete.push(std::mem::take(&mut open));
                    sequence = sequence.wrapping_add(1);
                }
                // One that was being written.
                _ => break,
            }
        }
        Ok(Journal { block_bytes: self.block_bytes, newest: newest(complete) })
    }

    /// The blocks of the file system whose copies follow a descriptor, and whether each is escaped.
    fn tags(&self, descriptor: &[u8]) -> Vec<(u64, bool)> {
        let is_wide = self.features & WIDE != 0;
        let is_v3 = self.features & CHECKSUM_V3 != 0;
        let bytes = match is_v3 {
            true => 16,
            false => 8 + 4 * usize::from(is_wide) + 2 * usize::from(self.features & CHECKSUM_V2 != 0),
        };
        let end = descriptor.len() - 4 * usize::from(self.has_checksums());
        let (mut at, mut tags) = (12, Vec::new());
        while at + bytes <= end {
            let flags = if is_v3 { u32_be(descriptor, at + 4) } else { u16_be(descriptor, at + 6).into() };
            let high = if is_wide { u32_be(descriptor, at + 8) } else { 0 };
            tags.push((u64::from(high) << 32 | u64::from(u32_be(descriptor, at)), flags & ESCAPED != 0));
            at += bytes + if flags & SAME_UUID == 0 { 16 } else { 0 };
            if flags & LAST != 0 {
                break;
            }
        }
        tags
    }

    fn revoked(&self, block: &[u8]) -> Vec<u64> {
        let bytes = if self.features & WIDE != 0 { 8 } else { 4 };
        let end = (u32_be(block, 12) as usize).clamp(16, block.len());
        let number = |entry: &[u8]| match bytes {
            8 => u64::from(u32_be(entry, 0)) << 32 | u64::from(u32_be(entry, 4)),
            _ => u32_be(entry, 0).into(),
        };
        block[16..end].chunks_exact(bytes).map(number).collect()
    }
}

/// A block's last copy, unless that transaction or a later one revokes it.
fn newest(transactions: Vec<Transaction>) -> BTreeMap<u64, Copied> {
    let mut newest = BTreeMap::new();
    for Transaction { copies, revoked } in transactions {
        newest.extend(copies);
        for block in revoked {
            newest.remove(&block);
        }
    }
    newest
}
