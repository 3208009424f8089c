//! One process: what it is doing, its shards or its database, and what it said last.

use ratatui::layout::Rect;
use tanako_proto::fleet::v1::{Process, Shard};

use super::{
    paint::{Canvas, Piece, piece},
    spread,
    table::{Column, Source, column, table},
};
use crate::monitor::{
    app::{App, Clock},
    figures,
    focus::Focus,
    navigate, state,
    theme::Role,
};

/// Draws the process called `name`.
pub fn draw(canvas: &mut Canvas<'_>, area: Rect, app: &App, name: &str, clock: Clock) {
    let model = app.shown();
    let Some(process) = model.process(name) else {
        canvas.text(
            area.x + 2,
            area.y + 1,
            area.width - 2,
            "the fleet has no such process any more",
            Role::Dim,
        );
        return;
    };
    let mut area = area;
    about(canvas, app, take(&mut area, 1), process, clock);
    if !detail(process, clock).is_empty() && area.height > 4 {
        let text = detail(process, clock);
        canvas.line(take(&mut area, 1), &[piece(format!(" {text}"), Role::Warn)]);
    }
    let focus = app.focus.as_ref().filter(|focus| focus.target == name);
    if area.height < 10 {
        match &process.db {
            Some(db) => spread::database(canvas, area, db),
            None => shards(canvas, area, app, process),
        }
        return;
    }
    let tall = area.height >= 26;
    graphs(
        canvas,
        take(&mut area, if tall { 8 } else { 4 }),
        process,
        focus,
    );
    if let Some(db) = &process.db {
        spread::database(canvas, take(&mut area, 6), db);
    } else {
        let wanted = process.shards.len() as u16 + 2;
        let most = area.height / if tall { 3 } else { 2 };
        let rows = take(&mut area, wanted.min(most).max(4));
        canvas.rule(
            Rect { height: 1, ..rows },
            &format!("{} shards", process.shards.len()),
        );
        shards(
            canvas,
            Rect {
                y: rows.y + 1,
                height: rows.height - 1,
                ..rows
            },
            app,
            process,
        );
        if tall {
            let rows = take(&mut area, 9);
            let half = if rows.width >= 100 { rows.width / 2 } else { 0 };
            spread::types(
                canvas,
                Rect {
                    width: rows.width - half,
                    ..rows
                },
                process,
            );
            if half > 0 {
                let right = Rect {
                    x: rows.x + rows.width - half,
                    width: half,
                    ..rows
                };
                spread::histogram(canvas, right, focus);
            }
        }
    }
    recent(canvas, area, app, name, clock);
}

fn take(area: &mut Rect, lines: u16) -> Rect {
    let lines = lines.min(area.height);
    let taken = Rect {
        height: lines,
        ..*area
    };
    area.y += lines;
    area.height -= lines;
    taken
}

fn about(canvas: &mut Canvas<'_>, app: &App, place: Rect, process: &Process, clock: Clock) {
    let (glyph, role, word) = super::fleet::state_of(canvas, app.shown(), process, clock);
    let mut pieces = vec![
        piece(format!(" {} ", process.name), Role::Strong),
        piece(format!(" {glyph} {word}"), role),
    ];
    let mut fact = |label: &str, value: String| {
        pieces.push(piece(format!("   {label} "), Role::Dim));
        pieces.push(piece(value, Role::Text));
    };
    fact("host", process.host.clone());
    fact("pid", process.pid.to_string());
    fact("up", figures::age(process.uptime_s));
    fact("restarts", process.restarts.to_string());
    fact("threads", process.threads.to_string());
    fact("fds", process.fds.to_string());
    canvas.line(place, &pieces);
}

/// Why it is not ready, in one line.
fn detail(process: &Process, clock: Clock) -> String {
    let mut parts = Vec::new();
    if process.desired == "stopped" && process.state != "stopped" {
        parts.push("asked to stop".to_owned());
    }
    if process.state == "backoff" && process.next_start_at > 0 {
        let wait = process.next_start_at.saturating_sub(clock.unix_ms).max(0) as u64;
        parts.push(format!(
            "next start in {}",
            figures::age(wait.div_ceil(1000))
        ));
    }
    if !process.detail.is_empty() {
        parts.push(process.detail.clone());
    }
    if !process.last_exit.is_empty() && process.state != "ready" {
        parts.push(format!("last exit: {}", process.last_exit));
    }
    parts.join(" · ")
}

