//! Colour, never the only signal: every coloured word says the same without it.

/// Colours text, or leaves it alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint(bool);

impl Paint {
    /// With or without colour.
    pub fn new(colour: bool) -> Self {
        Self(colour)
    }

    /// Without.
    pub fn plain() -> Self {
        Self(false)
    }

    /// Whether it colours.
    pub fn is_on(self) -> bool {
        self.0
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.0 && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Well.
    pub fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// Between two states, or worth a look.
    pub fn warn(self, text: &str) -> String {
        self.wrap("33", text)
    }

    /// Failed.
    pub fn bad(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    /// Headings and names.
    pub fn strong(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// Of little weight.
    pub fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    /// By what a state word means.
    pub fn state(self, word: &str, text: &str) -> String {
        match word {
            "ready" | "succeeded" | "ok" | "verified" | "resumed" | "healthy" | "normal" => {
                self.good(text)
            }
            "failed" | "unreachable" | "lost" | "backoff" | "damaged" | "error" | "fatal"
            | "unhealthy" | "exhausted" => self.bad(text),
            "stopped" | "skipped" | "pending" => self.dim(text),
            _ => self.warn(text),
        }
    }

    /// One of six colours, the same for the same key: prefixes of log lines.
    pub fn key(self, key: &str, text: &str) -> String {
        const COLOURS: [&str; 6] = ["36", "33", "35", "34", "32", "96"];
        let sum = key.bytes().fold(0_usize, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(usize::from(byte))
        });
        self.wrap(COLOURS[sum % COLOURS.len()], text)
    }
}

/// Text from elsewhere, made safe for a terminal: control characters are dropped, apart from tabs, and
/// colours (SGR sequences) when `colours`.
pub fn clean(text: &str, colours: bool) -> String {
    if !text.contains(|c: char| c.is_control() && c != '\t') {
        return text.to_owned();
    }
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if c == '\x1b' {
            let length = escape_length(rest);
            let sequence = &rest[..length];
            if colours && sequence.starts_with("\x1b[") && sequence.ends_with('m') {
                clean.push_str(sequence);
            }
            rest = &rest[length..];
            continue;
        }
        if !c.is_control() || c == '\t' {
            clean.push(c);
        }
        rest = &rest[c.len_utf8()..];
    }
    clean
}

/// Bytes of the escape sequence at the start of `text` (which starts with ESC).
fn escape_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    match bytes.get(1) {
        // CSI: parameters and intermediates, then one final byte.
        Some(b'[') => {
            let mut end = 2;
            while end < bytes.len() && (0x20..0x40).contains(&bytes[end]) {
                end += 1;
            }
            if end < bytes.len() && (0x40..0x7f).contains(&bytes[end]) {
                end += 1;
            }
            end
        }
        // OSC: to BEL or ST.
        Some(b']') => {
            let end = text.find('\x07').map(|at| at + 1);
            let terminated = text[1..].find("\x1b\\").map(|at| at + 3);
            end.into_iter()
                .chain(terminated)
                .min()
                .unwrap_or(text.len())
        }
        Some(byte) if byte.is_ascii() => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn colours_stay_and_everything_else_goes() {
        let hostile = "a\x1b[31mred\x1b[0m\x1b]0;title\x07b\x1b[2Jc\rd\x1b";
        assert_eq!(clean(hostile, true), "a\x1b[31mred\x1b[0mbcd");
        assert_eq!(clean(hostile, false), "aredbcd");
        assert_eq!(clean("tab\tstays", false), "tab\tstays");
    }

    proptest! {
        #[test]
        fn nothing_dangerous_survives(text in "[\\x00-\\x7f\u{80}-\u{ff}äß\\[\\]m;]{0,40}") {
            let clean = clean(&text, false);
            prop_assert!(!clean.contains(|c: char| c.is_control() && c != '\t'));
        }
    }
}
