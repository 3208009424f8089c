//! The storage engine: ordered keys in three spaces, atomic durable batches, snapshots.
//!
//! The node needs no more than this, so that another engine is one file. Every engine passes the
//! one contract suite.

#[cfg(test)]
mod contract;
mod fjall;
mod journal;
mod tables;

use std::ops::{ControlFlow, Deref};

pub use self::fjall::{Embedded, OpenError, Sizes, disk_full};

/// Which of the key spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// The rows themselves.
    Rows,
    /// Entries that lead to rows.
    Index,
    /// Counters and facts about the store.
    Meta,
}

/// A stored value. Cheap to clone, may share memory with the engine's cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored(::fjall::Slice);

impl Deref for Stored {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Stored {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

/// What an engine can fail with.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No space is left; reads go on.
    #[error("the disk is full")]
    DiskFull,
    /// A read found bytes that are not what was written.
    #[error("stored data is damaged: {0}")]
    Damaged(String),
    /// An earlier failure left the engine unable to write until it is opened again.
    #[error("the store must be opened again after a failed write")]
    Poisoned,
    /// Anything else.
    #[error("the store failed: {0}")]
    Failed(String),
}

/// Called with each key and value of a scan; `Break` ends it.
pub type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'v;

/// Something that can be read: an engine as it is now, a snapshot, or a batch in the making.
pub trait View {
    /// The value of a key.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Stored>, EngineError>;

    /// Visits the keys that start with `prefix`, ascending.
    fn scan(&self, space: Space, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), EngineError>;
}

/// Puts (`Some`) and removals (`None`), applied together or not at all.
pub type Batch = Vec<(Space, Vec<u8>, Option<Vec<u8>>)>;

/// An engine. All methods may block on the disk.
pub trait Engine: View + Send + Sync + 'static {
    /// Applies the batch atomically. When this returns `Ok`, the batch is on disk.
    fn commit(&self, batch: Batch) -> Result<(), EngineError>;

    /// A view that later commits do not change.
    fn snapshot(&self) -> Box<dyn View + Send + Sync>;

    /// Bytes used on disk.
    fn disk_bytes(&self) -> u64;

    /// Reclaims the space of what was deleted or replaced.
    fn vacuum(&self) -> Result<(), EngineError>;
}
