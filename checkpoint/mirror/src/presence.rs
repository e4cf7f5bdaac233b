//! The presence map of an overlay: a bit a unit of the disk, set durably once the overlay has, durably, the whole unit.
//! What is not set is in the base image under the overlay. A bit never goes. The head says what that base is.
//!
//! ```text
//! slots 0, 1  the head, twice: 0 "FTPR"  4 version u32  8 count u64  16 id u64  24 image u64  32 disk bytes u64
//!             40 unit bytes u64  48 base: disk bytes u64  56 file bytes u64  64 modified, s i64  72 ns u32
//!             76 format u32 (1 raw, 2 qcow2)  80 hash of its disk  112 crc32c u32 over 0..112
//! blocks      from byte 8192 on, each twice, one copy after the other: 0 crc32c u32 over the id, the block's number,
//!             and 8..4096   4 zero   8 bits, the lowest first
//! ```
//!
//! A unit that the map forgets would be read from the base: what the guest wrote would be gone. So of each block a copy
//! is durable before the other one is written. One that is torn or damaged is mended from the other; where both are,
//! there is no map. Where they differ each says the truth, since a bit comes after its unit.

use crate::medium::Medium;
use crate::slots::{self, SLOTS_END, Slot};
use std::collections::BTreeMap;
use std::io;

const MAGIC: [u8; 4] = *b"FTPR";
/// Version of the map's format.
const PRESENCE_VERSION: u32 = 1;
const BLOCK_BYTES: usize = 4096;
const BLOCK_HEAD_BYTES: usize = 8;
const BITS_PER_BLOCK: u64 = ((BLOCK_BYTES - BLOCK_HEAD_BYTES) * 8) as u64;
const HEAD_BYTES: usize = 116;
const CRC_AT: usize = 112;
const COPIES: usize = 2;

/// Why there is no presence map.
#[derive(Debug, thiserror::Error)]
pub enum PresenceError {
    /// The storage.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// There is none, or both copies of its head are damaged.
    #[error("is no presence map of ftd, or is damaged")]
    NoMap,
    /// Another version wrote it.
    #[error("is a presence map of format {0}, this ftd reads {PRESENCE_VERSION}")]
    Version(u32),
    /// The disk has another size.
    #[error("is the presence map of a disk of {map} bytes, the disk has {disk}")]
    Size {
        /// The map's.
        map: u64,
        /// The disk's.
        disk: u64,
    },
    /// The storage is too small.
    #[error("a presence map of this disk takes {need} bytes, this place has {has}")]
    Small {
        /// What it takes.
        need: u64,
        /// What there is.
        has: u64,
    },
    /// Both copies of a block are damaged.
    #[error("is damaged: both copies of its block {0}")]
    Damaged(u64),
    /// A map of nothing.
    #[error("units of {0} bytes are none")]
    Unit(u64),
}

/// How a base image holds its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseFormat {
    /// Byte by byte.
    Raw = 1,
    /// In clusters.
    Qcow2 = 2,
}

/// A base image, as it was when its content was read last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseFacts {
    /// Bytes of its disk.
    pub bytes: u64,
    /// The hash of its disk: BLAKE3 of the BLAKE3s of its extents of 1 MiB.
    pub hash: [u8; 32],
    /// How the file holds it.
    pub format: BaseFormat,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// When the file was changed last: seconds and nanoseconds since 1970.
    pub modified: (i64, u32),
}

/// The overlay that a map is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlayOf {
    /// Names the image: the same for the same place.
    pub image: u64,
    /// Bytes of the disk.
    pub disk_bytes: u64,
    /// Bytes of a unit.
    pub unit_bytes: u64,
    /// What lies under it.
    pub base: BaseFacts,
}

impl OverlayOf {
    fn units(&self) -> u64 {
        self.disk_bytes.div_ceil(self.unit_bytes)
    }

    fn blocks(&self) -> u64 {
        self.units().div_ceil(BITS_PER_BLOCK)
    }

    fn map_bytes(&self) -> u64 {
        SLOTS_END + self.blocks() * (COPIES * BLOCK_BYTES) as u64
    }
}

/// What the slots hold.
#[derive(Clone, Copy)]
struct Head {
    id: u64,
    of: OverlayOf,
}

