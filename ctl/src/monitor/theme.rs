//! Colours and glyphs.
//!
//! Nothing is said by colour alone: every state has a glyph and a word. The colours are those of the
//! Okabe-Ito palette or near it, which differ in brightness and along the blue-orange axis, so that
//! the common kinds of colour blindness tell them apart. The last step before the terminal,
//! [`Theme::finish`], holds every cell to what the terminal can show.

use ratatui::{
    buffer::Buffer,
    style::{Color, Modifier, Style},
};

/// How many colours the terminal has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// None: bold, reverse and underline only.
    None,
    /// The terminal's own sixteen.
    Sixteen,
    /// The xterm palette.
    Palette,
}

/// What a text means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Role {
    #[default]
    Text,
    Dim,
    Strong,
    Title,
    Accent,
    Trend,
    Good,
    Warn,
    Bad,
    Selected,
    Mark,
    Match,
    Track,
    Production,
    Stale,
}

/// Characters that differ between Unicode and ASCII terminals.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Glyphs {
    pub ready: &'static str,
    pub starting: &'static str,
    pub running: &'static str,
    pub draining: &'static str,
    pub stopping: &'static str,
    pub backoff: &'static str,
    pub failed: &'static str,
    pub stopped: &'static str,
    pub unknown: &'static str,
    pub mark: &'static str,
    pub cursor: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub full: &'static str,
    pub block: &'static str,
    pub empty: &'static str,
    pub rule: &'static str,
    pub dot: &'static str,
    pub levels: [&'static str; 8],
    pub frame: [&'static str; 6],
}

static UNICODE: Glyphs = Glyphs {
    ready: "●",
    starting: "◔",
    running: "◑",
    draining: "◕",
    stopping: "◕",
    backoff: "↻",
    failed: "✖",
    stopped: "○",
    unknown: "?",
    mark: "◆",
    cursor: "▌",
    up: "▲",
    down: "▼",
    full: "━",
    block: "▇",
    empty: "─",
    rule: "─",
    dot: "·",
    levels: ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"],
    frame: ["┌", "┐", "└", "┘", "─", "│"],
};

static ASCII: Glyphs = Glyphs {
    ready: "*",
    starting: "^",
    running: "+",
    draining: "v",
    stopping: "v",
    backoff: "~",
    failed: "!",
    stopped: "-",
    unknown: "?",
    mark: "#",
    cursor: ">",
    up: "^",
    down: "v",
    full: "#",
    block: "#",
    empty: ".",
    rule: "-",
    dot: "|",
    levels: ["_", ".", ":", "-", "=", "+", "*", "#"],
    frame: ["+", "+", "+", "+", "-", "|"],
};

/// How the monitor looks.
#[derive(Clone, Copy, Debug)]
pub struct Theme {
    /// Colours there are.
    pub depth: Depth,
    /// Only ASCII characters.
    pub ascii: bool,
}

impl Theme {
    /// As asked for, or as the environment says the terminal can do.
    pub fn detect(ascii: bool, no_color: bool, env: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| env(name).filter(|value| !value.is_empty());
        let term = set("TERM").unwrap_or_default();
        let depth =
            if no_color || set("NO_COLOR").is_some() || term == "dumb" || term.starts_with("vt") {
                Depth::None
            } else if term.contains("256color")
                || term.contains("direct")
                || set("COLORTERM").is_some()
            {
                Depth::Palette
            } else {
                Depth::Sixteen
            };
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .find_map(set)
            .unwrap_or_default()
            .to_lowercase();
        let utf8 = locale.contains("utf-8") || locale.contains("utf8");
        Self {
            depth,
            ascii: ascii || !utf8 || term == "linux",
        }
    }

    /// The characters to draw with.
    pub fn glyphs(self) -> &'static Glyphs {
        if self.ascii { &ASCII } else { &UNICODE }
    }

    /// How `role` looks.
    pub fn style(self, role: Role) -> Style {
        let style = Style::new();
        let (bold, reverse) = (Modifier::BOLD, Modifier::REVERSED);
        match (self.depth, role) {
            (_, Role::Text) => style,
            (Depth::None, role) => match role {
                Role::Dim | Role::Track => style.add_modifier(Modifier::DIM),
                Role::Strong | Role::Title | Role::Warn | Role::Mark => style.add_modifier(bold),
                Role::Bad => style.add_modifier(bold | Modifier::UNDERLINED),
                Role::Selected | Role::Production | Role::Match | Role::Stale => {
                    style.add_modifier(reverse)
                }
                _ => style,
            },
            (Depth::Sixteen, role) => match role {
                Role::Dim | Role::Track => style.fg(Color::DarkGray),
                Role::Strong => style.add_modifier(bold),
                Role::Title => style.fg(Color::Cyan).add_modifier(bold),
                Role::Accent => style.fg(Color::Cyan),
                Role::Trend => style.fg(Color::Blue),
                Role::Good => style.fg(Color::Cyan),
                Role::Warn => style.fg(Color::Yellow),
                Role::Bad => style.fg(Color::LightRed).add_modifier(bold),
                Role::Mark => style.fg(Color::LightYellow).add_modifier(bold),
                Role::Match => style.fg(Color::Black).bg(Color::Yellow),
                Role::Selected => style.add_modifier(reverse),
                Role::Production => style.fg(Color::White).bg(Color::Red).add_modifier(bold),
                Role::Stale => style.fg(Color::Black).bg(Color::Yellow),
                Role::Text => style,
            },
            (Depth::Palette, role) => {
                let fg = |index| style.fg(Color::Indexed(index));
                match role {
                    Role::Dim => fg(245),
                    Role::Track => fg(238),
                    Role::Strong => style.add_modifier(bold),
                    Role::Title => fg(117).add_modifier(bold),
                    Role::Accent => fg(74),
                    Role::Trend => fg(67),
                    Role::Good => fg(79),
                    Role::Warn => fg(221),
                    Role::Bad => fg(209).add_modifier(bold),
                    Role::Mark => fg(221).add_modifier(bold),
                    Role::Match => fg(16).bg(Color::Indexed(221)),
                    Role::Selected => style
                        .bg(Color::Indexed(24))
                        .fg(Color::Indexed(231))
                        .add_modifier(bold),
                    Role::Production => fg(231).bg(Color::Indexed(130)).add_modifier(bold),
                    Role::Stale => fg(16).bg(Color::Indexed(214)),
                    Role::Text => style,
                }
            }
        }
    }

    /// Holds every cell to what the terminal can show. Control characters cannot come this far; they
    /// are caught here all the same, since one is enough to take over a terminal.
    pub fn finish(self, buffer: &mut Buffer) {
        for cell in &mut buffer.content {
            let symbol = cell.symbol();
            if symbol.chars().any(char::is_control) || (self.ascii && !symbol.is_ascii()) {
                let plain = match symbol {
                    "…" => "~",
                    "·" => "|",
                    "▲" => "^",
                    "▼" => "v",
                    "–" => "-",
                    "µ" => "u",
                    _ => "?",
                };
                cell.set_symbol(plain);
            }
            if self.depth == Depth::None {
                cell.fg = Color::Reset;
                cell.bg = Color::Reset;
            }
        }
    }

    /// Glyph and role of a process state.
    pub fn state(self, state: &str) -> (&'static str, Role) {
        let glyphs = self.glyphs();
        match state {
            "ready" | "succeeded" | "ok" => (glyphs.ready, Role::Good),
            "starting" | "pending" => (glyphs.starting, Role::Warn),
            "connecting" | "waiting-permit" | "identifying" | "resuming" => {
                (glyphs.starting, Role::Warn)
            }
            "running" => (glyphs.running, Role::Warn),
            "draining" | "paused" => (glyphs.draining, Role::Warn),
            "stopping" | "cordoned" => (glyphs.stopping, Role::Warn),
            "lagging" | "zombie" => (glyphs.running, Role::Warn),
            "backoff" | "disconnected" | "silent" | "misplaced" => (glyphs.backoff, Role::Bad),
            "failed" | "fatal" | "down" | "aborted" | "unreachable" => (glyphs.failed, Role::Bad),
            "stopped" | "skipped" => (glyphs.stopped, Role::Dim),
            _ => (glyphs.unknown, Role::Warn),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_decides_what_was_not_asked_for() {
        let theme = |vars: &[(&str, &str)]| {
            let vars: Vec<_> = vars
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect();
            Theme::detect(false, false, move |name| {
                vars.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone())
            })
        };
        let modern = theme(&[("TERM", "xterm-256color"), ("LANG", "en_US.UTF-8")]);
        assert_eq!((modern.depth, modern.ascii), (Depth::Palette, false));
        let plain = theme(&[("TERM", "screen"), ("LANG", "C")]);
        assert_eq!((plain.depth, plain.ascii), (Depth::Sixteen, true));
        let none = theme(&[
            ("TERM", "xterm-256color"),
            ("LC_ALL", "C.UTF-8"),
            ("NO_COLOR", "1"),
        ]);
        assert_eq!((none.depth, none.ascii), (Depth::None, false));
    }

    #[test]
    fn nothing_a_terminal_could_obey_leaves() {
        let mut buffer = Buffer::empty(ratatui::layout::Rect::new(0, 0, 3, 1));
        buffer[(0, 0)].set_symbol("\u{1b}[2J").set_fg(Color::Red);
        buffer[(1, 0)].set_symbol("日");
        Theme {
            depth: Depth::None,
            ascii: true,
        }
        .finish(&mut buffer);
        assert!(
            buffer
                .content
                .iter()
                .all(|cell| cell.symbol().is_ascii() && cell.fg == Color::Reset)
        );
        assert_eq!(
            (buffer[(0, 0)].symbol(), buffer[(1, 0)].symbol()),
            ("?", "?")
        );
    }
}
