//! Writes this host's own part of its record whenever that has changed.

use std::sync::Arc;

use tanako_store::{Backoff, Store, StoreError, Txn};
use tokio::sync::watch;

use super::{HostRecord, Own, RETRY, host_key};
use crate::clock::now_ms;

pub(super) async fn announce(store: Arc<dyn Store>, mut own: watch::Receiver<Own>) {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        let wanted = own.borrow_and_update().clone();
        match write(&*store, &wanted).await {
            Ok(true) => {
                backoff.reset();
                if own.changed().await.is_err() {
                    return;
                }
            }
            // Somebody else wrote at the same time.
            Ok(false) => tokio::time::sleep(backoff.pause()).await,
            Err(error) => {
                tracing::debug!(%error, "this host is not announced yet");
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

/// One try; whether the record says what it should.
async fn write(store: &dyn Store, own: &Own) -> Result<bool, StoreError> {
    let key = host_key(&own.name);
    let item = store.get(&key).await?;
    let revision = item.as_ref().map_or(0, |item| item.mod_revision);
    let before = item.and_then(|item| {
        serde_json::from_slice::<HostRecord>(&item.value)
            .inspect_err(
                |error| tracing::warn!(%error, key, "a record that cannot be read is replaced"),
            )
            .ok()
    });
    let record = own.merged(before.clone(), now_ms());
    if before.as_ref() == Some(&record) {
        return Ok(true);
    }
    let value = serde_json::to_vec(&record).map_err(|_| StoreError::Invalid("a host's record"))?;
    let txn = Txn::new().if_unchanged(&key, revision).put(&key, value);
    Ok(store.commit(txn).await?.committed().is_some())
}
