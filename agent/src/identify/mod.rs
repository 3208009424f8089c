//! The identify broker: the one way to an IDENTIFY on this fleet.
//!
//! The decisions are [`tanako_fleet::identify`]'s; here they are carried out. One task owns the
//! ledger and its timer. A permit is given out only after its record is in the store; while the store
//! cannot be written, or takes nothing from this agent because another leads, nobody gets one (a
//! RESUME needs none).
//!
//! - `task`: the loop. `outbox`: what waits for the store.
//! - `journal`: the ledger in the store.
//! - `gate`: bots that identify on their own.
//! - `away`: permits of another agent, while that one holds the office. `counter`: where it is asked.
//! - `report`: the state and the news, for people.

pub mod away;
#[cfg(test)]
mod away_tests;
mod clock;
mod counter;
mod gate;
mod journal;
mod outbox;
mod report;
mod task;
#[cfg(test)]
mod tests;
mod through;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tanako_fleet::{
    ProcessName,
    identify::{Input, ReportedLimits, Request, RequestId, Via},
};
use tanako_proto::{fleet::v1 as fleet, worker::v1::GatewayLimits};
use tanako_store::Store;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    away::News,
    clock::Clock,
    journal::Journal,
    report::free_text,
    task::{Message, Task},
};
pub use self::{
    away::{Office, Upstream},
    counter::{Counter, Places},
    journal::JournalError,
    through::{Dial, Through},
};
use crate::{clock::boot_ms, history::History, http::Addresses, metrics::Latency};

/// Messages that wait for the task; a sender waits when there are more.
const INBOX_MAX: usize = 1024;

/// What the broker stands on.
#[derive(Clone)]
pub struct Config {
    /// Holds the ledger. Of all agents that share it, at most one may write at a time: give it
    /// fenced by the leader's election, or with nobody else.
    pub store: Arc<dyn Store>,
    /// Names this agent so that no two that live have the same name: host and data directory.
    pub identity: String,
}

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
    /// The latest permit of this shard, where it came too late and has not been used, nor will be.
    pub unused: Option<u64>,
}

/// Leave to send one IDENTIFY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit {
    /// Rising number.
    pub number: u64,
    /// IDENTIFY must go out before this moment, in milliseconds on CLOCK_BOOTTIME.
    pub until_boot_ms: i64,
    /// IDENTIFYs left today, the reserve included.
    pub remaining: u32,
}

/// Why there is no permit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcquireError {
    /// The day's budget is spent down to the reserve.
    #[error("the IDENTIFY budget of {bot} is spent down to the reserve; {}", free_text(*free_at))]
    Exhausted {
        /// The bot.
        bot: String,
        /// When the next one is free, milliseconds since 1970; unset when the reserve is all.
        free_at: Option<i64>,
    },
    /// A newer attempt of the process asks.
    #[error("a newer attempt of the process has taken its place")]
    Superseded,
    /// Too many wait, or the agent is stopping.
    #[error("the identify broker takes no more requests: {0}")]
    Unavailable(&'static str),
}

/// Handle to the broker; cheap to clone.
#[derive(Debug, Clone)]
pub struct Broker {
    inbox: mpsc::Sender<Message>,
    /// Requests whose askers are gone. At most one for each request that the inbox let in, so it
    /// needs no bound of its own; a drop cannot wait.
    gone: mpsc::UnboundedSender<RequestId>,
    next_id: Arc<AtomicU64>,
    status: watch::Receiver<Arc<fleet::IdentifyStatus>>,
    latency: Arc<Latency>,
    /// Where foreign bots ask, once that is known.
    queue: Arc<OnceLock<Addresses>>,
    /// Who gives the permits of a fleet of hosts; unset = always this agent.
    upstream: Arc<OnceLock<Away>>,
}

/// Another agent may hold the office.
struct Away {
    upstream: Arc<dyn Upstream>,
    news: mpsc::Sender<News>,
}

impl std::fmt::Debug for Away {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Away").finish_non_exhaustive()
    }
}

impl Broker {
    /// Starts the broker. Where the store does not answer yet it gives no permits until it does.
    pub async fn start(
        config: Config,
        history: History,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) -> Self {
        let (inbox, inbox_rx) = mpsc::channel(INBOX_MAX);
        let (gone, gone_rx) = mpsc::unbounded_channel();
        let (status_tx, status) = watch::channel(Arc::default());
        let latency = Arc::new(Latency::new());
        let journal = Journal::new(config.store);
        let known = match journal.bots().await {
            Ok(bots) => bots,
            Err(error) => {
                // Each is found when its spec or one of its shards speaks of it.
                tracing::warn!(error = %error, "identify ledgers cannot be listed");
                std::collections::BTreeSet::new()
            }
        };
        let clock = Clock::new(&config.identity);
        let task = Task::new(clock, history, Arc::clone(&latency), status_tx);
        tracker.spawn(task.run(known, journal, inbox_rx, gone_rx, cancel));
        Self {
            inbox,
            gone,
            next_id: Arc::new(AtomicU64::new(1)),
            status,
            latency,
            queue: Arc::default(),
            upstream: Arc::default(),
        }
    }

    /// Foreign bots that ask do it at these addresses. Say it once, before anything is started.
    pub fn set_queue(&self, addresses: Addresses) {
        if self.queue.set(addresses).is_err() {
            tracing::error!("the identify queue was set twice");
        }
    }