/// Four numbers over time: as sparklines, or as graphs where there is height.
fn graphs(canvas: &mut Canvas<'_>, area: Rect, process: &Process, focus: Option<&Focus>) {
    let db = process.db.as_ref();
    let cpu = format!("{} %", figures::percent(process.cpu_percent));
    let rss = figures::bytes(process.rss_bytes);
    let shown: [(&str, &str, String); 4] = match db {
        Some(db) => [
            ("cpu", "cpu_percent", cpu),
            ("rss", "rss_bytes", rss),
            ("reads/s", "reads_per_s", figures::rate(db.reads_per_s)),
            ("writes/s", "writes_per_s", figures::rate(db.writes_per_s)),
        ],
        None => [
            ("cpu", "cpu_percent", cpu),
            ("rss", "rss_bytes", rss),
            (
                "events/s",
                "events_per_s",
                figures::rate(state::load(process)),
            ),
            (
                "latency",
                "latency_ms",
                state::latency(process).map_or_else(|| "-".into(), figures::millis),
            ),
        ],
    };
    let tall = area.height >= 8;
    for (at, (label, metric, value)) in shown.into_iter().enumerate() {
        let series = focus.and_then(|focus| focus.series(metric));
        let peak = series
            .and_then(crate::monitor::series::Series::max)
            .map(|max| match metric {
                "rss_bytes" => figures::bytes(max as u64),
                "latency_ms" => figures::millis(max),
                "cpu_percent" => format!("{} %", figures::percent(max)),
                _ => figures::rate(max),
            });
        let peak = peak.map_or_else(String::new, |peak| format!("peak {peak}"));
        if tall {
            // Two by two: three lines of graph under one of words.
            let half = area.width / 2;
            let (column, line) = (at as u16 % 2, at as u16 / 2);
            let place = Rect {
                x: area.x + column * half,
                y: area.y + line * 4,
                width: half - 1,
                height: 1,
            };
            let words = [
                piece(format!(" {label} "), Role::Dim),
                piece(value, Role::Strong),
                piece(format!("   {peak}"), Role::Dim),
            ];
            canvas.line(place, &words);
            if let Some(series) = series {
                let graph = Rect {
                    x: place.x + 1,
                    y: place.y + 1,
                    width: place.width - 1,
                    height: 3,
                };
                canvas.graph(
                    graph,
                    series.tail(usize::from(graph.width)),
                    0.0,
                    Role::Trend,
                );
            }
        } else {
            let place = Rect {
                y: area.y + at as u16,
                height: 1,
                ..area
            };
            let words = [
                piece(format!(" {label:<8} "), Role::Dim),
                piece(format!("{value:>8}  "), Role::Strong),
            ];
            let used = canvas.line(place, &words);
            let room = place.width.saturating_sub(used + 16);
            if let Some(series) = series {
                let spark = canvas.spark(series.tail(usize::from(room)), 0.0);
                canvas.text(place.x + used, place.y, room, &spark, Role::Trend);
            }
            canvas.text(place.x + used + room + 1, place.y, 14, &peak, Role::Dim);
        }
    }
}

fn shards(canvas: &mut Canvas<'_>, area: Rect, app: &App, process: &Process) {
    if process.shards.is_empty() {
        canvas.text(
            area.x + 2,
            area.y,
            area.width - 2,
            "no shard has reported",
            Role::Dim,
        );
        return;
    }
    let columns = [
        column(Cell::Id, "SHARD", 7, true, 0),
        Column {
            width_max: 16,
            ..column(Cell::Stage, "STAGE", 9, false, 0)
        },
        column(Cell::Guilds, "GUILDS", 11, true, 2),
        column(Cell::Latency, "LAT", 6, true, 3),
        column(Cell::Events, "EV/S", 6, true, 1),
        column(Cell::Resumed, "RESUMED", 7, true, 4),
        column(Cell::Identified, "IDENT", 5, true, 5),
        column(Cell::Reconnects, "RECON", 5, true, 6),
        column(Cell::Interactions, "INTERACT", 8, true, 7),
        column(Cell::Seq, "SEQ", 8, true, 8),
        Column {
            width_max: 60,
            ..column(Cell::Error, "WHY", 12, false, 9)
        },
    ];
    table(
        canvas,
        area,
        &columns,
        &app.screen().list,
        process.shards.len(),
        &Shards {
            shards: &process.shards,
        },
    );
}

