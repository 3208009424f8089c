//! The worker socket: as `agent/src/worker/{admit,registry,service}.rs`. One stream speaks for a
//! process, the newest Hello of its current attempt.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
};

use tanako_agent::{
    supervisor::{State, Table, WorkerInput},
    worker::{
        ShardState, States, WorkerState,
        duties::{Assignment, Duties},
    },
};
use tanako_fleet::{
    ProcessName, ProcessSpec,
    identify::{Refusal, ReportedLimits},
    vault::{Session, SessionId},
};
use tanako_proto::worker::v1::{ProcessStage, ShardReport, ShardStage, WorkerKind};
use tokio::sync::{Notify, oneshot};

use super::{
    super::{
        host::Pid,
        pipe::{self, pipe},
        trace::trace,
        watch,
        world::Sim,
    },
    Agent,
    broker::Permit,
    supervisor::SupMsg,
    vault,
};

/// A child may connect before the supervisor has published it: so long it is waited for.
const PUBLISHED_WITHIN: u64 = 2_000;
/// States are published no more often than this, in milliseconds.
const PUBLISH_EVERY: u64 = 100;

/// From a worker.
pub enum FromWorker {
    /// First.
    Hello(ProcessName, u64),
    /// Now and then.
    Report(ProcessStage, Vec<ShardReport>),
    /// What a successor needs; a number asks for an acknowledgement.
    Deposit(u32, u32, Session, u64),
    /// A session is void.
    Discard(u32, u32, SessionId),
    /// What Discord says.
    Limits(ReportedLimits),
    /// What became of a command.
    Result(u64, Done),
}

/// To a worker.
pub enum ToWorker {
    /// It may begin, with these sessions, and this is what it does.
    Welcome(Vec<(u32, Session)>, Assignment),
    /// Another attempt has taken its place.
    Superseded,
    /// The deposit is safe.
    Ack(u64),
    /// Do this, and say how it went.
    Command(u64, Command),
}

/// A worker's end of a stream.
pub struct Link {
    /// To the agent.
    pub to: pipe::Sender<FromWorker>,
    /// From the agent.
    pub from: pipe::Receiver<ToWorker>,
}

/// Answer to a request for a permit.
pub enum Acquired {
    /// It may identify.
    Granted(Permit),
    /// The budget is spent.
    Exhausted,
    /// A newer attempt has taken its place.
    Superseded,
    /// No agent, or it cannot say.
    Unavailable,
}

/// What a worker is asked for.
#[derive(Debug, Clone)]
pub enum Command {
    /// Give the sessions up within so many milliseconds, and stay.
    StandDown(u64),
    /// Take these sessions.
    TakeOver(Vec<(u32, Session)>),
    /// Do this from now on.
    Share(Assignment),
}

/// A command's answer: the newest time that was handled, or why it was not done.
pub type Done = Result<i64, String>;

/// A worker's one live stream.
struct Live {
    id: u64,
    replaced: Rc<Notify>,
    outbox: Rc<pipe::Sender<ToWorker>>,
    commands: BTreeMap<u64, oneshot::Sender<Done>>,
}

/// The registry of one life.
pub struct Workers {
    views: RefCell<States>,
    streams: RefCell<BTreeMap<ProcessName, Live>>,
    next_stream: Cell<u64>,
    next_command: Cell<u64>,
    published: watch::Sender<Rc<States>>,
    publishing: Cell<bool>,
    /// What each process does with its shards.
    pub duties: RefCell<Duties>,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            views: RefCell::default(),
            streams: RefCell::default(),
            next_stream: Cell::new(0),
            next_command: Cell::new(0),
            published: watch::channel(Rc::default()).0,
            publishing: Cell::new(false),
            duties: RefCell::default(),
        }
    }
}

impl Workers {
    /// What the workers last reported, as published.
    pub fn states(&self) -> watch::Receiver<Rc<States>> {
        self.published.subscribe()
    }

