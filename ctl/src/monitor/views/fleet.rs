//! The fleet: how it is, and a table of its processes.

use std::borrow::Cow;

use ratatui::layout::Rect;

use super::{
    paint::{Canvas, Piece, piece, pieces_width},
    table::{Column, RowLook, Source, column, table},
};
use crate::monitor::{
    app::{App, Clock, LinkState, List},
    figures,
    rows::{Rows, SortKey},
    state::{self, Model},
    text,
    theme::Role,
};

/// Screens lower than this get one line of sums instead of three.
const ROOMY: u16 = 12;

/// Draws the fleet view.
pub fn draw(canvas: &mut Canvas<'_>, area: Rect, app: &App, clock: Clock) {
    let model = app.shown();
    if !model.is_known() {
        waiting(canvas, area, app);
        return;
    }
    let mut body = area;
    if area.height >= ROOMY {
        sums(canvas, Rect { height: 1, ..area }, model);
        load(
            canvas,
            Rect {
                y: area.y + 1,
                height: 1,
                ..area
            },
            model,
        );
        super::identify::budget(
            canvas,
            Rect {
                y: area.y + 2,
                height: 1,
                ..area
            },
            model,
            clock,
        );
        let mut lines = 3;
        lines += u16::from(super::chrome::reasons(
            canvas,
            Rect {
                y: area.y + lines,
                height: 1,
                ..area
            },
            app,
        ));
        query(
            canvas,
            Rect {
                y: area.y + lines,
                height: 1,
                ..area
            },
            app,
        );
        body.y += lines + 1;
        body.height -= lines + 1;
    } else {
        compact(canvas, Rect { height: 1, ..area }, model);
        body.y += 1;
        body.height -= 1;
    }
    processes(canvas, body, app, &app.rows, &app.screens[0].list, clock);
}

/// Before the first snapshot: what is waited for, and what stands in the way.
fn waiting(canvas: &mut Canvas<'_>, area: Rect, app: &App) {
    let inner = Rect {
        x: area.x + 2,
        y: area.y + 1,
        width: area.width.saturating_sub(4),
        height: 1,
    };
    let LinkState::Lost { why, .. } = &app.link else {
        canvas.line(inner, &[piece("asking the agent", Role::Dim)]);
        return;
    };
    canvas.line(
        inner,
        &[piece(
            "no agent has answered yet; trying again and again",
            Role::Strong,
        )],
    );
    let why = crate::monitor::app::problem_line(why);
    let lines = text::wrap_words(&text::clean(&why, 1000), usize::from(inner.width), 8);
    for (n, line) in lines
        .iter()
        .enumerate()
        .take(usize::from(area.height.saturating_sub(3)))
    {
        canvas.text(
            inner.x,
            inner.y + 2 + n as u16,
            inner.width,
            line,
            Role::Bad,
        );
    }
}

fn sums(canvas: &mut Canvas<'_>, area: Rect, model: &Model) {
    let totals = &model.totals;
    let up = model
        .hosts
        .iter()
        .filter(|host| host.state != "unreachable")
        .count();
    let mut pieces = vec![piece(" ", Role::Text)];
    let part = |pieces: &mut Vec<Piece<'_>>, label: &'static str, value: String, bad: bool| {
        pieces.push(piece(label, Role::Dim));
        pieces.push(piece(
            format!(" {value}   "),
            if bad { Role::Warn } else { Role::Strong },
        ));
    };
    let of = |ready: usize, all: usize| format!("{ready}/{all}");
    part(
        &mut pieces,
        "hosts",
        of(up, model.hosts.len()),
        up < model.hosts.len(),
    );
    let all = model.processes().len();
    part(
        &mut pieces,
        "processes",
        of(totals.ready, all),
        totals.ready < all,
    );
    part(
        &mut pieces,
        "shards",
        of(totals.shards.1, totals.shards.0),
        totals.shards.1 < totals.shards.0,
    );
    part(&mut pieces, "guilds", figures::count(totals.guilds), false);
    let faults = totals.faults;
    part(&mut pieces, "faults", faults.to_string(), faults > 0);
    let right = [
        piece(format!("spec v{}", model.version), Role::Dim),
        piece(format!("  agent {}", model.agent_version), Role::Dim),
    ];
    if pieces_width(&pieces) + pieces_width(&right) < area.width {
        canvas.line_right(
            Rect {
                width: area.width - 1,
                ..area
            },
            &right,
        );
    }
    canvas.line(area, &pieces);
}

