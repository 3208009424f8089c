//! What was typed: flags and environment. [`crate::config`] makes sense of it.

use std::path::PathBuf;

use clap::Parser;

/// The Tanako bot: security and utilities for Discord servers.
///
/// Holds one or more shards of one application. Under a Tanako agent everything comes from the
/// environment; by hand, or under any other supervisor, the flags below do.
#[derive(Parser, Debug)]
#[command(
    name = "tanako-bot",
    version,
    after_help = "Examples:
  tanako-bot --token-file discord.token                       one shard
  tanako-bot --token-file discord.token --shards 0,1 --shard-count 4
  tanako-bot … --db-nodes node1=ws://127.0.0.1:7101 --db-token-file db.token

Signals: SIGTERM or SIGINT finishes running commands, then closes the session so that it can be
resumed. A second one leaves at once.

Exit codes: 0 stopped as asked · 1 error · 2 usage or unusable token file ·
  78 Discord refuses this configuration (token, intents or shards); restarting does not help"
)]
pub struct Args {
    /// File with the bot token, readable by its owner only.
    #[arg(long, env = "TANAKO_TOKEN_FILE", value_name = "PATH")]
    pub token_file: Option<PathBuf>,

    /// Shards of this process, separated by commas.
    #[arg(
        long = "shards",
        env = "SHARD_IDS",
        value_name = "IDS",
        value_delimiter = ','
    )]
    pub shard_ids: Vec<u32>,

    /// Number of shards of the bot.
    #[arg(long, env = "SHARD_COUNT", value_name = "N")]
    pub shard_count: Option<u32>,

    /// Base of Discord's REST API, without /api/v10. Default: Discord.
    #[arg(long, env = "TANAKO_API_URL", value_name = "URL")]
    pub api_url: Option<String>,

    /// Gateway. Default: what /gateway/bot says, or Discord.
    #[arg(long, env = "TANAKO_GATEWAY_URL", value_name = "URL")]
    pub gateway_url: Option<String>,

    /// Database nodes, separated by commas: NAME=ws://HOST:PORT. Without any, commands that need the
    /// database say so.
    #[arg(long, env = "TANAKO_DB_NODES", value_name = "NODES")]
    pub db_nodes: Option<String>,

    /// File with the token of the database.
    #[arg(long, env = "TANAKO_DB_TOKEN_FILE", value_name = "PATH")]
    pub db_token_file: Option<PathBuf>,

    /// Gateway intents as a number. Default: guilds and guild messages. Add 2 (guild members, a
    /// privileged intent) to keep member counts current.
    #[arg(long, env = "TANAKO_INTENTS", value_name = "BITS")]
    pub intents: Option<u64>,

    /// Longest wait for running commands when stopping, in seconds.
    #[arg(long, env = "TANAKO_DRAIN_SECONDS", value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u16).range(0..=600))]
    pub drain_seconds: u16,

    /// Worker socket of the agent. Set by the agent.
    #[arg(long, env = "TANAKO_SOCKET", value_name = "PATH", hide = true)]
    pub socket: Option<PathBuf>,

    /// Name of this process. Set by the agent.
    #[arg(long, env = "TANAKO_PROCESS", value_name = "NAME", hide = true)]
    pub process: Option<String>,

    /// Attempt of this process. Set by the agent.
    #[arg(long, env = "TANAKO_ATTEMPT", value_name = "N", hide = true)]
    pub attempt: Option<u64>,

    /// Log lines as JSON.
    #[arg(long, env = "TANAKO_LOG_JSON")]
    pub log_json: bool,
}
