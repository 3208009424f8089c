//! Foreign bots: they identify on their own, so their starts are spaced instead.

use std::{collections::HashMap, sync::Arc};

use futures_util::future::{BoxFuture, try_join_all};
use tanako_fleet::{ProcessName, ProcessSpec};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Ask, Broker};
use crate::supervisor::{StartGate, Table};

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
            })
            .collect();
        Box::pin(async move {
            // Dropping the future, when the process is stopped, drops every place in the queue.
            try_join_all(asks.into_iter().map(|ask| broker.acquire(ask)))
                .await
                .map(drop)
                .map_err(|error| error.to_string())
        })
    }
}

impl Broker {
    /// Watches gated processes become ready, which shows that their IDENTIFYs were not wasted.
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
            loop {
                let processes = table.borrow_and_update().clone();
                told.retain(|name, _| processes.contains_key(name));
                for (name, process) in processes.iter().filter(|(_, p)| p.spec.gated && p.ready) {
                    if told.insert(name.clone(), process.attempt) == Some(process.attempt) {
                        continue;
                    }
                    for shard in &process.spec.shard_ids {
                        broker
                            .ready(name.group(), *shard, process.spec.shard_count)
                            .await;
                    }
                }
                tokio::select! {
                    () = cancel.cancelled() => return,
                    changed = table.changed() => if changed.is_err() { return },
                }
            }
        });
    }
}
