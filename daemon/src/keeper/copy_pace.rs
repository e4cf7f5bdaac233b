//! The guest's speed during a full copy, and when the copy is over. A guest that writes faster than it is copied is
//! slowed until each round is half of the one before. The copy is over when what is left is carried in a moment: the
//! first checkpoint holds it, and output is held until that is acked.

use crate::role::Micros;

/// The first checkpoint takes no longer than this on its way.
const FIRST_HOLD_US: u64 = 250_000;
/// Nor has it more pages than make a pause of a few milliseconds.
const LEFT_PAGES_MAX: u64 = 2048;
/// Fewer pages are no reason for another round.
const LEFT_PAGES_MIN: u64 = 64;
/// Rounds of a guest at its slowest that may leave about as much as the one before.
const VAIN_ROUNDS_MAX: u32 = 4;
/// Rounds at all.
const ROUNDS_MAX: u32 = 30;
/// A slowed guest runs once in this time, or for at least as long as [`STINT_US`].
const PERIOD_US: u64 = 20_000;
/// It runs for at least so long.
const STINT_US: u64 = 500;

/// What follows a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// Another one.
    Next,
    /// What is left goes with the first checkpoint.
    Last,
    /// Even the slowest guest writes faster than it is copied.
    Hopeless,
}

/// See the module.
#[derive(Debug)]
pub(super) struct CopyPace {
    speed_permille: u64,
    slowest_permille: u64,
    rounds: u32,
    vain_rounds: u32,
    began: Micros,
}

impl CopyPace {
    /// The first round begins; the guest runs freely.
    pub(super) fn begin(now: Micros, speed_pct_min: u64) -> Self {
        let slowest_permille = speed_pct_min * 10;
        Self { speed_permille: 1000, slowest_permille, rounds: 0, vain_rounds: 0, began: now }
    }

    /// A round has sent `sent` pages, during which the guest has dirtied `dirty`.
    pub(super) fn round(&mut self, now: Micros, sent: u64, dirty: u64) -> Round {
        let took_us = now.saturating_sub(self.began).max(1);
        self.began = now;
        self.rounds += 1;
        let left_max = (sent * FIRST_HOLD_US / took_us).clamp(LEFT_PAGES_MIN, LEFT_PAGES_MAX);
        if dirty <= left_max {
            return Round::Last;
        }
        // A round that leaves as much as it sent does not even tell how fast the guest writes.
        let in_vain = dirty * 10 > sent * 9;
        self.vain_rounds += u32::from(in_vain && self.speed_permille == self.slowest_permille);
        if self.vain_rounds >= VAIN_ROUNDS_MAX || self.rounds >= ROUNDS_MAX {
            return Round::Hopeless;
        }
        let slower = if in_vain { self.speed_permille / 4 } else { sent * self.speed_permille / (2 * dirty) };
        self.speed_permille = slower.clamp(self.slowest_permille, self.speed_permille);
        Round::Next
    }

    /// A round is over that has waited for something else than its pages: what the guest has dirtied meanwhile says
    /// nothing of how fast they are copied.
    pub(super) fn round_over(&mut self, now: Micros) -> Round {
        self.began = now;
        Round::Next
    }

    /// The guest's speed, in thousandths.
    pub(super) fn speed_permille(&self) -> u64 {
        self.speed_permille
    }

    /// Whether the guest runs now.
    pub(super) fn runs(&self, now: Micros) -> bool {
        if self.speed_permille >= 1000 {
            return true;
        }
        let period = PERIOD_US.max(STINT_US * 1000 / self.speed_permille);
        now.saturating_sub(self.began) % period < period * self.speed_permille / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Copies a guest with so many pages that writes so many different ones a second, at so many pages a second.
    fn copy(pages: u64, writes_per_s: u64, carried_per_s: u64, speed_pct_min: u64) -> (Round, u64, u64) {
        let mut pace = CopyPace::begin(0, speed_pct_min);
        let (mut now, mut sent) = (0, pages);
        loop {
            let took_us = sent * 1_000_000 / carried_per_s;
            let dirty = (writes_per_s * took_us * pace.speed_permille() / 1_000_000_000).min(pages);
            now += took_us;
            match pace.round(now, sent, dirty) {
                Round::Next => sent = dirty,
                over => return (over, dirty, now / 1_000_000),
            }
        }
    }

    #[test]
    fn a_copy_ends_with_little_left_or_says_that_it_cannot() {
        // 256 MiB, 20,000 pages a second of 4 KiB: 80 MB/s.
        let (pages, writes) = (65_536, 20_000);
        for (mbit, slowest) in [(1000, 10), (200, 10), (50, 5), (10, 1)] {
            let carried = mbit * 1_000_000 / 8 / 4096;
            let (round, left, seconds) = copy(pages, writes, carried, slowest);
            assert_eq!(round, Round::Last, "{mbit} Mbit/s");
            assert!(left <= (carried / 4).max(LEFT_PAGES_MIN), "{mbit} Mbit/s: {left} pages");
            assert!(seconds <= 7 * pages / carried, "{mbit} Mbit/s: {seconds} s");
        }
        let (round, _, seconds) = copy(pages, writes, 305, 20);
        assert_eq!(round, Round::Hopeless);
        assert!(seconds < 2000, "{seconds}");
    }

    #[test]
    fn a_guest_that_writes_little_is_not_slowed() {
        let mut pace = CopyPace::begin(0, 10);
        assert_eq!(pace.round(1_000_000, 10_000, 3000), Round::Next);
        assert_eq!(pace.speed_permille(), 1000);
        assert!(pace.runs(1_000_001));
    }

    #[test]
    fn a_round_that_waited_for_disks_slows_no_guest() {
        let mut pace = CopyPace::begin(0, 10);
        assert_eq!(pace.round_over(600_000_000), Round::Next);
        assert_eq!(pace.round(601_000_000, 10_000, 3000), Round::Next);
        assert_eq!(pace.speed_permille(), 1000);
        assert_eq!(
            pace.round(601_300_000, 3000, 900),
            Round::Last,
            "of 10,000 pages a second, and not of 17"
        );
    }

    #[test]
    fn a_slowed_guest_runs_for_its_part_of_the_time() {
        for speed in [10, 100, 333, 900] {
            let mut pace = CopyPace::begin(0, 1);
            pace.speed_permille = speed;
            let ran = (0..10_000_000).step_by(100).filter(|now| pace.runs(*now)).count();
            let part = ran as u64 * 1000 / 100_000;
            assert!(part.abs_diff(speed) <= 2, "{part} of {speed}");
        }
    }
}
