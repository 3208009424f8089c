//! The serial numbers of certificates that do not count any more.
//!
//! They are keys under `revoked/` in the store. Every agent watches them, so that a revocation holds
//! everywhere at once, and keeps the last known list on disk, so that it also holds while the store does
//! not answer. A number is dropped once its certificate would have ended anyway.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tanako_pki::{Serial, write_private};
use tanako_store::{Backoff, Event, KeyValue, Store, StoreError};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::operations::ledger::{decode, encode};

/// Where they are in the store.
pub const PREFIX: &str = "revoked/";
/// Pauses while the store does not answer.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Why and when a certificate was revoked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// Whose it was.
    pub name: String,
    /// Its role, for lists.
    pub role: String,
    /// Milliseconds since 1970.
    pub at: i64,
    /// Who revoked it.
    pub by: String,
    /// When it would have ended, in milliseconds since 1970.
    pub not_after: i64,
}

/// All of them.
pub type Revocations = BTreeMap<Serial, Revocation>;

/// The revoked serial numbers, as far as this agent knows; clones are cheap.
#[derive(Debug, Clone)]
pub struct Revoked {
    known: watch::Receiver<Arc<Revocations>>,
}

impl Revoked {
    /// None, ever: one machine has no certificates.
    pub fn none() -> Self {
        Self::fixed(Revocations::new())
    }

    /// These, and no others.
    pub fn fixed(list: Revocations) -> Self {
        let (_, known) = watch::channel(Arc::new(list));
        Self { known }
    }

    /// Begins with what `file` holds and follows the store.
    pub fn start(
        store: Arc<dyn Store>,
        file: PathBuf,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) -> Self {
        let (publish, known) = watch::channel(Arc::new(read(&file)));
        tracker.spawn(cancel.run_until_cancelled_owned(follow(store, file, publish)));
        Self { known }
    }

    /// Whether that certificate does not count any more.
    pub fn contains(&self, serial: &Serial) -> bool {
        self.known.borrow().contains_key(serial)
    }

    /// All of them now.
    pub fn all(&self) -> Arc<Revocations> {
        self.known.borrow().clone()
    }

    /// They, as a value that changes.
    pub fn watch(&self) -> watch::Receiver<Arc<Revocations>> {
        self.known.clone()
    }
}

/// Key of one.
pub fn key(serial: &Serial) -> String {
    format!("{PREFIX}{serial}")
}

/// Value of one.
pub fn value(revocation: &Revocation) -> Vec<u8> {
    encode(revocation)
}

fn serial_of(key: &str) -> Option<Serial> {
    Serial::try_from(key.strip_prefix(PREFIX)?.to_owned()).ok()
}

/// A record that cannot be read revokes all the same.
fn entry(item: &KeyValue) -> Option<(Serial, Revocation)> {
    let revocation = decode(&item.key, &item.value).unwrap_or_default();
    Some((serial_of(&item.key)?, revocation))
}

fn read(file: &Path) -> Revocations {
    match std::fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::error!(file = %file.display(), %error, "the list of revoked certificates cannot be read");
            Revocations::new()
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Revocations::new(),
        Err(error) => {
            tracing::error!(file = %file.display(), %error, "the list of revoked certificates cannot be read");
            Revocations::new()
        }
    }
}

async fn follow(store: Arc<dyn Store>, file: PathBuf, publish: watch::Sender<Arc<Revocations>>) {
    let mut backoff = Backoff::new(PAUSE_FIRST, PAUSE_MAX);
    loop {
        match follow_once(&*store, &file, &publish, &mut backoff).await {
            Ok(()) => {}
            Err(error) => tracing::debug!(%error, "revoked certificates are not followed"),
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

async fn follow_once(
    store: &dyn Store,
    file: &Path,
    publish: &watch::Sender<Arc<Revocations>>,
    backoff: &mut Backoff,
) -> Result<(), StoreError> {
    let listing = store.list(PREFIX).await?;
    let mut list: Revocations = listing.items.iter().filter_map(entry).collect();
    show(&list, file, publish).await;
    let mut watch = store.watch(PREFIX, listing.revision + 1).await?;
    backoff.reset();
    loop {
        for event in watch.next().await?.events {
            match event {
                Event::Put(item) => {
                    list.extend(entry(&item));
                }
                Event::Delete { key, .. } => {
                    if let Some(serial) = serial_of(&key) {
                        list.remove(&serial);
                    }
                }
            }
        }
        show(&list, file, publish).await;
    }
}

/// Shows the list first, then writes it down: it must hold at once.
async fn show(list: &Revocations, file: &Path, publish: &watch::Sender<Arc<Revocations>>) {
    let changed = publish.send_if_modified(|known| {
        let changed = **known != *list;
        if changed {
            *known = Arc::new(list.clone());
        }
        changed
    });
    if !changed {
        return;
    }
    let written = {
        let (bytes, file) = (
            serde_json::to_vec(list).unwrap_or_default(),
            file.to_owned(),
        );
        tokio::task::spawn_blocking(move || write_private(&file, &bytes)).await
    };
    if let Ok(Err(error)) = written {
        tracing::error!(
            error = crate::problem::with_sources(&error),
            "the list of revoked certificates is not on disk"
        );
    }
}
