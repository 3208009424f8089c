//! The state of this host for the coordinator, wherever that is: numbered, a snapshot first and then what
//! changed. Composed only while somebody follows; once for all who do.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tanako_fleet::{ProcessName, ProcessSpec};
use tanako_proto::{fleet::v1 as fleet, host::v1 as wire};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Status;

use super::{Local, wire as convert};
use crate::{
    clock::now_ms,
    supervisor::{Desired as Wanted, ProcessStatus},
    worker::WorkerState,
};

/// Processes in one update: an update stays well within the size of a message.
const PROCESSES_MAX: usize = 250;
/// Processes that have gone which a follower may be behind before it is told everything anew.
const GONE_MAX: usize = 4096;
/// Between two updates to one follower.
const INTERVAL_MIN: Duration = Duration::from_millis(20);
const INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// A sign of life comes at least this often.
const ALIVE_EVERY: Duration = Duration::from_secs(1);
/// How long the supervisor may take to show what it was asked for.
const SHOWN_WITHIN: Duration = Duration::from_millis(100);

/// The state of this host; clones are cheap and equal.
#[derive(Clone)]
pub struct Feed(Arc<Inner>);

struct Inner {
    local: Local,
    /// Names this life of the agent.
    instance: String,
    latest: Mutex<Arc<Moment>>,
    publish: watch::Sender<Arc<Moment>>,
}

/// The host at one moment.
#[derive(Debug, Clone, Default)]
struct Moment {
    revision: u64,
    processes: BTreeMap<ProcessName, Arc<Entry>>,
    /// Those that have gone, oldest first, with the revision since which they are.
    gone: VecDeque<(u64, ProcessName)>,
    /// Nobody who has less than this can be told what has gone since.
    gone_from: u64,
}

#[derive(Debug)]
struct Entry {
    /// Revision in which it changed.
    changed: u64,
    /// And its spec.
    respecified: u64,
    status: Arc<ProcessStatus>,
    worker: Option<Arc<WorkerState>>,
    state: wire::ProcessState,
}

impl Feed {
    /// Composes until cancelled.
    pub fn start(local: Local, cancel: CancellationToken, tracker: &TaskTracker) -> Self {
        let inner = Inner {
            instance: format!("{:016x}", fastrand::u64(..)),
            local,
            latest: Mutex::default(),
            publish: watch::channel(Arc::default()).0,
        };
        let feed = Self(Arc::new(inner));
        let task = feed.clone().run();
        tracker.spawn(cancel.run_until_cancelled_owned(task));
        feed
    }

    async fn run(self) {
        let mut table = self.0.local.supervisor.status();
        let mut workers = self.0.local.workers.states();
        loop {
            tokio::select! {
                changed = table.changed() => if changed.is_err() { return },
                changed = workers.changed() => if changed.is_err() { return },
            }
            table.mark_unchanged();
            workers.mark_unchanged();
            if self.0.publish.receiver_count() > 0 {
                self.compose();
            }
            tokio::time::sleep(INTERVAL_MIN).await;
        }
    }

    /// Brings the state up to now; its revision.
    pub fn compose(&self) -> u64 {
        let local = &self.0.local;
        let mut latest = self.0.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let table = local.supervisor.status().borrow().clone();
        let workers = local.workers.states().borrow().clone();
        let mut next = Moment::clone(&latest);
        next.revision += 1;
        let mut changed = false;
        for (name, status) in table.iter() {
            let worker = workers.get(name);
            let known = next.processes.get(name);
            let same = known.is_some_and(|known| {
                let same_worker = match (&known.worker, worker) {
                    (Some(known), Some(worker)) => Arc::ptr_eq(known, worker),
                    (None, None) => true,
                    _ => false,
                };
                same_worker && Arc::ptr_eq(&known.status, status)
            });
            if same {
                continue;
            }
            let same_spec = known.filter(|known| {
                Arc::ptr_eq(&known.status.spec, &status.spec) || known.status.spec == status.spec
            });
            let entry = Entry {
                changed: next.revision,
                respecified: same_spec.map_or(next.revision, |known| known.respecified),
                status: Arc::clone(status),
                worker: worker.cloned(),
                state: self.state(status, worker.map(Arc::as_ref)),
            };
            next.processes.insert(name.clone(), Arc::new(entry));
            changed = true;
        }
        if next.processes.len() > table.len() {
            let gone: Vec<ProcessName> = next
                .processes
                .keys()
                .filter(|name| !table.contains_key(*name))
                .cloned()
                .collect();
            for name in gone {
                next.processes.remove(&name);
                next.gone.push_back((next.revision, name));
                changed = true;
            }
            while next.gone.len() > GONE_MAX {
                if let Some((revision, _)) = next.gone.pop_front() {
                    next.gone_from = revision;
                }
            }
        }
        if !changed {
            return latest.revision;
        }
        let next = Arc::new(next);
        *latest = Arc::clone(&next);
        let revision = next.revision;
        self.0.publish.send_replace(next);
        revision
    }

    /// The revision that shows what was just asked of the supervisor, as far as it shows it soon.
    pub async fn shown(&self, mut table: watch::Receiver<Arc<crate::supervisor::Table>>) -> u64 {
        // A change that does nothing is not shown at all.
        let _ = tokio::time::timeout(SHOWN_WITHIN, table.changed()).await;
        self.compose()
    }

