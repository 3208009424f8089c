//! One shard, as `bot/src/shard/{task,dispatch,connection}.rs`, around the real desk, sequence tracker and
//! reconnector.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc, time::Duration};

use tanako_bot::{
    backoff::Backoff,
    shard::{
        duty::{Decision, Desk, Standing, Terms, time_of},
        resume::{Ended, Lost, Plan, Reconnector, Route, Verdict},
        seq::{SeqTracker, Ticket},
    },
};
use tanako_fleet::vault::Session;
use tanako_proto::worker::v1::{ShardReport, ShardStage};
use tokio::sync::{mpsc, oneshot};

use super::{
    super::{
        agent::worker::{self, Acquired},
        discord::{self, Event, FromGateway, Gateway},
        trace::trace,
        watch,
    },
    Bot, handler,
};

const HELLO_WITHIN: u64 = 20_000;
const READY_WITHIN: u64 = 30_000;
const RESUME_QUIET: u64 = 30_000;
/// After the latest RESUMED of a session that was another process's, in milliseconds.
const REPLAY_OVER: u64 = 1_000;
const SEEN_MAX: usize = 8192;
const HELD_MAX: usize = 2048;
const SHARES_MAX: usize = 16;
/// The shard looks after itself this often, in milliseconds.
const TICK: u64 = 1_000;

/// What a shard publishes about itself.
#[derive(Clone)]
pub struct Status {
    /// As the agent gets it.
    pub report: ShardReport,
    /// Which stretch of work it is in.
    pub stretch: u64,
    /// In this stretch a session was resumed, not begun.
    pub resumed: bool,
    /// What a successor needs.
    pub deposit: Option<Deposit>,
    /// The latest session that became void.
    pub void_session: Option<u64>,
}

/// The session as a successor needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deposit {
    /// Its id.
    pub session: u64,
    /// Everything up to here has been handled.
    pub seq: u64,
    /// Interactions answered above `seq`.
    pub handled: Vec<u64>,
    /// Since when no more events are taken, in milliseconds since 1970; 0 = it goes on.
    pub stopped_at: i64,
}

impl Status {
    /// Whether it serves.
    pub fn is_ready(&self) -> bool {
        self.report.stage == ShardStage::Ready as i32
    }

    /// Whether it stands by.
    pub fn stands_by(&self) -> bool {
        self.report.stage == ShardStage::Standby as i32
    }
}

/// What a shard is told.
pub enum Order {
    /// Resume this session, or one of its own that nobody took over; identify without one.
    Work(Option<Box<Session>>, Terms),
    /// Take no more events, finish what runs, close resumably.
    StandDown(Leave),
    /// The session is another process's now.
    Release,
    /// New terms, and who gets the newest handled time.
    Share(Terms, oneshot::Sender<i64>),
}

/// How to stand down.
pub struct Leave {
    /// How long handlers may take, in milliseconds.
    pub within: u64,
    /// Told when the final deposit is published.
    pub quiesced: oneshot::Sender<()>,
    /// Told when the connection is closed as well.
    pub closed: oneshot::Sender<()>,
}

#[derive(Default)]
struct Leaving {
    within: u64,
    quiesced: Vec<oneshot::Sender<()>>,
    closed: Vec<oneshot::Sender<()>>,
}

/// A share that is in force, and not yet answered.
struct PendingShare {
    waiting: BTreeSet<u64>,
    done: oneshot::Sender<i64>,
}

/// An interaction on its way to a handler.
#[derive(Debug)]
struct Taken {
    id: u64,
    ticket: Ticket,
    /// Its session and number, for the judge.
    place: (u64, u64),
    received: u64,
    standing: Option<(Standing, u64)>,
}

enum Progress {
    Found(u64, Taken),
    Done(u64, u64, Ticket, (u64, u64), bool),
}

