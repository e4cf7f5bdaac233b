//! Reading and writing at positions that count on over the ring's end.

use super::record::{Entry, HEAD_BYTES, Head, Place, span};
use super::superblock::RING_START;
use crate::medium::Medium;
use std::io;

/// A record begins at a multiple of so many bytes.
const STEP: u64 = 8;
/// What is read at once in the search for heads.
const PIECE_BYTES: u64 = 1 << 20;

pub(super) struct Ring<M> {
    pub(super) medium: M,
    pub(super) bytes: u64,
}

impl<M: Medium> Ring<M> {
    /// The part up to the ring's end, and where in the medium it lies.
    fn first(&self, at: u64, length: usize) -> (u64, usize) {
        let within = at % self.bytes;
        let left = self.bytes - within;
        (RING_START + within, usize::try_from(left).map_or(length, |left| left.min(length)))
    }

    pub(super) fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let (place, first) = self.first(at, into.len());
        let (before, after) = into.split_at_mut(first);
        self.medium.read(place, before)?;
        match after {
            [] => Ok(()),
            after => self.medium.read(RING_START, after),
        }
    }

    pub(super) fn write(&self, at: u64, from: &[u8]) -> io::Result<()> {
        let (place, first) = self.first(at, from.len());
        let (before, after) = from.split_at(first);
        self.medium.write(place, before)?;
        match after {
            [] => Ok(()),
            after => self.medium.write(RING_START, after),
        }
    }

    /// Puts a record there, and says how many bytes it takes.
    pub(super) fn put(&self, at: u64, place: Place, entry: &Entry<'_>) -> io::Result<u64> {
        let (head, payload) = entry.encode(place);
        self.write(at, &head)?;
        if !payload.is_empty() {
            self.write(at + HEAD_BYTES as u64, payload)?;
        }
        Ok(span(payload.len()))
    }

    /// The head of a record, if one is there.
    pub(super) fn head(&self, at: u64) -> io::Result<Option<Head>> {
        let mut bytes = [0; HEAD_BYTES];
        self.read(at, &mut bytes)?;
        Ok(Head::parse(bytes))
    }

    /// Whatever looks like a head between these positions, which are less than a lap apart, or one. It is read in large
    /// pieces: a head may begin at each eighth byte.
    pub(super) fn heads(&self, from: u64, to: u64) -> Heads<'_, M> {
        Heads { ring: self, at: from, to, piece: Vec::new(), piece_at: from }
    }

    /// The whole record behind a head, and how many bytes it takes; none: it is not whole.
    pub(super) fn entry(&self, at: u64, head: &Head) -> io::Result<Option<(Entry<'static>, u64)>> {
        let bytes = span(head.payload_bytes);
        if bytes > self.bytes {
            return Ok(None);
        }
        let mut payload = vec![0; head.payload_bytes];
        self.read(at + HEAD_BYTES as u64, &mut payload)?;
        Ok(head.decode(payload).map(|entry| (entry, bytes)))
    }
}

/// See [`Ring::heads`].
pub(super) struct Heads<'a, M> {
    ring: &'a Ring<M>,
    at: u64,
    to: u64,
    piece: Vec<u8>,
    piece_at: u64,
}

impl<M: Medium> Heads<'_, M> {
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, Head)>> {
        while self.at < self.to {
            let begins = (self.at - self.piece_at) as usize;
            let Some(bytes) = self.piece.get(begins..).and_then(|rest| rest.first_chunk::<HEAD_BYTES>())
            else {
                self.read_on()?;
                continue;
            };
            let at = self.at;
            self.at += STEP;
            if let Some(head) = Head::parse(*bytes) {
                return Ok(Some((at, head)));
            }
        }
        Ok(None)
    }

    /// The next piece: with the whole of a head that begins at its last step.
    fn read_on(&mut self) -> io::Result<()> {
        let bytes = (self.to - self.at).min(PIECE_BYTES) + HEAD_BYTES as u64;
        self.piece.resize(bytes.min(self.ring.bytes).max(HEAD_BYTES as u64) as usize, 0);
        self.piece_at = self.at;
        self.ring.read(self.at, &mut self.piece)
    }
}
