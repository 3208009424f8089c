//! When the daily backup is due; pure.

use jiff::{Timestamp, ToSpan, civil, tz::TimeZone};

/// A day as backup sets are labelled: `20261121`.
pub fn label(at_ms: i64) -> String {
    date(at_ms).strftime("%Y%m%d").to_string()
}

fn date(at_ms: i64) -> civil::Date {
    Timestamp::from_millisecond(at_ms)
        .unwrap_or_default()
        .to_zoned(TimeZone::UTC)
        .date()
}

/// The request id of the backup scheduled for the day of `at_ms`: asking twice makes one.
pub fn request_id(at_ms: i64) -> String {
    format!("schedule-{}", label(at_ms))
}

/// The request id of the day before.
pub fn previous_request_id(at_ms: i64) -> String {
    request_id(at_ms - 24 * 3600 * 1000)
}

/// The first time after `now_ms` at which it is `minute` of the day (UTC), in milliseconds since 1970.
pub fn next(now_ms: i64, minute: u32) -> i64 {
    let at = |day: civil::Date| {
        let midnight = day
            .to_zoned(TimeZone::UTC)
            .map_or(0, |midnight| midnight.timestamp().as_millisecond());
        midnight + i64::from(minute.min(24 * 60 - 1)) * 60_000
    };
    let today = date(now_ms);
    let due = at(today);
    if due > now_ms {
        due
    } else {
        at(today.checked_add(1.day()).unwrap_or(today))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(text: &str) -> i64 {
        text.parse::<Timestamp>().expect("a time").as_millisecond()
    }

    #[test]
    fn the_next_due_time_is_always_ahead() {
        let three = 3 * 60;
        assert_eq!(
            next(ms("2026-11-21T02:59:59Z"), three),
            ms("2026-11-21T03:00:00Z")
        );
        assert_eq!(
            next(ms("2026-11-21T03:00:00Z"), three),
            ms("2026-11-22T03:00:00Z")
        );
        assert_eq!(
            next(ms("2026-12-31T23:00:00Z"), 0),
            ms("2027-01-01T00:00:00Z")
        );
    }

    #[test]
    fn labels_are_utc_days() {
        assert_eq!(label(ms("2026-11-21T23:59:59Z")), "20261121");
        assert_eq!(request_id(ms("2026-11-21T03:00:00Z")), "schedule-20261121");
        assert_eq!(
            previous_request_id(ms("2026-03-01T03:00:00Z")),
            "schedule-20260228"
        );
    }
}
