//! A Fleet service over a unix socket that serves the fixture and takes restarts.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tanako_proto::fleet::v1::{
    Advice, AdviseRequest, ApplyRequest, AuditList, AuditRequest, BackupList, BroadcastRequest,
    ControlRequest, DoctorReport, DoctorRequest, Event, EventsRequest, FleetDelta, FleetStatus,
    FleetUpdate, GuildLocation, GuildRequest, HistoryReply, HistoryRequest, IdentifyStatus,
    IdentifyStatusRequest, ListBackupsRequest, ListOperationsRequest, LogLine, LogsRequest,
    MigrateStoreReply, MigrateStoreRequest, Operation, OperationId, OperationList,
    OperationRequest, PlanReply, PlanRequest, Problem, Series, SpecDocument, SpecRequest,
    StatusRequest, UpgradeReply, UpgradeRequest, WatchRequest,
    fleet_server::{Fleet, FleetServer},
    fleet_update::Update,
    plan_request::Of,
};
use tanako_proto::worker::v1::BroadcastReply;
use tokio::{net::UnixListener, sync::watch, task::JoinHandle};
use tokio_stream::{Stream, StreamExt as _, wrappers::UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;
type Updates<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the service knows; tests change it and watch the screen follow.
#[derive(Debug)]
pub struct World {
    pub status: FleetStatus,
    pub events: Vec<Event>,
    pub submitted: Vec<OperationRequest>,
    pub lines: Vec<String>,
}

/// A running service.
#[derive(Debug)]
pub struct Fake {
    pub world: Arc<Mutex<World>>,
    changed: watch::Sender<u64>,
    socket: PathBuf,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Fake {
    /// Serves `status` at `socket`.
    pub fn start(socket: &Path, status: FleetStatus) -> Self {
        let world = World {
            status,
            events: super::events(),
            submitted: Vec::new(),
            lines: Vec::new(),
        };
        let mut fake = Self {
            world: Arc::new(Mutex::new(world)),
            changed: watch::Sender::new(0),
            socket: socket.to_owned(),
            running: None,
        };
        fake.resume();
        fake
    }

    /// Listens again after [`Fake::kill`].
    pub fn resume(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        let listener = UnixListener::bind(&self.socket).expect("the socket is free");
        let stop = CancellationToken::new();
        let service = Service {
            world: self.world.clone(),
            changed: self.changed.subscribe(),
            stop: stop.clone(),
        };
        let ended = stop.clone();
        let task = tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(FleetServer::new(service))
                .serve_with_incoming_shutdown(
                    UnixListenerStream::new(listener),
                    ended.cancelled_owned(),
                )
                .await
                .expect("the service runs");
        });
        self.running = Some((stop, task));
    }

    /// Ends all connections and removes the socket.
    pub async fn kill(&mut self) {
        if let Some((stop, task)) = self.running.take() {
            stop.cancel();
            // Streams see the token too, so that the server has nothing to wait for.
            let _ = tokio::time::timeout(Duration::from_secs(5), task).await;
        }
        let _ = std::fs::remove_file(&self.socket);
    }

    /// Changes the world and tells all watchers.
    pub fn change(&self, change: impl FnOnce(&mut World)) {
        let mut world = self.world.lock().expect("no panic while held");
        change(&mut world);
        world.status.revision += 1;
        drop(world);
        self.changed.send_modify(|n| *n += 1);
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some((stop, _)) = &self.running {
            stop.cancel();
        }
    }
}

#[derive(Debug)]
struct Service {
    world: Arc<Mutex<World>>,
    changed: watch::Receiver<u64>,
    stop: CancellationToken,
}

fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64)
}

fn unused<T>() -> Answer<T> {
    Err(Status::unimplemented("not part of the test"))
}

