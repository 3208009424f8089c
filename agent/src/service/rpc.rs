//! The calls of the fleet service.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt};
use tanako_fleet::{
    ProcessName,
    target::{self, Row, Target},
};
use tanako_proto::fleet::v1::{self as wire, Problem, fleet_server::Fleet};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status};

use super::{doctor, locate, logs, view, watch as watching};
use crate::{
    audit::{self, Record},
    backup::set,
    broadcast::{Broadcast, Question},
    clock::now_ms,
    config::Config,
    coordinator::Caller,
    desired::Desired,
    health::{self, Health},
    history::History,
    identify::Broker,
    metrics::{Metrics, Sample},
    migrate::valve::Valve,
    office::Front,
    problem,
    supervisor::{Supervisor, Table},
    upgrade,
    vault::Vault,
    worker::{States, Workers},
};

/// Operations listed when no number is given, and at most.
const OPERATIONS_DEFAULT: u32 = 50;
const OPERATIONS_MAX: u32 = 200;
/// Audit records listed when no number is given, and at most.
const AUDIT_DEFAULT: u32 = 100;
const AUDIT_MAX: u32 = 10_000;
/// Events listed when no number is given, and at most.
const EVENTS_DEFAULT: u32 = 100;
const EVENTS_MAX: u32 = 10_000;
/// History asked for at most: a day, and so many points.
const HISTORY_SECONDS_MAX: u32 = 24 * 3600;
const HISTORY_SECONDS_DEFAULT: u32 = 600;
const HISTORY_POINTS_DEFAULT: u32 = 120;
const HISTORY_POINTS_MAX: u32 = 10_000;
/// Metrics of one history request.
const HISTORY_METRICS_MAX: usize = 64;
/// Updates under way to one watcher: with one, what waits is never old.
const UPDATES_MAX: usize = 1;
/// Log streams at once.
const LOG_STREAMS_MAX: usize = 32;

type Reply<T> = Result<Response<T>, Status>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the calls are answered from.
#[derive(Clone)]
pub struct Sources {
    /// Where things are.
    pub config: Arc<Config>,
    /// Where HTTP is served.
    pub http: std::net::SocketAddr,
    /// When the agent started, in milliseconds since 1970.
    pub started_at: i64,
    /// The durable state.
    pub store: Arc<dyn tanako_store::Store>,
    /// What is wanted and done.
    pub coordinator: Front,
    /// The processes.
    pub supervisor: Supervisor,
    /// Their reports.
    pub workers: Workers,
    /// Their sessions.
    pub vault: Vault,
    /// Their budget.
    pub broker: Broker,
    /// What is measured.
    pub metrics: Metrics,
    /// What is thought of their shards.
    pub health: Health,
    /// What was.
    pub history: History,
    /// Questions to all shards.
    pub broadcast: Broadcast,
    /// The store of one machine, where it is one.
    pub valve: Option<Valve>,
}

impl Sources {
    /// The status now.
    pub fn status(&self) -> wire::FleetStatus {
        let parts = self.parts();
        let mut status = view::compose(&parts.inputs(&self.config.host, self.started_at));
        if let Some(reason) = self.undecided() {
            status.healthy = false;
            status.reasons.insert(0, reason);
        }
        status
    }

    /// Why the fleet is not healthy.
    pub fn reasons(&self) -> Vec<String> {
        let parts = self.parts();
        let reasons = view::reasons(&parts.inputs(&self.config.host, self.started_at));
        self.undecided().into_iter().chain(reasons).collect()
    }

    /// Why nothing is decided here.
    fn undecided(&self) -> Option<String> {
        self.coordinator.standing().borrow().reason()
    }

    fn parts(&self) -> Parts {
        Parts {
            desired: self.coordinator.watch_desired().borrow().clone(),
            table: self.supervisor.status().borrow().clone(),
            workers: self.workers.states().borrow().clone(),
            sample: self.metrics.latest().borrow().clone(),
            identify: self.broker.status().borrow().clone(),
            operations: self.coordinator.watch_operations().borrow().clone(),
            health: self.health.view().borrow().clone(),
        }
    }

    fn desired(&self) -> Arc<Desired> {
        self.coordinator.watch_desired().borrow().clone()
    }
}

/// One moment of everything that is published.
struct Parts {
    desired: Arc<Desired>,
    table: Arc<Table>,
    workers: Arc<States>,
    sample: Arc<Sample>,
    identify: Arc<wire::IdentifyStatus>,
    operations: Arc<crate::coordinator::Operations>,
    health: Arc<health::View>,
}

