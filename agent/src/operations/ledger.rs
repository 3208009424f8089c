//! Where operations are kept: one key each, one more per request id, and a counter.
//!
//! Ended operations beyond [`ENDED_MAX`] are dropped oldest first, their request ids with them.

use serde::{Serialize, de::DeserializeOwned};
use tanako_proto::fleet::v1::{self as wire, Problem};
use tanako_store::{Store, StoreError, Txn};

use super::model::Operation;
use crate::{desired::Written, problem};

/// Ended operations kept.
pub const ENDED_MAX: usize = 200;

const PREFIX: &str = "operations/";
const REQUESTS: &str = "requests/";
const REPLACED: &str = "replaced/";

/// What the store holds of operations, without the operations themselves.
#[derive(Debug, Default)]
pub struct Index {
    /// Ended ones, oldest first: number, request id.
    ended: std::collections::VecDeque<(u64, String)>,
    /// Number of the latest operation.
    last: u64,
}

/// What was found at the start.
pub struct Loaded {
    /// For further writing.
    pub index: Index,
    /// Operations to go on with, oldest first.
    pub active: Vec<Operation>,
    /// The latest ended ones, newest last.
    pub ended: Vec<Operation>,
}

fn key(number: u64) -> String {
    format!("{PREFIX}{number:020}")
}

fn request_key(request_id: &str) -> String {
    format!("{REQUESTS}{request_id}")
}

fn replaced_key(number: u64) -> String {
    format!("{REPLACED}{number:020}")
}

/// A value as it is stored.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("invariant: our own records have no map with odd keys")
}

/// A stored value; one that cannot be read is reported and left out.
pub fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Option<T> {
    serde_json::from_slice(value)
        .inspect_err(|error| tracing::error!(key, %error, "a record in the store cannot be read"))
        .ok()
}

/// Reads all operations.
pub async fn load(store: &dyn Store, recent: usize) -> Result<Loaded, StoreError> {
    let mut index = Index::default();
    let mut active = Vec::new();
    let mut ended = std::collections::VecDeque::new();
    for item in store.list(PREFIX).await?.items {
        let number = item.key[PREFIX.len()..].parse().unwrap_or(0);
        index.last = index.last.max(number);
        let Some(op) = decode::<Operation>(&item.key, &item.value) else {
            continue;
        };
        if op.state.is_ended() {
            index.ended.push_back((op.number, op.request_id.clone()));
            ended.push_back(op);
            if ended.len() > recent {
                ended.pop_front();
            }
        } else {
            active.push(op);
        }
    }
    Ok(Loaded {
        index,
        active,
        ended: ended.into(),
    })
}

impl Index {
    /// The number of the next operation.
    pub fn next_number(&self) -> u64 {
        self.last + 1
    }

    /// Adds a new operation to a transaction.
    pub fn insert(&self, txn: Txn, op: &Operation) -> Txn {
        txn.if_absent(key(op.number))
            .put(key(op.number), encode(op))
            .put(request_key(&op.request_id), op.number.to_string())
    }

    /// Adds the spec that a new operation replaces to a transaction. It is kept as long as the
    /// operation: it is what there is to go back to.
    pub fn keep(txn: Txn, op: &Operation, replaced: &Written) -> Txn {
        txn.put(replaced_key(op.number), encode(replaced))
    }

    /// Adds the operation's present state to a transaction and, when it has ended, drops the oldest.
    pub fn update(&self, txn: Txn, op: &Operation) -> Txn {
        let mut txn = txn.put(key(op.number), encode(op));
        if op.state.is_ended()
            && self.ended.len() >= ENDED_MAX
            && let Some((oldest, request_id)) = self.ended.front()
        {
            txn = txn
                .delete(key(*oldest))
                .delete(request_key(request_id))
                .delete(replaced_key(*oldest));
        }
        txn
    }

    /// Remembers what has been committed.
    pub fn committed(&mut self, op: &Operation) {
        self.last = self.last.max(op.number);
        if op.state.is_ended() && !self.ended.iter().any(|(number, _)| *number == op.number) {
            self.ended.push_back((op.number, op.request_id.clone()));
            if self.ended.len() > ENDED_MAX {
                self.ended.pop_front();
            }
        }
    }
}

/// The operation that a request has led to.
pub async fn by_request(
    store: &dyn Store,
    request_id: &str,
) -> Result<Option<Operation>, StoreError> {
    let Some(item) = store.get(&request_key(request_id)).await? else {
        return Ok(None);
    };
    let number = std::str::from_utf8(&item.value)
        .ok()
        .and_then(|text| text.parse().ok());
    match number {
        Some(number) => by_number(store, number).await,
        None => Ok(None),
    }
}

/// The spec that an operation replaced.
pub async fn replaced(store: &dyn Store, number: u64) -> Result<Option<Written>, StoreError> {
    let key = replaced_key(number);
    Ok(store
        .get(&key)
        .await?
        .and_then(|item| decode(&key, &item.value)))
}

/// The operation of that id, however old, or why there is none.
pub async fn by_id(store: &dyn Store, id: &str) -> Result<wire::Operation, Problem> {
    let unknown = || {
        Problem::new(
            "unknown-operation",
            id,
            format!("there is no operation {id:?}"),
        )
        .hint("`tanakoctl operation list` lists them; the oldest are dropped")
    };
    let number = id
        .rsplit_once('-')
        .and_then(|(_, number)| number.parse().ok())
        .ok_or_else(unknown)?;
    let found = by_number(store, number)
        .await
        .map_err(|error| problem::from_store(&error))?;
    found
        .filter(|op| op.id == id)
        .map(|op| op.to_wire())
        .ok_or_else(unknown)
}

/// The operation of that number.
pub async fn by_number(store: &dyn Store, number: u64) -> Result<Option<Operation>, StoreError> {
    let key = key(number);
    Ok(store
        .get(&key)
        .await?
        .and_then(|item| decode(&key, &item.value)))
}

/// The latest operations, newest first.
pub async fn list(store: &dyn Store, limit: usize) -> Result<Vec<Operation>, StoreError> {
    let items = store.list(PREFIX).await?.items;
    Ok(items
        .into_iter()
        .rev()
        .filter_map(|item| decode(&item.key, &item.value))
        .take(limit)
        .collect())
}
