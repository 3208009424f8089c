//! A plan: what would change and what it costs.

use std::fmt::Write as _;

use serde::Serialize;
use tanako_proto::fleet::v1::{PlanChange, PlanReply};

use super::operation::CostView;
use crate::{
    paint::{Paint, clean},
    ui::Report,
    units::count,
};

/// `plan -o json`, and of every `--dry-run`.
#[derive(Debug, Clone, Serialize)]
pub struct PlanView {
    version: u64,
    changed: bool,
    changes: Vec<ChangeView>,
    cost: CostView,
    warnings: Vec<String>,
    checks: Vec<CheckView>,
}

/// Something that was looked at before anything moves.
#[derive(Debug, Clone, Serialize)]
struct CheckView {
    check: String,
    state: String,
    message: String,
}

#[derive(Debug, Clone, Serialize)]
struct ChangeView {
    action: String,
    object: String,
    why: String,
}

impl From<&PlanChange> for ChangeView {
    fn from(change: &PlanChange) -> Self {
        Self {
            action: change.action.clone(),
            object: change.object.clone(),
            why: change.why.clone(),
        }
    }
}

impl From<&PlanReply> for PlanView {
    fn from(plan: &PlanReply) -> Self {
        let changes: Vec<ChangeView> = plan.changes.iter().map(Into::into).collect();
        Self {
            version: plan.version,
            changed: changes.iter().any(|change| change.action != "keep"),
            changes,
            cost: plan.cost.as_ref().map(Into::into).unwrap_or_default(),
            warnings: plan.warnings.clone(),
            checks: plan
                .checks
                .iter()
                .map(|check| CheckView {
                    check: check.check.clone(),
                    state: check.state.clone(),
                    message: check.message.clone(),
                })
                .collect(),
        }
    }
}

impl PlanView {
    /// Whether it changes anything.
    pub fn changed(&self) -> bool {
        self.changed
    }

    /// The things that are stopped, restarted, moved or removed.
    pub fn disrupted(&self) -> Vec<&str> {
        self.changes
            .iter()
            .filter(|change| {
                matches!(
                    change.action.as_str(),
                    "restart" | "stop" | "remove" | "move"
                )
            })
            .map(|change| change.object.as_str())
            .collect()
    }

    fn many(&self, action: &str) -> usize {
        self.changes
            .iter()
            .filter(|change| change.action == action)
            .count()
    }
}

impl Report for PlanView {
    fn table(&self, paint: Paint, wide: bool) -> String {
        const SHOWN: usize = 40;
        let mut text = String::new();
        let shown = if wide { usize::MAX } else { SHOWN };
        let moving = || self.changes.iter().filter(|change| change.action != "keep");
        for change in moving().take(shown) {
            let (sign, action) = match change.action.as_str() {
                "create" | "start" => ("+", paint.good(&change.action)),
                "remove" | "stop" => ("-", paint.bad(&change.action)),
                _ => ("~", paint.warn(&change.action)),
            };
            let pad = " ".repeat(8_usize.saturating_sub(change.action.len()));
            let _ = write!(text, "  {sign} {action}{pad} {}", change.object);
            if !change.why.is_empty() {
                let _ = write!(text, "  {}", paint.dim(&clean(&change.why, false)));
            }
            text.push('\n');
        }
        if moving().count() > shown {
            let _ = writeln!(
                text,
                "    and {} more (-o wide shows all)",
                moving().count() - shown
            );
        }
        for check in &self.checks {
            let state = match check.state.as_str() {
                "ok" => paint.good("ok"),
                other => paint.warn(other),
            };
            let pad = " ".repeat(8_usize.saturating_sub(check.state.len()));
            let _ = writeln!(
                text,
                "  {state}{pad} {:<10} {}",
                check.check,
                clean(&check.message, false)
            );
        }
        for warning in &self.warnings {
            let _ = writeln!(
                text,
                "  {} {}",
                paint.warn("warning:"),
                clean(warning, false)
            );
        }
        if self.changed {
            let _ = writeln!(
                text,
                "plan from version {}: {}, {} kept\ncost: {}",
                self.version,
                count(moving().count() as u64, "change", "changes"),
                self.many("keep"),
                self.cost.line()
            );
        } else {
            let _ = writeln!(text, "nothing to change (version {})", self.version);
        }
        text
    }

    fn names(&self) -> Vec<String> {
        self.changes
            .iter()
            .filter(|change| change.action != "keep")
            .map(|change| change.object.clone())
            .collect()
    }
}
