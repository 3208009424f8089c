//! `fleet.toml` as typed: every key that exists, with the place of each value.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de};
use serde_spanned::Spanned;

pub(super) type Text = Spanned<String>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    pub fleet: Head,
    #[serde(default)]
    pub hosts: Vec<Spanned<Host>>,
    #[serde(default)]
    pub bots: BTreeMap<Text, Spanned<Bot>>,
    pub database: Option<Spanned<Database>>,
    pub backup: Option<Backup>,
    pub advise: Option<Advise>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    pub name: Text,
    #[serde(default)]
    pub production: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Host {
    pub name: Text,
    pub address: Option<String>,
    #[serde(default)]
    pub labels: BTreeMap<Text, Text>,
    pub capacity: Option<Capacity>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Capacity {
    pub processes: Option<Spanned<u32>>,
    pub memory: Option<Text>,
    pub share: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Placement {
    #[serde(default)]
    pub required: BTreeMap<Text, Text>,
    #[serde(default)]
    pub preferred: BTreeMap<Text, Text>,
    pub anti_affinity: Option<Text>,
    pub weight: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Advise {
    #[serde(default)]
    pub act: Vec<Text>,
    pub max_shards: Option<Spanned<u32>>,
    pub quiet_hours: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bot {
    pub command: Spanned<Vec<String>>,
    pub token_file: Option<Text>,
    pub shards: Spanned<Shards>,
    pub guilds: Option<u64>,
    pub shards_per_process: Option<Spanned<u32>>,
    pub worker: Option<bool>,
    pub identifies: Option<Spanned<bool>>,
    pub identify_queue: Option<Spanned<bool>>,
    pub token_env: Option<Text>,
    pub db_uri_env: Option<Text>,
    pub api_url: Option<Text>,
    pub gateway_url: Option<Text>,
    pub max_concurrency: Option<Spanned<u32>>,
    pub identify_reserve: Option<u32>,
    pub health: Option<Health>,
    pub placement: Option<Placement>,
    #[serde(default)]
    pub shard_env: BTreeMap<Text, Text>,
    // serde cannot flatten and refuse unknown keys at once, so the keys of `Run` stand here and in
    // `Database` and are gathered by `run()`.
    pub directory: Option<Text>,
    #[serde(default)]
    pub env: BTreeMap<Text, String>,
    #[serde(default)]
    pub secret_env: BTreeMap<Text, Text>,
    pub ready: Option<Spanned<Ready>>,
    pub watchdog: Option<Text>,
    pub restart: Option<Spanned<Restart>>,
    pub stop: Option<Stop>,
    pub limits: Option<Limits>,
    pub logs: Option<Logs>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Database {
    pub command: Option<Spanned<Vec<String>>>,
    pub nodes: Option<Spanned<u32>>,
    pub base_port: Option<Spanned<u16>>,
    pub listen: Option<Text>,
    #[serde(default)]
    pub node: Vec<Spanned<Node>>,
    pub engine: Option<Text>,
    pub token_file: Text,
    pub cache: Option<Text>,
    pub directory: Option<Text>,
    #[serde(default)]
    pub env: BTreeMap<Text, String>,
    #[serde(default)]
    pub secret_env: BTreeMap<Text, Text>,
    pub ready: Option<Spanned<Ready>>,
    pub watchdog: Option<Text>,
    pub restart: Option<Spanned<Restart>>,
    pub stop: Option<Stop>,
    pub limits: Option<Limits>,
    pub logs: Option<Logs>,
}

/// The keys that bots and the database share.
pub(super) struct Run {
    pub directory: Option<Text>,
    pub env: BTreeMap<Text, String>,
    pub secret_env: BTreeMap<Text, Text>,
    pub ready: Option<Spanned<Ready>>,
    pub watchdog: Option<Text>,
    pub restart: Option<Spanned<Restart>>,
    pub stop: Option<Stop>,
    pub limits: Option<Limits>,
    pub logs: Option<Logs>,
}

macro_rules! run {
    ($raw:ident) => {
        Run {
            directory: $raw.directory.take(),
            env: std::mem::take(&mut $raw.env),
            secret_env: std::mem::take(&mut $raw.secret_env),
            ready: $raw.ready.take(),
            watchdog: $raw.watchdog.take(),
            restart: $raw.restart.take(),
            stop: $raw.stop.take(),
            limits: $raw.limits.take(),
            logs: $raw.logs.take(),
        }
    };
}

impl Bot {
    pub fn run(&mut self) -> Run {
        run!(self)
    }
}

impl Database {
    pub fn run(&mut self) -> Run {
        run!(self)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Node {
    pub name: Text,
    pub listen: Text,
    pub weight: Option<Spanned<u32>>,
    pub host: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ready {
    pub kind: Text,
    pub timeout: Option<Text>,
    pub url: Option<Text>,
    pub interval: Option<Text>,
    pub pattern: Option<Text>,
    pub after: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Health {
    pub silent: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Restart {
    pub when: Option<Text>,
    pub backoff_min: Option<Text>,
    pub backoff_max: Option<Text>,
    pub reset_after: Option<Text>,
    pub crash_loop_starts: Option<Spanned<u32>>,
    pub crash_loop_window: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stop {
    pub signal: Option<Text>,
    pub grace: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub memory: Option<Text>,
    pub cpus: Option<Spanned<f64>>,
    pub open_files: Option<Spanned<u64>>,
    pub tasks: Option<Spanned<u64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Logs {
    pub max_size: Option<Text>,
    pub keep: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Backup {
    pub directory: Option<Text>,
    pub schedule: Option<Text>,
    pub keep: Option<Spanned<u32>>,
}

/// `shards = 8` or `shards = "auto"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shards {
    Count(u32),
    Auto,
}

impl<'de> Deserialize<'de> for Shards {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Shards;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of shards, or \"auto\"")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Shards, E> {
                u32::try_from(value)
                    .map(Shards::Count)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Shards, E> {
                if value == "auto" {
                    Ok(Shards::Auto)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(value), &self))
                }
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}
