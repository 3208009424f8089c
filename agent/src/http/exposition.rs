//! The text format of Prometheus (version 0.0.4): families with HELP and TYPE, samples with
//! labels.

use std::fmt::Write as _;

/// What a family's samples mean.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Gauge,
    Counter,
    Summary,
}

/// A page being written.
#[derive(Debug, Default)]
pub(super) struct Page {
    text: String,
}

impl Page {
    pub(super) fn finish(self) -> String {
        self.text
    }

    /// A family. Its head is only written when it has a sample, so that an empty one leaves nothing.
    pub(super) fn family<'a>(
        &'a mut self,
        name: &'static str,
        kind: Kind,
        help: &'static str,
    ) -> Family<'a> {
        Family {
            page: self,
            name,
            kind,
            help,
            begun: false,
        }
    }
}

/// A family being written.
#[derive(Debug)]
pub(super) struct Family<'a> {
    page: &'a mut Page,
    name: &'static str,
    kind: Kind,
    help: &'static str,
    begun: bool,
}

impl Family<'_> {
    /// Adds a sample.
    pub(super) fn add(&mut self, labels: &[(&str, &str)], value: f64) -> &mut Self {
        self.add_suffixed("", labels, value)
    }

    /// Adds a sample of a summary: `_sum`, `_count`.
    pub(super) fn add_suffixed(
        &mut self,
        suffix: &str,
        labels: &[(&str, &str)],
        value: f64,
    ) -> &mut Self {
        self.begin();
        let text = &mut self.page.text;
        text.push_str(self.name);
        text.push_str(suffix);
        for (index, (label, value)) in labels.iter().enumerate() {
            text.push(if index == 0 { '{' } else { ',' });
            text.push_str(label);
            text.push_str("=\"");
            escape(value, text);
            text.push('"');
        }
        if !labels.is_empty() {
            text.push('}');
        }
        text.push(' ');
        number(value, text);
        text.push('\n');
        self
    }

    fn begin(&mut self) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let kind = match self.kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Summary => "summary",
        };
        let Self { name, help, .. } = self;
        // Writing to a String does not fail.
        let _ = writeln!(self.page.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }
}

fn escape(value: &str, out: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

fn number(value: f64, out: &mut String) {
    if value.is_nan() {
        out.push_str("NaN");
    } else if value.is_infinite() {
        out.push_str(if value > 0.0 { "+Inf" } else { "-Inf" });
    } else {
        // Display of f64 is the shortest text that reads back the same, and never an exponent.
        let _ = write!(out, "{value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_empty_families_leave_nothing() {
        let mut page = Page::default();
        page.family("tanako_nothing", Kind::Gauge, "Not there.");
        page.family("tanako_things_total", Kind::Counter, "Things.")
            .add(&[("name", "a\"b\\c\nd"), ("kind", "x")], 3.0)
            .add(&[], f64::NAN);
        assert_eq!(
            page.finish(),
            "# HELP tanako_things_total Things.\n# TYPE tanako_things_total counter\n\
             tanako_things_total{name=\"a\\\"b\\\\c\\nd\",kind=\"x\"} 3\ntanako_things_total NaN\n"
        );
    }
}
