//! Round trips, and the longest silence.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, to line up with other programs' logs on the machine.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Round trips in microseconds.
pub struct RoundTrips(Histogram<u64>);

/// Their quantiles, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Quantiles {
    /// Median.
    pub p50: u64,
    /// 99 of 100 are at most this.
    pub p99: u64,
    /// The largest.
    pub max: u64,
}

impl Default for RoundTrips {
    fn default() -> Self {
        Self(Histogram::new(3).expect("3 significant digits are within what the histogram takes"))
    }
}

impl RoundTrips {
    /// Takes in one.
    pub fn record(&mut self, rtt: Duration) {
        // Within the bounds of a histogram that grows: an hour at most.
        let us = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).min(3_600_000_000);
        let _ = self.0.record(us);
    }

    /// The quantiles so far.
    pub fn quantiles(&self) -> Quantiles {
        let at = |q| if self.0.is_empty() { 0 } else { self.0.value_at_quantile(q) };
        Quantiles { p50: at(0.5), p99: at(0.99), max: self.0.max() }
    }

    /// Starts anew.
    pub fn clear(&mut self) {
        self.0.reset();
    }
}

/// The longest time without an answer while one was due.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gap {
    /// How long.
    pub longest: Duration,
    /// When the request was sent that waited so long.
    pub started_unix_ms: u64,
}

impl Gap {
    /// A request sent at `sent` (and by the clock on the wall at `sent_unix_ms`) was answered now, or still waits.
    pub fn waited(&mut self, sent: Instant, sent_unix_ms: u64) {
        let waited = sent.elapsed();
        if waited > self.longest {
            *self = Self { longest: waited, started_unix_ms: sent_unix_ms };
        }
    }

    /// In milliseconds.
    pub fn ms(&self) -> f64 {
        (self.longest.as_secs_f64() * 1e6).round() / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_round_trip_is_told_as_long_as_it_was_and_forgotten_when_cleared() {
        let mut round_trips = RoundTrips::default();
        (0..99).for_each(|_| round_trips.record(Duration::from_micros(200)));
        round_trips.record(Duration::from_secs(2));
        let quantiles = round_trips.quantiles();
        assert_eq!(quantiles.p50, 200);
        assert!((1_990_000..=2_010_000).contains(&quantiles.max), "{quantiles:?}");
        round_trips.clear();
        assert_eq!(round_trips.quantiles().max, 0);
    }
}
