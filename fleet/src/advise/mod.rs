//! What a fleet should have: shards, hosts, database nodes; from figures, with reasons. Pure.
//!
//! - [`advise`] looks at [`Facts`] and says what it would change, and what it cannot know.
//! - [`Standing`] remembers for how long something has been so. A figure has two thresholds: above the one a
//!   proposal begins to stand, below the other it falls, and both only after a while, so that a figure
//!   that swings around a threshold never makes a proposal come and go.
//! - [`due`] decides whether the fleet may act on one by itself, within the bounds that the operator set.
//!
//! The thresholds are stated with their reasons where they are defined.

mod act;
mod rules;
mod standing;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use act::{Acted, DAY_MS, due};
pub use rules::advise;
pub use standing::Standing;

/// What is known of a fleet. `None` = not known: nothing is guessed in its place.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Its bots.
    pub bots: Vec<BotFacts>,
    /// Its hosts.
    pub hosts: Vec<HostFacts>,
    /// Its database nodes.
    pub nodes: Vec<NodeFacts>,
    /// What a rebalance would find.
    pub balance: Option<Balance>,
}

/// A bot's figures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BotFacts {
    /// Its name.
    pub name: String,
    /// It speaks the worker socket: it can be resharded without a gap.
    pub worker: bool,
    /// Shards now.
    pub shards: u32,
    /// Guilds that its shards report; `None` = a bot that reports nothing.
    pub guilds: Option<u64>,
    /// How its guilds have grown.
    pub growth: Option<Growth>,
    /// Discord's recommendation; 0 = not heard yet.
    pub recommended: u32,
    /// IDENTIFYs that may be spent now without touching the reserve.
    pub identifies: Option<u32>,
    /// Mean heartbeat latency of its shards.
    pub latency_ms: Option<f64>,
    /// Events a second over all of its shards.
    pub events_per_s: Option<f64>,
    /// Restarts that nobody asked for, in the last day.
    pub restarts: Option<u64>,
    /// The busiest of its processes, in percent of one core.
    pub cpu_percent: Option<f64>,
}

/// How a number of guilds has changed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Growth {
    /// A day.
    pub per_day: f64,
    /// Seen over so many days.
    pub days: f64,
}

/// A host's figures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostFacts {
    /// Its name.
    pub name: String,
    /// Takes processes: present, neither cordoned nor draining.
    pub open: bool,
    /// Processors; 0 = unknown.
    pub cpus: u32,
    /// Of all of its processors.
    pub cpu_percent: Option<f64>,
    /// Memory of its processes.
    pub used_bytes: Option<u64>,
    /// Memory in use by anyone, and in all.
    pub memory_bytes: Option<(u64, u64)>,
}

/// A database node's figures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// The slowest hundredth of its reads.
    pub read_p99_ms: Option<f64>,
    /// The slowest hundredth of its writes.
    pub write_p99_ms: Option<f64>,
}

/// What a rebalance would find and do.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Balance {
    /// Load of the fullest host over the mean.
    pub fullest: f64,
    /// Processes that would move.
    pub moves: u32,
}

/// What is proposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Change {
    /// A bot should have another number of shards.
    Reshard {
        /// The bot.
        bot: String,
        /// Shards now.
        from: u32,
        /// Shards proposed.
        to: u32,
        /// It can be done while the bot runs.
        live: bool,
    },
    /// Processes should change hosts.
    Rebalance {
        /// How many.
        moves: u32,
    },
    /// There should be more hosts.
    Hosts {
        /// Now.
        from: u32,
        /// Proposed.
        to: u32,
    },
    /// There should be more database nodes.
    Nodes {
        /// Now.
        from: u32,
        /// Proposed.
        to: u32,
    },
}

impl Change {
    /// Names the proposal whatever its figures are.
    pub fn key(&self) -> String {
        match self {
            Self::Reshard { bot, .. } => format!("reshard {bot}"),
            Self::Rebalance { .. } => "rebalance".to_owned(),
            Self::Hosts { .. } => "hosts".to_owned(),
            Self::Nodes { .. } => "nodes".to_owned(),
        }
    }

    /// For people.
    pub fn words(&self) -> String {
        match self {
            Self::Reshard { bot, from, to, .. } => {
                format!("reshard {bot} from {from} to {to} shards")
            }
            Self::Rebalance { moves: 1 } => "rebalance: 1 process would move".to_owned(),
            Self::Rebalance { moves } => format!("rebalance: {moves} processes would move"),
            Self::Hosts { from, to } => format!("have {to} hosts instead of {from}"),
            Self::Nodes { from, to } => format!("have {to} database nodes instead of {from}"),
        }
    }

    /// How it is done.
    pub fn how(&self) -> String {
        match self {
            Self::Reshard {
                bot,
                to,
                live: true,
                ..
            } => format!("tanakoctl reshard {bot} --shards {to}"),
            Self::Reshard { bot, to, .. } => {
                format!("tanakoctl stop {bot}, shards = {to} in fleet.toml, tanakoctl apply")
            }
            Self::Rebalance { .. } => "tanakoctl rebalance".to_owned(),
            Self::Hosts { .. } => {
                "tanakoctl join-token --host NAME, then tanakoctl rebalance".to_owned()
            }
            Self::Nodes { .. } => {
                "add a [[database.node]] to fleet.toml, then tanakoctl apply".to_owned()
            }
        }
    }
}

/// How much it presses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Urgency {
    /// Something breaks, or has begun to.
    Now,
    /// Within weeks.
    Soon,
    /// It would be better.
    Later,
}

impl Urgency {
    /// The word users see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Now => "now",
            Self::Soon => "soon",
            Self::Later => "later",
        }
    }
}

/// One proposal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proposal {
    /// What.
    pub change: Change,
    /// How much it presses.
    pub urgency: Urgency,
    /// Why, with figures.
    pub reasons: Vec<String>,
}

/// What a fleet should change, and what is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// Most pressing first.
    pub proposals: Vec<Proposal>,
    /// Odd, and nothing that more of anything would cure.
    pub notes: Vec<String>,
    /// What could not be judged, and why.
    pub unknown: Vec<String>,
}
