//! A bound on how often the same thing is said. What others can cause at will (strangers, a link that comes and goes)
//! must not fill the log.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// Lets a few messages through at once, then one an interval, and counts those between.
#[derive(Debug)]
pub struct Limited {
    burst: u32,
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Messages that may still go at once, as of `since`.
    left: u32,
    since: Option<Instant>,
    unsaid: u64,
}

impl Limited {
    /// So many at once, then one in each interval.
    #[must_use]
    pub fn new((burst, interval): (u32, Duration)) -> Self {
        Self { burst, interval, state: Mutex::new(State { left: burst, since: None, unsaid: 0 }) }
    }

    /// Whether a message may go now: then the number of those that might not since the last.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        let since = *state.since.get_or_insert(now);
        let earned = now.saturating_duration_since(since).as_nanos() / self.interval.as_nanos().max(1);
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        if earned > 0 {
            state.left = state.left.saturating_add(earned).min(self.burst);
            state.since = Some(now);
        }
        if state.left == 0 {
            state.unsaid += 1;
            return None;
        }
        state.left -= 1;
        Some(std::mem::take(&mut state.unsaid))
    }
}

/// Words for how many were not said.
#[must_use]
pub fn unsaid(count: u64) -> String {
    if count == 0 { String::new() } else { format!(" ({count} more of these since the last such message)") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_an_interval_with_the_count_of_the_others() {
        let limited = Limited::new((2, Duration::from_secs(10)));
        let start = Instant::now();
        let at = |seconds| limited.pass(start + Duration::from_secs(seconds));
        assert_eq!([at(0), at(0), at(0), at(1), at(9)], [Some(0), Some(0), None, None, None]);
        assert_eq!([at(10), at(11)], [Some(3), None]);
        assert_eq!([at(60), at(60), at(60)], [Some(1), Some(0), None], "the burst is earned again");
        assert_eq!(unsaid(0), "");
        assert_eq!(unsaid(3), " (3 more of these since the last such message)");
    }
}
