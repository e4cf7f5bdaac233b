//! How soon what has happened happens again: a guest that has reset boots, a node that was fenced comes back. At once,
//! unless it happens again and again; then each time waits longer than the one before. A loop that may end by itself (a
//! service elsewhere that is away, a link that flaps) costs neither processor nor network nor log.

use super::event::Micros;

/// What has gone on for so long since it began is no loop.
const CALM_US: Micros = 60_000_000;
/// So many times in a row go without a delay.
const AT_ONCE: u32 = 5;
const DELAY_MIN_US: Micros = 1_000_000;
const DELAY_MAX_US: Micros = 60_000_000;

/// How often it has happened of late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Streak {
    /// In a row, each within [`CALM_US`] of the one before it.
    pub(super) length: u32,
    began_at: Option<Micros>,
}

impl Streak {
    /// It has ended: when it begins again.
    pub(super) fn next_at(&mut self, now: Micros) -> Micros {
        let soon = self.began_at.is_some_and(|began| now.saturating_sub(began) < CALM_US);
        self.length = if soon { self.length.saturating_add(1) } else { 1 };
        let delay_us = match self.length.checked_sub(AT_ONCE + 1) {
            None => 0,
            Some(doublings) => (DELAY_MIN_US << doublings.min(16)).min(DELAY_MAX_US),
        };
        self.began_at = Some(now + delay_us);
        now + delay_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_waits_longer_each_time_up_to_a_minute_and_what_went_on_does_not() {
        let mut streak = Streak::default();
        let mut now = 5;
        let mut delays = Vec::new();
        for _ in 0..14 {
            let at = streak.next_at(now);
            delays.push((at - now) / 1_000_000);
            now = at + 100_000;
        }
        assert_eq!(delays, [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        now += CALM_US;
        assert_eq!((streak.next_at(now), streak.length), (now, 1));
    }
}
