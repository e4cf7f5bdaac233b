//! A ledger in one file of 256 slots of 32 KiB, `slots`. Entry n is written into slot n modulo 256, over what was
//! there, and is kept once `fdatasync` has returned. At most one entry is being written at a time.
//!
//! | bytes of a slot | |
//! |---|---|
//! | 0..8 | `FTLEDGER` |
//! | 8..16 | the entry's number, little-endian |
//! | 16..24 | length of its body, little-endian |
//! | 24..32 | FNV-1a (64 bits) of bytes 8..24 and of the body, little-endian |
//! | 32.. | the body: what the number determines (`content`) |
//!
//! The rest of a slot is what longer entries left there.

use super::content::{Draw, checksum, last_in};
use super::durable::sync_directory;
use super::trouble::Trouble;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The file's name in the ledger's directory.
pub const FILE: &str = "slots";
/// Slots of the file.
pub const SLOTS: u64 = 256;
/// Bytes of a slot.
pub const SLOT_BYTES: usize = 32 << 10;
const LABEL: &[u8; 8] = b"FTLEDGER";
const HEAD: usize = 32;

/// The file, open for writing.
pub struct Slots {
    file: File,
    path: PathBuf,
}

impl Slots {
    /// Opens it, or makes it.
    pub fn open(directory: &Path) -> Result<Self, Trouble> {
        let path = directory.join(FILE);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(Trouble::system("open", &path))?;
        sync_directory(directory)?;
        Ok(Self { file, path })
    }

    /// Writes an entry for good.
    pub fn commit(&mut self, number: u64) -> Result<(), Trouble> {
        let at = number % SLOTS * SLOT_BYTES as u64;
        self.file.write_all_at(&record(number), at).map_err(Trouble::system("write", &self.path))?;
        self.file.sync_data().map_err(Trouble::system("sync", &self.path))
    }
}

/// What an entry looks like in its slot.
pub fn record(number: u64) -> Vec<u8> {
    let mut draw = Draw::of(number);
    let bytes = draw.between(1, SLOT_BYTES - HEAD);
    let body = draw.bytes(bytes);
    let mut counted = Vec::with_capacity(16 + bytes);
    counted.extend(number.to_le_bytes());
    counted.extend((bytes as u64).to_le_bytes());
    counted.extend(body);
    let sum = checksum(&counted);
    let mut record = Vec::with_capacity(HEAD + bytes);
    record.extend(LABEL);
    record.extend(&counted[..16]);
    record.extend(sum.to_le_bytes());
    record.extend(&counted[16..]);
    record
}

/// What is found in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Entry(u64),
    Torn,
}

fn found_in(slot: &[u8]) -> Found {
    if slot.iter().all(|byte| *byte == 0) {
        return Found::Nothing;
    }
    let number = slot.get(8..16).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    match number {
        Some(number) if slot.starts_with(&record(number)) => Found::Entry(number),
        _ => Found::Torn,
    }
}

/// Reads all, and says which entry is the last: every slot has the newest entry that belongs there, but for the one
/// that was to be written next.
pub fn verify(directory: &Path) -> Result<u64, Trouble> {
    let path = directory.join(FILE);
    let file = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(Trouble::system("read", &path)(error)),
    };
    let found = |place: u64| {
        let begin = (place as usize * SLOT_BYTES).min(file.len());
        found_in(&file[begin..(begin + SLOT_BYTES).min(file.len())])
    };
    let found: Vec<_> = (0..SLOTS).map(found).collect();
    let last = found.iter().map(|found| if let Found::Entry(number) = found { *number } else { 0 });
    let last = last.max().unwrap_or(0);
    for (place, found) in (0..SLOTS).zip(found) {
        let right = last_in(place, SLOTS, last).map_or(Found::Nothing, Found::Entry);
        let is_next = place == (last + 1) % SLOTS;
        if found != right && !(is_next && found == Found::Torn) {
            return Trouble::damage(format!(
                "slot {place} has {found:?}, not {right:?}; the last is entry {last}"
            ));
        }
    }
    Ok(last)
}
