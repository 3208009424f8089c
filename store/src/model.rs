//! The values of the store: keys with revisions, transactions, events.

use bytes::Bytes;

use crate::error::StoreError;

/// Number of a committed change, from 1; rises over the whole store, in steps of any size.
pub type Revision = u64;

/// Names a lease. Never reused while anything refers to it.
pub type LeaseId = u64;

/// Longest key, in bytes.
pub const fn key_max() -> usize {
    1024
}

/// Most operations of one transaction, and most comparisons.
pub const fn ops_max() -> usize {
    128
}

/// Largest sum of the values of one transaction, in bytes. Leaves room below the 1.5 MiB that
/// common servers accept.
pub const fn value_bytes_max() -> usize {
    1024 * 1024
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Bytes,
    /// Revision at which the key came into being.
    pub create_revision: Revision,
    /// Revision of its last change.
    pub mod_revision: Revision,
    /// Changes since it came into being, from 1.
    pub version: u64,
    /// The lease that it lives with.
    pub lease: Option<LeaseId>,
}

/// What lies under a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Sorted by key.
    pub items: Vec<KeyValue>,
    /// Revision of the whole store at which this was true.
    pub revision: Revision,
}

/// A condition on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// What must hold.
    pub condition: Condition,
}

/// What must hold of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It does not exist.
    Absent,
    /// It exists and was last changed at this revision, which is not 0.
    ModRevision(Revision),
    /// It exists and came into being at this revision, which is not 0: how a leader fences its writes.
    CreateRevision(Revision),
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets the key.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Bytes,
        /// Binds it to a lease; `None` unbinds it.
        lease: Option<LeaseId>,
    },
    /// Removes the key, if there.
    Delete {
        /// The key.
        key: String,
    },
}

impl Op {
    /// The key it changes.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Changes that happen together, if all comparisons hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// Conditions, all of which must hold.
    pub compares: Vec<Compare>,
    /// Changes; each key at most once.
    pub ops: Vec<Op>,
}

impl Txn {
    /// An unconditional, empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only if `key` does not exist.
    pub fn if_absent(self, key: impl Into<String>) -> Self {
        self.when(key, Condition::Absent)
    }

    /// Only if `key` was last changed at `revision`; 0 = does not exist.
    pub fn if_unchanged(self, key: impl Into<String>, revision: Revision) -> Self {
        if revision == 0 {
            self.when(key, Condition::Absent)
        } else {
            self.when(key, Condition::ModRevision(revision))
        }
    }

    /// Only if `condition` holds of `key`.
    pub fn when(mut self, key: impl Into<String>, condition: Condition) -> Self {
        self.compares.push(Compare {
            key: key.into(),
            condition,
        });
        self
    }

    /// Sets `key`.
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.ops.push(Op::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        });
        self
    }

    /// Sets `key` for as long as `lease` lives.
    pub fn put_leased(
        mut self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
        lease: LeaseId,
    ) -> Self {
        self.ops.push(Op::Put {
            key: key.into(),
            value: value.into(),
            lease: Some(lease),
        });
        self
    }

    /// Removes `key`, if there.
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }

    /// Checks what every backend must refuse alike.
    pub fn validate(&self) -> Result<(), StoreError> {
        if self.ops.len() > ops_max() || self.compares.len() > ops_max() {
            return Err(StoreError::TooLarge {
                what: "a transaction",
                max: ops_max(),
            });
        }
        let mut bytes = 0usize;
        let mut seen = std::collections::HashSet::with_capacity(self.ops.len());
        for op in &self.ops {
            valid_key(op.key())?;
            if !seen.insert(op.key()) {
                return Err(StoreError::Invalid("a transaction changes one key twice"));
            }
            if let Op::Put { value, .. } = op {
                bytes += value.len();
            }
        }
        for compare in &self.compares {
            valid_key(&compare.key)?;
            if matches!(
                compare.condition,
                Condition::ModRevision(0) | Condition::CreateRevision(0)
            ) {
                return Err(StoreError::Invalid(
                    "no key has revision 0; compare with absent instead",
                ));
            }
        }
        if bytes > value_bytes_max() {
            return Err(StoreError::TooLarge {
                what: "a value",
                max: value_bytes_max(),
            });
        }
        Ok(())
    }
}

/// Checks a key as every backend must.
pub(crate) fn valid_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() {
        return Err(StoreError::Invalid("a key must not be empty"));
    }
    if key.len() > key_max() {
        return Err(StoreError::TooLarge {
            what: "a key",
            max: key_max(),
        });
    }
    Ok(())
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All comparisons held; everything is on disk.
    Committed {
        /// Revision of the changes; the store's current one when there was nothing to change.
        revision: Revision,
    },
    /// A comparison did not hold; nothing was changed.
    Conflict {
        /// The store's revision when that was found.
        revision: Revision,
    },
}

impl Outcome {
    /// The revision of a committed transaction.
    pub fn committed(self) -> Option<Revision> {
        match self {
            Self::Committed { revision } => Some(revision),
            Self::Conflict { .. } => None,
        }
    }
}

/// A change, as a watcher sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The key was set.
    Put(KeyValue),
    /// The key was removed, or its lease ended.
    Delete {
        /// The key.
        key: String,
        /// When.
        revision: Revision,
    },
}

impl Event {
    /// The key it is about.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(item) => &item.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The revision at which it happened.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(item) => item.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}
