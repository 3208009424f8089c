//! Bots that identify on their own: their starts are spaced, or they ask before each IDENTIFY.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, try_join_all};
use tanako_fleet::{ProcessName, ProcessSpec, identify::Via};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Ask, Broker};
use crate::supervisor::{StartGate, Table};

/// A process that asks over HTTP reports no shard. While it is ready, each of its shards that has
/// identified is taken to be ready within this time; what dies sooner shows by asking again.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Tells a process where to ask.
const QUEUE_VARIABLE: &str = "TANAKO_IDENTIFY_QUEUE";

impl StartGate for Broker {
    /// One permit for each shard of the process, before it starts.
    fn acquire(&self, spec: &ProcessSpec, attempt: u64) -> BoxFuture<'static, Result<(), String>> {
        let broker = self.clone();
        let asks: Vec<Ask> = spec
            .shard_ids
            .iter()
            .map(|shard_id| Ask {
                process: spec.name.clone(),
                attempt,
                shard_id: *shard_id,
                shard_count: spec.shard_count,
                unused: None,
            })
            .collect();
        Box::pin(async move {
            // Dropping the future, when the process is stopped, drops every place in the queue.
            try_join_all(
                asks.into_iter()
                    .map(|ask| broker.acquire_via(ask, Via::Start)),
            )
            .await
            .map(drop)
            .map_err(|error| error.to_string())
        })
    }

    /// Where the process asks, if it does.
    fn environment(&self, spec: &ProcessSpec, attempt: u64) -> Vec<(&'static str, String)> {
        self.queue
            .get()
            .filter(|_| spec.identify_queue)
            .map(|addresses| (QUEUE_VARIABLE, addresses.of(&spec.name, attempt)))
            .into_iter()
            .collect()
    }
}

impl Broker {
    /// Watches foreign processes become ready, which shows that their IDENTIFYs were not wasted.
    /// (Workers say so themselves, shard by shard.)
    pub(crate) fn follow(
        &self,
        mut table: watch::Receiver<Arc<Table>>,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) {
        let broker = self.clone();
        tracker.spawn(async move {
            let mut told: HashMap<ProcessName, u64> = HashMap::new();
            let mut look = tokio::time::interval(LOOK_EVERY);
            look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                let looked = tokio::select! {
                    () = cancel.cancelled() => return,
                    changed = table.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        false
                    }
                    _ = look.tick() => true,
                };
                let processes = table.borrow_and_update().clone();
                told.retain(|name, _| processes.contains_key(name));
                for (name, process) in processes.iter().filter(|(_, p)| p.ready) {
                    let spec = &process.spec;
                    let news = spec.gated
                        && told.insert(name.clone(), process.attempt) != Some(process.attempt);
                    let asks = spec.identify_queue && looked;
                    for shard in spec.shard_ids.iter().filter(|_| news || asks) {
                        broker.ready(name.group(), *shard, spec.shard_count).await;
                    }
                }
            }
        });
    }
}
