//! The question before a change: what, whom it touches, what it costs. Cancel is focused.

use ratatui::layout::Rect;
use tanako_proto::fleet::v1::PlanReply;

use super::paint::{Canvas, Piece, piece, pieces_width};
use crate::monitor::{
    app::App,
    dialog::{Button, Dialog, Plan},
    figures, state, text,
    theme::Role,
    write::Verb,
};

/// Draws `dialog` over the middle of the screen.
pub fn draw(canvas: &mut Canvas<'_>, area: Rect, app: &App, dialog: &Dialog) {
    let width = area.width.saturating_sub(2).min(72);
    let inner = usize::from(width.saturating_sub(4));
    let room = area.height.saturating_sub(2);
    // Buttons, what to type and the frame are always there; the rest takes what is left.
    let fixed = 3 + u16::from(dialog.must_type.is_some());
    let roomy = room >= 14;
    let fixed = fixed + u16::from(roomy);
    let lines = body(app, dialog, inner, usize::from(room.saturating_sub(fixed)));
    let height = (lines.len() as u16 + fixed).min(room);
    let frame = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    border(canvas, frame, dialog.write.verb().title(), app);
    let inside = Rect {
        x: frame.x + 2,
        y: frame.y + 1,
        width: width - 4,
        height: 1,
    };
    let line = |y: u16| Rect { y, ..inside };
    for (y, pieces) in lines.iter().enumerate() {
        canvas.line(line(inside.y + y as u16), pieces);
    }
    let buttons_at = frame.bottom() - 2;
    if let Some(name) = &dialog.must_type {
        let (before, after) = dialog.typed.halves();
        let mut after = after.chars();
        let under = after.next().map_or_else(|| " ".into(), |c| c.to_string());
        let pieces = [
            piece("type ", Role::Text),
            piece(text::fit(name, inner / 2).into_owned(), Role::Strong),
            piece(" to confirm: ", Role::Text),
            piece(before, Role::Accent),
            piece(under, Role::Selected),
            piece(after.as_str().to_owned(), Role::Accent),
        ];
        canvas.line(line(buttons_at - 1), &pieces);
    }
    let look = |button: Button| {
        if dialog.button == button {
            Role::Selected
        } else {
            Role::Text
        }
    };
    let arrow = |button: Button| {
        if dialog.button == button {
            canvas.theme.glyphs().cursor
        } else {
            " "
        }
    };
    let mut pieces = vec![
        piece(arrow(Button::Cancel), Role::Accent),
        piece("[ Cancel ]", look(Button::Cancel)),
        piece("  ", Role::Text),
        piece(arrow(Button::Confirm), Role::Accent),
        piece(
            format!("[ {} ]", dialog.write.verb().title()),
            look(Button::Confirm),
        ),
    ];
    if let Some(obstacle) = dialog
        .obstacle()
        .filter(|_| dialog.must_type.is_none() || area.width >= 60)
    {
        pieces.push(piece(format!("  {obstacle}"), Role::Dim));
    } else {
        pieces.push(piece("  Tab, Enter", Role::Dim));
    }
    canvas.line(line(buttons_at), &pieces);
}

fn border(canvas: &mut Canvas<'_>, frame: Rect, title: &str, app: &App) {
    let [tl, tr, bl, br, h, v] = canvas.theme.glyphs().frame;
    for y in frame.y..frame.bottom() {
        for x in frame.x..frame.right() {
            let cell = &mut canvas.buffer[(x, y)];
            cell.reset();
        }
    }
    let production = app.shown().production;
    let role = if production { Role::Bad } else { Role::Accent };
    let inner = usize::from(frame.width - 2);
    canvas.text(
        frame.x,
        frame.y,
        frame.width,
        &format!("{tl}{}{tr}", h.repeat(inner)),
        role,
    );
    canvas.text(
        frame.x,
        frame.bottom() - 1,
        frame.width,
        &format!("{bl}{}{br}", h.repeat(inner)),
        role,
    );
    for y in frame.y + 1..frame.bottom() - 1 {
        canvas.text(frame.x, y, 1, v, role);
        canvas.text(frame.right() - 1, y, 1, v, role);
    }
    let mut pieces = vec![piece(format!(" {title} "), Role::Strong)];
    if production {
        pieces.push(piece(" PRODUCTION ", Role::Production));
    }
    canvas.line(
        Rect {
            x: frame.x + 2,
            width: frame.width.saturating_sub(4),
            height: 1,
            ..frame
        },
        &pieces,
    );
}

