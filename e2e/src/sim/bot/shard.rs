//! One shard, as `bot/src/shard/task.rs`, around the real sequence tracker, reconnector and set of
//! seen interactions.

use std::{cell::RefCell, rc::Rc, time::Duration};

use tanako_bot::{
    backoff::Backoff,
    shard::{
        resume::{Ended, Lost, Plan, Reconnector, Route, Verdict},
        seen::Seen,
        seq::{SeqTracker, Ticket},
    },
};
use tanako_fleet::vault::Session;
use tokio::sync::{mpsc, oneshot};

use super::{
    super::{
        agent::worker::{self, Acquired, ShardView},
        discord::{self, Event, FromGateway, Gateway},
        trace::trace,
    },
    Bot, DRAIN_WITHIN, handler,
};

const HELLO_WITHIN: u64 = 20_000;
const READY_WITHIN: u64 = 30_000;
const RESUME_QUIET: u64 = 30_000;

/// What a shard publishes about itself.
pub struct Status {
    /// Its number.
    pub id: u32,
    /// It serves.
    pub ready: bool,
    /// IDENTIFYs sent.
    pub identifies: u64,
    /// What a successor needs.
    pub deposit: Option<Deposit>,
    /// The latest session that became void.
    pub void_session: Option<u64>,
    /// The handlers have finished and the deposit is final.
    pub quiesced: bool,
    /// What will be published within the second.
    latest: Option<Deposit>,
    published_at: u64,
}

/// The session as a successor needs it.
#[derive(Clone)]
pub struct Deposit {
    /// Its id.
    pub session: u64,
    /// Everything up to here has been handled.
    pub seq: u64,
    /// Interactions answered above `seq`.
    pub handled: Vec<u64>,
}

impl Status {
    /// Of a shard that has not begun.
    pub fn new(id: u32) -> Self {
        Self {
            id,
            ready: false,
            identifies: 0,
            deposit: None,
            void_session: None,
            quiesced: false,
            latest: None,
            published_at: 0,
        }
    }

    /// As it is reported.
    pub fn view(&self) -> ShardView {
        ShardView {
            id: self.id,
            ready: self.ready,
            identifies: self.identifies,
        }
    }

    /// The task publishes once a second, whatever else happens.
    pub fn refresh(&mut self, now: u64) {
        if now >= self.published_at + 1_000 {
            self.published_at = now;
            self.deposit.clone_from(&self.latest);
        }
    }
}

/// The task of one shard.
pub struct Shard {
    bot: Rc<Bot>,
    id: u32,
    status: Rc<RefCell<Status>>,
    strategy: Reconnector,
    session: Option<u64>,
    inherited: Vec<u64>,
    seq: SeqTracker,
    seen: Seen,
    done_tx: mpsc::UnboundedSender<Ticket>,
    done_rx: mpsc::UnboundedReceiver<Ticket>,
}

struct Connection {
    gateway: Gateway,
    hello_at: Option<u64>,
    established: bool,
    resuming: bool,
    deadline: Option<u64>,
    /// Guilds still arrive until then.
    settled_at: Option<u64>,
    permit: Option<oneshot::Receiver<()>>,
}

enum Out {
    Drained(Option<Gateway>),
    Ended(Ended),
}

impl Shard {
    /// With the session that a predecessor left.
    pub fn new(bot: Rc<Bot>, status: Rc<RefCell<Status>>, stored: Option<Session>) -> Self {
        let (done_tx, done_rx) = mpsc::unbounded_channel();
        let id = status.borrow().id;
        let mut shard = Self {
            bot,
            id,
            status,
            strategy: Reconnector::default(),
            session: None,
            inherited: Vec::new(),
            seq: SeqTracker::default(),
            seen: Seen::new(8192),
            done_tx,
            done_rx,
        };
        if let Some(stored) = stored {
            shard.session = stored.id.0.parse().ok();
            shard.seq.reset(stored.seq);
            for id in &stored.handled {
                shard.seen.insert(*id);
            }
            shard.inherited = stored.handled;
        }
        shard
    }

    /// Runs until the process is to close.
    pub async fn run(mut self) {
        let gateway = self.serve().await;
        self.quiesce().await;
        let mut close = self.bot.close.subscribe();
        let _ = close.wait_for(|close| *close).await;
        drop(gateway);
        self.bot.closed.send_modify(|count| *count += 1);
    }

    /// Connects and reads until the drain; returns the open connection, if any.
    async fn serve(&mut self) -> Option<Gateway> {
        let mut plan = self.strategy.start(self.session.is_some());
        loop {
            if !self.pause(plan.delay).await {
                return None;
            }
            let ended = match self.connection(&plan).await {
                Out::Drained(gateway) => return gateway,
                Out::Ended(ended) => ended,
            };
            let jitter = self.bot.sim.jitter();
            match self.strategy.ended(ended, jitter) {
                Verdict::Fatal(_) => {
                    self.discard();
                    self.pause(Duration::from_secs(86_400 * 365)).await;
                    return None;
                }
                Verdict::Retry {
                    plan: next,
                    discard,
                } => {
                    if discard {
                        self.discard();
                    }
                    self.stage(false);
                    plan = next;
                }
            }
        }
    }

