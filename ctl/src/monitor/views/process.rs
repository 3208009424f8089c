//! One process: what it is doing, its shards or its database, and what it said last.

use std::collections::BTreeMap;

use ratatui::layout::Rect;
use tanako_proto::fleet::v1::{Database, Process, Shard};

use super::{
    paint::{Canvas, Piece, piece},
    table::{Column, Source, column, table},
};
use crate::monitor::{
    app::{App, Clock},
    focus::Focus,
    navigate, state, text,
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
    about(canvas, app, take(&mut area, 1), process);
    if !detail(process, clock).is_empty() && area.height > 4 {
        let text = detail(process, clock);
        canvas.line(take(&mut area, 1), &[piece(format!(" {text}"), Role::Warn)]);
    }
    let focus = app.focus.as_ref().filter(|focus| focus.target == name);
    if area.height < 10 {
        match &process.db {
            Some(db) => database(canvas, area, db),
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
        database(canvas, take(&mut area, 6), db);
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
            types(
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
                histogram(canvas, right, focus);
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

fn about(canvas: &mut Canvas<'_>, app: &App, place: Rect, process: &Process) {
    let (glyph, role, word) = super::fleet::state_of(canvas, app.shown(), process);
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
    fact("up", text::age(process.uptime_s));
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
        parts.push(format!("next start in {}", text::age(wait.div_ceil(1000))));
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
    let cpu = format!("{} %", text::percent(process.cpu_percent));
    let rss = text::bytes(process.rss_bytes);
    let shown: [(&str, &str, String); 4] = match db {
        Some(db) => [
            ("cpu", "cpu_percent", cpu),
            ("rss", "rss_bytes", rss),
            ("reads/s", "reads_per_s", text::rate(db.reads_per_s)),
            ("writes/s", "writes_per_s", text::rate(db.writes_per_s)),
        ],
        None => [
            ("cpu", "cpu_percent", cpu),
            ("rss", "rss_bytes", rss),
            ("events/s", "events_per_s", text::rate(state::load(process))),
            (
                "latency",
                "latency_ms",
                state::latency(process).map_or_else(|| "-".into(), text::millis),
            ),
        ],
    };
    let tall = area.height >= 8;
    for (at, (label, metric, value)) in shown.into_iter().enumerate() {
        let series = focus.and_then(|focus| focus.series(metric));
        let peak = series
            .and_then(crate::monitor::series::Series::max)
            .map(|max| match metric {
                "rss_bytes" => text::bytes(max as u64),
                "latency_ms" => text::millis(max),
                "cpu_percent" => format!("{} %", text::percent(max)),
                _ => text::rate(max),
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
            ..column(Cell::Error, "LAST ERROR", 12, false, 9)
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
                let (glyph, role) = canvas.theme.state(&shard.stage);
                piece(format!("{glyph} {}", shard.stage), role)
            }
            Cell::Guilds => {
                let missing = shard.guilds < shard.guilds_expected;
                let text = format!(
                    "{}/{}",
                    text::short_count(shard.guilds.into()),
                    text::short_count(shard.guilds_expected.into())
                );
                piece(text, if missing { Role::Warn } else { role })
            }
            Cell::Latency => piece(text::millis(shard.latency_ms), role),
            Cell::Events => piece(text::rate(shard.events_per_s), role),
            Cell::Resumed => piece(text::short_count(shard.resumed), role),
            Cell::Identified => piece(text::short_count(shard.identified), role),
            Cell::Reconnects => piece(text::short_count(shard.reconnects), role),
            Cell::Interactions => piece(text::short_count(shard.interactions), role),
            Cell::Seq => piece(shard.seq.to_string(), Role::Dim),
            Cell::Error => piece(shard.last_error.as_str(), Role::Bad),
        }]
    }
}

fn database(canvas: &mut Canvas<'_>, area: Rect, db: &Database) {
    canvas.rule(Rect { height: 1, ..area }, "database");
    let width = if area.width < 100 { 11 } else { 14 };
    let line = |canvas: &mut Canvas<'_>, n: u16, parts: &[(&'static str, String)]| {
        if n >= area.height {
            return;
        }
        let mut pieces: Vec<Piece<'_>> = vec![piece(" ", Role::Text)];
        for (n, (label, value)) in parts.iter().enumerate() {
            let pad = if n + 1 < parts.len() { width } else { 0 };
            pieces.push(piece(format!("{label:<9}"), Role::Dim));
            pieces.push(piece(format!("{value:<pad$}"), Role::Text));
        }
        canvas.line(
            Rect {
                y: area.y + n,
                height: 1,
                ..area
            },
            &pieces,
        );
    };
    let count = |n: u64| text::count(n);
    line(canvas, 1, &[("url", db.url.clone())]);
    line(
        canvas,
        2,
        &[
            ("rows", count(db.rows)),
            ("on disk", text::bytes(db.bytes_on_disk)),
            ("clients", db.connections.to_string()),
            ("errors", count(db.errors)),
        ],
    );
    line(
        canvas,
        3,
        &[
            ("reads", count(db.reads)),
            ("reads/s", text::rate(db.reads_per_s)),
            ("p50", text::millis(db.read_p50_ms)),
            ("p99", text::millis(db.read_p99_ms)),
        ],
    );
    line(
        canvas,
        4,
        &[
            ("writes", count(db.writes)),
            ("writes/s", text::rate(db.writes_per_s)),
            ("p50", text::millis(db.write_p50_ms)),
            ("p99", text::millis(db.write_p99_ms)),
        ],
    );
    line(canvas, 5, &[("forwards", count(db.forwards))]);
}

/// The commonest event types of all shards together.
fn types(canvas: &mut Canvas<'_>, area: Rect, process: &Process) {
    canvas.rule(Rect { height: 1, ..area }, "event types");
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, n) in process
        .shards
        .iter()
        .flat_map(|shard| &shard.events_by_type)
    {
        *sums.entry(name).or_default() += n;
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    if sums.is_empty() {
        canvas.text(
            area.x + 2,
            area.y + 1,
            area.width - 2,
            "none reported",
            Role::Dim,
        );
    }
    let most = sums.first().map_or(1, |(_, n)| (*n).max(1));
    for (y, (name, n)) in sums
        .iter()
        .enumerate()
        .take(usize::from(area.height.saturating_sub(1)))
    {
        let place = Rect {
            y: area.y + 1 + y as u16,
            height: 1,
            ..area
        };
        let columns = place.width.saturating_sub(42).clamp(4, 40);
        let mut pieces = vec![piece(
            format!("  {:<26} {:>10} ", text::fit(name, 26), text::count(*n)),
            Role::Text,
        )];
        let full = (*n as f64 / most as f64 * f64::from(columns)).round() as usize;
        pieces.push(piece(
            canvas.theme.glyphs().block.repeat(full.max(1)),
            Role::Trend,
        ));
        canvas.line(place, &pieces);
    }
}

/// How the latencies seen here spread.
fn histogram(canvas: &mut Canvas<'_>, area: Rect, focus: Option<&Focus>) {
    let latencies = focus
        .map(|focus| &focus.latencies)
        .filter(|latencies| !latencies.is_empty());
    let Some(latencies) = latencies else {
        canvas.rule(Rect { height: 1, ..area }, "latency");
        canvas.text(
            area.x + 2,
            area.y + 1,
            area.width - 2,
            "none measured yet",
            Role::Dim,
        );
        return;
    };
    canvas.rule(
        Rect { height: 1, ..area },
        &format!("latency, {} samples", text::count(latencies.len())),
    );
    let mut pieces = vec![piece("  ", Role::Text)];
    for (label, ms) in [
        ("p50", latencies.percentile(50.0)),
        ("p90", latencies.percentile(90.0)),
        ("p99", latencies.percentile(99.0)),
        ("max", latencies.max()),
    ] {
        pieces.push(piece(format!("{label} "), Role::Dim));
        pieces.push(piece(format!("{:<8}", text::millis(ms)), Role::Strong));
    }
    canvas.line(
        Rect {
            y: area.y + 1,
            height: 1,
            ..area
        },
        &pieces,
    );
    let bars = latencies.bars(usize::from(area.height.saturating_sub(2)));
    let most = bars.iter().map(|bar| bar.1).max().unwrap_or(1).max(1);
    for (y, (to, n)) in bars.into_iter().enumerate() {
        let place = Rect {
            y: area.y + 2 + y as u16,
            height: 1,
            ..area
        };
        let columns = place.width.saturating_sub(22).clamp(4, 40);
        let full = (n as f64 / most as f64 * f64::from(columns)).round() as usize;
        let full = full.max(usize::from(n > 0));
        let pieces = [
            piece(format!("  to {:>7} ", text::millis(to)), Role::Dim),
            piece(canvas.theme.glyphs().block.repeat(full), Role::Trend),
            piece(format!(" {}", text::short_count(n)), Role::Dim),
        ];
        canvas.line(place, &pieces);
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
                    format!(" {} ", text::clock(line.at, clock.offset_s)),
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
