//! The identify broker: the one way to an IDENTIFY on this fleet.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tanako_fleet::ProcessName;
use tanako_proto::{fleet::v1 as fleet, worker::v1::GatewayLimits};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::history::History;

/// A bot as the broker knows it before Discord has been asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BotConfig {
    /// Name of the bot.
    pub bot: String,
    /// `max_concurrency` of the spec: a hint until `GET /gateway/bot` has been reported.
    pub max_concurrency: Option<u32>,
    /// IDENTIFYs never spent automatically; unset = a tenth of the total.
    pub reserve: Option<u32>,
}

/// Who asks for an IDENTIFY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The process; its group is the bot.
    pub process: ProcessName,
    /// Its attempt.
    pub attempt: u64,
    /// The shard.
    pub shard_id: u32,
    /// Shards of the bot in all.
    pub shard_count: u32,
}

/// Leave to send one IDENTIFY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit {
    /// Rising number.
    pub number: u64,
    /// IDENTIFY must go out within this time.
    pub valid: Duration,
    /// IDENTIFYs left today, the reserve not counted.
    pub remaining: u32,
}

/// Why there is no permit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcquireError {
    /// The day's budget is spent down to the reserve.
    #[error("the IDENTIFY budget of {bot} is spent; the next one is free at {resets_at}")]
    Exhausted {
        /// The bot.
        bot: String,
        /// Milliseconds since 1970.
        resets_at: i64,
    },
    /// A newer attempt of the process asks.
    #[error("a newer attempt of the process has taken its place")]
    Superseded,
    /// Too many wait, or the agent is stopping.
    #[error("the identify broker takes no more requests: {0}")]
    Unavailable(&'static str),
}

/// The broker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its directory cannot be used.
    #[error("identify ledger in {directory} cannot be opened")]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Handle to the broker; cheap to clone.
#[derive(Debug, Clone)]
pub struct Broker;

impl Broker {
    /// Loads the ledgers in `directory` and starts the broker.
    pub async fn start(
        directory: PathBuf,
        history: History,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) -> Result<Self, StartError> {
        todo!()
    }

    /// The bots of the current spec. Bots that are gone keep their ledger.
    pub async fn configure(&self, bots: Vec<BotConfig>) {
        todo!()
    }

    /// Waits for a permit. Dropping the future gives up the place in the queue.
    pub async fn acquire(&self, ask: Ask) -> Result<Permit, AcquireError> {
        todo!()
    }

    /// What `GET /gateway/bot` said.
    pub async fn limits(&self, bot: &str, limits: GatewayLimits) {
        todo!()
    }

    /// The shard became ready: its latest IDENTIFY was not wasted.
    pub async fn ready(&self, bot: &str, shard_id: u32) {
        todo!()
    }

    /// Budget and queue, as `tanakoctl identify` shows them.
    pub fn status(&self) -> watch::Receiver<Arc<fleet::IdentifyStatus>> {
        todo!()
    }
}
