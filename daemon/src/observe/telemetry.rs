//! Turns the reports of the replication threads into figures: the metrics, the parts of a pause, the current full copy,
//! the last take-over. The hot path writes here; `status` reads.

use super::carried::{Carried, Meter};
use super::metrics::{Metrics, Percentiles, RecentSamples, WINDOW};
use super::status::BootStatus;
use ft_checkpoint::copy::CopyProgress;
use ft_checkpoint::encoder::EncodeStats;
use ft_image::BootOrigin;
use ft_ram::layout::PAGE_SIZE;
use ft_vm::machine::{Machine, MachineEvent};
use ft_vm::replay::LogCut;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Where other hosts connect.
#[derive(Clone, Copy, Debug)]
pub enum RefusingService {
    /// `replication.listen`.
    Replication,
    /// `control.listen`.
    Control,
}

/// The last take-over that this process did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeOver {
    /// The generation that it began.
    pub generation: u64,
    /// The epoch that the VM went on from.
    pub epoch: u64,
    /// Wall clock when the guest ran here, in microseconds since 1970.
    pub running_unix_us: u64,
    /// From winning the arbitration to the guest running.
    pub resume_us: u64,
    /// From the loss of the primary, as this node saw it, to the guest running; 0 if it was handed over.
    pub total_us: u64,
    /// Pages that were still to be applied, and were served on demand or applied first.
    pub pending_pages: u64,
}

/// A backup that did not execute what the primary executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// Instructions that had been executed where it was found.
    pub count: u64,
    /// The register, page or input that differed.
    pub what: String,
}

/// What a pause was made of.
#[derive(Clone, Copy, Debug)]
pub struct PauseParts {
    /// The epoch that it ended.
    pub epoch: u64,
    /// Dirty pages.
    pub pages: usize,
    /// Until every vCPU stood still.
    pub stop: Duration,
    /// Reading and clearing the dirty logs.
    pub harvest: Duration,
    /// Machine state.
    pub capture: Duration,
    /// Copying the dirty pages aside.
    pub copy: Duration,
    /// Closing the epoch's output and letting the guest go.
    pub resume: Duration,
}

impl PauseParts {
    /// The whole pause.
    pub fn total(&self) -> Duration {
        self.stop + self.harvest + self.capture + self.copy + self.resume
    }
}

/// What the last pauses and checkpoints were made of, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointParts {
    /// Until every vCPU stood still.
    pub stop_us: Percentiles,
    /// Reading and clearing the dirty logs.
    pub harvest_us: Percentiles,
    /// Reading the machine's state.
    pub capture_us: Percentiles,
    /// Copying the dirty pages aside.
    pub copy_us: Percentiles,
    /// Encoding, after the pause; waiting for the connection included.
    pub encode_us: Percentiles,
    /// From capture to ack.
    pub commit_us: Percentiles,
    /// Dirty pages of a checkpoint (pages, not microseconds).
    pub dirty_pages: Percentiles,
}

/// See the module.
pub struct Telemetry {
    /// For Prometheus.
    pub metrics: Metrics,
    windows: Mutex<Windows>,
    /// Of what is being written to now.
    written: Mutex<Arc<AtomicU64>>,
    written_before: AtomicU64,
    meter: Mutex<Option<Meter>>,
    /// When the full copy last moved.
    copied_at: Mutex<Option<Instant>>,
    take_over: Mutex<Option<TakeOver>>,
    divergence: Mutex<Option<Divergence>>,
    booted: Mutex<Option<(Instant, BootOrigin)>>,
}

struct Windows {
    stop: RecentSamples,
    harvest: RecentSamples,
    capture: RecentSamples,
    copy: RecentSamples,
    encode: RecentSamples,
    dirty: RecentSamples,
}

impl Default for Telemetry {
    fn default() -> Self {
        let window = || RecentSamples::new(WINDOW, Instant::now());
        let windows = Windows {
            stop: window(),
            harvest: window(),
            capture: window(),
            copy: window(),
            encode: window(),
            dirty: window(),
        };
        Self {
            metrics: Metrics::new(),
            windows: Mutex::new(windows),
            written: Mutex::default(),
            written_before: AtomicU64::new(0),
            meter: Mutex::default(),
            copied_at: Mutex::default(),
            take_over: Mutex::default(),
            divergence: Mutex::default(),
            booted: Mutex::default(),
        }
    }
}

fn us(duration: Duration) -> u64 {
    duration.as_micros() as u64
}

