//! How soon another pairing is tried after one that failed. A pairing that cannot be must not cost a full copy again
//! and again: each failure makes the next attempt wait twice as long as the one before, and from the second on for as
//! long as the attempt took at least. A pairing that reached protection and lasted makes up for the failures before it.
//! A link that comes and goes takes the VM's protection each time, and each time costs a full copy: a few are free, and
//! the waits between the others are so long that copies take a small part of the time.
//!
//! Both nodes count, each for itself: the backup dials later, the primary admits later.

use super::event::Micros;
use super::policy::Policy;

/// A pairing that was protected for so long was well, whatever ended it.
const LASTED_US: Micros = 60_000_000;
/// So many connections in a row may be lost without a wait: processes die, links hiccup.
const LOST_FREELY: u32 = 3;
/// A pairing that was protected, and lost, is made up for at the latest after so many times its copy's length.
const COPIES_WAITED: u64 = 8;

/// How a pairing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The connection was lost, and nothing else is known.
    Lost,
    /// This node could not do its part, or what was shipped could not be carried or used.
    Failed,
}

/// The pairings so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Attempts {
    /// Pairings in a row that were not, or did not stay, what they are for.
    failures: u32,
    /// Connections in a row that were lost soon after protection was reached.
    losses: u32,
    /// The one under way: when it began, and when it reached protection.
    pairing: Option<(Micros, Option<Micros>)>,
    /// None begins before.
    next_at: Micros,
}

impl Attempts {
    /// A full copy begins.
    pub(super) fn begin(&mut self, now: Micros) {
        self.pairing = Some((now, None));
    }

    /// The cell names the backup.
    pub(super) fn reach_protection(&mut self, now: Micros) {
        if let Some((_, protected_at)) = &mut self.pairing {
            protected_at.get_or_insert(now);
        }
    }

    /// What ends the pairing is the other node's to count.
    pub(super) fn excuse(&mut self) {
        self.pairing = None;
    }

    /// The pairing is over. How long the next one waits.
    pub(super) fn end(&mut self, now: Micros, how: Ending, policy: &Policy) -> Micros {
        let Some((began, protected_at)) = self.pairing.take() else { return self.wait_us(now) };
        let has_lasted = protected_at.is_some_and(|since| now.saturating_sub(since) >= LASTED_US);
        let unit_us = policy.pairing_wait_us_min.max(protected_at.unwrap_or(now).saturating_sub(began));
        let (streak, free, most_us) = match (how, protected_at) {
            (Ending::Lost, Some(_)) => {
                // Whatever made pairings fail before has passed.
                self.failures = 0;
                self.losses = if has_lasted { 0 } else { self.losses.saturating_add(1) };
                (self.losses, LOST_FREELY, unit_us.saturating_mul(COPIES_WAITED))
            }
            (Ending::Lost | Ending::Failed, _) => {
                self.failures = if has_lasted { 1 } else { self.failures.saturating_add(1) };
                (self.failures, if how == Ending::Lost { LOST_FREELY } else { 0 }, Micros::MAX)
            }
        };
        let wait_us = match streak.checked_sub(free + 1) {
            None => 0,
            Some(0) => policy.pairing_wait_us_min,
            Some(doublings) => unit_us.saturating_mul(1 << doublings.min(32)),
        };
        self.next_at = now + wait_us.min(most_us).min(policy.pairing_wait_us_max);
        self.wait_us(now)
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Until the next one may begin.
    pub(super) fn wait_us(&self, now: Micros) -> Micros {
        self.next_at.saturating_sub(now)
    }
}

/// A wait in words: whole seconds, none of which is over yet.
pub(super) fn in_seconds(us: Micros) -> String {
    format!("{} s", us.div_ceil(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::super::tests::policy;
    use super::*;

    const SECOND: Micros = 1_000_000;

    /// Pairings that each end so long after they began, the last of it under protection; what each makes wait, in
    /// seconds.
    fn waits(ending: Ending, copy_s: u64, protected_s: Option<u64>, many: usize) -> Vec<u64> {
        let (mut attempts, policy, mut now) = (Attempts::default(), policy(), 7);
        (0..many)
            .map(|_| {
                attempts.begin(now);
                now += copy_s * SECOND;
                if let Some(protected_s) = protected_s {
                    attempts.reach_protection(now);
                    now += protected_s * SECOND;
                }
                let wait = attempts.end(now, ending, &policy);
                assert_eq!(attempts.wait_us(now + wait), 0);
                now += wait;
                wait / SECOND
            })
            .collect()
    }

    #[test]
    fn a_pairing_that_cannot_be_is_tried_later_and_later() {
        assert_eq!(waits(Ending::Failed, 0, None, 11), [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600]);
        assert_eq!(waits(Ending::Failed, 70, Some(12), 5), [1, 140, 280, 560, 600], "it costs a copy each");
        assert_eq!(waits(Ending::Lost, 0, None, 6), [0, 0, 0, 1, 2, 4]);
    }

    #[test]
    fn a_pairing_that_reached_protection_and_lasted_makes_up_for_it() {
        assert_eq!(waits(Ending::Failed, 0, Some(60), 3), [1, 1, 1]);
        assert_eq!(waits(Ending::Lost, 5, Some(60), 9), [0; 9]);
        let (mut attempts, policy) = (Attempts::default(), policy());
        for _ in 0..4 {
            attempts.begin(0);
            attempts.end(0, Ending::Failed, &policy);
        }
        attempts.begin(20 * SECOND);
        attempts.reach_protection(20 * SECOND);
        assert_eq!(attempts.end(80 * SECOND, Ending::Lost, &policy), 0);
    }

    #[test]
    fn a_link_that_comes_and_goes_under_protection_gets_a_copy_now_and_then() {
        assert_eq!(waits(Ending::Lost, 5, Some(0), 3), [0; 3], "a loss costs nothing");
        assert_eq!(waits(Ending::Lost, 5, Some(2), 9), [0, 0, 0, 1, 10, 20, 40, 40, 40]);
        assert_eq!(waits(Ending::Lost, 0, Some(59), 9), [0, 0, 0, 1, 2, 4, 8, 8, 8]);
        assert_eq!(waits(Ending::Lost, 90, Some(2), 8), [0, 0, 0, 1, 180, 360, 600, 600]);
    }

    #[test]
    fn what_failed_before_protection_does_not_count_after_it() {
        let (mut attempts, policy, mut now) = (Attempts::default(), policy(), 7);
        for _ in 0..3 {
            for wait_s in [1, 2, 4] {
                attempts.begin(now);
                let wait = attempts.end(now, Ending::Failed, &policy);
                assert_eq!(wait / SECOND, wait_s);
                now += wait;
            }
            attempts.begin(now);
            attempts.reach_protection(now);
            assert_eq!(attempts.end(now + SECOND, Ending::Lost, &policy), 0);
        }
    }

    #[test]
    fn what_the_peer_counts_is_not_counted_here() {
        let (mut attempts, policy) = (Attempts::default(), policy());
        for now in 0..9 {
            attempts.begin(now);
            attempts.excuse();
            assert_eq!(attempts.end(now, Ending::Lost, &policy), 0);
        }
    }

    #[test]
    fn a_wait_is_told_in_whole_seconds() {
        assert_eq!([1, SECOND, SECOND + 1].map(in_seconds), ["1 s", "1 s", "2 s"]);
    }
}
