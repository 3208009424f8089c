//! The task that holds the stream to the agent.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tanako_proto::worker::v1::agent_message::Message as FromAgent;
use tanako_proto::worker::v1::command::Command as AgentCommand;
use tanako_proto::worker::v1::worker_client::WorkerClient;
use tanako_proto::worker::v1::worker_message::Message as ToAgent;
use tanako_proto::worker::v1::{
    AgentMessage, CommandResult, Hello, ProcessReport, ProcessStage, SessionDiscard, Welcome,
    WorkerKind, WorkerMessage,
};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;
use tracing::{debug, info, warn};

use super::Identity;
use super::report::{self, Binding, Deposited};
use super::validity::Validity;
use crate::backoff::Backoff;
use crate::rest::Limits;
use crate::shard::{ShardStatus, Stage};

/// Welcome after Hello.
const WELCOME_WITHIN: Duration = Duration::from_secs(10);
/// An agent that does not take messages for this long is given up and called again.
const SEND_WITHIN: Duration = Duration::from_secs(5);
/// Longest pause before the agent is called again by a process that may act only for a time.
const BOUNDED_RETRY: Duration = Duration::from_millis(300);
/// After a nudge, so that many become one message.
const COALESCE: Duration = Duration::from_millis(50);
/// Bounds for the interval that the agent asks for.
const INTERVAL: std::ops::RangeInclusive<u64> = 100..=60_000;

/// What the process as a whole reports.
#[derive(Debug, Clone, Default)]
pub struct ProcessView {
    /// Being drained.
    pub draining: bool,
    /// Additional gauges and counters.
    pub metrics: BTreeMap<String, f64>,
    /// Why it is not ready, when it is not a shard's fault.
    pub detail: String,
    /// Everything is there that a shard on standby needs to take over at once.
    pub prepared: bool,
}

/// Names a command on the stream that it came on: another stream, of another agent perhaps, counts anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandId {
    stream: u64,
    id: u64,
}

/// What became of a command.
#[derive(Debug)]
pub struct Answer {
    /// Which command.
    pub command: CommandId,
    /// What was done, or why not.
    pub result: Result<serde_json::Value, Refusal>,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Stable.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// What to do.
    pub hint: &'static str,
}

/// What the agent tells the process.
#[derive(Debug)]
pub enum Order {
    /// The first Welcome.
    Welcome(Box<Welcome>),
    /// Carry this out and answer it.
    Command(CommandId, Box<AgentCommand>),
}

/// Deposits with acknowledgement and a report, before the sessions go to somebody else.
#[derive(Debug)]
pub struct Farewell {
    /// Nothing follows: the stream may end.
    pub last: bool,
    /// Answered with the number of deposits acknowledged and the number sent.
    pub done: oneshot::Sender<(usize, usize)>,
}

/// What the link task is made of.
pub struct LinkSetup {
    /// To the worker socket.
    pub channel: Channel,
    /// Who we are.
    pub identity: Identity,
    /// What sessions are tied to.
    pub binding: Binding,
    /// The shards, once they are known.
    pub shards: watch::Receiver<Vec<watch::Receiver<ShardStatus>>>,
    /// The process as a whole.
    pub process: Box<dyn Fn() -> ProcessView + Send + Sync>,
    /// `/gateway/bot`, once it is known.
    pub limits: watch::Receiver<Option<Limits>>,
    /// Wakes the task for a stage change or an answered interaction.
    pub nudge: Arc<Notify>,
    /// To the process.
    pub orders: mpsc::Sender<Order>,
    /// Sessions to be handed over.
    pub farewell: mpsc::Receiver<Farewell>,
    /// What became of commands.
    pub answers: mpsc::Receiver<Answer>,
    /// Cancelled when a newer attempt has taken over.
    pub superseded: CancellationToken,
    /// Until when the process may act, as the agent tells it.
    pub validity: Validity,
}

struct Link {
    setup: LinkSetup,
    welcomed: bool,
    was_ready: bool,
    streams: u64,
    next_ack: u64,
    /// The stages in the latest report.
    reported: Vec<Stage>,
}

