//! A clock that goes on while the host is suspended.

use nix::time::ClockId;
use std::time::Duration;

/// Since this host was started.
pub(crate) fn since_boot() -> Duration {
    // Linux always has this clock.
    ClockId::CLOCK_BOOTTIME.now().map(Duration::from).unwrap_or_default()
}
