//! Operations: what was asked of the fleet and how far it is.

use std::fmt::Write as _;

use serde::Serialize;
use tanako_proto::fleet::v1::{
    Cost, Operation, OperationStep, Problem, ReceiptTotals, ShardReceipt,
};

use super::{clock, text, time};
use crate::{
    paint::{Paint, clean},
    table::{Cell, Table},
    ui::Report,
    units::{age, count, now_ms, seconds_between},
};

/// One operation in the JSON of `status`: everything but steps and receipt.
#[derive(Debug, Clone, Serialize)]
pub struct OperationSummary {
    id: String,
    kind: String,
    targets: Vec<String>,
    state: String,
    done: u64,
    total: u64,
    unit: String,
    message: String,
    error: Option<ErrorView>,
    requested_by: String,
    created_at: Option<String>,
    updated_at: Option<String>,
    ended_at: Option<String>,
    date: Option<String>,
    unchanged: bool,
    strategy: Option<String>,
    #[serde(skip)]
    created_at_ms: i64,
    #[serde(skip)]
    pub(super) ended_at_ms: i64,
}

/// One operation in full: `-o json` of every verb that runs one.
#[derive(Debug, Clone, Serialize)]
pub struct OperationView {
    #[serde(flatten)]
    summary: OperationSummary,
    cost: CostView,
    steps: Vec<StepView>,
    receipt_totals: Option<TotalsView>,
    receipt: Vec<ReceiptView>,
}

#[derive(Debug, Clone, Serialize)]
struct ErrorView {
    code: String,
    object: String,
    message: String,
    cause: String,
    hint: String,
    retryable: bool,
}

impl From<&Problem> for ErrorView {
    fn from(problem: &Problem) -> Self {
        Self {
            code: problem.code.clone(),
            object: problem.object.clone(),
            message: problem.message.clone(),
            cause: problem.cause.clone(),
            hint: problem.hint.clone(),
            retryable: problem.retryable,
        }
    }
}

/// What a change costs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CostView {
    processes_restarted: u32,
    processes_started: u32,
    processes_stopped: u32,
    identifies: u32,
    identifies_left: u32,
    seconds: u32,
    guilds_moved: u32,
    processes_moved: u32,
}

impl From<&Cost> for CostView {
    fn from(cost: &Cost) -> Self {
        Self {
            processes_restarted: cost.processes_restarted,
            processes_started: cost.processes_started,
            processes_stopped: cost.processes_stopped,
            identifies: cost.identifies,
            identifies_left: cost.identifies_left,
            seconds: cost.seconds,
            guilds_moved: cost.guilds_moved,
            processes_moved: cost.processes_moved,
        }
    }
}

impl CostView {
    /// One line for people.
    pub fn line(&self) -> String {
        let moved = match self.processes_moved {
            0 => String::new(),
            moved => format!("{moved} moved, "),
        };
        format!(
            "{moved}{} started, {} restarted, {} stopped; {} spent, {} left; {} guilds moved; about {}",
            self.processes_started,
            self.processes_restarted,
            self.processes_stopped,
            count(self.identifies.into(), "IDENTIFY", "IDENTIFYs"),
            self.identifies_left,
            self.guilds_moved,
            age(self.seconds.into()),
        )
    }
}

#[derive(Debug, Clone, Serialize)]
struct StepView {
    object: String,
    action: String,
    state: String,
    message: String,
    started_at: Option<String>,
    ended_at: Option<String>,
    done: u64,
    total: u64,
}

impl From<&OperationStep> for StepView {
    fn from(step: &OperationStep) -> Self {
        Self {
            object: step.object.clone(),
            action: step.action.clone(),
            state: step.state.clone(),
            message: step.message.clone(),
            started_at: time(step.started_at),
            ended_at: time(step.ended_at),
            done: step.done,
            total: step.total,
        }
    }
}

#[derive(Debug, Clone, Serialize)]
struct ReceiptView {
    process: String,
    shard_id: u32,
    shard_count: u32,
    how: String,
    gap_ms: u64,
    replayed: u64,
    lost: u64,
    duplicated: u64,
}