impl Parts {
    fn inputs<'a>(&'a self, host: &'a str, started_at: i64) -> view::Inputs<'a> {
        view::Inputs {
            host,
            now: now_ms(),
            started_at,
            desired: &self.desired,
            table: &self.table,
            workers: &self.workers,
            sample: &self.sample,
            identify: &self.identify,
            operations: &self.operations,
            health: &self.health,
        }
    }
}

/// Asks the main task for an upgrade; the answer comes before the agent is replaced.
pub type Upgrades = mpsc::Sender<oneshot::Sender<Result<String, upgrade::UpgradeError>>>;

/// The fleet service.
#[derive(Clone)]
pub struct Service {
    pub(super) sources: Sources,
    pub(super) upgrades: Upgrades,
    cancel: CancellationToken,
    tracker: TaskTracker,
    log_streams: Arc<tokio::sync::Semaphore>,
}

impl Service {
    /// The service over its sources; streams end with `cancel`.
    pub fn new(
        sources: Sources,
        upgrades: Upgrades,
        cancel: CancellationToken,
        tracker: TaskTracker,
    ) -> Self {
        let log_streams = Arc::new(tokio::sync::Semaphore::new(LOG_STREAMS_MAX));
        Self {
            sources,
            upgrades,
            cancel,
            tracker,
            log_streams,
        }
    }

    /// The processes that targets stand for; none = all.
    fn resolve(&self, texts: &[String]) -> Result<Vec<ProcessName>, Status> {
        let desired = self.sources.desired();
        let rows: Vec<Row<'_>> = desired
            .processes
            .iter()
            .map(|spec| Row {
                name: &spec.name,
                kind: spec.kind,
                host: &self.sources.config.host,
                shard_ids: &spec.shard_ids,
                shard_count: spec.shard_count,
            })
            .collect();
        let targets: Result<Vec<Target>, _> = match texts {
            [] => Ok(vec![Target::All]),
            texts => texts.iter().map(|text| text.parse()).collect(),
        };
        targets
            .and_then(|targets| target::resolve(&targets, &rows))
            .map_err(|error| problem::status(problem::from_target(&error)))
    }
}

fn caller<T>(request: &Request<T>) -> Caller {
    request
        .extensions()
        .get::<Caller>()
        .cloned()
        .unwrap_or_else(|| Caller::agent("unknown"))
}

fn refused(refusal: Problem) -> Status {
    problem::status(refusal)
}

fn bounded(asked: u32, default: u32, max: u32) -> usize {
    (if asked == 0 { default } else { asked }).min(max) as usize
}

fn stream<T: Send + 'static>(receiver: mpsc::Receiver<Result<T, Status>>) -> Streamed<T> {
    ReceiverStream::new(receiver).boxed()
}

#[tonic::async_trait]
impl Fleet for Service {
    type WatchStream = Streamed<wire::FleetUpdate>;
    type WatchOperationStream = Streamed<wire::Operation>;
    type LogsStream = Streamed<wire::LogLine>;
    type EventsStream = Streamed<wire::Event>;

    async fn get_status(&self, _: Request<wire::StatusRequest>) -> Reply<wire::FleetStatus> {
        Ok(Response::new(self.sources.status()))
    }

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Reply<Self::WatchStream> {
        let every = watching::interval_of(request.get_ref().interval_ms);
        let (updates, receiver) = mpsc::channel(UPDATES_MAX);
        self.tracker.spawn(watching::feed(
            self.sources.clone(),
            every,
            updates,
            self.cancel.clone(),
        ));
        Ok(Response::new(stream(receiver)))
    }

    async fn get_spec(&self, _: Request<wire::SpecRequest>) -> Reply<wire::SpecDocument> {
        let desired = self.sources.desired();
        if desired.spec.is_none() {
            return Err(refused(
                Problem::new("no-spec", "fleet", "the fleet has no spec yet")
                    .hint("write a fleet.toml and run `tanakoctl apply fleet.toml`"),
            ));
        }
        Ok(Response::new(wire::SpecDocument {
            toml: desired.document.toml.clone(),
            version: desired.document.version,
        }))
    }

    async fn plan(&self, request: Request<wire::PlanRequest>) -> Reply<wire::PlanReply> {
        let reply = self.sources.coordinator.plan(request.into_inner()).await;
        reply.map(Response::new).map_err(refused)
    }

