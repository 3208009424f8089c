//! One process of the bot, as `bot/src/{app,agent/link}.rs`: the life of the process and its stream to
//! the agent. The shards are in [`shard`], what handlers do in [`handler`].

mod handler;
mod shard;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tanako_agent::supervisor::core::Exit;
use tanako_bot::backoff::Backoff;
use tanako_fleet::{
    ProcessSpec,
    identify::ReportedLimits,
    vault::{Session, SessionId},
};
use tokio::sync::{Notify, mpsc, oneshot};

use self::shard::{Shard, Status};
use super::{
    agent::worker::{self, FromWorker, Link, Stage, ToWorker},
    discord,
    executor::Group,
    host::{self, Pid},
    trace::trace,
    watch,
    world::Sim,
};

/// Welcome after Hello, in milliseconds.
const WELCOME_WITHIN: u64 = 10_000;
/// After a nudge, so that many become one message, in milliseconds.
const COALESCE: u64 = 50;
/// The agent's acknowledgement of the final deposits, in milliseconds.
const FAREWELL_WITHIN: u64 = 3_000;
/// The gateway's close handshake, in milliseconds.
const CLOSE_WITHIN: u64 = 3_000;
/// How long handlers may take once the process is told to stop, in milliseconds.
const DRAIN_WITHIN: u64 = 10_000;
/// `/gateway/bot` is asked again this often, in milliseconds.
const LIMITS_EVERY: u64 = 600_000;

/// Who a process is.
pub struct Identity {
    /// Its process id.
    pub pid: Pid,
    /// Its tasks.
    pub group: Group,
    /// What it was started from.
    pub spec: Arc<ProcessSpec>,
    /// Its attempt.
    pub attempt: u64,
}

/// What the tasks of one process share.
pub struct Bot {
    sim: Sim,
    identity: Identity,
    shards: RefCell<Vec<Rc<RefCell<Status>>>>,
    nudge: Notify,
    drain: watch::Sender<bool>,
    close: watch::Sender<bool>,
    quiesced: watch::Sender<usize>,
    closed: watch::Sender<usize>,
    superseded: watch::Sender<bool>,
    draining: Cell<bool>,
    was_ready: Cell<bool>,
    limits: RefCell<Option<ReportedLimits>>,
}

/// The life of a process.
pub async fn run(sim: Sim, identity: Identity, mut signals: watch::Receiver<u32>) {
    let (pid, group) = (identity.pid, identity.group);
    sim.sleep(sim.draw(20..=250)).await;
    let bot = Rc::new(Bot {
        sim: sim.clone(),
        identity,
        shards: RefCell::default(),
        nudge: Notify::new(),
        drain: watch::channel(false).0,
        close: watch::channel(false).0,
        quiesced: watch::channel(0).0,
        closed: watch::channel(0).0,
        superseded: watch::channel(false).0,
        draining: Cell::new(false),
        was_ready: Cell::new(false),
        limits: RefCell::default(),
    });
    let (welcome_tx, welcome) = oneshot::channel();
    let (farewell, farewells) = mpsc::unbounded_channel();
    sim.spawn(group, link(Rc::clone(&bot), welcome_tx, farewells));
    sim.spawn(group, keep_limits(Rc::clone(&bot)));
    let mut superseded = bot.superseded.subscribe();
    let sessions = tokio::select! {
        biased;
        _ = signals.changed() => return host::end(&sim, pid, Exit::Code(0)),
        _ = superseded.wait_for(|gone| *gone) => return leave_superseded(&bot),
        sessions = welcome => sessions.unwrap_or_default(),
    };
    let mut sessions: BTreeMap<u32, Session> = sessions.into_iter().collect();
    let ids = bot.identity.spec.shard_ids.clone();
    for id in &ids {
        let status = Rc::new(RefCell::new(Status::new(*id)));
        bot.shards.borrow_mut().push(Rc::clone(&status));
        let shard = Shard::new(Rc::clone(&bot), status, sessions.remove(id));
        sim.spawn(group, shard.run());
    }
    bot.nudge.notify_one();
    tokio::select! {
        biased;
        _ = signals.changed() => {}
        _ = superseded.wait_for(|gone| *gone) => return leave_superseded(&bot),
    }
    bot.draining.set(true);
    bot.drain.send_replace(true);
    let orderly = async {
        let mut quiesced = bot.quiesced.subscribe();
        let _ = quiesced.wait_for(|count| *count >= ids.len()).await;
        let (done, answer) = oneshot::channel();
        let _ = farewell.send(done);
        tokio::select! {
            biased;
            _ = answer => {}
            () = sim.sleep(FAREWELL_WITHIN) => {}
        }
        bot.close.send_replace(true);
        let mut closed = bot.closed.subscribe();
        tokio::select! {
            biased;
            _ = closed.wait_for(|count| *count >= ids.len()) => {}
            () = sim.sleep(CLOSE_WITHIN) => {}
        }
    };
    tokio::select! {
        biased;
        _ = signals.changed() => {}
        _ = superseded.wait_for(|gone| *gone) => return leave_superseded(&bot),
        () = orderly => {}
    }
    host::end(&sim, pid, Exit::Code(0));
}

