//! This node's monotonic clock as the protocol core counts it: microseconds since the process began.

use crate::role::Micros;
use std::time::{Duration, Instant};

/// See the module. Copies agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that begins now. It starts at one second, so that no time of interest is 0.
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Now.
    pub fn now_us(&self) -> Micros {
        self.origin.elapsed().as_micros() as Micros + 1_000_000
    }

    /// The instant at which this clock shows `at`.
    pub fn instant(&self, at: Micros) -> Instant {
        self.origin + Duration::from_micros(at.saturating_sub(1_000_000))
    }
}
