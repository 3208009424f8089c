//! The task that owns one shard: works when it is told to, stands down when it is told to, publishes.
//!
//! ```text
//!  STANDBY ── Work ──► serve (connection.rs, dispatch.rs) ── StandDown ──► quiesce, close ──► STANDBY
//! ```
//!
//! [`super::resume`] decides how to reconnect, [`super::duty`] who handles what, [`super::seq`] what a
//! successor resumes from; this carries it out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt as _;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use twilight_gateway::{CloseFrame, Config, Message, Shard};

use super::dispatch::{Progress, Taken};
use super::duty::{Desk, Terms};
use super::envelope::{self, Envelope};
use super::guilds::Guilds;
use super::resume::{Reconnector, Verdict};
use super::seq::SeqTracker;
use super::status::{Deposit, ShardStatus, Stage, close_code_advice};
use crate::identify::{GateEvent, ShardQueue};
use crate::rest::Limits;
use crate::services::Services;

/// How long a peer may take to answer our close frame.
pub(super) const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// Handlers at once on one shard. More are refused, so that memory stays bounded.
pub(super) const HANDLERS_MAX: usize = 1000;
/// Interaction ids remembered.
const SEEN_MAX: usize = 8192;
/// Interactions held for another set.
const HELD_MAX: usize = 2048;
/// Messages held for another set; 24 bytes each.
const MESSAGES_HELD_MAX: usize = 16_384;

/// A session that another process left.
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
    /// Its latest dispatch, milliseconds since 1970; 0 = not known.
    pub last_event_at: i64,
}

/// What a shard is told.
#[derive(Debug)]
pub enum ShardOrder {
    /// Resume this session, or one of its own that nobody took over; identify without one.
    Work {
        /// What another process left.
        stored: Option<StoredSession>,
        /// Which events are ours.
        terms: Terms,
    },
    /// Take no more events, finish what runs, close resumably.
    StandDown {
        /// How long handlers may take.
        within: Duration,
        /// Told when the final deposit is published.
        quiesced: oneshot::Sender<()>,
        /// Told when the connection is closed as well.
        closed: oneshot::Sender<()>,
    },
    /// The session is another process's now.
    Release,
    /// New terms.
    Share {
        /// Which events are ours.
        terms: Terms,
        /// Gets the newest handled time once it is certain and what was released has been handled.
        done: oneshot::Sender<i64>,
    },
    /// Replace the connection.
    Reconnect {
        /// Give up the session as well.
        identify: bool,
        /// For people.
        why: String,
    },
}

/// Where connections go that no session names a place for.
#[derive(Clone)]
pub struct GatewayUrl {
    /// As configured.
    pub fixed: Option<String>,
    /// Else what `/gateway/bot` says.
    pub limits: watch::Receiver<Option<Limits>>,
}

impl GatewayUrl {
    /// The URL, if it is known.
    pub fn known(&self) -> Option<String> {
        let said = || {
            let limits = self.limits.borrow();
            Some(limits.as_ref()?.url.trim_end_matches('/').to_owned())
        };
        self.fixed.clone().or_else(said)
    }
}

/// What a shard task is made of.
pub struct ShardSetup {
    /// Its number.
    pub id: u32,
    /// Of how many.
    pub count: u32,
    /// twilight's configuration; its queue tells this task through `gate`.
    pub gateway: Config<ShardQueue>,
    /// Where to connect.
    pub url: GatewayUrl,
    /// What the queue has to say.
    pub gate: mpsc::Receiver<GateEvent>,
    /// What it is told. The task ends when nobody can tell it anything any more.
    pub orders: mpsc::Receiver<ShardOrder>,
    /// Everything that handlers use.
    pub services: Arc<Services>,
    /// Where the status goes.
    pub status: watch::Sender<ShardStatus>,
    /// Wakes whoever reports.
    pub nudge: Arc<Notify>,
}

