//! Figures of the replica as it runs: written by its threads, read by `status` and the metrics endpoint. Counters are atomics;
//! distributions are kept over a sliding window, so that a figure is about now and not about last week.

use crate::replica::PauseParts;
use ft_checkpoint::copy::CopyProgress;
use ft_checkpoint::encoder::EncodeStats;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Length of half a window: figures cover the last one to two of these.
const HALF_WINDOW: Duration = Duration::from_secs(5);
/// Highest value of a distribution, in microseconds.
const VALUE_MAX: u64 = 60_000_000;

/// Median and 99th percentile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
}

/// A distribution over the last few seconds.
pub struct Recorder(Mutex<Halves>);

struct Halves {
    now: Histogram<u64>,
    before: Histogram<u64>,
    began: Instant,
}

impl Default for Recorder {
    fn default() -> Self {
        let empty = || {
            Histogram::new_with_bounds(1, VALUE_MAX, 3).expect("constant bounds that hdrhistogram accepts")
        };
        Self(Mutex::new(Halves { now: empty(), before: empty(), began: Instant::now() }))
    }
}

impl Halves {
    fn turn(&mut self) {
        let age = self.began.elapsed();
        if age >= HALF_WINDOW {
            std::mem::swap(&mut self.now, &mut self.before);
            self.now.reset();
            if age >= 2 * HALF_WINDOW {
                self.before.reset();
            }
            self.began = Instant::now();
        }
    }
}

impl Recorder {
    /// Adds a value.
    pub fn record(&self, value: u64) {
        let mut halves = self.0.lock();
        halves.turn();
        halves.now.saturating_record(value);
    }

    /// Adds a duration, in microseconds.
    pub fn record_duration(&self, value: Duration) {
        self.record(value.as_micros() as u64);
    }

    /// Median and 99th percentile of the window; 0 if it is empty.
    pub fn percentiles(&self) -> Percentiles {
        let mut halves = self.0.lock();
        halves.turn();
        let mut all = halves.before.clone();
        // Equal bounds: adding cannot fail.
        let _ = all.add(&halves.now);
        Percentiles { p50: all.value_at_quantile(0.5), p99: all.value_at_quantile(0.99) }
    }
}

/// Events a second over the last few seconds.
#[derive(Default)]
struct Rate(Mutex<VecDeque<Instant>>);

impl Rate {
    const WINDOW: Duration = Duration::from_secs(2);

    fn count(&self, events: usize) {
        let mut times = self.0.lock();
        let now = Instant::now();
        times.extend(std::iter::repeat_n(now, events));
        while times.front().is_some_and(|at| now - *at > Self::WINDOW) {
            times.pop_front();
        }
    }

    fn per_second(&self) -> f64 {
        let mut times = self.0.lock();
        let now = Instant::now();
        while times.front().is_some_and(|at| now - *at > Self::WINDOW) {
            times.pop_front();
        }
        match times.front() {
            Some(first) => times.len() as f64 / (now - *first).as_secs_f64().max(0.25),
            None => 0.0,
        }
    }
}

/// The last take-over that this process did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TakeOver {
    /// The generation that it began.
    pub generation: u64,
    /// The epoch that the VM went on from.
    pub epoch: u64,
    /// Wall clock when the guest ran here, in microseconds since 1970.
    pub running_unix_us: u64,
    /// From winning the arbitration to the guest running.
    pub resume_us: u64,
    /// From the loss of the primary (as this node saw it) to the guest running; 0 if it was handed over.
    pub total_us: u64,
}

impl TakeOver {
    /// A take-over that is complete now.
    pub fn now(generation: u64, epoch: u64, resume: Duration, since_loss: Option<Duration>) -> Self {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            generation,
            epoch,
            running_unix_us: unix.as_micros() as u64,
            resume_us: resume.as_micros() as u64,
            total_us: since_loss.unwrap_or_default().as_micros() as u64,
        }
    }
}

/// How far a full copy is, on either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyView {
    /// Pages sent or received at least once.
    pub pages: u64,
    /// Pages of RAM.
    pub total_pages: u64,
}

/// See the module.
#[derive(Default)]
pub struct Telemetry {
    /// Whole pauses.
    pub pause_us: Recorder,
    /// Until every vCPU stood still.
    pub stop_us: Recorder,
    /// Reading and clearing the dirty logs.
    pub harvest_us: Recorder,
    /// Reading the machine's state.
    pub capture_us: Recorder,
    /// Copying the dirty pages aside.
    pub copy_us: Recorder,
    /// Encoding a checkpoint, waiting for the connection included.
    pub encode_us: Recorder,
    /// Dirty pages of a checkpoint.
    pub dirty_pages: Recorder,
    epoch: AtomicU64,
    acked_epoch: AtomicU64,
    commits: Rate,
    committed: AtomicU64,
    chokes: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    bytes_received: AtomicU64,
    written_before: AtomicU64,
    written_now: Mutex<Option<Arc<AtomicU64>>>,
    copy: Mutex<Option<CopyView>>,
    take_over: Mutex<Option<TakeOver>>,
}