impl Head {
    fn encode(&self, count: u64) -> [u8; HEAD_BYTES] {
        let Self { id, of: OverlayOf { image, disk_bytes, unit_bytes, base } } = self;
        let BaseFacts { bytes: base_bytes, hash, format, file_bytes, modified } = base;
        let mut bytes = [0; HEAD_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&PRESENCE_VERSION.to_le_bytes());
        let words = [count, *id, *image, *disk_bytes, *unit_bytes, *base_bytes, *file_bytes];
        for (into, word) in bytes[8..64].chunks_exact_mut(8).zip(words) {
            into.copy_from_slice(&word.to_le_bytes());
        }
        bytes[64..72].copy_from_slice(&modified.0.to_le_bytes());
        bytes[72..76].copy_from_slice(&modified.1.to_le_bytes());
        bytes[76..80].copy_from_slice(&(*format as u32).to_le_bytes());
        bytes[80..CRC_AT].copy_from_slice(hash);
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEAD_BYTES]) -> Result<Slot<Self>, PresenceError> {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        if bytes[..4] != MAGIC || crc32c::crc32c(&bytes[..CRC_AT]) != half(CRC_AT) {
            return Err(PresenceError::NoMap);
        }
        if half(4) != PRESENCE_VERSION {
            return Err(PresenceError::Version(half(4)));
        }
        let format = match half(76) {
            1 => BaseFormat::Raw,
            2 => BaseFormat::Qcow2,
            _ => return Err(PresenceError::NoMap),
        };
        let base = BaseFacts {
            bytes: word(48),
            hash: std::array::from_fn(|i| bytes[80 + i]),
            format,
            file_bytes: word(56),
            modified: (word(64).cast_signed(), half(72)),
        };
        let of = OverlayOf { image: word(24), disk_bytes: word(32), unit_bytes: word(40), base };
        match of.unit_bytes {
            0 => Err(PresenceError::Unit(0)),
            _ => Ok((word(8), Self { id: word(16), of })),
        }
    }
}

type Bits = Box<[u8; BLOCK_BYTES - BLOCK_HEAD_BYTES]>;

fn crc(id: u64, number: u64, bits: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&id.to_le_bytes()), &number.to_le_bytes());
    crc32c::crc32c_append(crc, bits)
}

/// See the module.
pub struct PresenceMap<M> {
    medium: M,
    head: Head,
    count: u64,
    /// The slot of the head that may be torn; it is mended before the other one is written again.
    slot_behind: Option<u64>,
    blocks: Vec<Bits>,
    /// The copies of the blocks that may be torn; they are written before the others are again.
    behind: Option<usize>,
}

impl<M: Medium> PresenceMap<M> {
    /// Bytes that the map of such a disk takes.
    pub fn bytes_for(of: &OverlayOf) -> Result<u64, PresenceError> {
        match of.unit_bytes {
            0 => Err(PresenceError::Unit(0)),
            _ => Ok(of.map_bytes()),
        }
    }

    /// A new map, durable, of an overlay that has nothing yet. `id` differs from that of any map that was there before.
    pub fn create(medium: M, of: OverlayOf, id: u64) -> Result<Self, PresenceError> {
        let (need, has) = (Self::bytes_for(&of)?, medium.bytes()?);
        if has < need {
            return Err(PresenceError::Small { need, has });
        }
        let blocks = vec![Bits::new([0; _]); of.blocks() as usize];
        let head = Head { id, of };
        let mut map = Self { medium, head, count: 0, slot_behind: None, blocks, behind: None };
        // The blocks first: until the head names their id they are nobody's.
        map.write_again()?;
        map.write_head(head)?;
        Ok(map)
    }

    /// The map that an earlier process left of a disk of this size. A copy that is damaged is mended, and all of it is
    /// written again: what a flush that failed did not write the kernel forgets, while reads still show it.
    pub fn open(medium: M, disk_bytes: u64) -> Result<Self, PresenceError> {
        let (mut map, damaged) = Self::read(medium, disk_bytes)?;
        for (copy, number) in damaged {
            map.put(copy, number, &map.blocks[number as usize])?;
        }
        map.medium.sync()?;
        map.write_again()?;
        map.write_head(map.head)?;
        Ok(map)
    }

    /// The same, for those who only look.
    pub fn look(medium: M, disk_bytes: u64) -> Result<Self, PresenceError> {
        Ok(Self::read(medium, disk_bytes)?.0)
    }

    /// The map, and the copies of blocks that are damaged.
    fn read(medium: M, disk_bytes: u64) -> Result<(Self, Vec<(usize, u64)>), PresenceError> {
        let is_damage = |e: &PresenceError| matches!(e, PresenceError::NoMap);
        let found = slots::read(&medium, Head::decode, is_damage)?;
        let head = found.newest;
        if head.of.disk_bytes != disk_bytes {
            return Err(PresenceError::Size { map: head.of.disk_bytes, disk: disk_bytes });
        }
        let (need, has) = (head.of.map_bytes(), medium.bytes()?);
        if has < need {
            return Err(PresenceError::Small { need, has });
        }
        let mut damaged = Vec::new();
        let mut blocks = Vec::new();
        for number in 0..head.of.blocks() {
            let mut bits = Bits::new([0; _]);
            let mut sound = 0;
            for copy in 0..COPIES {
                let mut bytes = [0; BLOCK_BYTES];
                medium.read(place(copy, number), &mut bytes)?;
                let (crc_bytes, rest) = (&bytes[..4], &bytes[BLOCK_HEAD_BYTES..]);
                if crc_bytes == crc(head.id, number, rest).to_le_bytes() {
                    bits.iter_mut().zip(rest).for_each(|(all, more)| *all |= more);
                    sound += 1;
                } else {
                    damaged.push((copy, number));
                }
            }
            if sound == 0 {
                return Err(PresenceError::Damaged(number));
            }
            blocks.push(bits);
        }
        let (count, slot_behind) = (found.count, found.behind);
        Ok((Self { medium, head, count, slot_behind, blocks, behind: None }, damaged))
    }

