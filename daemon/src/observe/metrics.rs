//! The daemon's numbers, for `ftctl status` and for Prometheus. The replication threads add to atomic counters. Times
//! go through sliding windows, so the percentiles shown are those of the last seconds.

use super::labelled::{Counters, Gauges};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Highest time told apart, in microseconds.
const US_MAX: u64 = 60_000_000;
/// Percentiles and rates cover the last one to two of these.
pub const WINDOW: Duration = Duration::from_secs(5);

/// Median and 99th percentile; zero without samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
}

/// Samples of the last moments: two histograms, of which the older is dropped when the newer has aged.
#[derive(Debug)]
pub struct RecentSamples {
    span: Duration,
    current: Histogram<u64>,
    previous: Histogram<u64>,
    current_since: Instant,
    previous_since: Instant,
    /// What [`RecentSamples::absorb`] has seen so far.
    absorbed: Histogram<u64>,
}

impl RecentSamples {
    /// An empty window; it reaches back one to two `span`s.
    #[must_use]
    pub fn new(span: Duration, now: Instant) -> Self {
        let empty: Histogram<u64> =
            Histogram::new_with_max(US_MAX, 2).expect("constant arguments: 2 digits, maximum above 2");
        Self {
            span,
            current: empty.clone(),
            previous: empty.clone(),
            current_since: now,
            previous_since: now,
            absorbed: empty,
        }
    }

    /// Adds one sample.
    pub fn record(&mut self, us: u64, now: Instant) {
        self.rotate(now);
        self.current.saturating_record(us);
    }

    /// Adds what is new in a histogram that only grows.
    pub fn absorb(&mut self, cumulative: &Histogram<u64>, now: Instant) {
        self.rotate(now);
        for bucket in cumulative.iter_recorded() {
            let value = bucket.value_iterated_to();
            let new = bucket.count_at_value().saturating_sub(self.absorbed.count_at(value));
            self.current.saturating_record_n(value, new);
            self.absorbed.saturating_record_n(value, new);
        }
    }

    /// Median and 99th percentile.
    pub fn percentiles(&mut self, now: Instant) -> Percentiles {
        self.rotate(now);
        let mut both = self.current.clone();
        both.add(&self.previous).expect("both have the same range");
        if both.is_empty() {
            return Percentiles::default();
        }
        Percentiles { p50: both.value_at_quantile(0.5), p99: both.value_at_quantile(0.99) }
    }

    /// Samples a second.
    pub fn rate(&mut self, now: Instant) -> f64 {
        self.rotate(now);
        let samples = self.current.len() + self.previous.len();
        // Right after the start a few samples in no time would look like a high rate.
        let time = now.saturating_duration_since(self.previous_since).max(Duration::from_millis(100));
        samples as f64 / time.as_secs_f64()
    }

    fn rotate(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.current_since);
        if age < self.span {
            return;
        }
        std::mem::swap(&mut self.current, &mut self.previous);
        self.current.reset();
        if age < self.span * 2 {
            self.previous_since = self.current_since;
        } else {
            // Nothing happened for so long that the newer half is old as well.
            self.previous.reset();
            self.previous_since = now - self.span;
        }
        self.current_since = now;
    }
}

/// The rate at which a total grows, over the last moments.
#[derive(Debug, Default)]
pub struct Rate(VecDeque<(Instant, u64)>);

impl Rate {
    /// The rate a second, as of now, when the total is this.
    pub fn of(&mut self, total: u64, now: Instant) -> f64 {
        while self.0.len() > 1
            && self.0.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > WINDOW)
        {
            self.0.pop_front();
        }
        self.0.push_back((now, total));
        let Some((since, before)) = self.0.front() else { return 0.0 };
        let time = now.saturating_duration_since(*since).as_secs_f64();
        if time < 0.05 { 0.0 } else { total.saturating_sub(*before) as f64 / time }
    }
}