impl Service {
    fn until_stopped<T: Send + 'static>(
        &self,
        stream: impl Stream<Item = T> + Send + 'static,
    ) -> Updates<T> {
        let stop = self.stop.clone();
        let mut stream = Box::pin(stream);
        let (send, receive) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            loop {
                let item = tokio::select! {
                    () = stop.cancelled() => {
                        let _ = send.send(Err(Status::unavailable("the agent is going away"))).await;
                        return;
                    }
                    item = stream.next() => item,
                };
                let Some(item) = item else { return };
                if send.send(Ok(item)).await.is_err() {
                    return;
                }
            }
        });
        Box::pin(tokio_stream::wrappers::ReceiverStream::new(receive))
    }
}

/// The world as a delta, with numbers that move.
fn delta(world: &World, n: u64) -> FleetDelta {
    let status = &world.status;
    let mut processes = status.processes.clone();
    for (i, process) in processes.iter_mut().enumerate() {
        let wave = ((n as f64 + i as f64 * 3.0) / 4.0).sin();
        process.cpu_percent = (process.cpu_percent * (1.0 + wave * 0.4)).max(0.0);
        for shard in &mut process.shards {
            shard.events_per_s *= 1.0 + wave * 0.3;
            shard.latency_ms *= 1.0 + wave * 0.1;
        }
    }
    FleetDelta {
        revision: status.revision,
        at: now(),
        healthy: status.healthy,
        reasons: status.reasons.clone(),
        hosts: status.hosts.clone(),
        processes,
        removed_processes: Vec::new(),
        identify: status.identify.clone(),
        operations: status.operations.clone(),
        events: world.events.clone(),
        version: status.version,
        ..FleetDelta::default()
    }
}

#[tonic::async_trait]
impl Fleet for Service {
    type WatchStream = Updates<FleetUpdate>;
    type WatchOperationStream = Updates<Operation>;
    type LogsStream = Updates<LogLine>;
    type EventsStream = Updates<Event>;

    async fn get_status(&self, _: Request<StatusRequest>) -> Answer<FleetStatus> {
        Ok(Response::new(
            self.world
                .lock()
                .expect("no panic while held")
                .status
                .clone(),
        ))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        let every = Duration::from_millis(u64::from(request.into_inner().interval_ms.max(50)));
        let (world, mut changed) = (self.world.clone(), self.changed.clone());
        let first = world.lock().expect("no panic while held").status.clone();
        let updates = futures_util::stream::unfold(0u64, move |n| {
            let (world, first) = (world.clone(), first.clone());
            let mut changed_now = changed.clone();
            changed.mark_unchanged();
            async move {
                if n == 0 {
                    return Some((Update::Snapshot(first), 1));
                }
                let _ = tokio::time::timeout(every, changed_now.changed()).await;
                let world = world.lock().expect("no panic while held");
                Some((Update::Delta(delta(&world, n)), n + 1))
            }
        });
        let updates = updates.map(|update| FleetUpdate {
            update: Some(update),
        });
        Ok(Response::new(self.until_stopped(updates)))
    }

    async fn plan(&self, request: Request<PlanRequest>) -> Answer<PlanReply> {
        let Some(Of::Operation(operation)) = request.into_inner().of else {
            return unused();
        };
        if operation
            .targets
            .iter()
            .any(|target| target.contains("node3"))
        {
            let problem = Problem::new("conflict", "db/node3", "another operation holds it")
                .hint("wait for op-17");
            return Err(problem.into_status(Code::Aborted));
        }
        Ok(Response::new(super::plan(
            &operation.targets,
            &operation.kind,
        )))
    }

