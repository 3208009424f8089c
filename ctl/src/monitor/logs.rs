//! The log lines being looked at: bounded, searchable, followed or held still.

use std::collections::VecDeque;

use tanako_proto::fleet::v1::LogLine;

use super::{rows::Filter, text};

/// Lines kept.
pub const LINES_MAX: usize = 20_000;
/// Bytes of text kept.
pub const BYTES_MAX: usize = 8 << 20;
/// Characters kept of one line.
const LINE_CHARS_MAX: usize = 16_384;

/// One line of output, clean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When, in milliseconds since 1970.
    pub at: i64,
    /// Whose.
    pub process: String,
    /// What.
    pub text: String,
    /// Whether it came from standard error.
    pub stderr: bool,
}

/// Lines of one or more processes, and how they are shown.
#[derive(Clone, Debug, Default)]
pub struct Logs {
    /// Pairs arriving lines with the subscription that asked for them.
    pub ticket: u64,
    /// What was asked for.
    pub targets: Vec<String>,
    /// Break long lines instead of cutting them.
    pub wrap: bool,
    /// Show the time of each line.
    pub timestamps: bool,
    /// What is searched for.
    pub search: Option<Filter>,
    /// Show only the lines that match.
    pub only_matches: bool,
    /// Why no more lines come.
    pub ended: Option<String>,
    lines: VecDeque<Line>,
    bytes: usize,
    first: u64,
    bottom: Option<u64>,
}

impl Logs {
    /// Nothing yet of `targets`.
    pub fn new(ticket: u64, targets: Vec<String>) -> Self {
        Self {
            ticket,
            targets,
            wrap: false,
            timestamps: true,
            ..Self::default()
        }
    }

    /// Takes lines.
    pub fn push(&mut self, lines: Vec<LogLine>) {
        for line in lines {
            let mut clean = text::clean(&line.line, LINE_CHARS_MAX).into_owned();
            if line.truncated {
                clean.push('…');
            }
            let process = text::clean(&line.process, 200).into_owned();
            self.bytes += clean.len();
            self.lines.push_back(Line {
                at: line.at,
                process,
                text: clean,
                stderr: line.stream == "stderr",
            });
            while self.lines.len() > LINES_MAX || self.bytes > BYTES_MAX {
                let Some(gone) = self.lines.pop_front() else {
                    break;
                };
                self.bytes -= gone.text.len();
                self.first += 1;
            }
        }
    }

