//! The clock and CMOS memory (MC146818): the time of day is the time at power-on plus virtual time. The machine reads
//! the time at power-on from its host once, and keeps it as state. Alarm, periodic and update-ended interrupts are GSI
//! 8's.
//!
//! While the guest sets the clock (SET, or the divider in reset) the time stands in its cells as the guest writes it;
//! while it runs it is computed when it is read. The memory's other bytes are zero at power-on. A second begins 500 ms
//! after the divider's reset ends, and 244 us before each second update-in-progress says so.
//!
//! Flags (register C) are brought up to date when registers are accessed and when an enabled interrupt is due; many
//! missed ticks are one.

use super::ChipError;
use serde::{Deserialize, Serialize};
use std::ops::Range;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REG_A: u8 = 0x0a;
const REG_B: u8 = 0x0b;
const REG_C: u8 = 0x0c;
const REG_D: u8 = 0x0d;
/// Where PCs keep the century.
const CENTURY: u8 = 0x32;

const A_UPDATE_IN_PROGRESS: u8 = 0x80;
const A_DIVIDER: u8 = 0x70;
const A_DIVIDER_RUNS: u8 = 0x20;
const A_RATE: u8 = 0x0f;
const B_SET: u8 = 0x80;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
/// Interrupts: enabled in B, flagged in C.
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATE: u8 = 0x10;
const ENABLES: u8 = PERIODIC | ALARM | UPDATE;
const C_INTERRUPT: u8 = 0x80;
const D_BATTERY_GOOD: u8 = 0x80;
const HOUR_PM: u8 = 0x80;
/// Alarm bytes from here on match everything.
const ALARM_ANY: u8 = 0xc0;

const NS_PER_S: u64 = 1_000_000_000;
const UPDATE_NOTICE_NS: u64 = 244_000;
const BASE_HZ: u64 = 32_768;
const DAY_S: i64 = 86_400;
/// Years 0 to 9999.
const TIMES_S: Range<i64> = -62_167_219_200..253_402_300_800;

/// The clock and CMOS memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rtc {
    /// What port 0x70 selected.
    index: u8,
    /// The 128 bytes; those of the running time, and register C, D and bit 7 of A, are not kept here.
    cells: [[u8; 16]; 8],
    flags: u8,
    /// The time of day, in seconds of Unix time, that began at this virtual time.
    base_s: i64,
    base_ns: u64,
    /// Up to when the flags are known.
    seen_ns: u64,
}

impl Rtc {
    pub(super) fn new(boot_unix_s: u64) -> Rtc {
        Rtc::started(boot_unix_s, 0)
    }

    /// As after power-on, which is at this time of day, in seconds of Unix time, and at this virtual time.
    pub fn started(unix_s: u64, now_ns: u64) -> Rtc {
        let base_s = i64::try_from(unix_s).unwrap_or(i64::MAX).min(TIMES_S.end - 1);
        let mut rtc =
            Rtc { index: 0, cells: [[0; 16]; 8], flags: 0, base_s, base_ns: now_ns, seen_ns: now_ns };
        // 1024 Hz, as PCs start.
        *rtc.cell(REG_A) = A_DIVIDER_RUNS | 6;
        *rtc.cell(REG_B) = B_24_HOURS;
        rtc
    }

    /// Refuses a state that it cannot be in.
    pub fn validate(&self) -> Result<(), ChipError> {
        ChipError::none_of("RTC", "index", self.index.into(), 0x80)?;
        ChipError::none_of("RTC", "flags", self.flags.into(), !u64::from(ENABLES))?;
        ChipError::unless(TIMES_S.contains(&self.base_s), "RTC", "time of day", self.base_s as u64)
    }

    fn cell(&mut self, index: u8) -> &mut u8 {
        &mut self.cells[usize::from(index >> 4 & 7)][usize::from(index & 15)]
    }

    fn at(&self, index: u8) -> u8 {
        self.cells[usize::from(index >> 4 & 7)][usize::from(index & 15)]
    }

    /// The line to the interrupt controllers.
    pub fn output(&self) -> bool {
        self.flags & self.at(REG_B) & ENABLES != 0
    }

    fn divider_runs(&self) -> bool {
        self.at(REG_A) & A_DIVIDER == A_DIVIDER_RUNS
    }

    /// The time of day goes on, and is not in its cells.
    fn runs(&self) -> bool {
        self.divider_runs() && self.at(REG_B) & B_SET == 0
    }

    /// Whole seconds since the base.
    fn seconds_at(&self, ns: u64) -> u64 {
        ns.saturating_sub(self.base_ns) / NS_PER_S
    }

    fn time_s(&self, ns: u64) -> i64 {
        self.base_s.saturating_add_unsigned(self.seconds_at(ns))
    }

    /// When a time of day after the base comes.
    fn ns_of(&self, time_s: i64) -> u64 {
        self.base_ns.saturating_add(time_s.abs_diff(self.base_s).saturating_mul(NS_PER_S))
    }

