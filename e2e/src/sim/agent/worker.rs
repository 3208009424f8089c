//! The worker socket: as `agent/src/worker/{admit,registry,service}.rs`. One stream speaks for a
//! process, the newest Hello of its current attempt.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use tanako_agent::supervisor::{State, Table, WorkerInput};
use tanako_fleet::{
    ProcessName, ProcessSpec,
    identify::{Refusal, ReportedLimits},
    vault::{Session, SessionId},
};
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

/// Where a shard stands, as far as the agent cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ShardView {
    /// The shard.
    pub id: u32,
    /// It serves.
    pub ready: bool,
    /// IDENTIFYs since the process started.
    pub identifies: u64,
}

/// What a process says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Not ready yet.
    Starting,
    /// Ready.
    Ready,
    /// Finishing.
    Draining,
}

/// From a worker.
pub enum FromWorker {
    /// First.
    Hello(ProcessName, u64),
    /// Now and then.
    Report(Stage, Vec<ShardView>),
    /// What a successor needs; a number asks for an acknowledgement.
    Deposit(u32, u32, Session, u64),
    /// A session is void.
    Discard(u32, u32, SessionId),
    /// What Discord says.
    Limits(ReportedLimits),
}

/// To a worker.
pub enum ToWorker {
    /// It may begin, with these sessions.
    Welcome(Vec<(u32, Session)>),
    /// Another attempt has taken its place.
    Superseded,
    /// The deposit is safe.
    Ack(u64),
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

/// A worker as last reported.
#[derive(Debug, Clone, Default)]
pub struct WorkerView {
    /// The attempt that reported.
    pub attempt: u64,
    /// Its stream is up.
    pub attached: bool,
    /// Latest message, milliseconds since 1970.
    pub last_seen: i64,
    /// Its shards.
    pub shards: BTreeMap<u32, ShardView>,
}

/// All workers by name.
pub type Views = BTreeMap<ProcessName, WorkerView>;

/// The registry of one life.
pub struct Workers {
    views: RefCell<Views>,
    streams: RefCell<BTreeMap<ProcessName, (u64, Rc<Notify>)>>,
    next_stream: Cell<u64>,
    published: watch::Sender<Rc<Views>>,
    publishing: Cell<bool>,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            views: RefCell::default(),
            streams: RefCell::default(),
            next_stream: Cell::new(0),
            published: watch::channel(Rc::default()).0,
            publishing: Cell::new(false),
        }
    }
}

impl Workers {
    /// What the workers last reported, as published.
    pub fn states(&self) -> watch::Receiver<Rc<Views>> {
        self.published.subscribe()
    }

    /// Breaks every stream.
    pub fn cut_all(&self) {
        for (_, replaced) in self.streams.borrow().values() {
            replaced.notify_one();
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

/// One call for a permit.
pub async fn acquire(
    sim: &Sim,
    pid: Pid,
    (name, attempt): (&ProcessName, u64),
    (shard, count): (u32, u32),
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
                .acquire(name.as_str(), attempt, shard, count)
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

/// The whole life of a stream.
async fn converse(
    sim: Sim,
    agent: Rc<Agent>,
    pid: Pid,
    mut inbound: pipe::Receiver<FromWorker>,
    outbox: pipe::Sender<ToWorker>,
) {
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
    let old = agent
        .workers
        .streams
        .borrow_mut()
        .insert(name.clone(), (id, Rc::clone(&replaced)));
    if let Some((_, old)) = old {
        old.notify_one();
    }
    {
        let mut views = agent.workers.views.borrow_mut();
        let view = views.entry(name.clone()).or_default();
        if view.attempt != attempt {
            *view = WorkerView {
                attempt,
                ..WorkerView::default()
            };
        }
        view.last_seen = sim.wall_ms();
        view.attached = true;
    }
    Workers::changed(&sim, &agent);
    agent.vault.attach(&spec, attempt);
    send(ToWorker::Welcome(agent.vault.sessions_for(&sim, &spec)));
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
    let mut shards: BTreeMap<u32, ShardView> = BTreeMap::new();
    loop {
        let message = tokio::select! {
            biased;
            () = replaced.notified() => break,
            message = inbound.recv() => match message {
                Some(message) => message,
                None => break,
            },
        };
        match message {
            FromWorker::Hello(..) => break,
            FromWorker::Report(stage, views) => {
                input(WorkerInput::Alive);
                if told != Some(stage) {
                    told = Some(stage);
                    input(match stage {
                        Stage::Ready => WorkerInput::Ready,
                        Stage::Draining => WorkerInput::Draining,
                        Stage::Starting => WorkerInput::NotReady(String::new()),
                    });
                }
                for view in &views {
                    if view.ready && shards.insert(view.id, *view) != Some(*view) {
                        agent.broker.ready(view.id, spec.shard_count);
                    }
                    shards.insert(view.id, *view);
                }
                let serving = views.iter().filter(|view| view.ready).map(|view| view.id);
                agent.vault.alive(&sim, &spec, attempt, serving);
                let current = agent
                    .workers
                    .streams
                    .borrow()
                    .get(&name)
                    .map(|stream| stream.0);
                if current == Some(id)
                    && let Some(known) = agent.workers.views.borrow_mut().get_mut(&name)
                {
                    known.last_seen = sim.wall_ms();
                    known.shards = views.into_iter().map(|view| (view.id, view)).collect();
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
        }
    }
    let mut streams = agent.workers.streams.borrow_mut();
    if streams.get(&name).is_some_and(|stream| stream.0 == id) {
        streams.remove(&name);
        if let Some(view) = agent.workers.views.borrow_mut().get_mut(&name) {
            view.attached = false;
        }
        Workers::changed(&sim, &agent);
    }
}
