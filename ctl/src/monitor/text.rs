//! Text on a screen: cleaning what came over the network, fitting it to a width, and writing numbers
//! the way people read them.
//!
//! Everything that reaches the model passes [`clean`] once, on its way in. A log line or a process
//! name can therefore never send an escape code to the operator's terminal.

use std::{borrow::Cow, cmp::Ordering};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Marks (accents and the like) kept on one character; more is an attack on the terminal, not text.
const MARKS_MAX: usize = 2;

/// `text` without anything a terminal could obey or that could mislead a reader: escape sequences
/// are dropped whole, other control characters become `·`, direction overrides and invisible
/// characters vanish, tabs and line ends become spaces. At most `chars_max` characters are kept.
pub fn clean(text: &str, chars_max: usize) -> Cow<'_, str> {
    let plain = |b: u8| (0x20..0x7f).contains(&b);
    if text.len() <= chars_max && text.bytes().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len().min(chars_max * 2));
    let mut chars = text.chars().peekable();
    let (mut marks, mut kept) = (0, 0);
    while let Some(c) = chars.next() {
        if kept >= chars_max {
            out.push('…');
            break;
        }
        let width = c.width();
        match c {
            '\u{1b}' | '\u{9b}' | '\u{9d}' | '\u{90}' => skip_sequence(c, &mut chars),
            '\t' | '\n' | '\u{2028}' | '\u{2029}' => {
                out.push(' ');
                kept += 1;
            }
            '\r' => {}
            _ if c.is_control() => {
                out.push('·');
                kept += 1;
            }
            _ if is_invisible(c) => {}
            _ if width.unwrap_or(0) == 0 => {
                marks += 1;
                if marks <= MARKS_MAX && !out.is_empty() {
                    out.push(c);
                }
            }
            _ => {
                marks = 0;
                kept += 1;
                out.push(c);
            }
        }
    }
    Cow::Owned(out)
}

/// [`clean`] in place.
pub fn clean_in(text: &mut String, chars_max: usize) {
    if let Cow::Owned(cleaned) = clean(text, chars_max) {
        *text = cleaned;
    }
}

/// Swallows the rest of an escape sequence whose introducer was just read.
fn skip_sequence(introducer: char, chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    let kind = match introducer {
        '\u{9b}' => Some('['),
        '\u{9d}' | '\u{90}' => Some(']'),
        _ => chars.next_if(|c| ('\u{20}'..'\u{7f}').contains(c)),
    };
    match kind {
        // CSI: parameters and intermediates, then one final byte.
        Some('[') => {
            while chars
                .next_if(|c| ('\u{20}'..'\u{40}').contains(c))
                .is_some()
            {}
            chars.next_if(|c| ('\u{40}'..'\u{7f}').contains(c));
        }
        // OSC, DCS, SOS, PM, APC: a string ended by BEL or ST. An unended one takes its line.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            while let Some(c) = chars.next() {
                if c == '\u{7}' || c == '\u{9c}' {
                    break;
                }
                if c == '\u{1b}' {
                    chars.next_if_eq(&'\\');
                    break;
                }
            }
        }
        // Two- and three-byte sequences: intermediates, then one final byte.
        Some('\u{20}'..='\u{2f}') => {
            while chars
                .next_if(|c| ('\u{20}'..'\u{30}').contains(c))
                .is_some()
            {}
            chars.next_if(|c| ('\u{30}'..'\u{7f}').contains(c));
        }
        _ => {}
    }
}

/// Characters that show nothing yet change how the rest is shown or read.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// Columns `text` takes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// `text` cut to `columns`, with `…` in the last one when something was cut.
pub fn fit(text: &str, columns: usize) -> Cow<'_, str> {
    if text.len() <= columns || text.width() <= columns {
        return Cow::Borrowed(text);
    }
    if columns == 0 {
        return Cow::Borrowed("");
    }
    let mut out = String::with_capacity(columns + 3);
    let mut used = 0;
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if used + wide > columns - 1 {
            break;
        }
        used += wide;
        out.push(c);
    }
    out.push('…');
    Cow::Owned(out)
}

/// `text` in lines of at most `columns`, broken between characters, at most `lines_max` of them.
pub fn wrap(text: &str, columns: usize, lines_max: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if used + wide > columns.max(2) {
            if lines.len() >= lines_max {
                break;
            }
            lines.push(String::new());
            used = 0;
        }
        used += wide;
        if let Some(line) = lines.last_mut() {
            line.push(c);
        }
    }
    lines
}

