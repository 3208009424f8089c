//! The data directory: its lock, the generation in use, and opening it again.
//!
//! ```text
//! DATA/LOCK        held (flock) while a node runs on the directory
//! DATA/CURRENT     names the generation in use; replaced atomically
//! DATA/gen-000001/ the engine's files
//! ```
//!
//! A restore writes a new generation beside the present one and then replaces `CURRENT`: whenever
//! the process dies, either the old or the new data is there, complete.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::engine::{Embedded, Engine, EngineError, OpenError, Sizes};
use crate::failure::{Code, Failure};

const LOCK: &str = "LOCK";
const CURRENT: &str = "CURRENT";
/// Opening the store again writes a little: it is not tried with less than this free.
const REOPEN_FREE_BYTES: u64 = 16 << 20;
/// Between two attempts to open the store again after a failed write.
const REOPEN_EVERY: Duration = Duration::from_millis(500);
/// How long a reopening waits for reads that still use the old engine.
const READS_END_WITHIN: Duration = Duration::from_secs(10);

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another node runs on it.
    #[error(
        "data directory {0} is in use by another node; stop that node or give this one a directory of its own"
    )]
    Locked(PathBuf),
    /// The operating system refused.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `CURRENT` does not name a generation.
    #[error(
        "{0} is damaged: it must name the data directory's generation, such as gen-000001. Nothing was changed; write the name of the newest gen-… directory into it, or restore a backup into an empty data directory"
    )]
    BadCurrent(PathBuf),
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] OpenError),
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { what, path, source }
}

/// What is needed to use a data directory.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The directory.
    pub directory: PathBuf,
    /// Memory for the engine.
    pub sizes: Sizes,
    /// Writes are refused while less than this is free, so that the engine never meets a full disk
    /// in the middle of its own housekeeping.
    pub free_bytes_min: u64,
}

/// An open data directory.
pub struct Store {
    options: StoreOptions,
    /// `None` while it is being opened again.
    engine: RwLock<Option<Arc<dyn Engine>>>,
    trouble: Mutex<Trouble>,
    _lock: File,
}

#[derive(Default)]
struct Trouble {
    /// A write failed: the engine must be opened again before the next.
    must_reopen: bool,
    tried: Option<Instant>,
    reported_full: bool,
}

impl Store {
    /// Locks and opens the directory, or creates it.
    pub fn open(options: StoreOptions) -> Result<Self, StoreError> {
        let directory = &options.directory;
        let lock = lock(directory)?;
        let generation = if let Some(generation) = current(directory)? {
            generation
        } else {
            let first = generation_name(1);
            let path = directory.join(&first);
            std::fs::create_dir_all(&path).map_err(io_error("create", &path))?;
            set_current(directory, &first)?;
            first
        };
        let path = directory.join(&generation);
        if !path.is_dir() {
            return Err(StoreError::BadCurrent(directory.join(CURRENT)));
        }
        let engine = Embedded::open(&path, options.sizes)?;
        remove_others(directory, &generation)?;
        Ok(Self {
            options,
            engine: RwLock::new(Some(Arc::new(engine))),
            trouble: Mutex::new(Trouble::default()),
            _lock: lock,
        })
    }

