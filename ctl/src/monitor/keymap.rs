//! Which key gives which command where. Help and footer are made from this table and from nothing
//! else, so that neither can lie.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::write::Verb;

/// What the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Command {
    Up,
    Down,
    Top,
    Bottom,
    PageUp,
    PageDown,
    HalfUp,
    HalfDown,
    Open,
    Back,
    Quit,
    Suspend,
    Redraw,
    Help,
    CommandLine,
    Filter,
    Sort,
    SortReverse,
    FaultsOnly,
    Mark,
    MarkNone,
    Describe,
    Logs,
    Fleet,
    Hosts,
    Host,
    Events,
    Identify,
    Operations,
    Guild,
    Pause,
    Write(Verb),
    Follow,
    Wrap,
    Timestamps,
    NextMatch,
    PreviousMatch,
    OnlyMatches,
    Save,
}

/// One way to press a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Press {
    /// A character.
    Char(char),
    /// A character with Control.
    Control(char),
    /// A key without a character.
    Code(KeyCode),
    /// The same character twice.
    Twice(char),
}

/// Where a binding holds; a screen belongs to several.
pub type Scope = u16;
/// Every screen.
pub const ALL: Scope = 0xff;
/// Whatever scrolls.
pub const LIST: Scope = 1;
/// Tables of processes.
pub const TABLE: Scope = 2;
/// One or more processes are in focus.
pub const PROCESS: Scope = 4;
/// Log lines.
pub const LOGS: Scope = 8;
/// Lists in which Enter opens something.
pub const OPENS: Scope = 16;
/// Something can be described.
pub const DESCRIBES: Scope = 32;
/// Everything else.
pub const PLAIN: Scope = 128;

/// One line of the keymap.
#[derive(Debug)]
pub struct Binding {
    /// Where it holds.
    pub scope: Scope,
    /// What to press.
    pub press: &'static [Press],
    /// What it does.
    pub command: Command,
    /// One or two words for the footer; empty = not there.
    pub short: &'static str,
    /// One line for the help.
    pub help: &'static str,
}

const fn bind(
    scope: Scope,
    press: &'static [Press],
    command: Command,
    short: &'static str,
    help: &'static str,
) -> Binding {
    Binding {
        scope,
        press,
        command,
        short,
        help,
    }
}

use Press::{Char, Code, Control, Twice};

/// All bindings; the first that fits wins, and the footer keeps this order.
#[rustfmt::skip]
pub const BINDINGS: &[Binding] = &[
    bind(ALL, &[Char('?'), Code(KeyCode::F(1))], Command::Help, "help", "this help"),
    bind(OPENS, &[Code(KeyCode::Enter)], Command::Open, "open", "open what is selected"),
    bind(ALL, &[Code(KeyCode::Esc), Code(KeyCode::Backspace)], Command::Back, "back", "back; in the fleet view: clear marks, then the filter"),
    bind(LOGS, &[Char('/')], Command::Filter, "search", "search: a regex, ! in front = lines without it"),
    bind(LOGS, &[Char('f')], Command::Follow, "follow", "follow new lines, or hold still"),
    bind(LOGS, &[Char('w')], Command::Wrap, "wrap", "break long lines, or cut them"),
    bind(LOGS, &[Char('t')], Command::Timestamps, "times", "show the time of each line"),
    bind(LOGS, &[Char('n')], Command::NextMatch, "", "next match"),
    bind(LOGS, &[Char('N')], Command::PreviousMatch, "", "previous match"),
    bind(LOGS, &[Char('&')], Command::OnlyMatches, "", "only lines that match"),
    bind(LOGS, &[Char('s')], Command::Save, "save", "save what is held to a new file"),
    bind(TABLE, &[Char('/')], Command::Filter, "filter", "filter: a regex on name, host, state, bot; ! in front = does not match"),
    bind(ALL, &[Char(':')], Command::CommandLine, "cmd", "command line; Tab completes"),
    bind(PROCESS, &[Char('l')], Command::Logs, "logs", "log lines of the selected or marked processes"),
    bind(TABLE, &[Char('s')], Command::Sort, "sort", "sort by the next column"),
    bind(TABLE, &[Char('S')], Command::SortReverse, "", "reverse the order"),
    bind(TABLE, &[Char('f')], Command::FaultsOnly, "faults", "show only what needs attention"),
    bind(TABLE, &[Char(' ')], Command::Mark, "mark", "mark for an action on several"),
    bind(TABLE, &[Char('M')], Command::MarkNone, "", "unmark all"),
    bind(PROCESS, &[Char('r')], Command::Write(Verb::Restart), "restart", "restart the selected or marked processes (asks first)"),
    bind(PROCESS, &[Char('x')], Command::Write(Verb::Stop), "stop", "stop them (asks first)"),
    bind(PROCESS, &[Char('a')], Command::Write(Verb::Start), "start", "start them (asks first)"),
    bind(ALL, &[Char('b')], Command::Write(Verb::Backup), "", "back up the database (asks first)"),
    bind(DESCRIBES, &[Char('d')], Command::Describe, "describe", "all fields of what is selected"),
    bind(PROCESS, &[Char('h')], Command::Host, "host", "the host of the selected process"),
    bind(ALL, &[Char('e')], Command::Events, "events", "events"),
    bind(ALL, &[Char('i')], Command::Identify, "identify", "the IDENTIFY budget, its buckets and who waits"),
    bind(ALL, &[Char('o')], Command::Operations, "operations", "operations, their progress and receipts"),
    bind(ALL, &[Char('p')], Command::Pause, "pause", "hold the picture still; the fleet goes on"),
    bind(ALL, &[Char('H')], Command::Hosts, "", "hosts"),
    bind(ALL, &[Char('u')], Command::Guild, "", "where a guild is served"),
    bind(ALL, &[Char('F')], Command::Fleet, "", "the fleet view"),
    bind(LIST, &[Char('j'), Code(KeyCode::Down)], Command::Down, "", "down"),
    bind(LIST, &[Char('k'), Code(KeyCode::Up)], Command::Up, "", "up"),
    bind(LIST, &[Twice('g'), Code(KeyCode::Home)], Command::Top, "", "first"),
    bind(LIST, &[Char('G'), Code(KeyCode::End)], Command::Bottom, "", "last"),
    bind(LIST, &[Code(KeyCode::PageDown), Control('f')], Command::PageDown, "", "a page down"),
    bind(LIST, &[Code(KeyCode::PageUp), Control('b')], Command::PageUp, "", "a page up"),
    bind(LIST, &[Control('d')], Command::HalfDown, "", "half a page down"),
    bind(LIST, &[Control('u')], Command::HalfUp, "", "half a page up"),
    bind(ALL, &[Control('l')], Command::Redraw, "", "draw everything anew"),
    bind(ALL, &[Control('z')], Command::Suspend, "", "to the shell; fg comes back"),
    bind(ALL, &[Char('q'), Control('c')], Command::Quit, "quit", "quit; the fleet goes on"),
];

