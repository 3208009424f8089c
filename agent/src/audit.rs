//! The audit log: every change of the fleet, in the store, in the same transaction as the change.

use serde::{Deserialize, Serialize};
use tanako_proto::fleet::v1 as wire;
use tanako_store::{Store, StoreError, Txn};

use crate::{
    identity::refused,
    operations::ledger::{decode, encode},
};

/// Records kept.
pub const RECORDS_MAX: u64 = 10_000;
const PREFIX: &str = "audit/";

/// One change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Milliseconds since 1970.
    pub at: i64,
    /// `uid 0 (root)`.
    pub who: String,
    /// `unix socket, pid 4711`.
    pub from: String,
    /// apply, start, pause, upgrade, …
    pub action: String,
    /// What was changed.
    pub object: String,
    /// What was there.
    pub before: String,
    /// What is there now.
    pub after: String,
    /// accepted, succeeded, failed: …, refused: …
    pub outcome: String,
}

/// The numbers of the records in the store: `first..next`.
#[derive(Debug, Default)]
pub struct Audit {
    first: u64,
    next: u64,
}

fn key(number: u64) -> String {
    format!("{PREFIX}{number:020}")
}

impl Audit {
    /// Finds out what is there.
    pub async fn load(store: &dyn Store) -> Result<Self, StoreError> {
        let items = store.list(PREFIX).await?.items;
        let number = |key: &str| {
            key.strip_prefix(PREFIX)
                .and_then(|text| text.parse::<u64>().ok())
        };
        let first = items
            .first()
            .and_then(|item| number(&item.key))
            .unwrap_or(0);
        let next = items
            .last()
            .and_then(|item| number(&item.key))
            .map_or(0, |last| last + 1);
        Ok(Self { first, next })
    }

    /// Adds a record to a transaction, and drops the oldest beyond the limit.
    pub fn append(&self, txn: Txn, record: &Record) -> Txn {
        let txn = txn.put(key(self.next), encode(record));
        if self.next - self.first >= RECORDS_MAX {
            txn.delete(key(self.first))
        } else {
            txn
        }
    }

    /// Remembers that the transaction was committed.
    pub fn committed(&mut self) {
        self.next += 1;
        if self.next - self.first > RECORDS_MAX {
            self.first += 1;
        }
    }
}

/// Where changes of identities are kept: any agent makes them, whoever decides.
const IDENTITIES: &str = "changes/";
/// Kept of these.
const IDENTITIES_MAX: usize = 2_000;

/// Adds a record that any agent may write to a transaction, and drops the oldest beyond the limit.
pub async fn note(store: &dyn Store, txn: Txn, record: &Record) -> Result<Txn, StoreError> {
    let items = store.list(IDENTITIES).await?.items;
    let over = items.len().saturating_sub(IDENTITIES_MAX - 1).min(8);
    let txn = items
        .iter()
        .take(over)
        .fold(txn, |txn, item| txn.delete(&item.key));
    let (at, tie) = (record.at.max(0), fastrand::u32(..));
    let key = format!("{IDENTITIES}{at:020}-{tie:08x}");
    Ok(txn.put(key, encode(record)))
}

/// The latest records, newest first: changes, and calls that were refused.
pub async fn list(store: &dyn Store, limit: usize) -> Result<Vec<wire::AuditRecord>, StoreError> {
    let changes = store.list(PREFIX).await?.items;
    let changes = changes
        .iter()
        .rev()
        .filter_map(|item| decode::<Record>(&item.key, &item.value))
        .take(limit);
    let identities = store.list(IDENTITIES).await?.items;
    let identities = identities
        .iter()
        .filter_map(|item| decode::<Record>(&item.key, &item.value));
    let mut records: Vec<Record> = changes
        .chain(identities)
        .chain(refused::list(store).await?)
        .collect();
    // Stable: of one moment, the order of the log stays.
    records.sort_by_key(|record| std::cmp::Reverse(record.at));
    Ok(records
        .into_iter()
        .take(limit)
        .map(|record| wire::AuditRecord {
            at: record.at,
            who: record.who,
            from: record.from,
            action: record.action,
            object: record.object,
            before: record.before,
            after: record.after,
            outcome: record.outcome,
        })
        .collect())
}
