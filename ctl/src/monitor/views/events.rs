//! What happened, the newest first.

use ratatui::layout::Rect;
use tanako_proto::fleet::v1::Event;

use super::paint::{Canvas, Piece, piece};
use crate::monitor::{
    app::{App, Clock},
    figures, navigate, text,
    theme::Role,
};

/// Draws the events of `object`, or all.
pub fn draw(canvas: &mut Canvas<'_>, area: Rect, app: &App, object: Option<&str>, clock: Clock) {
    let model = app.shown();
    let list = &app.screen().list;
    let len = navigate::events(model, object).count();
    if len == 0 {
        canvas.text(
            area.x + 2,
            area.y + 1,
            area.width.saturating_sub(2),
            "no events yet",
            Role::Dim,
        );
    }
    let rows = canvas.visible(list, len, area);
    let shown = navigate::events(model, object)
        .skip(rows.start)
        .take(rows.len());
    for (y, event) in shown.enumerate() {
        let place = Rect {
            y: area.y + y as u16,
            height: 1,
            ..area
        };
        canvas.line(
            place,
            &line(canvas, event, clock, area.width, object.is_none()),
        );
        if rows.start + y == list.cursor {
            canvas.text(
                place.x,
                place.y,
                1,
                canvas.theme.glyphs().cursor,
                Role::Accent,
            );
            canvas.wash(place, Role::Selected);
        }
    }
}

/// One event in one line.
pub fn line<'e>(
    canvas: &Canvas<'_>,
    event: &'e Event,
    clock: Clock,
    width: u16,
    named: bool,
) -> Vec<Piece<'e>> {
    let glyphs = canvas.theme.glyphs();
    let (glyph, role) = match event.severity.as_str() {
        "error" => (glyphs.failed, Role::Bad),
        "warning" => (glyphs.starting, Role::Warn),
        _ => (glyphs.dot, Role::Dim),
    };
    let time = figures::clock(event.at, clock.offset_s);
    let time = if width < 60 {
        time[..5].to_owned()
    } else {
        time
    };
    let mut pieces = vec![
        piece(format!(" {time} "), Role::Dim),
        piece(format!("{glyph} "), role),
    ];
    if width >= 60 {
        pieces.push(piece(format!("{:<18} ", text::fit(&event.kind, 18)), role));
    }
    if named {
        pieces.push(piece(
            format!("{:<12} ", text::fit(&event.object, 12)),
            Role::Strong,
        ));
    }
    let message = if event.message.is_empty() {
        &event.kind
    } else {
        &event.message
    };
    pieces.push(piece(
        message.as_str(),
        if role == Role::Dim { Role::Text } else { role },
    ));
    pieces
}
