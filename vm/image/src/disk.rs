//! The disk that is read, and parts of it. All that is read is counted: an image whose structures lead in a circle
//! comes to an end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::rc::Rc;

/// A disk, by offsets in bytes.
pub trait ReadAt {
    /// Its size in bytes.
    fn bytes(&self) -> u64;

    /// Fills `into` with what the disk has from this byte on; all of it lies in the disk.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for Vec<u8> {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|at| self.get(at..at.checked_add(into.len())?));
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// What is asked of the disk in one go.
const BLOCK_BYTES: u64 = 128 << 10;
/// Blocks that are remembered.
const BLOCKS_MAX: usize = 128;
/// What all reads together may come to. A kernel and its initrd are a small part of it.
const READ_BYTES_MAX: u64 = 8 << 30;
/// What a read counts for at least.
const READ_COST_MIN: u64 = 256;

/// A part of a disk, or all of it.
#[derive(Clone)]
pub(crate) struct Part {
    disk: Rc<Counted>,
    range: Range<u64>,
}

struct Counted {
    disk: Box<dyn ReadAt>,
    left: Cell<u64>,
    blocks: RefCell<BTreeMap<u64, Vec<u8>>>,
}

impl Part {
    /// All of a disk.
    pub(crate) fn whole(disk: Box<dyn ReadAt>) -> Self {
        let range = 0..disk.bytes();
        let left = Cell::new(READ_BYTES_MAX);
        Self { disk: Rc::new(Counted { disk, left, blocks: RefCell::default() }), range }
    }

    /// A part of this one, which has it.
    pub(crate) fn part(&self, range: &Range<u64>) -> Option<Self> {
        let start = self.range.start.checked_add(range.start)?;
        let end = self.range.start.checked_add(range.end)?;
        (start <= end && end <= self.range.end)
            .then(|| Self { disk: Rc::clone(&self.disk), range: start..end })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Fills `into` with what there is from this byte on. Beyond the end is an error.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let range = offset..offset.checked_add(into.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        if range.end > self.bytes() {
            let text = format!("byte {} is beyond the end ({} bytes)", range.end, self.bytes());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        self.disk.read(self.range.start + offset, into)
    }

    /// So many bytes from this one on.
    pub(crate) fn array<const N: usize>(&self, offset: u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }
}

impl Counted {
    fn read(&self, mut at: u64, mut into: &mut [u8]) -> io::Result<()> {
        let cost = READ_COST_MIN.max(into.len() as u64);
        let Some(left) = self.left.get().checked_sub(cost) else {
            return Err(io::Error::other("its structures lead nowhere: far more was read than it can mean"));
        };
        self.left.set(left);
        while !into.is_empty() {
            let start = at - at % BLOCK_BYTES;
            let mut blocks = self.blocks.borrow_mut();
            if !blocks.contains_key(&start) {
                let mut block = vec![0; BLOCK_BYTES.min(self.disk.bytes() - start) as usize];
                self.disk.read_at(&mut block, start)?;
                if blocks.len() >= BLOCKS_MAX {
                    blocks.clear();
                }
                blocks.insert(start, block);
            }
            let from = blocks.get(&start).map_or(&[][..], |block| &block[(at - start) as usize..]);
            let length = from.len().min(into.len());
            into[..length].copy_from_slice(&from[..length]);
            into = &mut into[length..];
            at += length as u64;
        }
        Ok(())
    }
}

/// Numbers of a table, in the order of bytes that the field has.
pub(crate) mod number {
    fn at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
        std::array::from_fn(|i| bytes.get(at + i).copied().unwrap_or(0))
    }

    pub(crate) fn u16_le(bytes: &[u8], offset: usize) -> u16 {
        u16::from_le_bytes(at(bytes, offset))
    }

    pub(crate) fn u32_le(bytes: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(at(bytes, offset))
    }

    pub(crate) fn u64_le(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(at(bytes, offset))
    }

    pub(crate) fn u16_be(bytes: &[u8], offset: usize) -> u16 {
        u16::from_be_bytes(at(bytes, offset))
    }

    pub(crate) fn u32_be(bytes: &[u8], offset: usize) -> u32 {
        u32::from_be_bytes(at(bytes, offset))
    }
}
