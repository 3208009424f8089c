//! The worker socket: our bot and database node register here, report, ask for IDENTIFY permits,
//! deposit sessions and take commands.
//!
//! - `listen`: the socket, its mode, and how strangers are kept short.
//! - `admit`: who may speak for a process.
//! - `clean`: what a report may contain.
//! - [`duties`]: what each process does with its shards.
//! - `registry`: the last reports, the live streams, the commands under way.
//! - `service`: the gRPC service that ties them together.
//!
//! At most one stream speaks for a process: the newest Hello of its current attempt. What an older
//! one still sends falls away.

mod admit;
mod clean;
pub mod duties;
mod listen;
mod registry;
mod service;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tanako_fleet::ProcessName;
use tanako_proto::worker::v1::{self as wire, worker_server::WorkerServer};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    duties::Duties,
    registry::Registry,
    service::{Service, Shared},
};
use crate::{
    broadcast::Broadcast,
    identify::Broker,
    metrics::Latency,
    supervisor::{Supervisor, Table, WorkerInput},
    tenure::Tenure,
    vault::Vault,
};

/// Largest message of a worker: a shard's 2,500 guilds take 40 kB, a process's report far less.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Calls under way on one connection: a permit for each shard, and the stream.
const CALLS_MAX: u32 = 1024;
/// States are published no more often than this.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);
/// How long a worker may take to take a command.
const SEND_WITHIN: Duration = Duration::from_secs(5);
/// How long the streams may take to end when the agent stops.
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// Dead peers are noticed by pings.
const PING_EVERY: Duration = Duration::from_secs(30);

/// What the worker socket needs of the supervisor.
pub trait Processes: Send + Sync + 'static {
    /// The processes of this host.
    fn table(&self) -> watch::Receiver<Arc<Table>>;
    /// Passes on what a worker said. What a past attempt says falls away.
    fn worker_input(
        &self,
        name: ProcessName,
        attempt: u64,
        input: WorkerInput,
    ) -> BoxFuture<'_, ()>;
}

impl Processes for Supervisor {
    fn table(&self) -> watch::Receiver<Arc<Table>> {
        self.status()
    }

    fn worker_input(
        &self,
        name: ProcessName,
        attempt: u64,
        input: WorkerInput,
    ) -> BoxFuture<'_, ()> {
        Box::pin(async move { Supervisor::worker_input(self, &name, attempt, input).await })
    }
}

/// Where and how the socket is bound.
#[derive(Debug, Clone)]
pub struct Config {
    /// Path of the socket.
    pub socket: PathBuf,
    /// Whether the group may connect (mode 0660 instead of 0600), for processes of another user.
    pub group: bool,
    /// How often workers report.
    pub report_interval: Duration,
    /// What each process does with its shards.
    pub duties: Duties,
    /// Whether this host owns what it runs.
    pub tenure: Tenure,
}

/// A shard, as last reported.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ShardState {
    /// The report.
    pub report: wire::ShardReport,
    /// Dispatches a second, smoothed over a few seconds.
    pub events_per_s: f64,
}

/// A database node, as last reported.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DbState {
    /// The report.
    pub report: wire::DbReport,
    /// Reads a second, smoothed.
    pub reads_per_s: f64,
    /// Writes a second, smoothed.
    pub writes_per_s: f64,
}

/// A worker, as last reported.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerState {
    /// The attempt that reported.
    pub attempt: u64,
    /// Shard process or database node.
    pub kind: wire::WorkerKind,
    /// Version of its program.
    pub version: String,
    /// Whether its stream is up.
    pub attached: bool,
    /// Latest message, milliseconds since 1970.
    pub last_seen: i64,
    /// Its own stage.
    pub stage: wire::ProcessStage,
    /// Why it is not ready.
    pub detail: String,
    /// Its shards by id.
    pub shards: BTreeMap<u32, ShardState>,
    /// Its database figures.
    pub db: Option<DbState>,
    /// Additional gauges and counters.
    pub metrics: BTreeMap<String, f64>,
}

/// All workers.
pub type States = HashMap<ProcessName, Arc<WorkerState>>;

/// A command under way.
#[derive(Debug)]
pub struct CommandRun {
    /// Progress; old values are dropped when nobody reads.
    pub progress: mpsc::Receiver<wire::CommandProgress>,
    /// The outcome.
    pub result: oneshot::Receiver<Result<wire::CommandResult, CommandError>>,
}

/// Why a command did not come to a result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The process has no stream.
    #[error("{0} is not attached to the agent")]
    NotAttached(ProcessName),
    /// Too many commands are under way there.
    #[error("{0} is busy with other commands")]
    Busy(ProcessName),
    /// The worker went away before it answered.
    #[error("{0} went away before it answered")]
    Gone(ProcessName),
    /// No result in time.
    #[error("{0} did not finish within {1:?}")]
    Timeout(ProcessName, Duration),
    /// Its host does not answer, or said no.
    #[error("{0} cannot be given a command: {1}")]
    Away(ProcessName, String),
}

