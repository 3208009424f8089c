//! The task that owns one shard: connects, reads, dispatches, publishes; carries out what
//! [`super::resume`] decides.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use twilight_gateway::{CloseFrame, Config, ConfigBuilder, Message, Session, Shard, ShardId};

use super::envelope::{self, Envelope};
use super::guilds::Guilds;
use super::resume::{Ended, Lost, Plan, Reconnector, Route, Verdict};
use super::seen::Seen;
use super::seq::{SeqTracker, Ticket};
use super::status::{Deposit, ShardStatus, Stage, close_code_advice, close_code_name};
use crate::identify::{GateEvent, ShardQueue};
use crate::interactions::Outcome;
use crate::services::Services;

/// Connecting (twilight gives up after 10 s) and then Hello.
const HELLO_WITHIN: Duration = Duration::from_secs(20);
/// READY after IDENTIFY.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Between two messages while resuming.
const RESUME_QUIET: Duration = Duration::from_secs(30);
/// How long a peer may take to answer our close frame.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// Event types counted by name; the rest counts as `OTHER`.
const EVENT_TYPES_MAX: usize = 128;
/// Handlers at once on one shard. More are refused, so that memory stays bounded.
const HANDLERS_MAX: usize = 1000;

/// A session that a previous process left.
#[derive(Debug, Clone, Default)]
pub struct StoredSession {
    /// Session id.
    pub session_id: String,
    /// Everything up to here was handled.
    pub seq: u64,
    /// Where to resume.
    pub resume_url: String,
    /// The application.
    pub application_id: u64,
    /// Guild ids.
    pub guild_ids: Vec<u64>,
    /// Their member counts.
    pub guild_members: Vec<u32>,
    /// Interactions answered above `seq`.
    pub handled: Vec<u64>,
}

/// What a shard task is made of.
pub struct ShardSetup {
    /// Its number.
    pub id: u32,
    /// Of how many.
    pub count: u32,
    /// twilight's configuration; its queue tells this task through `gate`.
    pub gateway: Config<ShardQueue>,
    /// What the queue has to say.
    pub gate: mpsc::Receiver<GateEvent>,
    /// A session to resume.
    pub stored: Option<StoredSession>,
    /// Everything that handlers use.
    pub services: Arc<Services>,
    /// Where the status goes.
    pub status: watch::Sender<ShardStatus>,
    /// Wakes whoever reports.
    pub nudge: Arc<Notify>,
    /// Stop taking events, finish handlers, publish the final deposit.
    pub drain: CancellationToken,
    /// How long handlers may take to finish after `drain`.
    pub drain_within: watch::Receiver<Duration>,
    /// Close the connection and end.
    pub close: CancellationToken,
}

struct Done {
    ticket: Ticket,
    outcome: Outcome,
}

struct ShardTask {
    services: Arc<Services>,
    gateway: Config<ShardQueue>,
    gate: mpsc::Receiver<GateEvent>,
    status_tx: watch::Sender<ShardStatus>,
    nudge: Arc<Notify>,
    drain: CancellationToken,
    status: ShardStatus,
    events_by_type: HashMap<Box<str>, u64>,
    strategy: Reconnector,
    session: Option<(Arc<str>, Arc<str>)>,
    application_id: u64,
    /// Interactions that the predecessor answered above its last deposit. They stay named in ours until the
    /// replay is over: this process may be killed in the middle of it.
    inherited: Vec<u64>,
    seq: SeqTracker,
    seen: Seen,
    guilds: Guilds,
    done_tx: mpsc::Sender<Done>,
    done_rx: mpsc::Receiver<Done>,
}

/// Runs one shard until it is told to close.
pub async fn run(setup: ShardSetup) {
    let ShardSetup {
        id,
        count,
        gateway,
        gate,
        stored,
        services,
        status,
        nudge,
        drain,
        drain_within,
        close,
    } = setup;
    let (done_tx, done_rx) = mpsc::channel(HANDLERS_MAX);
    let mut task = ShardTask {
        services,
        gateway,
        gate,
        status_tx: status,
        nudge,
        drain,
        status: ShardStatus {
            id,
            count,
            ..ShardStatus::default()
        },
        events_by_type: HashMap::new(),
        strategy: Reconnector::default(),
        session: None,
        application_id: 0,
        inherited: Vec::new(),
        seq: SeqTracker::default(),
        seen: Seen::new(8192),
        guilds: Guilds::new(Instant::now()),
        done_tx,
        done_rx,
    };
    if let Some(stored) = stored {
        task.restore(stored);
    }
    let shard = task.serve().await;
    task.arm(false);
    task.quiesce(drain_within).await;
    close.cancelled().await;
    if let Some(shard) = shard {
        close_resumably(shard).await;
    }
}