    /// The engine, for reading.
    pub fn engine(&self) -> Result<Arc<dyn Engine>, Failure> {
        if let Some(engine) = &*self.engine.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Arc::clone(engine));
        }
        // A reopening failed. Reads try again as well, so that a node without writes comes back.
        let mut trouble = self.trouble();
        self.try_reopen(&mut trouble)?;
        drop(trouble);
        let engine = self
            .engine
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        engine.ok_or_else(not_open)
    }

    /// The engine, for writing: refused while the disk is nearly full, reopened after a failure.
    pub fn engine_for_writing(&self) -> Result<Arc<dyn Engine>, Failure> {
        let free = self.free_bytes();
        let mut trouble = self.trouble();
        let kept = if trouble.must_reopen {
            self.options.free_bytes_min.max(REOPEN_FREE_BYTES)
        } else {
            self.options.free_bytes_min
        };
        if free < kept {
            if !trouble.reported_full {
                trouble.reported_full = true;
                tracing::error!(
                    free_bytes = free,
                    "disk nearly full: writes are refused, reads go on"
                );
            }
            return Err(Failure::new(
                Code::DiskFull,
                format!(
                    "The disk is full: nothing was written ({} MiB are free in {}, {} are kept). Free space there; writes then go on by themselves",
                    free >> 20,
                    self.options.directory.display(),
                    kept >> 20
                ),
            ));
        }
        if trouble.reported_full {
            trouble.reported_full = false;
            tracing::info!(free_bytes = free, "disk has space again: writes go on");
        }
        if trouble.must_reopen {
            self.try_reopen(&mut trouble)?;
        }
        drop(trouble);
        self.engine()
    }

    /// A write failed: unless the data itself is damaged, the engine is opened again before the
    /// next one. Returns what the clients are told.
    pub fn failed(&self, error: EngineError) -> Failure {
        if matches!(error, EngineError::Damaged(_)) {
            return error.into();
        }
        let mut trouble = self.trouble();
        trouble.must_reopen = true;
        trouble.tried = Some(Instant::now());
        // The engine's own housekeeping may have met the full disk before this write did.
        if matches!(error, EngineError::Poisoned) && self.free_bytes() < REOPEN_FREE_BYTES {
            return EngineError::DiskFull.into();
        }
        error.into()
    }

    /// Bytes that an unprivileged process may still write to the file system.
    pub fn free_bytes(&self) -> u64 {
        rustix::fs::statvfs(&self.options.directory)
            .map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// The data directory.
    pub fn directory(&self) -> &Path {
        &self.options.directory
    }

    /// Memory settings of the engine, for a generation in the making.
    pub fn sizes(&self) -> Sizes {
        self.options.sizes
    }

    /// Makes a prepared directory (see [`Store::prepare_generation`]) the data. Call it only while
    /// no write runs. Reads that began before go on with the old data.
    pub fn switch_to(&self, generation: &str) -> Result<(), StoreError> {
        let directory = &self.options.directory;
        let engine = Embedded::open(&directory.join(generation), self.options.sizes)?;
        set_current(directory, generation)?;
        *self.engine.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(engine));
        self.trouble().must_reopen = false;
        // The old generation's files are removed by name; reads that still use it keep them open.
        remove_others(directory, generation)
    }

    /// An empty directory for a new generation, and its name.
    pub fn prepare_generation(&self) -> Result<(String, PathBuf), StoreError> {
        prepare_generation(&self.options.directory)
    }

    fn try_reopen(&self, trouble: &mut Trouble) -> Result<(), Failure> {
        if trouble
            .tried
            .is_some_and(|tried| tried.elapsed() < REOPEN_EVERY)
        {
            return Err(not_open());
        }
        trouble.tried = Some(Instant::now());
        self.reopen().map_err(|error| {
            tracing::error!(error = %chain(&error), "cannot open the store again after a failed write");
            not_open()
        })?;
        trouble.must_reopen = false;
        tracing::info!("store opened again after a failed write");
        Ok(())
    }

    fn reopen(&self) -> Result<(), StoreError> {
        let generation = current(&self.options.directory)?
            .ok_or_else(|| StoreError::BadCurrent(self.options.directory.join(CURRENT)))?;
        let mut slot = self.engine.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = slot.take() {
            let deadline = Instant::now() + READS_END_WITHIN;
            while Arc::strong_count(&engine) > 1 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
            drop(engine);
        }
        *slot = Some(Arc::new(Embedded::open(
            &self.options.directory.join(generation),
            self.options.sizes,
        )?));
        Ok(())
    }

    fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_open() -> Failure {
    Failure::new(
        Code::Unavailable,
        "The store is being opened again after a failed write; retry, and see the node's log if it stays",
    )
}

