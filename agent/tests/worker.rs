//! The worker socket, spoken to by real clients over the real socket. The supervisor is played by a
//! table that the test writes; `worker_child.rs` has the real one.

mod spec_kit;

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tanako_agent::{
    broadcast::Broadcast,
    history::{self, History},
    identify::{self, BotConfig, Broker},
    supervisor::{Desired, ProcessStatus, State, Table, WorkerInput},
    tenure::Tenure,
    vault::Vault,
    worker::{CommandError, Config, Processes, States, WorkerState, Workers, duties::Duties},
};
use tanako_fleet::{ProcessKind, ProcessName, ProcessSpec};
use tanako_proto::worker::v1::{
    self as wire, agent_message::Message as FromAgent, worker_client::WorkerClient,
    worker_message::Message as ToAgent,
};
use tanako_store::embedded::EmbeddedStore;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};

const SOON: Duration = Duration::from_secs(60);

struct Fixture {
    dir: tempfile::TempDir,
    table: watch::Sender<Arc<Table>>,
    inputs: mpsc::UnboundedReceiver<(ProcessName, u64, WorkerInput)>,
    workers: Workers,
    broker: Broker,
    vault: Vault,
    history: History,
    store: Arc<EmbeddedStore>,
    cancel: CancellationToken,
    tracker: TaskTracker,
}

#[derive(Clone)]
struct FakeSupervisor {
    table: watch::Receiver<Arc<Table>>,
    inputs: mpsc::UnboundedSender<(ProcessName, u64, WorkerInput)>,
}

impl Processes for FakeSupervisor {
    fn table(&self) -> watch::Receiver<Arc<Table>> {
        self.table.clone()
    }

    fn worker_input(
        &self,
        name: ProcessName,
        attempt: u64,
        input: WorkerInput,
    ) -> BoxFuture<'_, ()> {
        let _ = self.inputs.send((name, attempt, input));
        Box::pin(std::future::ready(()))
    }
}

fn name(text: &str) -> ProcessName {
    text.parse().expect("a good name")
}

fn status(process: &str, attempt: u64, pid: u32, shards: &[u32]) -> Arc<ProcessStatus> {
    let kind = if process.starts_with("db/") {
        ProcessKind::Db
    } else {
        ProcessKind::Shard
    };
    let spec = ProcessSpec {
        kind,
        ..spec_kit::worker(process, shards.to_vec(), 8, SOON)
    };
    Arc::new(ProcessStatus {
        name: name(process),
        kind,
        state: State::Starting,
        ready: false,
        desired: Desired::Running,
        pid: Some(pid),
        attempt,
        restarts: 0,
        started_at_ms: None,
        ready_at_ms: None,
        next_start_at_ms: None,
        detail: String::new(),
        last_exit: String::new(),
        shard_ids: shards.to_vec(),
        shard_count: 8,
        adopted: false,
        needs_restart: false,
        log_lines: 0,
        log_bytes: 0,
        limits: String::new(),
        spec: Arc::new(spec),
    })
}

impl Fixture {
    async fn new() -> Self {
        Self::at(tempfile::tempdir().expect("a directory"), false).await
    }

