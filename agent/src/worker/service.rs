//! The gRPC service: one stream a worker, and permits.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use tanako_proto::{
    fleet::v1::Problem,
    worker::v1::{
        self as wire, agent_message::Message as ToWorker, worker_message::Message as FromWorker,
    },
};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    Processes,
    admit::{Admission, Current, admit},
    clean,
    duties::Duties,
    listen::Peer,
    registry::{Outbox, Registry, StreamId},
};
use crate::{
    broadcast::{Broadcast, Question},
    clock::boot_ms,
    identify::{AcquireError, Ask, Broker},
    metrics::Latency,
    supervisor::WorkerInput,
    tenure::Tenure,
    vault::Vault,
};

/// Hello has to come within this time.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// A stream on which nothing came for this long is given up; workers report every second.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Messages to a worker that wait for it to read.
const OUTBOX_MAX: usize = 64;
/// How long a worker may take to read one.
const SEND_WITHIN: Duration = Duration::from_secs(10);
/// Messages a second that are read from a worker besides some for each of its shards; it is not
/// read faster, and so has to wait.
const RATE_BASE: f64 = 50.0;
const RATE_PER_SHARD: f64 = 4.0;
/// So many seconds' worth may come at once.
const BURST_S: f64 = 4.0;

/// What every call needs.
pub(super) struct Service {
    pub(super) processes: Arc<dyn Processes>,
    pub(super) broker: Broker,
    pub(super) vault: Vault,
    pub(super) registry: Arc<Mutex<Registry>>,
    /// Wakes the publisher.
    pub(super) changed: Arc<Notify>,
    pub(super) report_interval: Duration,
    pub(super) duties: Duties,
    /// Set once everything that it needs has been started.
    pub(super) broadcast: Arc<OnceLock<Broadcast>>,
    pub(super) tenure: Tenure,
    pub(super) latency: Arc<Latency>,
    pub(super) cancel: CancellationToken,
    pub(super) tracker: TaskTracker,
}

/// The service as tonic wants it.
#[derive(Clone)]
pub(super) struct Shared(pub(super) Arc<Service>);

