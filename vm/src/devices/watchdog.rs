//! The watchdog: a countdown that the guest starts and reloads by ports, which the ACPI table WDAT describes. When it
//! is over the guest has hung. It counts the time in which the guest runs: where the VM stands still (a checkpoint, a
//! host that was frozen, an image on disk) so does the countdown.
//!
//! | port | bytes | |
//! |---|---|---|
//! | +0 | 1 | control: bit 0 is set while it counts; set, it begins anew |
//! | +1 | 1 | written: begins anew |
//! | +2 | 2 | ticks from the beginning to the end; from the next beginning on |
//! | +4 | 2 | read: ticks that are left |
//!
//! What is over stays over until a reset, and is in the state as that: whoever goes on with it says so again.

use super::error::DeviceStateError;
use ft_ram::layout::{WATCHDOG_PORT, WATCHDOG_TICK_MS};
use serde::{Deserialize, Serialize};

const CONTROL: u16 = 0;
const RELOAD: u16 = 1;
const COUNT: u16 = 2;
const LEFT: u16 = 4;
const PORTS: u16 = 8;

const RUNS: u8 = 1 << 0;
const TICK_NS: u64 = WATCHDOG_TICK_MS as u64 * 1_000_000;
/// A host that is busy looks more often than this.
const GAP_MAX_NS: u64 = 1_000_000_000;
/// 30 seconds.
const COUNT_AT_POWER_ON: u16 = (30_000 / WATCHDOG_TICK_MS) as u16;

/// The watchdog's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchdogState {
    /// Ticks from the beginning to the end.
    pub count: u16,
    /// Nanoseconds that are left, while it counts.
    pub left_ns: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Countdown {
    Off,
    /// It is over at this guest time.
    Until(u64),
    /// The VM stands still; so much is left.
    Held(u64),
    /// It is over, and that was said.
    Over,
}

/// See the module. Times are guest times in nanoseconds.
pub(crate) struct Watchdog {
    count: u16,
    countdown: Countdown,
    /// When it was last looked at, of one that is looked at again and again.
    looked_ns: u64,
}

impl Default for Watchdog {
    fn default() -> Self {
        Self { count: COUNT_AT_POWER_ON, countdown: Countdown::Off, looked_ns: 0 }
    }
}

impl Watchdog {
    pub(crate) fn owns(port: u16) -> bool {
        (WATCHDOG_PORT..WATCHDOG_PORT + PORTS).contains(&port)
    }

    /// Reads one byte.
    pub(crate) fn read(&self, now_ns: u64, port: u16) -> u8 {
        let ticks = self.left_ns(now_ns).unwrap_or(0).div_ceil(TICK_NS) as u16;
        let byte = |register: u16, offset: u16| register.to_le_bytes()[usize::from(offset & 1)];
        match port - WATCHDOG_PORT {
            CONTROL => u8::from(self.countdown != Countdown::Off) * RUNS,
            offset @ COUNT..LEFT => byte(self.count, offset),
            offset @ LEFT..6 => byte(ticks, offset),
            _ => 0,
        }
    }

    /// Writes one byte.
    pub(crate) fn write(&mut self, now_ns: u64, port: u16, value: u8) {
        match port - WATCHDOG_PORT {
            CONTROL if value & RUNS != 0 => self.begin(now_ns),
            CONTROL => self.countdown = Countdown::Off,
            RELOAD if self.countdown != Countdown::Off => self.begin(now_ns),
            offset @ COUNT..LEFT => {
                let mut bytes = self.count.to_le_bytes();
                bytes[usize::from(offset & 1)] = value;
                self.count = u16::from_le_bytes(bytes);
            }
            _ => {}
        }
    }

    /// Begins with so many milliseconds, or ends with none; for guests that have no ports.
    pub(crate) fn set_ms(&mut self, now_ns: u64, ms: u64) {
        if ms == 0 {
            self.countdown = Countdown::Off;
            return;
        }
        self.count = u16::try_from(ms.div_ceil(WATCHDOG_TICK_MS.into())).unwrap_or(u16::MAX);
        self.begin(now_ns);
    }

    fn begin(&mut self, now_ns: u64) {
        self.looked_ns = now_ns;
        self.countdown = Countdown::Until(now_ns.saturating_add(u64::from(self.count) * TICK_NS));
    }

