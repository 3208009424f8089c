//! The IDENTIFY budget: what is left of the day, which bucket is free when, and who waits.

use ratatui::layout::Rect;
use tanako_proto::fleet::v1::IdentifyStatus;

use super::{
    paint::{Canvas, Piece, piece, pieces_width},
    table::{Column, Source, column, table},
};
use crate::monitor::{
    app::{App, Clock},
    figures,
    state::Model,
    text,
    theme::Role,
};

/// The budget in one line, for the fleet view's header too.
pub fn budget(canvas: &mut Canvas<'_>, area: Rect, model: &Model, clock: Clock) {
    let identify = &model.identify;
    let label = piece(" identify ", Role::Dim);
    if identify.total == 0 {
        canvas.line(area, &[label, piece("no budget reported", Role::Dim)]);
        return;
    }
    let waiting: usize = identify
        .buckets
        .iter()
        .map(|bucket| bucket.waiting.len())
        .sum();
    let role = role(identify);
    let mut rest: Vec<Piece<'_>> = identify
        .bots
        .iter()
        .filter(|bot| !is_normal(&bot.mode))
        .map(|bot| piece(format!(" {} {} ", bot.bot, bot.mode), mode_role(&bot.mode)))
        .collect();
    rest.extend([
        piece(
            format!(" {}", figures::count(u64::from(identify.remaining))),
            role,
        ),
        piece(
            format!(" of {} left", figures::count(u64::from(identify.total))),
            Role::Dim,
        ),
        piece(
            format!("  reserve {}", figures::count(u64::from(identify.reserve))),
            Role::Dim,
        ),
    ]);
    if let Some(wait) = until(identify.resets_at, clock) {
        rest.push(piece(format!("  resets in {wait}"), Role::Dim));
    }
    if waiting > 0 {
        rest.push(piece(format!("  {waiting} waiting"), Role::Warn));
    }
    let columns = area
        .width
        .saturating_sub(10 + pieces_width(&rest) + 1)
        .clamp(4, 40);
    let bar = canvas.bar(
        columns,
        f64::from(identify.remaining) / f64::from(identify.total),
        role,
    );
    let pieces: Vec<Piece<'_>> = std::iter::once(label).chain(bar).chain(rest).collect();
    canvas.line(area, &pieces);
}

/// An agent that does not say has nothing to say.
fn is_normal(mode: &str) -> bool {
    matches!(mode, "" | "normal")
}

fn mode_role(mode: &str) -> Role {
    match mode {
        mode if is_normal(mode) => Role::Dim,
        "probing" => Role::Warn,
        _ => Role::Bad,
    }
}

fn role(identify: &IdentifyStatus) -> Role {
    match identify.remaining {
        left if left <= identify.reserve => Role::Bad,
        left if left.saturating_mul(5) <= identify.total => Role::Warn,
        _ => Role::Good,
    }
}

fn until(at: i64, clock: Clock) -> Option<String> {
    let ms = at
        .checked_sub(clock.unix_ms)
        .filter(|ms| at > 0 && *ms > 0)?;
    Some(figures::age((ms as u64).div_ceil(1000)))
}

/// Draws the identify view.
pub fn draw(canvas: &mut Canvas<'_>, area: Rect, app: &App, clock: Clock) {
    let model = app.shown();
    let identify = &model.identify;
    budget(canvas, Rect { height: 1, ..area }, model, clock);
    let mut y = area.y + 1;
    let line = |y: u16| Rect {
        y,
        height: 1,
        ..area
    };
    if area.height >= 10 {
        let forecast = match identify.forecast_s {
            0 => "nobody waits".to_owned(),
            s => format!(
                "all waiting shards have their permit in about {}",
                figures::age(u64::from(s))
            ),
        };
        let pieces = [
            piece(
                format!(" used {}", figures::count(u64::from(identify.used))),
                Role::Text,
            ),
            piece(
                format!("   max concurrency {}   ", identify.max_concurrency),
                Role::Dim,
            ),
            piece(
                forecast,
                if identify.forecast_s > 0 {
                    Role::Warn
                } else {
                    Role::Dim
                },
            ),
        ];
        canvas.line(line(y), &pieces);
        y += 1;
        for bot in identify.bots.iter().take(usize::from(area.height / 3)) {
            let mut pieces = vec![piece(
                format!(" {:<12} ", text::fit(&bot.bot, 12)),
                Role::Strong,
            )];
            pieces.extend(canvas.bar(
                16,
                f64::from(bot.remaining) / f64::from(bot.total.max(1)),
                Role::Good,
            ));
            if !bot.mode.is_empty() {
                pieces.push(piece(format!(" {} ", bot.mode), mode_role(&bot.mode)));
            }
            let rest = format!(
                " {} of {} left   {} at once   {} waiting   recommended shards {}",
                figures::count(u64::from(bot.remaining)),
                figures::count(u64::from(bot.total)),
                bot.max_concurrency,
                bot.waiting,
                bot.recommended_shards
            );
            pieces.push(piece(rest, Role::Dim));
            canvas.line(line(y), &pieces);
            y += 1;
        }
        canvas.rule(
            line(y),
            &format!("{} buckets, one IDENTIFY each 5 s", identify.buckets.len()),
        );
        y += 1;
    }
    let body = Rect {
        y,
        height: area.bottom().saturating_sub(y),
        ..area
    };
    let columns = [
        column(Cell::Bucket, "BUCKET", 6, true, 0),
        Column {
            width_max: 20,
            ..column(Cell::Bot, "BOT", 8, false, 3)
        },
        column(Cell::Next, "NEXT", 8, true, 1),
        column(Cell::Granted, "GRANTED", 8, true, 2),
        Column {
            width_max: 200,
            ..column(Cell::Waiting, "WAITING SHARDS", 14, false, 1)
        },
    ];
    let source = Buckets { identify, clock };
    table(
        canvas,
        body,
        &columns,
        &app.screen().list,
        identify.buckets.len(),
        &source,
    );
}

#[derive(Clone, Copy)]
enum Cell {
    Bucket,
    Bot,
    Next,
    Granted,
    Waiting,
}

struct Buckets<'a> {
    identify: &'a IdentifyStatus,
    clock: Clock,
}

impl Source<Cell> for Buckets<'_> {
    fn cell(&self, _: &Canvas<'_>, row: usize, key: Cell, width: u16) -> Vec<Piece<'_>> {
        let Some(bucket) = self.identify.buckets.get(row) else {
            return Vec::new();
        };
        match key {
            Cell::Bucket => vec![piece(bucket.bucket.to_string(), Role::Text)],
            Cell::Bot => vec![piece(bucket.bot.as_str(), Role::Dim)],
            Cell::Next => match until(bucket.next_at, self.clock) {
                Some(wait) => vec![piece(format!("in {wait}"), Role::Warn)],
                None => vec![piece("free", Role::Good)],
            },
            Cell::Granted => vec![piece(figures::count(bucket.granted), Role::Text)],
            Cell::Waiting if bucket.waiting.is_empty() => vec![piece("-", Role::Track)],
            Cell::Waiting => {
                // A number takes two columns at least: more of them cannot be seen.
                let shards = bucket
                    .waiting
                    .iter()
                    .take(usize::from(width) / 2 + 1)
                    .map(u32::to_string);
                vec![piece(shards.collect::<Vec<_>>().join(" "), Role::Warn)]
            }
        }
    }
}
