//! Reading and writing at positions that count on over the ring's end.

use super::record::{Entry, HEAD_BYTES, Head, Place, span};
use super::superblock::RING_START;
use crate::medium::Medium;
use std::io;

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