/// Closes with 4000, so that the session stays resumable. Returns as soon as the peer answered, and
/// never reconnects: a new Hello or an error means that the old connection is gone.
async fn close_resumably(mut shard: Shard<ShardQueue>) {
    shard.close(CloseFrame::RESUME);
    let closed = async {
        while let Some(item) = shard.next().await {
            match item {
                Ok(Message::Close(_)) | Err(_) => break,
                Ok(Message::Text(text)) => {
                    if serde_json::from_str::<Envelope<'_>>(&text)
                        .is_ok_and(|envelope| envelope.op == envelope::OP_HELLO)
                    {
                        break;
                    }
                }
            }
        }
    };
    if tokio::time::timeout(CLOSE_WITHIN, closed).await.is_err() {
        debug!("the gateway did not answer the close frame in time");
    }
}

/// State of one connection.
struct Connection {
    shard: Shard<ShardQueue>,
    hello_at: Option<Instant>,
    established: bool,
    resuming: bool,
    /// What the gateway asked for; the close handshake is under way.
    ending: Option<Lost>,
    deadline: Option<tokio::time::Instant>,
}

impl ShardTask {
    fn restore(&mut self, stored: StoredSession) {
        info!(
            shard = self.status.id,
            seq = stored.seq,
            guilds = stored.guild_ids.len(),
            "resuming the stored session"
        );
        self.session = Some((stored.session_id.into(), stored.resume_url.into()));
        self.application_id = stored.application_id;
        self.services.rest.set_application(stored.application_id);
        self.seq.reset(stored.seq);
        self.guilds
            .restore(&stored.guild_ids, &stored.guild_members);
        for id in &stored.handled {
            self.seen.insert(*id);
        }
        self.inherited = stored.handled;
    }

    /// Connects and reads until the drain; returns the open connection, if any.
    async fn serve(&mut self) -> Option<Shard<ShardQueue>> {
        let mut plan = self.strategy.start(self.session.is_some());
        loop {
            self.stage(Stage::Connecting);
            if !self.pause(plan.delay).await {
                return None;
            }
            let ended = match self.connection(&plan).await {
                ControlFlow::Break(shard) => return shard,
                ControlFlow::Continue(ended) => ended,
            };
            self.status.reconnects += 1;
            match self.strategy.ended(ended, fastrand::f64()) {
                Verdict::Fatal(code) => {
                    let advice = close_code_advice(code).unwrap_or("fatal close code");
                    error!(shard = self.status.id, code, "{advice}");
                    self.status.last_error = format!("{code}: {advice}");
                    self.discard();
                    self.stage(Stage::Fatal);
                    self.pause(Duration::MAX).await;
                    return None;
                }
                Verdict::Retry {
                    plan: next,
                    discard,
                } => {
                    if discard {
                        self.discard();
                    }
                    let delay_ms = next.delay.as_millis() as u64;
                    info!(shard = self.status.id, error = %self.status.last_error, resume = next.resume, delay_ms, "reconnecting");
                    self.stage(Stage::Disconnected);
                    plan = next;
                }
            }
        }
    }

    /// Waits, taking in finished handlers. False when the drain began.
    async fn pause(&mut self, delay: Duration) -> bool {
        let started = tokio::time::Instant::now();
        let sleep = tokio::time::sleep(delay.min(Duration::from_secs(86_400 * 365)));
        tokio::pin!(sleep);
        let mut tick =
            tokio::time::interval_at(started + Duration::from_secs(1), Duration::from_secs(1));
        loop {
            tokio::select! {
                biased;
                () = self.drain.cancelled() => return false,
                Some(done) = self.done_rx.recv() => self.finished(done),
                _ = tick.tick() => self.publish(),
                () = &mut sleep => return true,
            }
        }
    }