/// How to stand down, and who waits for it.
#[derive(Default)]
pub(super) struct Leaving {
    within: Duration,
    quiesced: Vec<oneshot::Sender<()>>,
    closed: Vec<oneshot::Sender<()>>,
}

/// A share that is in force, and not yet answered.
pub(super) struct PendingShare {
    /// What it released and is still being handled.
    pub(super) waiting: BTreeSet<u64>,
    pub(super) done: oneshot::Sender<i64>,
}

pub(super) struct ShardTask {
    pub(super) services: Arc<Services>,
    pub(super) gateway: Config<ShardQueue>,
    pub(super) url: GatewayUrl,
    pub(super) gate: mpsc::Receiver<GateEvent>,
    pub(super) orders: mpsc::Receiver<ShardOrder>,
    status_tx: watch::Sender<ShardStatus>,
    pub(super) nudge: Arc<Notify>,
    pub(super) status: ShardStatus,
    pub(super) events_by_type: HashMap<Box<str>, u64>,
    pub(super) strategy: Reconnector,
    pub(super) session: Option<(Arc<str>, Arc<str>)>,
    pub(super) application_id: u64,
    /// Interactions that the predecessor answered above its last deposit. They stay named in ours until the
    /// replay is over: this process may be killed in the middle of it.
    pub(super) inherited: Vec<u64>,
    /// The session was another process's, and what comes now may have reached that one too.
    pub(super) unsure: bool,
    /// What is older, on Discord's clock, may have reached that process even after a RESUMED: a gateway may replay
    /// the RESUMED of an earlier resume, with more of the replay behind it. Milliseconds since 1970; 0 = over.
    pub(super) handled_before: i64,
    /// When the latest RESUMED of a session that was another process's came.
    pub(super) resumed_at: Instant,
    pub(super) seq: SeqTracker,
    pub(super) desk: Desk<Taken>,
    /// Messages by their guilds: only counted, but by one set.
    pub(super) messages: Desk<u64>,
    pub(super) guilds: Guilds,
    /// Handlers of this stretch of work; ended when it is over.
    pub(super) work: CancellationToken,
    /// Which stretch of work it is.
    pub(super) stretch: u64,
    pub(super) running: usize,
    pub(super) looking: usize,
    pub(super) shares: Vec<PendingShare>,
    stopped_at: i64,
    leaving: Option<Leaving>,
    pub(super) progress_tx: mpsc::Sender<Progress>,
    pub(super) progress_rx: mpsc::Receiver<Progress>,
}

/// Runs one shard until nobody is left who could tell it to work.
pub async fn run(setup: ShardSetup) {
    let (progress_tx, progress_rx) = mpsc::channel(HANDLERS_MAX);
    let status = setup.status.borrow().clone();
    let mut task = ShardTask {
        services: setup.services,
        gateway: setup.gateway,
        url: setup.url,
        gate: setup.gate,
        orders: setup.orders,
        status_tx: setup.status,
        nudge: setup.nudge,
        status,
        events_by_type: HashMap::new(),
        strategy: Reconnector::default(),
        session: None,
        application_id: 0,
        inherited: Vec::new(),
        unsure: false,
        handled_before: 0,
        resumed_at: Instant::now(),
        seq: SeqTracker::default(),
        desk: Desk::new(Terms::default(), SEEN_MAX, HELD_MAX),
        messages: Desk::new(Terms::default(), 1, MESSAGES_HELD_MAX),
        guilds: Guilds::new(Instant::now(), setup.id, setup.count),
        work: CancellationToken::new(),
        stretch: 0,
        running: 0,
        looking: 0,
        shares: Vec::new(),
        stopped_at: 0,
        leaving: None,
        progress_tx,
        progress_rx,
    };
    while task.standby().await {
        let shard = task.serve().await;
        task.stand_down(shard).await;
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

/// Milliseconds since 1970.
pub(super) fn unix_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64)
}