/// Without a word to the gateway: the session belongs to the successor now.
fn leave_superseded(bot: &Bot) {
    let name = &bot.identity.spec.name;
    let newest = bot.sim.judge.borrow().newest_attempt(name);
    if bot.identity.attempt >= newest {
        let what = format!(
            "{name} attempt {} was told that it is superseded",
            bot.identity.attempt
        );
        bot.sim.violated("4 (nothing is taken down)", what);
    }
    host::end(&bot.sim, bot.identity.pid, Exit::Code(0));
}

async fn keep_limits(bot: Rc<Bot>) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    loop {
        if let Ok(limits) = discord::limits(&bot.sim).await {
            backoff.reset();
            *bot.limits.borrow_mut() = Some(limits);
            bot.nudge.notify_one();
            bot.sim.sleep(LIMITS_EVERY).await;
        } else {
            bot.sim.pause(backoff.delay()).await;
        }
    }
}

/// The stream to the agent broke; the shards go on.
struct Broken;

type Farewells = mpsc::UnboundedReceiver<oneshot::Sender<()>>;

struct Held {
    link: Link,
    deposited: BTreeMap<u32, (u64, u64, Vec<u64>)>,
    discarded: BTreeMap<u32, u64>,
    limits_sent: Option<ReportedLimits>,
    acks_open: BTreeSet<u64>,
    farewell: Option<oneshot::Sender<()>>,
}

type Welcome = oneshot::Sender<Vec<(u32, Session)>>;

/// Keeps the stream up until the last words are said.
async fn link(bot: Rc<Bot>, welcome: Welcome, mut farewells: Farewells) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut welcome = Some(welcome);
    let mut pending = None;
    let mut next_ack = 0;
    loop {
        let started = bot.sim.now();
        let outcome = stream(
            &bot,
            &mut welcome,
            &mut farewells,
            &mut pending,
            &mut next_ack,
        )
        .await;
        if outcome.is_ok() {
            return;
        }
        if bot.sim.now() - started > 10_000 {
            backoff.reset();
        }
        bot.sim.pause(backoff.delay()).await;
    }
}

async fn stream(
    bot: &Rc<Bot>,
    welcome: &mut Option<Welcome>,
    farewells: &mut Farewells,
    pending: &mut Option<oneshot::Sender<()>>,
    next_ack: &mut u64,
) -> Result<(), Broken> {
    let sim = &bot.sim;
    let mut link = worker::connect(sim, bot.identity.pid).ok_or(Broken)?;
    let hello = FromWorker::Hello(bot.identity.spec.name.clone(), bot.identity.attempt);
    bot.send(&link, hello)?;
    let answer = tokio::select! {
        biased;
        answer = link.from.recv() => answer.ok_or(Broken)?,
        () = sim.sleep(WELCOME_WITHIN) => return Err(Broken),
    };
    match answer {
        ToWorker::Welcome(sessions) => {
            if let Some(welcome) = welcome.take() {
                let _ = welcome.send(sessions);
            }
        }
        ToWorker::Superseded => {
            bot.superseded.send_replace(true);
            return Ok(());
        }
        ToWorker::Ack(_) => return Err(Broken),
    }
    let mut held = Held {
        link,
        deposited: BTreeMap::new(),
        discarded: BTreeMap::new(),
        limits_sent: None,
        acks_open: BTreeSet::new(),
        farewell: pending.take(),
    };
    let result = async {
        if held.farewell.is_some() {
            bot.say_farewell(&mut held, next_ack)?;
        }
        hold(bot, &mut held, farewells, next_ack).await
    }
    .await;
    // A stream that broke during the last words is tried again.
    *pending = held.farewell.take();
    result
}

