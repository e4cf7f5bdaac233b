//! This node's clock for the protocol core: microseconds of CLOCK_BOOTTIME. The clock goes on while the host is
//! suspended, so a permission from before a suspend is over after it. And times of day, as people read them.

use crate::role::Micros;
use ft_netbuf::BootTime;

/// Now.
pub fn now_us() -> Micros {
    BootTime::now().as_us()
}

/// A time as 2026-11-30T06:16:04Z. The date by Howard Hinnant's `civil_from_days`.
#[must_use]
pub fn utc(unix_ms: u64) -> String {
    let (days, seconds) = (unix_ms / 86_400_000, unix_ms / 1000 % 86_400);
    let from_era = days + 719_468;
    let (era, day_of_era) = (from_era / 146_097, from_era % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, told) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (1_796_019_364, "2026-11-30T06:16:04Z"),
        ] {
            assert_eq!(utc(seconds * 1000 + 999), told);
        }
    }
}
