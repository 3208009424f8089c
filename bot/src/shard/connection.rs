//! One connection of a shard, from its opening to its end.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use tracing::{info, warn};
use twilight_gateway::{CloseFrame, ConfigBuilder, Message, Session, Shard, ShardId};

use super::envelope::{self, Envelope};
use super::resume::{Ended, Lost, Plan, Route};
use super::status::{Stage, close_code_name};
use super::task::{CLOSE_WITHIN, ShardOrder, ShardTask, unix_ms};
use crate::identify::{GateEvent, ShardQueue, boot_ms};

/// Connecting (twilight gives up after 10 s) and then Hello.
const HELLO_WITHIN: Duration = Duration::from_secs(20);
/// READY after IDENTIFY.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Between two messages while resuming.
pub(super) const RESUME_QUIET: Duration = Duration::from_secs(30);

/// State of one connection.
pub(super) struct Connection {
    shard: Shard<ShardQueue>,
    hello_at: Option<Instant>,
    pub(super) established: bool,
    pub(super) resuming: bool,
    /// Dispatches since the latest RESUMED of this connection.
    pub(super) since_resumed: u64,
    /// The close handshake is under way, for this reason.
    ending: Option<Lost>,
    pub(super) deadline: Option<tokio::time::Instant>,
    heartbeat_interval: Duration,
}

impl Connection {
    fn is_open(&self) -> bool {
        self.hello_at.is_some() && self.ending.is_none()
    }

    /// Whether a heartbeat of a whole interval ago was not acknowledged.
    fn is_zombie(&self) -> bool {
        let latency = self.shard.latency();
        latency.received().is_none()
            && latency
                .sent()
                .is_some_and(|sent| sent.elapsed() >= self.heartbeat_interval.mul_f64(0.9))
    }

    fn ended(&self, lost: Lost) -> Ended {
        Ended {
            lost,
            hello: self.hello_at.is_some(),
            established: self.established,
            lived: self.hello_at.map_or(Duration::ZERO, |at| at.elapsed()),
        }
    }
}

impl ShardTask {
    /// The general gateway. Waits for `/gateway/bot` when that has to say it; None when told to stand down.
    async fn generic_url(&mut self) -> Option<String> {
        if let Some(url) = self.url.known() {
            return Some(url);
        }
        "waiting for /gateway/bot, which says where the gateway is"
            .clone_into(&mut self.status.last_error);
        self.stage(Stage::Connecting);
        let mut limits = self.url.limits.clone();
        loop {
            // An error means that the process ends: then an order follows.
            self.until(async {
                if limits.wait_for(Option::is_some).await.is_err() {
                    std::future::pending::<()>().await;
                }
            })
            .await?;
            if let Some(url) = self.url.known() {
                self.status.last_error.clear();
                return Some(url);
            }
        }
    }

