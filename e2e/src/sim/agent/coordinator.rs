//! The planner: as `agent/src/coordinator/{task,carry,submit,orders}.rs`, around the real desired state,
//! planning, operations, receipts and their ledger. Every await is a place where its process may die.

use std::{collections::BTreeMap, rc::Rc};

use futures_util::future::join_all;
use tanako_agent::{
    coordinator::{RECENT_MAX, planning},
    desired::Desired,
    operations::{
        Kind, OpState, Operation,
        books::Books,
        core::{self, Change, Effect, Input, Request},
        duties::{self, Lingering},
        ledger::{self, Index},
        observing::observe,
    },
    supervisor::Desired as Wanted,
    worker::duties::Assignment,
};
use tanako_fleet::{ProcessName, rollout::Strategy, spec::Places};
use tanako_store::{Outcome, StoreError, Txn};
use tokio::sync::{mpsc, oneshot};

use super::{
    super::{judge, trace::trace, world::Sim},
    Agent, drafts,
    office::{Office, View},
    supervisor::{Order, SupMsg},
    worker::{self, Workers},
};

/// Pause after the store refused, in milliseconds.
const RETRY: u64 = 1_000;
/// Progress that nothing depends on is written down at most this often.
const PERSIST_EVERY_MS: i64 = 1_000;
/// However often something is due, it is looked at no more often than this.
const WAKE_MS_MIN: i64 = 5;
/// How long a worker may take to hear of a cut, in milliseconds.
const SHARE_WITHIN: u64 = 5_000;
/// Besides the grace that its spec gives it to finish its work, in milliseconds.
const SLACK: u64 = 5_000;
/// A view of the host elsewhere is looked at this often, in milliseconds.
const LOOK_EVERY: u64 = 150;

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
    /// Rollout: by which strategy.
    pub strategy: Strategy,
    /// Rollout: the spec's variant; `None` = the same again.
    pub variant: Option<u32>,
    /// Rollout: takes this one back.
    pub undo: Option<u64>,
    /// Reshard: to how many.
    pub shards: u32,
    /// For how long those that have changed are watched, in milliseconds.
    pub observe_ms: i64,
}

/// Answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// Another operation is at work there.
    Conflict,
    /// It cannot be done as things are.
    Unfit,
    /// It has ended, or never was.
    Ended,
    /// The new set serves already.
    TooLate,
    /// The store does not answer, or did not say how it went.
    Store,
    /// The agent is gone.
    Gone,
}

type Reply<T> = oneshot::Sender<Result<T, Refused>>;

/// To the task.
pub enum Command {
    /// Start an operation.
    Submit(Box<Ask>, Reply<Operation>),
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

struct Active {
    op: Operation,
    persisted_at: i64,
    dirty: bool,
}

/// A worker's answer to what an operation asked of it.
struct Answer {
    operation: u64,
    process: String,
    attempt: u64,
    request: Request,
    result: worker::Done,
}

struct Task {
    sim: Sim,
    office: Rc<Office>,
    desired: Desired,
    index: Index,
    active: Vec<Active>,
    lingering: Vec<Lingering>,
    /// The life of the host's agent as last seen.
    life: u64,
    /// The duties that the host was told last, and its life then.
    told: Option<(u64, BTreeMap<String, Assignment>)>,
    retry_at: Option<u64>,
    /// The store did not say how a change went, or the office is gone: the term is over.
    over: bool,
    answers: mpsc::UnboundedSender<Answer>,
}

/// Term after term, for as long as the office lasts. A term begins by reading everything and ends when
/// nobody knows what became of a commit.
pub async fn terms(
    sim: &Sim,
    office: &Rc<Office>,
    commands: &mut mpsc::UnboundedReceiver<Command>,
) {
    while office.is_held(sim) {
        let (answers, mut answered) = mpsc::unbounded_channel();
        let Some(mut task) = begin(sim, office, answers).await else {
            sim.sleep(RETRY).await;
            continue;
        };
        task.show();
        task.assign_duties().await;
        task.reconcile().await;
        office.serving.set(true);
        task.term(commands, &mut answered).await;
        office.serving.set(false);
        trace!(sim, [office.number], "coordinator: a term ends");
        sim.sleep(sim.draw(10..=RETRY)).await;
    }
}

async fn begin(
    sim: &Sim,
    office: &Rc<Office>,
    answers: mpsc::UnboundedSender<Answer>,
) -> Option<Task> {
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
        office: Rc::clone(office),
        desired,
        index: loaded.index,
        active: active.collect(),
        lingering: Vec::new(),
        life: office.view(sim).life,
        told: None,
        retry_at: None,
        over: false,
        answers,
    })
}