    /// Gives a command to a worker; its answer comes within so many milliseconds, or does not.
    pub async fn command(
        sim: &Sim,
        agent: &Agent,
        name: &ProcessName,
        command: Command,
        within: u64,
    ) -> Done {
        let (reply, answer) = oneshot::channel();
        let id = agent.workers.next_command.get() + 1;
        agent.workers.next_command.set(id);
        {
            let mut streams = agent.workers.streams.borrow_mut();
            let Some(live) = streams.get_mut(name) else {
                return Err("it is not attached".to_owned());
            };
            let at = sim.now() + sim.draw(0..=2);
            live.outbox.send(at, ToWorker::Command(id, command));
            live.commands.insert(id, reply);
        }
        let done = tokio::select! {
            biased;
            done = answer => done.unwrap_or_else(|_| Err("it went away".to_owned())),
            () = sim.sleep(within) => Err("no answer in time".to_owned()),
        };
        if let Some(live) = agent.workers.streams.borrow_mut().get_mut(name) {
            live.commands.remove(&id);
        }
        done
    }

    /// Breaks every stream.
    pub fn cut_all(&self) {
        for live in self.streams.borrow().values() {
            live.replaced.notify_one();
        }
    }

    fn changed(sim: &Sim, agent: &Rc<Agent>) {
        if agent.workers.publishing.replace(true) {
            return;
        }
        let (later, agent) = (sim.clone(), Rc::clone(agent));
        sim.spawn(agent.group, async move {
            later.sleep(later.draw(0..=PUBLISH_EVERY)).await;
            agent.workers.publishing.set(false);
            let views = agent.workers.views.borrow().clone();
            agent.workers.published.send_replace(Rc::new(views));
        });
    }
}

/// Opens a stream to the agent, if it listens.
pub fn connect(sim: &Sim, pid: Pid) -> Option<Link> {
    let agent = sim
        .agent
        .borrow()
        .clone()
        .filter(|agent| agent.listening.get())?;
    let (to, inbound) = pipe(sim);
    let (outbox, from) = pipe(sim);
    let (later, group) = (sim.clone(), agent.group);
    sim.spawn(group, async move {
        converse(later, agent, pid, inbound, outbox).await;
    });
    Some(Link { to, from })
}

/// One call for a permit, in which the shard gives back one that came too late.
pub async fn acquire(
    sim: &Sim,
    pid: Pid,
    (name, attempt): (&ProcessName, u64),
    (shard, count): (u32, u32),
    unused: Option<u64>,
) -> Acquired {
    let agent = sim
        .agent
        .borrow()
        .clone()
        .filter(|agent| agent.listening.get());
    let Some(agent) = agent else {
        sim.sleep(1).await;
        return Acquired::Unavailable;
    };
    let (mut reply, answer) = oneshot::channel();
    let (later, group, name) = (sim.clone(), agent.group, name.clone());
    sim.spawn(group, async move {
        let sim = later;
        sim.sleep(sim.draw(0..=2)).await;
        let work = async {
            match admit(&sim, &agent, pid, &name, attempt).await {
                Admission::Current(_) => {}
                Admission::Superseded => return Acquired::Superseded,
                Admission::Refused => return Acquired::Unavailable,
            }
            match agent
                .broker
                .acquire(name.as_str(), attempt, shard, count, unused)
                .await
            {
                Some(Ok(permit)) => Acquired::Granted(permit),
                Some(Err(Refusal::Exhausted { .. })) => Acquired::Exhausted,
                Some(Err(Refusal::Superseded)) => Acquired::Superseded,
                Some(Err(Refusal::Full)) | None => Acquired::Unavailable,
            }
        };
        let done = tokio::select! {
            biased;
            () = reply.closed() => return,
            done = work => done,
        };
        if sim.weather.borrow().answers_lost > sim.now() && sim.chance(300) {
            trace!(
                sim,
                [shard],
                "worker: the answer to a request for a permit is lost"
            );
            return;
        }
        sim.sleep(sim.draw(0..=3)).await;
        // The worker may be gone.
        let _ = reply.send(done);
    });
    answer.await.unwrap_or(Acquired::Unavailable)
}