    /// One connection from its opening to its end (`Continue`) or to the drain (`Break`).
    async fn connection(&mut self, plan: &Plan) -> ControlFlow<Option<Shard<ShardQueue>>, Ended> {
        let mut config = ConfigBuilder::from(self.gateway.clone());
        let config_resumes = plan.resume && self.session.is_some();
        if let (true, Some((session_id, resume_url))) = (plan.resume, &self.session) {
            config = config.session(Session::new(self.seq.received(), session_id.to_string()));
            if plan.route == Route::ResumeUrl {
                config = config.resume_url(resume_url.to_string());
            }
        }
        while self.gate.try_recv().is_ok() {}
        self.arm(!config_resumes);
        let mut connection = Connection {
            shard: Shard::with_config(
                ShardId::new(self.status.id, self.status.count),
                config.build(),
            ),
            hello_at: None,
            established: false,
            resuming: plan.resume,
            ending: None,
            deadline: Some(tokio::time::Instant::now() + HELLO_WITHIN),
        };
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let lost = loop {
            let deadline = connection.deadline;
            tokio::select! {
                biased;
                () = self.drain.cancelled() => {
                    // Without a Hello there is nothing to close, and one that ends is closing already.
                    let open = connection.hello_at.is_some() && connection.ending.is_none();
                    return ControlFlow::Break(open.then_some(connection.shard));
                }
                Some(done) = self.done_rx.recv() => self.finished(done),
                Some(event) = self.gate.recv() => self.gate_event(event, &mut connection),
                _ = tick.tick() => self.tick(&connection),
                () = tokio::time::sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)), if deadline.is_some() => {
                    break connection.ending.unwrap_or_else(|| {
                        self.status.last_error = if connection.hello_at.is_none() {
                            "no Hello from the gateway in time".to_owned()
                        } else {
                            "neither READY nor RESUMED in time".to_owned()
                        };
                        if connection.hello_at.is_none() { Lost::Unreachable } else { Lost::Stalled }
                    });
                }
                item = connection.shard.next() => {
                    if let Some(lost) = self.item(item, &mut connection) {
                        break lost;
                    }
                }
            }
        };
        let ended = Ended {
            lost,
            hello: connection.hello_at.is_some(),
            established: connection.established,
            lived: connection
                .hello_at
                .map_or(Duration::ZERO, |at| at.elapsed()),
        };
        ControlFlow::Continue(ended)
    }

    /// Says whether a Hello may lead to an IDENTIFY.
    fn arm(&self, armed: bool) {
        self.gateway.queue().armed.store(armed, Ordering::Release);
    }

    fn item(
        &mut self,
        item: Option<Result<Message, twilight_gateway::error::ReceiveMessageError>>,
        connection: &mut Connection,
    ) -> Option<Lost> {
        match item {
            Some(Ok(Message::Text(text))) => self.message(text, connection),
            Some(Ok(Message::Close(frame))) => {
                if let Some(ending) = connection.ending {
                    return Some(ending);
                }
                let code = frame.as_ref().map(|frame| frame.code);
                self.status.last_error = match code {
                    Some(code) => format!("{code}: {}", close_code_name(code)),
                    None => "closed by the gateway without a code".to_owned(),
                };
                // 1006 is how twilight tells of a broken transport.
                Some(if code == Some(1006) {
                    Lost::Transport
                } else {
                    Lost::Closed(code)
                })
            }
            Some(Err(error)) => {
                use twilight_gateway::error::ReceiveMessageErrorType as Kind;
                match error.kind() {
                    Kind::Deserializing { .. } => {
                        self.status.undecodable += 1;
                        None
                    }
                    Kind::Reconnect if connection.hello_at.is_none() => {
                        "cannot connect to the gateway".clone_into(&mut self.status.last_error);
                        Some(Lost::Unreachable)
                    }
                    _ => {
                        self.status.last_error = error.to_string();
                        Some(connection.ending.unwrap_or(Lost::Transport))
                    }
                }
            }
            None => Some(connection.ending.unwrap_or(Lost::Transport)),
        }
    }

    fn message(&mut self, text: String, connection: &mut Connection) -> Option<Lost> {
        let Ok(envelope) = serde_json::from_str::<Envelope<'_>>(&text) else {
            self.status.undecodable += 1;
            return None;
        };
        if let Some(ending) = connection.ending {
            // A Hello here belongs to a connection that twilight opened by itself: the old one is gone.
            return (envelope.op == envelope::OP_HELLO).then_some(ending);
        }
        match envelope.op {
            envelope::OP_DISPATCH => self.dispatch(&envelope, connection),
            envelope::OP_HELLO => {
                connection.hello_at = Some(Instant::now());
                connection.deadline = connection
                    .resuming
                    .then(|| tokio::time::Instant::now() + RESUME_QUIET);
                self.stage(if connection.resuming {
                    Stage::Resuming
                } else {
                    Stage::WaitingPermit
                });
            }
            envelope::OP_RECONNECT => {
                "the gateway asked to reconnect (opcode 7)".clone_into(&mut self.status.last_error);
                connection.ending = Some(Lost::Reconnect);
                self.arm(false);
                connection.deadline = Some(tokio::time::Instant::now() + CLOSE_WITHIN);
            }
            envelope::OP_INVALID_SESSION => {
                let resumable = envelope.d.is_some_and(|d| d.get() == "true");
                self.status.last_error =
                    format!("invalid session (opcode 9, resumable: {resumable})");
                connection.ending = Some(Lost::InvalidSession { resumable });
                self.arm(false);
                connection.deadline = Some(tokio::time::Instant::now() + CLOSE_WITHIN);
            }
            _ => {}
        }
        None
    }

    fn dispatch(&mut self, envelope: &Envelope<'_>, connection: &mut Connection) {
        let (Some(kind), Some(seq)) = (envelope.t, envelope.s) else {
            self.status.undecodable += 1;
            return;
        };
        self.status.events += 1;
        self.count(kind);
        if connection.resuming && !connection.established {
            connection.deadline = Some(tokio::time::Instant::now() + RESUME_QUIET);
            if kind != "RESUMED" {
                self.status.replayed += 1;
            }
        }
        let payload = envelope.d.map_or("null", |d| d.get());
        let now = Instant::now();
        match kind {
            "READY" => match serde_json::from_str::<envelope::Ready>(payload) {
                Ok(ready) => self.ready(ready, seq, connection),
                Err(_) => self.status.undecodable += 1,
            },
            "RESUMED" => {
                self.seq.receive(seq);
                connection.established = true;
                connection.deadline = None;
                self.strategy.established();
                self.status.resumes += 1;
                self.inherited.clear();
                info!(
                    shard = self.status.id,
                    replayed = self.status.replayed,
                    "resumed"
                );
                self.status.last_error.clear();
                self.stage(Stage::Ready);
            }
            "GUILD_CREATE" => {
                match serde_json::from_str::<envelope::GuildCreate>(payload) {
                    Ok(guild) if guild.unavailable != Some(true) => {
                        if self
                            .guilds
                            .create(guild.id, guild.member_count.unwrap_or(0), now)
                        {
                            self.services.guild_seen(guild.id);
                        }
                    }
                    Ok(_) => {}
                    Err(_) => self.status.undecodable += 1,
                }
                self.seq.receive(seq);
            }
            "GUILD_DELETE" => {
                match serde_json::from_str::<envelope::GuildCreate>(payload) {
                    Ok(guild) if guild.unavailable != Some(true) => {
                        self.guilds.delete(guild.id);
                        self.services.settings.forget(guild.id);
                    }
                    Ok(_) => {}
                    Err(_) => self.status.undecodable += 1,
                }
                self.seq.receive(seq);
            }
            "GUILD_MEMBER_ADD" | "GUILD_MEMBER_REMOVE" => {
                if let Some(guild) = guild_of(payload) {
                    self.guilds.member(guild.0, kind == "GUILD_MEMBER_ADD");
                }
                self.seq.receive(seq);
            }
            "MESSAGE_CREATE" => {
                if let Some((guild, false)) = guild_of(payload) {
                    self.services.activity.message(guild);
                }
                self.seq.receive(seq);
            }
            "INTERACTION_CREATE" => self.interaction(seq, payload),
            _ => self.seq.receive(seq),
        }
    }

    fn ready(&mut self, ready: envelope::Ready, seq: u64, connection: &mut Connection) {
        self.discard();
        info!(
            shard = self.status.id,
            guilds = ready.guilds.len(),
            "identified"
        );
        self.session = Some((ready.session_id.into(), ready.resume_gateway_url.into()));
        self.application_id = ready.application.id;
        self.services.rest.set_application(ready.application.id);
        self.seq.reset(seq);
        self.guilds.expect(
            ready.guilds.into_iter().map(|guild| guild.id),
            Instant::now(),
        );
        connection.established = true;
        connection.deadline = None;
        self.strategy.established();
        self.status.last_error.clear();
        self.stage(Stage::Identifying);
    }

    fn interaction(&mut self, seq: u64, payload: &str) {
        let Ok(interaction) = serde_json::from_str::<envelope::Id>(payload) else {
            self.status.undecodable += 1;
            self.seq.receive(seq);
            return;
        };
        if !self.seen.insert(interaction.id) {
            self.status.interactions_repeated += 1;
            self.seq.receive(seq);
            return;
        }
        self.status.interactions += 1;
        if self.seq.in_flight() >= HANDLERS_MAX {
            warn!(
                shard = self.status.id,
                "too many handlers at once, an interaction is left unanswered"
            );
            self.status.interactions_failed += 1;
            self.seq.receive(seq);
            return;
        }
        let ticket = self.seq.begin(seq, interaction.id);
        let services = Arc::clone(&self.services);
        let done = self.done_tx.clone();
        let shard = self.status.id;
        let payload = payload.to_owned();
        let received = tokio::time::Instant::now();
        self.services.handlers.spawn(async move {
            let outcome = crate::interactions::handle(&services, shard, &payload, received).await;
            // The receiver is gone only when the process ends.
            let _ = done.send(Done { ticket, outcome }).await;
        });
    }

    fn finished(&mut self, done: Done) {
        self.seq.finish(done.ticket);
        if done.outcome == Outcome::Failed {
            self.status.interactions_failed += 1;
        }
        // A crash from here on must not answer it again: let the deposit follow soon.
        self.publish();
        self.nudge.notify_one();
    }

    fn gate_event(&mut self, event: GateEvent, connection: &mut Connection) {
        if connection.established || connection.hello_at.is_none() || connection.ending.is_some() {
            return;
        }
        match event {
            GateEvent::Waiting(reason) => {
                self.status.last_error = reason;
                self.stage(Stage::WaitingPermit);
            }
            GateEvent::Granted => {
                self.status.identifies += 1;
                self.status.last_error.clear();
                connection.deadline = Some(tokio::time::Instant::now() + READY_WITHIN);
                self.stage(Stage::Identifying);
            }
        }
    }

    fn tick(&mut self, connection: &Connection) {
        if let Some(average) = connection.shard.latency().average() {
            self.status.latency_ms = average.as_secs_f64() * 1000.0;
        }
        if connection.established
            && self.status.stage == Stage::Identifying
            && self.guilds.settled(Instant::now())
        {
            info!(
                shard = self.status.id,
                guilds = self.guilds.len(),
                expected = self.guilds.expected(),
                "ready"
            );
            self.stage(Stage::Ready);
        } else {
            self.publish();
        }
    }

    fn discard(&mut self) {
        self.inherited.clear();
        if let Some((session_id, _)) = self.session.take() {
            self.status.void_session = Some(session_id);
        }
    }

    fn count(&mut self, kind: &str) {
        if let Some(count) = self.events_by_type.get_mut(kind) {
            *count += 1;
        } else {
            let name = if self.events_by_type.len() < EVENT_TYPES_MAX {
                kind
            } else {
                "OTHER"
            };
            *self.events_by_type.entry(name.into()).or_default() += 1;
        }
    }

    fn stage(&mut self, stage: Stage) {
        let changed = self.status.stage != stage;
        self.status.stage = stage;
        self.publish();
        if changed {
            self.nudge.notify_one();
        }
    }

    fn publish(&mut self) {
        let status = &mut self.status;
        status.guilds = self.guilds.len() as u32;
        status.guilds_expected = self.guilds.expected() as u32;
        status.members = self.guilds.total_members();
        status.seq = self.seq.received();
        status.in_flight = self.seq.in_flight();
        if status.events != status.events_by_type.values().sum::<u64>() {
            let counts: BTreeMap<String, u64> = self
                .events_by_type
                .iter()
                .map(|(kind, count)| (kind.to_string(), *count))
                .collect();
            status.events_by_type = Arc::new(counts);
        }
        status.deposit = self
            .session
            .as_ref()
            .map(|(session_id, resume_url)| Deposit {
                session_id: Arc::clone(session_id),
                resume_url: Arc::clone(resume_url),
                seq: self.seq.settled(),
                handled: self
                    .inherited
                    .iter()
                    .copied()
                    .chain(self.seq.handled_above())
                    .collect(),
                guilds: self.guilds.snapshot(Instant::now()),
                application_id: self.application_id,
            });
        self.status_tx.send_replace(status.clone());
    }

    /// Waits for the handlers and publishes the final deposit.
    async fn quiesce(&mut self, mut within: watch::Receiver<Duration>) {
        let within = *within.borrow_and_update();
        let deadline = tokio::time::Instant::now() + within;
        while self.seq.in_flight() > 0 {
            tokio::select! {
                Some(done) = self.done_rx.recv() => self.finished(done),
                () = tokio::time::sleep_until(deadline) => {
                    warn!(shard = self.status.id, handlers = self.seq.in_flight(), "handlers did not finish in time, a successor takes their events up again");
                    break;
                }
            }
        }
        self.status.quiesced = true;
        self.publish();
        self.nudge.notify_one();
    }
}

/// Guild of a member event or message, and whether a bot sent it.
fn guild_of(payload: &str) -> Option<(u64, bool)> {
    let event: envelope::InGuild<'_> = serde_json::from_str(payload).ok()?;
    Some((
        event.guild_id?.parse().ok()?,
        event.author.is_some_and(|author| author.bot),
    ))
}
