//! An agent that answers what a test tells it to, and writes down what it was asked.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
};

use futures_util::{Stream, StreamExt as _, stream};
use tanako_proto::fleet::v1::{
    BroadcastRequest, MigrateStoreReply, MigrateStoreRequest,
    fleet_server::{Fleet, FleetServer},
    *,
};
use tanako_proto::worker::v1::{BroadcastReply, ShardAnswer};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status};

/// What it answers and what it was asked.
#[derive(Default)]
pub struct State {
    pub status: FleetStatus,
    /// Unhealthy for so many questions, then healthy.
    pub unhealthy_for: u32,
    pub plan: PlanReply,
    pub spec: SpecDocument,
    pub operation: Operation,
    /// What following the operation shows.
    pub updates: Vec<Operation>,
    /// The stream of updates breaks so often, after its first message.
    pub cuts: u32,
    /// Submit does its work and then loses the answer, so often.
    pub lost_answers: u32,
    pub operations: Vec<Operation>,
    pub logs: Vec<LogLine>,
    pub events: Vec<Event>,
    pub backups: Vec<Backup>,
    pub guild: GuildLocation,
    pub audit: Vec<AuditRecord>,
    pub findings: Vec<Finding>,
    pub advice: Advice,
    /// Methods that fail, and how.
    pub fails: HashMap<&'static str, (Code, Option<Problem>)>,
    /// Methods that never answer.
    pub hangs: HashSet<&'static str>,
    pub submitted: Vec<OperationRequest>,
    pub applied: Vec<ApplyRequest>,
    pub controlled: Vec<ControlRequest>,
    pub planned: Vec<PlanRequest>,
    pub asked_logs: Vec<LogsRequest>,
    pub upgrades: u32,
}

impl State {
    /// Whether anything was asked that changes something.
    pub fn untouched(&self) -> bool {
        self.submitted.is_empty()
            && self.applied.is_empty()
            && self.controlled.is_empty()
            && self.upgrades == 0
    }
}

/// The fake agent; stops with the test's runtime.
#[derive(Clone, Default)]
pub struct Fake(Arc<Mutex<State>>);

impl Fake {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics with the lock")
    }

    /// Serves on a socket until the runtime ends.
    pub fn serve(&self, socket: &Path) -> PathBuf {
        let listener = UnixListener::bind(socket).expect("a socket");
        let service = FleetServer::new(self.clone()).max_encoding_message_size(256 << 20);
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        socket.to_owned()
    }

    async fn gate(&self, method: &'static str) -> Result<(), Status> {
        let hangs = self.state().hangs.contains(method);
        if hangs {
            std::future::pending::<()>().await;
        }
        match self.state().fails.get(method) {
            None => Ok(()),
            Some((code, Some(problem))) => Err(problem.clone().into_status(*code)),
            Some((code, None)) => Err(Status::new(*code, "bare status")),
        }
    }
}

type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn items<T: Send + 'static>(all: Vec<T>, follow: bool) -> Response<Items<T>> {
    let all = stream::iter(all.into_iter().map(Ok));
    Response::new(if follow {
        Box::pin(all.chain(stream::pending()))
    } else {
        Box::pin(all)
    })
}

#[tonic::async_trait]
impl Fleet for Fake {
    async fn get_status(&self, _: Request<StatusRequest>) -> Result<Response<FleetStatus>, Status> {
        self.gate("status").await?;
        let mut state = self.state();
        let mut status = state.status.clone();
        if state.unhealthy_for > 0 {
            state.unhealthy_for -= 1;
            status.healthy = false;
            status.reasons = vec!["tanako/0 is starting".into()];
        }
        Ok(Response::new(status))
    }

    type WatchStream = Items<FleetUpdate>;
    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn get_spec(&self, _: Request<SpecRequest>) -> Result<Response<SpecDocument>, Status> {
        self.gate("spec").await?;
        Ok(Response::new(self.state().spec.clone()))
    }