struct Stream {
    tx: mpsc::Sender<WorkerMessage>,
    rx: Streaming<AgentMessage>,
    deposited: HashMap<u32, Deposited>,
    limits_sent: Option<Limits>,
    acks_open: HashSet<u64>,
    acks_sent: usize,
    farewell: Option<Farewell>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("the agent does not answer: {}", .0.code())]
    Call(Box<tonic::Status>),
    #[error("the agent closed the stream")]
    Closed,
    #[error("the agent sent no Welcome in time")]
    NoWelcome,
    #[error("the agent takes no messages")]
    Stuck,
    #[error("a newer attempt of this process has taken over")]
    Superseded,
}

impl From<tonic::Status> for LinkError {
    fn from(status: tonic::Status) -> Self {
        Self::Call(Box::new(status))
    }
}

/// Keeps the stream up until the process ends.
pub async fn run(setup: LinkSetup) {
    let mut link = Link {
        setup,
        welcomed: false,
        was_ready: false,
        streams: 0,
        next_ack: 0,
        reported: Vec::new(),
    };
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut pending_farewell = None;
    loop {
        let started = Instant::now();
        let error = match link.stream(&mut pending_farewell).await {
            Ok(()) => return,
            Err(LinkError::Superseded) => {
                warn!("a newer attempt of this process has taken over, leaving at once");
                link.setup.superseded.cancel();
                return;
            }
            Err(error) => error,
        };
        if started.elapsed() > Duration::from_secs(10) {
            backoff.reset();
        }
        if backoff.failures() == 0 {
            warn!(%error, "lost the agent, the shards go on");
        } else {
            debug!(%error, "the agent is still away");
        }
        let mut delay = backoff.delay();
        if link.setup.validity.is_bounded() {
            // Its time runs out while it waits.
            delay = delay.min(BOUNDED_RETRY);
        }
        tokio::time::sleep(delay).await;
    }
}

