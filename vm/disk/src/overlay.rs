//! An image over a base: of the image only the units that are present count, the others are in the base, which is only
//! read. A unit is copied up, durably, before the first write into it: the base's content is written into the image and
//! flushed, and then the unit is recorded as present, durably. So a crash at any moment leaves the base's content or
//! the whole unit, and from then on the unit is like any other part of an image.
//!
//! ```text
//!   write, zeroes ── absent units ──> wanted ── one round for all who wait ──> copy, flush, record ──> as on any image
//!   read ── present ──> image
//!        └─ absent ───> base
//! ```
//!
//! A unit that is to be zeroed as a whole is zeroed instead of copied: a discard of a disk reads nothing of its base.

use crate::buffer::Buffer;
use crate::image::next_data;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Units that are copied in one round: more wait for the next one.
const ROUND_UNITS: usize = 4096;

/// Fills a buffer with what the base has from a byte on: zeroes, where it has ended. Called on any thread.
pub type ReadBase = Box<dyn Fn(&mut [u8], u64) -> io::Result<()> + Send + Sync>;
/// Makes durable that the image has these units.
pub type RecordPresent = Box<dyn FnMut(&[u64]) -> io::Result<()> + Send>;

/// What lies under an image, and which units of the disk the image has.
pub struct UnderImage {
    /// Names the base by its content: the same for the same.
    pub base: u64,
    /// Reads it.
    pub read: ReadBase,
    /// Bytes of a unit, a multiple of 4096.
    pub unit_bytes: u64,
    /// The units that are present.
    pub present: Vec<u64>,
    /// Takes those that come.
    pub record: RecordPresent,
}

/// How an absent unit comes into the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fill {
    /// Zeroed: all of it will be zeroes.
    Zeroes,
    /// From the base.
    Base,
}

#[derive(Default)]
struct Rounds {
    wanted: BTreeMap<u64, Fill>,
    is_under_way: bool,
}

/// See the module.
pub struct Overlay {
    /// The image, opened once more: the kernel tells each of a file's openings of a write that failed.
    image: File,
    disk_bytes: u64,
    base: u64,
    unit_bytes: u64,
    read: ReadBase,
    /// A bit a unit.
    present: Vec<AtomicU64>,
    rounds: Mutex<Rounds>,
    changed: Condvar,
    record: Mutex<RecordPresent>,
}

impl Overlay {
    pub(crate) fn new(image: File, disk_bytes: u64, under: UnderImage) -> Self {
        let UnderImage { base, read, unit_bytes, present, record } = under;
        let words = disk_bytes.div_ceil(unit_bytes).div_ceil(64);
        let overlay = Self {
            image,
            disk_bytes,
            base,
            unit_bytes,
            read,
            present: (0..words).map(|_| AtomicU64::new(0)).collect(),
            rounds: Mutex::default(),
            changed: Condvar::new(),
            record: Mutex::new(record),
        };
        present.into_iter().for_each(|unit| overlay.set(unit));
        overlay
    }

    /// Names the base by its content.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Where the image has what the disk has, as runs of bytes.
    pub fn present(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for unit in (0..self.disk_bytes.div_ceil(self.unit_bytes)).filter(|unit| self.has(*unit)) {
            let bytes = self.bytes_of(unit);
            match runs.last_mut() {
                Some(run) if run.end == bytes.start => run.end = bytes.end,
                _ => runs.push(bytes),
            }
        }
        runs
    }

    fn set(&self, unit: u64) {
        if let Some(word) = self.present.get((unit / 64) as usize) {
            // What it says is in the image: whoever reads it must see that.
            word.fetch_or(1 << (unit % 64), Ordering::Release);
        }
    }

    fn has(&self, unit: u64) -> bool {
        let word = self.present.get((unit / 64) as usize);
        word.is_none_or(|word| word.load(Ordering::Acquire) & 1 << (unit % 64) != 0)
    }

    fn units(&self, bytes: &Range<u64>) -> Range<u64> {
        bytes.start / self.unit_bytes..bytes.end.div_ceil(self.unit_bytes)
    }

    fn bytes_of(&self, unit: u64) -> Range<u64> {
        let start = unit * self.unit_bytes;
        start..(start + self.unit_bytes).min(self.disk_bytes)
    }

    /// Whether the image has all of these bytes.
    pub(crate) fn covers(&self, bytes: &Range<u64>) -> bool {
        self.units(bytes).all(|unit| self.has(unit))
    }

