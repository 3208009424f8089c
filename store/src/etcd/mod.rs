//! The store of a fleet of hosts: an existing etcd, 3.4 or later.
//!
//! ```text
//! callers ──► EtcdStore ──► Servers ──► one channel an endpoint ──► etcd members
//!               │             │ deadline, failover, token
//!               │             └ says whether a failed call can have happened
//!               └─ watch: Following (reconnects by itself) around Assembly (whole revisions; pure)
//! ```
//!
//! - Keys lie under one prefix a fleet. The revision is the server's, so what others write there
//!   leaves gaps in it.
//! - Each call has a deadline. A call that cannot have reached a server, or that may be repeated, is
//!   tried on the next endpoint until then. A commit whose answer was lost is never repeated:
//!   [`StoreError::Unavailable`], the outcome is unknown.
//! - A watch outlives broken connections and restarts of the server: it resumes after the last whole
//!   revision that it has given. It ends only with [`StoreError::Compacted`] or
//!   [`StoreError::Denied`].
//! - History is dropped by the server's own auto-compaction, or by [`EtcdStore::compact`].
//! - Leases last whole seconds, at least as long as the server's minimum (2 s by default).
//!
//! The few calls that are needed are generated from `proto/etcd.proto`. The client crates at hand need
//! a system `protoc` on every machine that builds, choose among members by themselves, and do not say
//! whether a failed call was sent.

mod assembly;
mod follow;
mod options;
mod servers;
mod translate;
mod verdict;
mod wire;

use std::{fmt, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture, stream};

pub use options::{Options, OptionsError, Tls, User};

use crate::{
    Store,
    error::StoreError,
    model::{KeyValue, LeaseId, Listing, Outcome, Revision, Txn, valid_key},
    watch::Watch,
};
use follow::Following;
use servers::{Failure, Repeat, Servers};
use translate::{Keys, Pages};

/// A listing that loses its revision to compaction this often in a row is given up.
const LIST_TRIES: usize = 5;

/// The store in etcd; see the module's documentation. Clones share connections.
#[derive(Clone)]
pub struct EtcdStore {
    servers: Arc<Servers>,
    keys: Keys,
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore")
            .field("options", self.servers.options())
            .finish_non_exhaustive()
    }
}

impl EtcdStore {
    /// Checks the options and the files they name. Connects when first used, so that an agent can
    /// start while etcd is away. Must be called within a Tokio runtime.
    pub fn open(options: Options) -> Result<Self, OptionsError> {
        let keys = Keys::new(&options.prefix);
        Ok(Self {
            servers: Arc::new(Servers::new(options.checked()?)?),
            keys,
        })
    }