/// The lines above the buttons, at most `lines_max`.
fn body<'a>(
    app: &'a App,
    dialog: &'a Dialog,
    inner: usize,
    lines_max: usize,
) -> Vec<Vec<Piece<'a>>> {
    let mut lines: Vec<Vec<Piece<'_>>> = Vec::new();
    let verb = dialog.write.verb();
    let targets = match verb {
        Verb::Backup => "the database of the whole fleet".to_owned(),
        _ => dialog.write.targets().join(", "),
    };
    let targets = text::wrap_words(&targets, inner, 3);
    lines.extend(
        targets
            .into_iter()
            .map(|line| vec![piece(line, Role::Strong)]),
    );
    match &dialog.plan {
        Plan::Waiting => lines.push(vec![piece(
            "asking the fleet what it would cost",
            Role::Dim,
        )]),
        Plan::Refused(problem) => {
            let text = crate::monitor::app::problem_line(problem);
            let wrapped = text::wrap_words(&text, inner, 5);
            lines.extend(wrapped.into_iter().map(|line| vec![piece(line, Role::Bad)]));
        }
        Plan::Ready(plan) => planned(&mut lines, app, plan, inner, verb),
    }
    lines.truncate(lines_max);
    lines
}

fn planned<'a>(
    lines: &mut Vec<Vec<Piece<'a>>>,
    app: &App,
    plan: &'a PlanReply,
    inner: usize,
    verb: Verb,
) {
    let touched = || plan.changes.iter().filter(|change| change.action != "keep");
    let model = app.shown();
    let hit = || touched().filter_map(|change| model.process(&change.object));
    let shards: usize = hit().map(|process| process.shards.len()).sum();
    let guilds: u64 = hit().map(state::guilds).sum();
    let n = touched().count();
    if n == 0 {
        lines.push(vec![piece(
            "nothing to change: it is already so",
            Role::Good,
        )]);
    } else if verb != Verb::Backup {
        let s = |n: usize| if n == 1 { "" } else { "s" };
        let es = if n == 1 { "" } else { "es" };
        let text = format!(
            "touches {n} process{es}: {shards} shard{}, {} guilds served",
            s(shards),
            figures::count(guilds)
        );
        lines.push(vec![piece(text, Role::Warn)]);
    }
    let cost = plan.cost.unwrap_or_default();
    let mut parts = Vec::new();
    for (count, what) in [
        (cost.processes_restarted, "restarted"),
        (cost.processes_started, "started"),
        (cost.processes_stopped, "stopped"),
    ] {
        if count > 0 {
            parts.push(format!("{} {what}", figures::count(count.into())));
        }
    }
    parts.push(format!(
        "{} IDENTIFYs ({} left)",
        figures::count(cost.identifies.into()),
        figures::count(cost.identifies_left.into())
    ));
    parts.push(format!("~{}", figures::age(cost.seconds.into())));
    parts.push(format!(
        "{} guilds moved",
        figures::count(cost.guilds_moved.into())
    ));
    let cost_line = format!("cost: {}", parts.join(" · "));
    lines.extend(
        text::wrap_words(&cost_line, inner, 3)
            .into_iter()
            .map(|line| vec![piece(line, Role::Text)]),
    );
    for warning in plan.warnings.iter().take(3) {
        let wrapped = text::wrap_words(warning, inner, 2);
        lines.extend(
            wrapped
                .into_iter()
                .map(|line| vec![piece(line, Role::Warn)]),
        );
    }
    for change in touched().take(6) {
        let lead = format!("  {:<8} {:<14} ", change.action, change.object);
        let mut pieces = vec![piece(lead, Role::Dim)];
        let room = inner.saturating_sub(usize::from(pieces_width(&pieces)));
        pieces.push(piece(text::fit(&change.why, room).into_owned(), Role::Dim));
        lines.push(pieces);
    }
    if n > 6 {
        lines.push(vec![piece(format!("  and {} more", n - 6), Role::Dim)]);
    }
}
