//! Durations, sizes and times as people write and read them.

use std::time::Duration;

use jiff::Timestamp;

/// Reads `90`, `90s`, `1m30s`, `500ms`, `2h`, `7d`; a bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; one looks like 30s, 1m30s or 2h");
    let text_trimmed = text.trim();
    if let Ok(seconds) = text_trimmed.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let mut total = Duration::ZERO;
    let mut rest = text_trimmed;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let after = &rest[digits..];
        let letters = after
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(after.len());
        let seconds = |per: u64| number.checked_mul(per).map(Duration::from_secs);
        let part = match &after[..letters] {
            "ms" => Some(Duration::from_millis(number)),
            "s" => seconds(1),
            "m" | "min" => seconds(60),
            "h" => seconds(3_600),
            "d" => seconds(86_400),
            _ => None,
        };
        total = part
            .and_then(|part| total.checked_add(part))
            .ok_or_else(wrong)?;
        rest = &after[letters..];
    }
    // Far above anything meant, far below what overflows a clock.
    if total > Duration::from_secs(100 * 365 * 86_400) {
        return Err(wrong());
    }
    Ok(total)
}

/// Reads a duration before `now`, or a time such as `2026-11-21T03:00:00Z`; milliseconds since 1970.
pub fn parse_since(text: &str, now: Timestamp) -> Result<i64, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at.as_millisecond());
    }
    let back = parse_duration(text).map_err(|_| {
        format!("{text:?} is neither a duration (10m) nor a time (2026-11-21T03:00:00Z)")
    })?;
    Ok(now.as_millisecond().saturating_sub(back.as_millis() as i64))
}

/// At most two units: `3s`, `5m12s`, `2h5m`, `12d3h`.
pub fn age(seconds: u64) -> String {
    let (days, hours, minutes, rest) = (
        seconds / 86_400,
        seconds / 3_600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    );
    let two = |a: u64, unit: &str, b: u64, small: &str| {
        if b == 0 {
            format!("{a}{unit}")
        } else {
            format!("{a}{unit}{b}{small}")
        }
    };
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, m) => two(m, "m", rest, "s"),
        (0, h, m) => two(h, "h", m, "m"),
        (d, h, _) => two(d, "d", h, "h"),
    }
}

/// Bytes in powers of 1024: `512B`, `9.8M`, `1.2G`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "K", "M", "G", "T", "P"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 99.95 {
        format!("{value:.0}{}", UNITS[unit])
    } else {
        format!("{value:.1}{}", UNITS[unit])
    }
}

/// A time of the wire (milliseconds since 1970); none when 0 or out of range.
pub fn timestamp(ms: i64) -> Option<Timestamp> {
    if ms == 0 {
        return None;
    }
    Timestamp::from_millisecond(ms).ok()
}

/// Now, as on the wire.
pub fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

/// Seconds from `from` to `to` (milliseconds), 0 when it lies behind.
pub fn seconds_between(from: i64, to: i64) -> u64 {
    u64::try_from(to.saturating_sub(from) / 1000).unwrap_or(0)
}

/// `1 process`, `4 processes`.
pub fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Short form of a list of numbers: `0-3,8`.
pub fn ranges(numbers: &[u32]) -> String {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for number in sorted {
        match parts.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(number) => *end = number,
            _ => parts.push((number, number)),
        }
    }
    let parts: Vec<String> = parts
        .into_iter()
        .map(|(a, b)| {
            if a == b {
                a.to_string()
            } else {
                format!("{a}-{b}")
            }
        })
        .collect();
    parts.join(",")
}

/// Orders `tanako/2` before `tanako/10`.
pub fn natural(name: &str) -> (String, u64, String) {
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (head, tail) = name.split_at(name.len() - digits);
    (head.to_owned(), tail.parse().unwrap_or(0), tail.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_as_people_write_them() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2d"), Ok(Duration::from_secs(172_800)));
        for bad in [
            "",
            "s",
            "1x",
            "-1s",
            "1.5s",
            "99999999999999999999s",
            "9999999999999d",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn since_is_a_duration_or_a_time() {
        let now = Timestamp::from_millisecond(1_000_000).expect("a time");
        assert_eq!(parse_since("10s", now), Ok(990_000));
        assert_eq!(parse_since("1970-01-01T00:00:05Z", now), Ok(5_000));
        assert!(parse_since("yesterday", now).is_err());
    }

    #[test]
    fn sizes_and_ages_are_short() {
        assert_eq!(bytes(0), "0B");
        assert_eq!(bytes(1023), "1023B");
        assert_eq!(bytes(10_276_045), "9.8M");
        assert_eq!(bytes(524_288_000), "500M");
        assert_eq!(age(59), "59s");
        assert_eq!(age(312), "5m12s");
        assert_eq!(age(7_200), "2h");
        assert_eq!(age(1_050_000), "12d3h");
    }

    #[test]
    fn names_sort_by_number() {
        let mut names = vec!["tanako/10", "tanako/2", "db/node1"];
        names.sort_by_key(|name| natural(name));
        assert_eq!(names, ["db/node1", "tanako/2", "tanako/10"]);
        assert_eq!(ranges(&[3, 0, 1, 2, 8]), "0-3,8");
        assert_eq!(ranges(&[u32::MAX]), u32::MAX.to_string());
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,20}") {
            let _ = parse_duration(&text);
            let _ = parse_since(&text, Timestamp::UNIX_EPOCH);
            let _ = natural(&text);
        }

        #[test]
        fn sizes_stay_narrow(size in any::<u64>()) {
            prop_assert!(bytes(size).len() <= 6, "{}", bytes(size));
        }
    }
}
