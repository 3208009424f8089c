//! How far an operation is: a bar on a terminal, plain lines at a bounded rate elsewhere.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tanako_proto::fleet::v1::Operation;

use crate::{paint::clean, ui::Ui};

/// Between two plain lines about the same operation.
const PLAIN_EVERY: Duration = Duration::from_secs(2);

/// Failures named one by one; the rest is in the result.
const FAILURES_NAMED_MAX: usize = 50;

/// Shows an operation while it runs.
pub struct Progress<'u> {
    ui: &'u Ui,
    bar: Option<ProgressBar>,
    plain: Plain,
}

impl<'u> Progress<'u> {
    /// Nothing is drawn before the first update.
    pub fn new(ui: &'u Ui) -> Self {
        let bar = ui.draws.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            bar.set_style(style(ui));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self {
            ui,
            bar,
            plain: Plain::default(),
        }
    }

    /// Shows the operation as it is now.
    pub fn update(&mut self, operation: &Operation) {
        let lines = self.plain.step(Instant::now(), operation);
        let Some(bar) = &self.bar else {
            for line in lines.failures.iter().chain(&lines.line) {
                self.ui.note(line);
            }
            return;
        };
        for failure in &lines.failures {
            bar.println(self.ui.err.bad(failure));
        }
        if operation.total > 0 {
            bar.set_length(operation.total);
            bar.set_position(operation.done);
        }
        bar.set_prefix(operation.kind.clone());
        bar.set_message(running(operation));
    }

    /// Shows one line of text, for waits that are not operations.
    pub fn say(&mut self, done: u64, total: u64, prefix: &str, message: &str) {
        self.update(&Operation {
            kind: prefix.to_owned(),
            message: message.to_owned(),
            done,
            total,
            ..Operation::default()
        });
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(ui: &Ui) -> ProgressStyle {
    let template = if ui.err.is_on() {
        "{spinner} {prefix} [{bar:24.green}] {pos}/{len} {elapsed} {wide_msg:.dim}"
    } else {
        "{spinner} {prefix} [{bar:24}] {pos}/{len} {elapsed} {wide_msg}"
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// What it is at: its own words, or the steps that run.
fn running(operation: &Operation) -> String {
    if !operation.message.is_empty() {
        return clean(&operation.message, false);
    }
    let objects: Vec<&str> = operation
        .steps
        .iter()
        .filter(|step| step.state == "running")
        .take(4)
        .map(|step| step.object.as_str())
        .collect();
    objects.join(", ")
}

/// Decides which plain lines are worth printing.
#[derive(Debug, Default)]
struct Plain {
    last: Option<(Instant, String)>,
    named: HashSet<String>,
}

#[derive(Debug, Default, PartialEq)]
struct Lines {
    failures: Vec<String>,
    line: Option<String>,
}

impl Plain {
    fn step(&mut self, now: Instant, operation: &Operation) -> Lines {
        let mut failures = Vec::new();
        for step in operation.steps.iter().filter(|step| step.state == "failed") {
            if self.named.len() < FAILURES_NAMED_MAX && self.named.insert(step.object.clone()) {
                failures.push(format!(
                    "{} failed: {}",
                    step.object,
                    clean(&step.message, false)
                ));
            }
        }
        let mut line = operation.kind.clone();
        if operation.total > 0 {
            line = format!(
                "{line}: {}/{} {}",
                operation.done, operation.total, operation.unit
            );
            line.truncate(line.trim_end().len());
        }
        let at = running(operation);
        if !at.is_empty() {
            line = format!("{line}: {at}");
        }
        let due = match &self.last {
            None => true,
            Some((at, said)) => *said != line && now.saturating_duration_since(*at) >= PLAIN_EVERY,
        };
        if due {
            self.last = Some((now, line.clone()));
        }
        Lines {
            failures,
            line: due.then_some(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tanako_proto::fleet::v1::OperationStep;

    use super::*;

    fn operation(done: u64, failed: &[&str]) -> Operation {
        Operation {
            kind: "restart".into(),
            done,
            total: 4,
            unit: "processes".into(),
            steps: failed
                .iter()
                .map(|object| OperationStep {
                    object: (*object).into(),
                    state: "failed".into(),
                    message: "not ready in 60 s".into(),
                    ..OperationStep::default()
                })
                .collect(),
            ..Operation::default()
        }
    }

    #[test]
    fn lines_come_at_a_bounded_rate_and_failures_at_once() {
        let start = Instant::now();
        let mut plain = Plain::default();
        assert_eq!(
            plain.step(start, &operation(0, &[])).line.as_deref(),
            Some("restart: 0/4 processes")
        );
        let soon = start + Duration::from_millis(100);
        let lines = plain.step(soon, &operation(1, &["tanako/1"]));
        assert_eq!(
            lines,
            Lines {
                failures: vec!["tanako/1 failed: not ready in 60 s".into()],
                line: None
            }
        );
        // The same failure again is not said again; the line is due now.
        let later = start + PLAIN_EVERY;
        let lines = plain.step(later, &operation(1, &["tanako/1"]));
        assert_eq!(
            lines,
            Lines {
                failures: vec![],
                line: Some("restart: 1/4 processes".into())
            }
        );
        // Nothing new, nothing said.
        assert_eq!(
            plain.step(later + PLAIN_EVERY * 2, &operation(1, &[])).line,
            None
        );
    }

    proptest! {
        #[test]
        fn never_more_than_one_line_in_the_interval(gaps in proptest::collection::vec(0_u64..3000, 1..60)) {
            let mut now = Instant::now();
            let mut plain = Plain::default();
            let mut said: Option<Instant> = None;
            for (done, gap) in gaps.into_iter().enumerate() {
                now += Duration::from_millis(gap);
                if plain.step(now, &operation(done as u64, &[])).line.is_some() {
                    if let Some(before) = said {
                        prop_assert!(now - before >= PLAIN_EVERY);
                    }
                    said = Some(now);
                }
            }
        }
    }
}