impl Task {
    async fn term(
        &mut self,
        commands: &mut mpsc::UnboundedReceiver<Command>,
        answered: &mut mpsc::UnboundedReceiver<Answer>,
    ) {
        let sim = self.sim.clone();
        let agent = sim.agent.borrow().clone();
        let Some(agent) = agent else { return };
        let mut table = agent.table.clone();
        let mut workers = agent.workers.states();
        loop {
            self.welcome().await;
            self.advance().await;
            if self.over || !self.office.is_held(&sim) {
                return;
            }
            let wake = self.wake();
            let listens = !self.office.remote && !self.active.is_empty() && self.retry_at.is_none();
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    // Nobody asks any more.
                    None => std::future::pending().await,
                },
                Some(answer) = answered.recv() => self.answered(&answer),
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
            if self.over {
                return;
            }
        }
    }

    /// Makes the host agree whose agent was started anew.
    async fn welcome(&mut self) {
        let life = self.view().life;
        if life == 0 || std::mem::replace(&mut self.life, life) == life {
            return;
        }
        for active in &mut self.active {
            core::step(
                &mut active.op,
                self.sim.wall_ms(),
                Input::Renewed(&|_| true),
            );
        }
        self.told = None;
        self.assign_duties().await;
        self.reconcile().await;
    }

    fn view(&self) -> View {
        self.office.view(&self.sim)
    }

    async fn may_die(&self, place: &'static str) {
        Agent::may_die_at(&self.sim, self.office.group, place).await;
    }

    async fn commit(&mut self, place: &'static str, txn: Txn) -> Result<Outcome, StoreError> {
        self.may_die(place).await;
        let outcome = self.office.commit(&self.sim, txn).await;
        self.over |= outcome.is_err();
        self.may_die("coordinator: committed, not acted on").await;
        outcome
    }

    fn show(&self) {
        let active = self.active.iter().map(|active| active.op.clone());
        *self.office.active.borrow_mut() = active.collect();
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Submit(ask, reply) => {
                let answer = self.submit(*ask).await;
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
        let store = &*self.sim.store;
        match ledger::by_request(store, &ask.request_id).await {
            Ok(Some(known)) => return Ok(known),
            Ok(None) => {}
            Err(_) => return Err(Refused::Store),
        }
        let undone = match ask.undo {
            None => None,
            Some(number) => {
                let op = ledger::by_number(store, number)
                    .await
                    .map_err(|_| Refused::Store)?
                    .ok_or(Refused::Unfit)?;
                let replaced = ledger::replaced(store, number)
                    .await
                    .map_err(|_| Refused::Store)?;
                Some((op, replaced))
            }
        };
        let view = self.view();
        let mut draft = drafts::draft(&self.sim, &self.desired, &view, &ask, undone)?;
        let operations = self.active.iter().map(|active| &active.op);
        let (steps, bots) = (&draft.plan.steps, &draft.op.bots);
        let held = planning::in_the_way(operations, steps, bots).is_some();
        let replacing = draft.replaced.is_some() && self.active.iter().any(|a| a.op.replaces);
        if held || replacing {
            return Err(Refused::Conflict);
        }
        let (number, now) = (self.index.next_number(), self.sim.wall_ms());
        let op = drafts::operation(&self.sim, &view, &draft, number, now);
        let mut txn = self.index.insert(Txn::new(), &op);
        if let Some(next) = &draft.next {
            txn = next.commit(&self.desired, txn);
        }
        if let Some(replaced) = &draft.replaced {
            txn = Index::keep(txn, &op, replaced);
        }
        let revision = match self.commit("coordinator: before accepting", txn).await {
            Ok(Outcome::Committed { revision }) => revision,
            Ok(Outcome::Conflict { .. }) => return Err(Refused::Conflict),
            Err(_) => return Err(Refused::Store),
        };
        self.index.committed(&op);
        if let Some(mut next) = draft.next.take() {
            next.committed(revision);
            self.desired = next;
            if matches!(op.kind, Kind::Rollout | Kind::Reshard) {
                self.define_waiting(&op).await;
            }
        }
        trace!(
            self.sim,
            [op.number],
            "coordinator: {} accepted: {:?} {}",
            op.id,
            op.strategy,
            op.steps.len()
        );
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

    async fn define_waiting(&self, op: &Operation) {
        for spec in planning::waiting(&self.desired, op, &self.view().table) {
            let define = |reply| SupMsg::Define(spec.clone(), Wanted::Stopped, reply);
            // It is told again when its turn comes.
            let _ = self.tell(define).await;
        }
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
        if control == Control::Abort && before.is_past_return() {
            return Err(Refused::TooLate);
        }
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
        let table = self.view().table;
        let (wanted, orphans) = {
            let operations: Vec<&Operation> = self.active.iter().map(|active| &active.op).collect();
            (
                planning::wanted_at_first(&self.desired, &operations, &table),
                planning::orphans(&self.desired, &operations, &table),
            )
        };
        for (spec, wanted) in wanted {
            let define = |reply| SupMsg::Define(spec.clone(), wanted, reply);
            // The supervisor answers unless it is gone.
            let _ = self.tell(define).await;
        }
        for name in orphans {
            trace!(self.sim, [1], "coordinator: {name} is in no spec");
            let _ = self.tell(|reply| SupMsg::Forget(name.clone(), reply)).await;
        }
        let agent = self.sim.agent.borrow().clone();
        if let (Some(spec), Some(agent)) = (&self.desired.spec, agent) {
            for bot in spec.bots.values() {
                let hint = Some(bot.max_concurrency);
                agent.broker.configure(hint, bot.identify_reserve);
            }
        }
    }

    async fn tell(
        &self,
        message: impl Fn(oneshot::Sender<Result<(), String>>) -> SupMsg,
    ) -> Result<(), String> {
        let message = &message;
        self.office
            .order(&self.sim, |agent| async move {
                let (reply, answer) = oneshot::channel();
                let gone = |()| "the supervisor has stopped".to_owned();
                agent
                    .supervisor
                    .send(message(reply))
                    .map_err(|_| gone(()))?;
                answer.await.map_err(|_| gone(()))?
            })
            .await
    }

    /// Tells everybody who starts from now on what to do.
    async fn assign_duties(&mut self) {
        let now = self.sim.wall_ms();
        let operations = self.active.iter().map(|active| &active.op);
        let all = duties::all(now, &mut self.lingering, operations);
        let life = self
            .sim
            .agent
            .borrow()
            .as_ref()
            .map_or(0, |agent| agent.life);
        if self.told.as_ref() == Some(&(life, all.clone())) {
            return;
        }
        let told = &all;
        let done = self
            .office
            .order(&self.sim, |agent| async move {
                let kept = agent.workers.duties.borrow().replace(told.clone());
                kept.expect("invariant: these lie on no disk");
                Ok(())
            })
            .await;
        self.told = done.is_ok().then_some((life, all));
    }

    /// One round over all operations.
    async fn advance(&mut self) {
        if self.active.is_empty() || self.retry_at.is_some() {
            return;
        }
        let view = self.view();
        if view.life == 0 {
            return;
        }
        let observed = observe(&view.table, &view.workers);
        for index in 0..self.active.len() {
            let now = self.sim.wall_ms();
            let before = self.active[index].op.clone();
            let effects = core::step(&mut self.active[index].op, now, Input::Observe(&observed));
            self.keep_books(&view, now, &before, index);
            let active = &mut self.active[index];
            if active.op != before {
                active.dirty = true;
            }
            let must = !effects.is_empty() || active.op.state.is_ended();
            let due = active.dirty && (must || now - active.persisted_at >= PERSIST_EVERY_MS);
            if due && self.write_down(index, &effects).await.is_err() {
                // Nothing may happen that is not written down first.
                self.active[index].op = before;
                self.active[index].dirty = true;
                self.retry_at = Some(self.sim.now() + RETRY);
                break;
            }
            if self.active[index].op.state.is_ended() {
                self.lingering.extend(Lingering::of(now, &before));
            }
            self.assign_duties().await;
            self.carry_out(index, effects).await;
            self.announce(index, &before).await;
        }
        self.active
            .retain(|active| !active.op.state.is_ended() || active.dirty);
        self.show();
    }

    fn keep_books(&mut self, view: &View, now: i64, before: &Operation, index: usize) {
        let agent = self.sim.agent.borrow().clone();
        Books {
            table: &view.table,
            workers: &view.workers,
            last_before: &|process, attempt, shard, count| {
                let agent = agent.as_ref()?;
                agent.vault.last_before(process, attempt, shard, count)
            },
            now,
        }
        .keep(before, &mut self.active[index].op);
    }

    async fn announce(&mut self, index: usize, before: &Operation) {
        let op = self.active[index].op.clone();
        if op.state == before.state {
            return;
        }
        trace!(
            self.sim,
            [op.number, op.state as u64],
            "coordinator: {} is {}: {}",
            op.id,
            op.state.as_str(),
            op.message
        );
        if !op.state.is_ended() {
            return;
        }
        judge::ended(&self.sim, &op);
        if op.kind == Kind::Reshard && op.state == OpState::Succeeded {
            let count = op.old_shards;
            let sim = &self.sim;
            let _ = self
                .office
                .order(sim, |agent| async move {
                    agent.vault.forget(sim, drafts::BOT, count);
                    Ok(())
                })
                .await;
        }
    }

    async fn carry_out(&mut self, index: usize, effects: Vec<Effect>) {
        if effects.is_empty() {
            return;
        }
        self.may_die("coordinator: step written, order not given")
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
        // Done when the operation was written down.
        let Some(object) = effect.object().map(str::to_owned) else {
            return (String::new(), Ok(()));
        };
        let Ok(name) = object.parse::<ProcessName>() else {
            return (object, Ok(()));
        };
        trace!(self.sim, [op.number], "coordinator: {}: {effect:?}", op.id);
        judge::ordered(&self.sim, op, &effect, &name);
        let result = match effect {
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
            Effect::Forget(_) => self.tell(|reply| SupMsg::Forget(name.clone(), reply)).await,
            Effect::StandDown(_, attempt) => {
                let grace = self.desired.process(&name).map_or(SLACK, |spec| {
                    u64::try_from(spec.stop.grace.as_millis()).unwrap_or(SLACK)
                });
                let command = worker::Command::StandDown(grace);
                let within = grace + SLACK;
                self.ask(
                    op.number,
                    name,
                    attempt,
                    Request::StandDown,
                    command,
                    within,
                );
                Ok(())
            }
            Effect::Handover(from, _, attempt) => self.hand_over(&from, &name, attempt).await,
            Effect::TakeOver(_, attempt) => {
                let spec = self.desired.process(&name);
                let within = spec.map_or(60_000, |spec| {
                    u64::try_from(spec.ready.timeout.as_millis()).unwrap_or(60_000)
                });
                // Filled in where the sessions are.
                let command = worker::Command::TakeOver(Vec::new());
                let within = within + SLACK;
                self.ask(op.number, name, attempt, Request::TakeOver, command, within);
                Ok(())
            }
            Effect::Share(_, attempt, at) => {
                let told = self.told.as_ref();
                let duty = told.and_then(|(_, all)| all.get(name.as_str()).copied());
                let command = worker::Command::Share(duty.unwrap_or_default());
                let request = Request::Share { at };
                self.ask(op.number, name, attempt, request, command, SHARE_WITHIN);
                Ok(())
            }
            // Nobody asks for moves here.
            Effect::Prepare(..)
            | Effect::StopAt(..)
            | Effect::Carry(..)
            | Effect::Recall(..)
            | Effect::Depart(..)
            | Effect::Document(_) => Err("there is one host".to_owned()),
        };
        (object, result)
    }

    /// From now on the sessions of `from` are `to`'s, whoever of them deposits or starts anew.
    async fn hand_over(&self, from: &str, to: &ProcessName, attempt: u64) -> Result<(), String> {
        let sim = &self.sim;
        let from = from.parse::<ProcessName>().ok();
        let from = from.as_ref();
        self.office
            .order(sim, |agent| async move {
                let table = agent.table.borrow().clone();
                let from = from.and_then(|name| table.get(name).cloned());
                if let (Some(from), Some(to)) = (from, table.get(to)) {
                    let attempt = attempt.max(to.attempt);
                    let moved = agent.vault.handover(&from.spec, &to.spec, attempt);
                    trace!(
                        sim,
                        [moved],
                        "vault: {moved} sessions of {} are {}'s",
                        from.name,
                        to.name
                    );
                }
                Ok(())
            })
            .await
    }

    /// Gives a command to a worker and lets its answer come in among the others.
    fn ask(
        &self,
        operation: u64,
        name: ProcessName,
        attempt: u64,
        request: Request,
        command: worker::Command,
        within: u64,
    ) {
        let (sim, office, answers) = (
            self.sim.clone(),
            Rc::clone(&self.office),
            self.answers.clone(),
        );
        self.sim.spawn(self.office.group, async move {
            let (asked, given, now) = (&name, &command, &sim);
            let result = office
                .order(&sim, |agent| async move {
                    let mut command = given.clone();
                    if let worker::Command::TakeOver(sessions) = &mut command {
                        let table = agent.table.borrow().clone();
                        let spec = table.get(asked).map(|process| process.spec.clone());
                        let spec = spec.ok_or_else(|| format!("no process {asked}"))?;
                        *sessions = agent.vault.sessions_for(now, &spec);
                    }
                    Workers::command(now, &agent, asked, command, within).await
                })
                .await;
            let answer = Answer {
                operation,
                process: name.to_string(),
                attempt,
                request,
                result,
            };
            // The term may have ended.
            let _ = answers.send(answer);
        });
    }

    fn answered(&mut self, answer: &Answer) {
        let Some(active) = self
            .active
            .iter_mut()
            .find(|active| active.op.number == answer.operation)
        else {
            return;
        };
        trace!(
            self.sim,
            [answer.operation, answer.attempt],
            "coordinator: {} answers {:?}: {:?}",
            answer.process,
            answer.request,
            answer.result
        );
        let before = active.op.clone();
        core::step(
            &mut active.op,
            self.sim.wall_ms(),
            Input::Answered {
                process: &answer.process,
                attempt: answer.attempt,
                request: answer.request,
                result: answer.result.as_ref().map(|at| *at).map_err(String::as_str),
            },
        );
        active.dirty |= active.op != before;
    }

    /// Writes the operation down with what its effects change of the desired state.
    async fn write_down(&mut self, index: usize, effects: &[Effect]) -> Result<(), StoreError> {
        let op = self.active[index].op.clone();
        let changes: Vec<&Change> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Document(change) => Some(change),
                _ => None,
            })
            .collect();
        let next = if changes.is_empty() {
            planning::reverted(&self.desired, &op)
        } else {
            let replaced = if changes.contains(&&Change::TurnBack) {
                ledger::replaced(&*self.sim.store, op.number).await?
            } else {
                None
            };
            let next = planning::changed(&self.desired, &op, &changes, replaced.as_ref());
            Some(next.map_err(|error| StoreError::Unavailable(error.to_string()))?)
        };
        let mut txn = self.index.update(Txn::new(), &op);
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
        let wait = wait.unsigned_abs();
        let looks = self.office.remote && !self.active.is_empty();
        self.sim.now()
            + if looks {
                wait.min(LOOK_EVERY)
            } else {
                wait.min(2_000)
            }
    }
}
