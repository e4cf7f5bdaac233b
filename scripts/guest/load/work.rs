//! What is done to the disk: a load for a fixed time, or a change in some of its extents. Requests are in flight
//! together by threads, each of which has one. Figures are by the guest's own clock.

use super::disk::{ALIGN, Block, Disk, Numbers};
use std::fmt::{self, Display};
use std::io;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{Result as Joined, scope};
use std::time::{Duration, Instant, SystemTime};

/// Most requests in flight.
pub const INFLIGHT_MAX: usize = 8;
/// Bytes of the largest request.
pub const BLOCK_MAX: usize = 1 << 20;
/// The coarse part of a disk in which the hosts note that something has changed.
pub const EXTENT_BYTES: u64 = 1 << 20;

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From the disk.
    Read,
    /// To the disk.
    Write,
    /// To the disk, and the disk's cache is flushed after each request.
    FlushedWrite,
}

/// Where one request is after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Anywhere.
    Random,
    /// Behind it; at the disk's end, at its beginning.
    Sequential,
}

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// What is asked for.
    pub kind: Kind,
    /// Where.
    pub order: Order,
    /// Bytes of a request.
    pub block_bytes: usize,
    /// Requests at a time.
    pub inflight: usize,
    /// For how long.
    pub length: Duration,
}

/// What a load came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Until the first request: the making of the data.
    pub prepared: Duration,
    /// From there until the last one was done.
    pub took: Duration,
    /// Bytes of a request.
    pub block_bytes: usize,
    /// What each request took, its flush included, in microseconds; sorted.
    pub times_us: Vec<u64>,
}

impl Figures {
    /// That many of a hundred took at most so long; 0 of none.
    pub fn at(&self, part: usize) -> u64 {
        let last = self.times_us.len().saturating_sub(1);
        self.times_us.get(last * part / 100).copied().unwrap_or(0)
    }
}

/// A JSON object, on one line.
impl Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (requests, us) = (self.times_us.len(), self.took.as_micros());
        let prepared_us = self.prepared.as_micros();
        let bytes = requests as u64 * self.block_bytes as u64;
        write!(f, r#"{{"requests":{requests},"bytes":{bytes},"prepared_us":{prepared_us},"us":{us},"#)?;
        write!(f, r#""p50_us":{},"p99_us":{},"max_us":{}}}"#, self.at(50), self.at(99), self.at(100))
    }
}

/// Loads the disk.
pub fn run(disk: &Disk, load: &Load) -> io::Result<Figures> {
    let blocks = disk.bytes() / load.block_bytes as u64;
    if blocks == 0 {
        return Err(io::Error::other("the disk is smaller than a request"));
    }
    let (asked_at, seed) = (Instant::now(), seed());
    let (next, ready) = (AtomicU64::new(0), Barrier::new(load.inflight));
    let done = together(load.inflight, |worker| {
        let mut numbers = Numbers::of(seed + worker);
        let mut block = Block::random(load.block_bytes, &mut numbers);
        let mut times_us = Vec::new();
        // To make the data takes a slow processor longer than to write it.
        ready.wait();
        let began = Instant::now();
        while began.elapsed() < load.length {
            let place = match load.order {
                Order::Random => numbers.draw() % blocks,
                Order::Sequential => next.fetch_add(1, Ordering::Relaxed) % blocks,
            };
            block.renew(&mut numbers);
            let asked = Instant::now();
            request(disk, load.kind, &mut block, place * load.block_bytes as u64)?;
            times_us.push(asked.elapsed().as_micros() as u64);
        }
        Ok((began, Instant::now(), times_us))
    })?;
    let began = done.iter().map(|(began, ..)| *began).min().unwrap_or(asked_at);
    let ended = done.iter().map(|(_, ended, _)| *ended).max().unwrap_or(asked_at);
    let (prepared, took) = (began - asked_at, ended - began);
    let mut times_us: Vec<_> = done.into_iter().flat_map(|(.., times_us)| times_us).collect();
    times_us.sort_unstable();
    Ok(Figures { prepared, took, block_bytes: load.block_bytes, times_us })
}

fn request(disk: &Disk, kind: Kind, block: &mut Block, at: u64) -> io::Result<()> {
    match kind {
        Kind::Read => disk.read(block, at),
        Kind::Write => disk.write(block, at),
        Kind::FlushedWrite => {
            disk.write(block, at)?;
            disk.flush()
        }
    }
}

/// Changes some bytes in so many extents of the disk, evenly spread over it, and flushes them.
pub fn touch(disk: &Disk, count: u64) -> io::Result<()> {
    let extents = disk.bytes() / EXTENT_BYTES;
    if count > extents {
        return Err(io::Error::other(format!("the disk has {extents} extents")));
    }
    let (next, seed) = (AtomicU64::new(0), seed());
    together(INFLIGHT_MAX, |worker| {
        let mut numbers = Numbers::of(seed + worker);
        let mut block = Block::random(ALIGN, &mut numbers);
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            block.renew(&mut numbers);
            disk.write(&mut block, number * extents / count * EXTENT_BYTES)?;
        }
    })?;
    disk.flush()
}

/// Another one each time, also after a boot.
fn seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Workers have those that follow.
    (now.as_nanos() as u64) << 4
}

/// Does the work in so many threads at once; what each came to.
fn together<T: Send>(workers: usize, work: impl Fn(u64) -> io::Result<T> + Sync) -> io::Result<Vec<T>> {
    let work = &work;
    scope(|scope| {
        let threads: Vec<_> = (0..workers as u64).map(|worker| scope.spawn(move || work(worker))).collect();
        let ended: Vec<Joined<_>> = threads.into_iter().map(|thread| thread.join()).collect();
        ended
            .into_iter()
            .map(|end| end.unwrap_or_else(|_| Err(io::Error::other("a thread panicked"))))
            .collect()
    })
}