enum Admission {
    Current(std::sync::Arc<ProcessSpec>),
    Superseded,
    Refused,
}

async fn admit(sim: &Sim, agent: &Agent, pid: Pid, name: &ProcessName, attempt: u64) -> Admission {
    let mut table = agent.table.clone();
    tokio::select! {
        biased;
        _ = table.wait_for(|table| is_settled(table, name, attempt)) => {}
        () = sim.sleep(PUBLISHED_WITHIN) => {}
    }
    let status = table.borrow().get(name).cloned();
    let Some(status) = status else {
        return Admission::Refused;
    };
    if status.attempt > attempt {
        return Admission::Superseded;
    }
    if status.attempt < attempt || !lives(&status) || status.pid != Some(pid as u32) {
        return Admission::Refused;
    }
    Admission::Current(status.spec.clone())
}

fn is_settled(table: &Table, name: &ProcessName, attempt: u64) -> bool {
    table.get(name).is_some_and(|status| {
        status.attempt > attempt || status.attempt == attempt && lives(status)
    })
}

fn lives(status: &tanako_agent::supervisor::ProcessStatus) -> bool {
    status.pid.is_some()
        && !matches!(
            status.state,
            State::Stopped | State::Failed | State::Backoff
        )
}

/// A worker that has not reported yet.
fn unheard(attempt: u64) -> WorkerState {
    WorkerState {
        attempt,
        kind: WorkerKind::Shard,
        version: String::new(),
        attached: false,
        last_seen: 0,
        stage: ProcessStage::Starting,
        detail: String::new(),
        shards: BTreeMap::new(),
        db: None,
        metrics: BTreeMap::new(),
    }
}