    async fn at(dir: tempfile::TempDir, group: bool) -> Self {
        let cancel = CancellationToken::new();
        let tracker = TaskTracker::new();
        let history = History::start(
            history::Config {
                directory: dir.path().join("history"),
                host: "here".to_owned(),
            },
            cancel.clone(),
            &tracker,
        );
        let store = spec_kit::store(&dir.path().join("store"));
        let broker = Broker::start(
            identify::Config {
                store: store.clone(),
                identity: dir.path().display().to_string(),
            },
            history.clone(),
            cancel.clone(),
            &tracker,
        )
        .await;
        let vault = Vault::start(
            dir.path().join("vault"),
            history.clone(),
            cancel.clone(),
            &tracker,
        )
        .await
        .expect("vault");
        let (table, table_rx) = watch::channel(Arc::new(Table::new()));
        let (inputs_tx, inputs) = mpsc::unbounded_channel();
        let workers = Workers::start(
            Config {
                socket: dir.path().join("worker.sock"),
                group,
                report_interval: Duration::from_secs(1),
                duties: Duties::default(),
                tenure: Tenure::unbounded(),
            },
            Arc::new(FakeSupervisor {
                table: table_rx,
                inputs: inputs_tx,
            }),
            broker.clone(),
            vault.clone(),
            cancel.clone(),
            &tracker,
        )
        .await
        .expect("workers");
        Self {
            dir,
            table,
            inputs,
            workers,
            broker,
            vault,
            history,
            store,
            cancel,
            tracker,
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("worker.sock")
    }

    /// This test's own process plays the supervised one.
    fn run(&self, process: &str, attempt: u64, shards: &[u32]) {
        self.run_as(process, attempt, std::process::id(), shards);
    }

    fn run_as(&self, process: &str, attempt: u64, pid: u32, shards: &[u32]) {
        self.table.send_modify(|table| {
            Arc::make_mut(table).insert(name(process), status(process, attempt, pid, shards));
        });
    }

    async fn input(&mut self) -> WorkerInput {
        let (_, _, input) = timeout(SOON, self.inputs.recv())
            .await
            .expect("in time")
            .expect("an input");
        input
    }

    /// Waits until the input comes; others may come before it.
    async fn input_is(&mut self, wanted: WorkerInput) {
        while self.input().await != wanted {}
    }

    async fn state(&self, process: &str, is: impl Fn(&WorkerState) -> bool) -> Arc<WorkerState> {
        let mut states = self.workers.states();
        let states: Arc<States> = timeout(
            SOON,
            states.wait_for(|states| states.get(&name(process)).is_some_and(|s| is(s))),
        )
        .await
        .expect("in time")
        .expect("published")
        .clone();
        Arc::clone(&states[&name(process)])
    }

    async fn stop(self) -> tempfile::TempDir {
        self.cancel.cancel();
        self.tracker.close();
        timeout(SOON, self.tracker.wait())
            .await
            .expect("all tasks end");
        self.store.close();
        self.dir
    }
}

async fn client(socket: &Path) -> WorkerClient<Channel> {
    let path = socket.to_owned();
    let channel = Endpoint::from_static("http://worker")
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .expect("connects");
    WorkerClient::new(channel)
}

struct Attached {
    to_agent: mpsc::Sender<wire::WorkerMessage>,
    from_agent: Streaming<wire::AgentMessage>,
}

impl Attached {
    async fn raw(socket: &Path) -> Self {
        let (to_agent, messages) = mpsc::channel(64);
        let from_agent = client(socket)
            .await
            .attach(ReceiverStream::new(messages))
            .await
            .expect("the stream opens")
            .into_inner();
        Self {
            to_agent,
            from_agent,
        }
    }

    async fn hello(socket: &Path, process: &str, attempt: u64) -> Self {
        let attached = Self::raw(socket).await;
        attached
            .send(ToAgent::Hello(wire::Hello {
                process: process.to_owned(),
                attempt,
                pid: std::process::id(),
                kind: wire::WorkerKind::Shard.into(),
                version: "1.2.3".to_owned(),
            }))
            .await;
        attached
    }

    async fn send(&self, message: ToAgent) {
        self.to_agent
            .send(wire::WorkerMessage {
                message: Some(message),
            })
            .await
            .expect("the stream is open");
    }

    async fn next(&mut self) -> Result<FromAgent, Status> {
        let message = timeout(SOON, self.from_agent.message())
            .await
            .expect("in time")?;
        message
            .and_then(|m| m.message)
            .ok_or_else(|| Status::ok("the stream has ended"))
    }

    async fn welcome(&mut self) -> wire::Welcome {
        match self.next().await {
            Ok(FromAgent::Welcome(welcome)) => welcome,
            other => panic!("no welcome: {other:?}"),
        }
    }

