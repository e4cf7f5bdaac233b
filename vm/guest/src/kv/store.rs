//! The store: keys and values in memory, with a bound on all of it.

use super::alloc::boxed::Box;
use super::alloc::collections::BTreeMap;
use super::alloc::vec::Vec;
use super::hash::Digest;
use super::request::decimal;
use super::{KEY_MAX, VALUE_MAX};
use core::fmt;

/// Keys and their values.
#[derive(Debug)]
pub struct Store {
    entries: BTreeMap<Box<[u8]>, Vec<u8>>,
    bytes: usize,
    bytes_max: usize,
}

/// Bytes that an entry is charged beyond its key and value: the tree's and the allocator's share.
const ENTRY_BYTES: usize = 128;

/// Why the store refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// The store's bound is reached.
    Full,
    /// The value would be longer than [`VALUE_MAX`].
    TooLong,
    /// `INCR` on what is not a number, or is the largest one.
    NotANumber,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("full"),
            Self::TooLong => write!(f, "value longer than {VALUE_MAX} bytes"),
            Self::NotANumber => f.write_str("value is not a number that can be incremented"),
        }
    }
}

impl Store {
    /// An empty store that holds at most `bytes_max` bytes, keys and bookkeeping included.
    pub fn new(bytes_max: usize) -> Self {
        Self { entries: BTreeMap::new(), bytes: 0, bytes_max }
    }

    /// A key's value.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.entries.get(key).map(Vec::as_slice)
    }

    /// Sets a key's value.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let entry = self.entry(key, value.len())?;
        entry.clear();
        entry.extend_from_slice(value);
        Ok(())
    }

    /// Appends to a key's value; returns its new length.
    pub fn append(&mut self, key: &[u8], value: &[u8]) -> Result<usize, StoreError> {
        let length = self.get(key).map_or(0, <[u8]>::len) + value.len();
        let entry = self.entry(key, length)?;
        entry.extend_from_slice(value);
        Ok(length)
    }

    /// Adds one to a decimal number; a missing key counts as 0.
    pub fn increment(&mut self, key: &[u8]) -> Result<u64, StoreError> {
        let number = match self.get(key) {
            None => 0,
            Some(value) => decimal(value).ok_or(StoreError::NotANumber)?,
        };
        let number = number.checked_add(1).ok_or(StoreError::NotANumber)?;
        let mut digits = [0; 20];
        self.set(key, print_decimal(number, &mut digits))?;
        Ok(number)
    }

    /// Removes a key; says whether it was there.
    pub fn delete(&mut self, key: &[u8]) -> bool {
        match self.entries.remove(key) {
            Some(value) => {
                self.bytes -= cost(key, value.len());
                true
            }
            None => false,
        }
    }

    /// The value of `key`, created empty if missing, once it is sure that it may have `length` bytes.
    fn entry(&mut self, key: &[u8], length: usize) -> Result<&mut Vec<u8>, StoreError> {
        debug_assert!(key.len() <= KEY_MAX);
        if length > VALUE_MAX {
            return Err(StoreError::TooLong);
        }
        let old_cost = self.entries.get(key).map_or(0, |value| cost(key, value.len()));
        let bytes = self.bytes - old_cost + cost(key, length);
        if bytes > self.bytes_max {
            return Err(StoreError::Full);
        }
        self.bytes = bytes;
        if old_cost == 0 {
            self.entries.insert(key.into(), Vec::new());
        }
        Ok(self.entries.get_mut(key).expect("was there, or was inserted in the line above"))
    }

    /// Digest over all keys and values in the order of the keys.
    pub fn digest(&self) -> u64 {
        let mut digest = Digest::default();
        for (key, value) in &self.entries {
            digest.bytes(key);
            digest.bytes(value);
        }
        digest.finish()
    }

    /// Number of keys.
    pub fn keys(&self) -> usize {
        self.entries.len()
    }

    /// Bytes charged.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that may be charged.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }
}

/// What an entry is charged. Values are charged twice: a growing one has up to twice its bytes set aside.
fn cost(key: &[u8], value_bytes: usize) -> usize {
    key.len() + 2 * value_bytes + ENTRY_BYTES
}

fn print_decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}
