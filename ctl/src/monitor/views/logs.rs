//! Log lines, drawn from the lowest upwards: only those on the screen are looked at.

use ratatui::layout::Rect;

use super::paint::{Canvas, Piece, piece, pieces_width};
use crate::monitor::{
    app::{App, Clock},
    figures,
    logs::{Line, Logs},
    text,
    theme::Role,
};

/// Draws the log lines of `targets`.
pub fn draw(canvas: &mut Canvas<'_>, area: Rect, app: &App, targets: &[String], clock: Clock) {
    let Some(logs) = app.logs.as_ref().filter(|logs| logs.targets == targets) else {
        return;
    };
    let body = Rect {
        y: area.y + 1,
        height: area.height - 1,
        ..area
    };
    app.screen().list.page.set(usize::from(body.height));
    status(canvas, Rect { height: 1, ..area }, logs);
    if logs.is_empty() {
        let text = if logs.ended.is_some() {
            "no lines"
        } else {
            "waiting for lines"
        };
        canvas.text(body.x + 2, body.y, body.width - 2, text, Role::Dim);
        return;
    }
    let mut bottom = body.bottom();
    for line in logs.upwards() {
        if bottom <= body.y {
            break;
        }
        canvas.formatted += 1;
        let lead = lead(logs, line, clock);
        let columns = body.width.saturating_sub(pieces_width(&lead));
        let parts = if logs.wrap {
            text::wrap(&line.text, usize::from(columns), usize::from(body.height))
        } else {
            vec![line.text.clone()]
        };
        let height = (parts.len() as u16).min(bottom - body.y);
        bottom -= height;
        let mut start = 0;
        // A long line at the top shows its end, as a pager would.
        let skip = parts.len() - usize::from(height);
        for (n, part) in parts.iter().enumerate() {
            if n >= skip {
                let y = bottom + (n - skip) as u16;
                let place = Rect {
                    y,
                    height: 1,
                    ..body
                };
                let used = if n == 0 {
                    canvas.line(place, &lead)
                } else {
                    pieces_width(&lead)
                };
                let role = if line.stderr { Role::Warn } else { Role::Text };
                canvas.text(body.x + used, y, columns, part, role);
                highlight(canvas, place, used, columns, logs, &line.text, start, part);
            }
            start += part.len();
        }
    }
    // Few lines stand at the top, as they would in a file.
    if bottom > body.y {
        let blank = bottom - body.y;
        shift_up(canvas, body, blank);
    }
}

fn status(canvas: &mut Canvas<'_>, area: Rect, logs: &Logs) {
    let mut pieces = vec![if logs.is_following() {
        piece(" following", Role::Good)
    } else {
        let new = match logs.behind() {
            0 => String::new(),
            n => format!(", {} below", figures::count(n)),
        };
        piece(format!(" held{new}"), Role::Warn)
    }];
    pieces.push(piece(
        format!("   {} lines", figures::count(logs.len() as u64)),
        Role::Dim,
    ));
    if logs.wrap {
        pieces.push(piece("   wrapped", Role::Dim));
    }
    if let Some(search) = &logs.search {
        pieces.push(piece(format!("   /{}", search.typed()), Role::Accent));
        pieces.push(piece(
            format!(" {} matching", figures::count(logs.matches() as u64)),
            Role::Dim,
        ));
        if logs.only_matches {
            pieces.push(piece(" (only these)", Role::Dim));
        }
    }
    if let Some(why) = &logs.ended {
        pieces.push(piece(format!("   {why}"), Role::Bad));
    }
    canvas.line(area, &pieces);
}

fn lead(logs: &Logs, line: &Line, clock: Clock) -> Vec<Piece<'static>> {
    let mut lead = vec![piece(" ", Role::Text)];
    if logs.timestamps {
        lead.push(piece(
            format!("{} ", figures::clock(line.at, clock.offset_s)),
            Role::Dim,
        ));
    }
    if logs.targets.len() > 1 {
        lead.push(piece(
            format!("{:<12} ", text::fit(&line.process, 12)),
            Role::Accent,
        ));
    }
    lead
}

/// Marks what the search found in the part of a line that begins at byte `start` of it.
#[expect(
    clippy::too_many_arguments,
    reason = "a place on the screen and a place in a text"
)]
fn highlight(
    canvas: &mut Canvas<'_>,
    place: Rect,
    used: u16,
    columns: u16,
    logs: &Logs,
    whole: &str,
    start: usize,
    part: &str,
) {
    let Some(search) = &logs.search else { return };
    let end = start + part.len();
    for range in search.ranges(whole) {
        let (from, to) = (range.start.max(start), range.end.min(end));
        if from >= to || !part.is_char_boundary(from - start) || !part.is_char_boundary(to - start)
        {
            continue;
        }
        let x = text::width(&part[..from - start]) as u16;
        let width =
            (text::width(&part[from - start..to - start]) as u16).min(columns.saturating_sub(x));
        canvas.wash(
            Rect {
                x: place.x + used + x,
                width,
                ..place
            },
            Role::Match,
        );
    }
}

fn shift_up(canvas: &mut Canvas<'_>, body: Rect, blank: u16) {
    for y in body.y..body.bottom() {
        for x in body.x..body.right() {
            let from = y + blank;
            canvas.buffer[(x, y)] = if from < body.bottom() {
                canvas.buffer[(x, from)].clone()
            } else {
                ratatui::buffer::Cell::default()
            };
        }
    }
}
