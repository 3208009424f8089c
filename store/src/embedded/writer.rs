//! The one writer. It drains its queue, decides every transaction in order, writes all of them as
//! one batch with one sync, and only then answers. It also owns the leases.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::{
        Arc, RwLock,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use tokio::sync::{oneshot, watch};

use super::{
    codec::Record,
    engine::{Change, Engine},
};
use crate::{
    error::StoreError,
    model::{Condition, LeaseId, Op, Outcome, Revision, Txn},
};

/// Most requests answered by one sync.
const GROUP_MAX: usize = 512;
/// Pause between two attempts to open a failed engine again.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

/// The engine as readers and the writer share it; `None` while it cannot be opened again.
pub(super) type Shared = Arc<RwLock<Option<Engine>>>;

/// An answer to one caller.
pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What callers ask.
pub(super) enum Request {
    Commit(Txn, Reply<Outcome>),
    Grant(Duration, Reply<LeaseId>),
    KeepAlive(LeaseId, Reply<()>),
    Revoke(LeaseId, Reply<()>),
    Close,
}

struct Lease {
    ttl: Duration,
    ends: Instant,
    keys: BTreeSet<String>,
}

/// State of the writer thread.
pub(super) struct Writer {
    pub(super) engine: Shared,
    pub(super) path: PathBuf,
    pub(super) requests: Receiver<Request>,
    pub(super) published: watch::Sender<Revision>,
    pub(super) reserve_bytes: u64,
    pub(super) history_max: u64,
    leases: BTreeMap<LeaseId, Lease>,
    next_lease: LeaseId,
    revision: Revision,
    oldest: Revision,
    /// Set after a failed write: when it was last tried to open the engine again, and why it failed.
    broken: Option<(Instant, String)>,
}

/// What is decided but not yet on disk.
#[derive(Default)]
struct Group {
    changes: Vec<(Revision, Vec<Change>)>,
    overlay: HashMap<String, Option<Record>>,
    commits: Vec<(Reply<Outcome>, Outcome)>,
    revokes: Vec<Reply<()>>,
    /// Leases that end with this group.
    ended: Vec<LeaseId>,
    /// Keys whose binding changes: key to old and new lease.
    bindings: Vec<(String, Option<LeaseId>, Option<LeaseId>)>,
}

impl Writer {
    pub(super) fn new(
        engine: Shared,
        path: PathBuf,
        requests: Receiver<Request>,
        published: watch::Sender<Revision>,
        reserve_bytes: u64,
        history_max: u64,
    ) -> Result<Self, StoreError> {
        let mut writer = Self {
            engine,
            path,
            requests,
            published,
            reserve_bytes,
            history_max,
            leases: BTreeMap::new(),
            next_lease: 1,
            revision: 0,
            oldest: 1,
            broken: None,
        };
        writer.reload()?;
        // Higher than any that an earlier life gave out.
        writer.next_lease = (writer.revision << 20) + 1;
        Ok(writer)
    }

    /// Drops keys whose lease belonged to a process that is gone.
    pub(super) fn drop_keys(&mut self, keys: Vec<String>) -> Result<(), StoreError> {
        if keys.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.check_space() {
            // A full disk must not keep the store from being read: they go as soon as it can be written.
            tracing::warn!(%error, "keys of ended leases cannot be dropped yet");
            let lease = Lease {
                ttl: Duration::ZERO,
                ends: Instant::now(),
                keys: keys.into_iter().collect(),
            };
            self.leases.insert(0, lease);
            return Ok(());
        }
        let mut group = Group::default();
        self.delete_keys(&mut group, keys);
        self.write(&mut group)
    }

    /// Serves until every caller is gone or [`Request::Close`] arrives.
    pub(super) fn run(mut self) {
        loop {
            let first = match self.leases.values().map(|lease| lease.ends).min() {
                None => match self.requests.recv() {
                    Ok(request) => Some(request),
                    Err(_) => break,
                },
                Some(ends) => {
                    let wait = ends.saturating_duration_since(Instant::now());
                    match self.requests.recv_timeout(wait) {
                        Ok(request) => Some(request),
                        Err(RecvTimeoutError::Timeout) => None,
                        Err(RecvTimeoutError::Disconnected) => break,
                    }
                }
            };
            let mut group = Group::default();
            let mut close = false;
            let mut taken = first;
            let mut count = 0;
            while let Some(request) = taken.take() {
                if matches!(request, Request::Close) {
                    close = true;
                    break;
                }
                self.decide(&mut group, request);
                count += 1;
                if count < GROUP_MAX {
                    taken = self.requests.try_recv().ok();
                }
            }
            self.expire(&mut group);
            self.finish(group);
            if close {
                break;
            }
        }
        // The engine closes with the thread, so that the directory can be opened again at once.
        if let Ok(mut engine) = self.engine.write() {
            *engine = None;
        }
    }

