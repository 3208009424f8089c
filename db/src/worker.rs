//! The connection to the agent that supervises this node: reports out, commands in.
//!
//! Reports go out once a second and at each change of stage. Commands run beside the serving; their
//! results are kept until a stream takes them, so that an agent that restarts meanwhile still
//! learns the outcome. Without the agent the node serves all the same.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tanako_proto::worker::v1::agent_message::Message as FromAgent;
use tanako_proto::worker::v1::command::Command as Order;
use tanako_proto::worker::v1::worker_client::WorkerClient;
use tanako_proto::worker::v1::worker_message::Message as ToAgent;
use tanako_proto::worker::v1::{
    Command, CommandProgress, CommandResult, DbReport, Hello, ProcessReport, ProcessStage,
    WorkerKind, WorkerMessage,
};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::backup::{BackupError, Progress};
use crate::metrics::quantile_ms;
use crate::node::Node;

const CONNECT_WITHIN: Duration = Duration::from_secs(2);
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(3);
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Progress of a command is reported at most this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// Messages that may wait for the agent to read them.
const QUEUE: usize = 64;
/// Results kept for an agent that is away; the oldest is dropped beyond this.
const RESULTS_KEPT: usize = 64;
/// Commands that may run at one time.
const COMMANDS: usize = 4;

/// Who we are, from the environment that the agent gave us.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The agent's socket, `TANAKO_SOCKET`.
    pub socket: PathBuf,
    /// Our name, `TANAKO_PROCESS`.
    pub process: String,
    /// Which start of the process this is, `TANAKO_ATTEMPT`.
    pub attempt: u64,
}

impl Identity {
    /// What the environment says, if an agent supervises us.
    pub fn from_environment(name: &str) -> Option<Self> {
        let socket = std::env::var_os("TANAKO_SOCKET").filter(|socket| !socket.is_empty())?;
        Some(Self {
            socket: socket.into(),
            process: std::env::var("TANAKO_PROCESS").unwrap_or_else(|_| format!("db/{name}")),
            attempt: std::env::var("TANAKO_ATTEMPT")
                .ok()
                .and_then(|text| text.parse().ok())
                .unwrap_or_default(),
        })
    }
}

/// The node's side of the connection. Shared by the task, the commands and `main`.
pub struct Worker {
    identity: Identity,
    stage: watch::Sender<ProcessStage>,
    node: OnceLock<(Arc<Node>, String)>,
    stop: CancellationToken,
    results: Mutex<VecDeque<CommandResult>>,
    result_waits: Notify,
    /// The stream that is open now, for progress.
    stream: Mutex<Option<mpsc::Sender<WorkerMessage>>>,
    commands: TaskTracker,
}

