//! Hosts: all of them, and one with its gauges and processes.

use ratatui::layout::Rect;
use tanako_proto::fleet::v1::Host;

use super::{
    paint::{Canvas, Piece, piece},
    table::{Column, RowLook, Source, column, table},
};
use crate::monitor::{
    app::{App, Clock, List},
    figures,
    state::Model,
    theme::Role,
};

/// Draws the list of hosts.
pub fn draw_all(canvas: &mut Canvas<'_>, area: Rect, app: &App, list: &List, clock: Clock) {
    let model = app.shown();
    let columns = [
        Column {
            width_max: 24,
            ..column(Cell::Name, "HOST", 8, false, 0)
        },
        column(Cell::State, "STATE", 13, false, 0),
        column(Cell::Processes, "PROC", 6, true, 1),
        column(Cell::Shards, "SHARDS", 9, true, 5),
        column(Cell::Cpu, "CPU%", 5, true, 2),
        column(Cell::Load, "LOAD", 6, true, 6),
        column(Cell::Memory, "MEMORY", 11, true, 3),
        column(Cell::Disk, "DISK", 11, true, 4),
        column(Cell::Net, "NET/s", 13, true, 9),
        column(Cell::Lease, "LEASE", 5, false, 7),
        column(Cell::Seen, "SEEN", 6, true, 2),
        Column {
            width_max: 30,
            ..column(Cell::Address, "ADDRESS", 15, false, 8)
        },
    ];
    table(
        canvas,
        area,
        &columns,
        list,
        model.hosts.len(),
        &Hosts { model, clock },
    );
}

#[derive(Clone, Copy)]
enum Cell {
    Name,
    State,
    Processes,
    Shards,
    Lease,
    Cpu,
    Load,
    Memory,
    Disk,
    Net,
    Seen,
    Address,
}

struct Hosts<'a> {
    model: &'a Model,
    clock: Clock,
}

impl Source<Cell> for Hosts<'_> {
    fn look(&self, row: usize) -> RowLook {
        RowLook {
            faded: self
                .model
                .hosts
                .get(row)
                .is_some_and(|host| host.state == "unreachable"),
            marked: false,
        }
    }

    fn cell(&self, canvas: &Canvas<'_>, row: usize, key: Cell, _: u16) -> Vec<Piece<'_>> {
        let Some(host) = self.model.hosts.get(row) else {
            return Vec::new();
        };
        let text = match key {
            Cell::Name => return vec![piece(host.name.as_str(), Role::Strong)],
            Cell::State => {
                let (glyph, role) = canvas.theme.state(&host.state);
                return vec![piece(format!("{glyph} {}", host.state), role)];
            }
            Cell::Processes => {
                let sums = self.model.host_sums(row);
                return vec![of_all(sums.ready, sums.processes)];
            }
            Cell::Shards => {
                let (all, ready) = self.model.host_sums(row).shards;
                return vec![of_all(ready, all)];
            }
            Cell::Lease => {
                let role = match host.lease.as_str() {
                    "lost" => Role::Bad,
                    _ => Role::Dim,
                };
                let text = match host.lease.as_str() {
                    "" => "-",
                    text => text,
                };
                return vec![piece(text, role)];
            }
            Cell::Cpu => figures::percent(host.cpu_percent),
            Cell::Load => format!("{:.2}", host.load1),
            Cell::Memory => of(host.memory_used_bytes, host.memory_total_bytes),
            Cell::Disk => of(host.disk_used_bytes, host.disk_total_bytes),
            Cell::Net => format!(
                "{} {}",
                figures::bytes(host.net_rx_bytes_per_s),
                figures::bytes(host.net_tx_bytes_per_s)
            ),
            Cell::Seen if host.last_seen <= 0 => "-".into(),
            Cell::Seen => {
                figures::age(self.clock.unix_ms.saturating_sub(host.last_seen).max(0) as u64 / 1000)
            }
            Cell::Address => return vec![piece(host.address.as_str(), Role::Dim)],
        };
        vec![piece(text, Role::Text)]
    }
}

fn of_all(ready: usize, all: usize) -> Piece<'static> {
    let role = if ready < all { Role::Warn } else { Role::Text };
    piece(format!("{ready}/{all}"), role)
}

fn of(used: u64, total: u64) -> String {
    format!("{}/{}", figures::bytes(used), figures::bytes(total))
}

