//! `/metrics`: how the process is.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Command, CommandError, Reply};
use crate::interactions::panel::{BLUE, Panel};
use crate::shard::{ShardStatus, Stage};

/// The command.
pub const COMMAND: Command = Command {
    name: "metrics",
    summary: "Show how the bot's process is: load, latencies, memory",
    details: "Figures of the process that serves this server, since its start. The operator's monitor shows all processes.",
    private: true,
    guild_only: false,
    permission: None,
    options: Vec::new,
    run: |context| Box::pin(async move {
        let services = context.services;
        Ok::<_, CommandError>(reply(&services.shard_statuses(), &services.figures(), services.started.elapsed()))
    }),
};

fn reply(shards: &[ShardStatus], figures: &BTreeMap<String, f64>, uptime: Duration) -> Reply {
    let sum = |of: fn(&ShardStatus) -> u64| shards.iter().map(of).sum::<u64>();
    let figure = |name: &str| figures.get(name).copied().unwrap_or(0.0);
    let events = sum(|shard| shard.events);
    let per_second = events as f64 / uptime.as_secs_f64().max(1.0);
    let ready = shards.iter().filter(|shard| shard.stage == Stage::Ready).count();
    let mut busiest: Vec<(String, u64)> = shards
        .iter()
        .flat_map(|shard| shard.events_by_type.iter())
        .fold(BTreeMap::<String, u64>::new(), |mut sums, (kind, count)| {
            *sums.entry(kind.clone()).or_default() += count;
            sums
        })
        .into_iter()
        .collect();
    busiest.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let busiest: Vec<String> = busiest.iter().take(5).map(|(kind, count)| format!("`{kind}` {count}")).collect();
    let panel = Panel::new("Process", BLUE)
        .field("Up", duration(uptime))
        .field("Memory", format!("{:.1} MB", figure("rss_bytes") / 1e6))
        .field("Shards", format!("{ready} of {} ready", shards.len()))
        .field("Servers", sum(|shard| u64::from(shard.guilds)))
        .field("Members", sum(|shard| shard.members))
        .field("Events", format!("{events} ({per_second:.1}/s)"))
        .field("Commands", format!("{} ({} failed)", sum(|shard| shard.interactions), sum(|shard| shard.interactions_failed)))
        .field("REST", format!("p50 {:.1} ms, p99 {:.1} ms", figure("rest_p50_ms"), figure("rest_p99_ms")))
        .field("Database", format!("p50 {:.1} ms, p99 {:.1} ms", figure("db_p50_ms"), figure("db_p99_ms")))
        .field("Settings cache", format!("{:.0} % hits, {:.0} servers", figure("settings_cache_hit_ratio") * 100.0, figure("settings_cached_guilds")))
        .row("Most frequent events", if busiest.is_empty() { "none yet".to_owned() } else { busiest.join("\n") })
        .footer(format!("tanako-bot {}", env!("CARGO_PKG_VERSION")));
    Reply::private_panel(panel)
}

/// `3 d 4 h`, `5 min 6 s`.
fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn sums_over_the_shards() {
        let shard = |id, stage, events| ShardStatus {
            id,
            count: 2,
            stage,
            guilds: 10,
            members: 100,
            events,
            events_by_type: Arc::new(BTreeMap::from([("MESSAGE_CREATE".to_owned(), events)])),
            interactions: 3,
            interactions_failed: 1,
            ..ShardStatus::default()
        };
        let figures = [("rss_bytes", 9.5e6), ("rest_p50_ms", 31.25), ("db_p99_ms", 4.0), ("settings_cache_hit_ratio", 0.756)];
        let figures = figures.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let shards = [shard(0, Stage::Ready, 600), shard(1, Stage::Resuming, 30)];
        insta::assert_snapshot!("metrics", reply(&shards, &figures, Duration::from_secs(63)).pretty());
        insta::assert_snapshot!("metrics_at_start", reply(&[], &BTreeMap::new(), Duration::ZERO).pretty());
    }

    #[test]
    fn durations_read_well() {
        let shown: Vec<String> = [59, 61, 7_380, 277_000].map(|seconds| duration(Duration::from_secs(seconds))).into();
        assert_eq!(shown, ["59 s", "1 min 1 s", "2 h 3 min", "3 d 4 h"]);
    }
}
