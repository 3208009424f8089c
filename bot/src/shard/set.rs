//! All shards of the process, as one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;
use twilight_gateway::{Config, ConfigBuilder, Intents};

use super::duty::Terms;
use super::task::{self, GatewayUrl, ShardOrder, ShardSetup, StoredSession};
use super::{ShardStatus, Stage};
use crate::identify::{Gate, Held, ShardQueue};
use crate::services::Services;
use crate::token::Token;

/// Orders waiting for a shard.
const ORDERS_MAX: usize = 16;

/// What a set of shards is made of.
pub struct SetSetup<'a> {
    /// Numbers of the shards.
    pub ids: &'a [u32],
    /// Of how many.
    pub count: u32,
    /// The bot's token.
    pub token: &'a Token,
    /// Intents.
    pub intents: Intents,
    /// Where to connect.
    pub url: GatewayUrl,
    /// Where permits come from.
    pub gate: Gate,
    /// Everything that handlers use.
    pub services: &'a Arc<Services>,
    /// Wakes whoever reports.
    pub nudge: &'a Arc<Notify>,
    /// Owns the shards' tasks and those that wait for permits.
    pub tasks: &'a TaskTracker,
}

/// Tells the shards what to do and shows what they say.
pub struct ShardSet {
    members: Vec<Member>,
}

struct Member {
    id: u32,
    orders: mpsc::Sender<ShardOrder>,
    status: watch::Receiver<ShardStatus>,
}

impl ShardSet {
    /// Starts a task for each shard; none of them works before [`Self::work`].
    pub fn start(setup: &SetSetup<'_>, stage: Stage) -> Self {
        // One TLS configuration for all shards and all their connections.
        let base: Config<()> = ConfigBuilder::new(setup.token.expose().to_owned(), setup.intents)
            .queue(())
            .build();
        let members = setup
            .ids
            .iter()
            .map(|id| {
                let (events, gate) = mpsc::channel(16);
                let (orders, orders_rx) = mpsc::channel(ORDERS_MAX);
                let queue = ShardQueue {
                    gate: setup.gate.clone(),
                    shard_count: setup.count,
                    events,
                    armed: Arc::default(),
                    held: Held::default(),
                    tasks: setup.tasks.clone(),
                };
                let (status_tx, status) = watch::channel(ShardStatus {
                    id: *id,
                    count: setup.count,
                    stage,
                    ..ShardStatus::default()
                });
                setup.tasks.spawn(task::run(ShardSetup {
                    id: *id,
                    count: setup.count,
                    gateway: ConfigBuilder::from(base.clone()).queue(queue).build(),
                    url: setup.url.clone(),
                    gate,
                    orders: orders_rx,
                    services: Arc::clone(setup.services),
                    status: status_tx,
                    nudge: Arc::clone(setup.nudge),
                }));
                Member {
                    id: *id,
                    orders,
                    status,
                }
            })
            .collect();
        Self { members }
    }

    /// What the shards say.
    pub fn statuses(&self) -> Vec<watch::Receiver<ShardStatus>> {
        self.members
            .iter()
            .map(|member| member.status.clone())
            .collect()
    }

    async fn tell(&self, id: u32, order: ShardOrder) {
        if let Some(member) = self.members.iter().find(|member| member.id == id) {
            // Tasks end after the last order only.
            let _ = member.orders.send(order).await;
        }
    }

    /// Sets all to work, with these sessions.
    pub async fn work(&self, mut sessions: BTreeMap<u32, StoredSession>, terms: Terms) {
        for member in &self.members {
            let stored = sessions.remove(&member.id);
            self.tell(member.id, ShardOrder::Work { stored, terms })
                .await;
        }
    }

    /// Tells all to stand down. The first future ends when the final deposits are published, the second when the
    /// connections are closed as well.
    pub async fn stand_down(
        &self,
        within: Duration,
    ) -> (
        impl Future<Output = ()> + use<>,
        impl Future<Output = ()> + use<>,
    ) {
        let (mut all_quiesced, mut all_closed) = (Vec::new(), Vec::new());
        for member in &self.members {
            let (quiesced, when_quiesced) = oneshot::channel();
            let (closed, when_closed) = oneshot::channel();
            all_quiesced.push(when_quiesced);
            all_closed.push(when_closed);
            let order = ShardOrder::StandDown {
                within,
                quiesced,
                closed,
            };
            self.tell(member.id, order).await;
        }
        (ended(all_quiesced), ended(all_closed))
    }

    /// The sessions have another holder now.
    pub async fn release(&self) {
        for member in &self.members {
            self.tell(member.id, ShardOrder::Release).await;
        }
    }

    /// New terms for all. The future gives the newest handled time; none when a shard stood down meanwhile.
    pub async fn share(&self, terms: Terms) -> impl Future<Output = Option<i64>> + use<> {
        let mut answers = Vec::new();
        for member in &self.members {
            let (done, answer) = oneshot::channel();
            answers.push(answer);
            self.tell(member.id, ShardOrder::Share { terms, done })
                .await;
        }
        async move {
            let mut newest = 0;
            for answer in answers {
                newest = newest.max(answer.await.ok()?);
            }
            Some(newest)
        }
    }

    /// Replaces a connection. False when there is no such shard.
    pub async fn reconnect(&self, id: u32, identify: bool, why: String) -> bool {
        self.tell(id, ShardOrder::Reconnect { identify, why }).await;
        self.members.iter().any(|member| member.id == id)
    }

    /// Returns once every shard is fatal.
    pub fn all_fatal(&self) -> impl Future<Output = ()> + use<> {
        until_all(self.statuses(), |status| status.stage == Stage::Fatal)
    }
}

async fn ended(parts: Vec<oneshot::Receiver<()>>) {
    for part in parts {
        // A task that is gone has nothing more to say.
        let _ = part.await;
    }
}

/// Returns once the question was true of every shard, one after the other.
pub async fn until_all(
    statuses: Vec<watch::Receiver<ShardStatus>>,
    question: impl Fn(&ShardStatus) -> bool,
) {
    for mut status in statuses {
        if status.wait_for(|status| question(status)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
