//! The IDENTIFY budget: `tanakoctl identify`.

use std::fmt::Write as _;

use serde::Serialize;
use tanako_proto::fleet::v1::IdentifyStatus;

use super::{status::IdentifySummary, time};
use crate::{
    paint::Paint,
    table::{Cell, Table},
    ui::Report,
    units::{age, now_ms, ranges, seconds_between},
};

/// `identify -o json`.
#[derive(Debug, Serialize)]
pub struct IdentifyView {
    #[serde(flatten)]
    summary: IdentifySummary,
    bots: Vec<BotView>,
    buckets: Vec<BucketView>,
}

#[derive(Debug, Serialize)]
struct BotView {
    bot: String,
    /// normal, probing (one IDENTIFY at a time until one holds) or exhausted.
    mode: String,
    total: u32,
    used: u32,
    remaining: u32,
    reserve: u32,
    max_concurrency: u32,
    resets_at: Option<String>,
    waiting: u32,
    recommended_shards: u32,
    /// Until every waiting shard has its permit, if each one given holds.
    forecast_s: u32,
    #[serde(skip)]
    resets_at_ms: i64,
}

#[derive(Debug, Serialize)]
struct BucketView {
    bot: String,
    bucket: u32,
    next_at: Option<String>,
    waiting: Vec<u32>,
    granted: u64,
    #[serde(skip)]
    next_at_ms: i64,
}

impl From<IdentifyStatus> for IdentifyView {
    fn from(status: IdentifyStatus) -> Self {
        Self {
            summary: (&status).into(),
            bots: status
                .bots
                .into_iter()
                .map(|bot| BotView {
                    bot: bot.bot,
                    mode: bot.mode,
                    total: bot.total,
                    used: bot.used,
                    remaining: bot.remaining,
                    reserve: bot.reserve,
                    max_concurrency: bot.max_concurrency,
                    resets_at: time(bot.resets_at),
                    waiting: bot.waiting,
                    recommended_shards: bot.recommended_shards,
                    forecast_s: bot.forecast_s,
                    resets_at_ms: bot.resets_at,
                })
                .collect(),
            buckets: status
                .buckets
                .into_iter()
                .map(|bucket| BucketView {
                    bot: bucket.bot,
                    bucket: bucket.bucket,
                    next_at: time(bucket.next_at),
                    waiting: bucket.waiting,
                    granted: bucket.granted,
                    next_at_ms: bucket.next_at,
                })
                .collect(),
        }
    }
}

impl Report for IdentifyView {
    fn table(&self, paint: Paint, wide: bool) -> String {
        let now = now_ms();
        let mut text = format!("IDENTIFYs: {}\n", self.summary.line(now));
        if !self.bots.is_empty() {
            let mut head = vec![
                "BOT", "MODE", "LEFT", "SPENT", "RESERVE", "TOTAL", "AT-ONCE", "WAITING",
                "FORECAST", "RESETS",
            ];
            if wide {
                head.push("RECOMMENDED");
            }
            let mut table = Table::new(&head);
            for bot in &self.bots {
                let resets = match bot.resets_at_ms {
                    0 => "-".into(),
                    at => age(seconds_between(now, at)),
                };
                let mut row = vec![
                    Cell::new(&bot.bot),
                    match bot.mode.as_str() {
                        "" => Cell::new("-"),
                        mode => Cell::state(mode),
                    },
                    Cell::number(bot.remaining),
                    Cell::number(bot.used),
                    Cell::number(bot.reserve),
                    Cell::number(bot.total),
                    Cell::number(bot.max_concurrency),
                    Cell::number(bot.waiting),
                    Cell::number(match bot.forecast_s {
                        0 => "-".into(),
                        seconds => age(seconds.into()),
                    }),
                    Cell::number(resets),
                ];
                if wide {
                    row.push(Cell::number(match bot.recommended_shards {
                        0 => "-".into(),
                        shards => format!("{shards} shards"),
                    }));
                }
                table.row(row);
            }
            let _ = write!(text, "\n{}", table.render(paint));
        }
        if !self.buckets.is_empty() {
            let mut table = Table::new(&["BUCKET", "BOT", "GRANTED", "NEXT", "WAITING-SHARDS"]);
            for bucket in &self.buckets {
                let next = match seconds_between(now, bucket.next_at_ms.saturating_add(999)) {
                    0 => "now".into(),
                    seconds => format!("in {}", age(seconds)),
                };
                table.row(vec![
                    Cell::number(bucket.bucket),
                    Cell::new(&bucket.bot),
                    Cell::number(bucket.granted),
                    Cell::new(next),
                    Cell::new(if bucket.waiting.is_empty() {
                        "-".into()
                    } else {
                        ranges(&bucket.waiting)
                    }),
                ]);
            }
            let _ = write!(text, "\n{}", table.render(paint));
        }
        text
    }

    fn names(&self) -> Vec<String> {
        self.bots.iter().map(|bot| bot.bot.clone()).collect()
    }
}
