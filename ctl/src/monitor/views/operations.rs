//! Operations: what runs, how far it is, what it cost.

use ratatui::layout::Rect;
use tanako_proto::fleet::v1::{Operation, OperationStep, ShardReceipt};

use super::{
    paint::{Canvas, Piece, piece},
    table::{Column, Source, column, table},
};
use crate::monitor::{
    app::{App, Clock},
    figures,
    state::Model,
    theme::Role,
};

/// What an operation does, to what.
pub fn title(operation: &Operation) -> String {
    let targets = match operation.targets.as_slice() {
        [] => operation.date.clone(),
        targets if targets.len() <= 3 => targets.join(" "),
        targets => format!("{} {} +{}", targets[0], targets[1], targets.len() - 2),
    };
    let kind = match operation.strategy.as_str() {
        "" => operation.kind.clone(),
        strategy => format!("{} {strategy}", operation.kind),
    };
    format!("{kind} {targets}").trim_end().to_owned()
}

/// How far it is.
pub fn progress(operation: &Operation) -> String {
    if operation.total == 0 {
        return String::new();
    }
    format!(
        " {}/{} {}",
        figures::count(operation.done),
        figures::count(operation.total),
        operation.unit
    )
    .trim_end()
    .to_owned()
}

/// What is to be said about it: the problem, the receipt in short, or its message.
pub fn outcome(operation: &Operation) -> String {
    if let Some(problem) = &operation.problem {
        return crate::monitor::app::problem_line(problem);
    }
    if operation.unchanged {
        return "nothing to change".into();
    }
    match (operation.message.as_str(), receipt(operation)) {
        (message, None) => message.to_owned(),
        ("", Some(receipt)) => receipt,
        (message, Some(receipt)) => format!("{message} · {receipt}"),
    }
}

/// The receipts added up: `8 resumed, 0 identified, 0 lost, longest gap 1.2s`.
pub fn receipt(operation: &Operation) -> Option<String> {
    if let Some(totals) = &operation.receipt_totals {
        let unknown = match totals.unknown {
            0 => String::new(),
            n => format!(", {n} unknown"),
        };
        return Some(format!(
            "{} resumed, {} identified{unknown}, {} replayed, {} lost, {} twice, gap p99 {}",
            totals.resumed,
            totals.identified,
            figures::count(totals.replayed),
            figures::count(totals.lost),
            figures::count(totals.duplicated),
            figures::millis(totals.gap_p99_ms as f64)
        ));
    }
    let all = &operation.receipt;
    let how = |how: &str| all.iter().filter(|receipt| receipt.how == how).count();
    let lost: u64 = all.iter().map(|receipt| receipt.lost).sum();
    let replayed: u64 = all.iter().map(|receipt| receipt.replayed).sum();
    let gap = all.iter().map(|receipt| receipt.gap_ms).max()?;
    let unknown = match how("unknown") {
        0 => String::new(),
        n => format!(", {n} unknown"),
    };
    Some(format!(
        "{} resumed, {} identified{unknown}, {} replayed, {} lost, longest gap {}",
        how("resumed"),
        how("identified"),
        figures::count(replayed),
        figures::count(lost),
        figures::millis(gap as f64)
    ))
}

/// Draws the list of operations.
pub fn draw(canvas: &mut Canvas<'_>, area: Rect, app: &App, clock: Clock) {
    let operations = &app.shown().operations;
    if operations.is_empty() {
        canvas.text(
            area.x + 2,
            area.y + 1,
            area.width.saturating_sub(2),
            "no operations yet",
            Role::Dim,
        );
        return;
    }
    let columns = [
        Column {
            width_max: 28,
            ..column(Cell::What, "OPERATION", 16, false, 0)
        },
        column(Cell::State, "STATE", 11, false, 0),
        column(Cell::Bar, "PROGRESS", 12, false, 2),
        column(Cell::Done, "", 14, false, 4),
        column(Cell::Age, "AGE", 6, true, 1),
        Column {
            width_max: 12,
            ..column(Cell::By, "BY", 8, false, 5)
        },
        Column {
            width_max: 200,
            ..column(Cell::Outcome, "OUTCOME", 12, false, 3)
        },
    ];
    table(
        canvas,
        area,
        &columns,
        &app.screen().list,
        operations.len(),
        &Operations { operations, clock },
    );
}

#[derive(Clone, Copy)]
enum Cell {
    What,
    State,
    Bar,
    Done,
    Age,
    By,
    Outcome,
}

struct Operations<'a> {
    operations: &'a [Operation],
    clock: Clock,
}

impl Source<Cell> for Operations<'_> {
    fn cell(&self, canvas: &Canvas<'_>, row: usize, key: Cell, width: u16) -> Vec<Piece<'_>> {
        let Some(operation) = self.operations.get(row) else {
            return Vec::new();
        };
        let (glyph, role) = canvas.theme.state(&operation.state);
        match key {
            Cell::What => vec![piece(title(operation), Role::Text)],
            Cell::State => vec![
                piece(format!("{glyph} "), role),
                piece(operation.state.as_str(), role),
            ],
            Cell::Bar if operation.total == 0 => Vec::new(),
            Cell::Bar => canvas
                .bar(width, operation.done as f64 / operation.total as f64, role)
                .to_vec(),
            Cell::Done => vec![piece(progress(operation).trim().to_owned(), Role::Dim)],
            Cell::Age => vec![piece(since(operation.created_at, self.clock), Role::Text)],
            Cell::By => vec![piece(operation.requested_by.as_str(), Role::Dim)],
            Cell::Outcome => vec![piece(outcome(operation), Role::Dim)],
        }
    }
}

