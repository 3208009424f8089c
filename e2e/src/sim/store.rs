//! The durable store: what is committed stays. Latency, refusals and unknown outcomes are added by
//! [`SimStore::commit_in`], which the agent's shell uses.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tanako_store::{
    Condition, KeyValue, LeaseId, Listing, Op, Outcome, Revision, Store, StoreError, Txn, Watch,
};

use super::{trace::trace, world::Sim};

#[derive(Default)]
struct Data {
    revision: Revision,
    items: BTreeMap<String, KeyValue>,
}

/// See the module's documentation.
#[derive(Default)]
pub struct SimStore {
    data: Mutex<Data>,
}

impl SimStore {
    fn lock(&self) -> MutexGuard<'_, Data> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At which revision a key was last changed; 0 = it is not there.
    pub fn revision_of(&self, key: &str) -> Revision {
        self.lock()
            .items
            .get(key)
            .map_or(0, |item| item.mod_revision)
    }

    /// Commits at once.
    pub fn apply(&self, txn: Txn) -> Result<Outcome, StoreError> {
        txn.validate()?;
        let mut data = self.lock();
        let revision = data.revision;
        let holds = txn.compares.iter().all(|compare| {
            let item = data.items.get(&compare.key);
            match compare.condition {
                Condition::Absent => item.is_none(),
                Condition::ModRevision(at) => item.is_some_and(|item| item.mod_revision == at),
                Condition::CreateRevision(at) => {
                    item.is_some_and(|item| item.create_revision == at)
                }
            }
        });
        if !holds {
            return Ok(Outcome::Conflict { revision });
        }
        if txn.ops.is_empty() {
            return Ok(Outcome::Committed { revision });
        }
        let revision = revision + 1;
        data.revision = revision;
        for op in txn.ops {
            match op {
                Op::Put { key, value, lease } => {
                    let old = data.items.get(&key);
                    let item = KeyValue {
                        key: key.clone(),
                        value,
                        create_revision: old.map_or(revision, |old| old.create_revision),
                        mod_revision: revision,
                        version: old.map_or(1, |old| old.version + 1),
                        lease,
                    };
                    data.items.insert(key, item);
                }
                Op::Delete { key } => {
                    data.items.remove(&key);
                }
            }
        }
        Ok(Outcome::Committed { revision })
    }

    /// Commits as a client sees it: later, not at all, or without knowing.
    pub async fn commit_in(sim: &Sim, txn: Txn) -> Result<Outcome, StoreError> {
        sim.sleep(sim.draw(0..=4)).await;
        if sim.weather.borrow().store_down > sim.now() {
            sim.sleep(sim.draw(1..=2_000)).await;
            trace!(sim, [1], "store: refused");
            return Err(StoreError::Unavailable("no answer".to_owned()));
        }
        if sim.chance(sim.config.disk_faults) && sim.is_busy() {
            let applied = sim.chance(500);
            if applied {
                sim.store.apply(txn)?;
                sim.touch();
            }
            sim.sleep(sim.draw(1..=3_000)).await;
            trace!(
                sim,
                [applied],
                "store: outcome unknown (applied: {applied})"
            );
            return Err(StoreError::Unavailable("the answer was lost".to_owned()));
        }
        let outcome = sim.store.apply(txn);
        sim.touch();
        sim.sleep(sim.draw(0..=4)).await;
        outcome
    }
}

impl Store for SimStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<KeyValue>, StoreError>> {
        let item = self.lock().items.get(key).cloned();
        Box::pin(std::future::ready(Ok(item)))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
        let data = self.lock();
        let items = data
            .items
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, item)| item.clone())
            .collect();
        let revision = data.revision;
        Box::pin(std::future::ready(Ok(Listing { items, revision })))
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        Box::pin(std::future::ready(self.apply(txn)))
    }

    fn watch<'a>(&'a self, _: &'a str, _: Revision) -> BoxFuture<'a, Result<Watch, StoreError>> {
        Box::pin(std::future::ready(Err(StoreError::Closed)))
    }

    fn grant(&self, _: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        Box::pin(std::future::ready(Err(StoreError::Closed)))
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(std::future::ready(Err(StoreError::NoLease(lease))))
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(std::future::ready(Err(StoreError::NoLease(lease))))
    }
}
