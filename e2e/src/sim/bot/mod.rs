//! One process of the bot, as `bot/src/{app,agent/link}.rs`: the life of the process and its stream to
//! the agent. What it is told is in [`process`], the shards are in [`shard`], what handlers do in
//! [`handler`].

mod handler;
mod process;
mod shard;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tanako_agent::supervisor::core::Exit;
use tanako_bot::{
    agent::report::terms,
    backoff::Backoff,
    shard::duty::{Duty, Terms},
};
use tanako_fleet::{
    ProcessSpec,
    identify::ReportedLimits,
    vault::{Session, SessionId},
};
use tanako_proto::worker::v1::{ProcessStage, ShardStage};
use tokio::sync::{Notify, mpsc, oneshot};

use self::{
    process::Process,
    shard::{Deposit, Members, Status},
};
use super::{
    agent::worker::{self, Command, FromWorker, Link, ToWorker},
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
    members: Members,
    nudge: Notify,
    superseded: watch::Sender<bool>,
    draining: Cell<bool>,
    was_ready: Cell<bool>,
    limits: RefCell<Option<ReportedLimits>>,
}

/// To the link: sessions to be handed over.
struct Farewell {
    last: bool,
    done: oneshot::Sender<()>,
}

/// To the link: what became of a command.
struct Answer {
    stream: u64,
    id: u64,
    result: Result<i64, String>,
}

/// From the link.
enum FromLink {
    Welcome(Vec<(u32, Session)>, Terms),
    Command(u64, u64, Command),
}

