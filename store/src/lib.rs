//! The durable store of a fleet, named by what the fleet needs and not by an engine: read, list at a
//! revision, compare-and-set, watch from a revision, leases, and leader election with a fencing
//! revision ([`election`]).
//!
//! [`embedded`] serves one machine with nothing installed, [`etcd`] a fleet of hosts on an existing
//! etcd; `tests/contract/` holds the suite that both pass. [`Fenced`] makes either refuse what comes
//! from an office that has passed on.
//!
//! Rules every backend keeps:
//! - One revision for the whole store. It rises with each committed transaction that changes
//!   something, the changes of one transaction share it, and it never falls, over restarts either.
//!   Others who use the same server raise it too: nobody may count on steps of one.
//! - Committed = on disk. What was acknowledged survives kill -9 and power loss.
//! - What is read is committed: nobody sees a write before it is on disk. A read sees every commit
//!   that was acknowledged before it was asked, to whomever.
//! - [`StoreError::NoSpace`], [`StoreError::Full`], [`StoreError::Fenced`] and a conflict mean that
//!   nothing was changed. After [`StoreError::Unavailable`] from [`Store::commit`] the outcome is
//!   unknown: read before retrying.
//! - No call waits for ever, except [`Watch::next`].

mod backoff;
pub mod election;
pub mod embedded;
mod error;
pub mod etcd;
mod fenced;
mod layer;
mod model;
mod watch;

use std::time::Duration;

use futures_util::future::BoxFuture;

pub use backoff::Backoff;
pub use error::StoreError;
pub use fenced::{Fence, Fenced};
pub use layer::Layer;
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
    /// listing's revision + 1. Once begun it outlives interruptions of the store by itself, and gives
    /// each revision once.
    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        from: Revision,
    ) -> BoxFuture<'a, Result<Watch, StoreError>>;

    /// A new lease: it ends `ttl` after its last keep-alive, or a few seconds later (a server rounds up
    /// to its own measure, and gives a full term after a change among its members), and the keys bound
    /// to it vanish in one revision. A restart of the store may end it at once.
    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>>;

    /// Prolongs the lease by its time to live.
    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Ends the lease now; its keys vanish in one revision.
    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>>;
}