    async fn command(&mut self) -> wire::Command {
        match self.next().await {
            Ok(FromAgent::Command(command)) => command,
            other => panic!("no command: {other:?}"),
        }
    }
}

fn report(stage: wire::ProcessStage, shard_id: u32, events: u64) -> ToAgent {
    ToAgent::Report(wire::ProcessReport {
        stage: stage.into(),
        detail: "waiting for guilds".to_owned(),
        shards: vec![wire::ShardReport {
            shard_id,
            shard_count: 8,
            stage: wire::ShardStage::Ready.into(),
            guilds: 7,
            events,
            ..wire::ShardReport::default()
        }],
        metrics: [("cache_bytes".to_owned(), 5.0)].into(),
        db: None,
    })
}

fn deposit(shard_id: u32, session: &str, seq: u64, ack: u64) -> wire::SessionDeposit {
    wire::SessionDeposit {
        shard_id,
        shard_count: 8,
        session_id: session.to_owned(),
        seq,
        resume_url: "wss://gateway.example".to_owned(),
        application_id: 1,
        intents: 2,
        token_sha256: vec![7; 32].into(),
        guilds: None,
        handled_interactions: vec![11, 12],
        ack,
        ..wire::SessionDeposit::default()
    }
}

#[tokio::test]
async fn a_worker_registers_reports_and_leaves() {
    let mut fixture = Fixture::new().await;
    fixture.run("tanako/0", 3, &[0, 1]);
    let mut worker = Attached::hello(&fixture.socket(), "tanako/0", 3).await;
    let welcome = worker.welcome().await;
    assert_eq!((welcome.shard_ids, welcome.shard_count), (vec![0, 1], 8));
    assert_eq!(welcome.report_interval_ms, 1000);
    assert!(!welcome.superseded && welcome.sessions.is_empty());
    fixture.input_is(WorkerInput::Attached).await;

    worker
        .send(report(wire::ProcessStage::Starting, 0, 10))
        .await;
    let reason = "waiting for guilds".to_owned();
    fixture.input_is(WorkerInput::NotReady(reason)).await;
    worker.send(report(wire::ProcessStage::Ready, 0, 20)).await;
    fixture.input_is(WorkerInput::Ready).await;
    // Said again: a sign of life, not a change.
    worker.send(report(wire::ProcessStage::Ready, 0, 90)).await;
    fixture.input_is(WorkerInput::Alive).await;
    // A shard that is not its own is not shown.
    worker
        .send(report(wire::ProcessStage::Draining, 5, 1))
        .await;
    fixture.input_is(WorkerInput::Draining).await;
    worker.send(report(wire::ProcessStage::Ready, 1, 99)).await;
    let state = fixture
        .state("tanako/0", |s| s.shards.contains_key(&1))
        .await;
    assert!(state.attached && state.shards.len() == 1);
    assert_eq!((state.attempt, state.version.as_str()), (3, "1.2.3"));
    assert_eq!(state.shards[&1].report.guilds, 7);
    assert_eq!(state.metrics.get("cache_bytes"), Some(&5.0));

    drop(worker);
    let state = fixture.state("tanako/0", |s| !s.attached).await;
    assert_eq!(state.shards[&1].report.guilds, 7, "the last report stays");
    fixture.stop().await;
}

#[tokio::test]
async fn only_the_process_itself_may_speak_for_it() {
    let fixture = Fixture::new().await;
    fixture.run("tanako/0", 3, &[0]);
    // Some process that is neither ours nor our group's leader.
    fixture.run_as("tanako/1", 1, 1, &[1]);

    let mut older = Attached::hello(&fixture.socket(), "tanako/0", 2).await;
    assert!(older.welcome().await.superseded);
    assert!(older.next().await.is_err(), "and the stream ends");

    for (process, attempt, code) in [
        ("tanako/1", 1, Code::PermissionDenied),
        ("tanako/9", 1, Code::NotFound),
        ("tanako/0", 4, Code::Unavailable),
        ("../../etc", 1, Code::InvalidArgument),
    ] {
        let mut stranger = Attached::hello(&fixture.socket(), process, attempt).await;
        let status = stranger.next().await.expect_err("refused");
        assert_eq!(status.code(), code, "{process}: {status:?}");
        let request = wire::IdentifyRequest {
            process: process.to_owned(),
            attempt,
            shard_id: 1,
            shard_count: 8,
            ..wire::IdentifyRequest::default()
        };
        let status = client(&fixture.socket())
            .await
            .acquire_identify(request)
            .await
            .expect_err("refused");
        assert_eq!(status.code(), code, "{process}: {status:?}");
    }
    assert!(fixture.workers.states().borrow().is_empty());

    let mut silent = Attached::raw(&fixture.socket()).await;
    silent.send(report(wire::ProcessStage::Ready, 0, 1)).await;
    let status = silent.next().await.expect_err("Hello comes first");
    assert_eq!(status.code(), Code::InvalidArgument);
    fixture.stop().await;
}

#[tokio::test]
async fn the_newest_stream_wins_and_the_older_one_is_told_to_go() {
    let fixture = Fixture::new().await;
    fixture.run("tanako/0", 1, &[0]);
    let mut first = Attached::hello(&fixture.socket(), "tanako/0", 1).await;
    first.welcome().await;
    let mut second = Attached::hello(&fixture.socket(), "tanako/0", 1).await;
    second.welcome().await;
    let status = first.next().await.expect_err("replaced");
    assert_eq!(status.code(), Code::Aborted);
    // The end of the first does not make the second look gone.
    second.send(report(wire::ProcessStage::Ready, 0, 1)).await;
    let state = fixture.state("tanako/0", |s| !s.shards.is_empty()).await;
    assert!(state.attached);
    fixture.stop().await;
}

#[tokio::test]
async fn permits_are_given_by_bucket_and_a_place_is_given_up_with_the_call() {
    let fixture = Fixture::new().await;
    fixture.run("tanako/0", 1, &[0, 1, 2, 3]);
    fixture
        .broker
        .configure(vec![BotConfig {
            bot: "tanako".to_owned(),
            max_concurrency: Some(2),
            reserve: Some(1),
        }])
        .await;
    let mut client = client(&fixture.socket()).await;
    let request = |shard_id| wire::IdentifyRequest {
        process: "tanako/0".to_owned(),
        attempt: 1,
        shard_id,
        shard_count: 8,
        ..wire::IdentifyRequest::default()
    };
    let first = client
        .acquire_identify(request(0))
        .await
        .expect("permit")
        .into_inner();
    let second = client
        .acquire_identify(request(1))
        .await
        .expect("permit")
        .into_inner();
    assert!(second.permit > first.permit);
    assert_eq!(second.remaining, 998);
    assert!(second.until_boot_ms >= first.until_boot_ms && first.until_boot_ms > 0);
    // It came too late: it is given back, and its bucket is free again.
    let again = wire::IdentifyRequest {
        unused_permit: second.permit,
        ..request(1)
    };
    let again = client
        .acquire_identify(again)
        .await
        .expect("permit")
        .into_inner();
    assert!(again.permit > second.permit);
    assert_eq!(again.remaining, 998);

    let status = client
        .acquire_identify(request(6))
        .await
        .expect_err("not its shard");
    assert_eq!(status.code(), Code::InvalidArgument);

    // The bucket of shard 2 is taken for five seconds: the call waits, and leaves when dropped.
    let waiting = tokio::spawn({
        let mut client = client.clone();
        async move { client.acquire_identify(request(2)).await }
    });
    let mut identify = fixture.broker.status();
    let waits = |n| {
        move |s: &Arc<tanako_proto::fleet::v1::IdentifyStatus>| {
            s.bots.first().is_some_and(|b| b.waiting == n)
        }
    };
    timeout(SOON, identify.wait_for(waits(1)))
        .await
        .expect("in time")
        .expect("published");
    waiting.abort();
    timeout(SOON, identify.wait_for(waits(0)))
        .await
        .expect("in time")
        .expect("published");

    // Discord says that only the reserve is left.
    let mut worker = Attached::hello(&fixture.socket(), "tanako/0", 1).await;
    worker.welcome().await;
    worker
        .send(ToAgent::Limits(wire::GatewayLimits {
            recommended_shards: 4,
            total: 1000,
            remaining: 1,
            reset_after_ms: 60_000,
            max_concurrency: 2,
        }))
        .await;
    timeout(SOON, identify.wait_for(|s| s.remaining == 1))
        .await
        .expect("in time")
        .expect("published");
    let status = client
        .acquire_identify(request(3))
        .await
        .expect_err("exhausted");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("free at"), "{}", status.message());
    let events = fixture.history.events(10, 0, &["tanako".to_owned()]).await;
    assert!(
        events.iter().any(|e| e.kind == "identify-refused"),
        "{events:?}"
    );