/// `text` in lines broken between words where it can.
pub fn wrap_words(text: &str, columns: usize, lines_max: usize) -> Vec<String> {
    let columns = columns.max(2);
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.width() + 1 + word.width() > columns {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.width() > columns {
            let mut pieces = wrap(&line, columns, lines_max);
            line = pieces.pop().unwrap_or_default();
            lines.append(&mut pieces);
        }
    }
    lines.push(line);
    lines.truncate(lines_max.max(1));
    lines
}

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

/// Order of names in which `tanako/2` comes before `tanako/10`.
pub fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let digits = |s: &[u8]| s.iter().take_while(|c| c.is_ascii_digit()).count();
        let (da, db) = (digits(a), digits(b));
        if da > 0 && db > 0 {
            let trim = |s: &[u8]| {
                s.iter()
                    .take_while(|c| **c == b'0')
                    .count()
                    .min(s.len() - 1)
            };
            let (na, nb) = (&a[trim(&a[..da])..da], &b[trim(&b[..db])..db]);
            match na.len().cmp(&nb.len()).then_with(|| na.cmp(nb)) {
                Ordering::Equal => (a, b) = (&a[da..], &b[db..]),
                other => return other,
            }
            continue;
        }
        match (a.split_first(), b.split_first()) {
            (Some((x, ra)), Some((y, rb))) if x == y => (a, b) = (ra, rb),
            (Some((x, _)), Some((y, _))) => return x.cmp(y),
            (None, None) => return Ordering::Equal,
            (None, _) => return Ordering::Less,
            (_, None) => return Ordering::Greater,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escape_codes_never_survive() {
        for (from, to) in [
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("a\u{1b}]0;title\u{7}b", "ab"),
            ("a\u{1b}]52;c;aGk=\u{1b}\\b", "ab"),
            ("a\u{9b}2Jb", "ab"),
            ("bell\u{7}", "bell·"),
            ("\u{1b}", ""),
            ("tab\there\r\n", "tab here "),
            ("\u{202e}gnp.exe", "gnp.exe"),
            ("e\u{301}\u{301}\u{301}\u{301}", "e\u{301}\u{301}"),
            ("日本", "日本"),
        ] {
            assert_eq!(clean(from, 100), to, "{from:?}");
        }
        assert_eq!(clean("abcdef", 3), "abc…");
    }

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
        assert_eq!(date_time(1_795_229_879_000, 0), "2026-11-21 03:37:59");
        assert_eq!(clock(-1, 3600), "00:59:59");
    }

    #[test]
    fn names_sort_as_people_count() {
        let mut names = ["tanako/10", "db/node1", "tanako/2", "tanako/02", "tanako"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(
            names,
            ["db/node1", "tanako", "tanako/2", "tanako/02", "tanako/10"]
        );
    }

    proptest! {
        #[test]
        fn cleaned_text_is_printable_and_fits(text in "\\PC*|[\\x00-\\xff\u{1b}\u{202e}]{0,40}", columns in 0usize..40) {
            let cleaned = clean(&text, 200);
            prop_assert!(!cleaned.chars().any(char::is_control));
            prop_assert!(width(&fit(&cleaned, columns)) <= columns);
            prop_assert_eq!(clean(&cleaned, 201), cleaned.clone());
            for line in wrap(&cleaned, columns, 1000) {
                prop_assert!(width(&line) <= columns.max(2));
            }
            for line in wrap_words(&cleaned, columns, 1000) {
                prop_assert!(width(&line) <= columns.max(2));
            }
        }

        #[test]
        fn five_columns_are_enough(n: u64) {
            prop_assert!(bytes(n).len() <= 5, "{}", bytes(n));
            prop_assert!(short_count(n).len() <= 5, "{}", short_count(n));
        }

        #[test]
        fn natural_order_is_an_order(a in "[a-c0-2/]{0,6}", b in "[a-c0-2/]{0,6}", c in "[a-c0-2/]{0,6}") {
            prop_assert_eq!(natural(&a, &b), natural(&b, &a).reverse());
            if natural(&a, &b).is_le() && natural(&b, &c).is_le() {
                prop_assert!(natural(&a, &c).is_le());
            }
        }
    }
}
