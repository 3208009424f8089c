//! The planner: as `agent/src/coordinator/{task,carry,submit}.rs`, around the real desired state,
//! planning, operations and their ledger. Every await is a place where the agent may die.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    rc::Rc,
    sync::Arc,
};

use futures_util::future::join_all;
use tanako_agent::{
    coordinator::planning,
    desired::Desired,
    operations::{
        Kind, OpState, Operation, StepAction,
        core::{self, Effect, Input, Observation, Observed},
        ledger::{self, Index},
    },
    supervisor::{Desired as Wanted, State, Table},
};
use tanako_fleet::{ProcessName, ProcessSpec, process::Probe, rollout::Sample, spec::Places};
use tanako_store::{Outcome, StoreError, Txn};
use tokio::sync::{mpsc, oneshot};

use super::{
    super::{judge, store::SimStore, trace::trace, world::Sim},
    Agent,
    supervisor::{Order, SupMsg},
    worker::Views,
};

/// Pause after the store refused, in milliseconds.
const RETRY: u64 = 1_000;
/// Progress that nothing depends on is written down at most this often.
const PERSIST_EVERY_MS: i64 = 1_000;
/// However often something is due, it is looked at no more often than this.
const WAKE_MS_MIN: i64 = 5;
/// Ended operations that are remembered.
const RECENT_MAX: usize = 10;

/// A request of the operator.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Asked twice with the same one = done once.
    pub request_id: String,
    /// What.
    pub kind: Kind,
    /// To which processes.
    pub targets: Vec<ProcessName>,
    /// Whether they were named one by one (and not by `all`).
    pub named: bool,
    /// How many may be down at once.
    pub max_unavailable: u32,
}

/// Answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// Another operation is at work there.
    Conflict,
    /// It has ended, or never was.
    Ended,
    /// The store does not answer, or did not say how it went.
    Store,
    /// The agent is gone.
    Gone,
}

type Reply<T> = oneshot::Sender<Result<T, Refused>>;

/// To the task.
pub enum Command {
    /// Start an operation.
    Submit(Ask, Reply<Operation>),
    /// Pause, resume or abort one.
    Control(u64, Control, Reply<()>),
}

/// What can be done about an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Begin no new step.
    Pause,
    /// Go on.
    Resume,
    /// End early.
    Abort,
}

/// A handle.
pub struct Coordinator {
    /// To the task.
    pub commands: mpsc::UnboundedSender<Command>,
    /// What it is at work on, for whoever looks.
    pub active: RefCell<Vec<Operation>>,
}

impl Coordinator {
    /// A handle and its inbox.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Command>) {
        let (commands, inbox) = mpsc::unbounded_channel();
        let coordinator = Self {
            commands,
            active: RefCell::default(),
        };
        (coordinator, inbox)
    }
}

struct Active {
    op: Operation,
    persisted_at: i64,
    dirty: bool,
}

struct Task {
    sim: Sim,
    agent: Rc<Agent>,
    desired: Desired,
    index: Index,
    active: Vec<Active>,
    retry_at: Option<u64>,
    /// The store did not say how a change went: what is in memory may be behind.
    doubt: bool,
}

/// Runs until killed: term after term, as `agent/src/office` has it. A term begins by reading everything
/// and ends when nobody knows what became of a commit.
pub async fn run(sim: Sim, agent: Rc<Agent>, mut commands: mpsc::UnboundedReceiver<Command>) {
    loop {
        let Some(mut task) = begin(&sim, &agent).await else {
            sim.sleep(RETRY).await;
            continue;
        };
        task.show();
        task.reconcile().await;
        agent.serving.set(true);
        task.term(&mut commands).await;
        trace!(
            sim,
            [1],
            "coordinator: the term ends, nobody knows how a change went"
        );
        sim.sleep(sim.draw(10..=RETRY)).await;
    }
}

async fn begin(sim: &Sim, agent: &Rc<Agent>) -> Option<Task> {
    if sim.weather.borrow().store_down > sim.now() {
        return None;
    }
    let places = Places {
        data_dir: "/d".to_owned(),
    };
    let desired = Desired::load(&*sim.store, places).await.ok()?;
    let loaded = ledger::load(&*sim.store, RECENT_MAX).await.ok()?;
    let active = loaded.active.into_iter().map(|op| Active {
        op,
        persisted_at: 0,
        dirty: false,
    });
    Some(Task {
        sim: sim.clone(),
        agent: Rc::clone(agent),
        desired,
        index: loaded.index,
        active: active.collect(),
        retry_at: None,
        doubt: false,
    })
}

