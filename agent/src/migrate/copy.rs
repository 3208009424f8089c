//! All that a store holds for good into another, and compared afterwards. What lives with a lease stays
//! behind: it belongs to those who hold it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tanako_store::{Outcome, Store, StoreError, Txn, ops_max, value_bytes_max};

/// Says in the target whose copy lies there, and whether it is whole.
pub const MARK: &str = "migration";

/// What [`MARK`] says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// Names the store that is copied.
    source: String,
    whole: bool,
}

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// Keys.
    pub keys: u64,
    /// Bytes of their values.
    pub bytes: u64,
}

/// Why nothing was copied, or not all.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The target is somebody's.
    #[error("{keys} keys lie there already, {first} among them")]
    NotEmpty {
        /// How many.
        keys: usize,
        /// One of them.
        first: String,
    },
    /// Somebody else writes there.
    #[error("another agent writes there: {0} has changed meanwhile")]
    Raced(String),
    /// What arrived is not what was sent.
    #[error("{0} is not there as it was sent")]
    Different(String),
    /// A store does not do what it should.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

/// What would be copied, where it can be.
pub async fn look(from: &dyn Store, to: &dyn Store, source: &str) -> Result<Copied, CopyError> {
    free(to, source).await?;
    Ok(sum(&lasting(from).await?))
}

/// Copies. Nobody may write to `from` meanwhile. What an earlier try for the same source left is replaced.
pub async fn copy(from: &dyn Store, to: &dyn Store, source: &str) -> Result<Copied, CopyError> {
    let left = free(to, source).await?;
    let mark = |whole| {
        serde_json::to_vec(&Mark {
            source: source.to_owned(),
            whole,
        })
        .unwrap_or_default()
    };
    // From here on nobody else takes the place for empty.
    let revision = to.get(MARK).await?.map_or(0, |item| item.mod_revision);
    let claim = Txn::new()
        .if_unchanged(MARK, revision)
        .put(MARK, mark(false));
    let claimed = committed(to, claim, MARK).await?;
    for keys in left.chunks(ops_max() / 2) {
        let txn = keys.iter().fold(guarded(claimed), Txn::delete);
        committed(to, txn, MARK).await?;
    }
    let all = lasting(from).await?;
    let (mut txn, mut ops, mut bytes) = (guarded(claimed), 0, 0);
    for (key, value) in &all {
        if ops > 0 && (ops + 1 >= ops_max() / 2 || bytes + value.len() > value_bytes_max() / 2) {
            committed(to, std::mem::replace(&mut txn, guarded(claimed)), key).await?;
            (ops, bytes) = (0, 0);
        }
        txn = txn.put(key, value.clone());
        (ops, bytes) = (ops + 1, bytes + value.len());
    }
    if ops > 0 {
        committed(to, txn, MARK).await?;
    }
    let mut there = lasting(to).await?;
    there.remove(MARK);
    if let Some(key) = differing(&all, &there) {
        return Err(CopyError::Different(key));
    }
    let done = guarded(claimed).put(MARK, mark(true));
    committed(to, done, MARK).await?;
    Ok(sum(&all))
}

/// Nothing is written once another has marked the place as its own.
fn guarded(claimed: u64) -> Txn {
    Txn::new().if_unchanged(MARK, claimed)
}

async fn committed(store: &dyn Store, txn: Txn, what: &str) -> Result<u64, CopyError> {
    match store.commit(txn).await? {
        Outcome::Committed { revision } => Ok(revision),
        Outcome::Conflict { .. } => Err(CopyError::Raced(what.to_owned())),
    }
}

/// The keys that an earlier try for this source has left; an error where the place is another's.
async fn free(to: &dyn Store, source: &str) -> Result<Vec<String>, CopyError> {
    let listing = to.list("").await?;
    let own = listing
        .items
        .iter()
        .find(|item| item.key == MARK)
        .and_then(|item| serde_json::from_slice::<Mark>(&item.value).ok())
        .is_some_and(|mark| mark.source == source);
    let others: Vec<String> = listing
        .items
        .into_iter()
        .map(|item| item.key)
        .filter(|key| key != MARK || !own)
        .collect();
    match others.first() {
        Some(first) if !own => Err(CopyError::NotEmpty {
            keys: others.len(),
            first: first.clone(),
        }),
        _ => Ok(others),
    }
}