    async fn plan(&self, request: Request<PlanRequest>) -> Result<Response<PlanReply>, Status> {
        self.gate("plan").await?;
        let mut state = self.state();
        state.planned.push(request.into_inner());
        Ok(Response::new(state.plan.clone()))
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<Operation>, Status> {
        self.gate("apply").await?;
        let mut state = self.state();
        state.applied.push(request.into_inner());
        Ok(Response::new(state.operation.clone()))
    }

    async fn submit(
        &self,
        request: Request<OperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        self.gate("submit").await?;
        let mut state = self.state();
        state.submitted.push(request.into_inner());
        if state.lost_answers > 0 {
            state.lost_answers -= 1;
            return Err(Status::unavailable("connection reset"));
        }
        Ok(Response::new(state.operation.clone()))
    }

    async fn get_operation(
        &self,
        request: Request<OperationId>,
    ) -> Result<Response<Operation>, Status> {
        let id = request.into_inner().id;
        let state = self.state();
        let found = state.operations.iter().find(|operation| operation.id == id);
        found
            .map(|operation| Response::new(operation.clone()))
            .ok_or_else(|| {
                Problem::new("unknown-operation", id, "there is no such operation")
                    .into_status(Code::NotFound)
            })
    }

    async fn list_operations(
        &self,
        _: Request<ListOperationsRequest>,
    ) -> Result<Response<OperationList>, Status> {
        self.gate("operations").await?;
        let operations = self.state().operations.clone();
        Ok(Response::new(OperationList { operations }))
    }

    type WatchOperationStream = Items<Operation>;
    async fn watch_operation(
        &self,
        _: Request<OperationId>,
    ) -> Result<Response<Self::WatchOperationStream>, Status> {
        self.gate("watch-operation").await?;
        let mut state = self.state();
        let mut updates: Vec<_> = state.updates.iter().cloned().map(Ok).collect();
        if state.cuts > 0 {
            state.cuts -= 1;
            updates.truncate(1);
            updates.push(Err(Status::unavailable("the agent restarts")));
        }
        let ends = updates
            .iter()
            .flatten()
            .any(|one| !matches!(one.state.as_str(), "running" | "pending" | "paused"))
            || updates.iter().any(Result::is_err);
        let updates = stream::iter(updates);
        Ok(Response::new(if ends {
            Box::pin(updates)
        } else {
            Box::pin(updates.chain(stream::pending()))
        }))
    }

    async fn control_operation(
        &self,
        request: Request<ControlRequest>,
    ) -> Result<Response<Operation>, Status> {
        self.gate("control").await?;
        let mut state = self.state();
        state.controlled.push(request.into_inner());
        Ok(Response::new(state.operation.clone()))
    }

    type LogsStream = Items<LogLine>;
    async fn logs(
        &self,
        request: Request<LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        self.gate("logs").await?;
        let request = request.into_inner();
        let mut state = self.state();
        let follow = request.follow;
        let first = state.asked_logs.is_empty();
        state.asked_logs.push(request);
        let mut lines = state.logs.clone();
        if state.cuts > 0 && first {
            state.cuts -= 1;
            lines.truncate(2);
            let broken = stream::iter(lines.into_iter().map(Ok))
                .chain(stream::iter([Err(Status::unavailable("gone"))]));
            return Ok(Response::new(Box::pin(broken)));
        }
        Ok(items(lines, follow))
    }

    type EventsStream = Items<Event>;
    async fn events(
        &self,
        request: Request<EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        self.gate("events").await?;
        Ok(items(
            self.state().events.clone(),
            request.into_inner().follow,
        ))
    }

    async fn history(&self, _: Request<HistoryRequest>) -> Result<Response<HistoryReply>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn locate_guild(
        &self,
        request: Request<GuildRequest>,
    ) -> Result<Response<GuildLocation>, Status> {
        self.gate("guild").await?;
        let mut guild = self.state().guild.clone();
        guild.guild_id = request.into_inner().guild_id;
        Ok(Response::new(guild))
    }

    async fn broadcast(
        &self,
        request: Request<BroadcastRequest>,
    ) -> Result<Response<BroadcastReply>, Status> {
        self.gate("broadcast").await?;
        let asked = request.into_inner();
        let answer = |shard_id: u32, code: &str, json: &str| ShardAnswer {
            process: format!("tanako/{shard_id}"),
            host: "a".to_owned(),
            shard_id,
            shard_count: 2,
            code: code.to_owned(),
            message: if code.is_empty() {
                ""
            } else {
                "no answer within 1s"
            }
            .to_owned(),
            json: json.to_owned(),
            ms: 3,
        };
        let first = format!(
            "{{\"question\":\"{}\",\"given\":{}}}",
            asked.question, asked.json
        );
        Ok(Response::new(BroadcastReply {
            answers: vec![answer(0, "", &first), answer(1, "timeout", "")],
        }))
    }

    async fn migrate_store(
        &self,
        request: Request<MigrateStoreRequest>,
    ) -> Result<Response<MigrateStoreReply>, Status> {
        self.gate("migrate").await?;
        Ok(Response::new(MigrateStoreReply {
            keys: 12,
            bytes: 3_400,
            unchanged: !request.into_inner().dry_run,
        }))
    }

    async fn get_identify(
        &self,
        _: Request<IdentifyStatusRequest>,
    ) -> Result<Response<IdentifyStatus>, Status> {
        self.gate("identify").await?;
        Ok(Response::new(
            self.state().status.identify.clone().unwrap_or_default(),
        ))
    }

    async fn list_backups(
        &self,
        _: Request<ListBackupsRequest>,
    ) -> Result<Response<BackupList>, Status> {
        self.gate("backups").await?;
        Ok(Response::new(BackupList {
            backups: self.state().backups.clone(),
            directory: "/var/backups/tanako".into(),
        }))
    }

    async fn audit(&self, _: Request<AuditRequest>) -> Result<Response<AuditList>, Status> {
        self.gate("audit").await?;
        let records = self.state().audit.clone();
        Ok(Response::new(AuditList { records }))
    }

    async fn doctor(&self, _: Request<DoctorRequest>) -> Result<Response<DoctorReport>, Status> {
        self.gate("doctor").await?;
        let findings = self.state().findings.clone();
        Ok(Response::new(DoctorReport { findings }))
    }

    async fn advise(&self, _: Request<AdviseRequest>) -> Result<Response<Advice>, Status> {
        self.gate("advise").await?;
        Ok(Response::new(self.state().advice.clone()))
    }

    async fn upgrade(&self, _: Request<UpgradeRequest>) -> Result<Response<UpgradeReply>, Status> {
        self.gate("upgrade").await?;
        let mut state = self.state();
        state.upgrades += 1;
        for host in &mut state.status.hosts {
            host.agent_uptime_s = 0;
        }
        state.status.agent_version = "0.2.0".into();
        Ok(Response::new(UpgradeReply {
            from_version: "0.1.0".into(),
        }))
    }
}

/// A time long past, so that outputs do not depend on the clock.
pub const AT: i64 = 1_795_000_000_000;

/// A small fleet: two shard processes and a database node on one host.
pub fn fleet() -> FleetStatus {
    let process = |n: u32| Process {
        name: format!("tanako/{n}"),
        kind: "shard".into(),
        bot: "tanako".into(),
        host: "alpha".into(),
        state: "ready".into(),
        ready: true,
        pid: 4_000 + n,
        attempt: 1,
        uptime_s: 312,
        cpu_percent: 3.125,
        rss_bytes: 10_276_045,
        threads: 3,
        fds: 20,
        desired: "running".into(),
        detail: "2 of 2 shards ready".into(),
        started_at: AT,
        shards: [n * 2, n * 2 + 1]
            .map(|id| Shard {
                id,
                count: 4,
                stage: "ready".into(),
                guilds: 2_500,
                guilds_expected: 2_500,
                latency_ms: 41.5,
                events_per_s: 25.25,
                events: 7_000,
                seq: 7_001,
                identified: 1,
                ..Shard::default()
            })
            .to_vec(),
        ..Process::default()
    };
    FleetStatus {
        fleet: "test".into(),
        version: 3,
        healthy: true,
        at: AT,
        agent_version: "0.1.0".into(),
        revision: 17,
        hosts: vec![Host {
            name: "alpha".into(),
            state: "ready".into(),
            address: "127.0.0.1".into(),
            agent_version: "0.1.0".into(),
            cpu_percent: 12.5,
            memory_used_bytes: 3 << 30,
            memory_total_bytes: 8 << 30,
            cpus: 2,
            load1: 0.42,
            disk_used_bytes: 20 << 30,
            disk_total_bytes: 100 << 30,
            uptime_s: 90_061,
            agent_uptime_s: 3_600,
            agent_rss_bytes: 12 << 20,
            last_seen: AT,
            os: "Linux 6.1".into(),
            ..Host::default()
        }],
        processes: vec![
            process(1),
            process(0),
            Process {
                name: "db/node1".into(),
                kind: "db".into(),
                host: "alpha".into(),
                state: "ready".into(),
                ready: true,
                pid: 4_100,
                attempt: 2,
                restarts: 1,
                uptime_s: 7_200,
                cpu_percent: 0.5,
                rss_bytes: 52 << 20,
                desired: "running".into(),
                last_exit: "exited with 0".into(),
                started_at: AT,
                db: Some(Database {
                    url: "ws://127.0.0.1:7101".into(),
                    rows: 10_000,
                    bytes_on_disk: 5 << 20,
                    reads_per_s: 12.0,
                    writes_per_s: 1.5,
                    connections: 4,
                    ..Database::default()
                }),
                ..Process::default()
            },
        ],
        identify: Some(IdentifyStatus {
            total: 1000,
            used: 4,
            remaining: 996,
            reserve: 100,
            max_concurrency: 2,
            resets_at: AT,
            buckets: vec![
                IdentifyBucket {
                    bot: "tanako".into(),
                    bucket: 0,
                    granted: 2,
                    ..IdentifyBucket::default()
                },
                IdentifyBucket {
                    bot: "tanako".into(),
                    bucket: 1,
                    granted: 2,
                    waiting: vec![1, 2, 3, 7],
                    next_at: AT,
                },
            ],
            bots: vec![IdentifyBot {
                bot: "tanako".into(),
                total: 1000,
                used: 4,
                remaining: 996,
                reserve: 100,
                max_concurrency: 2,
                resets_at: AT,
                waiting: 4,
                recommended_shards: 4,
                mode: "probing".into(),
                forecast_s: 15,
            }],
            forecast_s: 15,
        }),
        ..FleetStatus::default()
    }
}

/// An operation that ended well, with its receipt.
pub fn restarted() -> Operation {
    Operation {
        id: "op-17".into(),
        kind: "restart".into(),
        targets: vec!["tanako".into()],
        state: "succeeded".into(),
        done: 2,
        total: 2,
        unit: "processes".into(),
        requested_by: "root".into(),
        created_at: AT,
        updated_at: AT + 12_000,
        ended_at: AT + 12_000,
        steps: ["tanako/0", "tanako/1"]
            .map(|object| OperationStep {
                object: object.into(),
                action: "restart".into(),
                state: "succeeded".into(),
                message: "ready after 1.2 s".into(),
                started_at: AT,
                ended_at: AT + 6_000,
                ..OperationStep::default()
            })
            .to_vec(),
        receipt: (0..4)
            .map(|shard_id| ShardReceipt {
                process: format!("tanako/{}", shard_id / 2),
                shard_id,
                how: if shard_id == 3 {
                    "identified"
                } else {
                    "resumed"
                }
                .into(),
                gap_ms: 500 + u64::from(shard_id),
                replayed: 10,
                ..ShardReceipt::default()
            })
            .collect(),
        receipt_totals: Some(ReceiptTotals {
            shards: 4,
            resumed: 3,
            identified: 1,
            gap_p50_ms: 501,
            gap_p99_ms: 503,
            gap_max_ms: 503,
            replayed: 40,
            ..ReceiptTotals::default()
        }),
        cost: Some(Cost {
            processes_restarted: 2,
            identifies: 1,
            identifies_left: 995,
            seconds: 12,
            ..Cost::default()
        }),
        ..Operation::default()
    }
}

/// The same operation, under way.
pub fn restarting() -> Operation {
    Operation {
        state: "running".into(),
        done: 1,
        ended_at: 0,
        receipt: vec![],
        receipt_totals: None,
        ..restarted()
    }
}

/// The plan of that operation.
pub fn restart_plan() -> PlanReply {
    PlanReply {
        version: 3,
        changes: ["tanako/0", "tanako/1"]
            .map(|object| PlanChange {
                action: "restart".into(),
                object: object.into(),
                why: "asked for".into(),
            })
            .into_iter()
            .chain([PlanChange {
                action: "keep".into(),
                object: "db/node1".into(),
                why: String::new(),
            }])
            .collect(),
        cost: Some(Cost {
            processes_restarted: 2,
            identifies_left: 996,
            seconds: 12,
            ..Cost::default()
        }),
        warnings: vec!["tanako/1 was restarted 2 minutes ago".into()],
        checks: Vec::new(),
    }
}
