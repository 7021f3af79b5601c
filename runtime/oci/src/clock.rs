//! Wall-clock time as logs and records write it. Pure but for [`now`].

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Milliseconds of a clock that never goes back.
pub(crate) fn monotonic_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

struct Civil {
    year: i64,
    month: i64,
    day: i64,
    second_of_day: i64,
}

/// The proleptic Gregorian date of a count of seconds.
fn civil(seconds: i64) -> Civil {
    let days = seconds.div_euclid(86_400);
    // Count from 1 March of year 0, so that the leap day ends a year.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    Civil {
        year: year_of_era + era * 400 + i64::from(month <= 2),
        month,
        day: day_of_year - (153 * shifted_month + 2) / 5 + 1,
        second_of_day: seconds.rem_euclid(86_400),
    }
}

/// `2006-01-02T15:04:05.999999999Z`, always with nine digits.
pub(crate) fn rfc3339_nano(nanoseconds: i64) -> String {
    let seconds = nanoseconds.div_euclid(1_000_000_000);
    let Civil { year, month, day, second_of_day: s } = civil(seconds);
    let fraction = nanoseconds.rem_euclid(1_000_000_000);
    let (hour, minute, second) = (s / 3600, s / 60 % 60, s % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

/// `2006-01-02T15:04:05Z`.
pub(crate) fn rfc3339_seconds(nanoseconds: i64) -> String {
    let mut text = rfc3339_nano(nanoseconds);
    text.truncate("2006-01-02T15:04:05".len());
    text.push('Z');
    text
}

/// `20060102-150405`, the suffix of rotated logs.
pub(crate) fn rotation_suffix(seconds: i64) -> String {
    let Civil { year, month, day, second_of_day: s } = civil(seconds);
    format!("{year:04}{month:02}{day:02}-{:02}{:02}{:02}", s / 3600, s / 60 % 60, s % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(rfc3339_nano(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339_nano(951_827_696_000_000_007), "2000-02-29T12:34:56.000000007Z");
        assert_eq!(rfc3339_seconds(951_827_696_000_000_007), "2000-02-29T12:34:56Z");
        assert_eq!(rotation_suffix(1_735_689_599), "20241231-235959");
        assert_eq!(rotation_suffix(4_107_542_400), "21000301-000000");
    }
}
