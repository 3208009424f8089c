//! The calls of the fleet service.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{FutureExt, Stream, StreamExt, future::BoxFuture};
use tanako_fleet::target::Target;
use tanako_proto::fleet::v1::{
    self as wire, Problem, fleet_client::FleetClient, fleet_server::Fleet,
};
use tanako_store::Txn;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, transport::Channel};

use super::{
    backups, doctor, everywhere, gather::Gather, happened, locate, logs, watch as watching,
};
use crate::{
    audit::{self, Record},
    broadcast::{Broadcast, Question},
    clock::now_ms,
    config::Config,
    coordinator::Caller,
    health::Health,
    history::History,
    hub::{
        Hub, Stopping,
        core::Core,
        forward::{self, Call, Make, Place},
        peer,
    },
    identify::Broker,
    metrics::Metrics,
    migrate::valve::Valve,
    office::{Front, Wanted},
    operations::ledger,
    problem,
    supervisor::Supervisor,
    upgrade,
    vault::Vault,
    worker::Workers,
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
/// An operation is looked at at least, and at most, this often.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const LOOK_SPACING: Duration = Duration::from_millis(50);
/// A status waits so long for hosts that have not been asked before.
pub(super) const SETTLE_MAX: Duration = Duration::from_millis(1_500);
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
    /// All of that, of all hosts.
    pub hub: Hub,
    /// What is wanted, whoever decides.
    pub wanted: Wanted,
}