    /// One connection from its opening to its end (`Ok`), or until told to stand down (`Err`, with what is open).
    pub(super) async fn connection(
        &mut self,
        plan: &Plan,
    ) -> Result<Ended, Option<Shard<ShardQueue>>> {
        let by_resume_url = plan.resume && plan.route == Route::ResumeUrl && self.session.is_some();
        let generic = if by_resume_url {
            None
        } else {
            Some(self.generic_url().await.ok_or(None)?)
        };
        let mut config = ConfigBuilder::from(self.gateway.clone());
        // The session may be gone since the plan was made.
        let session = self.session.as_ref().filter(|_| plan.resume);
        let resuming = session.is_some();
        if let Some((session_id, resume_url)) = session {
            config = config.session(Session::new(self.seq.received(), session_id.to_string()));
            if by_resume_url {
                config = config.resume_url(resume_url.to_string());
            }
        }
        if let Some(url) = generic {
            config = config.proxy_url(url);
        }
        while self.gate.try_recv().is_ok() {}
        self.arm(!resuming);
        let mut connection = Connection {
            shard: Shard::with_config(
                ShardId::new(self.status.id, self.status.count),
                config.build(),
            ),
            hello_at: None,
            established: false,
            resuming,
            since_resumed: 0,
            ending: None,
            deadline: Some(tokio::time::Instant::now() + HELLO_WITHIN),
            heartbeat_interval: Duration::MAX,
        };
        let validity = self.services.validity.clone();
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let lost = loop {
            let deadline = connection.deadline;
            tokio::select! {
                biased;
                order = self.orders.recv() => {
                    if let Some(ShardOrder::Reconnect { identify, why }) = self.ordered(order) {
                        self.replace(identify, &why, &mut connection);
                    }
                    if self.is_leaving() {
                        // Without a Hello there is nothing to close, and one that ends is closing already.
                        return Err(connection.is_open().then_some(connection.shard));
                    }
                }
                Some(progress) = self.progress_rx.recv() => self.progressed(progress),
                Some(event) = self.gate.recv() => {
                    if let Some(lost) = self.gate_event(event, &mut connection).await {
                        break lost;
                    }
                }
                _ = tick.tick() => self.tick(&connection),
                () = tokio::time::sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)), if deadline.is_some() => {
                    break self.too_late(&connection);
                }
                item = poll_fn(|cx| validity.poll_next(&mut connection.shard, cx)) => {
                    if let Some(lost) = self.item(item, &mut connection) {
                        break lost;
                    }
                }
            }
        };
        Ok(connection.ended(lost))
    }

    fn too_late(&mut self, connection: &Connection) -> Lost {
        if let Some(ending) = connection.ending {
            return ending;
        }
        if connection.hello_at.is_none() {
            "no Hello from the gateway in time".clone_into(&mut self.status.last_error);
            Lost::Unreachable
        } else {
            "neither READY nor RESUMED in time".clone_into(&mut self.status.last_error);
            Lost::Stalled
        }
    }

    /// Closes the connection because we were told to. One that is being made is new enough.
    fn replace(&mut self, identify: bool, why: &str, connection: &mut Connection) {
        let useless = if identify {
            self.session.is_none()
        } else {
            !connection.established
        };
        if useless || connection.ending.is_some() {
            return;
        }
        info!(
            shard = self.status.id,
            identify, why, "replacing the connection as told"
        );
        self.status.last_error = format!("replaced: {why}");
        // 1000 ends the session at Discord's side too.
        connection.shard.close(if identify {
            CloseFrame::NORMAL
        } else {
            CloseFrame::RESUME
        });
        self.end(Lost::Replaced { identify }, connection);
    }

    fn end(&mut self, lost: Lost, connection: &mut Connection) {
        connection.ending = Some(lost);
        connection.deadline = Some(tokio::time::Instant::now() + CLOSE_WITHIN);
        self.arm(false);
    }

    fn item(
        &mut self,
        item: Option<Result<Message, twilight_gateway::error::ReceiveMessageError>>,
        connection: &mut Connection,
    ) -> Option<Lost> {
        match item {
            Some(Ok(Message::Text(text))) => self.message_text(&text, connection),
            Some(Ok(Message::Close(frame))) => {
                if let Some(ending) = connection.ending {
                    return Some(ending);
                }
                let code = frame.as_ref().map(|frame| frame.code);
                // 1006 is how twilight tells of a broken transport, and of a silent one.
                let transport = code == Some(1006);
                self.status.last_error = match code {
                    Some(_) if transport && connection.is_zombie() => {
                        self.status.zombies += 1;
                        "zombie: a heartbeat was not acknowledged".to_owned()
                    }
                    Some(code) => format!("{code}: {}", close_code_name(code)),
                    None => "closed by the gateway without a code".to_owned(),
                };
                Some(if transport {
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

    fn message_text(&mut self, text: &str, connection: &mut Connection) -> Option<Lost> {
        let Ok(envelope) = serde_json::from_str::<Envelope<'_>>(text) else {
            self.status.undecodable += 1;
            return None;
        };
        if let Some(ending) = connection.ending {
            // A Hello here belongs to a connection that twilight opened by itself: the old one is gone.
            return (envelope.op == envelope::OP_HELLO).then_some(ending);
        }
        match envelope.op {
            envelope::OP_DISPATCH => self.dispatch(&envelope, connection),
            envelope::OP_HELLO => self.hello(&envelope, connection),
            envelope::OP_RECONNECT => {
                "the gateway asked to reconnect (opcode 7)".clone_into(&mut self.status.last_error);
                self.end(Lost::Reconnect, connection);
            }
            envelope::OP_INVALID_SESSION => {
                let resumable = envelope.d.is_some_and(|d| d.get() == "true");
                self.status.last_error =
                    format!("invalid session (opcode 9, resumable: {resumable})");
                self.end(Lost::InvalidSession { resumable }, connection);
            }
            _ => {}
        }
        None
    }

    fn hello(&mut self, envelope: &Envelope<'_>, connection: &mut Connection) {
        connection.hello_at = Some(Instant::now());
        if self.unsure {
            self.handled_before = unix_ms();
        }
        if let Some(hello) = envelope
            .d
            .and_then(|d| serde_json::from_str::<envelope::Hello>(d.get()).ok())
        {
            connection.heartbeat_interval = Duration::from_millis(hello.heartbeat_interval);
        }
        connection.deadline = connection
            .resuming
            .then(|| tokio::time::Instant::now() + RESUME_QUIET);
        self.stage(if connection.resuming {
            Stage::Resuming
        } else {
            Stage::WaitingPermit
        });
    }

    async fn gate_event(&mut self, event: GateEvent, connection: &mut Connection) -> Option<Lost> {
        if connection.established || !connection.is_open() {
            return None;
        }
        match event {
            GateEvent::Waiting(reason) => {
                self.status.last_error = reason;
                self.stage(Stage::WaitingPermit);
                None
            }
            GateEvent::Granted(ticket) => {
                if !self.services.validity.holds() || !ticket.redeem() {
                    warn!(
                        shard = self.status.id,
                        "an IDENTIFY permit came too late to be used"
                    );
                    return None;
                }
                // This poll writes it, before it reads anything.
                let validity = self.services.validity.clone();
                let item =
                    poll_fn(|cx| Poll::Ready(validity.poll_next(&mut connection.shard, cx))).await;
                self.status.identify_boot_ms = boot_ms();
                self.status.identifies += 1;
                self.status.last_error.clear();
                connection.deadline = Some(tokio::time::Instant::now() + READY_WITHIN);
                self.stage(Stage::Identifying);
                match item {
                    Poll::Ready(item) => self.item(item, connection),
                    Poll::Pending => None,
                }
            }
        }
    }

    fn tick(&mut self, connection: &Connection) {
        if let Some(average) = connection.shard.latency().average() {
            self.status.latency_ms = average.as_secs_f64() * 1000.0;
        }
        self.expire();
        self.grow_sure();
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
}