    /// Drops the server's history before `revision`, for all who use that server. Keeps every key's
    /// present value.
    pub async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let request = wire::CompactionRequest {
            revision: translate::signed(revision),
            physical: false,
        };
        let answer = self
            .servers
            .call("compaction", Repeat::Free, request, |peer, request| {
                Box::pin(async move { peer.kv().compact(request).await })
            })
            .await;
        match answer {
            // Somebody else was faster.
            Ok(_) | Err(Failure::Compacted) => Ok(()),
            Err(failure) => Err(failure.into_error(&self.servers, "compaction")),
        }
    }

    async fn range(
        &self,
        what: &'static str,
        request: wire::RangeRequest,
    ) -> Result<wire::RangeResponse, Failure> {
        self.servers
            .call(what, Repeat::Free, request, |peer, request| {
                Box::pin(async move { peer.kv().range(request).await })
            })
            .await
    }

    async fn list_once(&self, prefix: &str) -> Result<Listing, Failure> {
        let mut pages = Pages::new(&self.keys, prefix);
        while let Some(request) = pages.next_request() {
            match self.range("a listing", request).await {
                Ok(page) => pages.take(&self.keys, page),
                // Large values after many small ones.
                Err(Failure::Store(StoreError::TooLarge { .. })) if pages.shrink() => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(pages.finish())
    }

    /// Whether the history from `from` on is gone, as far as the server knows now.
    async fn is_compacted(&self, from: Revision) -> Result<bool, StoreError> {
        let request = wire::RangeRequest {
            key: self.keys.key(""),
            // 0 would mean the latest; nothing happens at 1.
            revision: translate::signed((from - 1).max(1)),
            count_only: true,
            ..wire::RangeRequest::default()
        };
        match self.range("a look at the history", request).await {
            // Not yet there: nothing of it can be gone.
            Ok(_) | Err(Failure::Future) => Ok(false),
            Err(Failure::Compacted) => Ok(true),
            Err(failure) => Err(failure.into_error(&self.servers, "a watch")),
        }
    }
}

impl Store for EtcdStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<KeyValue>, StoreError>> {
        async move {
            valid_key(key)?;
            let request = wire::RangeRequest {
                key: self.keys.key(key),
                ..wire::RangeRequest::default()
            };
            let answer = self.range("a read", request).await;
            let answer = answer.map_err(|failure| failure.into_error(&self.servers, "a read"))?;
            Ok(answer
                .kvs
                .into_iter()
                .next()
                .and_then(|item| self.keys.item(item)))
        }
        .boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
        async move {
            for _ in 0..LIST_TRIES {
                match self.list_once(prefix).await {
                    // Its revision was dropped between two pages: begin again with a newer one.
                    Err(Failure::Compacted) => {}
                    Ok(listing) => return Ok(listing),
                    Err(failure) => return Err(failure.into_error(&self.servers, "a listing")),
                }
            }
            Err(StoreError::Unavailable(format!(
                "{}: history is dropped faster than a listing can be read",
                self.servers
            )))
        }
        .boxed()
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        async move {
            txn.validate()?;
            let lease = translate::lease_of(&txn);
            let request = self.keys.txn(txn);
            let answer = self
                .servers
                .call("a commit", Repeat::UnlessSent, request, |peer, request| {
                    Box::pin(async move { peer.kv().txn(request).await })
                })
                .await;
            match answer {
                Ok(answer) => {
                    let revision = translate::revision(answer.header.as_ref());
                    Ok(if answer.succeeded {
                        Outcome::Committed { revision }
                    } else {
                        Outcome::Conflict { revision }
                    })
                }
                Err(Failure::NoLease) => Err(StoreError::NoLease(lease.unwrap_or_default())),
                Err(failure) => Err(failure.into_error(&self.servers, "a commit")),
            }
        }
        .boxed()
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        from: Revision,
    ) -> BoxFuture<'a, Result<Watch, StoreError>> {
        async move {
            let mut following =
                Following::begin(self.servers.clone(), self.keys.clone(), prefix, from).await?;
            // Asked too far back: say so now, not at the first change.
            if from > 0 && self.is_compacted(from).await? {
                return Err(following.refusal(from).await);
            }
            let state = Some(following);
            Ok(Watch::new(stream::unfold(state, |state| async move {
                let mut following = state?;
                match following.next().await {
                    Ok(batch) => Some((Ok(batch), Some(following))),
                    Err(error) => Some((Err(error), None)),
                }
            })))
        }
        .boxed()
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        async move {
            if ttl.is_zero() {
                return Err(StoreError::Invalid("a lease must live for some time"));
            }
            let request = wire::LeaseGrantRequest {
                ttl: translate::whole_seconds(ttl),
            };
            // One granted twice ends by itself.
            let answer = self
                .servers
                .call("a grant", Repeat::Free, request, |peer, request| {
                    Box::pin(async move { peer.lease().lease_grant(request).await })
                })
                .await
                .map_err(|failure| failure.into_error(&self.servers, "a grant"))?;
            Ok(answer.id.unsigned_abs())
        }
        .boxed()
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let request = wire::LeaseKeepAliveRequest {
                id: translate::signed(lease),
            };
            let answer = self
                .servers
                .call("a keep-alive", Repeat::Free, request, |peer, request| {
                    Box::pin(async move { servers::keep_alive_once(peer, request).await })
                })
                .await;
            match answer {
                Ok(answer) if answer.ttl > 0 => Ok(()),
                Ok(_) | Err(Failure::NoLease) => Err(StoreError::NoLease(lease)),
                Err(failure) => Err(failure.into_error(&self.servers, "a keep-alive")),
            }
        }
        .boxed()
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let request = wire::LeaseRevokeRequest {
                id: translate::signed(lease),
            };
            let answer = self
                .servers
                .call(
                    "a revocation",
                    Repeat::UnlessSent,
                    request,
                    |peer, request| {
                        Box::pin(async move { peer.lease().lease_revoke(request).await })
                    },
                )
                .await;
            match answer {
                Ok(_) => Ok(()),
                Err(Failure::NoLease) => Err(StoreError::NoLease(lease)),
                Err(failure) => Err(failure.into_error(&self.servers, "a revocation")),
            }
        }
        .boxed()
    }
}
