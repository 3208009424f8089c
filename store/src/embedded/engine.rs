//! The engine behind the embedded store: three keyspaces of one fjall database.
//!
//! `data` holds the records by key, `history` the changes by revision, `meta` the revision and how
//! far the history has been dropped.

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};

use super::{
    codec::{Record, decode_events, decode_revision, decode_u64, encode_events, encode_revision},
    journal,
};
use crate::{
    error::StoreError,
    model::{KeyValue, Listing, Revision},
    watch::WatchBatch,
};

/// Most history read for one step of a watch, in revisions.
const WATCH_BATCH_MAX: usize = 256;
/// The engine's block cache. The whole store is a few MB at most.
const CACHE_BYTES: u64 = 1024 * 1024;
/// A memtable is written out at this size; three keyspaces share the journal.
const MEMTABLE_BYTES: u64 = 2 * 1024 * 1024;
/// The least that the engine accepts; the files are sparse.
const JOURNAL_BYTES: u64 = 64 * 1024 * 1024;

const REVISION: &str = "revision";
const OLDEST: &str = "oldest";
const FORMAT: &str = "format";
const FORMAT_VERSION: u8 = 1;

/// A change of one key: its new record, or none.
pub(super) type Change = (String, Option<Record>);

/// The open database.
pub(super) struct Engine {
    database: Database,
    data: Keyspace,
    history: Keyspace,
    meta: Keyspace,
    path: PathBuf,
}

impl Engine {
    /// Opens the database in `path`, or makes a new one, and reads all of it once, so that damage is
    /// found now and not in the middle of an operation. Calls `leased` with each key bound to a lease.
    pub(super) fn open(path: &Path, leased: impl FnMut(String)) -> Result<Self, StoreError> {
        fs::create_dir_all(path).map_err(|error| io_error(path, &error))?;
        let found = journal::scan(path).map_err(|error| io_error(path, &error))?;
        // The engine asserts what it finds on disk in a few places; a damaged file must not take
        // the agent down.
        let opened = catch_unwind(AssertUnwindSafe(|| Self::open_engine(path)));
        let engine = match opened {
            Ok(Ok(engine)) => engine,
            Ok(Err(error)) => return Err(open_error(path, found.path.as_deref(), &error)),
            Err(_) => {
                return Err(StoreError::Corrupt {
                    path: path.to_owned(),
                    detail: "the engine gave up while reading it".to_owned(),
                });
            }
        };
        let checked = catch_unwind(AssertUnwindSafe(|| engine.check(leased)));
        checked.unwrap_or_else(|_| {
            Err(StoreError::Corrupt {
                path: path.to_owned(),
                detail: "a record cannot be decoded".to_owned(),
            })
        })?;
        let revision = engine.revision()?;
        if revision < found.acknowledged {
            return Err(StoreError::Corrupt {
                path: found.path.unwrap_or_else(|| path.to_owned()),
                detail: format!(
                    "it once held revision {}, but only {revision} can be read",
                    found.acknowledged
                ),
            });
        }
        Ok(engine)
    }

    fn open_engine(path: &Path) -> Result<Self, fjall::Error> {
        let database = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .worker_threads(1)
            .max_journaling_size(JOURNAL_BYTES)
            .max_cached_files(Some(32))
            .manual_journal_persist(true)
            .open()?;
        let keyspace = |name: &str| {
            database.keyspace(name, || {
                KeyspaceCreateOptions::default()
                    .max_memtable_size(MEMTABLE_BYTES)
                    .manual_journal_persist(true)
            })
        };
        let (data, history, meta) = (keyspace("data")?, keyspace("history")?, keyspace("meta")?);
        Ok(Self {
            data,
            history,
            meta,
            database,
            path: path.to_owned(),
        })
    }

    fn check(&self, mut leased: impl FnMut(String)) -> Result<(), StoreError> {
        match self
            .meta
            .get(FORMAT)
            .map_err(|error| self.read_error(&error))?
        {
            Some(version) if *version == [FORMAT_VERSION] => {}
            Some(version) => {
                return Err(StoreError::Format {
                    path: self.path.clone(),
                    detail: format!("format {:?}, known is {FORMAT_VERSION}", &*version),
                });
            }
            None => {
                let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
                batch.insert(&self.meta, FORMAT, [FORMAT_VERSION]);
                batch.commit().map_err(|error| self.write_error(&error))?;
            }
        }
        for guard in self.data.iter() {
            let (key, value) = guard
                .into_inner()
                .map_err(|error| self.read_error(&error))?;
            let record = Record::decode(&value).ok_or_else(|| self.damaged("a record"))?;
            if record.lease.is_some() {
                leased(self.text(&key)?);
            }
        }
        for guard in self.history.iter() {
            guard
                .into_inner()
                .map_err(|error| self.read_error(&error))?;
        }
        Ok(())
    }

    /// The latest revision.
    pub(super) fn revision(&self) -> Result<Revision, StoreError> {
        match self
            .meta
            .get(REVISION)
            .map_err(|error| self.read_error(&error))?
        {
            Some(value) => decode_revision(&value).ok_or_else(|| self.damaged("the revision")),
            None => Ok(0),
        }
    }