    fn state(&self, status: &ProcessStatus, worker: Option<&WorkerState>) -> wire::ProcessState {
        let local = &self.0.local;
        let (deposits, sessions) = local.vault.deposits(&status.spec);
        let sample = local.sample.borrow().clone();
        let used = sample.processes.get(&status.name);
        let used = used.filter(|used| status.pid == Some(used.pid));
        wire::ProcessState {
            view: Some(fleet::Process {
                name: status.name.to_string(),
                kind: status.kind.to_string(),
                host: local.host.to_string(),
                state: status.state.as_str().to_owned(),
                ready: status.ready,
                pid: status.pid.unwrap_or(0),
                attempt: status.attempt,
                restarts: status.restarts,
                rss_bytes: used.map_or(0, |used| used.rss_bytes),
                desired: match status.desired {
                    Wanted::Running => "running",
                    Wanted::Stopped => "stopped",
                }
                .to_owned(),
                detail: status.detail.clone(),
                last_exit: status.last_exit.clone(),
                started_at: status.started_at_ms.unwrap_or(0),
                next_start_at: status.next_start_at_ms.unwrap_or(0),
                log_lines: status.log_lines,
                log_bytes: status.log_bytes,
                ..fleet::Process::default()
            }),
            worker: worker.map(convert::worker),
            adopted: status.adopted,
            needs_restart: status.needs_restart,
            ready_at: status.ready_at_ms.unwrap_or(0),
            limits: status.limits.clone(),
            spec: bytes::Bytes::new(),
            sessions: u32::try_from(sessions).unwrap_or(u32::MAX),
            deposits: deposits
                .iter()
                .map(|(shard, last)| convert::deposit(*shard, status.shard_count, last))
                .collect(),
        }
    }

    fn host(&self) -> fleet::Host {
        let local = &self.0.local;
        let sample = local.sample.borrow().clone();
        let host = &sample.host;
        fleet::Host {
            name: local.host.to_string(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            cpu_percent: host.cpu_percent,
            memory_used_bytes: host.memory_used_bytes,
            memory_total_bytes: host.memory_total_bytes,
            cpus: host.cpus,
            load1: host.load1,
            disk_used_bytes: host.disk_used_bytes,
            disk_total_bytes: host.disk_total_bytes,
            last_seen: now_ms(),
            ..fleet::Host::default()
        }
    }

    /// Feeds one follower until it or the agent leaves. It is told the newest there is whenever it has
    /// room: a slow one misses steps, never the outcome.
    pub async fn follow(
        self,
        interval_ms: u32,
        updates: mpsc::Sender<Result<wire::HostUpdate, Status>>,
        cancel: CancellationToken,
    ) {
        let every = match interval_ms {
            0 => INTERVAL_DEFAULT,
            ms => Duration::from_millis(ms.into()).clamp(INTERVAL_MIN, INTERVAL_MAX),
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = updates.closed() => {}
            () = self.tell(every, &updates) => {}
        }
    }

    async fn tell(
        &self,
        every: Duration,
        updates: &mpsc::Sender<Result<wire::HostUpdate, Status>>,
    ) {
        let mut news = self.0.publish.subscribe();
        self.compose();
        let mut alive = interval(ALIVE_EVERY);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told: Option<u64> = None;
        loop {
            let moment = news.borrow_and_update().clone();
            let behind = told.is_some_and(|told| told < moment.gone_from);
            for update in self.updates(told.filter(|_| !behind), &moment) {
                if updates.send(Ok(update)).await.is_err() {
                    return;
                }
            }
            told = Some(moment.revision);
            let not_before = Instant::now() + every;
            tokio::select! {
                _ = alive.tick() => {}
                changed = news.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    sleep_until(not_before).await;
                }
            }
        }
    }

    /// What is new to one who has been told `told`: a snapshot in parts, or what changed.
    fn updates(&self, told: Option<u64>, moment: &Moment) -> Vec<wire::HostUpdate> {
        let is_new = |at: u64| told.is_none_or(|told| at > told);
        let mut processes = moment
            .processes
            .values()
            .filter(|entry| is_new(entry.changed))
            .map(|entry| wire::ProcessState {
                spec: if is_new(entry.respecified) {
                    encode(&entry.status.spec)
                } else {
                    bytes::Bytes::new()
                },
                ..entry.state.clone()
            })
            .peekable();
        let mut removed: Vec<String> = moment
            .gone
            .iter()
            .filter(|(at, name)| {
                told.is_some_and(|told| *at > told) && !moment.processes.contains_key(name)
            })
            .map(|(_, name)| name.to_string())
            .collect();
        let mut all = Vec::new();
        loop {
            let snapshot = told.is_none() && all.is_empty();
            all.push(wire::HostUpdate {
                at: now_ms(),
                snapshot,
                instance: if snapshot {
                    self.0.instance.clone()
                } else {
                    String::new()
                },
                host: all.is_empty().then(|| self.host()),
                removed: std::mem::take(&mut removed),
                processes: processes.by_ref().take(PROCESSES_MAX).collect(),
                ..wire::HostUpdate::default()
            });
            if processes.peek().is_none() {
                break;
            }
        }
        // Only with the last part is the moment reached.
        let before = told.unwrap_or(0);
        let last = all.len() - 1;
        for (index, update) in all.iter_mut().enumerate() {
            update.revision = if index == last {
                moment.revision
            } else {
                before
            };
        }
        all
    }
}

fn encode(spec: &ProcessSpec) -> bytes::Bytes {
    serde_json::to_vec(spec)
        .expect("invariant: a spec has no map with odd keys")
        .into()
}