    async fn apply(&self, request: Request<wire::ApplyRequest>) -> Reply<wire::Operation> {
        let caller = caller(&request);
        let reply = self
            .sources
            .coordinator
            .apply(request.into_inner(), caller)
            .await;
        reply.map(Response::new).map_err(refused)
    }

    async fn submit(&self, request: Request<wire::OperationRequest>) -> Reply<wire::Operation> {
        let caller = caller(&request);
        let reply = self
            .sources
            .coordinator
            .submit(request.into_inner(), caller)
            .await;
        reply.map(Response::new).map_err(refused)
    }

    async fn get_operation(&self, request: Request<wire::OperationId>) -> Reply<wire::Operation> {
        let found = self
            .sources
            .coordinator
            .operation(&request.get_ref().id)
            .await;
        found.map(Response::new).map_err(refused)
    }

    async fn list_operations(
        &self,
        request: Request<wire::ListOperationsRequest>,
    ) -> Reply<wire::OperationList> {
        let limit = bounded(request.get_ref().limit, OPERATIONS_DEFAULT, OPERATIONS_MAX);
        let operations = self
            .sources
            .coordinator
            .operations(limit)
            .await
            .map_err(refused)?;
        Ok(Response::new(wire::OperationList { operations }))
    }

    async fn watch_operation(
        &self,
        request: Request<wire::OperationId>,
    ) -> Reply<Self::WatchOperationStream> {
        let id = request.into_inner().id;
        let changes = self.sources.coordinator.watch_operations();
        let first = self
            .sources
            .coordinator
            .operation(&id)
            .await
            .map_err(refused)?;
        let (updates, receiver) = mpsc::channel(UPDATES_MAX);
        let coordinator = self.sources.coordinator.clone();
        let cancel = self.cancel.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = updates.closed() => {}
                () = follow_operation(coordinator, changes, first, &updates) => {}
            }
        });
        Ok(Response::new(stream(receiver)))
    }

    async fn control_operation(
        &self,
        request: Request<wire::ControlRequest>,
    ) -> Reply<wire::Operation> {
        let caller = caller(&request);
        let reply = self
            .sources
            .coordinator
            .control(request.into_inner(), caller)
            .await;
        reply.map(Response::new).map_err(refused)
    }

    async fn logs(&self, request: Request<wire::LogsRequest>) -> Reply<Self::LogsStream> {
        let request = request.into_inner();
        let names = self.resolve(&request.targets)?;
        let query = logs::Query::new(names, &request).map_err(|problem| refused(*problem))?;
        let Ok(permit) = self.log_streams.clone().try_acquire_owned() else {
            return Err(refused(
                Problem::new(
                    "too-many",
                    "logs",
                    format!("{LOG_STREAMS_MAX} readers are served already"),
                )
                .hint("end one of them")
                .retryable(),
            ));
        };
        let (lines, receiver) = mpsc::channel(logs::QUEUE_MAX);
        let all = self.sources.supervisor.logs().clone();
        let cancel = self.cancel.clone();
        self.tracker.spawn(async move {
            logs::send(all, query, lines, cancel).await;
            drop(permit);
        });
        Ok(Response::new(stream(receiver)))
    }

    async fn events(&self, request: Request<wire::EventsRequest>) -> Reply<Self::EventsStream> {
        let request = request.into_inner();
        // Subscribed before reading: between the two nothing is lost, and ids tell what came twice.
        let live = self.sources.history.subscribe();
        let tail = bounded(request.tail, EVENTS_DEFAULT, EVENTS_MAX);
        let past = self
            .sources
            .history
            .events(tail, request.since, &request.targets)
            .await;
        let (sender, receiver) = mpsc::channel(logs::QUEUE_MAX);
        let cancel = self.cancel.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = sender.closed() => {}
                () = send_events(past, live, request, &sender) => {}
            }
        });
        Ok(Response::new(stream(receiver)))
    }

    async fn history(&self, request: Request<wire::HistoryRequest>) -> Reply<wire::HistoryReply> {
        let request = request.into_inner();
        if request.metrics.is_empty() || request.metrics.len() > HISTORY_METRICS_MAX {
            return Err(refused(
                Problem::new(
                    "invalid-argument",
                    "metrics",
                    format!("name 1 to {HISTORY_METRICS_MAX} metrics"),
                )
                .hint("for example cpu_percent and rss_bytes"),
            ));
        }
        match request.target.parse::<Target>() {
            Ok(Target::Host(host)) if host == self.sources.config.host => {}
            Ok(Target::Process(_) | Target::Host(_)) => {
                self.resolve(std::slice::from_ref(&request.target))?;
            }
            Ok(_) => {
                return Err(refused(
                    Problem::new(
                        "invalid-target",
                        &request.target,
                        "history is kept of processes and hosts",
                    )
                    .hint("use tanako/3 or host:a"),
                ));
            }
            Err(error) => return Err(refused(problem::from_target(&error))),
        }
        let seconds = bounded(
            request.seconds,
            HISTORY_SECONDS_DEFAULT,
            HISTORY_SECONDS_MAX,
        );
        let points = bounded(request.points, HISTORY_POINTS_DEFAULT, HISTORY_POINTS_MAX);
        let series = self
            .sources
            .history
            .series(
                &request.target,
                &request.metrics,
                seconds as u32,
                points as u32,
            )
            .await;
        Ok(Response::new(wire::HistoryReply { series }))
    }

    async fn locate_guild(
        &self,
        request: Request<wire::GuildRequest>,
    ) -> Reply<wire::GuildLocation> {
        let guild_id = request.get_ref().guild_id;
        let parts = self.sources.parts();
        let Some(spec) = parts.desired.spec.clone() else {
            return Err(refused(Problem::new(
                "no-spec",
                "fleet",
                "the fleet has no spec yet",
            )));
        };
        let shards = locate::shards(&parts.desired, guild_id)
            .into_iter()
            .map(|shard| {
                let process = parts.table.get(&shard.process);
                let worker = parts.workers.get(&shard.process).filter(|worker| {
                    process.is_some_and(|process| process.attempt == worker.attempt)
                });
                let stage = worker
                    .and_then(|worker| worker.shards.get(&shard.id))
                    .map_or("unknown", |shard| view::stage(shard.report.stage()));
                let sessions = process.map_or_else(Vec::new, |process| {
                    self.sources.vault.sessions_for(&process.spec, None)
                });
                let guilds = sessions
                    .iter()
                    .find(|session| session.shard_id == shard.id)
                    .and_then(|session| session.guilds.as_ref());
                wire::GuildShard {
                    bot: shard.bot,
                    shard_id: shard.id,
                    shard_count: shard.count,
                    process: shard.process.to_string(),
                    host: self.sources.config.host.clone(),
                    state: process
                        .map_or("unknown", |process| process.state.as_str())
                        .to_owned(),
                    stage: stage.to_owned(),
                    present: guilds.map(|guilds| guilds.ids.contains(&guild_id)),
                }
            })
            .collect();
        let node = locate::node(&spec, guild_id);
        let (db_node, db_url) = node.unwrap_or_default();
        let db_host = if db_node.is_empty() {
            String::new()
        } else {
            self.sources.config.host.clone()
        };
        Ok(Response::new(wire::GuildLocation {
            guild_id,
            shards,
            db_node: if db_node.is_empty() {
                db_node
            } else {
                format!("db/{db_node}")
            },
            db_url,
            db_host,
        }))
    }

    async fn broadcast(
        &self,
        request: Request<wire::BroadcastRequest>,
    ) -> Reply<tanako_proto::worker::v1::BroadcastReply> {
        let asked = request.into_inner();
        let question =
            Question::new(asked.question, asked.json, asked.timeout_ms).map_err(refused)?;
        let reply = self.sources.broadcast.ask(&asked.bot, question).await;
        reply.map(Response::new).map_err(refused)
    }

    async fn get_identify(
        &self,
        _: Request<wire::IdentifyStatusRequest>,
    ) -> Reply<wire::IdentifyStatus> {
        let status = self.sources.broker.status().borrow().clone();
        Ok(Response::new((*status).clone()))
    }

    async fn list_backups(&self, _: Request<wire::ListBackupsRequest>) -> Reply<wire::BackupList> {
        let Some(directory) = self.sources.desired().backup_dir() else {
            return Ok(Response::new(wire::BackupList::default()));
        };
        let root = std::path::PathBuf::from(&directory);
        let listed = {
            let root = root.clone();
            tokio::task::spawn_blocking(move || set::list(&root)).await
        };
        let listed = listed.unwrap_or_else(|_| Err(std::io::Error::other("interrupted")));
        let sets = listed.map_err(|error| refused(set::unreadable(&root, &error)))?;
        let backups = sets.iter().map(set::Found::to_wire).collect();
        Ok(Response::new(wire::BackupList { backups, directory }))
    }

    async fn audit(&self, request: Request<wire::AuditRequest>) -> Reply<wire::AuditList> {
        let limit = bounded(request.get_ref().limit, AUDIT_DEFAULT, AUDIT_MAX);
        let records = audit::list(&*self.sources.store, limit)
            .await
            .map_err(|error| refused(problem::from_store(&error)))?;
        Ok(Response::new(wire::AuditList { records }))
    }

    async fn doctor(&self, _: Request<wire::DoctorRequest>) -> Reply<wire::DoctorReport> {
        Ok(Response::new(doctor::examine(&self.sources).await))
    }

    async fn migrate_store(
        &self,
        request: Request<wire::MigrateStoreRequest>,
    ) -> Reply<wire::MigrateStoreReply> {
        let caller = caller(&request);
        let moved = self.move_store(request.into_inner(), caller).await;
        moved.map(Response::new).map_err(refused)
    }

    async fn advise(&self, _: Request<wire::AdviseRequest>) -> Reply<wire::Advice> {
        let advice = self.sources.coordinator.advise().await;
        advice.map(Response::new).map_err(refused)
    }

    async fn upgrade(&self, request: Request<wire::UpgradeRequest>) -> Reply<wire::UpgradeReply> {
        let caller = caller(&request);
        let (answer, checked) = oneshot::channel();
        let mut record = Record {
            at: now_ms(),
            who: caller.who,
            from: caller.from,
            action: "upgrade".to_owned(),
            object: format!("host:{}", self.sources.config.host),
            before: env!("CARGO_PKG_VERSION").to_owned(),
            after: "the binary on disk".to_owned(),
            outcome: "accepted".to_owned(),
        };
        self.sources
            .coordinator
            .audit(record.clone())
            .await
            .map_err(refused)?;
        self.upgrades
            .send(answer)
            .await
            .map_err(|_| refused(problem::stopping()))?;
        match checked.await {
            Ok(Ok(_)) => Ok(Response::new(wire::UpgradeReply {
                from_version: env!("CARGO_PKG_VERSION").to_owned(),
            })),
            Ok(Err(error)) => {
                record.outcome = format!("failed: {error}");
                // The failure itself is the answer, whether it can be written down or not.
                let _ = self.sources.coordinator.audit(record).await;
                let source = std::error::Error::source(&error).map(ToString::to_string);
                Err(refused(
                    Problem::new("upgrade-failed", "agent", error.to_string())
                        .cause(source.unwrap_or_default())
                        .hint("the agent goes on in its present version; install a working binary and try again"),
                ))
            }
            Err(_) => Err(refused(problem::stopping())),
        }
    }
}

