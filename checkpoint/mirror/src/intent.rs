//! The intent map of an image: a bit an extent, set durably before the first write into it, cleared when both images
//! are known to have the same there, durably. So what may differ after any loss is in the map of one host or of the
//! other, if both maps have the same base: the pairing in which the images were the same last.
//!
//! ```text
//! block 0     0 "FTIM"   4 version u32   8 id u64   16 disk bytes u64   24 extent bytes u64   32 base u64, 0 none
//!             40 crc32c u32 over 0..40
//! block 1...  0 crc32c u32 over the id, the block's number, and 8..4096   4 zero   8 bits, the lowest first
//! ```
//!
//! A block that power has torn, or that is damaged, counts as all set: it costs a comparison, and hides nothing.

use crate::medium::Medium;
use std::io;
use std::ops::Range;

const MAGIC: [u8; 4] = *b"FTIM";
/// Version of the map's format.
const INTENT_VERSION: u32 = 1;
const BLOCK_BYTES: usize = 4096;
const BLOCK_HEAD_BYTES: usize = 8;
const BITS_PER_BLOCK: u64 = ((BLOCK_BYTES - BLOCK_HEAD_BYTES) * 8) as u64;
const HEAD_BYTES: usize = 44;
const CRC_AT: usize = 40;

/// Why there is no map.
#[derive(Debug, thiserror::Error)]
pub enum IntentError {
    /// The storage.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// There is none, or its head is damaged: the whole image may differ.
    #[error("is no intent map of ftd")]
    NoMap,
    /// Another version wrote it.
    #[error("is an intent map of format {0}, this ftd reads {INTENT_VERSION}")]
    Version(u32),
    /// The disk has another size.
    #[error("is the map of a disk of {map} bytes, the disk has {disk}")]
    Size {
        /// The map's.
        map: u64,
        /// The disk's.
        disk: u64,
    },
    /// The storage is too small.
    #[error("a map of this disk takes {need} bytes, this place has {has}")]
    Small {
        /// What it takes.
        need: u64,
        /// What there is.
        has: u64,
    },
    /// A map of nothing.
    #[error("extents of {0} bytes are none")]
    Extent(u64),
}

/// What a map has lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Blocks that count as all set.
    pub blocks: u64,
}

/// See the module.
pub struct IntentMap<M> {
    medium: M,
    shape: Shape,
    base: u64,
    blocks: Vec<Block>,
    is_sound: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    id: u64,
    disk_bytes: u64,
    extent_bytes: u64,
}

#[derive(Clone)]
struct Block {
    bits: Box<[u8; BLOCK_BYTES - BLOCK_HEAD_BYTES]>,
    /// It has bits that are not on the medium.
    is_dirty: bool,
    /// Set in memory, and not durable: a write there must wait.
    unsure: Vec<u64>,
}

impl Shape {
    fn extents(&self) -> u64 {
        self.disk_bytes.div_ceil(self.extent_bytes)
    }

    fn blocks(&self) -> u64 {
        self.extents().div_ceil(BITS_PER_BLOCK)
    }

    fn bytes(&self) -> u64 {
        (1 + self.blocks()) * BLOCK_BYTES as u64
    }

    fn touched(&self, bytes: &Range<u64>) -> Range<u64> {
        let end = bytes.end.min(self.disk_bytes);
        if bytes.start >= end {
            return 0..0;
        }
        bytes.start / self.extent_bytes..end.div_ceil(self.extent_bytes)
    }

    fn encode(&self, base: u64) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&INTENT_VERSION.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.id.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.disk_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.extent_bytes.to_le_bytes());
        bytes[32..40].copy_from_slice(&base.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The shape, and the base.
    fn decode(bytes: &[u8; HEAD_BYTES]) -> Result<(Self, u64), IntentError> {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        if bytes[..4] != MAGIC || crc32c::crc32c(&bytes[..CRC_AT]) != half(CRC_AT) || word(24) == 0 {
            return Err(IntentError::NoMap);
        }
        if half(4) != INTENT_VERSION {
            return Err(IntentError::Version(half(4)));
        }
        Ok((Self { id: word(8), disk_bytes: word(16), extent_bytes: word(24) }, word(32)))
    }
}

impl Block {
    fn filled(with: u8) -> Self {
        Self { bits: Box::new([with; _]), is_dirty: true, unsure: Vec::new() }
    }

    fn crc(&self, id: u64, number: u64) -> u32 {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&id.to_le_bytes()), &number.to_le_bytes());
        crc32c::crc32c_append(crc, &self.bits[..])
    }

    fn has(&self, bit: u64) -> bool {
        self.bits[(bit / 8) as usize] & 1 << (bit % 8) != 0
    }
}

impl<M: Medium> IntentMap<M> {
    /// Bytes that the map of such a disk takes.
    pub fn bytes_for(disk_bytes: u64, extent_bytes: u64) -> Result<u64, IntentError> {
        if extent_bytes == 0 {
            return Err(IntentError::Extent(extent_bytes));
        }
        Ok(Shape { id: 0, disk_bytes, extent_bytes }.bytes())
    }

    /// A new map, durable, in which nothing is set, and without a base. `id` differs from that of any map that was
    /// there before.
    pub fn create(medium: M, disk_bytes: u64, extent_bytes: u64, id: u64) -> Result<Self, IntentError> {
        let (need, has) = (Self::bytes_for(disk_bytes, extent_bytes)?, medium.bytes()?);
        if has < need {
            return Err(IntentError::Small { need, has });
        }
        let shape = Shape { id, disk_bytes, extent_bytes };
        let blocks = vec![Block::filled(0); shape.blocks() as usize];
        let mut map = Self { medium, shape, base: 0, blocks, is_sound: true };
        // The blocks first: until the head names their id they are nobody's.
        map.commit()?;
        map.medium.write(0, &shape.encode(0))?;
        map.medium.sync()?;
        Ok(map)
    }

