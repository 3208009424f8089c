//! Reads the hosts, watches them, and reads them again when their history was lost.

use std::sync::Arc;

use tanako_store::{Backoff, Store, StoreError};
use tokio::sync::watch;

use super::{HOSTS, Hosts, PRESENT, RETRY, Table};
use crate::clock::now_ms;

pub(super) async fn follow(
    store: Arc<dyn Store>,
    hosts: watch::Sender<Arc<Hosts>>,
    loaded: watch::Sender<bool>,
) {
    let mut table = Table::default();
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        match until_lost(&*store, &mut table, &hosts, &loaded, &mut backoff).await {
            StoreError::Compacted { .. } => tracing::debug!("the hosts are read anew"),
            StoreError::Closed => return,
            error => {
                tracing::debug!(%error, "the hosts cannot be followed at the moment");
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

/// Follows until the watch ends; why.
async fn until_lost(
    store: &dyn Store,
    table: &mut Table,
    hosts: &watch::Sender<Arc<Hosts>>,
    loaded: &watch::Sender<bool>,
    backoff: &mut Backoff,
) -> StoreError {
    let begin = async {
        let (records, present) = (store.list(HOSTS).await?, store.list(PRESENT).await?);
        let watches = (
            store.watch(HOSTS, records.revision + 1).await?,
            store.watch(PRESENT, present.revision + 1).await?,
        );
        Ok::<_, StoreError>((records, present, watches))
    };
    let (records, present, (mut of_records, mut of_presence)) = match begin.await {
        Ok(begun) => begun,
        Err(error) => return error,
    };
    backoff.reset();
    table.load(records.items, present.items, now_ms());
    publish(hosts, table);
    loaded.send_replace(true);
    loop {
        let batch = tokio::select! {
            batch = of_records.next() => batch,
            batch = of_presence.next() => batch,
        };
        match batch {
            Ok(batch) => {
                for event in batch.events {
                    table.apply(event, now_ms());
                }
                publish(hosts, table);
            }
            Err(error) => return error,
        }
    }
}

fn publish(hosts: &watch::Sender<Arc<Hosts>>, table: &Table) {
    hosts.send_if_modified(|hosts| {
        let changed = **hosts != *table.hosts();
        if changed {
            *hosts = Arc::new(table.hosts().clone());
        }
        changed
    });
}