impl Task {
    async fn term(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) {
        let sim = self.sim.clone();
        let mut table = self.agent.table.clone();
        let mut workers = self.agent.workers.states();
        loop {
            self.advance().await;
            if self.doubt {
                return;
            }
            let wake = self.wake();
            let listens = !self.active.is_empty() && self.retry_at.is_none();
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    // Nobody asks any more.
                    None => std::future::pending().await,
                },
                changed = table.changed(), if listens => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                    table.mark_unchanged();
                }
                changed = workers.changed(), if listens => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                    workers.mark_unchanged();
                }
                () = sim.sleep_until(wake) => self.retry_at = None,
            }
            if self.doubt {
                return;
            }
        }
    }
}

impl Task {
    async fn commit(&mut self, place: &'static str, txn: Txn) -> Result<Outcome, StoreError> {
        Agent::may_die(&self.sim, self.agent.life, place).await;
        let outcome = SimStore::commit_in(&self.sim, txn).await;
        self.doubt |= outcome.is_err();
        Agent::may_die(
            &self.sim,
            self.agent.life,
            "coordinator: committed, not acted on",
        )
        .await;
        outcome
    }

    fn show(&self) {
        let active = self.active.iter().map(|active| active.op.clone());
        *self.agent.coordinator.active.borrow_mut() = active.collect();
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Submit(ask, reply) => {
                let answer = self.submit(ask).await;
                // Whoever asked may be gone.
                let _ = reply.send(answer);
            }
            Command::Control(number, control, reply) => {
                let answer = self.control(number, control).await;
                let _ = reply.send(answer);
            }
        }
    }

    async fn submit(&mut self, ask: Ask) -> Result<Operation, Refused> {
        let known = self
            .active
            .iter()
            .find(|active| active.op.request_id == ask.request_id);
        if let Some(known) = known {
            return Ok(known.op.clone());
        }
        match ledger::by_request(&*self.sim.store, &ask.request_id).await {
            Ok(Some(known)) => return Ok(known),
            Ok(None) => {}
            Err(_) => return Err(Refused::Store),
        }
        let table = self.agent.table.borrow().clone();
        let (names, desired) = (&ask.targets, &self.desired);
        let named: BTreeSet<ProcessName> = if ask.named {
            names.iter().cloned().collect()
        } else {
            BTreeSet::new()
        };
        let mut next = None;
        let plan = match ask.kind {
            Kind::Start => {
                if names.iter().any(|name| !desired.is_wanted(name)) {
                    next = Some(desired.with(|document| {
                        document.stopped.retain(|name| !names.contains(name));
                    }));
                }
                planning::start(names, desired, &table)
            }
            Kind::Stop => {
                if names.iter().any(|name| desired.is_wanted(name)) {
                    next = Some(desired.with(|document| {
                        document.stopped.extend(names.iter().cloned());
                    }));
                }
                planning::stop(names, desired, &table)
            }
            _ => {
                if named.iter().any(|name| !desired.is_wanted(name)) {
                    next = Some(desired.with(|document| {
                        document.stopped.retain(|name| !named.contains(name));
                    }));
                }
                planning::restart(names, &named, desired, false)
            }
        };
        let held = plan
            .steps
            .iter()
            .filter(|step| !step.state.is_ended())
            .any(|step| {
                self.active
                    .iter()
                    .any(|active| active.op.holds(&step.object))
            });
        if held {
            return Err(Refused::Conflict);
        }
        let op = self.operation(&ask, &plan, next.is_none());
        let mut txn = self.index.insert(Txn::new(), &op);
        if let Some(next) = &next {
            txn = next.commit(&self.desired, txn);
        }
        let revision = match self.commit("coordinator: before accepting", txn).await {
            Ok(Outcome::Committed { revision }) => revision,
            Ok(Outcome::Conflict { .. }) => return Err(Refused::Conflict),
            Err(_) => return Err(Refused::Store),
        };
        self.index.committed(&op);
        if let Some(mut next) = next {
            next.committed(revision);
            self.desired = next;
        }
        trace!(self.sim, [op.number], "coordinator: {} accepted", op.id);
        if !op.state.is_ended() {
            self.active.push(Active {
                op: op.clone(),
                persisted_at: self.sim.wall_ms(),
                dirty: false,
            });
        }
        self.show();
        Ok(op)
    }

    fn operation(&self, ask: &Ask, plan: &planning::Plan, same: bool) -> Operation {
        let number = self.index.next_number();
        let now = self.sim.wall_ms();
        let mut op: Operation = super::super::blank::operation();
        op.id = format!("{}-{number}", ask.kind.as_str());
        op.number = number;
        op.kind = ask.kind;
        op.steps.clone_from(&plan.steps);
        op.max_unavailable = ask.max_unavailable.max(1);
        op.request_id.clone_from(&ask.request_id);
        op.created_at = now;
        op.updated_at = now;
        op.count_steps();
        if plan.is_empty() {
            op.state = OpState::Succeeded;
            op.ended_at = now;
            op.unchanged = same;
        }
        op
    }

    async fn control(&mut self, number: u64, control: Control) -> Result<(), Refused> {
        let Some(index) = self
            .active
            .iter()
            .position(|active| active.op.number == number)
        else {
            return Err(Refused::Ended);
        };
        let before = self.active[index].op.clone();
        let input = match control {
            Control::Pause => Input::Pause,
            Control::Resume => Input::Resume,
            Control::Abort => Input::Abort,
        };
        core::step(&mut self.active[index].op, self.sim.wall_ms(), input);
        let txn = self.index.update(Txn::new(), &self.active[index].op);
        if self
            .commit("coordinator: before a control", txn)
            .await
            .is_err()
        {
            self.active[index].op = before;
            return Err(Refused::Store);
        }
        trace!(
            self.sim,
            [number],
            "coordinator: {control:?} of {}",
            before.id
        );
        self.show();
        Ok(())
    }

    /// Tells the supervisor what the desired state says, once at the start.
    async fn reconcile(&mut self) {
        // The next step of each process, and whether it has begun.
        let mut steps: HashMap<String, (StepAction, bool)> = HashMap::new();
        for active in &self.active {
            for step in active.op.steps.iter().filter(|step| !step.state.is_ended()) {
                let next = (step.action, step.is_begun());
                steps.entry(step.object.clone()).or_insert(next);
            }
        }
        let table = self.agent.table.borrow().clone();
        for spec in self.desired.processes.clone().iter() {
            let live = table
                .get(&spec.name)
                .is_some_and(|process| process.state.is_live());
            let wanted = match steps.get(spec.name.as_str()) {
                // The operation starts it when its turn comes.
                Some((StepAction::Start | StepAction::Warm | StepAction::Shadow, false))
                    if !live =>
                {
                    Wanted::Stopped
                }
                Some((StepAction::Stop, _)) => Wanted::Stopped,
                Some((StepAction::Remove, true)) => continue,
                _ if self.desired.is_wanted(&spec.name) => Wanted::Running,
                _ => Wanted::Stopped,
            };
            let define = |reply| SupMsg::Define(spec.clone(), wanted, reply);
            // The supervisor answers unless it is gone.
            let _ = self.tell(define).await;
        }
        if let Some(spec) = &self.desired.spec {
            for bot in spec.bots.values() {
                let hint = Some(bot.max_concurrency);
                self.agent.broker.configure(hint, bot.identify_reserve);
            }
        }
    }

    async fn tell(
        &self,
        message: impl FnOnce(oneshot::Sender<Result<(), String>>) -> SupMsg,
    ) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        let gone = |()| "the supervisor has stopped".to_owned();
        self.sim.sleep(self.sim.draw(0..=1)).await;
        self.agent
            .supervisor
            .send(message(reply))
            .map_err(|_| gone(()))?;
        answer.await.map_err(|_| gone(()))?
    }

    /// One round over all operations.
    async fn advance(&mut self) {
        if self.active.is_empty() || self.retry_at.is_some() {
            return;
        }
        let table = self.agent.table.borrow().clone();
        let views = self.agent.workers.states().borrow().clone();
        let observed = observe(&table, &views, |name| self.desired.process(name));
        for index in 0..self.active.len() {
            let now = self.sim.wall_ms();
            let before = self.active[index].op.clone();
            let effects = core::step(&mut self.active[index].op, now, Input::Observe(&observed));
            let active = &mut self.active[index];
            if active.op != before {
                active.dirty = true;
            }
            let must = !effects.is_empty() || active.op.state.is_ended();
            let due = active.dirty && (must || now - active.persisted_at >= PERSIST_EVERY_MS);
            if due && self.persist(index).await.is_err() {
                // Nothing may happen that is not written down first.
                self.active[index].op = before;
                self.active[index].dirty = true;
                self.retry_at = Some(self.sim.now() + RETRY);
                break;
            }
            self.carry_out(index, effects).await;
            let op = &self.active[index].op;
            if op.state != before.state {
                trace!(
                    self.sim,
                    [op.number, op.state as u64],
                    "coordinator: {} is {}: {}",
                    op.id,
                    op.state.as_str(),
                    op.message
                );
                if op.state.is_ended() {
                    let op = op.clone();
                    self.sim.judge.borrow_mut().operation_ended(&op);
                }
            }
        }
        self.active
            .retain(|active| !active.op.state.is_ended() || active.dirty);
        self.show();
    }

    async fn carry_out(&mut self, index: usize, effects: Vec<Effect>) {
        if effects.is_empty() {
            return;
        }
        Agent::may_die(
            &self.sim,
            self.agent.life,
            "coordinator: step written, order not given",
        )
        .await;
        let op = &self.active[index].op;
        let orders = effects.into_iter().map(|effect| self.order(op, effect));
        for (object, result) in join_all(orders).await {
            let Err(reason) = result else { continue };
            let active = &mut self.active[index];
            let refused = Input::Refused {
                object: &object,
                reason: &reason,
            };
            core::step(&mut active.op, self.sim.wall_ms(), refused);
            active.dirty = true;
        }
    }

    async fn order(&self, op: &Operation, effect: Effect) -> (String, Result<(), String>) {
        let (Effect::Start(object)
        | Effect::Stop(object)
        | Effect::Restart(object, _)
        | Effect::Forget(object)) = &effect
        else {
            return (String::new(), Err("not asked for here".to_owned()));
        };
        let Ok(name) = object.parse::<ProcessName>() else {
            return (object.clone(), Ok(()));
        };
        trace!(self.sim, [op.number], "coordinator: {}: {effect:?}", op.id);
        judge::ordered(&self.sim, op, &effect, &name);
        let result = match &effect {
            Effect::Start(_) | Effect::Restart(..) => match self.desired.process(&name) {
                None => Err(format!("no process {name}")),
                Some(spec) => {
                    let define = |reply| SupMsg::Define(spec.clone(), Wanted::Running, reply);
                    let order = match effect {
                        Effect::Restart(_, attempt) => Order::Restart(attempt),
                        _ => Order::Start,
                    };
                    match self.tell(define).await {
                        Err(error) => Err(error),
                        Ok(()) => {
                            self.tell(|reply| SupMsg::Ask(name.clone(), order, reply))
                                .await
                        }
                    }
                }
            },
            Effect::Stop(_) => {
                self.tell(|reply| SupMsg::Ask(name.clone(), Order::Stop, reply))
                    .await
            }
            _ => self.tell(|reply| SupMsg::Forget(name.clone(), reply)).await,
        };
        (object.clone(), result)
    }

    /// Writes down the operation with, when it has ended, what it leaves of the desired state.
    async fn persist(&mut self, index: usize) -> Result<(), StoreError> {
        let op = self.active[index].op.clone();
        let mut txn = self.index.update(Txn::new(), &op);
        let next = planning::reverted(&self.desired, &op);
        if let Some(next) = &next {
            txn = next.commit(&self.desired, txn);
        }
        match self.commit("coordinator: before progress", txn).await? {
            Outcome::Committed { revision } => {
                if let Some(mut next) = next {
                    next.committed(revision);
                    self.desired = next;
                }
            }
            Outcome::Conflict { .. } => {
                return Err(StoreError::Unavailable(
                    "the desired state was changed by someone else".to_owned(),
                ));
            }
        }
        self.index.committed(&op);
        let active = &mut self.active[index];
        active.dirty = false;
        active.persisted_at = self.sim.wall_ms();
        Ok(())
    }

    fn wake(&self) -> u64 {
        if let Some(at) = self.retry_at {
            return at.max(self.sim.now() + 1);
        }
        let now = self.sim.wall_ms();
        let steps = self
            .active
            .iter()
            .filter_map(|active| core::deadline(&active.op));
        let persist = self
            .active
            .iter()
            .filter(|active| active.dirty)
            .map(|active| active.persisted_at + PERSIST_EVERY_MS);
        // A wall clock that jumps is looked at again within the minute.
        let wait = steps
            .chain(persist)
            .min()
            .map_or(60_000, |at| (at - now).clamp(WAKE_MS_MIN, 60_000));
        self.sim.now() + wait.unsigned_abs()
    }
}