/// What a key means in `scope`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// A command.
    Command(Command),
    /// The first half of a double press.
    First(char),
    /// Nothing.
    None,
}

/// Looks a key up; `first` is the character pressed just before, if it may begin a double press.
pub fn lookup(scope: Scope, key: KeyEvent, first: Option<char>) -> Meaning {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    let alt = key.modifiers.contains(KeyModifiers::ALT);
    let mut begins = None;
    for binding in BINDINGS.iter().filter(|binding| binding.scope & scope != 0) {
        for press in binding.press {
            let hit = match (*press, key.code) {
                (Char(want), KeyCode::Char(c)) => c == want && !control && !alt,
                (Control(want), KeyCode::Char(c)) => c == want && control,
                (Code(want), code) => code == want,
                (Twice(want), KeyCode::Char(c)) if c == want && !control && !alt => {
                    if first != Some(c) {
                        begins = Some(c);
                    }
                    first == Some(c)
                }
                _ => false,
            };
            if hit {
                return Meaning::Command(binding.command);
            }
        }
    }
    begins.map_or(Meaning::None, Meaning::First)
}

impl Press {
    /// As help and footer write it.
    pub fn label(self) -> String {
        match self {
            Char(' ') => "Space".into(),
            Char(c) => c.to_string(),
            Control(c) => format!("^{}", c.to_ascii_uppercase()),
            Twice(c) => format!("{c}{c}"),
            Code(KeyCode::PageDown) => "PgDn".into(),
            Code(KeyCode::PageUp) => "PgUp".into(),
            Code(KeyCode::Backspace) => "BkSp".into(),
            Code(code) => code.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_binding_hides_another_in_any_scope() {
        for bit in 0..8 {
            let scope = 1 << bit;
            let mut seen: Vec<(Press, Command)> = Vec::new();
            for binding in BINDINGS.iter().filter(|binding| binding.scope & scope != 0) {
                for press in binding.press {
                    assert!(
                        seen.iter().all(|(known, _)| known != press),
                        "{press:?} twice in scope {scope}"
                    );
                    seen.push((*press, binding.command));
                }
            }
        }
    }

    #[test]
    fn a_double_press_needs_two() {
        let key = KeyEvent::from(KeyCode::Char('g'));
        assert_eq!(lookup(LIST, key, None), Meaning::First('g'));
        assert_eq!(lookup(LIST, key, Some('g')), Meaning::Command(Command::Top));
        assert_eq!(lookup(PLAIN, key, None), Meaning::None);
    }
}