    /// The bots of the current spec. Bots that are gone keep their ledger.
    pub async fn configure(&self, bots: Vec<BotConfig>) {
        for bot in bots {
            self.send(Input::Configure {
                bot: bot.bot,
                max_concurrency: bot.max_concurrency,
                reserve: bot.reserve,
            })
            .await;
        }
    }

    /// Waits for a permit for a worker. Dropping the future gives up the place in the queue.
    pub async fn acquire(&self, ask: Ask) -> Result<Permit, AcquireError> {
        self.acquire_via(ask, Via::Worker).await
    }

    /// This agent is one of many: whoever holds the office gives the permits. Say it once, before
    /// anything is started.
    pub fn set_upstream(
        &self,
        upstream: Arc<dyn Upstream>,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) {
        let (news, told) = mpsc::channel(INBOX_MAX);
        let away = Away {
            upstream: Arc::clone(&upstream),
            news,
        };
        if self.upstream.set(away).is_err() {
            tracing::error!("the way to the office was set twice");
            return;
        }
        tracker.spawn(away::tell(self.clone(), upstream, told, cancel));
    }

    /// Waits for a permit that goes out this way, of whoever gives them.
    pub async fn acquire_via(&self, ask: Ask, via: Via) -> Result<Permit, AcquireError> {
        match self.upstream.get() {
            Some(away) => away::acquire(self, &*away.upstream, &ask, via).await,
            None => self.acquire_here(ask, via).await,
        }
    }

    /// The same, of this agent's own ledger.
    async fn acquire_here(&self, ask: Ask, via: Via) -> Result<Permit, AcquireError> {
        const STOPPING: AcquireError = AcquireError::Unavailable("the agent is stopping");
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        if let Some(permit) = ask.unused {
            self.send(Input::Unused {
                bot: ask.process.group().to_owned(),
                shard: ask.shard_id,
                count: ask.shard_count,
                permit,
            })
            .await;
        }
        let request = Request {
            id,
            bot: ask.process.group().to_owned(),
            process: ask.process.to_string(),
            attempt: ask.attempt,
            shard: ask.shard_id,
            count: ask.shard_count,
            via,
        };
        self.inbox
            .send(Message::Request(request, answer))
            .await
            .map_err(|_| STOPPING)?;
        let mut place = Place {
            gone: &self.gone,
            id,
            waiting: true,
        };
        let outcome = answered.await.unwrap_or(Err(STOPPING));
        place.waiting = false;
        outcome
    }

    /// What `GET /gateway/bot` said.
    pub async fn limits(&self, bot: &str, limits: GatewayLimits) {
        match self.upstream.get() {
            // The task ends with the agent only.
            Some(away) => drop(away.news.send(News::Limits(bot.to_owned(), limits)).await),
            None => self.limits_here(bot, limits).await,
        }
    }

    async fn limits_here(&self, bot: &str, limits: GatewayLimits) {
        self.send(Input::Limits {
            bot: bot.to_owned(),
            limits: ReportedLimits {
                total: limits.total,
                remaining: limits.remaining,
                reset_after_ms: limits.reset_after_ms,
                max_concurrency: limits.max_concurrency,
                recommended: limits.recommended_shards,
            },
        })
        .await;
    }

    /// The shard became ready: its latest IDENTIFY was not wasted, if it stays so.
    pub async fn ready(&self, bot: &str, shard_id: u32, shard_count: u32) {
        let Some(away) = self.upstream.get() else {
            return self.ready_here(bot, shard_id, shard_count).await;
        };
        let news = News::Ready {
            bot: bot.to_owned(),
            shard: shard_id,
            count: shard_count,
        };
        // The task ends with the agent only.
        let _ = away.news.send(news).await;
    }

    async fn ready_here(&self, bot: &str, shard_id: u32, shard_count: u32) {
        self.send(Input::Ready {
            bot: bot.to_owned(),
            shard: shard_id,
            count: shard_count,
        })
        .await;
    }

    /// The shard's latest IDENTIFY went out so long ago.
    pub async fn sent(&self, bot: &str, shard_id: u32, shard_count: u32, ago: Duration) {
        let ago = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
        let at = boot_ms().saturating_sub(ago);
        let Some(away) = self.upstream.get() else {
            return self.sent_here(bot, shard_id, shard_count, at).await;
        };
        let news = News::Sent {
            bot: bot.to_owned(),
            shard: shard_id,
            count: shard_count,
            at,
        };
        // The task ends with the agent only.
        let _ = away.news.send(news).await;
    }

    async fn sent_here(&self, bot: &str, shard: u32, count: u32, at: i64) {
        self.send(Input::Sent {
            bot: bot.to_owned(),
            shard,
            count,
            at,
        })
        .await;
    }

    /// Budget and queue, as `tanakoctl identify` shows them.
    pub fn status(&self) -> watch::Receiver<Arc<fleet::IdentifyStatus>> {
        self.status.clone()
    }

    /// How long permits were waited for.
    pub fn latency(&self) -> Arc<Latency> {
        Arc::clone(&self.latency)
    }

    async fn send(&self, input: Input) {
        // A broker that has stopped decides nothing any more.
        let _ = self.inbox.send(Message::Input(input)).await;
    }
}

/// A place in the queue, given up when dropped.
struct Place<'a> {
    gone: &'a mpsc::UnboundedSender<RequestId>,
    id: RequestId,
    waiting: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.waiting {
            // A broker that has stopped has no queue any more.
            let _ = self.gone.send(self.id);
        }
    }
}
