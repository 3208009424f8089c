//! The keys and commands, made from the tables that are in force.

use ratatui::layout::Rect;

use super::paint::{Canvas, piece};
use crate::monitor::{
    app::App,
    keymap::{ALL, BINDINGS, Binding, LOGS, Press},
    prompt::COMMANDS,
    theme::Role,
};

/// One line of the help: what to press, what it does; a heading has nothing to press.
pub fn lines() -> Vec<(String, String)> {
    let heading = |text: &str| (String::new(), text.to_owned());
    let mut lines = vec![heading("Everywhere")];
    let of = |pick: fn(&Binding) -> bool| {
        BINDINGS
            .iter()
            .filter(move |binding| pick(binding))
            .map(row)
    };
    lines.extend(of(|binding| binding.scope == ALL));
    lines.push(heading("Lists, tables and processes"));
    lines.extend(of(|binding| binding.scope != ALL && binding.scope != LOGS));
    lines.push(heading("Logs"));
    lines.extend(of(|binding| binding.scope == LOGS));
    lines.push(heading("Commands, after :"));
    lines.extend(COMMANDS.iter().map(|(name, takes)| {
        let what = match *name {
            "guild" => "where a guild is served",
            "sort" => "sort the table; - in front reverses",
            "filter" => "filter the table; nothing clears it",
            "start" | "stop" | "restart" => {
                "a process, bot, db, host:NAME, shard:ID, guild:ID or all (asks first)"
            }
            "backup" => "back up the database (asks first)",
            "quit" => "quit; the fleet goes on",
            _ => "open it, or switch it",
        };
        (
            format!(":{name} {takes}").trim_end().to_owned(),
            what.to_owned(),
        )
    }));
    lines.push(heading("Columns"));
    for (name, what) in [
        (
            "EV/S",
            "gateway events a second; for a database node reads and writes",
        ),
        (
            "LAT",
            "mean heartbeat latency of the shards; for a database node p99 of writes",
        ),
        ("RST", "restarts"),
        (
            "lost",
            "the process's host is unreachable: what is shown of it is old",
        ),
    ] {
        lines.push((name.to_owned(), what.to_owned()));
    }
    lines
}

fn row(binding: &Binding) -> (String, String) {
    let keys: Vec<String> = binding
        .press
        .iter()
        .map(|press: &Press| press.label())
        .collect();
    (keys.join(" "), binding.help.to_owned())
}

/// Draws the help.
pub fn draw(canvas: &mut Canvas<'_>, area: Rect, app: &App) {
    let lines = lines();
    let list = &app.screen().list;
    for (y, row) in canvas.visible(list, lines.len(), area).enumerate() {
        let place = Rect {
            y: area.y + y as u16,
            height: 1,
            ..area
        };
        let (keys, what) = &lines[row];
        if keys.is_empty() {
            canvas.line(place, &[piece(format!(" {what}"), Role::Title)]);
        } else {
            let columns = if area.width < 60 { 10 } else { 18 };
            canvas.line(
                place,
                &[
                    piece(format!("   {keys:<columns$} "), Role::Accent),
                    piece(what.as_str(), Role::Text),
                ],
            );
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