fn load(canvas: &mut Canvas<'_>, area: Rect, model: &Model) {
    let label = [
        piece(" events/s ", Role::Dim),
        piece(
            format!("{:>7} ", figures::rate(model.totals.events_per_s)),
            Role::Strong,
        ),
    ];
    let columns = area.width.saturating_sub(pieces_width(&label) + 1).min(120);
    let spark = canvas.spark(model.rate.tail(usize::from(columns)), 0.0);
    let used = canvas.line(area, &label);
    canvas.text(area.x + used, area.y, columns, &spark, Role::Trend);
}

/// The rule above the table says what it shows.
fn query(canvas: &mut Canvas<'_>, area: Rect, app: &App) {
    let query = app.rows.query();
    let (shown, all) = (app.rows.len(), app.shown().processes().len());
    let es = if all == 1 { "" } else { "es" };
    let count = if shown < all {
        format!("{shown} of {all}")
    } else {
        all.to_string()
    };
    let mut parts = vec![format!("{count} process{es}")];
    if let Some(filter) = &query.filter {
        parts.push(format!("filter {}", filter.typed()));
    }
    if query.faults_only {
        parts.push("faults only".to_owned());
    }
    if !app.marked.is_empty() {
        parts.push(format!("{} marked", app.marked.len()));
    }
    canvas.rule(area, &parts.join(" · "));
}

fn compact(canvas: &mut Canvas<'_>, area: Rect, model: &Model) {
    let totals = &model.totals;
    let all = model.processes().len();
    let (ready, shards) = (totals.ready, totals.shards);
    let pieces = [
        piece(
            format!(" {ready}/{all}"),
            if ready < all {
                Role::Warn
            } else {
                Role::Strong
            },
        ),
        piece(" proc ", Role::Dim),
        piece(
            format!("{}/{}", shards.1, shards.0),
            if shards.1 < shards.0 {
                Role::Warn
            } else {
                Role::Strong
            },
        ),
        piece(" shards ", Role::Dim),
        piece(figures::rate(totals.events_per_s), Role::Strong),
        piece(" ev/s ", Role::Dim),
        piece(figures::short_count(totals.guilds), Role::Strong),
        piece(" guilds", Role::Dim),
    ];
    canvas.line(area, &pieces);
}

/// What a cell of the process table shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    Sorted(SortKey),
    Trend,
    Detail,
}

/// The table of processes, here and in the host view.
pub fn processes(
    canvas: &mut Canvas<'_>,
    area: Rect,
    app: &App,
    rows: &Rows,
    list: &List,
    clock: Clock,
) {
    use SortKey::{Age, Cpu, Events, Guilds, Host, Latency, Name, Restarts, Rss, Shards, State};
    let (name, host) = app.shown().name_width;
    let wide = |width: usize, least: u16, most: u16| (width as u16).clamp(least, most);
    let columns = [
        Column {
            width_max: wide(name, 9, 40),
            ..column(Cell::Sorted(Name), "NAME", 9, false, 0)
        },
        Column {
            width_max: 13,
            ..column(Cell::Sorted(State), "STATE", 10, false, 0)
        },
        Column {
            width_max: wide(host, 6, 24),
            ..column(Cell::Sorted(Host), "HOST", 6, false, 6)
        },
        column(Cell::Sorted(Shards), "SHARDS", 6, true, 4),
        column(Cell::Sorted(Guilds), "GUILDS", 6, true, 7),
        column(Cell::Sorted(Events), "EV/S", 6, true, 3),
        column(Cell::Sorted(Latency), "LAT", 6, true, 5),
        column(Cell::Sorted(Cpu), "CPU%", 5, true, 1),
        column(Cell::Sorted(Rss), "RSS", 5, true, 2),
        column(Cell::Sorted(Restarts), "RST", 3, true, 8),
        column(Cell::Sorted(Age), "AGE", 5, true, 9),
        column(Cell::Trend, "TREND", 16, false, 10),
        Column {
            width_max: 100,
            ..column(Cell::Detail, "DETAIL", 10, false, 11)
        },
    ];
    if rows.is_empty() && area.height > 1 {
        let text = if app.shown().processes().is_empty() {
            "no processes"
        } else {
            "nothing passes the filter"
        };
        canvas.text(
            area.x + 2,
            area.y + 1,
            area.width.saturating_sub(2),
            text,
            Role::Dim,
        );
    }
    let source = Processes { app, rows, clock };
    table(canvas, area, &columns, list, rows.len(), &source);
}