impl From<&ShardReceipt> for ReceiptView {
    fn from(receipt: &ShardReceipt) -> Self {
        Self {
            process: receipt.process.clone(),
            shard_id: receipt.shard_id,
            shard_count: receipt.shard_count,
            how: receipt.how.clone(),
            gap_ms: receipt.gap_ms,
            replayed: receipt.replayed,
            lost: receipt.lost,
            duplicated: receipt.duplicated,
        }
    }
}

/// The sums of a receipt.
#[derive(Debug, Clone, Copy, Serialize)]
struct TotalsView {
    shards: u32,
    resumed: u32,
    identified: u32,
    unknown: u32,
    gap_p50_ms: u64,
    gap_p99_ms: u64,
    gap_max_ms: u64,
    replayed: u64,
    lost: u64,
    duplicated: u64,
}

impl From<&ReceiptTotals> for TotalsView {
    fn from(totals: &ReceiptTotals) -> Self {
        Self {
            shards: totals.shards,
            resumed: totals.resumed,
            identified: totals.identified,
            unknown: totals.unknown,
            gap_p50_ms: totals.gap_p50_ms,
            gap_p99_ms: totals.gap_p99_ms,
            gap_max_ms: totals.gap_max_ms,
            replayed: totals.replayed,
            lost: totals.lost,
            duplicated: totals.duplicated,
        }
    }
}

impl TotalsView {
    fn line(self, paint: Paint) -> String {
        let unknown = match self.unknown {
            0 => String::new(),
            unknown => format!(", {unknown} unknown"),
        };
        let bad = |count: u64, what: &str| {
            let text = format!("{count} {what}");
            if count > 0 { paint.bad(&text) } else { text }
        };
        format!(
            "  receipt: {}: {} resumed, {} identified{unknown}; gap p50 {} ms, p99 {} ms, longest {} ms; {} events replayed, {}, {}\n",
            count(self.shards.into(), "shard", "shards"),
            self.resumed,
            self.identified,
            self.gap_p50_ms,
            self.gap_p99_ms,
            self.gap_max_ms,
            self.replayed,
            bad(self.lost, "lost"),
            bad(self.duplicated, "twice"),
        )
    }
}

impl From<&Operation> for OperationSummary {
    fn from(operation: &Operation) -> Self {
        Self {
            id: operation.id.clone(),
            kind: operation.kind.clone(),
            targets: operation.targets.clone(),
            state: operation.state.clone(),
            done: operation.done,
            total: operation.total,
            unit: operation.unit.clone(),
            message: operation.message.clone(),
            error: operation
                .problem
                .as_ref()
                .filter(|problem| !problem.code.is_empty())
                .map(Into::into),
            requested_by: operation.requested_by.clone(),
            created_at: time(operation.created_at),
            updated_at: time(operation.updated_at),
            ended_at: time(operation.ended_at),
            date: text(operation.date.clone()),
            unchanged: operation.unchanged,
            strategy: text(operation.strategy.clone()),
            created_at_ms: operation.created_at,
            ended_at_ms: operation.ended_at,
        }
    }
}

impl From<&Operation> for OperationView {
    fn from(operation: &Operation) -> Self {
        Self {
            summary: operation.into(),
            cost: operation.cost.as_ref().map(Into::into).unwrap_or_default(),
            steps: operation.steps.iter().map(Into::into).collect(),
            receipt_totals: operation.receipt_totals.as_ref().map(Into::into),
            receipt: operation.receipt.iter().map(Into::into).collect(),
        }
    }
}

impl OperationSummary {
    /// Whether it has not ended.
    pub fn goes_on(&self) -> bool {
        matches!(self.state.as_str(), "pending" | "running" | "paused")
    }

    fn what(&self) -> String {
        let mut what = self.kind.clone();
        if let Some(strategy) = &self.strategy {
            let _ = write!(what, " {strategy}");
        }
        for target in &self.targets {
            let _ = write!(what, " {target}");
        }
        if let Some(date) = &self.date {
            let _ = write!(what, " {date}");
        }
        what
    }

    fn took(&self, now: i64) -> u64 {
        let end = if self.ended_at_ms == 0 {
            now
        } else {
            self.ended_at_ms
        };
        seconds_between(self.created_at_ms, end)
    }

