//! An agent for tests: takes Hello, reports and deposits, gives permits, sends commands.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use tanako_proto::worker::v1::agent_message::Message as FromAgent;
use tanako_proto::worker::v1::command::Command as Order;
use tanako_proto::worker::v1::worker_message::Message as ToAgent;
use tanako_proto::worker::v1::worker_server::{Worker, WorkerServer};
use tanako_proto::worker::v1::{
    AgentMessage, BroadcastReply, BroadcastRequest, Command, CommandResult, Cut, DepositAck, Duty,
    GatewayLimits, Hello, IdentifyPermit, IdentifyRequest, ProcessReport, SessionDeposit,
    SessionDiscard, Welcome, WorkerMessage,
};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::eventually;

/// What the agent has been told, and how it behaves.
#[derive(Default)]
pub struct State {
    pub hellos: Vec<Hello>,
    pub reports: Vec<ProcessReport>,
    /// As stored: guilds are kept when a deposit leaves them out.
    pub sessions: HashMap<u32, SessionDeposit>,
    pub deposits_with_guilds: usize,
    pub acks: usize,
    pub discards: Vec<SessionDiscard>,
    pub limits: Vec<GatewayLimits>,
    pub results: Vec<CommandResult>,
    pub permits: Vec<u32>,
    /// Permit requests end with this while it is set.
    pub refuse_permits: Option<Status>,
    /// So many permits come when their time is over.
    pub stale_permits: u32,
    /// What the questions gave back.
    pub unused_permits: Vec<u64>,
    pub superseded: bool,
    /// Deposits are taken and not acknowledged.
    pub keep_acks: bool,
    /// What Welcome says of the shards; nothing leaves it to the environment.
    pub shards: (Vec<u32>, u32),
    pub duty: Duty,
    pub cut: Option<Cut>,
    /// Attached streams of which not all has been taken.
    streams: usize,
    next_command: u64,
    to_worker: Option<mpsc::Sender<Result<AgentMessage, Status>>>,
    /// Ends the streams when the agent dies.
    severed: CancellationToken,
}

#[derive(Clone, Default)]
pub struct Agent {
    state: Arc<Mutex<State>>,
}

/// A served socket; closing it cuts all streams.
pub struct Served {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    path: PathBuf,
}

impl Agent {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn serve(&self, path: &Path) -> Served {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let stop = CancellationToken::new();
        let (service, stopped) = (WorkerServer::new(self.clone()), stop.clone());
        let task = tokio::spawn(async move {
            let server = tonic::transport::Server::builder().add_service(service);
            let incoming = UnixListenerStream::new(listener);
            server
                .serve_with_incoming_shutdown(incoming, stopped.cancelled_owned())
                .await
                .unwrap();
        });
        Served {
            stop,
            task,
            path: path.to_owned(),
        }
    }

    /// Waits until the state says so.
    pub async fn until(&self, what: &str, check: impl Fn(&State) -> bool) {
        eventually(what, || async { check(&self.state()).then_some(()) }).await;
    }

    /// Waits until all has been taken from processes that have ended: nothing of theirs comes any more.
    pub async fn detached(&self) {
        self.until("the streams to end", |state| state.streams == 0)
            .await;
    }

    /// Waits until the latest report has every shard at this stage, at least one.
    pub async fn until_stage(&self, stage: tanako_proto::worker::v1::ShardStage) {
        self.until(&format!("all shards at {stage:?}"), |state| {
            state.reports.last().is_some_and(|report| {
                !report.shards.is_empty()
                    && report.shards.iter().all(|shard| shard.stage() == stage)
            })
        })
        .await;
    }

    /// Gives an order and waits for its result.
    pub async fn order(&self, order: Order) -> CommandResult {
        let id = self.begin(order).await;
        let found = || {
            let state = self.state();
            state.results.iter().find(|result| result.id == id).cloned()
        };
        eventually("the result of a command", || async { found() }).await
    }

    /// Gives an order; its result will have this id.
    pub async fn begin(&self, order: Order) -> u64 {
        let id = {
            let mut state = self.state();
            state.next_command += 1;
            1000 + state.next_command
        };
        let command = Some(order);
        self.command(Command { id, command }).await;
        id
    }

