//! How soon a guest that resets is booted again: at once, as a real machine does, unless it resets again and again
//! right after its boots. Then each boot waits longer than the one before, so that a boot loop, which may end by itself
//! (a service elsewhere that is away), costs neither processor nor log.

use super::event::Micros;

/// A guest that has run for so long since its boot is no boot loop.
const CALM_US: Micros = 60_000_000;
/// So many boots in a row go without a delay.
const AT_ONCE: u32 = 5;
const DELAY_MIN_US: Micros = 1_000_000;
const DELAY_MAX_US: Micros = 60_000_000;

/// The resets of this node's guest so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Resets {
    /// In a row, each within [`CALM_US`] of the boot before it.
    pub(super) streak: u32,
    booted_at: Option<Micros>,
}

impl Resets {
    /// The guest resets: when it is booted again.
    pub(super) fn boot_at(&mut self, now: Micros) -> Micros {
        let soon = self.booted_at.is_some_and(|booted| now.saturating_sub(booted) < CALM_US);
        self.streak = if soon { self.streak.saturating_add(1) } else { 1 };
        let delay_us = match self.streak.checked_sub(AT_ONCE + 1) {
            None => 0,
            Some(doublings) => (DELAY_MIN_US << doublings.min(16)).min(DELAY_MAX_US),
        };
        self.booted_at = Some(now + delay_us);
        now + delay_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_loop_waits_longer_each_time_up_to_a_minute_and_a_guest_that_ran_does_not() {
        let mut resets = Resets::default();
        let mut now = 5;
        let mut delays = Vec::new();
        for _ in 0..14 {
            let at = resets.boot_at(now);
            delays.push((at - now) / 1_000_000);
            now = at + 100_000;
        }
        assert_eq!(delays, [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        now += CALM_US;
        assert_eq!((resets.boot_at(now), resets.streak), (now, 1));
    }
}
