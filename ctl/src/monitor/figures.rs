//! Numbers, sizes and times the way people read them, in few columns.

/// 1234567 as `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// 1234567 as `1.2M`: at most five columns.
pub fn short_count(n: u64) -> String {
    if n < 10_000 {
        n.to_string()
    } else {
        scaled(n as f64, 1000.0, &["", "k", "M", "G", "T", "P", "E"])
    }
}

/// Bytes as `11.8M`: at most five columns, in powers of 1024.
pub fn bytes(n: u64) -> String {
    if n < 1000 {
        format!("{n}B")
    } else {
        scaled(n as f64, 1024.0, &["B", "K", "M", "G", "T", "P", "E"])
    }
}

fn scaled(value: f64, base: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let digits = usize::from(value < 99.95 && unit > 0);
    format!("{value:.digits$}{}", units[unit])
}

/// A rate a second: `0`, `0.4`, `12.3`, `4,812`, `48.1k`.
pub fn rate(per_second: f64) -> String {
    match per_second {
        r if !r.is_finite() || r < 0.0 => "-".into(),
        r if r < 0.05 => "0".into(),
        r if r < 99.95 => format!("{r:.1}"),
        r if r < 9_999.5 => count(r.round() as u64),
        r => short_count(r.round() as u64),
    }
}

/// Milliseconds: `0.42ms`, `42ms`, `1.2s`.
pub fn millis(ms: f64) -> String {
    match ms {
        m if !m.is_finite() || m < 0.0 => "-".into(),
        m if m < 0.005 => "0".into(),
        m if m < 0.995 => format!("{m:.2}ms"),
        m if m < 9.95 => format!("{m:.1}ms"),
        m if m < 999.5 => format!("{m:.0}ms"),
        m if m < 99_950.0 => format!("{:.1}s", m / 1000.0),
        m => age((m / 1000.0) as u64),
    }
}

/// A percentage with one decimal below 100.
pub fn percent(p: f64) -> String {
    match p {
        p if !p.is_finite() || p < 0.0 => "-".into(),
        p if p < 99.95 => format!("{p:.1}"),
        p => format!("{p:.0}"),
    }
}

/// Seconds as `42s`, `13m`, `2h13m`, `3d4h`, `120d`: at most six columns.
pub fn age(seconds: u64) -> String {
    let (m, h, d) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..600 => format!("{m}m{:02}s", seconds % 60),
        600..3_600 => format!("{m}m"),
        3_600..86_400 => format!("{h}h{:02}m", m % 60),
        86_400..864_000 => format!("{d}d{:02}h", h % 24),
        _ => format!("{d}d"),
    }
}

/// Milliseconds since something as `0.3s` or, from ten seconds on, as [`age`].
pub fn brief(ms: u64) -> String {
    if ms < 10_000 {
        format!("{}.{}s", ms / 1000, ms % 1000 / 100)
    } else {
        age(ms / 1000)
    }
}

/// The time of day of `unix_ms` in a zone `offset_s` seconds east of UTC: `12:03:59`.
pub fn clock(unix_ms: i64, offset_s: i32) -> String {
    let s = (unix_ms.div_euclid(1000).saturating_add(i64::from(offset_s))).rem_euclid(86_400);
    format!("{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
}

/// Date and time of `unix_ms`: `2026-11-21 12:03:59`. A time that is not set is `-`.
pub fn date_time(unix_ms: i64, offset_s: i32) -> String {
    if unix_ms <= 0 {
        return "-".into();
    }
    let days = unix_ms
        .div_euclid(1000)
        .saturating_add(i64::from(offset_s))
        .div_euclid(86_400);
    let (y, m, d) = civil(days);
    format!("{y:04}-{m:02}-{d:02} {}", clock(unix_ms, offset_s))
}

/// Year, month and day of a day counted from 1970-01-01 (the proleptic Gregorian calendar).
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(
            (short_count(9_999), short_count(12_345)),
            ("9999".into(), "12.3k".into())
        );
        assert_eq!(
            (bytes(999), bytes(12_373_196)),
            ("999B".into(), "11.8M".into())
        );
        assert_eq!((rate(f64::NAN), rate(4812.4)), ("-".into(), "4,812".into()));
        assert_eq!(
            (millis(42.4), millis(1234.0)),
            ("42ms".into(), "1.2s".into())
        );
        assert_eq!(
            (age(59), age(8_000), age(90_000)),
            ("59s".into(), "2h13m".into(), "1d01h".into())
        );
        assert_eq!(date_time(1_795_229_879_000, 0), "2026-11-21 02:57:59");
        assert_eq!(date_time(951_782_400_000, 3600), "2000-02-29 01:00:00");
        assert_eq!(date_time(1_735_689_599_000, 0), "2024-12-31 23:59:59");
        assert_eq!(clock(-1, 3600), "00:59:59");
    }

    proptest! {
        #[test]
        fn five_columns_are_enough(n: u64) {
            prop_assert!(bytes(n).len() <= 5, "{}", bytes(n));
            prop_assert!(short_count(n).len() <= 5, "{}", short_count(n));
        }
    }
}