/// The task of one shard.
pub struct Shard {
    bot: Rc<Bot>,
    id: u32,
    orders: mpsc::UnboundedReceiver<Order>,
    publish: watch::Sender<Status>,
    status: Status,
    strategy: Reconnector,
    session: Option<u64>,
    inherited: Vec<u64>,
    unsure: bool,
    handled_before: i64,
    resumed_at: u64,
    seq: SeqTracker,
    desk: Desk<Taken>,
    work: watch::Sender<bool>,
    running: usize,
    looking: usize,
    shares: Vec<PendingShare>,
    stopped_at: i64,
    leaving: Option<Leaving>,
    progress_tx: mpsc::UnboundedSender<Progress>,
    progress_rx: mpsc::UnboundedReceiver<Progress>,
    tick_at: u64,
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

impl Shard {
    /// On standby.
    pub fn new(
        bot: Rc<Bot>,
        id: u32,
        stage: ShardStage,
        orders: mpsc::UnboundedReceiver<Order>,
    ) -> (Self, watch::Receiver<Status>) {
        let status = Status {
            report: ShardReport {
                shard_id: id,
                shard_count: bot.identity.spec.shard_count,
                stage: stage.into(),
                ..ShardReport::default()
            },
            stretch: 0,
            resumed: false,
            deposit: None,
            void_session: None,
        };
        let (publish, statuses) = watch::channel(status.clone());
        let (progress_tx, progress_rx) = mpsc::unbounded_channel();
        let tick_at = bot.sim.now() + TICK;
        let shard = Self {
            bot,
            id,
            orders,
            publish,
            status,
            strategy: Reconnector::default(),
            session: None,
            inherited: Vec::new(),
            unsure: false,
            handled_before: 0,
            resumed_at: 0,
            seq: SeqTracker::default(),
            desk: Desk::new(Terms::default(), SEEN_MAX, HELD_MAX),
            work: watch::channel(false).0,
            running: 0,
            looking: 0,
            shares: Vec::new(),
            stopped_at: 0,
            leaving: None,
            progress_tx,
            progress_rx,
            tick_at,
        };
        (shard, statuses)
    }

    /// Runs until the process ends.
    pub async fn run(mut self) {
        while self.standby().await {
            let gateway = self.serve().await;
            self.stand_down(gateway).await;
        }
    }

