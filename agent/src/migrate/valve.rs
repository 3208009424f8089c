//! A store that can be made to take nothing for a while.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tanako_store::{Layer, Outcome, Store, StoreError, Txn};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock};

/// The store behind a valve; clones are cheap and equal. Reads and leases go through at all times.
#[derive(Clone)]
pub struct Valve {
    store: Arc<dyn Store>,
    open: Arc<RwLock<()>>,
    sealed: Arc<Mutex<Option<Shut>>>,
}

/// While this lives, nothing is written.
pub struct Shut(
    #[expect(dead_code, reason = "dropping it opens the valve")] OwnedRwLockWriteGuard<()>,
);

impl Valve {
    /// An open one.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            open: Arc::default(),
            sealed: Arc::default(),
        }
    }

    /// What lies behind it.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Waits for the writes under way and lets no other in; they are refused as by a store that does not
    /// answer, and tried again. Where writes do not come to an end within `limit`: `None`.
    pub async fn shut(&self, limit: Duration) -> Option<Shut> {
        let shut = Arc::clone(&self.open).write_owned();
        tokio::time::timeout(limit, shut).await.ok().map(Shut)
    }

    /// It stays shut for good: what is written from now on is written elsewhere.
    pub fn seal(&self, shut: Shut) {
        *self.sealed.lock().unwrap_or_else(PoisonError::into_inner) = Some(shut);
    }
}

impl Layer for Valve {
    fn behind(&self) -> &dyn Store {
        &*self.store
    }

    fn commit_through(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        Box::pin(async move {
            let Ok(_open) = self.open.try_read() else {
                return Err(StoreError::Unavailable(
                    "the store is being moved to etcd".to_owned(),
                ));
            };
            self.store.commit(txn).await
        })
    }
}