    async fn submit(&self, request: Request<OperationRequest>) -> Answer<Operation> {
        let request = request.into_inner();
        let mut world = self.world.lock().expect("no panic while held");
        world.submitted.push(request.clone());
        let operation = Operation {
            id: "op-18".into(),
            kind: request.kind,
            targets: request.targets,
            state: "running".into(),
            total: 1,
            unit: "processes".into(),
            created_at: now(),
            updated_at: now(),
            ..Operation::default()
        };
        world.status.operations.push(operation.clone());
        Ok(Response::new(operation))
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Answer<Self::LogsStream> {
        let request = request.into_inner();
        let process = request.targets.first().cloned().unwrap_or_default();
        let world = self.world.clone();
        let lines = futures_util::stream::unfold(0u64, move |n| {
            let (process, world) = (process.clone(), world.clone());
            async move {
                if n >= 30 {
                    tokio::time::sleep(Duration::from_millis(400)).await;
                }
                let lines = world.lock().expect("no panic while held").lines.clone();
                // The test's lines come round and round.
                let text = lines.get(n as usize % lines.len().max(1)).cloned();
                let text = text.unwrap_or_else(|| {
                    format!(
                        "INFO gateway: heartbeat {n} acknowledged in {} ms",
                        30 + n % 17
                    )
                });
                let line = LogLine {
                    process,
                    at: now(),
                    line: text,
                    stream: "stdout".into(),
                    truncated: false,
                    ..LogLine::default()
                };
                Some((line, n + 1))
            }
        });
        Ok(Response::new(self.until_stopped(lines)))
    }

    async fn events(&self, _: Request<EventsRequest>) -> Answer<Self::EventsStream> {
        let events = self
            .world
            .lock()
            .expect("no panic while held")
            .events
            .clone();
        Ok(Response::new(
            self.until_stopped(tokio_stream::iter(events)),
        ))
    }

    async fn history(&self, request: Request<HistoryRequest>) -> Answer<HistoryReply> {
        let request = request.into_inner();
        let series = request.metrics.into_iter().map(|metric| Series {
            start: now() - 120_000,
            step_ms: 1000,
            values: (0..120)
                .map(|i| 40.0 + (f64::from(i) / 6.0).sin() * 20.0 + f64::from(i % 7))
                .collect(),
            metric,
        });
        Ok(Response::new(HistoryReply {
            series: series.collect(),
        }))
    }

    async fn locate_guild(&self, request: Request<GuildRequest>) -> Answer<GuildLocation> {
        Ok(Response::new(super::location(
            request.into_inner().guild_id,
        )))
    }

    async fn get_spec(&self, _: Request<SpecRequest>) -> Answer<SpecDocument> {
        unused()
    }
    async fn apply(&self, _: Request<ApplyRequest>) -> Answer<Operation> {
        unused()
    }
    async fn get_operation(&self, _: Request<OperationId>) -> Answer<Operation> {
        unused()
    }
    async fn list_operations(&self, _: Request<ListOperationsRequest>) -> Answer<OperationList> {
        unused()
    }
    async fn watch_operation(&self, _: Request<OperationId>) -> Answer<Self::WatchOperationStream> {
        unused()
    }
    async fn control_operation(&self, _: Request<ControlRequest>) -> Answer<Operation> {
        unused()
    }
    async fn broadcast(
        &self,
        _: Request<BroadcastRequest>,
    ) -> Result<Response<BroadcastReply>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn migrate_store(
        &self,
        _: Request<MigrateStoreRequest>,
    ) -> Result<Response<MigrateStoreReply>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn get_identify(&self, _: Request<IdentifyStatusRequest>) -> Answer<IdentifyStatus> {
        unused()
    }
    async fn list_backups(&self, _: Request<ListBackupsRequest>) -> Answer<BackupList> {
        unused()
    }
    async fn audit(&self, _: Request<AuditRequest>) -> Answer<AuditList> {
        unused()
    }
    async fn doctor(&self, _: Request<DoctorRequest>) -> Answer<DoctorReport> {
        unused()
    }
    async fn advise(&self, _: Request<AdviseRequest>) -> Answer<Advice> {
        unused()
    }
    async fn upgrade(&self, _: Request<UpgradeRequest>) -> Answer<UpgradeReply> {
        unused()
    }
}
