//! The processes of all hosts as one: what the coordinator sees, and how its orders get there.
//!
//! ```text
//!   coordinator ──► Hosts ──┬──► Local ──► supervisor, workers, vault      (this host)
//!                     ▲     └──► Remote ── gRPC, mutual TLS ──► Service ──► Local   (another host)
//!                     │                        │
//!                     └── Picture ◄── Follow ──┘ Feed
//! ```
//!
//! - [`gate`]: whose orders count; the epoch of the coordinator, on disk.
//! - [`local`]: carries orders out on this host, whoever gave them.
//! - [`feed`]: the state of this host, numbered, for those who follow it; [`service`]: its gRPC side.
//! - [`seen`]: what another host has told; pure. `remote`: the connection to it.
//! - [`handle`]: [`Hosts`], which joins them. [`picture`]: what it shows.
//! - [`assigned`]: which host has which process, in the store.
//! - `wire`: between our types and the wire.
//!
//! `Hosts` lives as long as a term of the office. Agents that do not decide follow nobody through it.

pub mod assigned;
pub mod feed;
pub mod gate;
pub mod handle;
pub mod local;
pub mod picture;
mod remote;
pub mod seen;
pub mod service;
mod wire;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tanako_fleet::{ProcessName, ProcessSpec};
use tanako_proto::{fleet::v1::Problem, host::v1::HostUpdate};
use tokio::time::timeout;
use tonic::{Streaming, transport::Channel};

pub use self::{
    gate::Gate,
    handle::Hosts,
    local::Local,
    picture::{HostPicture, Link, Picture},
};
use crate::{
    peers::Peers,
    problem::{said, with_sources},
    supervisor::Desired as Wanted,
    worker::duties,
};

/// Largest message between agents: a host of a thousand processes, with its specs.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// How long an order may take to be taken, tries over a lost connection included.
pub const ORDER_WITHIN: Duration = Duration::from_secs(20);
/// How long one try of it may take.
const TRY_WITHIN: Duration = Duration::from_secs(5);
/// How long after an order its effect may take to be seen.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

/// How to reach the agent of another host.
pub trait Dial: Send + Sync + 'static {
    /// A channel to it, with the identity of this agent; or why there is none.
    fn channel<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Channel, String>>;
}

impl Dial for Peers {
    fn channel<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Channel, String>> {
        Box::pin(async move {
            let channel = Self::channel(self, host).await;
            channel.map_err(|error| with_sources(&error))
        })
    }
}

/// The next thing that a host says of itself; or why nothing more comes. `silence_max`: how long it may say
/// nothing, while there is a sign of life each second.
pub async fn next_update(
    stream: &mut Streaming<HostUpdate>,
    silence_max: Duration,
) -> Result<HostUpdate, String> {
    match timeout(silence_max, stream.message()).await {
        Ok(Ok(Some(update))) => Ok(update),
        Ok(Ok(None)) => Err("its agent ended the stream".to_owned()),
        Ok(Err(status)) => Err(said(&status)),
        Err(_) => Err(format!("silent for {} s", silence_max.as_secs())),
    }
}

/// Reaches nobody: the fleet is this one machine, or this agent is no member of a fleet of hosts.
#[derive(Debug, Clone, Copy)]
pub struct Nobody;

impl Dial for Nobody {
    fn channel<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Channel, String>> {
        Box::pin(async { Err("this agent has no way to other hosts".to_owned()) })
    }
}

/// What the coordinator orders.
#[derive(Debug, Clone)]
pub enum Order {
    /// There is this process, and it shall run or not. Its next attempt has a higher number than the
    /// last field says.
    Define(Arc<ProcessSpec>, Wanted, u64),
    /// Start it.
    Start(ProcessName),
    /// Stop it.
    Stop(ProcessName),
    /// Replace this attempt of it; nothing, where another is the latest.
    Restart(ProcessName, u64),
    /// Stop it and drop it.
    Forget(ProcessName),
    /// The same, for it is another host's now: its sessions go too.
    Depart(ProcessName),
    /// The sessions of the first process belong to the second one of the same host, of which this is
    /// the attempt.
    Handover(ProcessName, ProcessName, u64),
    /// Take in the sessions of a process that its last host copied to the store.
    Recall(ProcessName),
    /// These processes and no others belong to the host.
    Assigned(Assigned),
    /// The sessions of a set of shards that is no more.
    ForgetSessions(String, u32),
    /// What processes do with their shards; who is not named is active.
    Duties(BTreeMap<String, duties::Assignment>),
}

/// What belongs to a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assigned {
    /// Version of the assignment.
    pub version: u64,
    /// Its processes.
    pub processes: Vec<ProcessName>,
    /// Those of the fleet that are other hosts'.
    pub elsewhere: Vec<ProcessName>,
}

impl Order {
    /// The process that it is about.
    pub fn process(&self) -> Option<&ProcessName> {
        match self {
            Self::Define(spec, ..) => Some(&spec.name),
            Self::Start(name)
            | Self::Stop(name)
            | Self::Restart(name, _)
            | Self::Forget(name)
            | Self::Depart(name)
            | Self::Handover(_, name, _)
            | Self::Recall(name) => Some(name),
            Self::Assigned(_) | Self::ForgetSessions(..) | Self::Duties(_) => None,
        }
    }
}

/// Why an order was not carried out.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OrderError {
    /// No host has the process.
    #[error("{0} is assigned to no host; `tanakoctl status` shows the hosts that take processes")]
    Homeless(ProcessName),
    /// The host did not answer in time.
    #[error("host {host} does not answer: {why}")]
    Away {
        /// The host.
        host: Arc<str>,
        /// What was last heard.
        why: String,
    },
    /// A newer order about the same process was given meanwhile.
    #[error("a newer order about {0} was given meanwhile")]
    Overtaken(ProcessName),
    /// The host has begun another tenure than the one that the order was meant for.
    #[error("the host was lost for a moment, and begins anew")]
    Past,
    /// The host follows a newer coordinator.
    #[error("the host follows a newer coordinator (epoch {seen}, this is {epoch})")]
    Stale {
        /// Of the order.
        epoch: u64,
        /// The newest that the host has seen.
        seen: u64,
    },
    /// The host refused.
    #[error("{}{}", .0.message, if .0.cause.is_empty() { String::new() } else { format!(": {}", .0.cause) })]
    Refused(Box<Problem>),
}

impl OrderError {
    /// Whether the same order may be carried out later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Away { .. } | Self::Past => true,
            Self::Refused(problem) => problem.retryable,
            Self::Homeless(_) | Self::Overtaken(_) | Self::Stale { .. } => false,
        }
    }

    /// What a request that depends on it gets.
    pub fn problem(&self, object: &str) -> Problem {
        let problem = match self {
            Self::Refused(problem) => return (**problem).clone(),
            Self::Away { .. } => Problem::new("host-unreachable", object, self.to_string()).hint(
                "see whether the host and its agent run (`tanakoctl status`); it goes on by itself when they do",
            ),
            Self::Stale { .. } => Problem::new("stale-epoch", object, self.to_string())
                .hint("ask again: another agent decides now"),
            Self::Past => Problem::new("stale-tenure", object, self.to_string())
                .hint("ask again: the coordinator learns of it in a moment"),
            Self::Homeless(_) => Problem::new("no-host", object, self.to_string())
                .hint("add a host, or uncordon one"),
            Self::Overtaken(_) => Problem::new("conflict", object, self.to_string()),
        };
        if self.is_retryable() || matches!(self, Self::Stale { .. }) {
            problem.retryable()
        } else {
            problem
        }
    }
}
