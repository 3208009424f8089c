//! The worker socket: our bot and database node register here, report, ask for IDENTIFY permits,
//! deposit sessions and take commands.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use tanako_fleet::ProcessName;
use tanako_proto::worker::v1 as wire;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    identify::Broker,
    supervisor::{Supervisor, Table, WorkerInput},
    vault::Vault,
};

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
#[derive(Debug, Clone)]
pub struct Workers;

impl Workers {
    /// Binds the socket and serves it.
    pub async fn start(
        config: Config,
        processes: Arc<dyn Processes>,
        broker: Broker,
        vault: Vault,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) -> Result<Self, StartError> {
        todo!()
    }

    /// What the workers last reported; published at most ten times a second.
    pub fn states(&self) -> watch::Receiver<Arc<States>> {
        todo!()
    }

    /// Sends a command to a worker; its id is set here. The result comes within `deadline`.
    pub async fn command(
        &self,
        process: &ProcessName,
        command: wire::command::Command,
        deadline: Duration,
    ) -> Result<CommandRun, CommandError> {
        todo!()
    }
}