    // What was given is on disk, for the next agent.
    let dir = fixture.stop().await;
    let again = Fixture::at(dir, false).await;
    let status = again.broker.status();
    let mut status = status.clone();
    timeout(SOON, status.wait_for(|s| s.used == 999))
        .await
        .expect("in time")
        .expect("published");
    again.stop().await;
}

#[tokio::test]
async fn sessions_are_kept_for_the_successor() {
    let fixture = Fixture::new().await;
    fixture.run("tanako/0", 1, &[0, 1]);
    let mut worker = Attached::hello(&fixture.socket(), "tanako/0", 1).await;
    worker.welcome().await;
    let guilds = wire::GuildCounts {
        ids: vec![81_384_788_765_712_384],
        members: vec![9],
    };
    let with_guilds = wire::SessionDeposit {
        guilds: Some(guilds.clone()),
        ..deposit(0, "s-one", 5, 0)
    };
    worker.send(ToAgent::Deposit(with_guilds)).await;
    worker
        .send(ToAgent::Deposit(deposit(0, "s-one", 6, 41)))
        .await;
    match worker.next().await {
        Ok(FromAgent::DepositAck(ack)) => assert_eq!(ack.ack, 41),
        other => panic!("{other:?}"),
    }
    worker
        .send(ToAgent::Deposit(deposit(1, "s-two", 1, 0)))
        .await;
    worker
        .send(ToAgent::Discard(wire::SessionDiscard {
            shard_id: 1,
            shard_count: 8,
            session_id: "s-two".to_owned(),
        }))
        .await;
    worker
        .send(ToAgent::Deposit(deposit(0, "s-one", 7, 42)))
        .await;
    assert!(matches!(worker.next().await, Ok(FromAgent::DepositAck(_))));

    // The successor: what the first one still sends is refused now.
    fixture.run("tanako/0", 2, &[0, 1]);
    let mut successor = Attached::hello(&fixture.socket(), "tanako/0", 2).await;
    let welcome = successor.welcome().await;
    let late = fixture
        .vault
        .deposit(&name("tanako/0"), 1, deposit(0, "s-late", 99, 0))
        .await;
    assert!(late.is_err());
    let expected = wire::SessionDeposit {
        guilds: Some(guilds),
        ack: 0,
        ..deposit(0, "s-one", 7, 0)
    };
    assert_eq!(welcome.sessions, std::slice::from_ref(&expected));
    assert_eq!(
        fixture
            .vault
            .has_guild("tanako", 0, 8, 81_384_788_765_712_384),
        Some(true)
    );

    // The next agent finds it too.
    let dir = fixture.stop().await;
    let again = Fixture::at(dir, false).await;
    again.run("tanako/0", 3, &[0, 1]);
    let mut worker = Attached::hello(&again.socket(), "tanako/0", 3).await;
    assert_eq!(worker.welcome().await.sessions, [expected]);
    again.stop().await;
}

