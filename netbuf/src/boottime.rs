//! The clock of permissions: CLOCK_BOOTTIME, which goes on while the host is suspended. A permission that was given
//! before a suspend must be over after it.

use nix::time::{ClockId, clock_gettime};
use std::ops::Add;
use std::time::Duration;

/// A moment of CLOCK_BOOTTIME of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// Now.
    ///
    /// # Panics
    /// When the kernel has no CLOCK_BOOTTIME: every Linux since 2.6.39 has it.
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME exists since Linux 2.6.39");
        Self(Duration::from(now))
    }

    /// The moment this many microseconds after the boot.
    #[must_use]
    pub fn from_us(us: u64) -> Self {
        Self(Duration::from_micros(us))
    }

    /// Microseconds since the boot.
    #[must_use]
    pub fn as_us(self) -> u64 {
        // 64 bits of microseconds are half a million years.
        self.0.as_micros() as u64
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self(self.0 + later)
    }
}