macro_rules! metrics {
    ($($field:ident: $kind:ident $name:literal $help:literal,)+) => {
        /// The daemon's numbers.
        #[derive(Debug)]
        pub struct Metrics {
            $(#[doc = $help] pub $field: $kind,)+
            /// Microseconds that the VM was paused for each checkpoint; its rate is the rate of checkpoints captured.
            pub pause_us: Mutex<RecentSamples>,
            /// Microseconds that frames were held.
            pub hold_us: Mutex<RecentSamples>,
            /// Microseconds from the capture of a checkpoint to its ack; its rate is the rate of checkpoints committed.
            pub commit_us: Mutex<RecentSamples>,
        }

        impl Metrics {
            /// All zero.
            #[must_use]
            pub fn new() -> Self {
                let window = || Mutex::new(RecentSamples::new(WINDOW, Instant::now()));
                Self {
                    $($field: $kind::default(),)+
                    pause_us: window(),
                    hold_us: window(),
                    commit_us: window(),
                }
            }

            /// The text format of Prometheus, every sample labelled with VM and node.
            #[must_use]
            pub fn render(&self, vm: &str, node: &str) -> String {
                let mut text = String::new();
                // Names hold nothing that would need escaping in a label.
                let common = format!("vm=\"{vm}\",node=\"{node}\"");
                $(self.$field.write(&mut text, $name, $help, &common);)+
                let now = Instant::now();
                for (name, help, window) in [
                    ("ftd_pause_us", "Recent pauses of the VM for a checkpoint, in microseconds", &self.pause_us),
                    ("ftd_hold_us", "Recent times that output was held, in microseconds", &self.hold_us),
                    ("ftd_commit_us", "Recent times from capture to ack, in microseconds", &self.commit_us),
                ] {
                    let Percentiles { p50, p99 } = window.lock().percentiles(now);
                    write_head(&mut text, name, help, "gauge");
                    for (quantile, value) in [("0.5", p50), ("0.99", p99)] {
                        let _ = writeln!(text, "{name}{{{common},quantile=\"{quantile}\"}} {value}");
                    }
                }
                text
            }
        }
    };
}

metrics! {
    generation: Gauge "ftd_generation" "The arbiter's generation that this node acts in",
    epoch: Gauge "ftd_epoch" "The last epoch captured (primary) or received (backup)",
    acked_epoch: Gauge "ftd_acked_epoch" "The last epoch acked",
    is_primary: Gauge "ftd_primary" "1 on the node that runs the VM",
    is_protected: Gauge "ftd_protected" "1 while a backup can take over",
    is_unpermitted: Gauge "ftd_output_unpermitted" "1 while the VM's output is held for want of a permission",
    is_degraded: Gauge "ftd_degraded" "1 while the pair is in step, but it is not proven that a backup can take over",
    arbiter_age_us: Gauge "ftd_arbiter_age_us" "Microseconds since this node's arbiter answered last",
    peer_arbiter_age_us: Gauge "ftd_peer_arbiter_age_us" "Microseconds since the peer's arbiter answered last",
    arbiter_hangs: Gauge "ftd_arbiter_hanging_calls"
        "Calls on this node's arbiter that were left behind, and have not returned",
    arbiter_members: Gauges "ftd_arbiter_member_answers"
        "1 while this one of several arbiters answers this node, 0 while it does not; the label member is its address",
    certificate_expiry_s: Gauge "ftd_certificate_expiry_timestamp_seconds"
        "When this host's certificate expires, in seconds since 1970; 0 where it has none",
    is_peer_connected: Gauge "ftd_peer_connected" "1 while the peer is connected",
    dirty_pages: Gauge "ftd_dirty_pages" "Pages in the last checkpoint",
    copy_done_bytes: Gauge "ftd_copy_done_bytes" "Bytes of guest memory that the current full copy has covered",
    copy_total_bytes: Gauge "ftd_copy_total_bytes"
        "Bytes of guest memory that the current full copy has to cover; 0 when there is none",
    copy_same_bytes: Gauge "ftd_copy_same_bytes"
        "Bytes of guest memory that the current full copy, or the last one, did not send: the backup had them",
    disk_differing_bytes: Gauge "ftd_disk_differing_bytes"
        "Bytes of extents in which the hosts' disk images may differ, as this node's maps have it",
    disk_unacked_bytes: Gauge "ftd_disk_unacked_bytes"
        "Bytes of changes of the VM's disks that the backup has not acked",
    disk_journal_bytes: Gauge "ftd_disk_journal_bytes"
        "Bytes of this backup's journal that are not in its disk images yet",
    disk_verified_bytes: Gauge "ftd_disk_verified_bytes"
        "Bytes of the backup's disk images that the last comparison under protection has compared",
    disk_mismatches: Counter "ftd_disk_mismatches_total"
        "Extents of the backup's disk images that were found not to be this host's under protection",
    disk_copy_total_bytes: Gauge "ftd_disk_copy_total_bytes"
        "Bytes of disk images that the copy under way has to compare; 0 when there is none",
    disk_copy_left_s: Gauge "ftd_disk_copy_left_s"
        "Seconds that the copy of disk images will take yet, if it goes on as fast; 0: there is none, or not known",
    disk_compared_bytes: Gauge "ftd_disk_compared_bytes"
        "Bytes of disk images that the copy under way has found, or made, the same",
    disk_copied_bytes: Gauge "ftd_disk_copied_bytes" "Bytes of disk images that the copy under way has sent",
    held_frames: Gauge "ftd_held_frames" "Frames of the VM that wait for an ack now",
    oldest_held_us: Gauge "ftd_oldest_held_us"
        "Microseconds for which the oldest frame that waits for an ack has been held; 0 when there is none",
    is_hold_kept: Gauge "ftd_hold_kept"
        "1 unless output was held for longer than replication.hold_ms_max in the last minute, or is now",
    is_speed_kept: Gauge "ftd_guest_speed_kept"
        "1 unless the VM was slowed below replication.guest_speed_min_pct in the last minute",
    held_bytes: Gauge "ftd_held_bytes" "Bytes of the frames that wait for an ack now",
    checkpoints: Counter "ftd_checkpoints_total" "Checkpoints acked",
    pages: Counter "ftd_pages_total" "Pages captured",
    bytes_raw: Counter "ftd_raw_bytes_total" "Bytes of pages and state captured, before encoding",
    bytes_encoded: Counter "ftd_encoded_bytes_total" "Bytes of pages and state after encoding",
    bytes_sent: Counter "ftd_sent_bytes_total" "Bytes sent to the peer",
    stalls: Counter "ftd_stalls_total"
        "Times the VM was stopped because there was no memory left for its next checkpoint or log",
    frames_released: Counter "ftd_frames_released_total" "Frames of the VM that were sent to the network",
    frames_discarded: Counter "ftd_frames_discarded_total"
        "Held frames that were discarded when this node lost the right to send them",
    hold_full: Counter "ftd_hold_full_total" "Times the buffer of held frames was full",
    emit_errors: Counter "ftd_emit_errors_total" "Frames that were lost because the TAP refused them",
    muted_offers: Counter "ftd_muted_offers_total"
        "Frames of the VM that were dropped because this node may not send; more than a few mean that the VM runs \
         where it must not",
    takeovers: Counter "ftd_takeovers_total" "Times this node took the VM over after a failure of the primary",
    switchovers: Counter "ftd_switchovers_total" "Times this node took the VM over in a planned switchover",
    resyncs: Counter "ftd_resyncs_total" "Full copies begun",
    replay_count: Gauge "ftd_replay_count"
        "Replay mode: instructions executed up to the last cut of the log (primary) or so far (backup)",
    lag_us: Gauge "ftd_lag_us" "Replay mode: microseconds that the backup is behind",
    throttle_permille: Gauge "ftd_throttle_permille"
        "Thousandths of its time that the VM is stopped, so that link and backup keep up with it",
    log_bytes: Counter "ftd_log_bytes_total" "Replay mode: bytes of log written",
    log_entries: Counter "ftd_log_entries_total" "Replay mode: events written to the log",
    divergences: Counter "ftd_divergences_total" "Times the backup diverged from the primary's execution",
    scrubbed_pages: Counter "ftd_scrubbed_pages_total"
        "Guest pages compared between the two nodes: hashed for it (primary), or found the same (backup)",
    scrub_pass_ms: Gauge "ftd_scrub_pass_ms"
        "Milliseconds that the last comparison of every guest page took; 0 before the first is over",
    scrub_mismatches: Counter "ftd_scrub_mismatches_total"
        "Guest pages that were not the primary's; after each a full copy follows",
    unknown_instructions: Counter "ftd_unknown_instructions_total"
        "Engine soft: times the guest executed an instruction that the engine does not have, and got #UD",
    guest_panics: Counter "ftd_guest_panics_total" "Times the kernel of the guest that runs here said that it panicked",
    watchdog_firings: Counter "ftd_guest_watchdog_firings_total"
        "Times the guest that runs here did not feed its watchdog any more",
    disk_read_errors: Counter "ftd_disk_read_errors_total" "Reads of disk images that failed on this host",
    device_refusals: Counter "ftd_device_refusals_total"
        "Rings, chains and requests of the guest's that break virtio's rules; each stops its device until a reset",
    network_troubled: Gauge "ftd_network_troubled" "1 while the VM's network is not as it should be on this host",
    refused_connections: Counters "ftd_refused_connections_total"
        "Connections from other hosts that came to nothing, by service (replication, control) and reason",
    view_age_ms: Gauge "ftd_view_age_ms"
        "Milliseconds since the executor last showed its state; more than a few hundred mean that it is stuck",
    refused_calls: Counter "ftd_refused_system_calls_total"
        "System calls that confined threads were refused; there should be none, ever",
    log_lines_lost: Counter "ftd_log_lines_lost_total"
        "Log messages that were dropped because stderr took none for a while",
    rehearsals: Counter "ftd_rehearsals_total"
        "Backup: times it was shown that the VM could go on from the state held here",
    rehearsals_failed: Counter "ftd_rehearsals_failed_total"
        "Backup: times that showing it failed",
    rehearsal_age_us: Gauge "ftd_rehearsal_age_us"
        "Backup: microseconds since it was last shown that the VM could go on from the state held here; 0: never",
    suspicions: Counter "ftd_suspicions_total"
        "Times this node lost the peer because it fell silent or its connection broke",
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Takes over a count that is kept elsewhere.
    pub fn set_total(&self, total: u64) {
        self.0.fetch_max(total, Ordering::Relaxed);
    }

    /// The count.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn write(&self, text: &mut String, name: &str, help: &str, common: &str) {
        write_sample(text, (name, help, "counter"), common, self.get());
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Its value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn write(&self, text: &mut String, name: &str, help: &str, common: &str) {
        write_sample(text, (name, help, "gauge"), common, self.get());
    }
}

pub(super) fn write_head(text: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn write_sample(text: &mut String, (name, help, kind): (&str, &str, &str), common: &str, value: u64) {
    write_head(text, name, help, kind);
    let _ = writeln!(text, "{name}{{{common}}} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_window_forgets_what_is_older_than_two_spans() {
        let start = Instant::now();
        let mut window = RecentSamples::new(seconds(5), start);
        window.record(1000, start);
        window.record(10, start + seconds(6));
        assert_eq!(window.percentiles(start + seconds(7)), Percentiles { p50: 10, p99: 1003 });
        assert_eq!(window.percentiles(start + seconds(12)), Percentiles { p50: 10, p99: 10 });
        assert_eq!(window.percentiles(start + seconds(60)), Percentiles::default());
    }

    #[test]
    fn a_rate_is_that_of_the_last_moments() {
        let start = Instant::now();
        let mut window = RecentSamples::new(seconds(5), start);
        for ms in 0..20_000 {
            window.record(1, start + Duration::from_millis(ms * 5));
        }
        let rate = window.rate(start + seconds(100));
        assert!((190.0..=210.0).contains(&rate), "{rate}");
        assert_eq!(window.rate(start + seconds(200)), 0.0);
    }

    #[test]
    fn the_rate_of_a_total_is_that_of_the_last_moments() {
        let start = Instant::now();
        let mut rate = Rate::default();
        assert_eq!(rate.of(1000, start), 0.0);
        assert_eq!(rate.of(3000, start + seconds(2)), 1000.0);
        for second in 3..20 {
            rate.of(3000, start + seconds(second));
        }
        assert_eq!(rate.of(3000, start + seconds(20)), 0.0);
    }

    #[test]
    fn a_growing_histogram_is_absorbed_once() {
        let start = Instant::now();
        let mut window = RecentSamples::new(seconds(5), start);
        let mut growing = Histogram::new_with_max(US_MAX, 2).unwrap();
        growing.record_n(123_456, 7).unwrap();
        window.absorb(&growing, start);
        window.absorb(&growing, start);
        assert_eq!(window.current.len(), 7);
        growing.record(9).unwrap();
        window.absorb(&growing, start);
        assert_eq!(window.current.len(), 8);
    }

    #[test]
    fn the_text_for_prometheus_has_help_type_and_labels() {
        let metrics = Metrics::new();
        metrics.bytes_sent.add(100);
        metrics.pause_us.lock().record(500, Instant::now());
        let text = metrics.render("web", "alpha");
        assert!(text.contains(
            "# HELP ftd_sent_bytes_total Bytes sent to the peer\n# TYPE ftd_sent_bytes_total counter\n\
             ftd_sent_bytes_total{vm=\"web\",node=\"alpha\"} 100\n"
        ));
        assert!(text.contains("ftd_pause_us{vm=\"web\",node=\"alpha\",quantile=\"0.5\"} 5"), "{text}");
    }
}
