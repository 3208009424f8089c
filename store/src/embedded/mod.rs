//! The store of one machine: nothing to install, one directory, one process at a time.
//!
//! ```text
//! callers ──requests (bounded)──► writer thread ──one batch, one sync──► fjall
//!    ▲                               │ owns leases, revision                │
//!    └──────── answers ◄─────────────┘                                      │
//! readers ──────────────────────────────── read what is committed ◄─────────┘
//! watchers ── woken by the revision, read the history from disk
//! ```
//!
//! A watcher buffers nothing in memory: it is woken by the latest revision and reads the history from
//! where it stands. Leases live in the process that holds the store, and so do all of their holders;
//! therefore keys bound to leases are gone after the directory has been opened again.

mod codec;
mod engine;
mod journal;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, RwLock, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture, stream};
use tokio::sync::{Semaphore, oneshot, watch as watch_channel};

use crate::{
    Store,
    error::StoreError,
    model::{KeyValue, LeaseId, Listing, Outcome, Revision, Txn, valid_key},
    watch::{Watch, WatchBatch},
};
use engine::Engine;
use writer::{Reply, Request, Shared, Writer};

/// Most requests that wait for the writer.
const QUEUE_MAX: usize = 1024;

/// How the store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Writes are refused while less than this is free, so that the engine itself never meets a full
    /// disk in the middle of a write.
    pub reserve_bytes: u64,
    /// Revisions kept for watchers that resume.
    pub history_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            reserve_bytes: 16 * 1024 * 1024,
            history_max: 4096,
        }
    }
}

/// The embedded store. Dropping it, or [`EmbeddedStore::close`], closes the directory.
pub struct EmbeddedStore {
    engine: Shared,
    requests: mpsc::Sender<Request>,
    slots: Arc<Semaphore>,
    revision: watch_channel::Receiver<Revision>,
    path: PathBuf,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedStore")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the store in the directory `path`, or makes a new one. Blocks while it reads.
    pub fn open(path: &Path, options: &Options) -> Result<Self, StoreError> {
        let mut orphans = Vec::new();
        let engine = Engine::open(path, |key| orphans.push(key))?;
        let revision = engine.revision()?;
        let engine: Shared = Arc::new(RwLock::new(Some(engine)));
        let (requests, receiver) = mpsc::channel();
        let (published, revision) = watch_channel::channel(revision);
        let mut writer = Writer::new(
            engine.clone(),
            path.to_owned(),
            receiver,
            published,
            options.reserve_bytes,
            options.history_max.max(1),
        )?;
        writer.drop_keys(orphans)?;
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| {
                StoreError::Unavailable(format!("no thread for the writer: {error}"))
            })?;
        Ok(Self {
            engine,
            requests,
            slots: Arc::new(Semaphore::new(QUEUE_MAX)),
            revision,
            path: path.to_owned(),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Directory of the store.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers what has been asked, then closes the directory. Blocks until that is done.
    pub fn close(&self) {
        let _ = self.requests.send(Request::Close);
        let thread = self.thread.lock().ok().and_then(|mut thread| thread.take());
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    async fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> Request) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let _slot = self.slots.acquire().await.map_err(|_| StoreError::Closed)?;
        self.requests
            .send(make(reply))
            .map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.close();
    }
}

fn read<T>(
    engine: &Shared,
    query: impl FnOnce(&Engine) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let engine = engine.read().map_err(|_| StoreError::Closed)?;
    query(engine.as_ref().ok_or(StoreError::Closed)?)
}

impl Store for EmbeddedStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<KeyValue>, StoreError>> {
        async move {
            valid_key(key)?;
            let record = read(&self.engine, |engine| engine.get(key))?;
            Ok(record.map(|record| record.into_item(key.to_owned())))
        }
        .boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
        async move { read(&self.engine, |engine| engine.list(prefix)) }.boxed()
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        async move {
            txn.validate()?;
            self.ask(|reply| Request::Commit(txn, reply)).await
        }
        .boxed()
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        from: Revision,
    ) -> BoxFuture<'a, Result<Watch, StoreError>> {
        async move {
            let current = self.revision.clone();
            let from = if from == 0 {
                *current.borrow() + 1
            } else {
                from
            };
            // Asked too far back: say so now, not at the first change.
            let oldest = read(&self.engine, Engine::oldest)?;
            if from < oldest {
                return Err(StoreError::Compacted { oldest });
            }
            let state = Watching {
                engine: self.engine.clone(),
                current,
                prefix: prefix.to_owned(),
                next: from,
                ended: false,
            };
            Ok(Watch::new(stream::unfold(state, |mut state| async move {
                if state.ended {
                    return None;
                }
                let item = state.step().await;
                state.ended = item.is_err();
                Some((item, state))
            })))
        }
        .boxed()
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        async move {
            if ttl.is_zero() {
                return Err(StoreError::Invalid("a lease must live for some time"));
            }
            self.ask(|reply| Request::Grant(ttl, reply)).await
        }
        .boxed()
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.ask(move |reply| Request::KeepAlive(lease, reply))
            .boxed()
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.ask(move |reply| Request::Revoke(lease, reply)).boxed()
    }
}

struct Watching {
    engine: Shared,
    current: watch_channel::Receiver<Revision>,
    prefix: String,
    next: Revision,
    ended: bool,
}

impl Watching {
    async fn step(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            if *self.current.borrow_and_update() >= self.next {
                let batch = read(&self.engine, |engine| {
                    engine.changes(&self.prefix, self.next)
                })?;
                self.next = batch.revision + 1;
                if !batch.events.is_empty() {
                    return Ok(batch);
                }
                continue;
            }
            self.current
                .changed()
                .await
                .map_err(|_| StoreError::Closed)?;
        }
    }
}