#[tokio::test]
async fn commands_go_to_the_worker_and_come_to_an_end_in_any_case() {
    let fixture = Fixture::new().await;
    let node = name("db/node1");
    let backup = || {
        wire::command::Command::Backup(wire::DbBackup {
            directory: "/somewhere".to_owned(),
        })
    };
    let absent = fixture.workers.command(&node, backup(), SOON).await;
    assert_eq!(
        absent.expect_err("absent"),
        CommandError::NotAttached(node.clone())
    );

    fixture.run("db/node1", 1, &[]);
    let mut worker = Attached::hello(&fixture.socket(), "db/node1", 1).await;
    worker.welcome().await;
    let mut run = fixture
        .workers
        .command(&node, backup(), SOON)
        .await
        .expect("sent");
    let command = worker.command().await;
    assert_eq!(command.command, Some(backup()));
    let progress = wire::CommandProgress {
        id: command.id,
        done: 5,
        total: 10,
        unit: "rows".to_owned(),
    };
    worker.send(ToAgent::Progress(progress.clone())).await;
    let result = wire::CommandResult {
        id: command.id,
        ok: true,
        json: "{}".to_owned(),
        ..wire::CommandResult::default()
    };
    worker.send(ToAgent::Result(result.clone())).await;
    let seen = timeout(SOON, run.progress.recv()).await.expect("in time");
    assert_eq!(seen, Some(progress));
    let outcome = timeout(SOON, run.result)
        .await
        .expect("in time")
        .expect("an outcome");
    assert_eq!(outcome, Ok(result.clone()));
    // A result that nobody waits for is no harm.
    worker.send(ToAgent::Result(result)).await;

    let short = Duration::from_millis(50);
    let run = fixture
        .workers
        .command(&node, backup(), short)
        .await
        .expect("sent");
    let outcome = timeout(SOON, run.result)
        .await
        .expect("in time")
        .expect("an outcome");
    assert_eq!(outcome, Err(CommandError::Timeout(node.clone(), short)));

    let mut runs = Vec::new();
    let busy = loop {
        match fixture.workers.command(&node, backup(), SOON).await {
            Ok(run) => runs.push(run),
            Err(error) => break error,
        }
        assert!(runs.len() < 1000);
    };
    assert_eq!(busy, CommandError::Busy(node.clone()));
    drop(worker);
    for run in runs {
        let outcome = timeout(SOON, run.result)
            .await
            .expect("in time")
            .expect("an outcome");
        assert_eq!(outcome, Err(CommandError::Gone(node.clone())));
    }
    fixture.stop().await;
}

