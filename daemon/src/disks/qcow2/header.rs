//! The header of a qcow2 file: what it says of the disk, and what keeps ftd from reading it. Nothing that it says is
//! trusted.

use super::Qcow2Error;
use ft_disk::SECTOR_BYTES;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes of a header of version 2, and of one of version 3 at least.
const V2_BYTES: usize = 72;
const V3_BYTES: usize = 104;
/// As QEMU has it: between these a cluster's bytes are.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// As QEMU has it: no larger are the table of refcount blocks and the first table of the mapping.
const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
const L1_BYTES_MAX: u64 = 32 << 20;
/// The longest name of a backing file.
const NAME_BYTES_MAX: u32 = 1023;

/// Incompatible features.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;

/// Where the mapping and the refcounts of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    /// Of the disk.
    pub(super) disk_bytes: u64,
    pub(super) l1_offset: u64,
    /// Of the first table: those that the disk takes.
    pub(super) l1_entries: u64,
    pub(super) refcount_table_offset: u64,
    pub(super) refcount_table_bytes: u64,
    /// A refcount has 2 to the power of so many bits.
    pub(super) refcount_order: u32,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |long, byte| long << 8 | u64::from(*byte))
}

impl Header {
    /// Reads and judges it.
    pub(super) fn read(file: &File, file_bytes: u64) -> Result<Self, Qcow2Error> {
        let mut bytes = [0; V3_BYTES + 8];
        let held = bytes.len().min(file_bytes.try_into().unwrap_or(usize::MAX));
        if held < V2_BYTES {
            return Err(Qcow2Error::Damaged("its header is cut".into()));
        }
        file.read_exact_at(&mut bytes[..held], 0)?;
        let version = word(&bytes, 4);
        if !matches!(version, 2 | 3) {
            return Err(Qcow2Error::Version(version));
        }
        if long(&bytes, 8) != 0 {
            return Err(Qcow2Error::Backing { name: backing_name(file, &bytes) });
        }
        match word(&bytes, 32) {
            0 => {}
            1 => return Err(Qcow2Error::Encrypted("AES")),
            2 => return Err(Qcow2Error::Encrypted("LUKS")),
            _ => return Err(Qcow2Error::Encrypted("a method that ftd does not know")),
        }
        let refcount_order = if version == 2 { 4 } else { newer(&bytes[..held])? };
        let header = Self {
            version,
            cluster_bits: word(&bytes, 20),
            disk_bytes: long(&bytes, 24),
            l1_offset: long(&bytes, 40),
            l1_entries: u64::from(word(&bytes, 36)),
            refcount_table_offset: long(&bytes, 48),
            refcount_table_bytes: u64::from(word(&bytes, 56)),
            refcount_order,
        };
        header.judged(file_bytes)
    }

    fn judged(mut self, file_bytes: u64) -> Result<Self, Qcow2Error> {
        let damaged = |what: &str| Err(Qcow2Error::Damaged(what.into()));
        if !CLUSTER_BITS.contains(&self.cluster_bits) {
            return damaged("its clusters have no size that there is");
        }
        if self.refcount_order > 6 {
            return damaged("its refcounts have no size that there is");
        }
        if self.disk_bytes == 0 || !self.disk_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Qcow2Error::Size(self.disk_bytes));
        }
        let needed = self.disk_bytes.div_ceil(self.cluster_bytes() * self.l2_entries());
        if self.l1_entries < needed || needed > L1_BYTES_MAX / 8 {
            return damaged("its first table does not fit its disk");
        }
        self.l1_entries = needed;
        self.refcount_table_bytes <<= self.cluster_bits;
        if self.refcount_table_bytes == 0 || self.refcount_table_bytes > REFCOUNT_TABLE_BYTES_MAX {
            return damaged("its refcount table has no size that there is");
        }
        for (offset, bytes) in
            [(self.l1_offset, self.l1_entries * 8), (self.refcount_table_offset, self.refcount_table_bytes)]
        {
            let is_inside = offset.checked_add(bytes).is_some_and(|end| end <= file_bytes);
            if !offset.is_multiple_of(self.cluster_bytes()) || !is_inside || offset == 0 {
                return damaged("a table of it is where none can be, or it was cut");
            }
        }
        Ok(self)
    }

    pub(super) fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Of a second table, which is a cluster.
    pub(super) fn l2_entries(&self) -> u64 {
        self.cluster_bytes() / 8
    }
}

/// What version 3 says besides: the size of a refcount, as an exponent.
fn newer(bytes: &[u8]) -> Result<u32, Qcow2Error> {
    if bytes.len() < V3_BYTES || (word(bytes, 100) as usize) < V3_BYTES {
        return Err(Qcow2Error::Damaged("its header is cut".into()));
    }
    let features = long(bytes, 72);
    let is = |feature| features & feature != 0;
    if is(EXTERNAL_DATA) {
        return Err(Qcow2Error::ExternalData);
    }
    if is(CORRUPT | DIRTY) {
        return Err(Qcow2Error::Unclean);
    }
    match features {
        0 => Ok(word(bytes, 96)),
        // Among them zstd, and clusters that are allocated in parts.
        unknown => Err(Qcow2Error::Features(unknown)),
    }
}

/// For the message only: nobody opens it.
fn backing_name(file: &File, header: &[u8]) -> String {
    let mut name = vec![0; word(header, 16).min(NAME_BYTES_MAX) as usize];
    match file.read_exact_at(&mut name, long(header, 8)) {
        Ok(()) => String::from_utf8_lossy(&name).into_owned(),
        Err(_) => String::new(),
    }
}
