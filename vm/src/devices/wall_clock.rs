//! How the machine's clock of the time of day keeps to the host's. It counts guest time, which stands still where the
//! VM does: in an image on disk, and between a checkpoint and the take-over from it. So whoever goes on with the VM
//! looks how far the host's clock has come beyond it meanwhile, and sets it forward by whole seconds, as a clock with a
//! battery would have gone on. What the guest has set its clock to, apart from the host's, stays between them.

use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

const NS_PER_S: i64 = 1_000_000_000;

/// What the clock keeps to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WallClockState {
    /// Unix time in nanoseconds at guest time zero, as when the two were compared last; none: they never are, in a
    /// machine that came as a state that does not say it.
    pub zero_unix_ns: Option<i64>,
}

/// The host's clock: Unix time in nanoseconds.
pub(crate) fn unix_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

impl WallClockState {
    /// They agree at this moment.
    pub(crate) fn agreeing(unix_ns: i64, guest_ns: u64) -> Self {
        Self { zero_unix_ns: Some(unix_ns.saturating_sub_unsigned(guest_ns)) }
    }

    /// Whole seconds that the clock is behind the host's, where that shows this time; negative where it is ahead.
    pub(crate) fn behind_s(self, unix_ns: i64, guest_ns: u64) -> i64 {
        let Some(zero_unix_ns) = self.zero_unix_ns else { return 0 };
        let behind_ns = unix_ns.saturating_sub_unsigned(guest_ns).saturating_sub(zero_unix_ns);
        behind_ns.saturating_add(NS_PER_S / 2).div_euclid(NS_PER_S)
    }

    /// The clock was set forward.
    pub(crate) fn forward(&mut self, seconds: i64) {
        if let Some(zero_unix_ns) = &mut self.zero_unix_ns {
            *zero_unix_ns = zero_unix_ns.saturating_add(seconds.saturating_mul(NS_PER_S));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_clock_that_was_set_forward_is_less_than_a_second_apart(
            (unix_ns, guest_ns, gone_ns) in (0..1i64 << 61, 0..1u64 << 61, -(1i64 << 60)..1i64 << 60),
        ) {
            let mut clock = WallClockState::agreeing(unix_ns, guest_ns);
            prop_assert_eq!(clock.behind_s(unix_ns, guest_ns), 0);
            let behind_s = clock.behind_s(unix_ns + gone_ns, guest_ns);
            prop_assert!((behind_s * NS_PER_S - gone_ns).abs() <= NS_PER_S / 2);
            clock.forward(behind_s);
            prop_assert_eq!(clock.behind_s(unix_ns + gone_ns, guest_ns), 0);
        }

        #[test]
        fn no_state_makes_it_fail(zero in any::<Option<i64>>(), unix_ns: i64, guest_ns: u64, seconds: i64) {
            let mut clock = WallClockState { zero_unix_ns: zero };
            clock.forward(seconds);
            let behind_s = clock.behind_s(unix_ns, guest_ns);
            prop_assert!(zero.is_some() || behind_s == 0);
        }
    }
}