    /// Ticks of the base clock in a period of the periodic interrupt; none: it is off.
    fn period(&self) -> Option<u64> {
        match self.at(REG_A) & A_RATE {
            _ if !self.divider_runs() => None,
            0 => None,
            // The two slowest rates of another base are this one's 8 and 9.
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    fn periods_at(&self, ns: u64, period: u64) -> u64 {
        let ticks = u128::from(ns.saturating_sub(self.base_ns)) * u128::from(BASE_HZ) / u128::from(NS_PER_S);
        ticks as u64 / period
    }

    fn decoded(&self, value: u8) -> i64 {
        if self.at(REG_B) & B_BINARY != 0 {
            value.into()
        } else {
            i64::from(value >> 4) * 10 + i64::from(value & 15)
        }
    }

    fn encoded(&self, value: i64) -> u8 {
        let value = value.rem_euclid(100) as u8;
        if self.at(REG_B) & B_BINARY != 0 { value } else { value / 10 * 16 + value % 10 }
    }

    fn decoded_hour(&self, value: u8) -> i64 {
        if self.at(REG_B) & B_24_HOURS != 0 {
            return self.decoded(value);
        }
        self.decoded(value & !HOUR_PM) % 12 + if value & HOUR_PM != 0 { 12 } else { 0 }
    }

    fn encoded_hour(&self, hour: i64) -> u8 {
        if self.at(REG_B) & B_24_HOURS != 0 {
            return self.encoded(hour);
        }
        self.encoded((hour + 11) % 12 + 1) | if hour >= 12 { HOUR_PM } else { 0 }
    }

    /// Puts the time of day into its cells.
    fn store_time(&mut self, now_ns: u64) {
        let time = self.time_s(now_ns);
        let (days, second) = (time.div_euclid(DAY_S), time.rem_euclid(DAY_S));
        let (year, month, day) = date_of(days);
        for (index, value) in [
            (SECONDS, self.encoded(second % 60)),
            (MINUTES, self.encoded(second / 60 % 60)),
            (HOURS, self.encoded_hour(second / 3600)),
            // 1 January 1970 was a Thursday, the fifth day.
            (WEEKDAY, self.encoded((days + 4).rem_euclid(7) + 1)),
            (DAY, self.encoded(day)),
            (MONTH, self.encoded(month)),
            (YEAR, self.encoded(year)),
            (CENTURY, self.encoded(year.div_euclid(100))),
        ] {
            *self.cell(index) = value;
        }
    }

    /// The time of day that the cells hold; what is no date becomes one.
    fn stored_time(&self) -> i64 {
        let field = |index, range: Range<i64>| self.decoded(self.at(index)).clamp(range.start, range.end - 1);
        let year = field(CENTURY, 0..100) * 100 + field(YEAR, 0..100);
        let days = days_of(year, field(MONTH, 1..13), field(DAY, 1..32));
        let hour = self.decoded_hour(self.at(HOURS)).clamp(0, 23);
        (days * DAY_S + hour * 3600 + field(MINUTES, 0..60) * 60 + field(SECONDS, 0..60)).min(TIMES_S.end - 1)
    }

    /// The next time after one at which the alarm matches.
    fn next_alarm(&self, after_s: i64) -> Option<i64> {
        let field = |value: u8, decoded: i64, bound| match decoded {
            _ if value >= ALARM_ANY => Some(0..bound),
            value if value < bound => Some(value..value + 1),
            _ => None,
        };
        let [second, minute, hour] = [SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM].map(|index| self.at(index));
        let seconds = field(second, self.decoded(second), 60)?;
        let minutes = field(minute, self.decoded(minute), 60)?;
        let hours = field(hour, self.decoded_hour(hour), 24)?;

        let start = after_s.saturating_add(1);
        let midnight = start.div_euclid(DAY_S) * DAY_S;
        let first_from = |from: i64| {
            let hours = hours.clone().filter(|hour| hour * 3600 + 3599 >= from);
            let minutes = hours.flat_map(|hour| minutes.clone().map(move |minute| hour * 3600 + minute * 60));
            minutes.filter(|at| at + 59 >= from).find_map(|at| {
                let second = seconds.start.max(from - at);
                seconds.contains(&second).then_some(at + second)
            })
        };
        let today = first_from(start - midnight);
        let then = today.or_else(|| first_from(0).map(|second| second + DAY_S))?;
        Some(midnight.saturating_add(then))
    }

    /// Brings the flags up to date.
    fn update(&mut self, now_ns: u64) {
        let seen_ns = self.seen_ns;
        if now_ns <= seen_ns {
            return;
        }
        self.seen_ns = now_ns;
        if let Some(period) = self.period()
            && self.periods_at(now_ns, period) != self.periods_at(seen_ns, period)
        {
            self.flags |= PERIODIC;
        }
        let (before, now) = (self.time_s(seen_ns), self.time_s(now_ns));
        if self.runs() && now > before {
            self.flags |= UPDATE;
            if self.next_alarm(before).is_some_and(|alarm| alarm <= now) {
                self.flags |= ALARM;
            }
        }
    }

    /// When an enabled interrupt whose flag is not set comes next.
    pub(super) fn next_timer_ns(&self) -> Option<u64> {
        let wanted = self.at(REG_B) & !self.flags & ENABLES;
        if wanted == 0 {
            return None;
        }
        let periodic = self.period().filter(|_| wanted & PERIODIC != 0).map(|period| {
            let ticks = u128::from(self.periods_at(self.seen_ns, period) + 1) * u128::from(period);
            let ns = (ticks * u128::from(NS_PER_S)).div_ceil(BASE_HZ.into());
            self.base_ns.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX))
        });
        let time = self.time_s(self.seen_ns);
        let update = (wanted & UPDATE != 0 && self.runs()).then(|| self.ns_of(time.saturating_add(1)));
        let alarm = if wanted & ALARM != 0 && self.runs() { self.next_alarm(time) } else { None };
        [periodic, update, alarm.map(|alarm| self.ns_of(alarm))].into_iter().flatten().min()
    }

