//! What the rest of the agent holds of the supervisor: a handle that sends commands to the task
//! that owns the table.

use std::{
    collections::BTreeMap,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use futures_util::future::BoxFuture;
use rustix::process::{Resource, Rlimit};
use tanako_fleet::{ProcessName, ProcessSpec};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    adopt,
    cgroup::Cgroups,
    exits::Exits,
    notify::NotifySocket,
    procfs,
    records::Records,
    spawner::{self, Common, Spawner},
    status::{Desired, SupervisorEvent, Table},
    table::{Owner, Parts},
};
use crate::logs::Logs;

/// Commands that wait for the table's task; a sender waits when there are more.
const COMMANDS_MAX: usize = 1024;
/// Events a slow reader may be behind before it misses some.
const EVENTS_MAX: usize = 4096;

/// Where the supervisor keeps its things, and what every child gets.
#[derive(Debug, Clone)]
pub struct Config {
    /// Holds `logs/` and `run/records` and is the working directory of children without one.
    pub data_dir: PathBuf,
    /// Holds the notify socket. Keep it short: the path of a socket has at most 107 bytes.
    pub run_dir: PathBuf,
    /// Name of this host, for messages.
    pub host: String,
    /// Environment of every child, under what its spec says. Besides it, children get only the
    /// well-known variables of the agent's own environment (`PATH`, `HOME`, `LANG`, `TZ`, …), and
    /// from the supervisor `TANAKO_PROCESS`, `TANAKO_ATTEMPT`, `TANAKO_RUN`, `NOTIFY_SOCKET`.
    pub base_env: BTreeMap<String, String>,
    /// Where a command without a slash is looked up first; then in `PATH`.
    pub search_path: Vec<PathBuf>,
    /// The cgroup v2 subtree for the children. Unset: the one delegated to the agent, if any.
    pub cgroup: Option<PathBuf>,
}

/// Spaces the starts of processes that identify on their own ([`ProcessSpec::gated`]).
pub trait StartGate: Send + Sync {
    /// Resolves when the process may start now. An error is a failed start; its text is shown.
    /// The future is dropped when the process is stopped while it waits.
    fn acquire(&self, spec: &ProcessSpec, attempt: u64) -> BoxFuture<'static, Result<(), String>>;

    /// Whether this process waits for [`StartGate::acquire`] although its spec does not say so.
    fn guards(&self, spec: &ProcessSpec) -> bool {
        let _ = spec;
        false
    }

    /// Whether the process may be started in this very moment; why not. Looked at right before and right
    /// after: one that was started in between is killed.
    fn may_start(&self, spec: &ProcessSpec) -> Result<(), String> {
        let _ = spec;
        Ok(())
    }

    /// What the process needs in its environment to ask by itself. May hold secrets.
    fn environment(&self, spec: &ProcessSpec, attempt: u64) -> Vec<(&'static str, String)> {
        let _ = (spec, attempt);
        Vec::new()
    }
}

/// A gate that is always open.
#[derive(Debug, Clone, Copy)]
pub struct Ungated;

impl StartGate for Ungated {
    fn acquire(&self, _: &ProcessSpec, _: u64) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// What a process reported over the worker socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerInput {
    /// It registered. A sign of life.
    Attached,
    /// It is ready.
    Ready,
    /// It is not ready at the moment, and why.
    NotReady(String),
    /// It lives.
    Alive,
    /// It is finishing its work and will exit.
    Draining,
}

/// Why the supervisor did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// No process of that name is defined here.
    #[error("no process {0} on this host; `tanakoctl status` lists all")]
    Unknown(ProcessName),
    /// The process is not running.
    #[error("{0} is not running")]
    NotRunning(ProcessName),
    /// Not a signal that may be sent.
    #[error("{0:?} is not a signal; known are TERM, INT, QUIT, HUP, USR1, USR2, KILL, CONT, STOP")]
    BadSignal(String),
    /// The agent is leaving.
    #[error("the supervisor has stopped: the agent is shutting down")]
    Gone,
    /// A file or directory of the supervisor could not be used.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// Asked of the table's task.