/// The whole life of a stream.
async fn converse(
    sim: Sim,
    agent: Rc<Agent>,
    pid: Pid,
    mut inbound: pipe::Receiver<FromWorker>,
    outbox: pipe::Sender<ToWorker>,
) {
    let outbox = Rc::new(outbox);
    let Some(FromWorker::Hello(name, attempt)) = inbound.recv().await else {
        return;
    };
    let send = |message: ToWorker| outbox.send(sim.now() + sim.draw(0..=2), message);
    let spec = match admit(&sim, &agent, pid, &name, attempt).await {
        Admission::Current(spec) => spec,
        Admission::Superseded => {
            send(ToWorker::Superseded);
            return;
        }
        Admission::Refused => return,
    };
    let replaced = Rc::new(Notify::new());
    let id = agent.workers.next_stream.get() + 1;
    agent.workers.next_stream.set(id);
    let live = Live {
        id,
        replaced: Rc::clone(&replaced),
        outbox: Rc::clone(&outbox),
        commands: BTreeMap::new(),
    };
    let old = agent
        .workers
        .streams
        .borrow_mut()
        .insert(name.clone(), live);
    if let Some(old) = old {
        old.replaced.notify_one();
    }
    {
        let mut views = agent.workers.views.borrow_mut();
        let known = views.get(&name).filter(|known| known.attempt == attempt);
        let view = known.map_or_else(|| unheard(attempt), |known| WorkerState::clone(known));
        let view = WorkerState {
            last_seen: sim.wall_ms(),
            attached: true,
            ..view
        };
        views.insert(name.clone(), Arc::new(view));
    }
    Workers::changed(&sim, &agent);
    let assignment = agent.workers.duties.borrow().of(name.as_str());
    let sessions = if assignment.holds_sessions() {
        agent.vault.attach(&spec, attempt);
        agent.vault.sessions_for(&sim, &spec)
    } else {
        Vec::new()
    };
    send(ToWorker::Welcome(sessions, assignment));
    let input = |input: WorkerInput| {
        if let Some(proc) = sim.host.borrow_mut().procs.get_mut(&pid) {
            proc.heard_at = sim.now();
        }
        let _ = agent
            .supervisor
            .send(SupMsg::Worker(name.clone(), attempt, input));
    };
    input(WorkerInput::Attached);
    let mut told = None;
    let mut shards: BTreeMap<u32, (i32, u64)> = BTreeMap::new();
    loop {
        let message = tokio::select! {
            biased;
            () = replaced.notified() => break,
            message = inbound.recv() => match message {
                Some(message) => message,
                None => break,
            },
        };
        // Behind one whose acknowledgement the disk holds up.
        let kept = matches!(message, FromWorker::Deposit(..) | FromWorker::Discard(..));
        if kept && sim.weather.borrow().slow_streams > sim.now() && sim.chance(300) {
            sim.sleep(sim.draw(0..=8_000)).await;
        }
        match message {
            FromWorker::Hello(..) => break,
            FromWorker::Report(stage, views) => {
                input(WorkerInput::Alive);
                if told != Some(stage) {
                    told = Some(stage);
                    input(match stage {
                        ProcessStage::Ready => WorkerInput::Ready,
                        ProcessStage::Draining => WorkerInput::Draining,
                        _ => WorkerInput::NotReady(String::new()),
                    });
                }
                let is_ready = |view: &&ShardReport| view.stage == ShardStage::Ready as i32;
                for view in &views {
                    let now = (view.stage, view.identifies);
                    let before = shards.insert(view.shard_id, now);
                    if view.identify_boot_ms > 0 && before.is_none_or(|before| before.1 != now.1) {
                        let at = view.identify_boot_ms;
                        agent.broker.sent(view.shard_id, spec.shard_count, at);
                    }
                    if is_ready(&view) && before != Some(now) {
                        agent.broker.ready(view.shard_id, spec.shard_count);
                    }
                }
                let serving = views.iter().filter(is_ready).map(|view| view.shard_id);
                agent.vault.alive(&sim, &spec, attempt, serving);
                let current = agent
                    .workers
                    .streams
                    .borrow()
                    .get(&name)
                    .map(|live| live.id);
                if current == Some(id)
                    && let Some(known) = agent.workers.views.borrow_mut().get_mut(&name)
                {
                    let known = Arc::make_mut(known);
                    known.last_seen = sim.wall_ms();
                    known.stage = stage;
                    let shards = views.into_iter().map(|report| {
                        let events_per_s = 0.0;
                        (
                            report.shard_id,
                            ShardState {
                                report,
                                events_per_s,
                            },
                        )
                    });
                    known.shards = shards.collect();
                }
                Workers::changed(&sim, &agent);
            }
            FromWorker::Deposit(shard, count, session, ack) => {
                let key = vault::key(&name, shard, count);
                let who = (&name, attempt);
                let kept = agent.vault.deposit(&sim, who, key, session, ack != 0).await;
                if kept && ack != 0 {
                    send(ToWorker::Ack(ack));
                }
            }
            FromWorker::Discard(shard, count, session) => {
                let key = vault::key(&name, shard, count);
                agent.vault.discard(&name, attempt, key, &session);
            }
            FromWorker::Limits(limits) => agent.broker.limits(limits),
            FromWorker::Result(command, done) => {
                let mut streams = agent.workers.streams.borrow_mut();
                let live = streams.get_mut(&name);
                if let Some(reply) = live.and_then(|live| live.commands.remove(&command)) {
                    // Whoever asked may be gone.
                    let _ = reply.send(done);
                }
            }
        }
    }
    let mut streams = agent.workers.streams.borrow_mut();
    if streams.get(&name).is_some_and(|live| live.id == id) {
        streams.remove(&name);
        if let Some(view) = agent.workers.views.borrow_mut().get_mut(&name) {
            Arc::make_mut(view).attached = false;
        }
        Workers::changed(&sim, &agent);
    }
}
