//! The bytes of an input, as numbers and pieces, and as files. Where they end, zeros follow.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// An input that is read from its beginning on.
pub struct FuzzInput<'a>(&'a [u8]);

impl<'a> FuzzInput<'a> {
    /// All of it.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next so many bytes, or what is left.
    pub fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// The next bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let taken = self.take(N);
        std::array::from_fn(|i| taken.get(i).copied().unwrap_or(0))
    }

    /// The next byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// The next two bytes, little-endian.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// The next four bytes, little-endian.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// The next eight bytes, little-endian.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A piece behind its length in two bytes.
    pub fn piece(&mut self) -> &'a [u8] {
        let bytes = self.u16();
        self.take(bytes.into())
    }
}

/// The other way round: a piece behind its length. One that is too long is cut.
pub fn put_piece(into: &mut Vec<u8>, piece: &[u8]) {
    let piece = &piece[..piece.len().min(u16::MAX.into())];
    into.extend_from_slice(&(piece.len() as u16).to_le_bytes());
    into.extend_from_slice(piece);
}

/// A file that holds this and has no name, and a path that opens it for as long as it is there.
pub fn file(content: &[u8]) -> (File, PathBuf) {
    let mut file = tempfile::tempfile().expect("there is room for a file");
    file.write_all(content).expect("there is room for it");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    (file, path)
}

/// A disk or a file, of which most is zero: pieces, each behind the place where it lies.
pub fn sparse(input: &mut FuzzInput<'_>, bytes_max: usize) -> Vec<u8> {
    let mut all = vec![0; (input.u32() as usize).min(bytes_max)];
    while !input.is_empty() {
        let at = input.u32() as usize;
        let piece = input.piece();
        if let Some(place) = all.get_mut(at..at + piece.len()) {
            place.copy_from_slice(piece);
        }
    }
    all
}

/// The input that [`sparse`] makes this of.
pub fn put_sparse(into: &mut Vec<u8>, all: &[u8]) {
    const UNIT: usize = 64;
    into.extend_from_slice(&(all.len() as u32).to_le_bytes());
    let is_zero = |unit: &[u8]| unit.iter().all(|byte| *byte == 0);
    let mut at = 0;
    while at < all.len() {
        let run =
            all[at..].chunks(UNIT).take_while(|unit| !is_zero(unit)).take(u16::MAX as usize / UNIT).count();
        if run == 0 {
            at += UNIT;
            continue;
        }
        let end = all.len().min(at + run * UNIT);
        into.extend_from_slice(&(at as u32).to_le_bytes());
        put_piece(into, &all[at..end]);
        at = end;
    }
}
