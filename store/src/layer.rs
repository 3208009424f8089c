//! Stores that lie in front of another one.

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::{
    Store,
    error::StoreError,
    model::{KeyValue, LeaseId, Listing, Outcome, Revision, Txn},
    watch::Watch,
};

/// A store in front of another one that decides about commits. Reads, watches and leases are those of the
/// store behind it.
pub trait Layer: Send + Sync + 'static {
    /// The store behind it.
    fn behind(&self) -> &dyn Store;

    /// What [`Store::commit`] does.
    fn commit_through(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome, StoreError>>;
}

impl<L: Layer> Store for L {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<KeyValue>, StoreError>> {
        self.behind().get(key)
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
        self.behind().list(prefix)
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        self.commit_through(txn)
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        from: Revision,
    ) -> BoxFuture<'a, Result<Watch, StoreError>> {
        self.behind().watch(prefix, from)
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        self.behind().grant(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.behind().keep_alive(lease)
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.behind().revoke(lease)
    }
}
