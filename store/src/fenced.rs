//! The store as the holder of an office may use it: every commit holds only while the office does.

use std::{fmt, sync::Arc};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::watch;

use crate::{
    Store,
    election::Leadership,
    error::StoreError,
    layer::Layer,
    model::{Outcome, Txn, ops_max},
};

/// What the commits made through a [`Fenced`] store have shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fence {
    /// Nothing against it.
    Holds,
    /// A commit's outcome is unknown: what its holder remembers may be wrong and must be read again.
    Uncertain,
    /// Another election has taken place, or the office is vacant. For good.
    Lost,
}

/// A store whose every commit also compares the revision at which the office was taken. A commit that
/// fails for that reason is [`StoreError::Fenced`] and has changed nothing, however late it arrives;
/// an ordinary conflict stays one.
///
/// Reads, watches and leases are those of the store behind it. One comparison of each transaction is
/// taken by the fence.
#[derive(Clone)]
pub struct Fenced {
    store: Arc<dyn Store>,
    leadership: Leadership,
    fence: watch::Sender<Fence>,
}

impl fmt::Debug for Fenced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fenced")
            .field("leadership", &self.leadership)
            .field("fence", &*self.fence.borrow())
            .finish_non_exhaustive()
    }
}

impl Fenced {
    /// `store`, for as long as `leadership` lasts.
    pub fn new(store: Arc<dyn Store>, leadership: Leadership) -> Self {
        Self {
            store,
            leadership,
            fence: watch::Sender::new(Fence::Holds),
        }
    }

    /// What the office rests on.
    pub fn leadership(&self) -> &Leadership {
        &self.leadership
    }

    /// What the commits have shown so far, as a value that changes; clones of this store share it.
    pub fn fence(&self) -> watch::Receiver<Fence> {
        self.fence.subscribe()
    }

    fn found(&self, found: Fence) {
        self.fence.send_if_modified(|fence| {
            let worse = *fence != Fence::Lost && *fence != found;
            if worse {
                *fence = found;
            }
            worse
        });
    }

    async fn commit_fenced(&self, txn: Txn) -> Result<Outcome, StoreError> {
        txn.validate()?;
        if txn.compares.len() >= ops_max() {
            return Err(StoreError::TooLarge {
                what: "the number of comparisons in a fenced transaction",
                max: ops_max() - 1,
            });
        }
        let outcome = self.store.commit(self.leadership.fence(txn)).await?;
        if let Outcome::Conflict { .. } = outcome {
            // Which comparison failed? A fence that is broken never holds again, and one that holds now
            // held then.
            let office = self.store.get(&self.leadership.key).await?;
            if office.is_none_or(|office| office.create_revision != self.leadership.fencing) {
                return Err(StoreError::Fenced {
                    key: self.leadership.key.clone(),
                });
            }
        }
        Ok(outcome)
    }
}

impl Layer for Fenced {
    fn behind(&self) -> &dyn Store {
        &*self.store
    }

    fn commit_through(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        async move {
            let outcome = self.commit_fenced(txn).await;
            match &outcome {
                Err(StoreError::Fenced { .. }) => self.found(Fence::Lost),
                Err(StoreError::Unavailable(_)) => self.found(Fence::Uncertain),
                _ => {}
            }
            outcome
        }
        .boxed()
    }
}