async fn hold(
    bot: &Rc<Bot>,
    held: &mut Held,
    farewells: &mut Farewells,
    next_ack: &mut u64,
) -> Result<(), Broken> {
    let sim = &bot.sim;
    let every = sim.config.report_ms;
    let mut tick = sim.now();
    let mut soon = None;
    loop {
        if held.farewell.is_some() && held.acks_open.is_empty() {
            if let Some(done) = held.farewell.take() {
                let _ = done.send(());
            }
            return Ok(());
        }
        tokio::select! {
            biased;
            message = held.link.from.recv() => match message.ok_or(Broken)? {
                ToWorker::Ack(ack) => {
                    held.acks_open.remove(&ack);
                }
                ToWorker::Superseded => {
                    bot.superseded.send_replace(true);
                    return Ok(());
                }
                ToWorker::Welcome(_) => {}
            },
            () = sim.sleep_until(tick) => {
                tick = sim.now() + every;
                soon = None;
                bot.tell(held)?;
            }
            () = bot.nudge.notified(), if soon.is_none() => soon = Some(sim.now() + COALESCE),
            () = sim.sleep_until(soon.unwrap_or(u64::MAX)), if soon.is_some() => {
                soon = None;
                bot.tell(held)?;
            }
            Some(done) = farewells.recv() => {
                held.farewell = Some(done);
                bot.say_farewell(held, next_ack)?;
            }
        }
    }
}

impl Bot {
    fn send(&self, link: &Link, message: FromWorker) -> Result<(), Broken> {
        let at = self.sim.now() + self.sim.draw(0..=2);
        if link.to.send(at, message) {
            Ok(())
        } else {
            Err(Broken)
        }
    }

    fn session(&self, status: &Status) -> Option<Session> {
        let deposit = status.deposit.as_ref()?;
        let wall = self.sim.wall_ms();
        Some(Session {
            id: SessionId(deposit.session.to_string()),
            seq: deposit.seq,
            resume_url: "wss://resume".to_owned(),
            application: 1,
            intents: 1,
            token_sha256: [1; 32],
            handled: deposit.handled.clone(),
            guilds: 0,
            last_event_at: 0,
            stopped_at: if status.quiesced { wall } else { 0 },
            deposited_at: wall,
            seen_at: wall,
        })
    }

    /// A report, and whatever else has changed.
    fn tell(&self, held: &mut Held) -> Result<(), Broken> {
        let shards = self.shards.borrow().clone();
        let count = self.identity.spec.shard_count;
        let views: Vec<worker::ShardView> =
            shards.iter().map(|shard| shard.borrow().view()).collect();
        let all_ready = !views.is_empty() && views.iter().all(|view| view.ready);
        if all_ready && !self.was_ready.replace(true) {
            trace!(
                self.sim,
                [self.identity.pid],
                "{} attempt {} is ready",
                self.identity.spec.name,
                self.identity.attempt
            );
            if let Some(proc) = self.sim.host.borrow_mut().procs.get_mut(&self.identity.pid) {
                proc.ready = true;
            }
            let mut judge = self.sim.judge.borrow_mut();
            judge.became_ready(
                self.sim.now(),
                &self.identity.spec.name,
                self.identity.attempt,
            );
        }
        let stage = if self.draining.get() {
            Stage::Draining
        } else if self.was_ready.get() {
            Stage::Ready
        } else {
            Stage::Starting
        };
        self.send(&held.link, FromWorker::Report(stage, views))?;
        let limits = *self.limits.borrow();
        if let Some(limits) = limits
            && held.limits_sent != Some(limits)
        {
            self.send(&held.link, FromWorker::Limits(limits))?;
            held.limits_sent = Some(limits);
        }
        for shard in &shards {
            shard.borrow_mut().refresh(self.sim.now());
            let status = shard.borrow();
            let id = status.id;
            if let Some(void) = status.void_session
                && held.discarded.insert(id, void) != Some(void)
            {
                let discard = FromWorker::Discard(id, count, SessionId(void.to_string()));
                self.send(&held.link, discard)?;
            }
            if let (Some(deposit), Some(session)) = (&status.deposit, self.session(&status)) {
                let now = (deposit.session, deposit.seq, deposit.handled.clone());
                if held.deposited.get(&id) != Some(&now) {
                    self.send(&held.link, FromWorker::Deposit(id, count, session, 0))?;
                    held.deposited.insert(id, now);
                }
            }
        }
        Ok(())
    }

    /// The final report, and every session with an acknowledgement asked for.
    fn say_farewell(&self, held: &mut Held, next_ack: &mut u64) -> Result<(), Broken> {
        self.tell(held)?;
        let shards = self.shards.borrow().clone();
        for shard in &shards {
            let status = shard.borrow();
            if let Some(session) = self.session(&status) {
                *next_ack += 1;
                let count = self.identity.spec.shard_count;
                let deposit = FromWorker::Deposit(status.id, count, session, *next_ack);
                self.send(&held.link, deposit)?;
                held.acks_open.insert(*next_ack);
            }
        }
        Ok(())
    }
}