/// The socket cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Binding failed.
    #[error("worker socket {path} cannot be bound")]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Handle to the worker socket; cheap to clone.
#[derive(Clone)]
pub struct Workers {
    registry: Arc<Mutex<Registry>>,
    changed: Arc<Notify>,
    states: watch::Receiver<Arc<States>>,
    latency: Arc<Latency>,
    duties: Duties,
    broadcast: Arc<OnceLock<Broadcast>>,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers")
            .field("workers", &self.states.borrow().len())
            .finish_non_exhaustive()
    }
}

impl Workers {
    /// Binds the socket and serves it until cancelled. Workers that lose their stream then come
    /// back to the next agent by themselves.
    pub async fn start(
        config: Config,
        processes: Arc<dyn Processes>,
        broker: Broker,
        vault: Vault,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) -> Result<Self, StartError> {
        let listener = listen::bind_socket(&config.socket, config.group).map_err(|source| {
            StartError::Bind {
                path: config.socket.clone(),
                source,
            }
        })?;
        let (published, states) = watch::channel(Arc::default());
        let workers = Self {
            registry: Arc::default(),
            changed: Arc::new(Notify::new()),
            states,
            latency: Arc::new(Latency::new()),
            duties: config.duties.clone(),
            broadcast: Arc::default(),
        };
        let table = processes.table();
        // Processes that identify on their own say nothing here; their readiness shows the same.
        broker.follow(table.clone(), cancel.clone(), tracker);
        let service = Shared(Arc::new(Service {
            processes,
            broker,
            vault,
            registry: Arc::clone(&workers.registry),
            changed: Arc::clone(&workers.changed),
            report_interval: config.report_interval,
            duties: config.duties,
            broadcast: Arc::clone(&workers.broadcast),
            tenure: config.tenure,
            latency: Arc::clone(&workers.latency),
            cancel: cancel.clone(),
            tracker: tracker.clone(),
        }));
        let server = tonic::transport::Server::builder()
            .max_concurrent_streams(CALLS_MAX)
            .http2_keepalive_interval(Some(PING_EVERY))
            .http2_keepalive_timeout(Some(PING_EVERY))
            .http2_max_pending_accept_reset_streams(Some(64))
            .add_service(WorkerServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX));
        let stop = cancel.clone();
        tracker.spawn(async move {
            let stopped = stop.clone();
            let serving = server
                .serve_with_incoming_shutdown(listen::accept(listener), stop.cancelled_owned());
            tokio::pin!(serving);
            let outcome = tokio::select! {
                outcome = &mut serving => outcome,
                // A peer that keeps a call open does not keep the agent.
                outcome = async {
                    stopped.cancelled().await;
                    tokio::time::sleep(STOP_WITHIN).await;
                    Ok(())
                } => outcome,
            };
            if let Err(error) = outcome {
                tracing::error!(error = %error, "worker socket ended");
            }
        });
        tracker.spawn(workers.clone().publish_loop(published, table, cancel));
        Ok(workers)
    }

    /// What the workers last reported; published at most ten times a second.
    pub fn states(&self) -> watch::Receiver<Arc<States>> {
        self.states.clone()
    }

    /// What each process does with its shards.
    pub fn duties(&self) -> &Duties {
        &self.duties
    }

    /// From now on workers may ask all shards of their bot.
    pub fn set_broadcast(&self, broadcast: Broadcast) {
        if self.broadcast.set(broadcast).is_err() {
            tracing::error!("the way to all shards was set twice");
        }
    }

    /// How long a worker's message takes to handle.
    pub fn latency(&self) -> Arc<Latency> {
        Arc::clone(&self.latency)
    }

    /// Sends a command to a worker; its id is set here. The result, or the reason why there is
    /// none, comes within `deadline`.
    pub async fn command(
        &self,
        process: &ProcessName,
        command: wire::command::Command,
        deadline: Duration,
    ) -> Result<CommandRun, CommandError> {
        let (outbox, message, run) = self
            .registry
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .command(process, command, deadline)?;
        self.changed.notify_one();
        outbox
            .send_timeout(Ok(message), SEND_WITHIN)
            .await
            .map_err(|_| CommandError::Gone(process.clone()))?;
        Ok(run)
    }

    /// Publishes states and lets commands expire, until cancelled.
    async fn publish_loop(
        self,
        published: watch::Sender<Arc<States>>,
        mut table: watch::Receiver<Arc<Table>>,
        cancel: CancellationToken,
    ) {
        loop {
            let deadline = self.lock(|registry| registry.next_deadline());
            let expiry = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.changed.notified() => {}
                () = expiry => {}
                changed = table.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let table = table.borrow_and_update().clone();
                    self.lock(|registry| registry.forget(|name| table.contains_key(name)));
                }
            }
            let changes = self.lock(|registry| {
                registry.expire(Instant::now());
                registry.take_changes()
            });
            if let Some(states) = changes {
                published.send_replace(Arc::new(states));
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(PUBLISH_EVERY) => {}
                }
            }
        }
    }

    fn lock<T>(&self, act: impl FnOnce(&mut Registry) -> T) -> T {
        act(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