    /// Waits, taking in finished handlers. False when the drain began.
    async fn pause(&mut self, delay: Duration) -> bool {
        let mut drain = self.bot.drain.subscribe();
        let sim = self.bot.sim.clone();
        let sleep = sim.pause(delay);
        tokio::pin!(sleep);
        loop {
            tokio::select! {
                biased;
                _ = drain.wait_for(|drain| *drain) => return false,
                Some(done) = self.done_rx.recv() => self.finished(done),
                () = &mut sleep => return true,
            }
        }
    }

    async fn connection(&mut self, plan: &Plan) -> Out {
        let sim = self.bot.sim.clone();
        let mut drain = self.bot.drain.subscribe();
        let resuming = plan.resume && self.session.is_some();
        let by_url = resuming && plan.route == Route::ResumeUrl;
        let connect = discord::connect(&sim, self.bot.identity.pid, by_url);
        tokio::pin!(connect);
        let gateway = loop {
            tokio::select! {
                biased;
                _ = drain.wait_for(|drain| *drain) => return Out::Drained(None),
                Some(done) = self.done_rx.recv() => self.finished(done),
                gateway = &mut connect => break gateway,
            }
        };
        let Some(gateway) = gateway else {
            return Out::Ended(Ended {
                lost: Lost::Unreachable,
                hello: false,
                established: false,
                lived: Duration::ZERO,
            });
        };
        let mut connection = Connection {
            gateway,
            hello_at: None,
            established: false,
            resuming,
            deadline: Some(sim.now() + HELLO_WITHIN),
            settled_at: None,
            permit: None,
        };
        let lost = loop {
            let deadline = connection.deadline;
            let settled = connection.settled_at;
            tokio::select! {
                biased;
                _ = drain.wait_for(|drain| *drain) => {
                    let open = connection.hello_at.is_some();
                    return Out::Drained(open.then_some(connection.gateway));
                }
                Some(done) = self.done_rx.recv() => self.finished(done),
                granted = granted(&mut connection.permit) => {
                    connection.permit = None;
                    if granted {
                        self.status.borrow_mut().identifies += 1;
                        connection.deadline = Some(sim.now() + READY_WITHIN);
                        let tuple = (self.id, self.bot.identity.spec.shard_count);
                        discord::identify(&sim, connection.gateway.conn, tuple);
                    }
                }
                () = sim.sleep_until(deadline.unwrap_or(u64::MAX)), if deadline.is_some() => {
                    break if connection.hello_at.is_none() { Lost::Unreachable } else { Lost::Stalled };
                }
                () = sim.sleep_until(settled.unwrap_or(u64::MAX)), if settled.is_some() => {
                    connection.settled_at = None;
                    self.stage(true);
                }
                message = connection.gateway.recv() => match message {
                    None => break Lost::Transport,
                    Some(message) => {
                        if let Some(lost) = self.message(message, &mut connection) {
                            break lost;
                        }
                    }
                }
            }
        };
        let lived = connection.hello_at.map_or(0, |at| sim.now() - at);
        trace!(
            sim,
            [self.id, self.bot.identity.pid],
            "shard {} of pid {} lost its connection: {lost:?}",
            self.id,
            self.bot.identity.pid
        );
        Out::Ended(Ended {
            lost,
            hello: connection.hello_at.is_some(),
            established: connection.established,
            lived: Duration::from_millis(lived),
        })
    }

    fn message(&mut self, message: FromGateway, connection: &mut Connection) -> Option<Lost> {
        let sim = self.bot.sim.clone();
        let tuple = (self.id, self.bot.identity.spec.shard_count);
        match message {
            FromGateway::Hello => {
                connection.hello_at = Some(sim.now());
                if let (true, Some(session)) = (connection.resuming, self.session) {
                    connection.deadline = Some(sim.now() + RESUME_QUIET);
                    discord::resume(
                        &sim,
                        connection.gateway.conn,
                        tuple,
                        session,
                        self.seq.received(),
                    );
                } else {
                    connection.deadline = None;
                    connection.permit = Some(self.ask_permit());
                }
            }
            FromGateway::Reconnect => return Some(Lost::Reconnect),
            FromGateway::Invalid { resumable } => return Some(Lost::InvalidSession { resumable }),
            FromGateway::Close(code) => return Some(Lost::Closed(code)),
            FromGateway::Ready { session } => {
                self.discard();
                self.session = Some(session);
                self.seq.reset(1);
                connection.established = true;
                connection.deadline = None;
                connection.settled_at = Some(sim.now() + sim.draw(50..=1_200));
                self.strategy.established();
                self.stage(false);
            }
            FromGateway::Resumed { seq } => {
                self.seq.receive(seq);
                connection.established = true;
                connection.deadline = None;
                self.strategy.established();
                self.inherited.clear();
                self.stage(true);
            }
            FromGateway::Dispatch { seq, event } => {
                let replayed = connection.resuming && !connection.established;
                if replayed {
                    connection.deadline = Some(sim.now() + RESUME_QUIET);
                }
                self.dispatch(seq, event, replayed);
            }
        }
        None
    }