    fn put(&self, copy: usize, number: u64, bits: &Bits) -> io::Result<()> {
        let mut bytes = [0; BLOCK_BYTES];
        bytes[..4].copy_from_slice(&crc(self.head.id, number, &bits[..]).to_le_bytes());
        bytes[BLOCK_HEAD_BYTES..].copy_from_slice(&bits[..]);
        self.medium.write(place(copy, number), &bytes)
    }

    fn put_all(&self, copy: usize) -> io::Result<()> {
        (0..).zip(&self.blocks).try_for_each(|(number, bits)| self.put(copy, number, bits))?;
        self.medium.sync()
    }

    /// Of a map whose copies are both whole.
    fn write_again(&mut self) -> io::Result<()> {
        (0..COPIES).try_for_each(|copy| self.put_all(copy))
    }

    fn write_head(&mut self, head: Head) -> io::Result<()> {
        if let Some(slot) = self.slot_behind {
            slots::write_one(&self.medium, slot, &self.head.encode(self.count))?;
        }
        self.count += 1;
        for slot in 0..2 {
            self.slot_behind = Some(slot);
            slots::write_one(&self.medium, slot, &head.encode(self.count))?;
        }
        (self.slot_behind, self.head) = (None, head);
        Ok(())
    }

    /// What the overlay is, and what lies under it.
    pub fn of(&self) -> &OverlayOf {
        &self.head.of
    }

    /// The base was read again, and has the same content in another file. Durable when it returns.
    pub fn note_base(&mut self, base: BaseFacts) -> Result<(), PresenceError> {
        let mut head = self.head;
        head.of.base = base;
        Ok(self.write_head(head)?)
    }

    /// The overlay has these units, durably. So has the map when this returns. After an error they count as absent;
    /// another attempt is right.
    pub fn add(&mut self, units: &[u64]) -> Result<(), PresenceError> {
        if let Some(copy) = self.behind {
            self.put_all(copy)?;
            self.behind = None;
        }
        let mut changed: BTreeMap<u64, Bits> = BTreeMap::new();
        for &unit in units.iter().filter(|unit| **unit < self.head.of.units()) {
            let (number, bit) = (unit / BITS_PER_BLOCK, unit % BITS_PER_BLOCK);
            let bits = changed.entry(number).or_insert_with(|| self.blocks[number as usize].clone());
            bits[(bit / 8) as usize] |= 1 << (bit % 8);
        }
        for copy in 0..COPIES {
            self.behind = Some(copy);
            changed.iter().try_for_each(|(&number, bits)| self.put(copy, number, bits))?;
            self.medium.sync()?;
        }
        self.behind = None;
        for (number, bits) in changed {
            self.blocks[number as usize] = bits;
        }
        Ok(())
    }

    /// The units that the overlay has, by number.
    pub fn present(&self) -> impl Iterator<Item = u64> {
        let bytes = self.blocks.iter().flat_map(|bits| bits.iter());
        let set = (0..).step_by(8).zip(bytes).filter(|(_, byte)| **byte != 0).flat_map(|(first, byte)| {
            let byte = *byte;
            (0..8).filter(move |bit| byte & 1 << bit != 0).map(move |bit| first + bit)
        });
        // The last block has room for more.
        set.take_while(|unit| *unit < self.head.of.units())
    }
}

fn place(copy: usize, number: u64) -> u64 {
    SLOTS_END + (number * COPIES as u64 + copy as u64) * BLOCK_BYTES as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::medium::MemoryMedium;

    #[test]
    fn a_bit_behind_the_last_unit_is_no_unit() {
        let base = BaseFacts {
            bytes: 40_960,
            hash: [3; 32],
            format: BaseFormat::Raw,
            file_bytes: 40_960,
            modified: (0, 0),
        };
        let of = OverlayOf { image: 1, disk_bytes: 40_960, unit_bytes: 4096, base };
        let medium = MemoryMedium::new(of.map_bytes() as usize);
        let mut map = PresenceMap::create(&medium, of, 4).unwrap();
        map.add(&[9]).unwrap();
        map.blocks[0][1] |= 1 << 2;
        map.write_again().unwrap();
        let map = PresenceMap::open(&medium, of.disk_bytes).unwrap();
        assert_eq!(map.present().collect::<Vec<_>>(), [9]);
    }
}