struct Processes<'a> {
    app: &'a App,
    rows: &'a Rows,
    clock: Clock,
}

impl Source<Cell> for Processes<'_> {
    fn heading(&self, key: Cell, title: &'static str) -> Cow<'static, str> {
        let query = self.rows.query();
        // One letter wider headings would not fit: the arrow replaces the last one where needed.
        match key {
            Cell::Sorted(sort) if sort == query.sort => {
                let arrow = if sort.descends() == query.reverse {
                    '▲'
                } else {
                    '▼'
                };
                let title = if title.len() >= 6 { &title[..5] } else { title };
                format!("{title}{arrow}").into()
            }
            _ => title.into(),
        }
    }

    fn look(&self, row: usize) -> RowLook {
        let model = self.app.shown();
        let process = self.rows.process(model, row);
        RowLook {
            marked: process.is_some_and(|process| self.app.marked.contains(&process.name)),
            faded: process.is_some_and(|process| model.is_unseen(process)),
        }
    }

    fn cell(&self, canvas: &Canvas<'_>, row: usize, key: Cell, width: u16) -> Vec<Piece<'_>> {
        let model = self.app.shown();
        let Some(process) = self.rows.process(model, row) else {
            return Vec::new();
        };
        let none = || vec![piece("-", Role::Track)];
        let number = |text: String| vec![piece(text, Role::Text)];
        let quiet = process.state == "stopped";
        match key {
            Cell::Sorted(SortKey::Name) => vec![piece(process.name.as_str(), Role::Text)],
            Cell::Sorted(SortKey::State) => {
                let (glyph, role, word) = state_of(canvas, model, process, self.clock);
                vec![piece(format!("{glyph} "), role), piece(word, role)]
            }
            Cell::Sorted(SortKey::Host) => vec![piece(process.host.as_str(), Role::Dim)],
            Cell::Sorted(SortKey::Shards | SortKey::Guilds) if process.shards.is_empty() => none(),
            Cell::Sorted(SortKey::Shards) => {
                let (ready, all) = (state::shards_ready(process), process.shards.len());
                let role = if ready < all && !quiet {
                    Role::Warn
                } else {
                    Role::Text
                };
                vec![piece(format!("{ready}/{all}"), role)]
            }
            Cell::Sorted(SortKey::Guilds) => number(figures::short_count(state::guilds(process))),
            _ if quiet && !matches!(key, Cell::Sorted(SortKey::Restarts) | Cell::Detail) => none(),
            Cell::Sorted(SortKey::Events) => number(figures::rate(state::load(process))),
            Cell::Sorted(SortKey::Latency) => {
                state::latency(process).map_or_else(none, |ms| number(figures::millis(ms)))
            }
            Cell::Sorted(SortKey::Cpu) => number(figures::percent(process.cpu_percent)),
            Cell::Sorted(SortKey::Rss) => number(figures::bytes(process.rss_bytes)),
            Cell::Sorted(SortKey::Restarts) => {
                let role = if process.restarts > 0 {
                    Role::Warn
                } else {
                    Role::Dim
                };
                vec![piece(figures::short_count(process.restarts), role)]
            }
            Cell::Sorted(SortKey::Age) => number(figures::age(process.uptime_s)),
            Cell::Trend => {
                let Some(at) = self.rows.at(row) else {
                    return Vec::new();
                };
                vec![piece(
                    canvas.spark(model.trend(at).tail(usize::from(width)), 0.0),
                    Role::Trend,
                )]
            }
            Cell::Detail => vec![piece(process.detail.as_str(), Role::Dim)],
        }
    }
}

/// Glyph, look and word for the state of `process`; of one whose host is unreachable, since when nothing
/// is known of it.
pub fn state_of<'m>(
    canvas: &Canvas<'_>,
    model: &'m Model,
    process: &'m tanako_proto::fleet::v1::Process,
    clock: Clock,
) -> (&'static str, Role, Cow<'m, str>) {
    if let Some(host) = model.host(&process.host)
        && host.state == "unreachable"
    {
        let word = if host.last_seen > 0 {
            let gone = clock.unix_ms.saturating_sub(host.last_seen).max(0) as u64 / 1000;
            format!("lost {}", coarse(gone)).into()
        } else {
            "lost".into()
        };
        return (canvas.theme.glyphs().unknown, Role::Bad, word);
    }
    let (glyph, role) = canvas.theme.state(&process.state);
    (glyph, role, process.state.as_str().into())
}

/// An age in its largest unit: it has to fit into the narrowest column of states.
fn coarse(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}
