//! The durable store of a fleet, named by what the fleet needs and not by an engine: read, list at a
//! revision, compare-and-set, watch from a revision, leases, and leader election with a fencing
//! revision ([`election`]).
//!
//! [`embedded`] serves one machine with nothing installed. A backend for a server that speaks the
//! same model fits behind the same trait; `tests/contract/` holds the suite that every backend passes.
//!
//! Rules every backend keeps:
//! - One revision for the whole store. It rises by exactly one with each committed transaction that
//!   changes something, and never falls, over restarts either.
//! - Committed = on disk. What was acknowledged survives kill -9 and power loss.
//! - What is read is committed: nobody sees a write before it is on disk.
//! - [`StoreError::NoSpace`] and a conflict mean that nothing was changed. After
//!   [`StoreError::Unavailable`] from [`Store::commit`] the outcome is unknown: read before retrying.

pub mod election;
pub mod embedded;
mod error;
mod model;
mod watch;

use std::time::Duration;

use futures_util::future::BoxFuture;

pub use error::StoreError;
pub use model::{
    Compare, Condition, Event, KeyValue, LeaseId, Listing, Op, Outcome, Revision, Txn, key_max,
    ops_max, value_bytes_max,
};
pub use watch::{Watch, WatchBatch};

/// A durable, watchable map from text keys to small values. See the crate's documentation.
pub trait Store: Send + Sync + 'static {
    /// The key's value now.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<KeyValue>, StoreError>>;

    /// All keys that start with `prefix`, sorted, as they were at one revision.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>>;

    /// Carries out all of the transaction's operations if all of its comparisons hold, or none.
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome, StoreError>>;

    /// Every change to keys under `prefix` whose revision is at least `from`; 0 = from now on. Fails
    /// with [`StoreError::Compacted`] when that history is gone: list again, then watch from the
    /// listing's revision + 1.
    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        from: Revision,
    ) -> BoxFuture<'a, Result<Watch, StoreError>>;

    /// A new lease: it ends `ttl` after its last keep-alive, and the keys bound to it vanish.
    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>>;

    /// Prolongs the lease by its time to live.
    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Ends the lease now; its keys vanish in one revision.
    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>>;
}