    /// The map that an earlier process left of a disk of this size, and what of it is lost. It is written again: what a
    /// flush that failed did not write the kernel forgets, while reads still show it.
    pub fn open(medium: M, disk_bytes: u64) -> Result<(Self, Damage), IntentError> {
        let (mut map, damage) = Self::look(medium, disk_bytes)?;
        map.medium.write(0, &map.shape.encode(map.base))?;
        map.commit()?;
        Ok((map, damage))
    }

    /// The same, for those who only look.
    pub fn look(medium: M, disk_bytes: u64) -> Result<(Self, Damage), IntentError> {
        let mut head = [0; HEAD_BYTES];
        medium.read(0, &mut head)?;
        let (shape, base) = Shape::decode(&head)?;
        if shape.disk_bytes != disk_bytes {
            return Err(IntentError::Size { map: shape.disk_bytes, disk: disk_bytes });
        }
        let (need, has) = (shape.bytes(), medium.bytes()?);
        if has < need {
            return Err(IntentError::Small { need, has });
        }
        let mut damage = Damage { blocks: 0 };
        let mut blocks = Vec::with_capacity(shape.blocks() as usize);
        for number in 0..shape.blocks() {
            let mut bytes = [0; BLOCK_BYTES];
            medium.read((1 + number) * BLOCK_BYTES as u64, &mut bytes)?;
            let (head, bits) = bytes.split_at(BLOCK_HEAD_BYTES);
            let mut block = Block::filled(0);
            block.bits.copy_from_slice(bits);
            if head[..4] != block.crc(shape.id, number).to_le_bytes() {
                damage.blocks += 1;
                block = Block::filled(0xff);
            }
            blocks.push(block);
        }
        Ok((Self { medium, shape, base, blocks, is_sound: false }, damage))
    }

    /// The pairing in which both images were the same last: what is set in neither host's map of this base is the same.
    pub fn base(&self) -> Option<u64> {
        Some(self.base).filter(|base| *base != 0)
    }

    /// In this pairing both images were the same, but for what is set here or there, durably. Durable when it returns;
    /// after an error there is no base.
    pub fn rebase(&mut self, pairing: u64) -> Result<(), IntentError> {
        self.base = 0;
        self.medium.write(0, &self.shape.encode(pairing))?;
        self.medium.sync()?;
        self.base = pairing;
        Ok(())
    }

    /// Bytes of an extent.
    pub fn extent_bytes(&self) -> u64 {
        self.shape.extent_bytes
    }

    fn place(extent: u64) -> (usize, u64) {
        ((extent / BITS_PER_BLOCK) as usize, extent % BITS_PER_BLOCK)
    }

    /// Whether these bytes may be written now: their extents are set, durably.
    pub fn covers(&self, bytes: &Range<u64>) -> bool {
        self.is_sound
            && self.shape.touched(bytes).all(|extent| {
                let (block, bit) = Self::place(extent);
                let block = &self.blocks[block];
                block.has(bit) && !block.unsure.contains(&bit)
            })
    }

    /// Sets their extents, in memory; [`IntentMap::commit`] makes it durable.
    pub fn mark(&mut self, bytes: &Range<u64>) {
        for extent in self.shape.touched(bytes) {
            let (block, bit) = Self::place(extent);
            let block = &mut self.blocks[block];
            if !block.has(bit) {
                block.bits[(bit / 8) as usize] |= 1 << (bit % 8);
                block.unsure.push(bit);
                block.is_dirty = true;
            }
        }
    }

    /// Both images have the same in this extent, durably, and nothing is being written there. A later commit makes that
    /// durable; until then a restart finds it set.
    pub fn clear(&mut self, extent: u64) {
        if extent < self.shape.extents() {
            let (block, bit) = Self::place(extent);
            let block = &mut self.blocks[block];
            block.bits[(bit / 8) as usize] &= !(1 << (bit % 8));
            block.unsure.retain(|unsure| *unsure != bit);
            block.is_dirty = true;
        }
    }

    /// Makes durable what was set and cleared. After an error nothing is covered until another attempt, which writes
    /// all of it again, goes well.
    pub fn commit(&mut self) -> Result<(), IntentError> {
        if self.blocks.iter().all(|block| !block.is_dirty) {
            return Ok(());
        }
        self.is_sound = false;
        for (number, block) in self.blocks.iter().enumerate().filter(|(_, block)| block.is_dirty) {
            let mut bytes = [0; BLOCK_BYTES];
            bytes[..4].copy_from_slice(&block.crc(self.shape.id, number as u64).to_le_bytes());
            bytes[BLOCK_HEAD_BYTES..].copy_from_slice(&block.bits[..]);
            self.medium.write((1 + number as u64) * BLOCK_BYTES as u64, &bytes)?;
        }
        self.medium.sync()?;
        for block in &mut self.blocks {
            block.is_dirty = false;
            block.unsure.clear();
        }
        self.is_sound = true;
        Ok(())
    }

    /// The extents that are set, by number.
    pub fn set(&self) -> impl Iterator<Item = u64> {
        (0..self.shape.extents()).filter(|extent| {
            let (block, bit) = Self::place(*extent);
            self.blocks[block].has(bit)
        })
    }

    /// The bytes of an extent; the disk's last one may be shorter.
    pub fn range(&self, extent: u64) -> Range<u64> {
        let start = extent.saturating_mul(self.shape.extent_bytes).min(self.shape.disk_bytes);
        start..start.saturating_add(self.shape.extent_bytes).min(self.shape.disk_bytes)
    }
}