    fn dispatch(&mut self, seq: u64, event: Event, replayed: bool) {
        let sim = self.bot.sim.clone();
        let Some(session) = self.session else {
            return;
        };
        if !event.interaction {
            self.seq.receive(seq);
            sim.discord.borrow_mut().taken(session, seq);
        } else if !self.seen.insert(event.id) {
            // Answered by a predecessor, or in hand here.
            self.seq.receive(seq);
        } else {
            self.seq.receive(seq);
            let ticket = self.seq.begin(seq, event.id);
            let done = self.done_tx.clone();
            let later = sim.clone();
            sim.spawn(self.bot.identity.group, async move {
                handler::handle(&later, event.id, replayed).await;
                later.discord.borrow_mut().taken(session, seq);
                // The receiver is gone only when the process ends.
                let _ = done.send(ticket);
            });
        }
        self.note();
    }

    fn finished(&mut self, ticket: Ticket) {
        self.seq.finish(ticket);
        self.publish();
        self.bot.nudge.notify_one();
    }

    fn discard(&mut self) {
        self.inherited.clear();
        if let Some(session) = self.session.take() {
            self.status.borrow_mut().void_session = Some(session);
        }
    }

    fn stage(&mut self, ready: bool) {
        let changed = std::mem::replace(&mut self.status.borrow_mut().ready, ready) != ready;
        self.publish();
        if changed {
            self.bot.nudge.notify_one();
        }
    }

    /// What the next publication will say.
    fn note(&mut self) {
        let deposit = self.session.map(|session| Deposit {
            session,
            seq: self.seq.settled(),
            handled: self
                .inherited
                .iter()
                .copied()
                .chain(self.seq.handled_above())
                .collect(),
        });
        self.status.borrow_mut().latest = deposit;
    }

    fn publish(&mut self) {
        self.note();
        let mut status = self.status.borrow_mut();
        let latest = status.latest.clone();
        status.deposit = latest;
        status.published_at = self.bot.sim.now();
    }

    /// Waits for the handlers and publishes the final deposit.
    async fn quiesce(&mut self) {
        let sim = self.bot.sim.clone();
        let deadline = sim.now() + DRAIN_WITHIN;
        while self.seq.in_flight() > 0 {
            tokio::select! {
                biased;
                Some(done) = self.done_rx.recv() => self.finished(done),
                () = sim.sleep_until(deadline) => break,
            }
        }
        self.status.borrow_mut().quiesced = true;
        self.publish();
        self.bot.nudge.notify_one();
        self.bot.quiesced.send_modify(|count| *count += 1);
    }

    /// Asks until there is a permit; giving up the receiver gives up the place.
    fn ask_permit(&self) -> oneshot::Receiver<()> {
        let (mut granted, permit) = oneshot::channel();
        let (bot, id) = (Rc::clone(&self.bot), self.id);
        self.bot.sim.spawn(self.bot.identity.group, async move {
            let work = acquire(&bot, id);
            tokio::select! {
                biased;
                () = granted.closed() => return,
                () = work => {}
            }
            // The connection may be gone.
            let _ = granted.send(());
        });
        permit
    }
}

async fn granted(permit: &mut Option<oneshot::Receiver<()>>) -> bool {
    match permit {
        Some(permit) => permit.await.is_ok(),
        None => std::future::pending().await,
    }
}

/// As `bot/src/identify.rs`.
async fn acquire(bot: &Rc<Bot>, shard: u32) {
    let (sim, identity) = (&bot.sim, &bot.identity);
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    loop {
        let who = (&identity.spec.name, identity.attempt);
        let tuple = (shard, identity.spec.shard_count);
        match worker::acquire(sim, identity.pid, who, tuple).await {
            // Given out on the clock that all processes of the machine share: one that was stopped
            // meanwhile asks again.
            Acquired::Granted(permit) if sim.now() < permit.granted_at + permit.valid_ms => return,
            Acquired::Granted(permit) => {
                trace!(sim, [permit.number], "permit {} is too old", permit.number);
            }
            Acquired::Superseded => {
                bot.superseded.send_replace(true);
                return std::future::pending().await;
            }
            Acquired::Exhausted | Acquired::Unavailable => {
                sim.pause(backoff.delay()).await;
            }
        }
    }
}