    fn left_ns(&self, now_ns: u64) -> Option<u64> {
        match self.countdown {
            Countdown::Off => None,
            Countdown::Until(due_ns) => Some(due_ns.saturating_sub(now_ns)),
            Countdown::Held(left_ns) => Some(left_ns),
            Countdown::Over => Some(0),
        }
    }

    /// When it is over, unless something is done before.
    pub(crate) fn due_ns(&self) -> Option<u64> {
        match self.countdown {
            Countdown::Until(due_ns) => Some(due_ns),
            Countdown::Off | Countdown::Held(_) | Countdown::Over => None,
        }
    }

    /// Whether it is over; said once.
    pub(crate) fn fire(&mut self, now_ns: u64) -> bool {
        let is_over = self.due_ns().is_some_and(|due_ns| due_ns <= now_ns);
        if is_over {
            self.countdown = Countdown::Over;
        }
        is_over
    }

    /// The same, for one who looks again and again: where nobody looked for long, nothing ran.
    pub(crate) fn look(&mut self, now_ns: u64) -> bool {
        let gap_ns = now_ns.saturating_sub(std::mem::replace(&mut self.looked_ns, now_ns));
        if gap_ns > GAP_MAX_NS {
            self.postpone(gap_ns);
        }
        self.fire(now_ns)
    }

    /// The VM stands still from now on.
    pub(crate) fn hold(&mut self, now_ns: u64) {
        if let Countdown::Until(due_ns) = self.countdown {
            self.countdown = Countdown::Held(due_ns.saturating_sub(now_ns));
        }
    }

    /// The VM goes on.
    pub(crate) fn go_on(&mut self, now_ns: u64) {
        if let Countdown::Held(left_ns) = self.countdown {
            self.looked_ns = now_ns;
            self.countdown = Countdown::Until(now_ns.saturating_add(left_ns));
        }
    }

    /// The VM stood still for so long, as is found now.
    pub(crate) fn postpone(&mut self, ns: u64) {
        if let Countdown::Until(due_ns) = &mut self.countdown {
            *due_ns = due_ns.saturating_add(ns);
        }
    }

    pub(crate) fn capture(&self, now_ns: u64) -> WatchdogState {
        WatchdogState { count: self.count, left_ns: self.left_ns(now_ns) }
    }

    pub(crate) fn check(state: &WatchdogState) -> Result<(), DeviceStateError> {
        match state.left_ns {
            Some(left_ns) if left_ns > u64::from(u16::MAX) * TICK_NS => {
                Err(DeviceStateError::Watchdog { left_ns })
            }
            _ => Ok(()),
        }
    }

    /// Takes over what [`Self::check`] passed. The VM stands still.
    pub(crate) fn restore(&mut self, state: WatchdogState) {
        let WatchdogState { count, left_ns } = state;
        *self = Self { count, countdown: left_ns.map_or(Countdown::Off, Countdown::Held), looked_ns: 0 };
    }
}

impl WatchdogState {
    /// As after power-on: the guest has not used it.
    pub(crate) fn is_unused(&self) -> bool {
        *self == Watchdog::default().capture(0)
    }