impl Sources {
    /// Writes down a change of this host that needs no decision, whoever decides.
    async fn note(&self, record: Record) -> Result<(), Box<Problem>> {
        if self.wanted.decides() {
            return self.coordinator.audit(record).await.map_err(Box::new);
        }
        let noted = async {
            let txn = audit::note(&*self.store, Txn::new(), &record).await?;
            self.store.commit(txn).await
        };
        match noted.await {
            Ok(_) => Ok(()),
            Err(error) => Err(Box::new(problem::from_store(&error))),
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

    /// Carries out what changes the fleet, here or where the office is.
    async fn decide<T: Clone, R>(
        &self,
        request: Request<T>,
        make: Make<T, R>,
        here: impl FnOnce(T, Caller) -> BoxFuture<'static, Result<R, Problem>> + Send,
    ) -> Reply<R> {
        let front = &self.sources.coordinator;
        let caller = caller(&request);
        let standing = front.standing().borrow().clone();
        let place = forward::find(&self.sources.hub, &standing, request.metadata()).await;
        let (metadata, _, message) = request.into_parts();
        let reply = match place {
            Place::Here => here(message, caller).await.map_err(refused),
            // Without a way to it, there is only its name to give.
            Place::There(_) if self.sources.hub.dial().is_none() => {
                here(message, caller).await.map_err(refused)
            }
            Place::There(leader) => {
                let call = Call {
                    message,
                    caller,
                    metadata,
                };
                forward::forward(&self.sources.hub, front, leader, call, make, here).await
            }
        };
        reply.map(Response::new)
    }

    /// An operation, from what the coordinator tells, else from the store.
    async fn operation(&self, id: &str, passed_on: bool) -> Result<wire::Operation, Status> {
        let asked = id.to_owned();
        let hub = &self.sources.hub;
        let told = hub
            .look(move |core, _| core.operation(&asked).cloned())
            .await;
        if let Some(operation) = told.map_err(stopped)? {
            return Ok(operation);
        }
        let stored = ledger::by_id(&*self.sources.store, id).await;
        let request = wire::OperationId { id: id.to_owned() };
        let again = |mut client: FleetClient<Channel>| async move {
            client.get_operation(peer::hop(request)).await
        };
        self.or_there(stored, passed_on, again).await
    }
}

fn caller<T>(request: &Request<T>) -> Caller {
    request
        .extensions()
        .get::<Caller>()
        .cloned()
        .unwrap_or_else(|| Caller::agent("unknown"))
}

pub(super) fn stopped(_: Stopping) -> Status {
    refused(problem::stopping())
}

pub(super) fn refused(refusal: impl Into<Box<Problem>>) -> Status {
    problem::status(*refusal.into())
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
        let hub = &self.sources.hub;
        hub.settled(SETTLE_MAX).await.map_err(stopped)?;
        let status = hub.look(Core::status).await;
        status.map(Response::new).map_err(stopped)
    }

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Reply<Self::WatchStream> {
        let every = watching::interval_of(request.get_ref().interval_ms);
        let (updates, receiver) = mpsc::channel(UPDATES_MAX);
        self.tracker.spawn(watching::feed(
            self.sources.hub.clone(),
            every,
            updates,
            self.cancel.clone(),
        ));
        Ok(Response::new(stream(receiver)))
    }

    async fn get_spec(&self, request: Request<wire::SpecRequest>) -> Reply<wire::SpecDocument> {
        let passed_on = peer::is_hop(request.metadata());
        let desired = match self.sources.wanted.told().await {
            Ok(desired) => desired,
            Err(problem) => {
                let again = |mut client: FleetClient<Channel>| async move {
                    client.get_spec(peer::hop(wire::SpecRequest {})).await
                };
                let there = self.or_there(Err(*problem), passed_on, again).await;
                return there.map(Response::new);
            }
        };
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
        let front = self.sources.coordinator.clone();
        self.decide(
            request,
            |mut client, request| async move { client.plan(request).await }.boxed(),
            |message, _| async move { front.plan(message).await }.boxed(),
        )
        .await
    }

    async fn apply(&self, mut request: Request<wire::ApplyRequest>) -> Reply<wire::Operation> {
        let front = self.sources.coordinator.clone();
        name_request(&mut request.get_mut().request_id);
        self.decide(
            request,
            |mut client, request| async move { client.apply(request).await }.boxed(),
            |message, caller| async move { front.apply(message, caller).await }.boxed(),
        )
        .await
    }

    async fn submit(&self, mut request: Request<wire::OperationRequest>) -> Reply<wire::Operation> {
        let front = self.sources.coordinator.clone();
        name_request(&mut request.get_mut().request_id);
        self.decide(
            request,
            |mut client, request| async move { client.submit(request).await }.boxed(),
            |message, caller| async move { front.submit(message, caller).await }.boxed(),
        )
        .await
    }

    async fn control_operation(
        &self,
        request: Request<wire::ControlRequest>,
    ) -> Reply<wire::Operation> {
        let front = self.sources.coordinator.clone();
        self.decide(
            request,
            |mut client, request| async move { client.control_operation(request).await }.boxed(),
            |message, caller| async move { front.control(message, caller).await }.boxed(),
        )
        .await
    }

    async fn get_operation(&self, request: Request<wire::OperationId>) -> Reply<wire::Operation> {
        let passed_on = peer::is_hop(request.metadata());
        self.operation(&request.get_ref().id, passed_on)
            .await
            .map(Response::new)
    }

    async fn list_operations(
        &self,
        request: Request<wire::ListOperationsRequest>,
    ) -> Reply<wire::OperationList> {
        let passed_on = peer::is_hop(request.metadata());
        let asked = request.into_inner();
        let limit = bounded(asked.limit, OPERATIONS_DEFAULT, OPERATIONS_MAX);
        let told = self.sources.hub.look(|core, _| core.operations(0)).await;
        let told = told.map_err(stopped)?;
        let stored = ledger::list(&*self.sources.store, limit).await;
        let operations = match stored {
            // What runs is fresher with the coordinator than on disk.
            Ok(stored) => stored
                .iter()
                .map(|op| {
                    let known = told.iter().find(|known| known.id == op.id);
                    known.map_or_else(|| op.to_wire(), Clone::clone)
                })
                .collect(),
            Err(error) => {
                let again = |mut client: FleetClient<Channel>| async move {
                    client.list_operations(peer::hop(asked)).await
                };
                let unread = Err(problem::unread(error.to_string()));
                match self.or_there(unread, passed_on, again).await {
                    Ok(list) => return Ok(Response::new(list)),
                    Err(_) if !told.is_empty() => told.into_iter().rev().take(limit).collect(),
                    Err(status) => return Err(status),
                }
            }
        };
        Ok(Response::new(wire::OperationList { operations }))
    }

    async fn watch_operation(
        &self,
        request: Request<wire::OperationId>,
    ) -> Reply<Self::WatchOperationStream> {
        let first = self.operation(&request.into_inner().id, false).await?;
        let (updates, receiver) = mpsc::channel(UPDATES_MAX);
        let service = self.clone();
        let cancel = self.cancel.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = updates.closed() => {}
                () = follow_operation(service, first, &updates) => {}
            }
        });
        Ok(Response::new(stream(receiver)))
    }

    async fn logs(&self, request: Request<wire::LogsRequest>) -> Reply<Self::LogsStream> {
        let passed_on = peer::is_hop(request.metadata());
        let request = request.into_inner();
        let placed = if passed_on {
            self.named(&request.targets)
        } else {
            self.resolve(&request.targets).await?
        };
        let own = &self.sources.config.host;
        let names = placed.get(own).cloned().unwrap_or_default();
        let query = logs::Query::new(names, &request).map_err(|problem| refused(*problem))?;
        let elsewhere = !passed_on && self.sources.hub.dial().is_some();
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
        let gather = elsewhere.then(|| Gather {
            hub: self.sources.hub.clone(),
            logs: all.clone(),
            request,
            placed,
        });
        self.tracker.spawn(async move {
            match gather {
                None => logs::send(all, query, lines, cancel).await,
                Some(gather) => tokio::select! {
                    () = cancel.cancelled() => {}
                    () = lines.closed() => {}
                    () = gather.send(&lines) => {}
                },
            }
            drop(permit);
        });
        Ok(Response::new(stream(receiver)))
    }

    async fn events(&self, request: Request<wire::EventsRequest>) -> Reply<Self::EventsStream> {
        let passed_on = peer::is_hop(request.metadata());
        let request = request.into_inner();
        let (hub, history) = (self.sources.hub.clone(), self.sources.history.clone());
        let tail = bounded(request.tail, EVENTS_DEFAULT, EVENTS_MAX);
        // Before reading: between the two nothing is lost, and ids tell what came twice.
        let now = happened::from_now(&hub).await;
        let past = if passed_on {
            history.events(tail, request.since, &request.targets).await
        } else {
            happened::past(&hub, &history, &request, tail).await
        };
        let (sender, receiver) = mpsc::channel(logs::QUEUE_MAX);
        let cancel = self.cancel.clone();
        self.tracker.spawn(async move {
            let send = async {
                for event in &past {
                    if sender.send(Ok(event.clone())).await.is_err() {
                        return;
                    }
                }
                if request.follow {
                    happened::live(&hub, now, &past, &request.targets, &sender).await;
                }
            };
            tokio::select! {
                () = cancel.cancelled() => {}
                () = sender.closed() => {}
                () = send => {}
            }
        });
        Ok(Response::new(stream(receiver)))
    }

    async fn history(&self, request: Request<wire::HistoryRequest>) -> Reply<wire::HistoryReply> {
        let passed_on = peer::is_hop(request.metadata());
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
        let own = self.sources.config.host.clone();
        let host = match request.target.parse::<Target>() {
            _ if passed_on => own.clone(),
            Ok(Target::Host(host)) if host == own => host,
            Ok(Target::Host(host)) => {
                let hub = &self.sources.hub;
                let others = hub.look(|core, _| core.others()).await.map_err(stopped)?;
                if !others.contains_key(&host) {
                    self.resolve(std::slice::from_ref(&request.target)).await?;
                }
                host
            }
            Ok(Target::Process(_)) => {
                let placed = self.resolve(std::slice::from_ref(&request.target)).await?;
                placed.into_keys().next().unwrap_or_else(|| own.clone())
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
        };
        if host != own {
            let asked = peer::ask(&self.sources.hub, &host, |mut client| async move {
                client.history(peer::hop(request)).await
            });
            return asked.await.map(Response::new).map_err(refused);
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
        let passed_on = peer::is_hop(request.metadata());
        let guild_id = request.get_ref().guild_id;
        self.sources
            .hub
            .settled(SETTLE_MAX)
            .await
            .map_err(stopped)?;
        let desired = match self.sources.wanted.told().await {
            Ok(desired) => desired,
            Err(problem) => {
                let again = |mut client: FleetClient<Channel>| async move {
                    let request = peer::hop(wire::GuildRequest { guild_id });
                    client.locate_guild(request).await
                };
                let there = self.or_there(Err(*problem), passed_on, again).await;
                return there.map(Response::new);
            }
        };
        let Some(spec) = &desired.spec else {
            return Err(refused(Problem::new(
                "no-spec",
                "fleet",
                "the fleet has no spec yet",
            )));
        };
        let node = locate::node(spec, guild_id);
        let shards = locate::shards(&desired, guild_id);
        let location = self.sources.hub.look(move |core, _| {
            locate::compose(guild_id, &shards, node, |name| {
                let process = core.process(name)?;
                Some((core.host_of(name)?.to_owned(), process))
            })
        });
        let mut location = location.await.map_err(stopped)?;
        self.find_guild(&mut location, passed_on).await;
        Ok(Response::new(location))
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
        let identify = self.sources.hub.look(|core, _| core.identify()).await;
        identify.map(Response::new).map_err(stopped)
    }

    async fn list_backups(
        &self,
        request: Request<wire::ListBackupsRequest>,
    ) -> Reply<wire::BackupList> {
        let passed_on = peer::is_hop(request.metadata());
        let desired = self.sources.wanted.told().await.map_err(refused)?;
        self.backups(&desired, passed_on).await.map(Response::new)
    }

    async fn audit(&self, request: Request<wire::AuditRequest>) -> Reply<wire::AuditList> {
        let passed_on = peer::is_hop(request.metadata());
        let asked = request.into_inner();
        let limit = bounded(asked.limit, AUDIT_DEFAULT, AUDIT_MAX);
        let stored = match audit::list(&*self.sources.store, limit).await {
            Ok(records) => Ok(wire::AuditList { records }),
            Err(error) => Err(problem::unread(error.to_string())),
        };
        let again =
            |mut client: FleetClient<Channel>| async move { client.audit(peer::hop(asked)).await };
        let list = self.or_there(stored, passed_on, again).await;
        list.map(Response::new)
    }

    async fn doctor(&self, request: Request<wire::DoctorRequest>) -> Reply<wire::DoctorReport> {
        let told = self.sources.wanted.told().await;
        let own = doctor::examine(&self.sources, &told);
        if peer::is_hop(request.metadata()) {
            return Ok(Response::new(own.await));
        }
        let others = everywhere::ask(&self.sources.hub, |mut client| async move {
            client.doctor(peer::hop(wire::DoctorRequest {})).await
        });
        let backups = async {
            let Ok(desired) = &told else { return None };
            backups::finding(desired, self.backups(desired, false).await)
        };
        let (mut report, others, backups) = tokio::join!(own, others, backups);
        everywhere::add_findings(&mut report, self.sources.hub.host(), others);
        report.findings.extend(backups);
        Ok(Response::new(report))
    }

    async fn migrate_store(
        &self,
        request: Request<wire::MigrateStoreRequest>,
    ) -> Reply<wire::MigrateStoreReply> {
        let caller = caller(&request);
        let moved = self.move_store(request.into_inner(), caller).await;
        moved.map(Response::new).map_err(refused)
    }

    async fn advise(&self, request: Request<wire::AdviseRequest>) -> Reply<wire::Advice> {
        let front = self.sources.coordinator.clone();
        self.decide(
            request,
            |mut client, request| async move { client.advise(request).await }.boxed(),
            |_, _| async move { front.advise().await }.boxed(),
        )
        .await
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
        self.sources.note(record.clone()).await.map_err(refused)?;
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
                let _ = self.sources.note(record).await;
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

/// A request that is made twice, since its agent was lost on the way, is one.
fn name_request(id: &mut String) {
    if id.is_empty() {
        *id = format!("{:016x}", fastrand::u64(..));
    }
}

async fn follow_operation(
    service: Service,
    first: wire::Operation,
    updates: &mpsc::Sender<Result<wire::Operation, Status>>,
) {
    let mut pulse = service.sources.hub.pulse();
    let mut seen = 0;
    let mut shown = first;
    loop {
        let ended = shown.ended_at > 0;
        if updates.send(Ok(shown.clone())).await.is_err() || ended {
            return;
        }
        loop {
            // A look is itself a sign of life of this host, and so no reason for the next one.
            let news = pulse.wait_for(|pulse| pulse.urgent != seen);
            if let Ok(Err(_)) = tokio::time::timeout(LOOK_EVERY, news).await {
                return;
            }
            tokio::time::sleep(LOOK_SPACING).await;
            // What changes during the look is news for the next one.
            seen = pulse.borrow_and_update().urgent;
            // One that has ended long ago is found in the store.
            match service.operation(&shown.id, false).await {
                Ok(op) if op != shown => {
                    shown = op;
                    break;
                }
                Ok(_) => {}
                // Between two offices, or while the store is away, it is as it was.
                Err(status) if status.code() == tonic::Code::Unavailable => {}
                Err(_) => return,
            }
        }
    }
}
