//! Virtual time: a function of the instruction count, by a pace that is set now and then, and moved forward where the
//! guest idles. Both are logged inputs.
//!
//! While the guest computes, every instruction takes the pace's time, and the owner of the processor sets the pace so
//! that virtual time follows the host's. So a busy guest sees time go by evenly (calibration of one clock against
//! another is exact: all clocks are this one), and an idle guest's time jumps to the host's. It never goes back.

/// The time stamp counter's frequency: one tick a nanosecond, so that TSC and virtual time are the same number.
pub(crate) const TSC_KHZ: u32 = 1_000_000;

/// Nanoseconds that 256 instructions take.
pub type Pace = u32;
/// Before anything is known about the host: 100 million instructions a second.
pub(crate) const PACE_START: Pace = 10 << 8;
/// From two billion instructions a second down to two million.
pub const PACES: std::ops::RangeInclusive<Pace> = 1 << 7..=500 << 8;

/// Virtual time of an instruction count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Clock {
    /// The time at...
    base_ns: u64,
    /// ...this count.
    base_count: u64,
    pace: Pace,
}

impl Default for Clock {
    fn default() -> Self {
        Self { base_ns: 0, base_count: 0, pace: PACE_START }
    }
}

impl Clock {
    /// Virtual time when `count` instructions have retired.
    #[inline]
    pub fn ns(&self, count: u64) -> u64 {
        let since = u128::from(count.wrapping_sub(self.base_count)) * u128::from(self.pace);
        self.base_ns.wrapping_add((since >> 8) as u64)
    }

    /// The first count at which virtual time is at least `ns`.
    pub(crate) fn count_at(&self, ns: u64) -> u64 {
        let counts = (u128::from(ns.saturating_sub(self.base_ns)) << 8).div_ceil(u128::from(self.pace));
        self.base_count.saturating_add(u64::try_from(counts).unwrap_or(u64::MAX))
    }

    /// The pace.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// Moves time forward.
    pub fn advance(&mut self, by_ns: u64) {
        self.base_ns = self.base_ns.wrapping_add(by_ns);
    }

    /// From `count` on, instructions take another time.
    pub fn set_pace(&mut self, count: u64, pace: Pace) {
        *self = Self {
            base_ns: self.ns(count),
            base_count: count,
            pace: pace.clamp(*PACES.start(), *PACES.end()),
        };
    }

    /// Whether this is a clock that a machine can have at `count`, with a time of at most `max_ns`. A state is not
    /// trusted.
    pub fn is_valid(&self, count: u64, max_ns: u64) -> bool {
        let since = (u128::from(count.wrapping_sub(self.base_count)) * u128::from(self.pace)) >> 8;
        PACES.contains(&self.pace)
            && self.base_count <= count
            && u128::from(self.base_ns) + since <= u128::from(max_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_count_is_the_first_at_its_time(
            pace in PACES,
            base_ns in 0..1_u64 << 50,
            base in 0..1_u64 << 50,
            ns in 0..1_u64 << 51,
        ) {
            let clock = Clock { base_ns, base_count: base, pace };
            let count = clock.count_at(ns);
            prop_assert!(clock.ns(count) >= ns);
            prop_assert!(count == base || clock.ns(count - 1) < ns);
        }

        #[test]
        fn another_pace_lets_time_go_on(pace in PACES, other in PACES, count in 0..1_u64 << 50) {
            let mut clock = Clock::default();
            clock.set_pace(0, pace);
            let before = clock.ns(count);
            clock.set_pace(count, other);
            prop_assert_eq!(clock.ns(count), before);
            prop_assert!(clock.ns(count + 1) >= before);
        }
    }
}