#[derive(Clone, Copy)]
enum Cell {
    Id,
    Stage,
    Guilds,
    Latency,
    Events,
    Resumed,
    Identified,
    Reconnects,
    Interactions,
    Seq,
    Error,
}

struct Shards<'a> {
    shards: &'a [Shard],
}

impl Source<Cell> for Shards<'_> {
    fn cell(&self, canvas: &Canvas<'_>, row: usize, key: Cell, _: u16) -> Vec<Piece<'_>> {
        let Some(shard) = self.shards.get(row) else {
            return Vec::new();
        };
        let role = Role::Text;
        vec![match key {
            Cell::Id => piece(format!("{}/{}", shard.id, shard.count), Role::Strong),
            Cell::Stage => {
                // A connection that stands says less than what is thought of it.
                let word = if shard.stage == "ready" && state::is_unwell(&shard.health) {
                    &shard.health
                } else {
                    &shard.stage
                };
                let (glyph, role) = canvas.theme.state(word);
                piece(format!("{glyph} {word}"), role)
            }
            Cell::Guilds => {
                let missing = shard.guilds < shard.guilds_expected;
                let text = format!(
                    "{}/{}",
                    figures::short_count(shard.guilds.into()),
                    figures::short_count(shard.guilds_expected.into())
                );
                piece(text, if missing { Role::Warn } else { role })
            }
            Cell::Latency => piece(figures::millis(shard.latency_ms), role),
            Cell::Events => piece(figures::rate(shard.events_per_s), role),
            Cell::Resumed => piece(figures::short_count(shard.resumed), role),
            Cell::Identified => piece(figures::short_count(shard.identified), role),
            Cell::Reconnects => piece(figures::short_count(shard.reconnects), role),
            Cell::Interactions => piece(figures::short_count(shard.interactions), role),
            Cell::Seq => piece(shard.seq.to_string(), Role::Dim),
            Cell::Error if shard.health_detail.is_empty() => {
                piece(shard.last_error.as_str(), Role::Bad)
            }
            Cell::Error => piece(shard.health_detail.as_str(), Role::Bad),
        }]
    }
}

/// The last events and log lines, in what is left.
fn recent(canvas: &mut Canvas<'_>, area: Rect, app: &App, name: &str, clock: Clock) {
    let mut area = area;
    let model = app.shown();
    let events: Vec<_> = navigate::events(model, Some(name))
        .take(usize::from(area.height / 3))
        .collect();
    if area.height >= 6 && !events.is_empty() {
        canvas.rule(take(&mut area, 1), "last events (e for all)");
        for event in events {
            let line = super::events::line(canvas, event, clock, area.width, false);
            canvas.line(take(&mut area, 1), &line);
        }
    }
    if area.height >= 2 {
        canvas.rule(take(&mut area, 1), "last log lines (l for all)");
        let Some(logs) = app.logs.as_ref().filter(|logs| logs.targets == [name]) else {
            return;
        };
        if logs.is_empty() {
            canvas.text(
                area.x + 2,
                area.y,
                area.width - 2,
                logs.ended.as_deref().unwrap_or("none yet"),
                Role::Dim,
            );
        }
        let last: Vec<_> = logs.iter().rev().take(usize::from(area.height)).collect();
        for line in last.into_iter().rev() {
            let pieces = [
                piece(
                    format!(" {} ", figures::clock(line.at, clock.offset_s)),
                    Role::Dim,
                ),
                piece(
                    line.text.as_str(),
                    if line.stderr { Role::Warn } else { Role::Text },
                ),
            ];
            canvas.line(take(&mut area, 1), &pieces);
        }
    }
}