type Lasting = BTreeMap<String, bytes::Bytes>;

async fn lasting(store: &dyn Store) -> Result<Lasting, StoreError> {
    let listing = store.list("").await?;
    let items = listing
        .items
        .into_iter()
        .filter(|item| item.lease.is_none());
    Ok(items.map(|item| (item.key, item.value)).collect())
}

fn sum(all: &Lasting) -> Copied {
    Copied {
        keys: all.len() as u64,
        bytes: all.values().map(|value| value.len() as u64).sum(),
    }
}

fn differing(sent: &Lasting, there: &Lasting) -> Option<String> {
    let missing = sent
        .iter()
        .find(|(key, value)| there.get(*key) != Some(value));
    let extra = there.keys().find(|key| !sent.contains_key(*key));
    missing.map(|(key, _)| key).or(extra).cloned()
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc, time::Duration};

    use tanako_store::embedded::{EmbeddedStore, Options};

    use super::*;
    use crate::migrate::valve::Valve;

    fn store(dir: &Path, name: &str) -> Arc<dyn Store> {
        Arc::new(EmbeddedStore::open(&dir.join(name), &Options::default()).expect("a store"))
    }

    async fn put(store: &dyn Store, key: &str, value: Vec<u8>) {
        let txn = Txn::new().put(key, value);
        store
            .commit(txn)
            .await
            .expect("writes")
            .committed()
            .expect("no condition");
    }

    #[tokio::test]
    async fn all_that_lasts_is_there_and_a_second_try_replaces_the_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (store(dir.path(), "from"), store(dir.path(), "to"));
        for n in 0..400 {
            put(&*from, &format!("a/{n}"), vec![7; 5_000]).await;
        }
        put(&*from, "empty", Vec::new()).await;
        let lease = from.grant(Duration::from_secs(600)).await.expect("a lease");
        let leased = Txn::new().put_leased("coordinator", "me", lease);
        from.commit(leased).await.expect("writes");
        assert_eq!(look(&*from, &*to, "one").await.expect("fits").keys, 401);
        assert!(
            to.list("").await.expect("lists").items.is_empty(),
            "only looked"
        );
        let copied = copy(&*from, &*to, "one").await.expect("copies");
        assert_eq!((copied.keys, copied.bytes), (401, 2_000_000));
        assert!(to.get("coordinator").await.expect("reads").is_none());
        // The agent died before it used it; meanwhile things have changed.
        from.commit(Txn::new().delete("a/3").put("b", "new"))
            .await
            .expect("writes");
        let again = copy(&*from, &*to, "one").await.expect("copies again");
        assert_eq!(again.keys, 401);
        assert!(to.get("a/3").await.expect("reads").is_none());
        assert!(to.get("b").await.expect("reads").is_some());
        // Another store's agent keeps off.
        let other = copy(&*from, &*to, "two").await.expect_err("it is taken");
        assert!(matches!(other, CopyError::NotEmpty { .. }), "{other}");
    }

    #[tokio::test]
    async fn what_is_in_use_is_not_touched() {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (store(dir.path(), "from"), store(dir.path(), "to"));
        put(&*from, "desired", b"x".to_vec()).await;
        put(&*to, "desired", b"another fleet".to_vec()).await;
        for refused in [
            look(&*from, &*to, "one").await.expect_err("refused"),
            copy(&*from, &*to, "one").await.expect_err("refused"),
        ] {
            assert!(refused.to_string().contains("desired"), "{refused}");
        }
        let there = to.get("desired").await.expect("reads").expect("there");
        assert_eq!(&there.value[..], b"another fleet");
        assert_eq!(to.list("").await.expect("lists").items.len(), 1);
    }

    #[tokio::test]
    async fn nothing_is_written_behind_a_shut_valve() {
        let dir = tempfile::tempdir().expect("a directory");
        let valve = Valve::new(store(dir.path(), "s"));
        put(&valve, "a", b"1".to_vec()).await;
        let shut = valve.shut(Duration::from_secs(60)).await.expect("in time");
        let refused = valve.commit(Txn::new().put("a", "2")).await;
        assert!(
            matches!(refused, Err(StoreError::Unavailable(_))),
            "{refused:?}"
        );
        assert!(valve.get("a").await.expect("reads").is_some());
        drop(shut);
        put(&valve, "a", b"2".to_vec()).await;
    }
}