impl Link {
    /// One stream, from Hello to its end. `Ok` = last words were said.
    async fn stream(&mut self, farewell: &mut Option<Farewell>) -> Result<(), LinkError> {
        let (tx, outgoing) = mpsc::channel(64);
        let hello = Hello {
            process: self.setup.identity.process.clone(),
            attempt: self.setup.identity.attempt,
            pid: std::process::id(),
            kind: WorkerKind::Shard.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        send(&tx, ToAgent::Hello(hello)).await?;
        let mut client =
            WorkerClient::new(self.setup.channel.clone()).max_decoding_message_size(64 << 20);
        let call = client.attach(ReceiverStream::new(outgoing));
        let mut rx = tokio::time::timeout(WELCOME_WITHIN, call)
            .await
            .map_err(|_| LinkError::NoWelcome)??
            .into_inner();
        let welcome = tokio::time::timeout(WELCOME_WITHIN, async {
            loop {
                // Nothing else makes sense before.
                if let Some(FromAgent::Welcome(welcome)) =
                    rx.message().await?.ok_or(LinkError::Closed)?.message
                {
                    return Ok::<_, LinkError>(welcome);
                }
            }
        })
        .await
        .map_err(|_| LinkError::NoWelcome)??;
        if welcome.superseded {
            return Err(LinkError::Superseded);
        }
        self.setup.validity.set(welcome.valid_until_boot_ms);
        let interval = Duration::from_millis(match u64::from(welcome.report_interval_ms) {
            0 => 1000,
            asked => asked.clamp(*INTERVAL.start(), *INTERVAL.end()),
        });
        info!(process = %self.setup.identity.process, attempt = self.setup.identity.attempt, sessions = welcome.sessions.len(), "attached to the agent");
        if !self.welcomed {
            self.welcomed = true;
            let _ = self
                .setup
                .orders
                .send(Order::Welcome(Box::new(welcome)))
                .await;
        }
        self.streams += 1;
        let mut stream = Stream {
            tx,
            rx,
            deposited: HashMap::new(),
            limits_sent: None,
            acks_open: HashSet::new(),
            acks_sent: 0,
            farewell: None,
        };
        let result = async {
            stream.farewell = farewell.take();
            if stream.farewell.is_some() {
                self.say_farewell(&mut stream).await?;
            }
            self.hold(&mut stream, interval).await
        }
        .await;
        // A stream that broke during the last words is tried again.
        *farewell = stream.farewell.take();
        result
    }

    async fn hold(&mut self, stream: &mut Stream, interval: Duration) -> Result<(), LinkError> {
        let mut tick = tokio::time::interval(interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut soon: Option<Instant> = None;
        let nudge = Arc::clone(&self.setup.nudge);
        loop {
            if stream.farewell.is_some() && stream.acks_open.is_empty() {
                self.answer_all(stream).await?;
                if let Some(Farewell { last, done }) = stream.farewell.take() {
                    let _ = done.send((stream.acks_sent, stream.acks_sent));
                    if last {
                        return Ok(());
                    }
                }
            }
            tokio::select! {
                message = stream.rx.message() => {
                    let message = message?.ok_or(LinkError::Closed)?;
                    self.received(message, stream).await?;
                }
                _ = tick.tick() => { soon = None; self.tell(stream, true).await?; }
                () = nudge.notified(), if soon.is_none() => soon = Some(Instant::now() + COALESCE),
                () = tokio::time::sleep_until(soon.unwrap_or_else(Instant::now)), if soon.is_some() => {
                    soon = None;
                    self.tell(stream, false).await?;
                }
                Some(farewell) = self.setup.farewell.recv() => {
                    stream.farewell = Some(farewell);
                    self.say_farewell(stream).await?;
                }
                Some(answer) = self.setup.answers.recv() => self.answer(answer, stream).await?,
            }
        }
    }

    async fn received(
        &mut self,
        message: AgentMessage,
        stream: &mut Stream,
    ) -> Result<(), LinkError> {
        match message.message {
            Some(FromAgent::DepositAck(ack)) => {
                stream.acks_open.remove(&ack.ack);
            }
            Some(FromAgent::Welcome(welcome)) if welcome.superseded => {
                return Err(LinkError::Superseded);
            }
            Some(FromAgent::Validity(validity)) => {
                self.setup.validity.set(validity.until_boot_ms);
            }
            Some(FromAgent::Command(command)) => {
                let id = CommandId {
                    stream: self.streams,
                    id: command.id,
                };
                if let Err(refusal) = self.take(id, command.command) {
                    let answer = Answer {
                        command: id,
                        result: Err(refusal),
                    };
                    self.answer(answer, stream).await?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Hands a command on. Never waits: what carries it out may wait for this very task.
    fn take(&self, id: CommandId, command: Option<AgentCommand>) -> Result<(), Refusal> {
        let message = match &command {
            Some(AgentCommand::Backup(_) | AgentCommand::Verify(_) | AgentCommand::Restore(_)) => {
                "a shard process has no database"
            }
            None => "unknown command",
            Some(_) => "",
        };
        match command {
            Some(command) if message.is_empty() => self
                .setup
                .orders
                .try_send(Order::Command(id, Box::new(command)))
                .map_err(|_| Refusal {
                    code: "busy",
                    message: "too many commands at once".to_owned(),
                    hint: "ask again when the earlier ones are answered",
                }),
            _ => Err(Refusal {
                code: "unsupported",
                message: message.to_owned(),
                hint: "send it to a process that knows it",
            }),
        }
    }

    async fn answer(&self, answer: Answer, stream: &Stream) -> Result<(), LinkError> {
        if answer.command.stream != self.streams {
            // Whoever asked is gone, and the number may be another command's by now.
            return Ok(());
        }
        let id = answer.command.id;
        let result = match answer.result {
            Ok(json) => CommandResult {
                id,
                ok: true,
                json: json.to_string(),
                ..CommandResult::default()
            },
            Err(refusal) => CommandResult {
                id,
                ok: false,
                code: refusal.code.to_owned(),
                message: refusal.message,
                hint: refusal.hint.to_owned(),
                json: String::new(),
            },
        };
        send(&stream.tx, ToAgent::Result(result)).await
    }

    async fn answer_all(&mut self, stream: &Stream) -> Result<(), LinkError> {
        while let Ok(answer) = self.setup.answers.try_recv() {
            self.answer(answer, stream).await?;
        }
        Ok(())
    }

    fn statuses(&self) -> Vec<ShardStatus> {
        self.setup
            .shards
            .borrow()
            .iter()
            .map(|shard| shard.borrow().clone())
            .collect()
    }

    /// Whatever has changed. The report goes along when it is due or says something new of a stage: answered
    /// interactions alone call for deposits, and there may be many. It comes last: a shard that is called ready
    /// has its session with the agent.
    async fn tell(&mut self, stream: &mut Stream, report_due: bool) -> Result<(), LinkError> {
        let statuses = self.statuses();
        for status in &statuses {
            let deposited = stream.deposited.entry(status.id).or_default();
            if let Some(void) = deposited.to_discard(status) {
                let discard = SessionDiscard {
                    shard_id: status.id,
                    shard_count: status.count,
                    session_id: void.to_string(),
                };
                send(&stream.tx, ToAgent::Discard(discard)).await?;
            }
            if let Some(session) = &status.deposit {
                let (moved, guilds) = deposited.needs(session);
                if moved {
                    let message = report::deposit(status, session, &self.setup.binding, guilds, 0);
                    send(&stream.tx, ToAgent::Deposit(message)).await?;
                    deposited.sent(session);
                }
            } else {
                deposited.forget();
            }
        }
        let limits = self.setup.limits.borrow().clone();
        if let Some(limits) = limits
            && stream.limits_sent.as_ref() != Some(&limits)
        {
            send(&stream.tx, ToAgent::Limits(report::limits(&limits))).await?;
            stream.limits_sent = Some(limits);
        }
        let stages = statuses.iter().map(|status| status.stage).collect();
        if report_due || stages != self.reported {
            self.reported = stages;
            let report = self.report(&statuses, (self.setup.process)());
            send(&stream.tx, ToAgent::Report(report)).await?;
        }
        Ok(())
    }

    /// A report, every session with an acknowledgement asked for, and the answers that are due.
    async fn say_farewell(&mut self, stream: &mut Stream) -> Result<(), LinkError> {
        self.tell(stream, true).await?;
        stream.acks_open.clear();
        stream.acks_sent = 0;
        for status in self.statuses() {
            if let Some(session) = &status.deposit {
                self.next_ack += 1;
                let message =
                    report::deposit(&status, session, &self.setup.binding, true, self.next_ack);
                send(&stream.tx, ToAgent::Deposit(message)).await?;
                stream.acks_open.insert(self.next_ack);
                stream.acks_sent += 1;
            }
        }
        self.answer_all(stream).await?;
        Ok(())
    }

    fn report(&mut self, statuses: &[ShardStatus], view: ProcessView) -> ProcessReport {
        let all_ready =
            !statuses.is_empty() && statuses.iter().all(|status| is_ready(status, &view));
        self.was_ready |= all_ready;
        let fatal = statuses.iter().any(|status| status.stage == Stage::Fatal);
        let stage = if view.draining {
            ProcessStage::Draining
        } else if self.was_ready && !fatal {
            // A shard that reconnects does not make the process unready: it comes back by itself.
            ProcessStage::Ready
        } else {
            ProcessStage::Starting
        };
        let detail = statuses
            .iter()
            .filter(|status| !is_ready(status, &view))
            .map(|status| {
                let name = status.stage.name();
                match (status.stage, status.last_error.as_str()) {
                    (Stage::Identifying, "") => {
                        format!(
                            "shard {}: {} of {} guilds",
                            status.id, status.guilds, status.guilds_expected
                        )
                    }
                    (_, "") => format!("shard {}: {name}", status.id),
                    (_, why) => format!("shard {}: {name}: {why}", status.id),
                }
            })
            .chain((!view.detail.is_empty()).then(|| view.detail.clone()))
            .take(4)
            .collect::<Vec<_>>()
            .join("; ");
        ProcessReport {
            stage: stage.into(),
            detail,
            shards: statuses.iter().map(report::shard_report).collect(),
            metrics: view.metrics.into_iter().collect(),
            db: None,
        }
    }
}

/// A shard on standby does what it is meant to once it could take over at once.
fn is_ready(status: &ShardStatus, view: &ProcessView) -> bool {
    status.stage == Stage::Ready || status.stage == Stage::Standby && view.prepared
}

async fn send(tx: &mpsc::Sender<WorkerMessage>, message: ToAgent) -> Result<(), LinkError> {
    match tokio::time::timeout(
        SEND_WITHIN,
        tx.send(WorkerMessage {
            message: Some(message),
        }),
    )
    .await
    {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(LinkError::Closed),
        Err(_) => Err(LinkError::Stuck),
    }
}
