//! Leader election over any [`Store`]: whoever creates the key holds the office for as long as its
//! lease lives. The key's creation revision fences: a transaction that compares it fails once
//! somebody else has been elected, however late it arrives.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    Store, StoreError,
    model::{Condition, Event, LeaseId, Outcome, Revision, Txn},
};

/// Proof of having been elected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leadership {
    /// The key of the office.
    pub key: String,
    /// The lease that must be kept alive.
    pub lease: LeaseId,
    /// Rises with each election.
    pub fencing: Revision,
}

impl Leadership {
    /// The transaction, but only while this leadership lasts.
    pub fn fence(&self, txn: Txn) -> Txn {
        txn.when(self.key.clone(), Condition::CreateRevision(self.fencing))
    }

    /// Leaves the office at once.
    pub async fn resign(self, store: &dyn Store) -> Result<(), StoreError> {
        match store.revoke(self.lease).await {
            Ok(()) | Err(StoreError::NoLease(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Waits until elected. `who` is what [`leader`] tells the others. Dropping the future gives up; a
/// lease granted for it then ends by itself.
pub async fn campaign(
    store: &Arc<dyn Store>,
    key: &str,
    who: &str,
    ttl: Duration,
) -> Result<Leadership, StoreError> {
    loop {
        // A lease per attempt: one that waited for hours would have ended.
        let lease = store.grant(ttl).await?;
        let txn = Txn::new()
            .if_absent(key)
            .put_leased(key, Bytes::from(who.to_owned()), lease);
        match store.commit(txn).await {
            Ok(Outcome::Committed { revision }) => {
                return Ok(Leadership {
                    key: key.to_owned(),
                    lease,
                    fencing: revision,
                });
            }
            Ok(Outcome::Conflict { revision }) => {
                store.revoke(lease).await?;
                wait_until_vacant(store, key, revision).await?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Who holds the office now.
pub async fn leader(store: &dyn Store, key: &str) -> Result<Option<String>, StoreError> {
    Ok(store
        .get(key)
        .await?
        .map(|item| String::from_utf8_lossy(&item.value).into_owned()))
}

async fn wait_until_vacant(
    store: &Arc<dyn Store>,
    key: &str,
    seen: Revision,
) -> Result<(), StoreError> {
    let mut watch = match store.watch(key, seen + 1).await {
        Ok(watch) => watch,
        // So much has happened since that the question is asked anew.
        Err(StoreError::Compacted { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    if store.get(key).await?.is_none() {
        return Ok(());
    }
    loop {
        match watch.next().await {
            Ok(batch) => {
                let vacant = batch
                    .events
                    .iter()
                    .any(|event| matches!(event, Event::Delete { key: gone, .. } if gone == key));
                if vacant {
                    return Ok(());
                }
            }
            Err(StoreError::Compacted { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