fn observe<'a>(
    table: &Arc<Table>,
    views: &Views,
    wanted: impl Fn(&ProcessName) -> Option<&'a Arc<ProcessSpec>>,
) -> Observed {
    table
        .iter()
        .map(|(name, process)| {
            let worker = views
                .get(name)
                .filter(|worker| worker.attempt == process.attempt);
            let reported = process.spec.ready.probe != Probe::Worker
                || worker.is_some_and(|worker| {
                    let mut shards = process.shard_ids.iter();
                    shards.all(|shard| worker.shards.get(shard).is_some_and(|view| view.ready))
                });
            let observation = Observation {
                state: process.state,
                ready: process.ready && reported,
                attempt: process.attempt,
                last_seen: worker.map_or(0, |worker| worker.last_seen),
                detail: process.detail.clone(),
                standby: false,
                attached: worker.is_some_and(|worker| worker.attached),
                newest_handled: 0,
                sample: Sample::default(),
                unsure: process.state == State::Starting
                    && worker.map_or(process.adopted, |worker| {
                        !worker.attached || process.adopted && worker.shards.is_empty()
                    }),
                outdated: process.needs_restart
                    || wanted(name).is_some_and(|spec| **spec != *process.spec),
            };
            (name.to_string(), observation)
        })
        .collect()
}