    pub async fn command(&self, command: Command) {
        let sender = self.state().to_worker.clone().unwrap();
        sender
            .send(Ok(AgentMessage {
                message: Some(FromAgent::Command(command)),
            }))
            .await
            .unwrap();
    }
}

impl Served {
    /// Stops serving and cuts the streams, as when the agent dies.
    pub async fn die(mut self, agent: &Agent) {
        {
            let mut state = agent.state();
            state.to_worker = None;
            state.severed.cancel();
        }
        self.stop.cancel();
        (&mut self.task).await.unwrap();
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tonic::async_trait]
impl Worker for Agent {
    type AttachStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<AgentMessage, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let incoming = request.into_inner();
        let (tx, rx) = mpsc::channel(64);
        let agent = self.clone();
        self.state().streams += 1;
        tokio::spawn(async move {
            agent.follow(incoming, &tx).await;
            agent.state().streams -= 1;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn broadcast(
        &self,
        _: Request<BroadcastRequest>,
    ) -> Result<Response<BroadcastReply>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn acquire_identify(
        &self,
        request: Request<IdentifyRequest>,
    ) -> Result<Response<IdentifyPermit>, Status> {
        let mut state = self.state();
        if let Some(status) = &state.refuse_permits {
            return Err(status.clone());
        }
        let request = request.into_inner();
        state.permits.push(request.shard_id);
        state.unused_permits.push(request.unused_permit);
        let permit = state.permits.len() as u64;
        Ok(Response::new(IdentifyPermit {
            permit,
            remaining: 900,
            until_boot_ms: if state.stale_permits > 0 {
                state.stale_permits -= 1;
                1
            } else {
                tanako_bot::identify::boot_ms() + 10_000
            },
        }))
    }
}

impl Agent {
    /// Takes what a process says until its stream or the agent ends.
    async fn follow(
        &self,
        mut incoming: Streaming<WorkerMessage>,
        tx: &mpsc::Sender<Result<AgentMessage, Status>>,
    ) {
        let severed = self.state().severed.clone();
        loop {
            let message = tokio::select! {
                message = incoming.message() => message,
                () = severed.cancelled() => return,
            };
            let Ok(Some(message)) = message else {
                return;
            };
            let reply = self.take(message.message.unwrap(), tx);
            if let Some(message) = reply
                && tx
                    .send(Ok(AgentMessage {
                        message: Some(message),
                    }))
                    .await
                    .is_err()
            {
                return;
            }
        }
    }

    fn take(
        &self,
        message: ToAgent,
        tx: &mpsc::Sender<Result<AgentMessage, Status>>,
    ) -> Option<FromAgent> {
        let mut state = self.state();
        match message {
            ToAgent::Hello(hello) => {
                state.hellos.push(hello);
                state.to_worker = Some(tx.clone());
                return Some(FromAgent::Welcome(Welcome {
                    shard_ids: state.shards.0.clone(),
                    shard_count: state.shards.1,
                    duty: state.duty.into(),
                    cut: state.cut,
                    sessions: state.sessions.values().cloned().collect(),
                    report_interval_ms: 200,
                    superseded: state.superseded,
                    valid_until_boot_ms: 0,
                }));
            }
            ToAgent::Report(report) => state.reports.push(report),
            ToAgent::Deposit(mut deposit) => {
                if deposit.guilds.is_some() {
                    state.deposits_with_guilds += 1;
                } else {
                    deposit.guilds = state
                        .sessions
                        .get(&deposit.shard_id)
                        .and_then(|stored| stored.guilds.clone());
                }
                let ack = deposit.ack;
                state.sessions.insert(deposit.shard_id, deposit);
                if ack != 0 && !state.keep_acks {
                    state.acks += 1;
                    return Some(FromAgent::DepositAck(DepositAck { ack }));
                }
            }
            ToAgent::Discard(discard) => {
                if state
                    .sessions
                    .get(&discard.shard_id)
                    .is_some_and(|stored| stored.session_id == discard.session_id)
                {
                    state.sessions.remove(&discard.shard_id);
                }
                state.discards.push(discard);
            }
            ToAgent::Limits(limits) => state.limits.push(limits),
            ToAgent::Result(result) => state.results.push(result),
            ToAgent::Progress(_) => {}
        }
        None
    }
}
