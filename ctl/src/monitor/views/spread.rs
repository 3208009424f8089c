//! The lower half of the process view: the numbers of a database node, the event types of a shard
//! process, and how its latencies spread.

use std::collections::BTreeMap;

use ratatui::layout::Rect;
use tanako_proto::fleet::v1::{Database, Process};

use super::paint::{Canvas, Piece, piece};
use crate::monitor::{figures, focus::Focus, text, theme::Role};

/// A database node's numbers.
pub fn database(canvas: &mut Canvas<'_>, area: Rect, db: &Database) {
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
    let count = |n: u64| figures::count(n);
    line(canvas, 1, &[("url", db.url.clone())]);
    line(
        canvas,
        2,
        &[
            ("rows", count(db.rows)),
            ("on disk", figures::bytes(db.bytes_on_disk)),
            ("clients", db.connections.to_string()),
            ("errors", count(db.errors)),
        ],
    );
    line(
        canvas,
        3,
        &[
            ("reads", count(db.reads)),
            ("reads/s", figures::rate(db.reads_per_s)),
            ("p50", figures::millis(db.read_p50_ms)),
            ("p99", figures::millis(db.read_p99_ms)),
        ],
    );
    line(
        canvas,
        4,
        &[
            ("writes", count(db.writes)),
            ("writes/s", figures::rate(db.writes_per_s)),
            ("p50", figures::millis(db.write_p50_ms)),
            ("p99", figures::millis(db.write_p99_ms)),
        ],
    );
    line(canvas, 5, &[("forwards", count(db.forwards))]);
}

/// The commonest event types of all shards together.
pub fn types(canvas: &mut Canvas<'_>, area: Rect, process: &Process) {
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
            format!("  {:<26} {:>10} ", text::fit(name, 26), figures::count(*n)),
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
pub fn histogram(canvas: &mut Canvas<'_>, area: Rect, focus: Option<&Focus>) {
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
        &format!("latency, {} samples", figures::count(latencies.len())),
    );
    let mut pieces = vec![piece("  ", Role::Text)];
    for (label, ms) in [
        ("p50", latencies.percentile(50.0)),
        ("p90", latencies.percentile(90.0)),
        ("p99", latencies.percentile(99.0)),
        ("max", latencies.max()),
    ] {
        pieces.push(piece(format!("{label} "), Role::Dim));
        pieces.push(piece(format!("{:<8}", figures::millis(ms)), Role::Strong));
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
            piece(format!("  to {:>7} ", figures::millis(to)), Role::Dim),
            piece(canvas.theme.glyphs().block.repeat(full), Role::Trend),
            piece(format!(" {}", figures::short_count(n)), Role::Dim),
        ];
        canvas.line(place, &pieces);
    }
}