    /// The first of these bytes that the image does not have, or their end.
    pub(crate) fn first_absent(&self, bytes: &Range<u64>) -> u64 {
        let within = bytes.start..bytes.end.min(self.disk_bytes);
        let absent = self.units(&within).find(|unit| !self.has(*unit));
        absent.map_or(bytes.end, |unit| self.bytes_of(unit).start.max(bytes.start))
    }

    /// The bytes in pieces, each with whether it is in the image.
    pub(crate) fn pieces(&self, bytes: &Range<u64>) -> Vec<(Range<u64>, bool)> {
        let mut pieces: Vec<(Range<u64>, bool)> = Vec::new();
        for unit in self.units(bytes) {
            let of = self.bytes_of(unit);
            let (piece, has) = (of.start.max(bytes.start)..of.end.min(bytes.end), self.has(unit));
            match pieces.last_mut() {
                Some((last, had)) if *had == has => last.end = piece.end,
                _ => pieces.push((piece, has)),
            }
        }
        pieces
    }

    /// Reads the base.
    pub(crate) fn read_base(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        (self.read)(into, offset)
    }

    /// Has the image have all of these bytes before they are written, or zeroed.
    pub(crate) fn copy_up(&self, bytes: &Range<u64>, fill: Fill) -> io::Result<()> {
        let units = self.units(bytes);
        for first in units.clone().step_by(ROUND_UNITS) {
            self.copy_up_units(first..(first + ROUND_UNITS as u64).min(units.end), bytes, fill)?;
        }
        Ok(())
    }

    fn copy_up_units(&self, units: Range<u64>, bytes: &Range<u64>, fill: Fill) -> io::Result<()> {
        let absent = || units.clone().filter(|unit| !self.has(*unit));
        if absent().next().is_none() {
            return Ok(());
        }
        let mut rounds = self.rounds.lock();
        loop {
            let mut are_present = true;
            for unit in absent() {
                are_present = false;
                let of = self.bytes_of(unit);
                let is_whole = bytes.start <= of.start && of.end <= bytes.end;
                let fill = if is_whole { fill } else { Fill::Base };
                // Who needs the base's content gets it; zeroes come over it.
                rounds.wanted.entry(unit).and_modify(|wanted| *wanted = fill.max(*wanted)).or_insert(fill);
            }
            if are_present {
                return Ok(());
            }
            if rounds.is_under_way {
                self.changed.wait(&mut rounds);
                continue;
            }
            let mut wanted = std::mem::take(&mut rounds.wanted);
            // Those that the last round has made present may have been written since: the base's content is no more.
            wanted.retain(|unit, _| !self.has(*unit));
            rounds.is_under_way = true;
            // After an error whoever else waits for a unit of it tries that unit itself.
            MutexGuard::unlocked(&mut rounds, || {
                let _end = EndOfRound(self);
                self.round(&wanted)
            })?;
        }
    }

    /// Copies, flushes, records, and then shows.
    fn round(&self, wanted: &BTreeMap<u64, Fill>) -> io::Result<()> {
        let mut buffer = Buffer::zeroed(self.unit_bytes as usize);
        for (&unit, &fill) in wanted {
            let bytes = self.bytes_of(unit);
            let content = &mut buffer[..(bytes.end - bytes.start) as usize];
            match fill {
                Fill::Zeroes => content.fill(0),
                Fill::Base => self.read_base(content, bytes.start)?,
            }
            // What a round that did not end has left there is not zero.
            let is_zero = content.iter().all(|byte| *byte == 0);
            if !(is_zero && next_data(&self.image, bytes.start) >= bytes.end) {
                self.image.write_all_at(content, bytes.start)?;
            }
        }
        self.image.sync_data()?;
        let units: Vec<u64> = wanted.keys().copied().collect();
        (self.record.lock())(&units)?;
        units.into_iter().for_each(|unit| self.set(unit));
        Ok(())
    }
}

/// However a round ends, the next one can begin.
struct EndOfRound<'o>(&'o Overlay);

impl Drop for EndOfRound<'_> {
    fn drop(&mut self) {
        self.0.rounds.lock().is_under_way = false;
        self.0.changed.notify_all();
    }
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Overlay(units of {} bytes over base {:016x})", self.unit_bytes, self.base)
    }
}

#[cfg(test)]
mod tests;