impl ShardTask {
    /// Waits for work. False when none can come.
    async fn standby(&mut self) -> bool {
        loop {
            tokio::select! {
                order = self.orders.recv() => match order {
                    None => return false,
                    Some(ShardOrder::Work { stored, terms }) => {
                        self.begin(stored, terms);
                        return true;
                    }
                    // Whoever asks hears that it is so already.
                    Some(ShardOrder::StandDown {
                        quiesced, closed, ..
                    }) => {
                        let _ = (quiesced.send(()), closed.send(()));
                    }
                    Some(ShardOrder::Release) => {
                        self.session = None;
                        self.inherited.clear();
                        // They are another process's to report now.
                        let status = &self.status;
                        self.guilds = Guilds::new(Instant::now(), status.id, status.count);
                        self.publish();
                    }
                    Some(ShardOrder::Share { .. } | ShardOrder::Reconnect { .. }) => {}
                },
                Some(progress) = self.progress_rx.recv() => self.progressed(progress),
            }
        }
    }

    fn begin(&mut self, stored: Option<StoredSession>, terms: Terms) {
        self.stretch += 1;
        self.work = CancellationToken::new();
        (self.running, self.looking, self.stopped_at) = (0, 0, 0);
        (self.unsure, self.handled_before) = (false, 0);
        self.desk = Desk::new(terms, SEEN_MAX, HELD_MAX);
        self.messages = Desk::new(terms, 1, MESSAGES_HELD_MAX);
        let status = &mut self.status;
        (status.first_event_at, status.established_at) = (0, 0);
        (status.stretch, status.resumed) = (self.stretch, false);
        status.last_error.clear();
        if let Some(stored) = stored {
            self.restore(stored);
        } else if self.session.is_some() {
            // Nobody confirmed to have it: it is still ours.
            self.inherited.extend(self.seq.handled_above());
            let settled = self.seq.settled();
            self.reopen(settled, self.status.last_event_at);
        }
        self.strategy = Reconnector::default();
    }

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
        self.guilds
            .restore(&stored.guild_ids, &stored.guild_members);
        self.inherited = stored.handled;
        self.reopen(stored.seq, stored.last_event_at);
    }

    /// Another holder had the session: what comes from `seq` on may have been handled.
    fn reopen(&mut self, seq: u64, newest: i64) {
        self.seq.reset(seq);
        self.desk.inherit(&self.inherited, newest);
        self.unsure = true;
    }

    /// Connects and reads until told to stand down; returns the open connection, if any.
    async fn serve(&mut self) -> Option<Shard<ShardQueue>> {
        let mut plan = self.strategy.start(self.session.is_some());
        loop {
            self.stage(Stage::Connecting);
            self.until(tokio::time::sleep(plan.delay)).await?;
            let ended = match self.connection(&plan).await {
                Ok(ended) => ended,
                Err(shard) => return shard,
            };
            self.status.reconnects += 1;
            match self.strategy.ended(ended, fastrand::f64()) {
                Verdict::Fatal(code) => {
                    let advice = close_code_advice(code).unwrap_or("fatal close code");
                    error!(shard = self.status.id, code, "{advice}");
                    self.status.last_error = format!("{code}: {advice}");
                    self.discard();
                    self.stage(Stage::Fatal);
                    self.until(std::future::pending::<()>()).await;
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

    /// Waits without a connection, while handlers finish and orders come. None when told to stand down.
    pub(super) async fn until<T>(&mut self, event: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(event);
        let second = Duration::from_secs(1);
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + second, second);
        loop {
            tokio::select! {
                biased;
                order = self.orders.recv() => {
                    if let Some(ShardOrder::Reconnect { identify: true, why }) = self.ordered(order) {
                        info!(shard = self.status.id, why, "giving up the session as told");
                        self.strategy.give_up();
                        self.discard();
                    }
                    if self.leaving.is_some() {
                        return None;
                    }
                }
                Some(progress) = self.progress_rx.recv() => self.progressed(progress),
                _ = tick.tick() => {
                    self.expire();
                    self.publish();
                }
                value = &mut event => return Some(value),
            }
        }
    }

    /// Carries out what concerns the whole shard; gives back what concerns its connection.
    pub(super) fn ordered(&mut self, order: Option<ShardOrder>) -> Option<ShardOrder> {
        match order {
            Some(ShardOrder::Share { terms, done }) => self.share(terms, done),
            Some(ShardOrder::StandDown {
                within,
                quiesced,
                closed,
            }) => {
                self.leaving = Some(Leaving {
                    within,
                    quiesced: vec![quiesced],
                    closed: vec![closed],
                });
            }
            // Nobody is there any more who could say how.
            None => self.leaving = Some(Leaving::default()),
            Some(ShardOrder::Work { .. } | ShardOrder::Release) => {}
            Some(order @ ShardOrder::Reconnect { .. }) => return Some(order),
        }
        None
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// Says whether a Hello may lead to an IDENTIFY.
    pub(super) fn arm(&self, armed: bool) {
        self.gateway.queue().armed.store(armed, Ordering::Release);
    }

    /// Gives the session up: Discord, or whoever told us, says that it is void.
    pub(super) fn discard(&mut self) {
        self.inherited.clear();
        (self.unsure, self.handled_before) = (false, 0);
        if let Some((session_id, _)) = self.session.take() {
            self.status.void_session = Some(session_id);
        }
        self.settle_shares();
    }

    pub(super) fn stage(&mut self, stage: Stage) {
        let changed = self.status.stage != stage;
        self.status.stage = stage;
        self.publish();
        if changed {
            self.nudge.notify_one();
        }
    }

    pub(super) fn publish(&mut self) {
        let status = &mut self.status;
        status.guilds = self.guilds.len() as u32;
        status.guilds_expected = self.guilds.expected() as u32;
        status.misplaced = self.guilds.misplaced();
        status.members = self.guilds.total_members();
        status.seq = self.seq.received();
        status.in_flight = self.running;
        status.held = (self.desk.held() + self.messages.held()) as u32;
        status.newest_handled = self
            .desk
            .newest_handled()
            .max(self.messages.newest_handled());
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
                stopped_at: self.stopped_at,
            });
        self.status_tx.send_replace(status.clone());
    }

    /// From the last event to standby: handlers finish while the connection closes.
    async fn stand_down(&mut self, shard: Option<Shard<ShardQueue>>) {
        let mut leaving = self.leaving.take().unwrap_or_default();
        self.arm(false);
        self.stopped_at = unix_ms();
        let closing = async {
            if let Some(shard) = shard {
                close_resumably(shard).await;
            }
        };
        tokio::join!(self.quiesce(&mut leaving), closing);
        self.status.last_error.clear();
        self.status.latency_ms = 0.0;
        self.stage(Stage::Standby);
        for closed in leaving.closed {
            // Whoever asked may be gone.
            let _ = closed.send(());
        }
    }

    /// Waits for the handlers and publishes the final deposit.
    async fn quiesce(&mut self, leaving: &mut Leaving) {
        let mut deadline = tokio::time::Instant::now() + leaving.within;
        while self.running + self.looking > 0 {
            tokio::select! {
                Some(progress) = self.progress_rx.recv() => self.progressed(progress),
                Some(order) = self.orders.recv() => {
                    // Told again, with less time perhaps. Nothing else is told before this is over.
                    if let ShardOrder::StandDown { within, quiesced, closed } = order {
                        deadline = deadline.min(tokio::time::Instant::now() + within);
                        leaving.quiesced.push(quiesced);
                        leaving.closed.push(closed);
                    }
                }
                () = tokio::time::sleep_until(deadline) => {
                    warn!(shard = self.status.id, handlers = self.running, "handlers did not finish in time, a successor takes their events up again");
                    break;
                }
            }
        }
        // What still runs must not go on beside a successor.
        self.work.cancel();
        self.shares.clear();
        self.publish();
        self.nudge.notify_one();
        for quiesced in leaving.quiesced.drain(..) {
            // Whoever asked may be gone.
            let _ = quiesced.send(());
        }
    }
}