/// Locks a data directory, making it if need be. The lock is held until the file is dropped.
pub fn lock(directory: &Path) -> Result<File, StoreError> {
    std::fs::create_dir_all(directory).map_err(io_error("create", directory))?;
    let path = directory.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io_error("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked(directory.to_owned())),
        Err(error) => Err(io_error("lock", &path)(error.into())),
    }
}

/// An empty directory for a new generation beside the present one. Works whatever state the present
/// one is in: a restore must be possible when nothing else is.
pub fn prepare_generation(directory: &Path) -> Result<(String, PathBuf), StoreError> {
    let newest = std::fs::read_dir(directory)
        .map_err(io_error("read", directory))?
        .filter_map(Result::ok)
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_prefix("gen-")?
                .parse::<u32>()
                .ok()
        })
        .max()
        .unwrap_or_default();
    let name = generation_name(newest + 1);
    let path = directory.join(&name);
    std::fs::create_dir(&path).map_err(io_error("create", &path))?;
    Ok((name, path))
}

/// Makes a complete generation the data of a directory that no node uses, and removes the others.
pub fn make_current(directory: &Path, generation: &str) -> Result<(), StoreError> {
    sync_directory(directory)?;
    set_current(directory, generation)?;
    remove_others(directory, generation)
}

fn generation_name(number: u32) -> String {
    format!("gen-{number:06}")
}

fn current(directory: &Path) -> Result<Option<String>, StoreError> {
    let path = directory.join(CURRENT);
    match std::fs::read_to_string(&path) {
        Ok(name) => {
            let name = name.trim();
            let number = name.strip_prefix("gen-").unwrap_or_default();
            if number.len() == 6 && number.bytes().all(|byte| byte.is_ascii_digit()) {
                Ok(Some(name.to_owned()))
            } else {
                Err(StoreError::BadCurrent(path))
            }
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(StoreError::BadCurrent(path))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A directory with data but without CURRENT has lost the file: do not start empty.
            let has_data = std::fs::read_dir(directory)
                .map_err(io_error("read", directory))?
                .filter_map(Result::ok)
                .filter(|entry| entry.file_name().to_string_lossy().starts_with("gen-"))
                .any(|entry| {
                    std::fs::read_dir(entry.path()).is_ok_and(|mut files| files.next().is_some())
                });
            if has_data {
                Err(StoreError::BadCurrent(path))
            } else {
                Ok(None)
            }
        }
        Err(error) => Err(io_error("read", &path)(error)),
    }
}

fn set_current(directory: &Path, generation: &str) -> Result<(), StoreError> {
    write_atomically(
        &directory.join(CURRENT),
        format!("{generation}\n").as_bytes(),
    )
}

/// Replaces a file by another content: after a crash it holds the old or the new, never a mixture.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary).map_err(io_error("create", &temporary))?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(io_error("write", &temporary))?;
    std::fs::rename(&temporary, path).map_err(io_error("rename", &temporary))?;
    sync_directory(parent_of(path))
}

/// The directory that holds the file. Of a bare file name that is the working directory.
fn parent_of(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Makes renames and new names in the directory durable.
pub fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(io_error("sync", directory))
}

fn remove_directory(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn remove_others(directory: &Path, keep: &str) -> Result<(), StoreError> {
    for entry in std::fs::read_dir(directory).map_err(io_error("read", directory))? {
        let entry = entry.map_err(io_error("read", directory))?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("gen-") && name != *keep {
            remove_directory(&entry.path())?;
        }
    }
    Ok(())
}

/// An error with its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_file_name_is_in_the_working_directory() {
        assert_eq!(parent_of(Path::new("info.json")), Path::new("."));
        assert_eq!(parent_of(Path::new("a/info.json")), Path::new("a"));
        assert_eq!(parent_of(Path::new("/info.json")), Path::new("/"));
    }
}
