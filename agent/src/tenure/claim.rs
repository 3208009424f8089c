//! The transactions of a tenure.

use std::time::Duration;

use tanako_fleet::tenure::Terms;
use tanako_store::{KeyValue, LeaseId, Store, StoreError, Txn};

use super::now;
use crate::{
    clock::now_ms,
    registry::{HostRecord, Presence, host_key, present_key},
};

/// What became of a claim.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// The key is this host's.
    Taken {
        lease: LeaseId,
        /// When the lease was asked for, or prolonged.
        sent_at: u64,
        /// As stored.
        stay: u32,
        /// Revision at which the key came into being.
        taken_at: u64,
    },
    /// Not now: the key of another tenure is there, or something has changed in between.
    Wait,
    /// The tenure was ended for good.
    Released,
}

/// What is claimed.
pub(super) struct Wanted<'a> {
    pub(super) host: &'a str,
    /// Name of the tenure.
    pub(super) instance: &'a str,
    /// Tenures of this host that are over, and whose processes are gone.
    pub(super) over: &'a [String],
    pub(super) ttl: Duration,
    pub(super) stay: u32,
    /// The key of a tenure that goes on, not of a new one.
    pub(super) again: bool,
}

/// Takes the key, under a lease of its own.
pub(super) async fn take(store: &dyn Store, wanted: &Wanted<'_>) -> Result<Claim, StoreError> {
    let (host, present) = (host_key(wanted.host), present_key(wanted.host));
    let Some(item) = store.get(&host).await? else {
        // It has yet to be announced.
        return Ok(Claim::Wait);
    };
    let mut record = read(&item);
    if wanted.again && (record.tenure.instance != wanted.instance || record.tenure.released) {
        return Ok(Claim::Released);
    }
    if let Some(known) = store.get(&present).await? {
        let presence: Presence = serde_json::from_slice(&known.value).unwrap_or_default();
        let lease = known.lease.unwrap_or(presence.lease);
        if presence.instance == wanted.instance {
            // Taken before, and the answer was lost.
            let sent_at = now();
            store.keep_alive(lease).await?;
            let stay = record.tenure.stay;
            return Ok(Claim::Taken {
                lease,
                sent_at,
                stay,
                taken_at: known.create_revision,
            });
        }
        if !wanted.over.contains(&presence.instance) {
            return Ok(Claim::Wait);
        }
        store.revoke(lease).await?;
    }
    let sent_at = now();
    let lease = store.grant(wanted.ttl).await?;
    if !wanted.again {
        record.tenure = Terms {
            instance: wanted.instance.to_owned(),
            ttl_ms: u64::try_from(wanted.ttl.as_millis()).unwrap_or(u64::MAX),
            stay: wanted.stay,
            released: false,
        };
    }
    let presence = Presence {
        instance: wanted.instance.to_owned(),
        lease,
        since: now_ms(),
    };
    let txn = Txn::new()
        .if_unchanged(&host, item.mod_revision)
        .if_absent(&present)
        .put(&host, encode(&record)?)
        .put_leased(&present, encode(&presence)?, lease);
    let stay = record.tenure.stay;
    if let Some(taken_at) = store.commit(txn).await?.committed() {
        return Ok(Claim::Taken {
            lease,
            sent_at,
            stay,
            taken_at,
        });
    }
    // Otherwise it ends by itself.
    let _ = store.revoke(lease).await;
    Ok(Claim::Wait)
}

/// The revision at which the key of a tenure came into being; 0 = it is not there.
pub(super) async fn found(
    store: &dyn Store,
    host: &str,
    instance: &str,
) -> Result<u64, StoreError> {
    let item = store.get(&present_key(host)).await?;
    Ok(item.map_or(0, |item| {
        let presence: Presence = serde_json::from_slice(&item.value).unwrap_or_default();
        if presence.instance == instance {
            item.create_revision
        } else {
            0
        }
    }))
}

/// Writes [`Terms::stay`]; whether it is stored.
pub(super) async fn store_stay(
    store: &dyn Store,
    host: &str,
    instance: &str,
    stay: u32,
) -> Result<bool, StoreError> {
    let key = host_key(host);
    let Some(item) = store.get(&key).await? else {
        return Ok(false);
    };
    let mut record = read(&item);
    if record.tenure.instance != instance || record.tenure.released {
        return Ok(false);
    }
    record.tenure.stay = stay;
    let txn = Txn::new()
        .if_unchanged(&key, item.mod_revision)
        .put(&key, encode(&record)?);
    Ok(store.commit(txn).await?.committed().is_some())
}