impl Telemetry {
    /// Primary: a checkpoint was captured.
    pub fn paused(&self, parts: PauseParts) {
        let now = Instant::now();
        self.metrics.pause_us.lock().record(us(parts.total()), now);
        {
            let mut windows = self.windows.lock();
            windows.stop.record(us(parts.stop), now);
            windows.harvest.record(us(parts.harvest), now);
            windows.capture.record(us(parts.capture), now);
            windows.copy.record(us(parts.copy), now);
            windows.dirty.record(parts.pages as u64, now);
        }
        self.metrics.epoch.set(parts.epoch);
        self.metrics.dirty_pages.set(parts.pages as u64);
        self.metrics.pages.add(parts.pages as u64);
        self.metrics.copy_total_bytes.set(0);
    }

    /// Primary: this many pages were hashed for the backup to compare; the last pass over all of them took this long.
    pub fn scrubbing(&self, pages: usize, pass: Option<Duration>) {
        self.metrics.scrubbed_pages.add(pages as u64);
        if let Some(pass) = pass {
            self.metrics.scrub_pass_ms.set(pass.as_millis() as u64);
        }
    }

    /// Backup: this many pages in all were compared under this copy, and were the same.
    pub fn compared(&self, pages: u64) {
        self.metrics.scrubbed_pages.set_total(pages);
    }

    /// Backup: a page is not the primary's.
    pub fn scrub_mismatch(&self) {
        self.metrics.scrub_mismatches.add(1);
    }

    /// What a machine counts by itself.
    pub fn looked_at(&self, machine: &Machine) {
        self.metrics.unknown_instructions.set_total(machine.unknown_instructions());
        let counters = machine.counters();
        self.metrics.disk_read_errors.set_total(counters.block_host_errors);
        self.metrics.device_refusals.set_total(counters.malformed);
    }

    /// What the machine that runs here says of its guest.
    pub fn said(&self, event: &MachineEvent) {
        match event {
            MachineEvent::Panicked { .. } => self.metrics.guest_panics.add(1),
            MachineEvent::WatchdogFired => self.metrics.watchdog_firings.add(1),
            _ => {}
        }
    }

    /// Primary: a checkpoint was encoded.
    pub fn encoded(&self, stats: &EncodeStats) {
        self.windows.lock().encode.record(us(stats.elapsed), Instant::now());
        self.metrics.bytes_raw.add(stats.bytes_in);
        self.metrics.bytes_encoded.add(stats.bytes_out);
    }

    /// Primary: the backup has sealed `epoch`, which commits `checkpoints`; it was captured `age_us` ago.
    pub fn acked(&self, epoch: u64, checkpoints: u64, age_us: u64) {
        self.metrics.acked_epoch.set(epoch);
        self.metrics.checkpoints.add(checkpoints);
        let mut commits = self.metrics.commit_us.lock();
        for _ in 0..checkpoints {
            commits.record(age_us, Instant::now());
        }
    }

    /// Backup: a checkpoint is sealed.
    pub fn sealed(&self, epoch: u64) {
        self.metrics.epoch.set(epoch);
        self.metrics.acked_epoch.set(epoch);
        self.metrics.checkpoints.add(1);
        self.metrics.commit_us.lock().record(0, Instant::now());
        self.metrics.copy_total_bytes.set(0);
    }

    /// Backup: the VM could go on from what is held.
    pub fn rehearsed(&self) {
        self.metrics.rehearsals.add(1);
    }

    /// Backup: it could not.
    pub fn rehearsal_failed(&self) {
        self.metrics.rehearsals_failed.add(1);
    }

    /// Primary in replay mode: an epoch of the log was cut.
    pub fn logged(&self, epoch: u64, cut: &LogCut) {
        self.metrics.epoch.set(epoch);
        self.metrics.replay_count.set(cut.count);
        self.metrics.log_bytes.add(cut.bytes as u64);
        self.metrics.log_entries.add(cut.entries);
    }

    /// Primary in replay mode: the thousandths of its time that the guest is stopped.
    pub fn slowed(&self, permille: u16) {
        self.metrics.throttle_permille.set(permille.into());
    }

    /// The backup, this one or the peer, is not the primary's likeness any more.
    pub fn diverged(&self, count: u64, what: &str) {
        self.metrics.divergences.add(1);
        *self.divergence.lock() = Some(Divergence { count, what: what.into() });
    }

    /// The guest boots, from a disk of its own if there is an origin.
    pub fn booted(&self, origin: Option<BootOrigin>) {
        *self.booted.lock() = origin.map(|origin| (Instant::now(), origin));
    }

