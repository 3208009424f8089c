//! The broker's state and news, for people.

use tanako_fleet::identify::{BotStatus, Notice, Refusal};
use tanako_proto::fleet::v1 as fleet;

use super::AcquireError;
use crate::history::Severity;

/// News for the history: how bad, what kind, about what, and in words.
pub(super) fn news(notice: Notice) -> (Severity, &'static str, String, String) {
    match notice {
        Notice::Exhausted { bot, free_at } => (
            Severity::Error,
            "identify-refused",
            bot,
            format!(
                "the day's IDENTIFY budget is spent down to the reserve; {}. Find out what \
                 identifies so often: tanakoctl identify",
                free_text(free_at)
            ),
        ),
        Notice::Delayed {
            bot: _,
            process,
            shard,
            wasted,
            wait_ms,
        } => (
            Severity::Error,
            "identify-delayed",
            process,
            format!(
                "shard {shard} identified {wasted} times without staying up; its next IDENTIFY \
                 waits {} s to spare the day's budget. Find out why it does not stay up: \
                 tanakoctl logs",
                wait_ms.div_euclid(1000) + 1
            ),
        ),
        Notice::Slowed { bot } => (
            Severity::Error,
            "identify-slow-start",
            bot,
            "a quarter of the day's IDENTIFY budget came to nothing; shards in trouble get one try \
             every few minutes until some stay up"
                .to_owned(),
        ),
        Notice::Probing { bot, in_a_row } => (
            Severity::Error,
            "identify-probing",
            bot,
            format!(
                "the latest {in_a_row} IDENTIFYs came to nothing, over several shards: one at a \
                 time from now on, until one holds. Is Discord well? https://discordstatus.com"
            ),
        ),
        Notice::Recovered { bot } => (
            Severity::Info,
            "identify-recovered",
            bot,
            "an IDENTIFY held; the others follow at full speed".to_owned(),
        ),
        Notice::BadLimits { bot } => (
            Severity::Warning,
            "identify-bad-limits",
            bot,
            "a report of Discord's limits made no sense and was ignored".to_owned(),
        ),
        Notice::Damaged { bot, records } => (
            Severity::Warning,
            "identify-ledger-damaged",
            bot,
            format!(
                "{records} records of the identify ledger were damaged; each counts as an IDENTIFY \
                 sent just now"
            ),
        ),
    }
}

pub(super) fn refusal(bot: String, why: Refusal) -> AcquireError {
    match why {
        Refusal::Exhausted { free_at } => AcquireError::Exhausted { bot, free_at },
        Refusal::Superseded => AcquireError::Superseded,
        Refusal::Full => AcquireError::Unavailable("too many shards wait"),
    }
}

/// Says in words when the next IDENTIFY is free.
pub(super) fn free_text(free_at: Option<i64>) -> String {
    free_at
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(
            || "the reserve is the whole budget, so none is ever free".to_owned(),
            |at| {
                format!(
                    "the next is free at {}",
                    at.strftime("%Y-%m-%d %H:%M:%S UTC")
                )
            },
        )
}

fn seconds(ms: u64) -> u32 {
    u32::try_from(ms.div_ceil(1000)).unwrap_or(u32::MAX)
}

/// The state as `tanakoctl` gets it: sums first, then by bot and bucket.
pub(super) fn to_wire(bots: &[BotStatus]) -> fleet::IdentifyStatus {
    let mut status = fleet::IdentifyStatus::default();
    for bot in bots {
        let remaining = bot.total.saturating_sub(bot.used);
        status.total = status.total.saturating_add(bot.total);
        status.used = status.used.saturating_add(bot.used);
        status.remaining = status.remaining.saturating_add(remaining);
        status.reserve = status.reserve.saturating_add(bot.reserve);
        status.max_concurrency = status.max_concurrency.max(bot.max_concurrency);
        status.resets_at = status.resets_at.max(bot.resets_at);
        status.forecast_s = status.forecast_s.max(seconds(bot.forecast_ms));
        let waiting = bot
            .buckets
            .iter()
            .map(|bucket| bucket.waiting.len())
            .sum::<usize>();
        status.bots.push(fleet::IdentifyBot {
            bot: bot.bot.clone(),
            total: bot.total,
            used: bot.used,
            remaining,
            reserve: bot.reserve,
            max_concurrency: bot.max_concurrency,
            resets_at: bot.resets_at,
            waiting: u32::try_from(waiting).unwrap_or(u32::MAX),
            recommended_shards: bot.recommended,
            mode: bot.mode.as_str().to_owned(),
            forecast_s: seconds(bot.forecast_ms),
        });
        status
            .buckets
            .extend(bot.buckets.iter().map(|bucket| fleet::IdentifyBucket {
                bot: bot.bot.clone(),
                bucket: bucket.bucket,
                next_at: bucket.next_at,
                waiting: bucket.waiting.clone(),
                granted: bucket.granted,
            }));
    }
    status
}
