//! `fleet.toml`: the desired state of a fleet, as the operator writes it.
//!
//! [`parse`] turns the text into a [`Spec`] or says, with file, line, reason and hint, everything
//! that is wrong with it. What was typed lives in `raw`, what it means here; [`Spec::processes`]
//! resolves it down to the units that an agent supervises.

mod check;
mod error;
mod placing;
mod raw;
mod resolve;
mod value;

use std::{collections::BTreeMap, time::Duration};

pub use error::{SpecError, SpecProblem};
pub use resolve::{Generation, Layout, Places};
use serde::Serialize;
pub use value::{format_bytes, format_duration, parse_bytes, parse_duration};

pub use placing::{Act, Advise, BotPlacement, HostCapacity};

use crate::process::{Limits, LogPolicy, Probe, RestartPolicy, StopPolicy};

/// Desired state of a fleet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spec {
    /// Name of the fleet: lower-case letters, digits, dashes.
    pub name: String,
    /// Production fleets look different and ask twice.
    pub production: bool,
    /// What is said of hosts. A host is of the fleet because it has joined, whether it stands here or not.
    pub hosts: Vec<Host>,
    /// Bots by name.
    pub bots: BTreeMap<String, Bot>,
    /// The guild database, if there is one.
    pub database: Option<Database>,
    /// Where backups go and when they are made.
    pub backup: Backup,
    /// What the fleet may do about its own advice.
    pub advise: Advise,
    /// What is odd but not wrong, one line each.
    pub warnings: Vec<String>,
}

/// A machine of the fleet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Where its agent answers; unset on a one-machine fleet.
    pub address: Option<String>,
    /// For placement: added to those that its agent was given, and stronger.
    pub labels: BTreeMap<String, String>,
    /// What it can hold, as far as the operator says.
    pub capacity: HostCapacity,
}

/// A bot: one program, sharded over one or more processes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bot {
    /// Program and arguments.
    pub command: Vec<String>,
    /// File with the bot's token.
    pub token_file: Option<String>,
    /// Shards in all.
    pub shards: u32,
    /// `shards = "auto"`: the count is the fleet's to propose, and `shards` only where it begins.
    pub auto_shards: bool,
    /// Guilds that the spec reckons with.
    pub guilds: Option<u64>,
    /// Shards each process holds; the last may hold fewer.
    pub shards_per_process: u32,
    /// Speaks the worker socket: asks for IDENTIFY permits and keeps its sessions with the agent.
    pub worker: bool,
    /// Sends IDENTIFY on its own, so that its starts are spaced by the identify broker.
    pub identifies: bool,
    /// Asks the agent over HTTP before each IDENTIFY, so that its starts need no spacing.
    pub identify_queue: bool,
    /// Variable that gets the token, for bots that read it from there.
    pub token_env: Option<String>,
    /// Variable that gets the database's URI with its token, for bots of the original protocol.
    pub db_uri_env: Option<String>,
    /// Discord's REST base without `/api/v10`; unset = Discord.
    pub api_url: Option<String>,
    /// Gateway; unset = what `/gateway/bot` says.
    pub gateway_url: Option<String>,
    /// Hint until `/gateway/bot` has answered.
    pub max_concurrency: u32,
    /// IDENTIFYs that are never spent automatically; unset = a tenth of the total.
    pub identify_reserve: Option<u32>,
    /// How long a type of event must be missing from a shard, while its siblings still get it, before
    /// something is done about that; `None` = nothing is.
    pub silent: Option<Duration>,
    /// Variables whose value depends on the instance, with `{shard_ids}` and the like replaced.
    pub shard_env: BTreeMap<String, String>,
    /// Where its processes may run, and how much load one is.
    pub placement: BotPlacement,
    /// How its processes run.
    pub run: Run,
}

/// How processes of one kind run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    /// Working directory.
    pub directory: Option<String>,
    /// Plain variables.
    pub env: BTreeMap<String, String>,
    /// Variables read from files.
    pub secret_env: BTreeMap<String, String>,
    /// When they count as ready.
    pub probe: Probe,
    /// How long that may take.
    pub ready_timeout: Duration,
    /// Silence that means hung.
    pub watchdog: Option<Duration>,
    /// When they are started again.
    pub restart: RestartPolicy,
    /// How they are stopped.
    pub stop: StopPolicy,
    /// What they may use.
    pub limits: Limits,
    /// How much output is kept.
    pub logs: LogPolicy,
}

/// The guild database.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Database {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Its nodes.
    pub nodes: Vec<Node>,
    /// File with the token that clients and peers show.
    pub token_file: String,
    /// Memory in which a node keeps what it has read, in bytes.
    pub cache_bytes: u64,
    /// How its processes run.
    pub run: Run,
}

/// A database node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Node {
    /// Its name: `node1`.
    pub name: String,
    /// Address and port it listens on.
    pub listen: String,
    /// Share of the guilds, relative to the others; at most [`WEIGHT_MAX`](crate::ring::WEIGHT_MAX).
    pub weight: u32,
    /// The host that it lives on, with its data; unset = the one host there is.
    pub host: Option<String>,
}

impl Node {
    /// Where clients reach it.
    pub fn url(&self) -> String {
        format!("ws://{}", self.listen)
    }
}

/// Backups.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Backup {
    /// Directory; unset = `backups` in the agent's data directory.
    pub directory: Option<String>,
    /// Minute of the day (UTC) at which one is made; unset = only by hand.
    pub schedule_minute: Option<u32>,
    /// How many are kept.
    pub keep: u32,
}

/// Reads a spec. `file_name` is for messages only.
pub fn parse(text: &str, file_name: &str) -> Result<Spec, SpecError> {
    match toml::from_str::<raw::Document>(text) {
        Ok(raw) => check::check(raw).map_err(|problems| SpecError::new(text, file_name, problems)),
        Err(error) => Err(SpecError::new(
            text,
            file_name,
            vec![SpecProblem::from_toml(&error)],
        )),
    }
}

#[cfg(test)]
mod tests;
