//! What the simulated Discord is told at its start.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

/// Guilds that one simulated Discord can hold: their ids must lie before today.
pub const GUILDS_MAX: u32 = 1_000_000;

/// Settings of a simulated Discord; each is a flag of the same name.
#[derive(Args, Debug, Clone)]
pub struct Config {
    /// Address for REST, gateway and admin API; port 0 takes a free one. May be given several times.
    /// The admin API is served on loopback addresses only.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub listen: Vec<SocketAddr>,

    /// Number of guilds the bot is in.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=i64::from(GUILDS_MAX)))]
    pub guilds: u32,

    /// Seed of everything that is generated: guilds, members, events, commands.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// IDENTIFYs allowed at once: the number of buckets (`shard_id % max_concurrency`).
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub max_concurrency: u32,

    /// Generated guild events a second over all guilds.
    #[arg(long, default_value_t = 0.0, value_name = "RATE", allow_negative_numbers = true, value_parser = rate)]
    pub events_per_second: f64,

    /// Generated slash commands a second over all guilds. Needs registered commands.
    #[arg(long, default_value_t = 0.0, value_name = "RATE", allow_negative_numbers = true, value_parser = rate)]
    pub interactions_per_second: f64,

    /// File with the bot's token. Made with a random token and mode 0600 when it does not exist.
    /// Without this flag the development token holds (see the README).
    #[arg(long, value_name = "PATH")]
    pub token_file: Option<PathBuf>,

    /// Shards that `GET /gateway/bot` recommends [default: one per 1,000 guilds].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub recommended_shards: Option<u32>,

    /// How long a session whose connection is gone can be resumed.
    #[arg(long, default_value = "90s", value_name = "DURATION", value_parser = duration)]
    pub resume_window: Duration,

    /// Events that a session keeps for a RESUME.
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = at_least_one)]
    pub resume_events: usize,

    /// Bytes of event bodies that a session keeps for a RESUME.
    #[arg(long, default_value_t = 64 << 20, value_name = "BYTES", value_parser = at_least_one)]
    pub resume_bytes: usize,

    /// IDENTIFYs allowed in 24 hours, over all shards; the next one resets the token
    /// [default: 1000, and for over 150,000 guilds max(2000, guilds / 1000 * 5)].
    #[arg(long, value_name = "N")]
    pub identify_total: Option<u32>,

    /// Time between two IDENTIFYs of one bucket.
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = duration)]
    pub identify_interval: Duration,

    /// Heartbeat interval that Hello announces.
    #[arg(long, default_value = "41250ms", value_name = "DURATION", value_parser = duration)]
    pub heartbeat_interval: Duration,

    /// How late a heartbeat may be before the client counts as dead [default: half the interval, at least 1s].
    /// A longer one lets clients wait for a core on slow machines.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub heartbeat_patience: Option<Duration>,

    /// Time for the first answer to an interaction. Discord's own is 3s; a longer one lets slow machines be judged
    /// by whether they answer at all.
    #[arg(long, default_value = "3s", value_name = "DURATION", value_parser = duration)]
    pub answer_within: Duration,

    /// Which privileged intents the application may ask for; others close with 4014.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "all")]
    pub privileged_intents: Vec<PrivilegedIntent>,
}

/// A privileged intent, as named in the developer portal.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrivilegedIntent {
    /// Every one of them.
    All,
    /// None of them.
    None,
    /// GUILD_PRESENCES.
    Presences,
    /// GUILD_MEMBERS.
    Members,
    /// MESSAGE_CONTENT.
    MessageContent,
}

impl Default for Config {
    fn default() -> Self {
        #[derive(clap::Parser)]
        struct Defaults {
            #[command(flatten)]
            config: Config,
        }
        <Defaults as clap::Parser>::try_parse_from(["simcord"])
            .expect("invariant: every flag has a default")
            .config
    }
}

impl Config {
    /// Shards that `GET /gateway/bot` recommends for a number of guilds.
    pub(crate) fn recommended_shards_for(&self, guilds: u32) -> u32 {
        self.recommended_shards
            .unwrap_or_else(|| guilds.div_ceil(1000).max(1))
    }

    /// IDENTIFYs allowed in 24 hours for a number of guilds.
    pub(crate) fn identify_total_for(&self, guilds: u32) -> u32 {
        self.identify_total
            .unwrap_or(if guilds > crate::gateway::limits::LARGE_BOT_GUILDS {
                (guilds / 1000 * 5).max(2000)
            } else {
                1000
            })
    }
}

/// A duration in the form `90s`, `1m 30s`, `250ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let signed: jiff::SignedDuration = text
        .parse()
        .map_err(|_| format!("`{text}` is not a duration; write it like 90s, 2m or 250ms"))?;
    let duration = Duration::try_from(signed)
        .map_err(|_| format!("`{text}` is negative; a duration cannot be"))?;
    if duration.is_zero() {
        return Err("a duration of zero is not possible here".to_owned());
    }
    Ok(duration)
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.0..=RATE_MAX).contains(&rate) => Ok(rate),
        _ => Err(format!(
            "`{text}` is not a rate between 0 and {RATE_MAX} a second"
        )),
    }
}

/// The highest rate of generated events or interactions a second.
pub const RATE_MAX: f64 = 200_000.0;

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if n >= 1 => Ok(n),
        _ => Err(format!("`{text}` is not a whole number of at least 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_humane_and_never_zero() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("41250ms"), Ok(Duration::from_millis(41_250)));
        for bad in ["", "0s", "-5s", "5 parsecs", "5"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn large_bots_get_more_identifies() {
        let config = Config::default();
        assert_eq!(config.identify_total_for(150_000), 1000);
        assert_eq!(config.identify_total_for(150_001), 2000);
        assert_eq!(config.identify_total_for(1_000_000), 5000);
    }
}
