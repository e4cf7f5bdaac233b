//! Virtual time: a function of the instruction count, moved forward now and then by logged adjustments.
//!
//! An instruction takes [`NS_PER_INSTRUCTION`] nanoseconds of virtual time. The engine is slower than that on today's
//! hosts, so virtual time lags while the guest computes; the machine brings it forward to host time when the guest is
//! idle, and every millisecond or so while it is busy. It never goes back, and it never runs ahead of host time by more
//! than what a burst of cheap instructions gains.

/// Nanoseconds of virtual time that an instruction takes.
pub(crate) const NS_PER_INSTRUCTION: u64 = 4;
/// The time stamp counter's frequency: one tick a nanosecond, so that TSC and virtual time are the same number.
pub(crate) const TSC_KHZ: u32 = 1_000_000;

/// Virtual time of an instruction count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Clock {
    /// Sum of the adjustments.
    pub base_ns: u64,
}

impl Clock {
    /// Virtual time when `count` instructions have retired.
    pub(crate) fn ns(&self, count: u64) -> u64 {
        self.base_ns.wrapping_add(count.wrapping_mul(NS_PER_INSTRUCTION))
    }

    /// The first count at which virtual time is at least `ns`.
    pub(crate) fn count_at(&self, ns: u64) -> u64 {
        ns.saturating_sub(self.base_ns).div_ceil(NS_PER_INSTRUCTION)
    }

    /// Moves time forward.
    pub(crate) fn adjust(&mut self, by_ns: u64) {
        self.base_ns = self.base_ns.wrapping_add(by_ns);
    }
}