    /// Lines held.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// All lines held, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Line> {
        self.lines.iter()
    }

    /// Whether new lines move the view.
    pub fn is_following(&self) -> bool {
        self.bottom.is_none()
    }

    /// Holds the view still, or follows again.
    pub fn set_following(&mut self, follow: bool) {
        self.bottom = if follow {
            None
        } else {
            self.bottom.or(self.end().checked_sub(1))
        };
    }

    /// Lines that came since the view was held still.
    pub fn behind(&self) -> u64 {
        self.bottom
            .map_or(0, |bottom| self.end().saturating_sub(bottom + 1))
    }

    /// The lines of the view from the lowest upwards.
    pub fn upwards(&self) -> impl Iterator<Item = &Line> {
        let lowest = self
            .bottom
            .unwrap_or(u64::MAX)
            .min(self.end().saturating_sub(1));
        let shown = (lowest + 1).saturating_sub(self.first) as usize;
        self.lines
            .iter()
            .take(shown)
            .rev()
            .filter(|line| self.passes(line))
    }

    /// Moves the view by `lines` down (negative: up), keeping a screen of `page` filled.
    pub fn scroll(&mut self, lines: i64, page: usize) {
        if self.is_empty() {
            return;
        }
        let last = self.end() - 1;
        let mut at = self.bottom.unwrap_or(last).clamp(self.first, last);
        let mut left = lines.unsigned_abs();
        while left > 0 {
            let next = if lines > 0 {
                at + 1
            } else {
                at.wrapping_sub(1)
            };
            if next > last || next < self.first {
                break;
            }
            at = next;
            left -= u64::from(self.at(at).is_some_and(|line| self.passes(line)));
        }
        let lowest_first = (self.first + page.saturating_sub(1) as u64).min(last);
        // Moving down past the end is how `less` follows again; so it is here.
        self.bottom = if lines > 0 && left > 0 {
            None
        } else {
            Some(at.max(lowest_first))
        };
    }

    /// Shows the oldest line.
    pub fn to_top(&mut self, page: usize) {
        if !self.is_empty() {
            self.bottom = Some(self.first);
            self.scroll(0, page);
        }
    }

    /// Goes to the next match below (or above); false when there is none.
    pub fn find(&mut self, up: bool) -> bool {
        let Some(search) = &self.search else {
            return false;
        };
        if self.is_empty() {
            return false;
        }
        let here = (self
            .bottom
            .unwrap_or(self.end() - 1)
            .clamp(self.first, self.end() - 1)
            - self.first) as usize;
        let hit = |at: &usize| search.accepts(&self.lines[*at].text);
        let found = if up {
            (0..here).rev().find(hit)
        } else {
            (here + 1..self.lines.len()).find(hit)
        };
        if let Some(at) = found {
            self.bottom = Some(self.first + at as u64);
        }
        found.is_some()
    }

    /// Lines that match the search.
    pub fn matches(&self) -> usize {
        self.search.as_ref().map_or(0, |search| {
            self.lines
                .iter()
                .filter(|line| search.accepts(&line.text))
                .count()
        })
    }

    fn passes(&self, line: &Line) -> bool {
        !self.only_matches
            || self
                .search
                .as_ref()
                .is_none_or(|search| search.accepts(&line.text))
    }

    fn at(&self, number: u64) -> Option<&Line> {
        self.lines
            .get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    fn end(&self) -> u64 {
        self.first + self.lines.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(range: std::ops::Range<usize>) -> Vec<LogLine> {
        range
            .map(|i| LogLine {
                line: format!("line {i}"),
                ..LogLine::default()
            })
            .collect()
    }

    fn lowest(logs: &Logs) -> &str {
        logs.upwards().next().map_or("", |line| line.text.as_str())
    }

    #[test]
    fn the_view_stands_still_while_lines_come_and_go() {
        let mut logs = Logs::new(1, vec!["a".into()]);
        logs.push(lines(0..100));
        assert_eq!(lowest(&logs), "line 99");
        logs.scroll(-10, 20);
        assert_eq!((lowest(&logs), logs.behind()), ("line 89", 10));
        logs.push(lines(100..200));
        assert_eq!((lowest(&logs), logs.behind()), ("line 89", 110));
        logs.scroll(1000, 20);
        assert!(logs.is_following());
        logs.to_top(20);
        assert_eq!(lowest(&logs), "line 19");
    }

    #[test]
    fn memory_is_bounded_even_when_held_still() {
        let mut logs = Logs::new(1, Vec::new());
        logs.push(lines(0..10));
        logs.set_following(false);
        logs.push(lines(10..LINES_MAX + 500));
        assert_eq!(logs.len(), LINES_MAX);
        // The held line is gone: the view is empty at that place, not a panic.
        assert_eq!(logs.upwards().count(), 0);
        logs.scroll(1, 5);
        assert!(logs.upwards().count() > 0);
        logs.push(vec![
            LogLine {
                line: "x".repeat(1 << 20),
                ..LogLine::default()
            };
            1000
        ]);
        assert!(logs.iter().map(|line| line.text.len()).sum::<usize>() <= BYTES_MAX);
    }

    #[test]
    fn a_search_walks_the_matches() {
        let mut logs = Logs::new(1, Vec::new());
        logs.push(lines(0..40));
        logs.search = Filter::parse("7$").expect("a regex");
        assert_eq!(logs.matches(), 4);
        assert!(logs.find(true));
        assert_eq!(lowest(&logs), "line 37");
        assert!(logs.find(true) && !logs.is_following());
        assert_eq!(lowest(&logs), "line 27");
        logs.only_matches = true;
        assert_eq!(logs.upwards().count(), 3);
        logs.scroll(-1, 1);
        assert_eq!(lowest(&logs), "line 17");
    }
}
