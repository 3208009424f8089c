//! Holds this host's lease and the key that is there while it lives.

use std::{sync::Arc, time::Duration};

use tanako_store::{Backoff, LeaseId, Store, StoreError, Txn};

use super::{Presence, RETRY, present_key};
use crate::clock::now_ms;

pub(super) async fn hold(store: Arc<dyn Store>, host: Arc<str>, ttl: Duration) {
    let instance = format!("{:032x}", fastrand::u128(..));
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        match take(&*store, &host, &instance, ttl).await {
            Ok(Some(lease)) => {
                backoff.reset();
                keep(&*store, lease, ttl).await;
            }
            // The lease of this host's last agent has yet to end.
            Ok(None) => tokio::time::sleep(backoff.pause()).await,
            Err(error) => {
                tracing::debug!(%error, "this host has no lease yet");
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

async fn take(
    store: &dyn Store,
    host: &str,
    instance: &str,
    ttl: Duration,
) -> Result<Option<LeaseId>, StoreError> {
    let key = present_key(host);
    if let Some(item) = store.get(&key).await? {
        let known: Presence = serde_json::from_slice(&item.value).unwrap_or_default();
        return Ok((known.instance == instance).then_some(known.lease));
    }
    let lease = store.grant(ttl).await?;
    let presence = Presence {
        instance: instance.to_owned(),
        lease,
        since: now_ms(),
    };
    let value =
        serde_json::to_vec(&presence).map_err(|_| StoreError::Invalid("a host's presence"))?;
    let txn = Txn::new().if_absent(&key).put_leased(&key, value, lease);
    Ok(store.commit(txn).await?.committed().map(|_| lease))
}

/// Until the lease has ended.
async fn keep(store: &dyn Store, lease: LeaseId, ttl: Duration) {
    loop {
        tokio::time::sleep(ttl / 5).await;
        match store.keep_alive(lease).await {
            Ok(()) => {}
            Err(StoreError::NoLease(_)) => return,
            Err(error) => tracing::debug!(%error, "the lease of this host was not prolonged"),
        }
    }
}