fn since(at: i64, clock: Clock) -> String {
    figures::age(clock.unix_ms.saturating_sub(at).max(0) as u64 / 1000)
}

/// Lines of the list below an operation's details.
pub fn detail_len(model: &Model, id: &str) -> usize {
    model.operation(id).map_or(0, |operation| {
        let receipts = operation.receipt.len();
        operation.steps.len() + if receipts > 0 { receipts + 1 } else { 0 }
    })
}

/// Draws one operation: its steps and receipts.
pub fn draw_one(canvas: &mut Canvas<'_>, area: Rect, app: &App, id: &str, clock: Clock) {
    let model = app.shown();
    let Some(operation) = model.operation(id) else {
        canvas.text(
            area.x + 2,
            area.y + 1,
            area.width - 2,
            "the agent no longer knows this operation",
            Role::Dim,
        );
        return;
    };
    let (glyph, role) = canvas.theme.state(&operation.state);
    let line = |n: u16| Rect {
        y: area.y + n,
        height: u16::from(n < area.height),
        ..area
    };
    let took = if operation.ended_at > 0 {
        operation.ended_at
    } else {
        clock.unix_ms
    } - operation.created_at;
    let mut pieces = vec![
        piece(format!(" {glyph} {}  ", operation.state), role),
        piece(title(operation), Role::Strong),
        piece(
            format!("  {}  ", figures::age(took.max(0) as u64 / 1000)),
            Role::Dim,
        ),
    ];
    if operation.total > 0 {
        pieces.extend(canvas.bar(
            area.width / 4,
            operation.done as f64 / operation.total as f64,
            role,
        ));
        pieces.push(piece(progress(operation), Role::Text));
    }
    canvas.line(line(0), &pieces);
    let by = if operation.requested_by.is_empty() {
        "-"
    } else {
        &operation.requested_by
    };
    let begun = figures::date_time(operation.created_at, clock.offset_s);
    canvas.line(
        line(1),
        &[piece(
            format!(" by {by}, begun {begun}  {}", outcome(operation)),
            Role::Dim,
        )],
    );
    canvas.rule(line(2), "steps and receipts");
    let body = Rect {
        y: area.y + 3,
        height: area.height.saturating_sub(3),
        ..area
    };
    let len = detail_len(model, id);
    let list = &app.screen().list;
    for (y, row) in canvas.visible(list, len, body).enumerate() {
        let place = Rect {
            y: body.y + y as u16,
            height: 1,
            ..body
        };
        let steps = operation.steps.len();
        if let Some(part) = operation.steps.get(row) {
            step(canvas, place, part);
        } else if row == steps {
            canvas.rule(place, "receipts: what it cost each shard");
        } else if let Some(part) = operation.receipt.get(row - steps - 1) {
            shard(canvas, place, part);
        }
        if row == list.cursor {
            canvas.text(
                place.x,
                place.y,
                1,
                canvas.theme.glyphs().cursor,
                Role::Accent,
            );
        }
    }
}

fn step(canvas: &mut Canvas<'_>, place: Rect, step: &OperationStep) {
    let (glyph, role) = canvas.theme.state(&step.state);
    let mut pieces = vec![
        piece(format!("  {glyph} {:<10} ", step.state), role),
        piece(
            format!("{:<9} {:<14} ", step.action, step.object),
            Role::Text,
        ),
    ];
    if step.total > 0 {
        pieces.extend(canvas.bar(12, step.done as f64 / step.total as f64, role));
        pieces.push(piece(
            format!(
                " {}/{} ",
                figures::count(step.done),
                figures::count(step.total)
            ),
            Role::Dim,
        ));
    }
    pieces.push(piece(step.message.as_str(), Role::Dim));
    canvas.line(place, &pieces);
}

fn shard(canvas: &mut Canvas<'_>, place: Rect, receipt: &ShardReceipt) {
    let role = match receipt.how.as_str() {
        "resumed" => Role::Good,
        _ => Role::Warn,
    };
    let pieces = [
        piece(
            format!("  shard {:<4} {:<10} ", receipt.shard_id, receipt.process),
            Role::Text,
        ),
        piece(format!("{:<10} ", receipt.how), role),
        piece(
            format!("gap {:<7} ", figures::millis(receipt.gap_ms as f64)),
            Role::Text,
        ),
        piece(
            format!("replayed {:<6} ", figures::count(receipt.replayed)),
            Role::Dim,
        ),
        piece(
            format!("lost {}", figures::count(receipt.lost)),
            if receipt.lost > 0 {
                Role::Bad
            } else {
                Role::Dim
            },
        ),
        piece(
            format!("  twice {}", figures::count(receipt.duplicated)),
            Role::Dim,
        ),
    ];
    canvas.line(place, &pieces);
}
