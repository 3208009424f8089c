//! Messages per guild and day, for `/serverinfo`.
//!
//! Counted in memory and added to the database every few seconds: one increment a guild and flush, not
//! one a message. A crash loses at most what was not flushed; a drain flushes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use jiff::ToSpan as _;
use jiff::civil::Date;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::database::{Database, DbError, Repeat};

/// Between two flushes.
const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// Increments at once.
const FLUSH_WIDTH: usize = 16;
/// Guilds waiting for a flush. With the database away longer, more guilds are not counted.
const PENDING_MAX: usize = 50_000;
/// Days kept.
const KEPT_DAYS: i32 = 31;
/// Days that `/serverinfo` shows.
pub const SHOWN_DAYS: usize = 7;

/// Counts messages.
pub struct Activity {
    database: Arc<Database>,
    pending: Mutex<HashMap<u64, u64>>,
}

impl Activity {
    /// Nothing counted yet.
    pub fn new(database: Arc<Database>) -> Self {
        Self {
            database,
            pending: Mutex::default(),
        }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One message of a person in this guild.
    pub fn message(&self, guild: u64) {
        if self.database.is_configured() {
            self.add(guild, 1);
        }
    }

    fn add(&self, guild: u64, count: u64) {
        let mut pending = self.pending();
        if let Some(waiting) = pending.get_mut(&guild) {
            *waiting += count;
        } else if pending.len() < PENDING_MAX {
            pending.insert(guild, count);
        }
    }

    /// Flushes until told to stop; the last flush is the caller's.
    pub async fn run(&self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(FLUSH_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let result = self.flush().await;
            if let (Err(error), false) = (&result, failing) {
                warn!(%error, "cannot store message counts, keeping them");
            }
            failing = result.is_err();
        }
    }

    /// Adds what was counted to the database. What surely did not arrive is counted again.
    pub async fn flush(&self) -> Result<(), DbError> {
        let counts = std::mem::take(&mut *self.pending());
        let today = today();
        let results = futures_util::stream::iter(counts)
            .map(|(guild, count)| async move {
                let result = self.store(guild, count, today).await;
                // Counting too little is better than counting twice.
                if matches!(&result, Err(error) if *error != DbError::Unanswered) {
                    self.add(guild, count);
                }
                result
            })
            .buffer_unordered(FLUSH_WIDTH)
            .collect::<Vec<_>>()
            .await;
        results.into_iter().find(Result::is_err).unwrap_or(Ok(()))
    }

    async fn store(&self, guild: u64, count: u64, day: Date) -> Result<(), DbError> {
        let data = json!({
            "table": "metrics",
            "conditions": { "id": row_id(guild, day), "metric_type": METRIC_TYPE },
            "column": "value",
            "by": count,
            "create": true,
        });
        let reply = match self.database.call("increment", data, Repeat::Never).await {
            Ok(reply) => reply,
            Err(error) if error.is_unknown_action() => {
                return self.store_original(guild, count, day).await;
            }
            Err(error) => return Err(error),
        };
        // The day's first increment makes the row; then the oldest one goes.
        if reply.get("value").and_then(Value::as_f64) == Some(count as f64)
            && let Ok(old) = day.checked_sub(KEPT_DAYS.days())
        {
            let data = json!({ "table": "metrics", "conditions": { "id": row_id(guild, old) } });
            self.database.call("delete", data, Repeat::Harmless).await?;
        }
        Ok(())
    }

    /// On a node of the original protocol: read, then write. Only this process counts this guild, so
    /// nothing is lost but in the planned overlap of a reshard.
    async fn store_original(&self, guild: u64, count: u64, day: Date) -> Result<(), DbError> {
        let id = row_id(guild, day);
        let conditions = json!({ "id": id });
        let (action, data) = match self
            .database
            .find_one("metrics", conditions.clone())
            .await?
        {
            Some(row) => {
                let value = row.get("value").and_then(Value::as_f64).unwrap_or(0.0) + count as f64;
                (
                    "update",
                    json!({ "table": "metrics", "conditions": conditions, "data": { "value": value } }),
                )
            }
            None => (
                "insert",
                json!({ "table": "metrics", "row": { "id": id, "metric_type": METRIC_TYPE, "value": count } }),
            ),
        };
        self.database
            .call(action, data, Repeat::Harmless)
            .await
            .map(|_| ())
    }

    /// Messages of the latest days, today first; what is not flushed yet is counted too.
    pub async fn days(&self, guild: u64) -> Result<[u64; SHOWN_DAYS], DbError> {
        let today = today();
        let reads = (0..SHOWN_DAYS).map(|ago| async move {
            let day = today.checked_sub((ago as i32).days()).unwrap_or(today);
            let row = self
                .database
                .find_one("metrics", json!({ "id": row_id(guild, day) }))
                .await?;
            let value = row
                .as_ref()
                .and_then(|row| row.get("value"))
                .and_then(Value::as_f64)
                .unwrap_or(0.0);
            Ok::<_, DbError>(value.max(0.0) as u64)
        });
        let mut days = [0; SHOWN_DAYS];
        for (day, result) in days
            .iter_mut()
            .zip(futures_util::future::join_all(reads).await)
        {
            *day = result?;
        }
        days[0] += self.pending().get(&guild).copied().unwrap_or(0);
        Ok(days)
    }
}

const METRIC_TYPE: &str = "guild_messages";

fn today() -> Date {
    jiff::Timestamp::now()
        .to_zoned(jiff::tz::TimeZone::UTC)
        .date()
}

fn row_id(guild: u64, day: Date) -> String {
    format!("{METRIC_TYPE}:{guild}:{day}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_row_a_guild_and_day() {
        let day = jiff::civil::date(2026, 11, 21);
        assert_eq!(
            row_id(81_384_788_765_712_384, day),
            "guild_messages:81384788765712384:2026-11-21"
        );
    }
}