async fn follow_operation(
    coordinator: Front,
    mut changes: watch::Receiver<Arc<crate::coordinator::Operations>>,
    first: wire::Operation,
    updates: &mpsc::Sender<Result<wire::Operation, Status>>,
) {
    let mut shown = first;
    loop {
        let ended = shown.ended_at > 0;
        if updates.send(Ok(shown.clone())).await.is_err() || ended {
            return;
        }
        loop {
            if changes.changed().await.is_err() {
                return;
            }
            // One that has ended long ago is found in the store.
            match coordinator.operation(&shown.id).await {
                Ok(op) if op != shown => {
                    shown = op;
                    break;
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}

async fn send_events(
    past: Vec<wire::Event>,
    mut live: broadcast::Receiver<wire::Event>,
    request: wire::EventsRequest,
    sender: &mpsc::Sender<Result<wire::Event, Status>>,
) {
    let mut last = 0;
    for event in past {
        last = last.max(event.id);
        if sender.send(Ok(event)).await.is_err() {
            return;
        }
    }
    if !request.follow {
        return;
    }
    loop {
        match live.recv().await {
            Ok(event) => {
                let wanted = History::is_about(&event, &request.targets);
                if event.id > last && wanted && sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                let event = wire::Event {
                    at: now_ms(),
                    severity: "warning".to_owned(),
                    kind: "events-missed".to_owned(),
                    object: "events".to_owned(),
                    message: format!("{missed} events came faster than they were read"),
                    ..wire::Event::default()
                };
                if sender.send(Ok(event)).await.is_err() {
                    return;
                }
                // A reader that slow is given time to catch up.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}
