//! A disk that is read and written in whole blocks, past the guest's page cache.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// What O_DIRECT wants addresses, places and lengths to be multiples of, at most.
pub const ALIGN: usize = 4096;
const O_DIRECT: i32 = 0x4000;

/// An open disk.
pub struct Disk {
    file: File,
    bytes: u64,
}

impl Disk {
    /// Opens a block device.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(path)?)
    }

    /// An open file, whatever the page cache does.
    pub fn of(mut file: File) -> io::Result<Self> {
        // A device's length is not in its metadata.
        let bytes = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, bytes })
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Fills the block from this place.
    pub fn read(&self, block: &mut Block, at: u64) -> io::Result<()> {
        self.file.read_exact_at(block.bytes_mut(), at)
    }

    /// Writes the block to this place.
    pub fn write(&self, block: &mut Block, at: u64) -> io::Result<()> {
        self.file.write_all_at(block.bytes_mut(), at)
    }

    /// Returns when all that was written is on stable storage.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Memory for a request, where O_DIRECT can have it.
pub struct Block {
    memory: Vec<u8>,
    at: usize,
    length: usize,
}

impl Block {
    /// Random bytes, which no compression makes smaller.
    pub fn random(length: usize, numbers: &mut Numbers) -> Self {
        let memory = vec![0; length + ALIGN];
        let at = memory.as_ptr().align_offset(ALIGN);
        let mut block = Self { memory, at, length };
        block
            .bytes_mut()
            .chunks_mut(8)
            .for_each(|word| word.copy_from_slice(&numbers.draw().to_le_bytes()[..word.len()]));
        block
    }

    /// Changes every page of it: what is written next was never written before.
    pub fn renew(&mut self, numbers: &mut Numbers) {
        self.bytes_mut()
            .chunks_mut(ALIGN)
            .for_each(|page| page[..8].copy_from_slice(&numbers.draw().to_le_bytes()));
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.at..self.at + self.length]
    }
}

/// Random numbers (splitmix64).
pub struct Numbers(u64);

impl Numbers {
    /// Those of this seed.
    pub fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0xd134_2543_de82_ef95))
    }

    /// The next one.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
