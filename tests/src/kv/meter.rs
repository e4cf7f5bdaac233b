//! What is measured of one connection: answers, round trips, the longest wait; told every 200 ms and noted in a trace.

use super::connection::ConnectionError;
use super::measure::{Gap, Quantiles, RoundTrips, unix_ms};
use super::trace::Trace;
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often progress is told.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// How it goes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LoadProgress {
    /// Since the start.
    pub t_ms: u64,
    /// The clock on the wall.
    pub unix_ms: u64,
    /// Requests answered since the start.
    pub ops: u64,
    /// Round trips since the last progress.
    pub rtt_us: Quantiles,
    /// Longest wait since the last progress, with the one that still goes on.
    pub max_gap_ms: f64,
}

/// The measurements of a run.
pub struct LoadMeter<'a> {
    tell: &'a mut dyn FnMut(&LoadProgress),
    started: Instant,
    /// Requests answered.
    pub ops: u64,
    /// Of all answers.
    pub round_trips: RoundTrips,
    /// Of all waits.
    pub gap: Gap,
    recent_round_trips: RoundTrips,
    recent_gap: Gap,
    told: Instant,
    /// Where each answer is noted.
    pub trace: Trace,
}

impl<'a> LoadMeter<'a> {
    /// Begins now; `tell` is called every 200 ms, also while an answer is waited for.
    pub fn new(trace: Option<&Path>, tell: &'a mut dyn FnMut(&LoadProgress)) -> Self {
        let now = Instant::now();
        Self {
            tell,
            started: now,
            ops: 0,
            round_trips: RoundTrips::default(),
            gap: Gap::default(),
            recent_round_trips: RoundTrips::default(),
            recent_gap: Gap::default(),
            told: now,
            trace: Trace::new(trace),
        }
    }

    /// Milliseconds since the beginning.
    pub fn ran_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Waits for the answer to what is sent now. `receive` waits as long as it is told to, and gives `None` when the
    /// answer is not there by then.
    pub fn answer<A, E: From<ConnectionError>>(
        &mut self,
        timeout: Duration,
        mut receive: impl FnMut(Duration) -> Result<Option<A>, E>,
    ) -> Result<A, E> {
        let (sent, sent_unix_ms) = (Instant::now(), unix_ms());
        let deadline = sent + timeout;
        loop {
            let until = deadline.min(self.told + PROGRESS_EVERY);
            let answer = receive(until.saturating_duration_since(Instant::now()));
            self.gap.waited(sent, sent_unix_ms);
            self.recent_gap.waited(sent, sent_unix_ms);
            if let Some(answer) = answer? {
                let rtt = sent.elapsed();
                self.ops += 1;
                self.round_trips.record(rtt);
                self.recent_round_trips.record(rtt);
                self.trace.answered(rtt);
                self.tell_if_due();
                return Ok(answer);
            }
            self.tell_if_due();
            if Instant::now() >= deadline {
                return Err(ConnectionError::TimedOut(timeout).into());
            }
        }
    }

    /// Tells how it goes, if the last time was long enough ago.
    pub fn tell_if_due(&mut self) {
        if self.told.elapsed() < PROGRESS_EVERY {
            return;
        }
        let t_ms = self.ran_ms();
        (self.tell)(&LoadProgress {
            t_ms,
            unix_ms: unix_ms(),
            ops: self.ops,
            rtt_us: self.recent_round_trips.quantiles(),
            max_gap_ms: self.recent_gap.ms(),
        });
        self.trace.flush();
        self.told = Instant::now();
        self.recent_round_trips.clear();
        self.recent_gap = Gap::default();
    }
}
