//! The connection to the agent: an agent played by this test, the real binary on the other end.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::{Client, PATIENCE, Process, directory};
use tanako_proto::worker::v1::agent_message::Message as FromAgent;
use tanako_proto::worker::v1::command::Command as Order;
use tanako_proto::worker::v1::worker_message::Message as ToAgent;
use tanako_proto::worker::v1::worker_server::{Worker, WorkerServer};
use tanako_proto::worker::v1::{
    AgentMessage, BroadcastReply, BroadcastRequest, Command, CommandProgress, CommandResult,
    DbBackup, DbRestore, DbVerify, Drain, Hello, IdentifyPermit, IdentifyRequest, ProcessReport,
    ProcessStage, Welcome, WorkerKind, WorkerMessage,
};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

type Attached = (
    Streaming<WorkerMessage>,
    mpsc::Sender<Result<AgentMessage, Status>>,
);

struct Agent {
    attached: mpsc::Sender<Attached>,
}

#[tonic::async_trait]
impl Worker for Agent {
    type AttachStream = ReceiverStream<Result<AgentMessage, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let (sender, receiver) = mpsc::channel(16);
        let attached = (request.into_inner(), sender);
        self.attached
            .send(attached)
            .await
            .map_err(|_| Status::unavailable("the test has ended"))?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn broadcast(
        &self,
        _: Request<BroadcastRequest>,
    ) -> Result<Response<BroadcastReply>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn acquire_identify(
        &self,
        _: Request<IdentifyRequest>,
    ) -> Result<Response<IdentifyPermit>, Status> {
        Err(Status::unimplemented("not for database nodes"))
    }
}

struct Running {
    attached: mpsc::Receiver<Attached>,
    serving: tokio::task::JoinHandle<()>,
}

fn agent(socket: &Path) -> Running {
    let listener = UnixListener::bind(socket).expect("binds");
    let (sender, attached) = mpsc::channel(4);
    let serving = tokio::spawn(async move {
        let service = WorkerServer::new(Agent { attached: sender });
        let incoming = UnixListenerStream::new(listener);
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming)
            .await
            .expect("serves");
    });
    Running { attached, serving }
}

/// One attached process.
struct Stream {
    from: Streaming<WorkerMessage>,
    to: mpsc::Sender<Result<AgentMessage, Status>>,
    reports: Vec<ProcessReport>,
    progress: Vec<CommandProgress>,
}

impl Stream {
    async fn accept(running: &mut Running) -> (Self, Hello) {
        let (mut from, to) = tokio::time::timeout(PATIENCE, running.attached.recv())
            .await
            .expect("in time")
            .expect("attaches");
        let first = from
            .message()
            .await
            .expect("a message")
            .expect("a message")
            .message;
        let Some(ToAgent::Hello(hello)) = first else {
            panic!("the first message is {first:?}")
        };
        let stream = Self {
            from,
            to,
            reports: Vec::new(),
            progress: Vec::new(),
        };
        stream.send(FromAgent::Welcome(Welcome::default())).await;
        (stream, hello)
    }

    async fn send(&self, message: FromAgent) {
        self.to
            .send(Ok(AgentMessage {
                message: Some(message),
            }))
            .await
            .expect("sends");
    }

    /// Reads on until the predicate holds; keeps reports and progress.
    async fn until<T>(&mut self, mut found: impl FnMut(&ToAgent) -> Option<T>) -> T {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let message = tokio::time::timeout_at(deadline, self.from.message())
                .await
                .unwrap_or_else(|_| panic!("not in time: {:?}", self.reports.last()));
            let message = message
                .expect("a message")
                .expect("an open stream")
                .message
                .expect("a message");
            let result = found(&message);
            match message {
                ToAgent::Report(report) => self.reports.push(report),
                ToAgent::Progress(progress) => self.progress.push(progress),
                _ => {}
            }
            if let Some(result) = result {
                return result;
            }
        }
    }

    async fn stage(&mut self, stage: ProcessStage) -> ProcessReport {
        self.until(|message| match message {
            ToAgent::Report(report) if report.stage() == stage => Some(report.clone()),
            _ => None,
        })
        .await
    }

    async fn command(&mut self, id: u64, order: Order) -> CommandResult {
        self.send(FromAgent::Command(Command {
            id,
            command: Some(order),
        }))
        .await;
        self.until(|message| match message {
            ToAgent::Result(result) if result.id == id => Some(result.clone()),
            _ => None,
        })
        .await
    }
}