impl Worker {
    /// A worker in stage "starting". `stop` is cancelled when the agent asks us to drain.
    pub fn new(identity: Identity, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            identity,
            stage: watch::Sender::new(ProcessStage::Starting),
            node: OnceLock::new(),
            stop,
            results: Mutex::new(VecDeque::new()),
            result_waits: Notify::new(),
            stream: Mutex::new(None),
            commands: TaskTracker::new(),
        })
    }

    /// The node answers clients at this address from now on.
    pub fn ready(&self, node: Arc<Node>, url: String) {
        if self.node.set((node, url)).is_ok() {
            self.stage.send_replace(ProcessStage::Ready);
        }
    }

    /// The node stops: no more requests are taken.
    pub fn draining(&self) {
        self.stage.send_replace(ProcessStage::Draining);
    }

    /// Keeps connected to the agent until `end` is cancelled.
    pub async fn run(self: Arc<Self>, end: CancellationToken) {
        let mut backoff = BACKOFF_FIRST;
        let mut told = false;
        loop {
            let started = Instant::now();
            let attached = tokio::select! {
                () = end.cancelled() => return,
                attached = self.attach() => attached,
            };
            *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = None;
            let why = match attached {
                Ok(()) => "the stream ended".to_owned(),
                Err(why) => why,
            };
            if started.elapsed() > BACKOFF_MAX {
                backoff = BACKOFF_FIRST;
                told = false;
            }
            if !told {
                tracing::warn!(reason = %why, "not attached to the agent; retrying");
                told = true;
            }
            let wait = backoff / 2 + backoff.mul_f64(fastrand::f64() / 2.0);
            backoff = (backoff * 2).min(BACKOFF_MAX);
            tokio::select! {
                () = end.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn attach(self: &Arc<Self>) -> Result<(), String> {
        let channel = tokio::time::timeout(CONNECT_WITHIN, connect(self.identity.socket.clone()))
            .await
            .map_err(|_| "the agent does not answer".to_owned())??;
        let (sender, queue) = mpsc::channel(QUEUE);
        let hello = Hello {
            process: self.identity.process.clone(),
            attempt: self.identity.attempt,
            pid: std::process::id(),
            kind: WorkerKind::Db.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        send(&sender, ToAgent::Hello(hello)).await?;
        let mut stage = self.stage.subscribe();
        let first = *stage.borrow_and_update();
        send(
            &sender,
            ToAgent::Report(self.report(first, &mut Interval::default())),
        )
        .await?;
        let attached = tokio::time::timeout(
            CONNECT_WITHIN,
            WorkerClient::new(channel).attach(ReceiverStream::new(queue)),
        )
        .await
        .map_err(|_| "the agent does not answer".to_owned())?
        .map_err(|status| status.message().to_owned())?;
        let mut commands = attached.into_inner();
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender.clone());
        tracing::info!(process = %self.identity.process, "attached to the agent");
        let mut interval = Interval::default();
        let mut every = tokio::time::interval(REPORT_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.result_waits.notify_one();
        loop {
            tokio::select! {
                message = commands.message() => match message.map_err(|status| status.message().to_owned())? {
                    Some(message) => self.handle(message.message),
                    None => return Ok(()),
                },
                _ = every.tick() => {
                    let now = *stage.borrow();
                    send(&sender, ToAgent::Report(self.report(now, &mut interval))).await?;
                }
                changed = stage.changed() => {
                    changed.map_err(|_| "stopping".to_owned())?;
                    let now = *stage.borrow_and_update();
                    send(&sender, ToAgent::Report(self.report(now, &mut interval))).await?;
                }
                () = self.result_waits.notified() => {
                    while let Some(result) = self.next_result() {
                        if send(&sender, ToAgent::Result(result.clone())).await.is_err() {
                            self.keep_result(result, true);
                            return Err("the agent does not read".to_owned());
                        }
                    }
                }
            }
        }
    }

    fn handle(self: &Arc<Self>, message: Option<FromAgent>) {
        match message {
            Some(FromAgent::Welcome(welcome)) if welcome.superseded => {
                tracing::warn!("a newer start of this process is attached; stopping");
                self.stop.cancel();
            }
            Some(FromAgent::Command(command)) => {
                if self.commands.len() >= COMMANDS {
                    self.keep_result(
                        refused(
                            command.id,
                            "overloaded",
                            "too many commands run on this node",
                            "retry when they have ended",
                        ),
                        false,
                    );
                    return;
                }
                let worker = Arc::clone(self);
                self.commands.spawn(async move {
                    let result = worker.carry_out(command).await;
                    worker.keep_result(result, false);
                });
            }
            Some(FromAgent::Welcome(_) | FromAgent::DepositAck(_) | FromAgent::Validity(_))
            | None => {}
        }
    }

    async fn carry_out(self: &Arc<Self>, command: Command) -> CommandResult {
        let id = command.id;
        let Some(order) = command.command else {
            return refused(
                id,
                "unknown_command",
                "this node does not know the command",
                "upgrade the node",
            );
        };
        if let Order::Drain(_) = order {
            self.stop.cancel();
            return done(id, "{}".to_owned());
        }
        let Some((node, _)) = self.node.get() else {
            return refused(
                id,
                "not_ready",
                "the node is still starting",
                "retry when it is ready",
            );
        };
        let outcome = match order {
            Order::Backup(order) => node.backup(order.directory.into(), self.progress(id)).await.map(|(path, manifest)| {
                serde_json::json!({ "archive": path, "manifest": manifest, "rows": manifest.rows() })
            }),
            Order::Verify(order) => node.verify(paths(order.archives), self.progress(id)).await.map(|manifests| {
                let rows: u64 = manifests.iter().map(crate::backup::Manifest::rows).sum();
                serde_json::json!({ "archives": manifests, "rows": rows })
            }),
            Order::Restore(order) => node.restore(paths(order.archives), self.progress(id)).await.map(|loaded| {
                serde_json::json!({ "rows": loaded.rows_loaded, "rows_in_archives": loaded.rows_total })
            }),
            Order::Drain(_) => return done(id, "{}".to_owned()),
            Order::StandDown(_)
            | Order::TakeOver(_)
            | Order::Share(_)
            | Order::Reconnect(_)
            | Order::Ask(_) => {
                return refused(
                    id,
                    "unsupported",
                    "a database node holds no shards",
                    "send this to a shard process",
                );
            }
        };
        match outcome {
            Ok(json) => done(id, json.to_string()),
            Err(error) => {
                let text = crate::store::chain(&error);
                tracing::error!(error = %text, "command failed");
                refused(id, error.code(), &text, hint(&error))
            }
        }
    }

    /// Sends progress at a bounded rate; what the agent is too slow to read is left out.
    fn progress(self: &Arc<Self>, id: u64) -> Box<Progress<'static>> {
        let worker = Arc::clone(self);
        let mut told: Option<Instant> = None;
        Box::new(move |rows, total| {
            if rows != total && told.is_some_and(|told| told.elapsed() < PROGRESS_EVERY) {
                return;
            }
            told = Some(Instant::now());
            let stream = worker.stream.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(sender) = &*stream {
                let progress = CommandProgress {
                    id,
                    done: rows,
                    total,
                    unit: "rows".to_owned(),
                };
                let _ = sender.try_send(WorkerMessage {
                    message: Some(ToAgent::Progress(progress)),
                });
            }
        })
    }

    fn next_result(&self) -> Option<CommandResult> {
        self.results
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    fn keep_result(&self, result: CommandResult, front: bool) {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        if results.len() >= RESULTS_KEPT {
            results.pop_front();
        }
        if front {
            results.push_front(result);
        } else {
            results.push_back(result);
        }
        drop(results);
        self.result_waits.notify_one();
    }

    fn report(&self, stage: ProcessStage, interval: &mut Interval) -> ProcessReport {
        let mut report = ProcessReport {
            stage: stage.into(),
            ..ProcessReport::default()
        };
        let Some((node, url)) = self.node.get() else {
            "opening the store".clone_into(&mut report.detail);
            return report;
        };
        let metrics = &node.metrics;
        let totals = metrics.totals();
        let reads = metrics.reads.counts().to_vec();
        let writes = metrics.writes.counts().to_vec();
        let quantile = |before: &Vec<u64>, after: &[u64], share| {
            let zero = vec![0; after.len()];
            quantile_ms(if before.is_empty() { &zero } else { before }, after, share)
        };
        report.db = Some(DbReport {
            rows: metrics.rows_total(),
            bytes_on_disk: node.store.engine().map_or(0, |engine| engine.disk_bytes()),
            reads: totals.reads,
            writes: totals.writes,
            forwards: metrics.forwards.load(Relaxed),
            errors: totals.errors,
            connections: u32::try_from(metrics.connections.load(Relaxed)).unwrap_or_default(),
            read_p50_ms: quantile(&interval.reads, &reads, 0.5),
            read_p99_ms: quantile(&interval.reads, &reads, 0.99),
            write_p50_ms: quantile(&interval.writes, &writes, 0.5),
            write_p99_ms: quantile(&interval.writes, &writes, 0.99),
            url: url.clone(),
        });
        *interval = Interval { reads, writes };
        report
    }
}

/// The latency counts at the previous report.
#[derive(Default)]
struct Interval {
    reads: Vec<u64>,
    writes: Vec<u64>,
}

async fn connect(socket: PathBuf) -> Result<Channel, String> {
    // The address is never used: the connector goes to the socket.
    Endpoint::from_static("http://agent")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
        .map_err(|error| crate::store::chain(&error))
}

async fn send(sender: &mpsc::Sender<WorkerMessage>, message: ToAgent) -> Result<(), String> {
    tokio::time::timeout(
        CONNECT_WITHIN,
        sender.send(WorkerMessage {
            message: Some(message),
        }),
    )
    .await
    .map_err(|_| "the agent does not read".to_owned())?
    .map_err(|_| "the stream ended".to_owned())
}

fn paths(archives: Vec<String>) -> Vec<PathBuf> {
    archives.into_iter().map(PathBuf::from).collect()
}

fn done(id: u64, json: String) -> CommandResult {
    CommandResult {
        id,
        ok: true,
        json,
        ..CommandResult::default()
    }
}

fn refused(id: u64, code: &str, message: &str, hint: &str) -> CommandResult {
    CommandResult {
        id,
        ok: false,
        code: code.to_owned(),
        message: message.to_owned(),
        hint: hint.to_owned(),
        json: String::new(),
    }
}

fn hint(error: &BackupError) -> &'static str {
    match error {
        BackupError::Io { .. } => "check that the path exists and that the node may use it",
        BackupError::DiskFull { .. } => "free space, or choose another directory",
        BackupError::Foreign { .. } => "give the NODE.tbk files of a backup",
        BackupError::Version { .. } => "use a tanako-db as new as the one that wrote the archive",
        BackupError::Damaged { .. } => "use another backup",
        BackupError::Incomplete(_) => "give the archives of all nodes of one backup",
        BackupError::Store(_) | BackupError::Directory(_) => "see the node's log",
    }
}