/// The life of a process.
pub async fn run(sim: Sim, identity: Identity, mut signals: watch::Receiver<u32>) {
    let (pid, group) = (identity.pid, identity.group);
    sim.sleep(sim.draw(20..=250)).await;
    let bot = Rc::new(Bot {
        sim: sim.clone(),
        identity,
        members: RefCell::default(),
        nudge: Notify::new(),
        superseded: watch::channel(false).0,
        draining: Cell::new(false),
        was_ready: Cell::new(false),
        limits: RefCell::default(),
    });
    let (orders_tx, mut orders) = mpsc::unbounded_channel();
    let (farewell, farewells) = mpsc::unbounded_channel();
    let (answers, answers_rx) = mpsc::unbounded_channel();
    sim.spawn(
        group,
        link(Rc::clone(&bot), orders_tx, farewells, answers_rx),
    );
    sim.spawn(group, keep_limits(Rc::clone(&bot)));
    let mut superseded = bot.superseded.subscribe();
    let (sessions, terms) = loop {
        tokio::select! {
            biased;
            _ = signals.changed() => return host::end(&sim, pid, Exit::Code(0)),
            _ = superseded.wait_for(|gone| *gone) => return leave_superseded(&bot),
            Some(order) = orders.recv() => if let FromLink::Welcome(sessions, terms) = order {
                break (sessions, terms);
            }
        }
    };
    let works = terms.duty != Duty::Warm;
    let stage = if works {
        ShardStage::Connecting
    } else {
        ShardStage::Standby
    };
    *bot.members.borrow_mut() = shard::start(&bot, stage);
    let mut process = Process::new(Rc::clone(&bot), farewell, answers);
    if works {
        process.work(sessions, terms);
    }
    bot.nudge.notify_one();
    loop {
        let order = tokio::select! {
            biased;
            _ = signals.changed() => break,
            _ = superseded.wait_for(|gone| *gone) => return leave_superseded(&bot),
            Some(order) = orders.recv() => order,
        };
        let FromLink::Command(stream, id, command) = order else {
            continue;
        };
        tokio::select! {
            biased;
            _ = signals.changed() => break,
            _ = superseded.wait_for(|gone| *gone) => return leave_superseded(&bot),
            () = process.command((stream, id), command) => {}
        }
    }
    bot.draining.set(true);
    bot.nudge.notify_one();
    tokio::select! {
        biased;
        _ = signals.changed() => {}
        _ = superseded.wait_for(|gone| *gone) => return leave_superseded(&bot),
        _ = process.hand_over(DRAIN_WITHIN, true) => {}
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

/// The stream to the agent.
struct Held {
    link: Link,
    deposited: BTreeMap<u32, Deposit>,
    discarded: BTreeMap<u32, u64>,
    limits_sent: Option<ReportedLimits>,
    acks_open: BTreeSet<u64>,
    farewell: Option<Farewell>,
}

/// What outlives streams.
struct Lasting {
    orders: mpsc::UnboundedSender<FromLink>,
    farewells: mpsc::UnboundedReceiver<Farewell>,
    answers: mpsc::UnboundedReceiver<Answer>,
    welcomed: bool,
    streams: u64,
    next_ack: u64,
    reported: Vec<i32>,
    pending: Option<Farewell>,
}

/// Keeps the stream up until the process ends.
async fn link(
    bot: Rc<Bot>,
    orders: mpsc::UnboundedSender<FromLink>,
    farewells: mpsc::UnboundedReceiver<Farewell>,
    answers: mpsc::UnboundedReceiver<Answer>,
) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut lasting = Lasting {
        orders,
        farewells,
        answers,
        welcomed: false,
        streams: 0,
        next_ack: 0,
        reported: Vec::new(),
        pending: None,
    };
    loop {
        let started = bot.sim.now();
        if bot.stream(&mut lasting).await.is_ok() {
            return;
        }
        if bot.sim.now() - started > 10_000 {
            backoff.reset();
        }
        bot.sim.pause(backoff.delay()).await;
    }
}

impl Bot {
    /// One stream, from Hello to its end. `Ok` = the last words were said.
    async fn stream(&self, lasting: &mut Lasting) -> Result<(), Broken> {
        let sim = &self.sim;
        let mut link = worker::connect(sim, self.identity.pid).ok_or(Broken)?;
        let hello = FromWorker::Hello(self.identity.spec.name.clone(), self.identity.attempt);
        self.send(&link, hello)?;
        let answer = tokio::select! {
            biased;
            answer = link.from.recv() => answer.ok_or(Broken)?,
            () = sim.sleep(WELCOME_WITHIN) => return Err(Broken),
        };
        match answer {
            ToWorker::Welcome(sessions, assignment) => {
                if !std::mem::replace(&mut lasting.welcomed, true) {
                    let terms = terms(assignment.duty, assignment.cut);
                    let _ = lasting.orders.send(FromLink::Welcome(sessions, terms));
                }
            }
            ToWorker::Superseded => {
                self.superseded.send_replace(true);
                return Ok(());
            }
            ToWorker::Ack(_) | ToWorker::Command(..) => return Err(Broken),
        }
        lasting.streams += 1;
        let mut held = Held {
            link,
            deposited: BTreeMap::new(),
            discarded: BTreeMap::new(),
            limits_sent: None,
            acks_open: BTreeSet::new(),
            farewell: lasting.pending.take(),
        };
        let result = async {
            if held.farewell.is_some() {
                self.say_farewell(&mut held, lasting)?;
            }
            self.hold(&mut held, lasting).await
        }
        .await;
        // A stream that broke during the last words is tried again.
        lasting.pending = held.farewell.take();
        result
    }

    async fn hold(&self, held: &mut Held, lasting: &mut Lasting) -> Result<(), Broken> {
        let sim = &self.sim;
        let every = sim.config.report_ms;
        let mut tick = sim.now();
        let mut soon = None;
        loop {
            if held.farewell.is_some() && held.acks_open.is_empty() {
                while let Ok(answer) = lasting.answers.try_recv() {
                    self.answer(held, lasting, answer)?;
                }
                if let Some(Farewell { last, done }) = held.farewell.take() {
                    let _ = done.send(());
                    if last {
                        return Ok(());
                    }
                }
            }
            tokio::select! {
                biased;
                message = held.link.from.recv() => match message.ok_or(Broken)? {
                    ToWorker::Ack(ack) => {
                        held.acks_open.remove(&ack);
                    }
                    ToWorker::Superseded => {
                        self.superseded.send_replace(true);
                        return Ok(());
                    }
                    ToWorker::Command(id, command) => {
                        let order = FromLink::Command(lasting.streams, id, command);
                        let _ = lasting.orders.send(order);
                    }
                    ToWorker::Welcome(..) => {}
                },
                () = sim.sleep_until(tick) => {
                    tick = sim.now() + every;
                    soon = None;
                    self.tell(held, lasting, true)?;
                }
                () = self.nudge.notified(), if soon.is_none() => soon = Some(sim.now() + COALESCE),
                () = sim.sleep_until(soon.unwrap_or(u64::MAX)), if soon.is_some() => {
                    soon = None;
                    self.tell(held, lasting, false)?;
                }
                Some(farewell) = lasting.farewells.recv() => {
                    held.farewell = Some(farewell);
                    self.say_farewell(held, lasting)?;
                }
                Some(answer) = lasting.answers.recv() => self.answer(held, lasting, answer)?,
            }
        }
    }

    fn send(&self, link: &Link, message: FromWorker) -> Result<(), Broken> {
        let at = self.sim.now() + self.sim.draw(0..=2);
        if link.to.send(at, message) {
            Ok(())
        } else {
            Err(Broken)
        }
    }

    fn answer(&self, held: &Held, lasting: &Lasting, answer: Answer) -> Result<(), Broken> {
        if answer.stream != lasting.streams {
            // Whoever asked is gone.
            return Ok(());
        }
        self.send(&held.link, FromWorker::Result(answer.id, answer.result))
    }

    fn statuses(&self) -> Vec<Status> {
        let members = self.members.borrow();
        members
            .iter()
            .map(|member| member.status.borrow().clone())
            .collect()
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
            last_event_at: status.report.last_event_at,
            stopped_at: deposit.stopped_at,
            deposited_at: wall,
            seen_at: wall,
        })
    }

    /// Whatever has changed. The report goes along when it is due or says something new of a stage.
    fn tell(&self, held: &mut Held, lasting: &mut Lasting, due: bool) -> Result<(), Broken> {
        let statuses = self.statuses();
        let count = self.identity.spec.shard_count;
        let stages: Vec<i32> = statuses.iter().map(|status| status.report.stage).collect();
        if due || stages != lasting.reported {
            lasting.reported = stages;
            self.report(held, &statuses)?;
        }
        let limits = *self.limits.borrow();
        if let Some(limits) = limits
            && held.limits_sent != Some(limits)
        {
            self.send(&held.link, FromWorker::Limits(limits))?;
            held.limits_sent = Some(limits);
        }
        for status in &statuses {
            let id = status.report.shard_id;
            if let Some(void) = status.void_session
                && held.discarded.insert(id, void) != Some(void)
            {
                let discard = FromWorker::Discard(id, count, SessionId(void.to_string()));
                self.send(&held.link, discard)?;
            }
            if let (Some(deposit), Some(session)) = (&status.deposit, self.session(status)) {
                if held.deposited.get(&id) != Some(deposit) {
                    self.send(&held.link, FromWorker::Deposit(id, count, session, 0))?;
                    held.deposited.insert(id, deposit.clone());
                }
            } else {
                held.deposited.remove(&id);
            }
        }
        Ok(())
    }

    fn report(&self, held: &Held, statuses: &[Status]) -> Result<(), Broken> {
        let prepared = self.limits.borrow().is_some();
        let all_ready = !statuses.is_empty()
            && statuses
                .iter()
                .all(|status| status.is_ready() || status.stands_by() && prepared);
        if all_ready && !self.was_ready.replace(true) {
            let (name, attempt) = (&self.identity.spec.name, self.identity.attempt);
            trace!(
                self.sim,
                [self.identity.pid],
                "{name} attempt {attempt} is ready"
            );
            if let Some(proc) = self.sim.host.borrow_mut().procs.get_mut(&self.identity.pid) {
                proc.ready = true;
            }
            let mut judge = self.sim.judge.borrow_mut();
            judge.became_ready(self.sim.now(), name, attempt);
        }
        let stage = if self.draining.get() {
            ProcessStage::Draining
        } else if self.was_ready.get() {
            ProcessStage::Ready
        } else {
            ProcessStage::Starting
        };
        let shards = statuses.iter().map(|status| status.report.clone());
        self.send(&held.link, FromWorker::Report(stage, shards.collect()))
    }

    /// The final report, and every session with an acknowledgement asked for.
    fn say_farewell(&self, held: &mut Held, lasting: &mut Lasting) -> Result<(), Broken> {
        self.tell(held, lasting, true)?;
        held.acks_open.clear();
        for status in self.statuses() {
            if let Some(session) = self.session(&status) {
                lasting.next_ack += 1;
                let (count, ack) = (self.identity.spec.shard_count, lasting.next_ack);
                let deposit = FromWorker::Deposit(status.report.shard_id, count, session, ack);
                self.send(&held.link, deposit)?;
                held.acks_open.insert(ack);
            }
        }
        while let Ok(answer) = lasting.answers.try_recv() {
            self.answer(held, lasting, answer)?;
        }
        Ok(())
    }
}