/// Ends a tenure for good, if the host is still gone and its record is as it was at `revision`.
pub(super) async fn release(
    store: &dyn Store,
    host: &str,
    instance: &str,
    revision: u64,
) -> Result<bool, StoreError> {
    let (key, present) = (host_key(host), present_key(host));
    let Some(item) = store.get(&key).await? else {
        return Ok(false);
    };
    let mut record = read(&item);
    if item.mod_revision != revision || record.tenure.instance != instance {
        return Ok(false);
    }
    record.tenure.released = true;
    let txn = Txn::new()
        .if_unchanged(&key, revision)
        .if_absent(&present)
        .put(&key, encode(&record)?);
    Ok(store.commit(txn).await?.committed().is_some())
}

/// A record that cannot be read is written anew.
fn read(item: &KeyValue) -> HostRecord {
    serde_json::from_slice(&item.value).unwrap_or_default()
}

fn encode(value: &impl serde::Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|_| StoreError::Invalid("a host's record"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tanako_store::embedded::{EmbeddedStore, Options};

    use super::*;

    fn wanted<'a>(instance: &'a str, over: &'a [String], again: bool) -> Wanted<'a> {
        Wanted {
            host: "a",
            instance,
            over,
            ttl: Duration::from_secs(600),
            stay: 2,
            again,
        }
    }

    async fn terms(store: &dyn Store) -> (Terms, u64) {
        let item = store
            .get(&host_key("a"))
            .await
            .expect("reads")
            .expect("there");
        (read(&item).tenure, item.mod_revision)
    }

    #[tokio::test]
    async fn one_tenure_at_a_time_and_none_after_its_release() {
        let dir = tempfile::tempdir().expect("a directory");
        let opened = EmbeddedStore::open(dir.path(), &Options::default()).expect("opens");
        let store: Arc<dyn Store> = Arc::new(opened);
        let claim = async |wanted: Wanted<'_>| take(&*store, &wanted).await.expect("answers");
        assert_eq!(
            claim(wanted("1", &[], false)).await,
            Claim::Wait,
            "not announced"
        );
        let record = HostRecord {
            cordoned: true,
            ..HostRecord::default()
        };
        let txn = Txn::new().put(host_key("a"), encode(&record).expect("encodes"));
        store.commit(txn).await.expect("writes");
        let Claim::Taken { lease, stay, .. } = claim(wanted("1", &[], false)).await else {
            panic!("free");
        };
        assert_eq!(stay, 2);
        // The same again, as after a lost answer; another one has to wait.
        let again = claim(wanted("1", &[], false)).await;
        assert!(matches!(again, Claim::Taken { lease: same, .. } if same == lease));
        assert_eq!(claim(wanted("2", &[], false)).await, Claim::Wait);
        assert!(store_stay(&*store, "a", "1", 3).await.expect("answers"));
        assert!(!store_stay(&*store, "a", "2", 9).await.expect("answers"));
        let (known, revision) = terms(&*store).await;
        assert_eq!((known.instance.as_str(), known.stay), ("1", 3));
        // Present: it cannot be released. Gone: it can be taken again until it is released.
        assert!(!release(&*store, "a", "1", revision).await.expect("answers"));
        store.revoke(lease).await.expect("revokes");
        let Claim::Taken { lease, stay, .. } = claim(wanted("1", &[], true)).await else {
            panic!("nobody has ended it");
        };
        assert_eq!(stay, 3);
        store.revoke(lease).await.expect("revokes");
        assert!(
            !release(&*store, "a", "1", revision).await.expect("answers"),
            "changed since"
        );
        let (_, revision) = terms(&*store).await;
        assert!(release(&*store, "a", "1", revision).await.expect("answers"));
        assert_eq!(claim(wanted("1", &[], true)).await, Claim::Released);
        // A new one begins as itself.
        assert!(matches!(
            claim(wanted("2", &[], false)).await,
            Claim::Taken { .. }
        ));
        let (known, _) = terms(&*store).await;
        assert_eq!((known.instance.as_str(), known.released), ("2", false));
        // The next agent of this host need not wait for what it knows to be over.
        let over = ["2".to_owned()];
        assert!(matches!(
            claim(wanted("3", &over, false)).await,
            Claim::Taken { .. }
        ));
        let item = store
            .get(&host_key("a"))
            .await
            .expect("reads")
            .expect("there");
        assert!(read(&item).cordoned);
    }
}