    fn decide(&mut self, group: &mut Group, request: Request) {
        match request {
            Request::Grant(ttl, reply) => {
                let id = self.next_lease;
                self.next_lease += 1;
                let lease = Lease {
                    ttl,
                    ends: Instant::now() + ttl,
                    keys: BTreeSet::new(),
                };
                self.leases.insert(id, lease);
                let _ = reply.send(Ok(id));
            }
            Request::KeepAlive(id, reply) => {
                let now = Instant::now();
                let answer = match self.leases.get_mut(&id) {
                    // A lease that has ended is not brought back, even if nobody has noticed yet.
                    Some(lease) if lease.ends > now && !group.ended.contains(&id) => {
                        lease.ends = now + lease.ttl;
                        Ok(())
                    }
                    _ => Err(StoreError::NoLease(id)),
                };
                let _ = reply.send(answer);
            }
            Request::Revoke(id, reply) => {
                if !self.leases.contains_key(&id) || group.ended.contains(&id) {
                    let _ = reply.send(Err(StoreError::NoLease(id)));
                } else if let Err(error) = self.ready_to_write() {
                    let _ = reply.send(Err(error));
                } else {
                    self.end_lease(group, id);
                    group.revokes.push(reply);
                }
            }
            Request::Commit(txn, reply) => {
                let outcome = self.ready_to_write().and_then(|()| self.commit(group, txn));
                match outcome {
                    Ok(outcome) => group.commits.push((reply, outcome)),
                    Err(error) => {
                        let _ = reply.send(Err(error));
                    }
                }
            }
            Request::Close => {}
        }
    }

    fn commit(&mut self, group: &mut Group, txn: Txn) -> Result<Outcome, StoreError> {
        let at = self.revision + group.changes.len() as u64;
        for compare in &txn.compares {
            let record = self.read(group, &compare.key)?;
            let holds = match (compare.condition, &record) {
                (Condition::Absent, record) => record.is_none(),
                (Condition::ModRevision(revision), Some(record)) => record.modified == revision,
                (Condition::CreateRevision(revision), Some(record)) => record.create == revision,
                (_, None) => false,
            };
            if !holds {
                return Ok(Outcome::Conflict { revision: at });
            }
        }
        let now = Instant::now();
        let revision = at + 1;
        let mut changes: Vec<Change> = Vec::new();
        let mut bindings = Vec::new();
        for op in txn.ops {
            match op {
                Op::Put { key, value, lease } => {
                    if let Some(id) = lease {
                        let alive = self.leases.get(&id).is_some_and(|lease| lease.ends > now)
                            && !group.ended.contains(&id);
                        if !alive {
                            return Err(StoreError::NoLease(id));
                        }
                    }
                    let old = self.read(group, &key)?;
                    bindings.push((key.clone(), old.as_ref().and_then(|old| old.lease), lease));
                    let record = Record {
                        create: old.as_ref().map_or(revision, |old| old.create),
                        modified: revision,
                        version: old.as_ref().map_or(0, |old| old.version) + 1,
                        lease,
                        value,
                    };
                    changes.push((key, Some(record)));
                }
                Op::Delete { key } => {
                    if let Some(old) = self.read(group, &key)? {
                        bindings.push((key.clone(), old.lease, None));
                        changes.push((key, None));
                    }
                }
            }
        }
        if changes.is_empty() {
            return Ok(Outcome::Committed { revision: at });
        }
        group.bindings.extend(bindings);
        group.overlay.extend(changes.iter().cloned());
        group.changes.push((revision, changes));
        Ok(Outcome::Committed { revision })
    }

    fn read(&self, group: &Group, key: &str) -> Result<Option<Record>, StoreError> {
        if let Some(record) = group.overlay.get(key) {
            return Ok(record.clone());
        }
        let engine = self.engine.read().map_err(|_| StoreError::Closed)?;
        engine.as_ref().ok_or(StoreError::Closed)?.get(key)
    }

    fn end_lease(&mut self, group: &mut Group, id: LeaseId) {
        // Keys bound or unbound earlier in this very group count as they will be.
        let mut keys = self
            .leases
            .get(&id)
            .map(|lease| lease.keys.clone())
            .unwrap_or_default();
        for (key, old, new) in &group.bindings {
            if *old == Some(id) {
                keys.remove(key);
            }
            if *new == Some(id) {
                keys.insert(key.clone());
            }
        }
        group.ended.push(id);
        self.delete_keys(group, keys.into_iter().collect());
    }

