//! The hosts of the registry, as the hub knows them.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Hosts, core::Known};
use crate::registry::{self, Registry};

/// The registry's hosts, as a value that changes; `None` before it has been read.
pub fn of_registry(
    registry: &Registry,
    cancel: &CancellationToken,
    tracker: &TaskTracker,
) -> watch::Receiver<Hosts> {
    let (publish, hosts) = watch::channel(None);
    let registry = registry.clone();
    tracker.spawn(cancel.clone().run_until_cancelled_owned(async move {
        registry.loaded().await;
        let mut all = registry.watch();
        loop {
            let known = known(&all.borrow_and_update());
            publish.send_replace(Some(Arc::new(known)));
            if all.changed().await.is_err() {
                return;
            }
        }
    }));
    hosts
}

fn known(hosts: &registry::Hosts) -> BTreeMap<String, Known> {
    hosts
        .iter()
        .map(|(name, host)| {
            let known = Known {
                address: host.record.address.clone(),
                cordoned: host.record.cordoned,
                draining: host.record.draining,
                leased: Some(host.present.is_some()),
            };
            (name.clone(), known)
        })
        .collect()
}