pub(super) enum Command {
    /// With the number that its next attempt must exceed.
    Define(Arc<ProcessSpec>, Desired, u64, Reply),
    Forget(ProcessName, Reply),
    Start(ProcessName, Reply),
    Stop(ProcessName, Reply),
    Restart(ProcessName, u64, Reply),
    Signal(ProcessName, String, Reply),
    Worker(ProcessName, u64, WorkerInput),
    Detach(Reply),
}

/// Answer to a command.
pub(super) type Reply = oneshot::Sender<Result<(), SupervisorError>>;

/// A handle on the supervisor; clones are cheap and equal.
#[derive(Clone)]
pub struct Supervisor {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Arc<Table>>,
    events: broadcast::Sender<SupervisorEvent>,
    /// Subscribed before the first event, handed to the first who asks.
    first_events: Arc<Mutex<Option<broadcast::Receiver<SupervisorEvent>>>>,
    logs: Logs,
}

impl Supervisor {
    /// Takes over the children of an earlier agent and starts supervising. Blocks for some
    /// milliseconds (it looks through `/proc`); must be called within a tokio runtime.
    ///
    /// Cancelling `cancel` is the same as [`Supervisor::detach`].
    pub fn start(
        config: Config,
        gate: Arc<dyn StartGate>,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) -> Result<Self, SupervisorError> {
        let run = config.data_dir.join("run");
        for dir in [&config.data_dir, &run, &config.run_dir] {
            make_dir(dir)?;
        }
        // Every child costs three descriptors: its pidfd, its log, its socket to the agent.
        let limit = rustix::process::getrlimit(Resource::Nofile);
        if let Err(error) = rustix::process::setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                maximum: limit.maximum,
            },
        ) {
            tracing::warn!(%error, "the limit of open files could not be raised");
        }
        let notify_socket = config.run_dir.join("notify.sock");
        let notify = NotifySocket::bind(&notify_socket)
            .map_err(|source| failed("bind (at most 107 bytes of path)", &notify_socket, source))?;
        let records_path = run.join("records");
        let (records, loaded) =
            Records::open(&records_path).map_err(|source| failed("read", &records_path, source))?;
        let logs_path = config.data_dir.join("logs");
        let logs = Logs::open(&logs_path).map_err(|source| failed("use", &logs_path, source))?;
        let cgroups = match &config.cgroup {
            Some(path) => {
                Some(Cgroups::at(path).map_err(|source| failed("use as a cgroup", path, source))?)
            }
            None => Cgroups::detect(),
        };
        let instance = adopt::instance(&config.data_dir)
            .map_err(|source| failed("look at", &config.data_dir, source))?;
        let boot: Arc<str> = procfs::boot_id().into();
        let damaged = loaded.damaged;
        let left = adopt::look(instance, &boot, loaded)
            .map_err(|source| failed("look through", Path::new("/proc"), source))?;
        let data_dir = config.data_dir.to_string_lossy().into_owned();
        let (outcomes_tx, outcomes) = mpsc::channel(COMMANDS_MAX);
        let spawner = Spawner::start(
            Arc::new(Common {
                base_env: config.base_env,
                inherited: spawner::inherited(),
                search_path: config.search_path,
                data_dir: config.data_dir,
                notify_socket,
                cgroups,
                gate: Arc::clone(&gate),
            }),
            outcomes_tx,
        )
        .map_err(|source| failed("start threads for", Path::new("the spawner"), source))?;
        let exits = Exits::new()
            .map_err(|source| failed("make an epoll for", Path::new("exits"), source))?;

        let (commands, commands_rx) = mpsc::channel(COMMANDS_MAX);
        let (events, first_events) = broadcast::channel(EVENTS_MAX);
        let (publish, status) = watch::channel(Arc::new(Table::new()));
        let owner = Owner::new(
            Parts {
                data_dir,
                instance,
                boot,
                records,
                logs: logs.clone(),
                exits,
                notify,
                spawner,
                outcomes,
                gate,
                tracker: tracker.clone(),
                events: events.clone(),
                publish,
            },
            left,
            damaged,
        );
        tracker.spawn(owner.run(commands_rx, cancel));
        Ok(Self {
            commands,
            status,
            events,
            first_events: Arc::new(Mutex::new(Some(first_events))),
            logs,
        })
    }

    /// Defines a process, or changes its spec, or what is wanted of it. A changed spec does not
    /// restart a running process: its status then says `needs_restart`. A changed spec gives a
    /// failed process a new chance. Defining the same twice changes nothing.
    pub async fn define(
        &self,
        spec: impl Into<Arc<ProcessSpec>>,
        desired: Desired,
    ) -> Result<(), SupervisorError> {
        self.define_after(spec, desired, 0).await
    }

    /// The same for a process that ran on another host, up to attempt `attempt_min`: attempts never
    /// go back, wherever they are.
    pub async fn define_after(
        &self,
        spec: impl Into<Arc<ProcessSpec>>,
        desired: Desired,
        attempt_min: u64,
    ) -> Result<(), SupervisorError> {
        let spec = spec.into();
        self.ask(|reply| Command::Define(spec, desired, attempt_min, reply))
            .await
    }

    /// Stops a process and drops it from the table once it is gone. Its log files stay.
    pub async fn forget(&self, name: &ProcessName) -> Result<(), SupervisorError> {
        self.ask(|reply| Command::Forget(name.clone(), reply)).await
    }

    /// Starts a process by hand: never refused by backoff or crash-loop guard. Returns when the
    /// start is under way; a process that runs already is left alone.
    pub async fn start_process(&self, name: &ProcessName) -> Result<(), SupervisorError> {
        self.ask(|reply| Command::Start(name.clone(), reply)).await
    }

    /// Stops a process; it stays stopped. Returns when the stop is under way.
    pub async fn stop(&self, name: &ProcessName) -> Result<(), SupervisorError> {
        self.ask(|reply| Command::Stop(name.clone(), reply)).await
    }

    /// Replaces attempt `attempt` of a process by a new one: stops it if it runs, then starts it.
    /// Returns when that is under way. Does nothing where another attempt is the latest already:
    /// the order has come late or twice.
    pub async fn restart(&self, name: &ProcessName, attempt: u64) -> Result<(), SupervisorError> {
        self.ask(|reply| Command::Restart(name.clone(), attempt, reply))
            .await
    }

    /// Sends a signal (`HUP`, `USR1`, …) to the process itself.
    pub async fn signal(&self, name: &ProcessName, signal: &str) -> Result<(), SupervisorError> {
        self.ask(|reply| Command::Signal(name.clone(), signal.to_owned(), reply))
            .await
    }

    /// Passes on what attempt `attempt` of a process reported. What an attempt reports that is over
    /// falls away.
    pub async fn worker_input(&self, name: &ProcessName, attempt: u64, input: WorkerInput) {
        // Nobody is left to care when the table's task is gone.
        let _ = self
            .commands
            .send(Command::Worker(name.clone(), attempt, input))
            .await;
    }

    /// The table of all processes, as a value that changes: at once when it is quiet, 25 times a
    /// second in bursts.
    pub fn status(&self) -> watch::Receiver<Arc<Table>> {
        self.status.clone()
    }

    /// Events from now on; the first caller also gets those since [`Supervisor::start`].
    pub fn events(&self) -> broadcast::Receiver<SupervisorEvent> {
        self.first_events
            .lock()
            .ok()
            .and_then(|mut first| first.take())
            .unwrap_or_else(|| self.events.subscribe())
    }

    /// The processes' logs.
    pub fn logs(&self) -> &Logs {
        &self.logs
    }

    /// The agent is leaving: writes down who runs, stops acting and leaves the children alone.
    /// Every later call answers [`SupervisorError::Gone`].
    pub async fn detach(&self) -> Result<(), SupervisorError> {
        self.ask(Command::Detach).await
    }

    async fn ask(&self, command: impl FnOnce(Reply) -> Command) -> Result<(), SupervisorError> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| SupervisorError::Gone)?;
        answer.await.unwrap_or(Err(SupervisorError::Gone))
    }
}

fn failed(what: &'static str, path: &Path, source: std::io::Error) -> SupervisorError {
    SupervisorError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

fn make_dir(path: &Path) -> Result<(), SupervisorError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| failed("make the directory", path, source))
}
