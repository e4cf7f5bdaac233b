//! Measurements below the daemon, on the library crates: the pause against an exact number of dirty pages, and the
//! codec. `scripts/bench` prints it beside the figures of a real pair.

pub mod codec;
pub mod confined;
pub mod linux;
pub mod net;
pub mod pause;
pub mod tsc;

use serde::Serialize;
use std::time::Duration;

/// Median and 99th percentile, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Median.
    pub p50: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
}

impl Spread {
    /// Of these times, which are sorted on the way.
    pub fn of(times: &mut [Duration]) -> Self {
        times.sort_unstable();
        let at = |part: usize| match times.len() {
            0 => 0.0,
            count => (times[(count - 1) * part / 100].as_secs_f64() * 1e7).round() / 10.0,
        };
        Self { p50: at(50), p99: at(99) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_the_sorted_times_and_nothing_has_none() {
        let mut times: Vec<_> = (0..=100).rev().map(Duration::from_micros).collect();
        assert_eq!(Spread::of(&mut times), Spread { p50: 50.0, p99: 99.0 });
        assert_eq!(Spread::of(&mut []), Spread::default());
    }
}