/// Answers the question that comes next for these shards.
async fn answer_one(worker: &mut Attached, json: &str) {
    let command = worker.command().await;
    let Some(wire::command::Command::Ask(ask)) = command.command else {
        panic!("{command:?}");
    };
    assert_eq!(ask.question, "stats");
    let result = wire::CommandResult {
        id: command.id,
        ok: true,
        json: json.to_owned(),
        ..wire::CommandResult::default()
    };
    worker.send(ToAgent::Result(result)).await;
}

#[tokio::test]
async fn a_bot_asks_all_its_shards_and_each_has_its_answer_or_a_reason() {
    let fixture = Fixture::new().await;
    let toml = "[fleet]\nname = \"t\"\n[bots.tanako]\ncommand = [\"tanako-bot\"]\ntoken_file = \"/t\"\n\
                shards = 8\nshards_per_process = 2\n";
    let places = tanako_fleet::spec::Places {
        data_dir: "/d".to_owned(),
    };
    let written = tanako_agent::desired::Written {
        toml: toml.to_owned(),
        file_name: "fleet.toml".to_owned(),
    };
    let desired = tanako_agent::desired::Desired::empty(places)
        .with_spec(&written, &std::collections::BTreeMap::new(), false)
        .expect("a good spec");
    let (_desired, desired) = watch::channel(Arc::new(desired));
    let broadcast = Broadcast::new(
        "here".to_owned(),
        fixture.workers.clone(),
        fixture.table.subscribe(),
        desired,
    );
    fixture.workers.set_broadcast(broadcast);
    // Three of four run: one answers both shards, one answers one of them, one not at all.
    for (process, shards) in [
        ("tanako/0", [0, 1]),
        ("tanako/1", [2, 3]),
        ("tanako/2", [4, 5]),
    ] {
        fixture.run(process, 1, &shards);
    }
    let mut first = Attached::hello(&fixture.socket(), "tanako/0", 1).await;
    first.welcome().await;
    let mut second = Attached::hello(&fixture.socket(), "tanako/1", 1).await;
    second.welcome().await;
    let mut third = Attached::hello(&fixture.socket(), "tanako/2", 1).await;
    third.welcome().await;

    let mut client = client(&fixture.socket()).await;
    let question = wire::BroadcastRequest {
        process: "tanako/0".to_owned(),
        attempt: 1,
        question: "stats".to_owned(),
        json: String::new(),
        // Who answers has this long; the one that does not is waited for as long.
        timeout_ms: 10_000,
    };
    let asked = question.clone();
    let asking = tokio::spawn(async move { client.broadcast(asked).await });
    let both = r#"[{"shard_id":0,"json":{"guilds":5}},{"shard_id":1,"json":[1]}]"#;
    answer_one(&mut first, both).await;
    let one = r#"[{"shard_id":2,"code":"odd","message":"why"}]"#;
    answer_one(&mut second, one).await;
    let reply = timeout(SOON, asking)
        .await
        .expect("in time")
        .expect("no panic");
    let answers = reply.expect("answers").into_inner().answers;
    let seen: Vec<(u32, &str, &str)> = answers
        .iter()
        .map(|one| (one.shard_id, one.code.as_str(), one.json.as_str()))
        .collect();
    assert_eq!(
        seen,
        [
            (0, "", "{\"guilds\":5}"),
            (1, "", "[1]"),
            (2, "odd", ""),
            (3, "no-answer", ""),
            (4, "timeout", ""),
            (5, "timeout", ""),
            (6, "not-running", ""),
            (7, "not-running", ""),
        ]
    );
    assert_eq!(answers[0].host, "here");
    // Only for its own process, and only what is well formed.
    let mut other = self::client(&fixture.socket()).await;
    for (wrong, code) in [
        (
            wire::BroadcastRequest {
                process: "tanako/9".to_owned(),
                ..question.clone()
            },
            Code::NotFound,
        ),
        (
            wire::BroadcastRequest {
                question: "rm -rf".to_owned(),
                ..question.clone()
            },
            Code::InvalidArgument,
        ),
        (
            wire::BroadcastRequest {
                attempt: 0,
                ..question
            },
            Code::Aborted,
        ),
    ] {
        let refused = other.broadcast(wrong).await.expect_err("refused");
        assert_eq!(refused.code(), code, "{refused:?}");
    }
    fixture.stop().await;
}