    /// What it booted here last, out of its own disk.
    pub fn last_boot(&self) -> Option<BootStatus> {
        let booted = self.booted.lock();
        let (since, BootOrigin { title, found_in, kernel, version, initrds: _ }) = booted.clone()?;
        Some(BootStatus { kernel, version, entry: title, found_in, for_s: since.elapsed().as_secs() })
    }

    /// The last divergence.
    pub fn divergence(&self) -> Option<Divergence> {
        self.divergence.lock().clone()
    }

    /// Primary: the guest is stopped until there is room for its next checkpoint or log.
    pub fn stalled(&self) {
        self.metrics.stalls.add(1);
    }

    /// Primary: the full copy is so far.
    pub fn copying(&self, progress: CopyProgress) {
        self.copy(progress.sent_pages.into(), progress.total_pages.into(), progress.same_pages.into());
    }

    /// Either side: this many pages of a full copy are done. So many of them the backup had already.
    pub fn copy(&self, pages: u64, total: u64, same: u64) {
        let bytes = |pages: u64| pages * PAGE_SIZE as u64;
        self.metrics.copy_same_bytes.set(bytes(same));
        self.metrics.copy_total_bytes.set(bytes(total));
        self.metrics.copy_done_bytes.set(bytes(pages));
        *self.copied_at.lock() = Some(Instant::now());
    }

    /// How long ago the full copy last moved.
    pub fn copy_age(&self) -> Duration {
        self.copied_at.lock().map_or(Duration::ZERO, |at| at.elapsed())
    }

    /// A full copy begins.
    pub fn copy_begun(&self) {
        self.metrics.resyncs.add(1);
    }

    /// A connection from another host came to nothing.
    pub fn refused(&self, service: RefusingService, reason: &str) {
        let service = match service {
            RefusingService::Replication => "replication",
            RefusingService::Control => "control",
        };
        self.metrics.refused_connections.add(&[("service", service), ("reason", reason)]);
    }

    /// What the connection to the peer carries, and what keeps it from carrying more.
    pub fn carried(&self) -> Option<Carried> {
        self.meter.lock().as_ref().and_then(Meter::carried)
    }

    /// A connection began; `written` counts what is written to it, and `meter` what arrives.
    pub fn connected(&self, written: Arc<AtomicU64>, meter: Option<Meter>) {
        *self.meter.lock() = meter;
        let before = std::mem::replace(&mut *self.written.lock(), written);
        self.written_before.fetch_add(before.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Bytes written to the peer since the process began.
    pub fn bytes_sent(&self) -> u64 {
        self.written_before.load(Ordering::Relaxed) + self.written.lock().load(Ordering::Relaxed)
    }

    /// A pairing is over; its numbers do not go on.
    pub fn pairing_ended(&self) {
        self.metrics.epoch.set(0);
        self.metrics.acked_epoch.set(0);
        self.metrics.copy_total_bytes.set(0);
    }

    /// The VM runs here since now, from `epoch`. `since_loss` is missing when it was handed over.
    pub fn took_over(
        &self,
        generation: u64,
        epoch: u64,
        resume: Duration,
        since_loss: Option<Duration>,
        pending_pages: u64,
    ) {
        self.pairing_ended();
        match since_loss {
            Some(_) => self.metrics.takeovers.add(1),
            None => self.metrics.switchovers.add(1),
        }
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        *self.take_over.lock() = Some(TakeOver {
            generation,
            epoch,
            running_unix_us: us(unix),
            resume_us: us(resume),
            total_us: us(since_loss.unwrap_or_default()),
            pending_pages,
        });
    }

    /// The last take-over.
    pub fn take_over(&self) -> Option<TakeOver> {
        *self.take_over.lock()
    }

    /// What the last pauses and checkpoints were made of.
    pub fn parts(&self) -> CheckpointParts {
        let now = Instant::now();
        let commit_us = self.metrics.commit_us.lock().percentiles(now);
        let windows = &mut *self.windows.lock();
        CheckpointParts {
            stop_us: windows.stop.percentiles(now),
            harvest_us: windows.harvest.percentiles(now),
            capture_us: windows.capture.percentiles(now),
            copy_us: windows.copy.percentiles(now),
            encode_us: windows.encode.percentiles(now),
            commit_us,
            dirty_pages: windows.dirty.percentiles(now),
        }
    }

    /// Bytes of dirty pages and state for each byte that they were encoded to; 0 before the first checkpoint.
    pub fn compression_ratio(&self) -> f64 {
        match self.metrics.bytes_encoded.get() {
            0 => 0.0,
            encoded => self.metrics.bytes_raw.get() as f64 / encoded as f64,
        }
    }
}
