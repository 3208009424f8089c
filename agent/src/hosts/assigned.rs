//! Which host has which process, in the store.
//!
//! `assignment` is the head: version and the one it was made from. `assignment/<host>` holds the
//! processes of one host, so that no document grows with the fleet. A change compares the head, writes
//! the hosts that it touches and moves the head, in one transaction: whoever planned from an older
//! version is refused.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tanako_fleet::{ProcessName, assignment::Assignment};
use tanako_store::{Revision, Store, StoreError, Txn};

use crate::operations::ledger::{decode, encode};

/// Key of the head.
pub const HEAD: &str = "assignment";
/// Prefix of the keys of the hosts.
pub const PREFIX: &str = "assignment/";
/// Where versions before 0.4 named the one host that had all processes.
const HOLDER: &str = "holder";

/// The head as stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Rises with each change.
    pub version: u64,
    /// The version that it was made from.
    #[serde(default)]
    pub parent: u64,
    /// The office that made it.
    #[serde(default)]
    pub epoch: u64,
}

/// The processes of one host, as stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfHost {
    /// The version in which they last changed.
    pub version: u64,
    /// Their names.
    pub processes: BTreeSet<ProcessName>,
}

/// What the store holds, and where.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// The assignment.
    pub assignment: Assignment,
    /// Revision of the head; 0 = there is none yet.
    revision: Revision,
    /// The host that had everything by an earlier version.
    pub holder: Option<String>,
}

/// Key of a host's processes.
pub fn key(host: &str) -> String {
    format!("{PREFIX}{host}")
}

/// The processes of one host; `None` = it has none, and never had.
pub async fn of_host(store: &dyn Store, host: &str) -> Result<Option<OfHost>, StoreError> {
    let key = key(host);
    let item = store.get(&key).await?;
    Ok(item.and_then(|item| decode(&key, &item.value)))
}

impl Stored {
    /// Reads it. A host whose record cannot be read counts as having none: what it has is then placed
    /// anew.
    pub async fn load(store: &dyn Store) -> Result<Self, StoreError> {
        // The head first: a change in between makes the next commit a conflict.
        let head = store.get(HEAD).await?;
        let revision = head.as_ref().map_or(0, |item| item.mod_revision);
        let head: Head = head
            .and_then(|item| decode(HEAD, &item.value))
            .unwrap_or_default();
        let mut hosts = BTreeMap::new();
        for item in store.list(PREFIX).await?.items {
            let Some(host) = item.key.strip_prefix(PREFIX) else {
                continue;
            };
            if let Some(of) = decode::<OfHost>(&item.key, &item.value) {
                hosts.insert(host.to_owned(), of.processes);
            }
        }
        let holder = if revision == 0 {
            let item = store.get(HOLDER).await?;
            item.map(|item| String::from_utf8_lossy(&item.value).into_owned())
        } else {
            None
        };
        Ok(Self {
            assignment: Assignment::new(head.version, hosts),
            revision,
            holder,
        })
    }

    /// Adds the change to `next`, decided in the office of `epoch`, to a transaction.
    pub fn commit(&self, next: &Assignment, epoch: u64, txn: Txn) -> Txn {
        let head = Head {
            version: next.version(),
            parent: self.assignment.version(),
            epoch,
        };
        let mut txn = txn
            .if_unchanged(HEAD, self.revision)
            .put(HEAD, encode(&head));
        for host in self.assignment.changed(next) {
            let of = OfHost {
                version: next.version(),
                processes: next.of(&host).cloned().collect(),
            };
            txn = txn.put(key(&host), encode(&of));
        }
        if self.holder.is_some() {
            txn = txn.delete(HOLDER);
        }
        txn
    }

    /// Remembers what has been committed, and at which revision.
    pub fn committed(&mut self, next: Assignment, revision: Revision) {
        self.assignment = next;
        self.revision = revision;
        self.holder = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tanako_store::embedded::{EmbeddedStore, Options};

    use super::*;

    fn name(text: &str) -> ProcessName {
        text.parse().expect("a good name")
    }

    #[tokio::test]
    async fn a_change_from_an_older_version_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let opened = EmbeddedStore::open(dir.path(), &Options::default()).expect("opens");
        let store: Arc<dyn Store> = Arc::new(opened);
        store
            .commit(Txn::new().put(HOLDER, "old"))
            .await
            .expect("writes");
        let mut first = Stored::load(&*store).await.expect("reads");
        assert_eq!(first.holder.as_deref(), Some("old"));
        let mut late = first.clone();
        let next = first.assignment.with([
            (name("x/0"), Some("a".to_owned())),
            (name("x/1"), Some("b".to_owned())),
        ]);
        let txn = first.commit(&next, 3, Txn::new());
        let revision = store.commit(txn).await.expect("answers").committed();
        first.committed(next.clone(), revision.expect("committed"));

        let other = late.assignment.with([(name("x/0"), Some("c".to_owned()))]);
        let txn = late.commit(&other, 4, Txn::new());
        assert_eq!(store.commit(txn).await.expect("answers").committed(), None);

        late = Stored::load(&*store).await.expect("reads");
        assert_eq!((&late.assignment, late.holder.as_ref()), (&next, None));
        let own = of_host(&*store, "a").await.expect("reads").expect("there");
        assert_eq!((own.version, own.processes.len()), (1, 1));
        let moved = late.assignment.with([(name("x/0"), Some("b".to_owned()))]);
        let txn = late.commit(&moved, 4, Txn::new());
        assert!(
            store
                .commit(txn)
                .await
                .expect("answers")
                .committed()
                .is_some()
        );
        let own = of_host(&*store, "a").await.expect("reads").expect("there");
        assert!(own.processes.is_empty() && own.version == 2);
    }
}