fn start(directory: &Path, socket: &Path) -> Process {
    Process::start(directory, |command| {
        command
            .env("TANAKO_SOCKET", socket)
            .env("TANAKO_PROCESS", "db/node1")
            .env("TANAKO_ATTEMPT", "7");
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_sees_the_node_and_commands_it() {
    let directory = directory();
    let socket = directory.path().join("agent.sock");
    let mut running = agent(&socket);
    let path = directory.path().to_owned();
    let mut process = {
        let socket = socket.clone();
        tokio::task::spawn_blocking(move || start(&path, &socket))
            .await
            .expect("starts")
    };
    let (mut stream, hello) = Stream::accept(&mut running).await;
    assert_eq!(
        (hello.process.as_str(), hello.attempt, hello.pid),
        ("db/node1", 7, process.child.id())
    );
    assert_eq!(hello.kind(), WorkerKind::Db);
    let ready = stream
        .stage(ProcessStage::Ready)
        .await
        .db
        .expect("a report on the database");
    assert_eq!(ready.url, process.url);
    let mut client = Client::connect(&process.url).await;
    for guild in 1..=25 {
        client
            .ok(
                "insert",
                json!({"table": "guilds", "row": {"guild_id": guild}}),
            )
            .await;
    }
    client.refused("select", json!({"table": "nope"})).await;
    // The figures are counted at different moments: a report may have some of them and lack others.
    stream
        .until(|message| match message {
            ToAgent::Report(report) => report.db.clone().filter(|db| {
                db.rows == 25
                    && db.writes >= 25
                    && db.errors >= 1
                    && db.connections == 1
                    && db.bytes_on_disk > 0
            }),
            _ => None,
        })
        .await;

    let set = directory.path().join("set");
    let result = stream
        .command(
            1,
            Order::Backup(DbBackup {
                directory: set.display().to_string(),
            }),
        )
        .await;
    assert!(
        !result.ok && result.message.contains("set") && !result.hint.is_empty(),
        "{result:?}"
    );
    std::fs::create_dir(&set).expect("creates");
    let result = stream
        .command(
            2,
            Order::Backup(DbBackup {
                directory: set.display().to_string(),
            }),
        )
        .await;
    assert!(result.ok, "{result:?}");
    let done: Value = serde_json::from_str(&result.json).expect("JSON");
    assert_eq!(
        (done["rows"].clone(), done["manifest"]["verified"].clone()),
        (json!(25), json!(true))
    );
    assert!(
        stream
            .progress
            .iter()
            .any(|progress| progress.id == 2 && progress.done == 25 && progress.unit == "rows")
    );
    let archive = set.join("node1.tbk");
    assert!(archive.is_file() && set.join("node1.json").is_file());
    let archives = vec![archive.display().to_string()];
    let result = stream
        .command(
            3,
            Order::Verify(DbVerify {
                archives: archives.clone(),
            }),
        )
        .await;
    assert!(result.ok, "{result:?}");
    client
        .ok("delete", json!({"table": "guilds", "all": true}))
        .await;
    let result = stream
        .command(
            4,
            Order::Restore(DbRestore {
                archives: archives.clone(),
            }),
        )
        .await;
    assert!(result.ok, "{result:?}");
    assert_eq!(
        client.ok("count", json!({"table": "guilds"})).await["count"],
        25
    );
    std::fs::write(&archive, "rubbish").expect("writable");
    let result = stream
        .command(5, Order::Restore(DbRestore { archives }))
        .await;
    assert_eq!(
        (result.ok, result.code.as_str()),
        (false, "foreign_archive"),
        "{result:?}"
    );

    // The agent goes away and comes back: the node serves on and attaches again.
    running.serving.abort();
    drop(stream);
    drop(running);
    std::fs::remove_file(&socket).expect("removes");
    client.ok("ping", json!({})).await;
    let mut running = agent(&socket);
    let (mut stream, hello) = Stream::accept(&mut running).await;
    assert_eq!(hello.pid, process.child.id());
    stream.stage(ProcessStage::Ready).await;
    stream
        .send(FromAgent::Command(Command {
            id: 6,
            command: Some(Order::Drain(Drain { deadline_ms: 5_000 })),
        }))
        .await;
    stream.stage(ProcessStage::Draining).await;
    let code = tokio::task::spawn_blocking(move || process.child.wait().expect("ends").code())
        .await
        .expect("ends");
    assert_eq!(code, Some(0));
    running.serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_attempt_stops_by_itself() {
    let directory = directory();
    let socket = directory.path().join("agent.sock");
    let mut running = agent(&socket);
    let path = directory.path().to_owned();
    let mut process = {
        let socket = socket.clone();
        tokio::task::spawn_blocking(move || start(&path, &socket))
            .await
            .expect("starts")
    };
    let (stream, _) = Stream::accept(&mut running).await;
    stream
        .send(FromAgent::Welcome(Welcome {
            superseded: true,
            ..Welcome::default()
        }))
        .await;
    let code = tokio::task::spawn_blocking(move || process.child.wait().expect("ends").code())
        .await
        .expect("ends");
    assert_eq!(code, Some(0));
    running.serving.abort();
}
