//! The embedded engine on fjall. The figures behind the choice are in the benchmarks.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use fjall::config::PartitioningPolicy;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};

use super::{Batch, Engine, EngineError, Space, Stored, View, Visit, journal, tables};

/// How much memory the engine may use.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Blocks kept in memory, in bytes.
    pub cache_bytes: u64,
    /// Unflushed writes kept in memory per space, in bytes.
    pub memtable_bytes: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            cache_bytes: 8 << 20,
            memtable_bytes: 8 << 20,
        }
    }
}

/// A store in one directory, opened by one process.
pub struct Embedded {
    database: Database,
    rows: Keyspace,
    index: Keyspace,
    meta: Keyspace,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{0} is in use by another process")]
    Locked(String),
    /// A file does not hold what was written to it.
    #[error(
        "{file} is damaged ({why}); nothing was changed. Restore a backup into an empty data directory, or put back an intact copy of the file"
    )]
    Damaged {
        /// The file, or the directory when the engine cannot say which file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The operating system refused.
    #[error("cannot open the store in {directory}")]
    Io {
        /// The store's directory.
        directory: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Embedded {
    /// Opens the store, or creates it in an empty directory. A damaged store is left untouched.
    pub fn open(directory: &Path, sizes: Sizes) -> Result<Self, OpenError> {
        // The engine cuts a journal at the first entry it cannot read. Before it may do so, make
        // sure that what it would cut is only the torn end of a write nobody was told of.
        journal::check(directory)?;
        tables::check(directory)?;
        let failed = |error| opening(directory, error);
        let database = Database::builder(directory)
            .cache_size(sizes.cache_bytes)
            .worker_threads(1)
            .max_journaling_size(128 << 20)
            .manual_journal_persist(true)
            .open()
            .map_err(failed)?;
        let options = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(sizes.memtable_bytes)
                // An insert asks the filters of every level whether its key is new. Whole filters
                // and indexes of large tables outgrow the cache and would be read and checked
                // again each time: below the newest level they come in parts of 4 KiB.
                .filter_block_partitioning_policy(PartitioningPolicy::new([false, true]))
                .index_block_partitioning_policy(PartitioningPolicy::new([false, true]))
                .manual_journal_persist(true)
        };
        let rows = database.keyspace("rows", options).map_err(failed)?;
        let index = database.keyspace("index", options).map_err(failed)?;
        let meta = database.keyspace("meta", options).map_err(failed)?;
        Ok(Self {
            database,
            rows,
            index,
            meta,
        })
    }

    fn keyspace(&self, space: Space) -> &Keyspace {
        match space {
            Space::Rows => &self.rows,
            Space::Index => &self.index,
            Space::Meta => &self.meta,
        }
    }
}

impl View for Embedded {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Stored>, EngineError> {
        Ok(self.keyspace(space).get(key).map_err(failed)?.map(Stored))
    }

    fn scan(&self, space: Space, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), EngineError> {
        drive(self.keyspace(space).prefix(prefix), visit)
    }
}

impl Engine for Embedded {
    fn commit(&self, batch: Batch) -> Result<(), EngineError> {
        let mut write = self
            .database
            .batch()
            .durability(Some(PersistMode::SyncData));
        for (space, key, value) in batch {
            match value {
                Some(value) => write.insert(self.keyspace(space), key, value),
                None => write.remove(self.keyspace(space), key),
            }
        }
        write.commit().map_err(failed)
    }

    fn snapshot(&self) -> Box<dyn View + Send + Sync> {
        Box::new(Frozen {
            snapshot: self.database.snapshot(),
            rows: self.rows.clone(),
            index: self.index.clone(),
            meta: self.meta.clone(),
        })
    }

    fn disk_bytes(&self) -> u64 {
        self.database.disk_space().unwrap_or_default()
    }

    fn vacuum(&self) -> Result<(), EngineError> {
        for keyspace in [&self.rows, &self.index, &self.meta] {
            keyspace.rotate_memtable_and_wait().map_err(failed)?;
            keyspace.major_compact().map_err(failed)?;
        }
        Ok(())
    }
}

struct Frozen {
    snapshot: Snapshot,
    rows: Keyspace,
    index: Keyspace,
    meta: Keyspace,
}

impl Frozen {
    fn keyspace(&self, space: Space) -> &Keyspace {
        match space {
            Space::Rows => &self.rows,
            Space::Index => &self.index,
            Space::Meta => &self.meta,
        }
    }
}

impl View for Frozen {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Stored>, EngineError> {
        Ok(self
            .snapshot
            .get(self.keyspace(space), key)
            .map_err(failed)?
            .map(Stored))
    }

    fn scan(&self, space: Space, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), EngineError> {
        drive(self.snapshot.prefix(self.keyspace(space), prefix), visit)
    }
}

fn drive(iter: fjall::Iter, visit: &mut Visit<'_>) -> Result<(), EngineError> {
    for guard in iter {
        let (key, value) = guard.into_inner().map_err(failed)?;
        if visit(&key, &value) == ControlFlow::Break(()) {
            break;
        }
    }
    Ok(())
}

fn failed(error: fjall::Error) -> EngineError {
    match error {
        fjall::Error::Io(error) if disk_full(&error) => EngineError::DiskFull,
        fjall::Error::Storage(fjall::LsmError::Io(error)) if disk_full(&error) => {
            EngineError::DiskFull
        }
        fjall::Error::Poisoned => EngineError::Poisoned,
        fjall::Error::Storage(error) if !matches!(error, fjall::LsmError::Io(_)) => {
            EngineError::Damaged(format!("{error:?}"))
        }
        error => EngineError::Failed(format!("{error:?}")),
    }
}

/// Whether the file system (or the quota) has no space left.
pub fn disk_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// What a failed opening means. The engine does not name files, but it has just been made sure that
/// the journals and the tables are intact.
fn opening(directory: &Path, error: fjall::Error) -> OpenError {
    let shown = directory.display().to_string();
    let lists = || {
        let names: Vec<_> = tables::lists(directory)
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        format!("a list of tables of {shown} (one of {})", names.join(", "))
    };
    match error {
        fjall::Error::Locked => OpenError::Locked(shown),
        fjall::Error::InvalidVersion(_) => OpenError::Damaged {
            file: directory.join("version").display().to_string(),
            why: "it names no known version of the store".to_owned(),
        },
        fjall::Error::Io(source) | fjall::Error::Storage(fjall::LsmError::Io(source)) => {
            match source.kind() {
                // A file that the store itself names is gone or too short.
                io::ErrorKind::NotFound
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::InvalidData => OpenError::Damaged {
                    file: lists(),
                    why: format!("or a file that it names is missing: {source}"),
                },
                _ => OpenError::Io {
                    directory: shown,
                    source,
                },
            }
        }
        fjall::Error::Storage(error) => OpenError::Damaged {
            file: lists(),
            why: format!("{error:?}"),
        },
        error => OpenError::Damaged {
            file: shown,
            why: format!("{error:?}"),
        },
    }
}