#[tonic::async_trait]
impl wire::worker_server::Worker for Shared {
    type AttachStream = ReceiverStream<Result<wire::AgentMessage, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<wire::WorkerMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let peer = peer_of(&request)?;
        let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
        let service = Arc::clone(&self.0);
        let inbound = request.into_inner();
        // The answer's head goes out before Hello has come: some clients wait for it.
        self.0.tracker.spawn(async move {
            if let Err(status) = service.converse(peer, inbound, &outbox).await {
                // The worker may be gone, or may not be reading.
                let _ = outbox.send_timeout(Err(status), SEND_WITHIN).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn acquire_identify(
        &self,
        request: Request<wire::IdentifyRequest>,
    ) -> Result<Response<wire::IdentifyPermit>, Status> {
        let peer = peer_of(&request)?;
        let request = request.into_inner();
        let service = &self.0;
        let current = match admit(
            service.processes.as_ref(),
            &peer,
            &request.process,
            request.attempt,
        )
        .await?
        {
            Admission::Current(current) => current,
            Admission::Superseded => return Err(superseded(&request.process)),
        };
        holds(&current, request.shard_id, request.shard_count)?;
        let ask = Ask {
            process: current.name.clone(),
            attempt: current.attempt,
            shard_id: request.shard_id,
            shard_count: request.shard_count,
            unused: (request.unused_permit != 0).then_some(request.unused_permit),
        };
        let permit = service.broker.acquire(ask).await.map_err(|error| {
            let object = current.name.as_str();
            match &error {
                AcquireError::Exhausted { .. } => {
                    Problem::new("identify-exhausted", object, error.to_string())
                        .hint("see tanakoctl identify; a RESUME needs no permit")
                        .into_status(Code::FailedPrecondition)
                }
                AcquireError::Superseded => superseded(object),
                AcquireError::Unavailable(_) => {
                    Problem::new("unavailable", object, error.to_string())
                        .retryable()
                        .into_status(Code::Unavailable)
                }
            }
        })?;
        Ok(Response::new(wire::IdentifyPermit {
            permit: permit.number,
            remaining: permit.remaining,
            until_boot_ms: permit.until_boot_ms,
        }))
    }

    async fn broadcast(
        &self,
        request: Request<wire::BroadcastRequest>,
    ) -> Result<Response<wire::BroadcastReply>, Status> {
        let peer = peer_of(&request)?;
        let request = request.into_inner();
        let service = &self.0;
        let processes = service.processes.as_ref();
        let current = match admit(processes, &peer, &request.process, request.attempt).await? {
            Admission::Current(current) => current,
            Admission::Superseded => return Err(superseded(&request.process)),
        };
        let Some(broadcast) = service.broadcast.get() else {
            return Err(Status::unavailable("the agent is starting"));
        };
        let question = Question::new(request.question, request.json, request.timeout_ms);
        // Its own bot and no other.
        let reply = match question {
            Ok(question) => broadcast.ask(current.name.group(), question).await,
            Err(problem) => Err(problem),
        };
        reply.map(Response::new).map_err(|refusal| unsaid(*refusal))
    }
}

fn unsaid(problem: Problem) -> Status {
    let code = match problem.code.as_str() {
        "invalid-argument" | "too-large" => Code::InvalidArgument,
        "unknown-target" => Code::NotFound,
        _ => Code::ResourceExhausted,
    };
    problem.into_status(code)
}

fn peer_of<T>(request: &Request<T>) -> Result<Peer, Status> {
    request
        .extensions()
        .get::<Peer>()
        .cloned()
        .ok_or_else(|| Status::internal("the connection has no peer"))
}

fn superseded(process: &str) -> Status {
    Problem::new(
        "superseded",
        process,
        format!("a newer attempt of {process} has taken its place"),
    )
    .hint("exit without touching the gateway")
    .into_status(Code::Aborted)
}

fn holds(current: &Current, shard_id: u32, shard_count: u32) -> Result<(), Status> {
    if current.spec.shard_ids.contains(&shard_id) && current.spec.shard_count == shard_count {
        return Ok(());
    }
    Err(Problem::new(
        "invalid-argument",
        current.name.as_str(),
        format!(
            "shard {shard_id}/{shard_count} is not held by {}",
            current.name
        ),
    )
    .hint("ask for the shards of SHARD_IDS and SHARD_COUNT only")
    .into_status(Code::InvalidArgument))
}

fn to_worker(message: ToWorker) -> wire::AgentMessage {
    wire::AgentMessage {
        message: Some(message),
    }
}

impl Service {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The whole life of a stream.
    async fn converse(
        &self,
        peer: Peer,
        mut inbound: Streaming<wire::WorkerMessage>,
        outbox: &Outbox,
    ) -> Result<(), Status> {
        let hello = tokio::select! {
            () = self.cancel.cancelled() => return Ok(()),
            first = tokio::time::timeout(HELLO_WITHIN, inbound.message()) => match first {
                Ok(message) => match message?.and_then(|m| m.message) {
                    Some(FromWorker::Hello(hello)) => hello,
                    _ => return Err(protocol("the first message must be Hello")),
                },
                Err(_) => return Err(protocol("no Hello came in time")),
            },
        };
        let current = match admit(
            self.processes.as_ref(),
            &peer,
            &hello.process,
            hello.attempt,
        )
        .await?
        {
            Admission::Current(current) => current,
            Admission::Superseded => {
                let welcome = wire::Welcome {
                    superseded: true,
                    ..wire::Welcome::default()
                };
                send(outbox, to_worker(ToWorker::Welcome(welcome))).await?;
                return Ok(());
            }
        };
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let (id, replaced) = self
            .registry()
            .attach(&current.name, &hello, outbox.clone(), now_ms);
        self.changed.notify_one();
        tracing::info!(
            process = %current.name, attempt = current.attempt, version = hello.version,
            "worker attached"
        );
        let assignment = self.duties.of(current.name.as_str());
        let sessions = if assignment.holds_sessions() {
            self.vault.attach(&current.spec, current.attempt);
            // The worker itself compares the token's hash, the agent does not read tokens here.
            self.vault.sessions_for(&current.spec, None)
        } else {
            Vec::new()
        };
        let welcome = wire::Welcome {
            shard_ids: current.spec.shard_ids.clone(),
            shard_count: current.spec.shard_count,
            sessions,
            report_interval_ms: u32::try_from(self.report_interval.as_millis()).unwrap_or(u32::MAX),
            superseded: false,
            duty: assignment.duty.into(),
            cut: assignment.cut,
            valid_until_boot_ms: self.tenure.watch().borrow().until,
        };
        let mut stream = Stream {
            service: self,
            current,
            id,
            outbox,
            stage: None,
            shards: HashMap::new(),
        };
        let outcome = async {
            send(outbox, to_worker(ToWorker::Welcome(welcome))).await?;
            stream.input(WorkerInput::Attached).await;
            tokio::select! {
                () = self.cancel.cancelled() => Err(Status::unavailable("the agent is stopping")),
                () = replaced.cancelled() => Err(Status::aborted(
                    "another connection of this process has taken this one's place",
                )),
                done = stream.run(&mut inbound) => done,
                done = self.tell_validity(outbox) => done,
            }
        }
        .await;
        self.registry().detach(&stream.current.name, id);
        self.changed.notify_one();
        tracing::info!(
            process = %stream.current.name, attempt = stream.current.attempt,
            "worker detached"
        );
        outcome
    }
}

impl Service {
    /// Tells the worker each time that it may act for longer. One that does not read them in time stops by
    /// itself, which is what they are for.
    async fn tell_validity(&self, outbox: &Outbox) -> Result<(), Status> {
        let mut view = self.tenure.watch();
        let mut told = view.borrow_and_update().until;
        loop {
            if view.changed().await.is_err() {
                return std::future::pending().await;
            }
            let until = view.borrow_and_update().until;
            if until != told {
                told = until;
                let validity = wire::Validity {
                    until_boot_ms: until,
                };
                send(outbox, to_worker(ToWorker::Validity(validity))).await?;
            }
        }
    }
}

fn protocol(what: &str) -> Status {
    Problem::new("invalid-argument", "worker", what).into_status(Code::InvalidArgument)
}

async fn send(outbox: &Outbox, message: wire::AgentMessage) -> Result<(), Status> {
    outbox
        .send_timeout(Ok(message), SEND_WITHIN)
        .await
        .map_err(|_| Status::deadline_exceeded("the worker does not read its messages"))
}

/// An attached worker's stream.
struct Stream<'a> {
    service: &'a Service,
    current: Current,
    id: StreamId,
    outbox: &'a Outbox,
    /// Stage and detail that the supervisor was told last.
    stage: Option<(wire::ProcessStage, String)>,
    /// Stage and IDENTIFYs of each shard in the latest report.
    shards: HashMap<u32, (wire::ShardStage, u64)>,
}

impl Stream<'_> {
    async fn run(&mut self, inbound: &mut Streaming<wire::WorkerMessage>) -> Result<(), Status> {
        let shards = self.current.spec.shard_ids.len() as f64;
        let mut pace = Pace::new(RATE_BASE + RATE_PER_SHARD * shards);
        loop {
            pace.wait().await;
            let message = tokio::time::timeout(SILENCE_MAX, inbound.message())
                .await
                .map_err(|_| Status::deadline_exceeded("the worker was silent for too long"))??;
            match message {
                None => return Ok(()),
                // A message of a later version: nothing that this one could do.
                Some(wire::WorkerMessage { message: None }) => {}
                Some(wire::WorkerMessage {
                    message: Some(message),
                }) => {
                    let began = Instant::now();
                    self.take(message).await?;
                    self.service.latency.record(began.elapsed());
                }
            }
        }
    }

    async fn take(&mut self, message: FromWorker) -> Result<(), Status> {
        let name = &self.current.name;
        match message {
            FromWorker::Hello(_) => return Err(protocol("Hello comes once, and first")),
            FromWorker::Report(report) => self.report(report).await,
            FromWorker::Deposit(deposit) => {
                holds(&self.current, deposit.shard_id, deposit.shard_count)?;
                let (shard, ack) = (deposit.shard_id, deposit.ack);
                let kept = self
                    .service
                    .vault
                    .deposit(name, self.current.attempt, deposit)
                    .await;
                match kept {
                    Ok(()) if ack != 0 => {
                        let ack = wire::DepositAck { ack };
                        send(self.outbox, to_worker(ToWorker::DepositAck(ack))).await?;
                    }
                    Ok(()) => {}
                    Err(error) => {
                        tracing::warn!(process = %name, shard, error = %error, "deposit refused");
                    }
                }
            }
            FromWorker::Discard(discard) => {
                holds(&self.current, discard.shard_id, discard.shard_count)?;
                self.service
                    .vault
                    .discard(name, self.current.attempt, &discard);
            }
            FromWorker::Limits(limits) => {
                // Only who holds shards of a bot speaks for its limits.
                if !self.current.spec.shard_ids.is_empty() {
                    self.service.broker.limits(name.group(), limits).await;
                }
            }
            FromWorker::Progress(progress) => {
                self.input(WorkerInput::Alive).await;
                self.service
                    .registry()
                    .progress(&self.current.name, progress);
            }
            FromWorker::Result(result) => self.service.registry().result(name, result),
        }
        Ok(())
    }

    async fn report(&mut self, mut report: wire::ProcessReport) {
        clean::report(&mut report, &self.current.spec.shard_ids);
        self.input(WorkerInput::Alive).await;
        let told = (report.stage(), report.detail.clone());
        if self.stage.as_ref() != Some(&told) {
            let (stage, detail) = told.clone();
            self.stage = Some(told);
            self.input(match stage {
                wire::ProcessStage::Ready => WorkerInput::Ready,
                wire::ProcessStage::Draining => WorkerInput::Draining,
                wire::ProcessStage::Starting | wire::ProcessStage::Unspecified => {
                    WorkerInput::NotReady(detail)
                }
            })
            .await;
        }
        for shard in &report.shards {
            let now = (shard.stage(), shard.identifies);
            let before = self.shards.insert(shard.shard_id, now);
            if shard.identify_boot_ms > 0 && before.is_none_or(|before| before.1 != now.1) {
                let ago = boot_ms().saturating_sub(shard.identify_boot_ms);
                self.service
                    .broker
                    .sent(
                        self.current.name.group(),
                        shard.shard_id,
                        self.current.spec.shard_count,
                        Duration::from_millis(u64::try_from(ago).unwrap_or(0)),
                    )
                    .await;
            }
            if now.0 == wire::ShardStage::Ready && before != Some(now) {
                self.service
                    .broker
                    .ready(
                        self.current.name.group(),
                        shard.shard_id,
                        self.current.spec.shard_count,
                    )
                    .await;
            }
        }
        let connected = report.shards.iter().filter(|shard| {
            // Disconnected ones are not seen alive: their sessions age.
            shard.stage() == wire::ShardStage::Ready
        });
        self.service.vault.alive(
            &self.current.spec,
            self.current.attempt,
            connected.map(|shard| shard.shard_id),
        );
        let now_ms = jiff::Timestamp::now().as_millisecond();
        self.service
            .registry()
            .report(&self.current.name, self.id, report, Instant::now(), now_ms);
        self.service.changed.notify_one();
    }

    async fn input(&self, input: WorkerInput) {
        self.service
            .processes
            .worker_input(self.current.name.clone(), self.current.attempt, input)
            .await;
    }
}

/// Reads no faster than this many messages a second, with a burst.
struct Pace {
    per_s: f64,
    left: f64,
    at: Instant,
}

impl Pace {
    fn new(per_s: f64) -> Self {
        Self {
            per_s,
            left: per_s * BURST_S,
            at: Instant::now(),
        }
    }

    async fn wait(&mut self) {
        let now = Instant::now();
        let earned = now.duration_since(self.at).as_secs_f64() * self.per_s;
        self.at = now;
        self.left = (self.left + earned).min(self.per_s * BURST_S) - 1.0;
        if self.left < 0.0 {
            tokio::time::sleep(Duration::from_secs_f64(-self.left / self.per_s)).await;
        }
    }
}
