//! Lines that arrive one by one: logs, events, the audit log.

use serde::Serialize;
use tanako_proto::fleet::v1::{AuditRecord, Event, LogLine};

use super::{clock, text, time};
use crate::{
    paint::{Paint, clean},
    table::{Cell, Table},
    ui::Report,
    units::now_ms,
};

/// One line of a process, as `logs -o json` prints it.
#[derive(Debug, Serialize)]
pub struct LogView {
    process: String,
    at: Option<String>,
    line: String,
    stream: Option<String>,
    truncated: bool,
    /// The host that wrote it.
    host: Option<String>,
    #[serde(skip)]
    shown: Shown,
}

/// What `logs` shows beside the line.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shown {
    /// The process, as wide as this; none = not at all.
    pub prefix: Option<usize>,
    /// The time.
    pub timestamps: bool,
}

impl LogView {
    /// One line, shown so.
    pub fn new(line: LogLine, shown: Shown) -> Self {
        Self {
            process: line.process,
            at: time(line.at),
            line: line.line,
            stream: text(line.stream),
            truncated: line.truncated,
            host: text(line.host),
            shown,
        }
    }
}

impl Report for LogView {
    fn table(&self, paint: Paint, _wide: bool) -> String {
        let mut out = String::new();
        if let Some(width) = self.shown.prefix {
            out.push_str(&paint.key(&self.process, &format!("{:<width$} | ", self.process)));
        }
        if self.shown.timestamps {
            out.push_str(self.at.as_deref().unwrap_or("-"));
            out.push(' ');
        }
        out.push_str(&clean(&self.line, paint.is_on()));
        if self.truncated {
            out.push_str(&paint.dim(" [cut]"));
        }
        out.push('\n');
        out
    }

    fn names(&self) -> Vec<String> {
        vec![self.process.clone()]
    }
}

/// One event, as `events -o json` prints it.
#[derive(Debug, Serialize)]
pub struct EventView {
    id: u64,
    at: Option<String>,
    severity: String,
    kind: String,
    object: String,
    message: String,
    host: String,
    #[serde(skip)]
    at_ms: i64,
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        Self {
            id: event.id,
            at: time(event.at),
            severity: event.severity,
            kind: event.kind,
            object: event.object,
            message: event.message,
            host: event.host,
            at_ms: event.at,
        }
    }
}

impl Report for EventView {
    fn table(&self, paint: Paint, wide: bool) -> String {
        let severity = match self.severity.as_str() {
            "error" => paint.bad("error  "),
            "warning" => paint.warn("warning"),
            other => format!("{other:<7}"),
        };
        let host = if wide {
            format!("{:<10} ", self.host)
        } else {
            String::new()
        };
        let object = clean(&self.object, false);
        format!(
            "{}  {severity}  {host}{object:<12} {:<19} {}\n",
            clock(self.at_ms, now_ms()),
            self.kind,
            clean(&self.message, false),
        )
    }

    fn names(&self) -> Vec<String> {
        vec![self.id.to_string()]
    }
}

/// `audit -o json`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct AuditView(Vec<AuditEntry>);

#[derive(Debug, Serialize)]
struct AuditEntry {
    at: Option<String>,
    who: String,
    from: String,
    action: String,
    object: String,
    before: String,
    after: String,
    outcome: String,
    #[serde(skip)]
    at_ms: i64,
}

impl From<Vec<AuditRecord>> for AuditView {
    fn from(records: Vec<AuditRecord>) -> Self {
        Self(
            records
                .into_iter()
                .map(|record| AuditEntry {
                    at: time(record.at),
                    who: record.who,
                    from: record.from,
                    action: record.action,
                    object: record.object,
                    before: record.before,
                    after: record.after,
                    outcome: record.outcome,
                    at_ms: record.at,
                })
                .collect(),
        )
    }
}

impl Report for AuditView {
    fn table(&self, paint: Paint, wide: bool) -> String {
        if self.0.is_empty() {
            return "nothing was changed yet\n".into();
        }
        let now = now_ms();
        let mut head = vec!["AT", "WHO", "ACTION", "OBJECT", "OUTCOME"];
        if wide {
            head.extend(["FROM", "BEFORE", "AFTER"]);
        }
        let mut table = Table::new(&head);
        for entry in &self.0 {
            let mut row = vec![
                Cell::new(clock(entry.at_ms, now)),
                Cell::new(clean(&entry.who, false)),
                Cell::new(&entry.action),
                Cell::new(clean(&entry.object, false)),
                Cell::new(clean(&entry.outcome, false)),
            ];
            if wide {
                row.extend([
                    Cell::new(&entry.from),
                    Cell::new(clean(&entry.before, false)),
                    Cell::new(clean(&entry.after, false)),
                ]);
            }
            table.row(row);
        }
        table.render(paint)
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|entry| entry.object.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_line_cannot_move_the_cursor() {
        let line = LogLine {
            process: "tanako/0".into(),
            line: "\x1b[2J\x1b[31mred\x07".into(),
            truncated: true,
            ..LogLine::default()
        };
        let shown = Shown {
            prefix: Some(9),
            timestamps: true,
        };
        let view = LogView::new(line, shown);
        assert_eq!(
            view.table(Paint::plain(), false),
            "tanako/0  | - red [cut]\n"
        );
        let coloured = view.table(Paint::new(true), false);
        assert!(
            coloured.contains("\x1b[31mred") && !coloured.contains("\x1b[2J"),
            "{coloured:?}"
        );
        assert!(coloured.starts_with("\x1b["), "the prefix has a colour");
    }
}
