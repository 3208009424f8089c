//! What a new tenure begins with: what is not assigned to this host is stopped and forgotten before
//! anything is started.

use std::collections::BTreeSet;

use serde::Deserialize;
use tanako_fleet::ProcessName;
use tanako_store::{Store, StoreError};

use super::{Parts, reap::is_owned};
use crate::supervisor::SupervisorError;

/// Where the assignment of a host is.
fn key(host: &str) -> String {
    format!("assignment/{host}")
}

#[derive(Deserialize)]
struct Stored {
    processes: BTreeSet<ProcessName>,
}

/// The processes of a host; `None` = it never had any.
async fn assigned(
    store: &dyn Store,
    host: &str,
) -> Result<Option<BTreeSet<ProcessName>>, StoreError> {
    let item = store.get(&key(host)).await?;
    Ok(item.and_then(|item| {
        let read = serde_json::from_slice::<Stored>(&item.value);
        read.inspect_err(
            |error| tracing::error!(%error, "the assignment of this host cannot be read"),
        )
        .ok()
        .map(|stored| stored.processes)
    }))
}

/// Forgets what is another host's by now; the names of what is.
pub(super) async fn forget_strangers(
    parts: &Parts,
    host: &str,
) -> Result<Vec<ProcessName>, StoreError> {
    let Some(own) = assigned(&*parts.store, host).await? else {
        return Ok(Vec::new());
    };
    let table = parts.supervisor.status().borrow().clone();
    let strangers: Vec<ProcessName> = table
        .keys()
        .filter(|name| is_owned(name) && !own.contains(name))
        .cloned()
        .collect();
    for name in &strangers {
        match parts.supervisor.forget(name).await {
            Ok(()) | Err(SupervisorError::Unknown(_)) => {}
            Err(error) => tracing::warn!(process = %name, %error, "it is not forgotten"),
        }
    }
    Ok(strangers)
}