    /// Lets an enabled interrupt that is due come.
    pub fn run_timer(&mut self, now_ns: u64) {
        if self.next_timer_ns().is_some_and(|due| due <= now_ns) {
            self.update(now_ns);
        }
    }

    /// Sets the time of day forward, or back, unless the guest is setting it. What comes of that is as if it had gone
    /// there by itself.
    pub fn forward(&mut self, now_ns: u64, seconds: i64) {
        self.update(now_ns);
        if !self.runs() || seconds == 0 {
            return;
        }
        let before = self.time_s(now_ns);
        self.base_s = self.base_s.saturating_add(seconds).clamp(TIMES_S.start, TIMES_S.end - 1);
        self.flags |= UPDATE;
        if self.next_alarm(before).is_some_and(|alarm| alarm <= self.time_s(now_ns)) {
            self.flags |= ALARM;
        }
    }

    /// Reads a port: the even one selects, the odd one is what was selected.
    pub fn read(&mut self, now_ns: u64, port: u16) -> u8 {
        if port & 1 == 0 {
            // The index cannot be read.
            return 0xff;
        }
        self.update(now_ns);
        match self.index {
            REG_A if self.runs() => {
                let to_update_ns = NS_PER_S - now_ns.saturating_sub(self.base_ns) % NS_PER_S;
                let updating = to_update_ns <= UPDATE_NOTICE_NS;
                self.at(REG_A) | if updating { A_UPDATE_IN_PROGRESS } else { 0 }
            }
            REG_C => {
                let interrupts = if self.output() { C_INTERRUPT } else { 0 };
                std::mem::take(&mut self.flags) | interrupts
            }
            REG_D => D_BATTERY_GOOD,
            index => {
                if self.runs() && is_time(index) {
                    self.store_time(now_ns);
                }
                self.at(index)
            }
        }
    }

    /// Writes a port.
    pub fn write(&mut self, now_ns: u64, port: u16, value: u8) {
        if port & 1 == 0 {
            // Bit 7 masks NMIs on a PC; here nothing sends one.
            self.index = value & 0x7f;
            return;
        }
        self.update(now_ns);
        let index = self.index;
        let (ran, divided) = (self.runs(), self.divider_runs());
        let changes_clock = is_time(index) || matches!(index, REG_A | REG_B);
        if ran && changes_clock {
            self.store_time(now_ns);
        }
        match index {
            REG_A => *self.cell(REG_A) = value & !A_UPDATE_IN_PROGRESS,
            // Setting the clock ends the wish to hear of its updates.
            REG_B if value & B_SET != 0 => *self.cell(REG_B) = value & !UPDATE,
            REG_C | REG_D => {}
            _ => *self.cell(index) = value,
        }
        // The cells' time begins to run, or goes on in another guise.
        if self.runs() && (!ran || is_time(index)) {
            self.base_s = self.stored_time();
            self.base_ns = if divided {
                now_ns.saturating_sub(now_ns.saturating_sub(self.base_ns) % NS_PER_S)
            } else {
                now_ns.saturating_sub(NS_PER_S / 2)
            };
        }
    }
}

impl Rtc {
    /// Whether the guest has not touched it: it is as after a power-on.
    pub fn is_untouched(&self) -> bool {
        let fresh = Rtc { base_s: self.base_s, seen_ns: self.seen_ns, ..Rtc::started(0, self.base_ns) };
        *self == fresh
    }
}

fn is_time(index: u8) -> bool {
    matches!(index, SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY)
}

/// Days since 1 January 1970 of a date in the proleptic Gregorian calendar, years counted from March so that the leap
/// day is the last. Days beyond a month's end run on into the next.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date (year, month, day) of days since 1 January 1970.
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (year + era * 400 + next, month, day)
}
