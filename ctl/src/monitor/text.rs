//! Text on a screen: cleaning what came over the network, fitting it to a width, putting names in order.
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
        fn natural_order_is_an_order(a in "[a-c0-2/]{0,6}", b in "[a-c0-2/]{0,6}", c in "[a-c0-2/]{0,6}") {
            prop_assert_eq!(natural(&a, &b), natural(&b, &a).reverse());
            if natural(&a, &b).is_le() && natural(&b, &c).is_le() {
                prop_assert!(natural(&a, &c).is_le());
            }
        }
    }
}