    /// The oldest revision whose changes are kept.
    pub(super) fn oldest(&self) -> Result<Revision, StoreError> {
        match self
            .meta
            .get(OLDEST)
            .map_err(|error| self.read_error(&error))?
        {
            Some(value) => decode_u64(&value).ok_or_else(|| self.damaged("the oldest revision")),
            None => Ok(1),
        }
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        match self
            .data
            .get(key)
            .map_err(|error| self.read_error(&error))?
        {
            Some(value) => Record::decode(&value)
                .map(Some)
                .ok_or_else(|| self.damaged("a record")),
            None => Ok(None),
        }
    }

    pub(super) fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let snapshot = self.database.snapshot();
        let revision = match snapshot
            .get(&self.meta, REVISION)
            .map_err(|error| self.read_error(&error))?
        {
            Some(value) => decode_revision(&value).ok_or_else(|| self.damaged("the revision"))?,
            None => 0,
        };
        let mut items: Vec<KeyValue> = Vec::new();
        for guard in snapshot.prefix(&self.data, prefix) {
            let (key, value) = guard
                .into_inner()
                .map_err(|error| self.read_error(&error))?;
            let record = Record::decode(&value).ok_or_else(|| self.damaged("a record"))?;
            items.push(record.into_item(self.text(&key)?));
        }
        Ok(Listing { items, revision })
    }

    /// The next changes under `prefix` from revision `from` on. The batch's revision is the last one
    /// looked at, whether it held anything of interest or not.
    pub(super) fn changes(&self, prefix: &str, from: Revision) -> Result<WatchBatch, StoreError> {
        let oldest = self.oldest()?;
        if from < oldest {
            return Err(StoreError::Compacted { oldest });
        }
        let mut batch = WatchBatch {
            revision: from - 1,
            events: Vec::new(),
        };
        let snapshot = self.database.snapshot();
        for guard in snapshot
            .range(&self.history, from.to_be_bytes()..)
            .take(WATCH_BATCH_MAX)
        {
            let (key, value) = guard
                .into_inner()
                .map_err(|error| self.read_error(&error))?;
            let revision = decode_u64(&key).ok_or_else(|| self.damaged("the history"))?;
            let events = decode_events(&value, revision, prefix)
                .ok_or_else(|| self.damaged("the history"))?;
            batch.events.extend(events);
            batch.revision = revision;
        }
        Ok(batch)
    }

    /// Writes the changes of consecutive revisions, the last of which is `revision`, and drops the
    /// history below `oldest`. On disk when it returns.
    pub(super) fn write(
        &self,
        changes: &[(Revision, Vec<Change>)],
        revision: Revision,
        drop: std::ops::Range<Revision>,
    ) -> Result<(), StoreError> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        for (revision, changes) in changes {
            for (key, record) in changes {
                match record {
                    Some(record) => batch.insert(&self.data, key.as_str(), record.encode()),
                    None => batch.remove(&self.data, key.as_str()),
                }
            }
            batch.insert(
                &self.history,
                revision.to_be_bytes(),
                encode_events(changes),
            );
        }
        if !drop.is_empty() {
            batch.insert(&self.meta, OLDEST, drop.end.to_be_bytes());
            for old in drop {
                batch.remove(&self.history, old.to_be_bytes());
            }
        }
        batch.insert(&self.meta, REVISION, encode_revision(revision));
        batch.commit().map_err(|error| self.write_error(&error))
    }

    fn text(&self, key: &[u8]) -> Result<String, StoreError> {
        String::from_utf8(key.to_vec()).map_err(|_| self.damaged("a key"))
    }

    fn damaged(&self, what: &str) -> StoreError {
        StoreError::Corrupt {
            path: self.path.clone(),
            detail: format!("{what} cannot be decoded"),
        }
    }

    fn read_error(&self, error: &fjall::Error) -> StoreError {
        match error {
            fjall::Error::Io(inner) => io_error(&self.path, inner),
            fjall::Error::Storage(_) => StoreError::Corrupt {
                path: self.path.join("keyspaces"),
                detail: error.to_string(),
            },
            other => StoreError::Unavailable(other.to_string()),
        }
    }

    fn write_error(&self, error: &fjall::Error) -> StoreError {
        StoreError::Unavailable(format!(
            "writing to {} failed: {error}",
            self.path.display()
        ))
    }
}

fn io_error(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Unavailable(format!("{}: {error}", path.display()))
}

fn open_error(path: &Path, journal: Option<&Path>, error: &fjall::Error) -> StoreError {
    match error {
        fjall::Error::Locked => StoreError::Locked {
            path: path.to_owned(),
        },
        fjall::Error::InvalidVersion(version) => match version {
            Some(version) => StoreError::Format {
                path: path.to_owned(),
                detail: format!("the engine's format is {version:?}"),
            },
            None => StoreError::Corrupt {
                path: path.join("version"),
                detail: "it does not name a format".to_owned(),
            },
        },
        fjall::Error::Io(inner)
            if inner.kind() != io::ErrorKind::NotFound
                && inner.kind() != io::ErrorKind::UnexpectedEof
                && inner.kind() != io::ErrorKind::InvalidData =>
        {
            io_error(path, inner)
        }
        fjall::Error::JournalRecovery(_) => StoreError::Corrupt {
            path: journal.unwrap_or(path).to_owned(),
            detail: error.to_string(),
        },
        _ => StoreError::Corrupt {
            path: path.join("keyspaces"),
            detail: error.to_string(),
        },
    }
}
