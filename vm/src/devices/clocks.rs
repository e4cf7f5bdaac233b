//! What goes by time: the clock of the time of day, which keeps to the host's, and the watchdog.

use super::rtc::Rtc;
use super::wall_clock::unix_ns;
use super::watchdog::Watchdog;
use super::{Devices, WallClockState};
use parking_lot::Mutex;
use std::sync::atomic::Ordering;

impl Devices {
    /// The clock of the time of day, where it is here, and the port is its.
    pub(super) fn rtc_at(&self, port: u16) -> Option<&Mutex<Rtc>> {
        self.rtc.as_ref().filter(|_| Rtc::owns(port))
    }

    /// The state was taken over: the clock goes on to the host's time of day.
    pub(super) fn keep_to_host(&self, rtc: &mut Rtc) {
        let now_ns = self.platform.now_ns();
        let seconds = self.time_of_day_behind_s(now_ns);
        self.time_of_day_forwarded(seconds);
        rtc.forward(now_ns, seconds);
    }

    /// The machine is switched on: its clock has the host's time of day at this guest time.
    pub(crate) fn power_on_at(&self, guest_ns: u64) {
        *self.wall_clock.lock() = WallClockState::agreeing(unix_ns(), guest_ns);
    }

    /// Whole seconds that the clock of the time of day is behind the host's at this guest time.
    pub(crate) fn time_of_day_behind_s(&self, guest_ns: u64) -> i64 {
        self.wall_clock.lock().behind_s(unix_ns(), guest_ns)
    }

    /// The clock was set forward by so much.
    pub(crate) fn time_of_day_forwarded(&self, seconds: i64) {
        self.wall_clock.lock().forward(seconds);
    }

    pub(super) fn with_watchdog<R>(&self, act: impl FnOnce(&mut Watchdog, u64) -> R) -> R {
        let mut watchdog = self.watchdog.lock();
        let answer = act(&mut watchdog, self.platform.now_ns());
        self.watchdog_due_ns.store(watchdog.due_ns().unwrap_or(u64::MAX), Ordering::Relaxed);
        answer
    }

    /// When the watchdog is over, unless something is done before, in guest time.
    pub(crate) fn watchdog_due_ns(&self) -> Option<u64> {
        Some(self.watchdog_due_ns.load(Ordering::Relaxed)).filter(|due_ns| *due_ns != u64::MAX)
    }

    /// Whether the watchdog is over; said once.
    pub(crate) fn fire_watchdog(&self) -> bool {
        self.with_watchdog(Watchdog::fire)
    }

    /// For who looks again and again while the VM runs: what is due by time is done. Whether the watchdog is over; if
    /// the last look was long ago, the VM stood still.
    pub(crate) fn look(&self) -> bool {
        if let Some(rtc) = &self.rtc {
            rtc.lock().look(self.platform.now_ns());
        }
        self.with_watchdog(Watchdog::look)
    }

    /// The VM stood still for so long, of which the watchdog does not know.
    pub(crate) fn postpone_watchdog(&self, ns: u64) {
        self.with_watchdog(|watchdog, _| watchdog.postpone(ns));
    }
}