#[tokio::test]
async fn the_socket_is_private() {
    for (group, mode) in [(false, 0o600), (true, 0o660)] {
        let dir = tempfile::tempdir().expect("a directory");
        // A leftover of a killed agent is no obstacle.
        drop(std::os::unix::net::UnixListener::bind(
            dir.path().join("worker.sock"),
        ));
        let fixture = Fixture::at(dir, group).await;
        let meta = std::fs::metadata(fixture.socket()).expect("is there");
        assert_eq!(meta.permissions().mode() & 0o777, mode & !umask());
        fixture.stop().await;
    }
}

fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find_map(|l| l.strip_prefix("Umask:"));
    u32::from_str_radix(line.expect("a umask").trim(), 8).expect("octal")
}

/// The preface of HTTP/2 and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test]
async fn garbage_on_the_socket_harms_nobody() {
    let fixture = Fixture::new().await;
    fixture.run("tanako/0", 1, &[0]);
    let mut good = Attached::hello(&fixture.socket(), "tanako/0", 1).await;
    good.welcome().await;

    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..200 {
        let mut bytes = match round % 4 {
            // Not HTTP/2 at all.
            0 => Vec::new(),
            // Random frames behind a good preface.
            1 => PREFACE.to_vec(),
            // A frame that says it is huge.
            2 => [PREFACE, b"\xff\xff\xff\0\x01\0\0\0\x01"].concat(),
            // Half of a frame.
            _ => PREFACE[..PREFACE.len() - 4].to_vec(),
        };
        let extra = random.usize(..2000);
        bytes.extend(std::iter::repeat_with(|| random.u8(..)).take(extra));
        let mut stream = UnixStream::connect(fixture.socket())
            .await
            .expect("connects");
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = timeout(SOON, stream.read_to_end(&mut answer))
            .await
            .expect("it hangs up");
    }

    // Good gRPC, nonsense inside.
    let mut random_text =
        |n: usize| -> String { std::iter::repeat_with(|| random.char(..)).take(n).collect() };
    let nonsense = vec![
        ToAgent::Report(wire::ProcessReport {
            stage: 77,
            detail: random_text(100_000),
            shards: (0..5_000)
                .map(|shard_id| wire::ShardReport {
                    shard_id,
                    stage: -5,
                    latency_ms: f64::NEG_INFINITY,
                    ..wire::ShardReport::default()
                })
                .collect(),
            metrics: (0..5_000).map(|n| (format!("m{n}"), f64::NAN)).collect(),
            db: Some(wire::DbReport::default()),
        }),
        ToAgent::Limits(wire::GatewayLimits {
            total: u32::MAX,
            remaining: u32::MAX,
            reset_after_ms: u64::MAX,
            max_concurrency: u32::MAX,
            recommended_shards: u32::MAX,
        }),
        ToAgent::Limits(wire::GatewayLimits::default()),
        ToAgent::Deposit(wire::SessionDeposit {
            session_id: String::new(),
            ..deposit(0, "", 0, 3)
        }),
        ToAgent::Deposit(wire::SessionDeposit {
            token_sha256: vec![1; 5].into(),
            ..deposit(0, "x", 0, 3)
        }),
        ToAgent::Progress(wire::CommandProgress {
            id: u64::MAX,
            ..wire::CommandProgress::default()
        }),
        ToAgent::Result(wire::CommandResult::default()),
    ];
    for message in nonsense {
        good.send(message).await;
    }
    good.send(report(wire::ProcessStage::Ready, 0, 3)).await;
    let state = fixture
        .state("tanako/0", |s| {
            s.shards.get(&0).is_some_and(|s| s.report.guilds == 7)
        })
        .await;
    assert!(state.attached && state.metrics.len() == 1);
    assert!(
        fixture
            .vault
            .sessions_for(&status("tanako/0", 1, 1, &[0]).spec, None)
            .is_empty()
    );

    // What ends the stream of whoever sent it, and of nobody else.
    let fatal = vec![
        ToAgent::Hello(wire::Hello::default()),
        ToAgent::Deposit(deposit(5, "not-its-shard", 1, 0)),
        ToAgent::Deposit(wire::SessionDeposit {
            handled_interactions: vec![u64::MAX; 1 << 19],
            ..deposit(0, "too-large", 1, 0)
        }),
    ];
    fixture.run("tanako/1", 1, &[1]);
    for message in fatal {
        let mut bad = Attached::hello(&fixture.socket(), "tanako/1", 1).await;
        bad.welcome().await;
        bad.send(message).await;
        bad.next().await.expect_err("the stream ends");
    }
    good.send(report(wire::ProcessStage::Ready, 0, 4)).await;
    fixture
        .state("tanako/0", |s| {
            s.attached && s.shards[&0].report.events == 4
        })
        .await;
    fixture.stop().await;
}