/// Draws one host: gauges, then its processes.
pub fn draw(canvas: &mut Canvas<'_>, area: Rect, app: &App, name: &str, clock: Clock) {
    let model = app.shown();
    let Some(host) = model.host(name) else {
        canvas.text(
            area.x + 2,
            area.y + 1,
            area.width - 2,
            "no such host any more",
            Role::Dim,
        );
        return;
    };
    let mut y = area.y;
    let mut next = |lines: u16| {
        let at = Rect {
            y,
            height: lines,
            ..area
        };
        y += lines;
        at
    };
    let place = next(1);
    about(canvas, place, host, clock);
    if area.height >= 12 {
        let series = |metric: &str| app.focus.as_ref().and_then(|focus| focus.series(metric));
        let share = |used: u64, total: u64| used as f64 / total.max(1) as f64;
        let cpu = format!(
            "{} % of {} cpus, load {:.2}",
            figures::percent(host.cpu_percent),
            host.cpus,
            host.load1
        );
        gauge(
            canvas,
            next(1),
            "cpu",
            host.cpu_percent / 100.0,
            &cpu,
            series("cpu_percent").map(|s| (s, 100.0)),
        );
        let memory = of(host.memory_used_bytes, host.memory_total_bytes);
        let used = share(host.memory_used_bytes, host.memory_total_bytes);
        let total = host.memory_total_bytes as f64;
        gauge(
            canvas,
            next(1),
            "mem",
            used,
            &memory,
            series("memory_used_bytes").map(|s| (s, total)),
        );
        let disk = of(host.disk_used_bytes, host.disk_total_bytes);
        gauge(
            canvas,
            next(1),
            "disk",
            share(host.disk_used_bytes, host.disk_total_bytes),
            &disk,
            None,
        );
        let net = [
            piece(" net  ", Role::Dim),
            piece(
                format!("received {}/s", figures::bytes(host.net_rx_bytes_per_s)),
                Role::Text,
            ),
            piece(
                format!("   sent {}/s", figures::bytes(host.net_tx_bytes_per_s)),
                Role::Text,
            ),
        ];
        canvas.line(next(1), &net);
        canvas.rule(
            next(1),
            &match app.host_rows.len() {
                1 => "1 process".to_owned(),
                n => format!("{n} processes"),
            },
        );
    } else {
        let line = format!(
            " cpu {}%  mem {}  disk {}",
            figures::percent(host.cpu_percent),
            of(host.memory_used_bytes, host.memory_total_bytes),
            of(host.disk_used_bytes, host.disk_total_bytes)
        );
        canvas.line(next(1), &[piece(line, Role::Text)]);
    }
    let body = Rect {
        y,
        height: area.bottom().saturating_sub(y),
        ..area
    };
    super::fleet::processes(canvas, body, app, &app.host_rows, &app.screen().list, clock);
}

fn about(canvas: &mut Canvas<'_>, place: Rect, host: &Host, clock: Clock) {
    let (glyph, role) = canvas.theme.state(&host.state);
    let mut pieces = vec![
        piece(format!(" {} ", host.name), Role::Strong),
        piece(format!(" {glyph} {}", host.state), role),
    ];
    if host.state == "unreachable" && host.last_seen > 0 {
        let gone = clock.unix_ms.saturating_sub(host.last_seen).max(0) as u64 / 1000;
        pieces.push(piece(
            format!(", last seen {} ago", figures::age(gone)),
            Role::Bad,
        ));
    }
    let facts = format!(
        "   up {}   agent {} up {}, {}   {}   {}",
        figures::age(host.uptime_s),
        host.agent_version,
        figures::age(host.agent_uptime_s),
        figures::bytes(host.agent_rss_bytes),
        host.address,
        host.os
    );
    pieces.push(piece(facts, Role::Dim));
    canvas.line(place, &pieces);
}

fn gauge(
    canvas: &mut Canvas<'_>,
    place: Rect,
    label: &str,
    share: f64,
    words: &str,
    series: Option<(&crate::monitor::series::Series, f64)>,
) {
    let role = match share {
        s if s >= 0.95 => Role::Bad,
        s if s >= 0.80 => Role::Warn,
        _ => Role::Good,
    };
    let columns = (place.width / 4).clamp(8, 30);
    let mut pieces = vec![piece(format!(" {label:<4} "), Role::Dim)];
    pieces.extend(canvas.bar(columns, share, role));
    pieces.push(piece(format!(" {words:<32} "), Role::Text));
    let used = canvas.line(place, &pieces);
    if let Some((series, top)) = series
        && place.width > used + 8
    {
        let columns = (place.width - used - 1).min(60);
        let spark = canvas.spark(series.tail(usize::from(columns)), top);
        canvas.text(place.x + used, place.y, columns, &spark, Role::Trend);
    }
}