impl Telemetry {
    /// Primary: a checkpoint was captured.
    pub fn paused(&self, parts: PauseParts) {
        self.pause_us.record_duration(parts.total());
        self.stop_us.record_duration(parts.stop);
        self.harvest_us.record_duration(parts.harvest);
        self.capture_us.record_duration(parts.capture);
        self.copy_us.record_duration(parts.copy);
        self.dirty_pages.record(parts.pages as u64);
        self.epoch.store(parts.epoch, Ordering::Relaxed);
        *self.copy.lock() = None;
    }

    /// Primary: a checkpoint was encoded.
    pub fn encoded(&self, stats: &EncodeStats) {
        self.encode_us.record_duration(stats.elapsed);
        self.bytes_in.fetch_add(stats.bytes_in, Ordering::Relaxed);
        self.bytes_out.fetch_add(stats.bytes_out, Ordering::Relaxed);
    }

    /// Primary: the backup has sealed `epoch`, and with it `committed` checkpoints.
    pub fn acked(&self, epoch: u64, committed: u64) {
        self.acked_epoch.fetch_max(epoch, Ordering::Relaxed);
        self.committed.fetch_add(committed, Ordering::Relaxed);
        self.commits.count(committed as usize);
    }

    /// Backup: a checkpoint is sealed.
    pub fn sealed(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Relaxed);
        self.acked_epoch.store(epoch, Ordering::Relaxed);
        self.committed.fetch_add(1, Ordering::Relaxed);
        self.commits.count(1);
        *self.copy.lock() = None;
    }

    /// Primary: the guest was paused because the backup lags behind.
    pub fn choked(&self) {
        self.chokes.fetch_add(1, Ordering::Relaxed);
    }

    /// Primary: the full copy is so far.
    pub fn copying(&self, progress: CopyProgress) {
        let (pages, total_pages) = (progress.sent_pages.into(), progress.total_pages.into());
        *self.copy.lock() = Some(CopyView { pages, total_pages });
    }

    /// Backup: the full copy is so far.
    pub fn copy_received(&self, pages: u32, total: u32) {
        *self.copy.lock() = Some(CopyView { pages: pages.into(), total_pages: total.into() });
    }

    /// Backup: a frame came in.
    pub fn received(&self, bytes: usize) {
        self.bytes_received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A connection began; this counts what is written to it.
    pub fn connected(&self, written: Arc<AtomicU64>) {
        if let Some(before) = self.written_now.lock().replace(written) {
            self.written_before.fetch_add(before.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Primary: a pairing is over; its numbers do not go on.
    pub fn pairing_ended(&self) {
        self.epoch.store(0, Ordering::Relaxed);
        self.acked_epoch.store(0, Ordering::Relaxed);
        *self.copy.lock() = None;
    }

    /// Backup: the VM runs here now.
    pub fn took_over(&self, take_over: TakeOver) {
        self.pairing_ended();
        *self.take_over.lock() = Some(take_over);
    }

    /// The last epoch captured (or received) in this pairing.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// The last epoch acked.
    pub fn acked_epoch(&self) -> u64 {
        self.acked_epoch.load(Ordering::Relaxed)
    }

    /// Checkpoints committed since the process began.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Checkpoints committed a second.
    pub fn checkpoints_per_s(&self) -> f64 {
        self.commits.per_second()
    }

    /// Times the guest stood still because the backup lagged.
    pub fn chokes(&self) -> u64 {
        self.chokes.load(Ordering::Relaxed)
    }

    /// Bytes written to the peer since the process began.
    pub fn bytes_sent(&self) -> u64 {
        let now = self.written_now.lock().as_ref().map_or(0, |written| written.load(Ordering::Relaxed));
        self.written_before.load(Ordering::Relaxed) + now
    }

    /// Bytes received from the peer since the process began.
    pub fn bytes_received(&self) -> u64 {
        self.bytes_received.load(Ordering::Relaxed)
    }

    /// Bytes of dirty pages and state for each byte sent; 0 before the first checkpoint.
    pub fn compression_ratio(&self) -> f64 {
        let out = self.bytes_out.load(Ordering::Relaxed);
        if out == 0 { 0.0 } else { self.bytes_in.load(Ordering::Relaxed) as f64 / out as f64 }
    }

    /// The full copy under way.
    pub fn copy_progress(&self) -> Option<CopyView> {
        *self.copy.lock()
    }

    /// The last take-over.
    pub fn take_over(&self) -> Option<TakeOver> {
        *self.take_over.lock()
    }
}