    fn delete_keys(&mut self, group: &mut Group, keys: Vec<String>) {
        if keys.is_empty() {
            return;
        }
        let revision = self.revision + group.changes.len() as u64 + 1;
        let changes: Vec<Change> = keys.into_iter().map(|key| (key, None)).collect();
        group.overlay.extend(changes.iter().cloned());
        group.changes.push((revision, changes));
    }

    fn expire(&mut self, group: &mut Group) {
        let now = Instant::now();
        let over: Vec<LeaseId> = self
            .leases
            .iter()
            .filter(|(id, lease)| lease.ends <= now && !group.ended.contains(id))
            .map(|(id, _)| *id)
            .collect();
        if over.is_empty() {
            return;
        }
        if self.ready_to_write().is_err() {
            // Cannot be written down now: the leases stay ended, their keys go when it can.
            for id in over {
                if let Some(lease) = self.leases.get_mut(&id) {
                    lease.ends = now + REOPEN_EVERY;
                    lease.ttl = Duration::ZERO;
                }
            }
            return;
        }
        for id in over {
            self.end_lease(group, id);
        }
    }

    fn finish(&mut self, mut group: Group) {
        let written = if group.changes.is_empty() {
            Ok(())
        } else {
            self.write(&mut group)
        };
        match written {
            Ok(()) => {
                for (key, old, new) in group.bindings {
                    if let Some(lease) = old.and_then(|id| self.leases.get_mut(&id)) {
                        lease.keys.remove(&key);
                    }
                    if let Some(lease) = new.and_then(|id| self.leases.get_mut(&id)) {
                        lease.keys.insert(key);
                    }
                }
                for id in group.ended {
                    self.leases.remove(&id);
                }
                for (reply, outcome) in group.commits {
                    let _ = reply.send(Ok(outcome));
                }
                for reply in group.revokes {
                    let _ = reply.send(Ok(()));
                }
            }
            Err(error) => {
                for (reply, outcome) in group.commits {
                    // A conflict found against changes that did not happen is no conflict.
                    let _ = outcome;
                    let _ = reply.send(Err(error.clone()));
                }
                for reply in group.revokes {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }

    fn write(&mut self, group: &mut Group) -> Result<(), StoreError> {
        let revision = self.revision + group.changes.len() as u64;
        // In steps, so that most commits drop nothing.
        let keep_from = (revision + 1).saturating_sub(self.history_max).max(1);
        let drop = if keep_from >= self.oldest + (self.history_max / 8).max(1) {
            self.oldest..keep_from
        } else {
            self.oldest..self.oldest
        };
        let oldest = drop.end;
        let result = {
            let engine = self.engine.read().map_err(|_| StoreError::Closed)?;
            let engine = engine.as_ref().ok_or(StoreError::Closed)?;
            engine.write(&group.changes, revision, drop)
        };
        match result {
            Ok(()) => {
                self.revision = revision;
                self.oldest = oldest;
                self.published.send_replace(revision);
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "the store cannot be written");
                self.broken = Some((Instant::now(), error.to_string()));
                Err(error)
            }
        }
    }

    fn ready_to_write(&mut self) -> Result<(), StoreError> {
        self.check_space()?;
        let Some((tried, reason)) = &self.broken else {
            return Ok(());
        };
        if tried.elapsed() < REOPEN_EVERY {
            return Err(StoreError::Unavailable(reason.clone()));
        }
        // The engine refuses everything after one failed write, because it cannot know what is on
        // disk. Reading it again from disk is how it gets to know.
        match self.reopen() {
            Ok(()) => {
                tracing::warn!("the store was opened again after a failed write");
                self.broken = None;
                Ok(())
            }
            Err(error) => {
                self.broken = Some((Instant::now(), error.to_string()));
                Err(error)
            }
        }
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        {
            let mut engine = self.engine.write().map_err(|_| StoreError::Closed)?;
            *engine = None;
            *engine = Some(Engine::open(&self.path, |_| {})?);
        }
        self.reload()?;
        self.published.send_replace(self.revision);
        Ok(())
    }

    fn reload(&mut self) -> Result<(), StoreError> {
        let engine = self.engine.read().map_err(|_| StoreError::Closed)?;
        let engine = engine.as_ref().ok_or(StoreError::Closed)?;
        self.revision = engine.revision()?;
        self.oldest = engine.oldest()?;
        Ok(())
    }

    fn check_space(&self) -> Result<(), StoreError> {
        // When it cannot be told, the write itself will say.
        let Ok(stat) = rustix::fs::statvfs(&self.path) else {
            return Ok(());
        };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < self.reserve_bytes {
            return Err(StoreError::NoSpace {
                path: self.path.clone(),
                free,
                need: self.reserve_bytes,
            });
        }
        Ok(())
    }
}