    /// Waits for work. False when none can come.
    async fn standby(&mut self) -> bool {
        loop {
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    None => return false,
                    Some(Order::Work(stored, terms)) => {
                        self.begin(stored, terms);
                        return true;
                    }
                    Some(Order::StandDown(leave)) => {
                        let _ = (leave.quiesced.send(()), leave.closed.send(()));
                    }
                    Some(Order::Release) => {
                        self.session = None;
                        self.inherited.clear();
                        self.publish();
                    }
                    Some(Order::Share(..)) => {}
                },
                Some(progress) = self.progress_rx.recv() => self.progressed(progress),
            }
        }
    }

    fn begin(&mut self, stored: Option<Box<Session>>, terms: Terms) {
        self.status.stretch += 1;
        self.work = watch::channel(false).0;
        (self.running, self.looking, self.stopped_at) = (0, 0, 0);
        (self.unsure, self.handled_before) = (false, 0);
        self.desk = Desk::new(terms, SEEN_MAX, HELD_MAX);
        let report = &mut self.status.report;
        (report.first_event_at, report.established_at) = (0, 0);
        self.status.resumed = false;
        if let Some(stored) = stored {
            self.session = stored.id.0.parse().ok();
            self.inherited = stored.handled;
            self.reopen(stored.seq, stored.last_event_at);
        } else if self.session.is_some() {
            // Nobody confirmed to have it: it is still ours.
            self.inherited.extend(self.seq.handled_above());
            let settled = self.seq.settled();
            self.reopen(settled, self.status.report.last_event_at);
        }
        self.strategy = Reconnector::default();
    }

    /// Another holder had the session: what comes from `seq` on may have been handled.
    fn reopen(&mut self, seq: u64, newest: i64) {
        self.seq.reset(seq);
        self.desk.inherit(&self.inherited, newest);
        self.unsure = true;
    }

    /// Connects and reads until told to stand down; returns the open connection, if any.
    async fn serve(&mut self) -> Option<Gateway> {
        let mut plan = self.strategy.start(self.session.is_some());
        loop {
            self.stage(ShardStage::Connecting);
            let sim = self.bot.sim.clone();
            self.until(sim.pause(plan.delay)).await?;
            let ended = match self.connection(&plan).await {
                Ok(ended) => ended,
                Err(gateway) => return gateway,
            };
            self.status.report.reconnects += 1;
            let jitter = self.bot.sim.jitter();
            match self.strategy.ended(ended, jitter) {
                Verdict::Fatal(_) => {
                    self.discard();
                    self.stage(ShardStage::Fatal);
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
                    self.stage(ShardStage::Disconnected);
                    plan = next;
                }
            }
        }
    }

    /// Waits without a connection, while handlers finish and orders come. None when told to stand down.
    async fn until<T>(&mut self, event: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(event);
        let sim = self.bot.sim.clone();
        loop {
            let tick = self.tick_at;
            tokio::select! {
                biased;
                order = self.orders.recv() => {
                    self.ordered(order);
                    if self.leaving.is_some() {
                        return None;
                    }
                }
                Some(progress) = self.progress_rx.recv() => self.progressed(progress),
                () = sim.sleep_until(tick) => self.tick(),
                value = &mut event => return Some(value),
            }
        }
    }

    fn ordered(&mut self, order: Option<Order>) {
        match order {
            Some(Order::Share(terms, done)) => self.share(terms, done),
            Some(Order::StandDown(leave)) => {
                self.leaving = Some(Leaving {
                    within: leave.within,
                    quiesced: vec![leave.quiesced],
                    closed: vec![leave.closed],
                });
            }
            None => self.leaving = Some(Leaving::default()),
            Some(Order::Work(..) | Order::Release) => {}
        }
    }

    /// What comes round once a second.
    fn tick(&mut self) {
        self.tick_at = self.bot.sim.now() + TICK;
        self.expire();
        self.grow_sure();
        self.publish();
    }

    /// One connection from its opening to its end (`Ok`), or until told to stand down (`Err`, with what is
    /// open).
    async fn connection(&mut self, plan: &Plan) -> Result<Ended, Option<Gateway>> {
        let sim = self.bot.sim.clone();
        let resuming = plan.resume && self.session.is_some();
        let by_url = resuming && plan.route == Route::ResumeUrl;
        let connect = discord::connect(&sim, self.bot.identity.pid, by_url);
        let gateway = self.until(connect).await.ok_or(None)?;
        let Some(gateway) = gateway else {
            return Ok(Ended {
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
            let tick = self.tick_at;
            tokio::select! {
                biased;
                order = self.orders.recv() => {
                    self.ordered(order);
                    if self.leaving.is_some() {
                        let open = connection.hello_at.is_some();
                        return Err(open.then_some(connection.gateway));
                    }
                }
                Some(progress) = self.progress_rx.recv() => self.progressed(progress),
                granted = granted(&mut connection.permit) => {
                    connection.permit = None;
                    if granted {
                        self.status.report.identifies += 1;
                        connection.deadline = Some(sim.now() + READY_WITHIN);
                        self.stage(ShardStage::Identifying);
                        let tuple = (self.id, self.bot.identity.spec.shard_count);
                        discord::identify(&sim, connection.gateway.conn, tuple);
                        let stamp = sim.host.borrow().stamp(sim.now());
                        self.status.report.identify_boot_ms = stamp.boot_ms;
                        self.publish();
                    }
                }
                () = sim.sleep_until(tick) => self.tick(),
                () = sim.sleep_until(deadline.unwrap_or(u64::MAX)), if deadline.is_some() => {
                    break if connection.hello_at.is_none() { Lost::Unreachable } else { Lost::Stalled };
                }
                () = sim.sleep_until(settled.unwrap_or(u64::MAX)), if settled.is_some() => {
                    connection.settled_at = None;
                    self.stage(ShardStage::Ready);
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
        Ok(Ended {
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
                if self.unsure {
                    self.handled_before = sim.wall_ms();
                }
                if let (true, Some(session)) = (connection.resuming, self.session) {
                    connection.deadline = Some(sim.now() + RESUME_QUIET);
                    self.stage(ShardStage::Resuming);
                    let seq = self.seq.received();
                    discord::resume(&sim, connection.gateway.conn, tuple, session, seq);
                } else {
                    connection.deadline = None;
                    self.stage(ShardStage::WaitingPermit);
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
                connection.settled_at = Some(sim.now() + sim.draw(50..=1_200));
                self.established(connection, false);
                self.stage(ShardStage::Identifying);
            }
            FromGateway::Resumed { seq } => {
                self.status.report.lost += self.seq.receive(seq);
                self.status.report.resumes += 1;
                self.unsure = false;
                self.resumed_at = sim.now();
                self.established(connection, true);
                self.settle_shares();
                self.stage(ShardStage::Ready);
            }
            FromGateway::Dispatch { seq, event } => {
                let replayed = connection.resuming && !connection.established;
                if replayed {
                    connection.deadline = Some(sim.now() + RESUME_QUIET);
                    self.status.report.replayed += 1;
                }
                self.dispatch(seq, event);
            }
        }
        None
    }

    fn established(&mut self, connection: &mut Connection, resumed: bool) {
        connection.established = true;
        connection.deadline = None;
        self.strategy.established();
        let wall = self.bot.sim.wall_ms();
        if self.status.report.established_at == 0 {
            self.status.report.established_at = wall;
            self.status.resumed = resumed;
        }
    }

    fn dispatch(&mut self, seq: u64, event: Event) {
        let (sim, now) = (self.bot.sim.clone(), self.bot.sim.instant());
        let Some(session) = self.session else {
            return;
        };
        let wall = sim.wall_ms();
        let report = &mut self.status.report;
        report.events += 1;
        report.last_event_at = wall;
        if report.first_event_at == 0 {
            report.first_event_at = wall;
        }
        report.lost += self.seq.receive(seq);
        if !event.interaction {
            sim.discord.borrow_mut().taken(session, seq);
            return;
        }
        let taken = Taken {
            id: event.id,
            ticket: self.seq.begin(seq, event.id),
            place: (session, seq),
            received: sim.now(),
            standing: None,
        };
        let unsure = self.unsure || time_of(event.id) < self.handled_before;
        let decision = self.desk.arrive(now, event.id, taken, unsure);
        self.decided(decision);
    }

    fn decided(&mut self, decision: Decision<Taken>) {
        match decision {
            Decision::Handle(taken) => self.handle(taken),
            Decision::LookUp(taken) => self.look_up(taken),
            Decision::Hold => {}
            Decision::Ignore(taken) => {
                self.status.report.repeated += 1;
                self.seq.finish(taken.ticket);
                self.took(taken.place);
            }
        }
    }

    /// This session is done with an event.
    fn took(&self, (session, seq): (u64, u64)) {
        self.bot.sim.discord.borrow_mut().taken(session, seq);
    }

    fn handle(&mut self, taken: Taken) {
        self.status.report.interactions += 1;
        self.running += 1;
        let (sim, done, stretch) = (
            self.bot.sim.clone(),
            self.progress_tx.clone(),
            self.status.stretch,
        );
        let (mut over, pid) = (self.work.subscribe(), self.bot.identity.pid);
        self.bot.sim.spawn(self.bot.identity.group, async move {
            let target = handler::Target {
                id: taken.id,
                pid,
                received: taken.received,
                standing: taken.standing,
            };
            let duplicated = tokio::select! {
                biased;
                _ = over.wait_for(|over| *over) => return,
                outcome = handler::handle(&sim, target) => outcome,
            };
            // The receiver is gone only when the process ends.
            let _ = done.send(Progress::Done(
                stretch,
                taken.id,
                taken.ticket,
                taken.place,
                duplicated,
            ));
        });
    }

    fn look_up(&mut self, mut taken: Taken) {
        self.looking += 1;
        let (sim, found, stretch) = (
            self.bot.sim.clone(),
            self.progress_tx.clone(),
            self.status.stretch,
        );
        let mut over = self.work.subscribe();
        self.bot.sim.spawn(self.bot.identity.group, async move {
            taken.standing = Some(tokio::select! {
                biased;
                _ = over.wait_for(|over| *over) => return,
                standing = handler::look_up(&sim, taken.id) => standing,
            });
            let _ = found.send(Progress::Found(stretch, taken));
        });
    }

    fn progressed(&mut self, progress: Progress) {
        match progress {
            Progress::Found(stretch, taken) if stretch == self.status.stretch => {
                self.looking -= 1;
                let standing = taken.standing.map_or(Standing::Unknown, |(known, _)| known);
                let (id, now) = (taken.id, self.bot.sim.instant());
                if standing == Standing::Answered {
                    self.bot.sim.discord.borrow_mut().settled(id);
                }
                let decision = self.desk.found(now, id, taken, standing);
                self.decided(decision);
                self.settle_shares();
            }
            Progress::Done(stretch, id, ticket, place, duplicated)
                if stretch == self.status.stretch =>
            {
                self.running -= 1;
                self.seq.finish(ticket);
                self.took(place);
                self.status.report.duplicated += u64::from(duplicated);
                for share in &mut self.shares {
                    share.waiting.remove(&id);
                }
                self.settle_shares();
                self.publish();
                self.bot.nudge.notify_one();
            }
            // Of an earlier stretch of work: its session went to somebody else.
            Progress::Found(..) | Progress::Done(..) => {}
        }
    }

    /// New terms are in force at once; they are answered when everything that may have been handled is
    /// known, and what they released has been handled.
    fn share(&mut self, terms: Terms, done: oneshot::Sender<i64>) {
        let mut waiting = BTreeSet::new();
        for taken in self.desk.share(terms) {
            waiting.insert(taken.id);
            self.handle(taken);
        }
        trace!(
            self.bot.sim,
            [self.id, self.bot.identity.pid, waiting.len()],
            "shard {} of pid {}: {terms:?}, {} released",
            self.id,
            self.bot.identity.pid,
            waiting.len()
        );
        if self.shares.len() >= SHARES_MAX {
            self.shares.remove(0);
        }
        self.shares.push(PendingShare { waiting, done });
        self.settle_shares();
        self.publish();
    }

    fn settle_shares(&mut self) {
        if self.unsure || self.handled_before != 0 || self.looking > 0 {
            return;
        }
        let newest = self.desk.newest_handled();
        for share in self.shares.extract_if(.., |share| share.waiting.is_empty()) {
            // Whoever asked may be gone.
            let _ = share.done.send(newest);
        }
    }

    /// Some time after a RESUMED the replay is over.
    fn grow_sure(&mut self) {
        let over = self.bot.sim.now() >= self.resumed_at + REPLAY_OVER;
        if self.handled_before != 0 && !self.unsure && over {
            self.handled_before = 0;
            self.inherited.clear();
            self.settle_shares();
        }
    }

    fn expire(&mut self) {
        for taken in self.desk.expire(self.bot.sim.instant()) {
            self.seq.release(taken.ticket);
            self.took(taken.place);
        }
    }

    fn discard(&mut self) {
        self.inherited.clear();
        (self.unsure, self.handled_before) = (false, 0);
        if let Some(session) = self.session.take() {
            self.status.void_session = Some(session);
        }
        self.settle_shares();
    }

    fn stage(&mut self, stage: ShardStage) {
        let changed = self.status.report.stage != stage as i32;
        self.status.report.stage = stage.into();
        self.publish();
        if changed {
            self.bot.nudge.notify_one();
        }
    }

    fn publish(&mut self) {
        let report = &mut self.status.report;
        report.seq = self.seq.received();
        report.held = self.desk.held() as u32;
        report.newest_handled = self.desk.newest_handled();
        self.status.deposit = self.session.map(|session| Deposit {
            session,
            seq: self.seq.settled(),
            handled: self
                .inherited
                .iter()
                .copied()
                .chain(self.seq.handled_above())
                .collect(),
            stopped_at: self.stopped_at,
        });
        self.publish.send_replace(self.status.clone());
    }

    /// From the last event to standby: handlers finish while the connection closes.
    async fn stand_down(&mut self, gateway: Option<Gateway>) {
        let sim = self.bot.sim.clone();
        let mut leaving = self.leaving.take().unwrap_or_default();
        self.stopped_at = sim.wall_ms();
        let closing = async {
            if let Some(gateway) = gateway {
                sim.sleep(sim.draw(5..=150)).await;
                drop(gateway);
            }
        };
        tokio::join!(self.quiesce(&mut leaving), closing);
        self.stage(ShardStage::Standby);
        for closed in leaving.closed {
            // Whoever asked may be gone.
            let _ = closed.send(());
        }
    }

    /// Waits for the handlers and publishes the final deposit.
    async fn quiesce(&mut self, leaving: &mut Leaving) {
        let sim = self.bot.sim.clone();
        let mut deadline = sim.now() + leaving.within;
        while self.running + self.looking > 0 {
            tokio::select! {
                biased;
                Some(progress) = self.progress_rx.recv() => self.progressed(progress),
                Some(order) = self.orders.recv() => {
                    if let Order::StandDown(again) = order {
                        deadline = deadline.min(sim.now() + again.within);
                        leaving.quiesced.push(again.quiesced);
                        leaving.closed.push(again.closed);
                    }
                }
                () = sim.sleep_until(deadline) => break,
            }
        }
        // What still runs must not go on beside a successor.
        self.work.send_replace(true);
        self.shares.clear();
        self.publish();
        self.bot.nudge.notify_one();
        for quiesced in leaving.quiesced.drain(..) {
            let _ = quiesced.send(());
        }
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
    let mut unused = None;
    loop {
        let who = (&identity.spec.name, identity.attempt);
        let tuple = (shard, identity.spec.shard_count);
        match worker::acquire(sim, identity.pid, who, tuple, unused).await {
            // Given out on the clock that all processes of the machine share: one that was stopped
            // meanwhile asks again.
            Acquired::Granted(permit) if sim.now() < permit.granted_at + permit.valid_ms => return,
            Acquired::Granted(permit) => {
                trace!(sim, [permit.number], "permit {} is too old", permit.number);
                unused = Some(permit.number);
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

/// A set of orders' ends, and what the shards say.
pub struct Member {
    /// To it.
    pub orders: mpsc::UnboundedSender<Order>,
    /// What it says.
    pub status: watch::Receiver<Status>,
}

/// Starts the tasks of a process's shards, as `bot/src/shard/set.rs`.
pub fn start(bot: &Rc<Bot>, stage: ShardStage) -> Vec<Member> {
    let ids = bot.identity.spec.shard_ids.clone();
    let members = ids.into_iter().map(|id| {
        let (orders, inbox) = mpsc::unbounded_channel();
        let (shard, status) = Shard::new(Rc::clone(bot), id, stage, inbox);
        bot.sim.spawn(bot.identity.group, shard.run());
        Member { orders, status }
    });
    members.collect()
}

/// A cell for what is known of all of them.
pub type Members = RefCell<Vec<Member>>;