    /// After power-on.
    pub(crate) fn unused() -> Self {
        Watchdog::default().capture(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;

    fn counting() -> Watchdog {
        let mut watchdog = Watchdog::default();
        watchdog.write(0, WATCHDOG_PORT + COUNT, 20);
        watchdog.write(0, WATCHDOG_PORT + COUNT + 1, 0);
        watchdog.write(S, WATCHDOG_PORT + CONTROL, 1);
        watchdog
    }

    fn ticks(watchdog: &Watchdog, now_ns: u64) -> u16 {
        u16::from_le_bytes([LEFT, LEFT + 1].map(|offset| watchdog.read(now_ns, WATCHDOG_PORT + offset)))
    }

    #[test]
    fn it_is_over_when_nobody_reloads_it_and_says_so_once() {
        let mut watchdog = counting();
        assert_eq!((watchdog.due_ns(), ticks(&watchdog, 2 * S)), (Some(3 * S), 10));
        assert!(!watchdog.fire(3 * S - 1));
        watchdog.write(3 * S - 1, WATCHDOG_PORT + RELOAD, 0);
        assert!(!watchdog.fire(5 * S - 2));
        assert!(watchdog.fire(5 * S - 1) && !watchdog.fire(9 * S));
        assert_eq!((watchdog.read(9 * S, WATCHDOG_PORT), ticks(&watchdog, 9 * S)), (1, 0));
    }

    #[test]
    fn one_that_was_stopped_or_never_begun_is_never_over() {
        let mut watchdog = Watchdog::default();
        watchdog.write(0, WATCHDOG_PORT + RELOAD, 1);
        assert!(!watchdog.fire(u64::MAX) && watchdog.read(0, WATCHDOG_PORT) == 0);
        let mut watchdog = counting();
        watchdog.write(2 * S, WATCHDOG_PORT + CONTROL, 0);
        watchdog.write(2 * S, WATCHDOG_PORT + RELOAD, 1);
        assert!(!watchdog.fire(u64::MAX));
        watchdog.set_ms(0, 2000);
        assert_eq!(watchdog.due_ns(), Some(2 * S));
        watchdog.set_ms(0, u64::MAX);
        assert_eq!(watchdog.due_ns(), Some(u64::from(u16::MAX) * TICK_NS));
        watchdog.set_ms(0, 0);
        assert!(!watchdog.fire(u64::MAX));
    }

    #[test]
    fn it_stands_still_while_the_vm_does() {
        let mut watchdog = counting();
        watchdog.hold(2 * S);
        assert_eq!((watchdog.due_ns(), ticks(&watchdog, 900 * S)), (None, 10));
        assert!(!watchdog.fire(900 * S));
        watchdog.go_on(900 * S);
        assert_eq!(watchdog.due_ns(), Some(901 * S));
        watchdog.postpone(50 * S);
        assert!(!watchdog.fire(950 * S) && watchdog.fire(951 * S));
    }

    #[test]
    fn where_nobody_looked_for_long_it_has_not_counted() {
        let mut watchdog = counting();
        assert!(!watchdog.look(S + S / 2) && !watchdog.look(600 * S));
        assert_eq!(watchdog.due_ns(), Some(3 * S + 600 * S - S - S / 2));
        for half_seconds in 1..3 {
            assert!(!watchdog.look(600 * S + half_seconds * S / 2));
        }
        assert!(watchdog.look(600 * S + 3 * S / 2), "and then it counts");
    }

    #[test]
    fn a_state_goes_on_elsewhere_with_what_is_left_and_what_was_over_is_over_there_too() {
        let mut watchdog = counting();
        let mut there = Watchdog::default();
        there.restore(watchdog.capture(2 * S));
        there.go_on(70 * S);
        assert_eq!(there.due_ns(), Some(71 * S));
        assert!(watchdog.fire(3 * S));
        there.restore(watchdog.capture(4 * S));
        assert_eq!(there.capture(0), watchdog.capture(4 * S));
        there.go_on(70 * S);
        assert!(there.fire(70 * S));
        let state = WatchdogState { count: 1, left_ns: Some(u64::from(u16::MAX) * TICK_NS + 1) };
        assert!(Watchdog::check(&state).is_err());
    }

    proptest! {
        /// Whatever is written where, a state comes back as it is, and is one that is taken.
        #[test]
        fn any_bytes_at_any_port_leave_a_state_that_comes_back(
            writes in prop::collection::vec((0..PORTS, any::<u8>(), 0..10 * S), 0..50),
        ) {
            let (mut watchdog, mut now_ns) = (Watchdog::default(), 0);
            for (offset, value, later_ns) in writes {
                now_ns += later_ns;
                watchdog.write(now_ns, WATCHDOG_PORT + offset, value);
                watchdog.fire(now_ns);
            }
            let state = watchdog.capture(now_ns);
            prop_assert!(Watchdog::check(&state).is_ok());
            let mut there = Watchdog::default();
            there.restore(state);
            prop_assert_eq!(there.capture(7), state);
            for port in 0..PORTS {
                prop_assert_eq!(there.read(7, WATCHDOG_PORT + port), watchdog.read(now_ns, WATCHDOG_PORT + port));
            }
        }
    }
}
