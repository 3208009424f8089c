//! Where one guild is served: shard, process, host, database node.

use ratatui::layout::Rect;
use tanako_proto::fleet::v1::GuildLocation;

use super::{
    paint::{Canvas, Piece, piece},
    table::{Column, Source, column, table},
};
use crate::monitor::{
    app::{App, Clock},
    figures,
    state::Model,
    text,
    theme::Role,
};

/// Milliseconds of 2015-01-01, from which snowflakes count.
const DISCORD_EPOCH_MS: u64 = 1_420_070_400_000;

/// Draws the guild view.
pub fn draw(canvas: &mut Canvas<'_>, area: Rect, app: &App, id: u64, clock: Clock) {
    let line = |n: u16| Rect {
        y: area.y + n,
        height: u16::from(n < area.height),
        ..area
    };
    let created = figures::date_time(((id >> 22) + DISCORD_EPOCH_MS) as i64, clock.offset_s);
    canvas.line(
        line(0),
        &[
            piece(" guild ", Role::Dim),
            piece(id.to_string(), Role::Strong),
            piece(format!("   created {created}"), Role::Dim),
        ],
    );
    let body = Rect {
        y: area.y + 2,
        height: area.height.saturating_sub(2),
        ..area
    };
    match &app.guild {
        Some((known, Ok(location))) if *known == id => {
            let model = app.shown();
            let n = location.shards.len();
            canvas.rule(
                line(1),
                &format!("{n} bot{} and the database", if n == 1 { "" } else { "s" }),
            );
            let columns = [
                Column {
                    width_max: 20,
                    ..column(Cell::What, "SERVED BY", 9, false, 0)
                },
                column(Cell::Shard, "SHARD", 9, false, 2),
                Column {
                    width_max: 24,
                    ..column(Cell::Process, "PROCESS", 10, false, 0)
                },
                Column {
                    width_max: 24,
                    ..column(Cell::Host, "HOST", 8, false, 4)
                },
                column(Cell::State, "STATE", 11, false, 1),
                column(Cell::Stage, "STAGE", 14, false, 3),
                column(Cell::Present, "REPORTED", 8, false, 5),
            ];
            let len = app.len();
            table(
                canvas,
                body,
                &columns,
                &app.screen().list,
                len,
                &Served { location, model },
            );
            let below = body.y + 2 + len as u16;
            if below < area.bottom() && !location.db_url.is_empty() {
                let at = Rect {
                    y: below,
                    height: 1,
                    ..area
                };
                canvas.line(
                    at,
                    &[
                        piece("  database ", Role::Dim),
                        piece(location.db_url.as_str(), Role::Text),
                    ],
                );
            }
        }
        Some((known, Err(why))) if *known == id => {
            for (y, part) in text::wrap_words(why, usize::from(area.width.saturating_sub(3)), 6)
                .iter()
                .enumerate()
            {
                canvas.text(
                    area.x + 2,
                    body.y + y as u16,
                    area.width - 2,
                    part,
                    Role::Bad,
                );
            }
        }
        _ => {
            canvas.text(
                area.x + 2,
                body.y,
                area.width - 2,
                "asking the agent",
                Role::Dim,
            );
        }
    }
}

#[derive(Clone, Copy)]
enum Cell {
    What,
    Shard,
    Process,
    Host,
    State,
    Stage,
    Present,
}

struct Served<'a> {
    location: &'a GuildLocation,
    model: &'a Model,
}

impl Source<Cell> for Served<'_> {
    fn cell(&self, canvas: &Canvas<'_>, row: usize, key: Cell, _: u16) -> Vec<Piece<'_>> {
        let shard = self.location.shards.get(row);
        let name = shard.map_or(&self.location.db_node, |shard| &shard.process);
        let process = self.model.process(name);
        match (key, shard) {
            (Cell::What, Some(shard)) => vec![piece(shard.bot.as_str(), Role::Strong)],
            (Cell::What, None) => vec![piece("database", Role::Strong)],
            (Cell::Shard, Some(shard)) => {
                vec![piece(
                    format!("{}/{}", shard.shard_id, shard.shard_count),
                    Role::Text,
                )]
            }
            (Cell::Process, _) => vec![piece(name.as_str(), Role::Text)],
            (Cell::Host, Some(shard)) => vec![piece(shard.host.as_str(), Role::Dim)],
            (Cell::Host, None) => vec![piece(self.location.db_host.as_str(), Role::Dim)],
            (Cell::State, _) => {
                // The model is live, the answer is from when the view was opened.
                let told = shard.map_or("unknown", |shard| shard.state.as_str());
                let state = process.map_or(told, |process| process.state.as_str());
                let (glyph, role) = canvas.theme.state(state);
                vec![piece(format!("{glyph} {state}"), role)]
            }
            (Cell::Stage, Some(shard)) => {
                let live = process
                    .and_then(|process| process.shards.iter().find(|s| s.id == shard.shard_id));
                let stage = live.map_or(shard.stage.as_str(), |live| live.stage.as_str());
                vec![piece(stage, canvas.theme.state(stage).1)]
            }
            (Cell::Present, Some(shard)) => vec![match shard.present {
                Some(true) => piece("yes", Role::Good),
                Some(false) => piece("no", Role::Warn),
                None => piece("unknown", Role::Dim),
            }],
            (Cell::Shard | Cell::Stage | Cell::Present, None) => vec![piece("-", Role::Track)],
        }
    }
}