    fn progress(&self) -> String {
        if self.total == 0 {
            return "-".into();
        }
        format!("{}/{}", self.done, self.total)
    }

    /// One line for people: `r-17 restart tanako: running 2/4 processes, 12s (tanako/1 …)`.
    pub fn line(&self, paint: Paint, now: i64) -> String {
        let mut line = format!(
            "{} {}: {}",
            paint.strong(&self.id),
            self.what(),
            paint.state(&self.state, &self.state)
        );
        if self.unchanged {
            line.push_str(", nothing to change");
        } else if self.total > 0 {
            let _ = write!(line, ", {} of {} {}", self.done, self.total, self.unit);
        }
        let _ = write!(line, ", {}", age(self.took(now)));
        if !self.message.is_empty() {
            let _ = write!(line, " ({})", clean(&self.message, false));
        }
        line
    }
}

impl Report for OperationView {
    fn table(&self, paint: Paint, wide: bool) -> String {
        let now = now_ms();
        let mut text = self.summary.line(paint, now) + "\n";
        if wide {
            if !self.steps.is_empty() {
                let mut table = Table::new(&["OBJECT", "ACTION", "STATE", "MESSAGE"]);
                for step in &self.steps {
                    table.row(vec![
                        step.object.as_str().into(),
                        step.action.as_str().into(),
                        Cell::state(&step.state),
                        clean(&step.message, false).into(),
                    ]);
                }
                text.push_str(&table.render(paint));
            }
        } else {
            for step in self
                .steps
                .iter()
                .filter(|step| step.state == "failed")
                .take(20)
            {
                let _ = writeln!(
                    text,
                    "  {} {}: {}",
                    paint.bad("failed"),
                    step.object,
                    clean(&step.message, false)
                );
            }
        }
        text.push_str(&self.receipt_text(paint, wide));
        text
    }

    fn names(&self) -> Vec<String> {
        vec![self.summary.id.clone()]
    }
}

impl OperationView {
    /// The totals, then shard by shard.
    fn receipt_text(&self, paint: Paint, wide: bool) -> String {
        const SHOWN: usize = 32;
        if self.receipt.is_empty() {
            return String::new();
        }
        let mut text = self
            .receipt_totals
            .map_or_else(String::new, |totals| totals.line(paint));
        let shown = if wide { usize::MAX } else { SHOWN };
        let mut table = Table::new(&[
            "PROCESS",
            "SHARD",
            "HOW",
            "GAP",
            "REPLAYED",
            "LOST",
            "DUPLICATED",
        ]);
        for receipt in self.receipt.iter().take(shown) {
            table.row(vec![
                receipt.process.as_str().into(),
                Cell::number(receipt.shard_id),
                Cell::state(&receipt.how),
                Cell::number(format!("{}ms", receipt.gap_ms)),
                Cell::number(receipt.replayed),
                Cell::number(receipt.lost),
                Cell::number(receipt.duplicated),
            ]);
        }
        text.push_str(&table.render(paint));
        if self.receipt.len() > shown {
            let _ = writeln!(
                text,
                "and {} more (-o wide shows all)",
                self.receipt.len() - shown
            );
        }
        text
    }
}

/// `operation list`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct OperationListView(Vec<OperationSummary>);

impl From<&[Operation]> for OperationListView {
    fn from(operations: &[Operation]) -> Self {
        Self(operations.iter().map(Into::into).collect())
    }
}

impl Report for OperationListView {
    fn table(&self, paint: Paint, _wide: bool) -> String {
        if self.0.is_empty() {
            return "no operations yet\n".into();
        }
        let now = now_ms();
        let mut table = Table::new(&["ID", "WHAT", "STATE", "PROGRESS", "BY", "STARTED", "TOOK"]);
        for operation in &self.0 {
            table.row(vec![
                operation.id.as_str().into(),
                operation.what().into(),
                Cell::state(&operation.state),
                Cell::number(operation.progress()),
                operation.requested_by.as_str().into(),
                clock(operation.created_at_ms, now).into(),
                Cell::number(age(operation.took(now))),
            ]);
        }
        table.render(paint)
    }

    fn names(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|operation| operation.id.clone())
            .collect()
    }
}
