//! The task that owns all processes: as `agent/src/supervisor/{table,acting,adopt}.rs`, around the
//! same core.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
};

use tanako_agent::supervisor::{
    Desired, ProcessStatus, State, Table, WorkerInput,
    core::{Core, Effect, Exit, Input},
    records::{Alive, Run},
};
use tanako_fleet::{ProcessName, ProcessSpec, process::Probe};
use tokio::sync::{mpsc, oneshot};

use super::{
    super::{
        executor::WORLD,
        host::{self, Pid, Start},
        trace::trace,
        watch,
        world::Sim,
    },
    Agent,
};

/// The table is published at most this often while a process is on its way somewhere, in milliseconds.
const PUBLISH_EVERY: u64 = 40;
/// And this often while all of them rest.
const PUBLISH_AT_REST: u64 = 4;
/// The loop comes round this often, in milliseconds.
const ROUND: u64 = 1_000;
/// After a pause this long, in milliseconds, the agent itself was away.
const AWAY: u64 = 3_000;

/// Answers a command.
pub type Reply = oneshot::Sender<Result<(), String>>;

/// To the task.
pub enum SupMsg {
    /// A spec, and what is wanted.
    Define(Arc<ProcessSpec>, Desired, Reply),
    /// Stop it and drop it.
    Forget(ProcessName, Reply),
    /// Start, stop or restart it.
    Ask(ProcessName, Order, Reply),
    /// What a worker said.
    Worker(ProcessName, u64, WorkerInput),
    /// A child has ended.
    Exited(Pid),
    /// A start has succeeded or failed.
    Outcome(usize, u64, Result<Pid, String>),
}

/// What the operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Start it.
    Start,
    /// Stop it.
    Stop,
    /// Replace this attempt of it.
    Restart(u64),
}

struct Proc {
    name: ProcessName,
    core: Core,
    live: Option<Pid>,
    nonce: u64,
    running: Arc<ProcessSpec>,
    adopted: bool,
    started_ms: Option<i64>,
    ready_ms: Option<i64>,
    forget: bool,
    deadline: Option<u64>,
}

struct Job {
    id: usize,
    name: ProcessName,
    start: Start,
}

/// State of the task.
pub struct Owner {
    sim: Sim,
    agent: Rc<Agent>,
    publish: watch::Sender<Arc<Table>>,
    procs: BTreeMap<usize, Proc>,
    names: BTreeMap<ProcessName, usize>,
    next_id: usize,
    deadlines: BTreeSet<(u64, usize)>,
    outbox: Vec<Job>,
    to_record: BTreeSet<usize>,
    changed: BTreeSet<usize>,
    table: Table,
    published_at: Option<u64>,
    unpublished: bool,
    /// Processes in the table that are on their way somewhere.
    moving: usize,
    awake_at: u64,
    rng: fastrand::Rng,
}

impl Owner {
    /// Takes over what an earlier life left.
    pub fn new(sim: &Sim, agent: Rc<Agent>, publish: watch::Sender<Arc<Table>>) -> Self {
        let mut owner = Self {
            sim: sim.clone(),
            agent,
            publish,
            procs: BTreeMap::new(),
            names: BTreeMap::new(),
            next_id: 0,
            deadlines: BTreeSet::new(),
            outbox: Vec::new(),
            to_record: BTreeSet::new(),
            changed: BTreeSet::new(),
            table: Table::new(),
            published_at: None,
            unpublished: false,
            moving: 0,
            awake_at: sim.now(),
            rng: sim.fork(),
        };
        let (specs, runs) = {
            let host = sim.host.borrow();
            (host.disk.specs.clone(), host.disk.runs.clone())
        };
        for (name, spec) in specs {
            let known = owner.know(&name, runs.get(&name));
            owner.insert(spec, known);
        }
        owner
    }

    /// What is known of one process: from its record, from the tags of what runs.
    fn know(&self, name: &ProcessName, run: Option<&Run>) -> Option<(Run, Option<Pid>)> {
        let host = self.sim.host.borrow();
        let boot = host.boot();
        let recorded = run
            .and_then(|run| run.process.clone())
            .filter(|alive| alive.boot == boot);
        let by_record = recorded
            .as_ref()
            .and_then(|alive| alive.pid)
            .map(Pid::from)
            .filter(|pid| host.procs.contains_key(pid));
        let recorded_attempt = run.map_or(0, |run| run.attempt);
        let main = host
            .procs
            .iter()
            .filter(|(_, proc)| proc.name == *name)
            .filter(|(_, proc)| {
                recorded
                    .as_ref()
                    .is_none_or(|alive| alive.nonce != proc.nonce || alive.pid.is_none())
            })
            .max_by_key(|(_, proc)| proc.attempt)
            .filter(|(_, proc)| by_record.is_none() || proc.attempt > recorded_attempt);
        let Some((pid, proc)) = main else {
            return run.map(|run| (run.clone(), by_record));
        };
        let mut run = run?.clone();
        let intended = recorded.is_some_and(|alive| alive.nonce == proc.nonce);
        run.attempt = run.attempt.max(proc.attempt);
        if !intended {
            run.state = match run.desired {
                Desired::Running => State::Starting,
                Desired::Stopped => State::Stopping,
            };
        }
        Some((run, Some(*pid)))
    }

    fn insert(&mut self, spec: Arc<ProcessSpec>, known: Option<(Run, Option<Pid>)>) -> usize {
        let now = self.sim.instant();
        let name = spec.name.clone();
        let id = self.next_id;
        self.next_id += 1;
        self.names.insert(name.clone(), id);
        let rng = self.rng.fork();
        let mut proc = Proc {
            name: name.clone(),
            core: Core::new(Arc::clone(&spec), rng.clone()),
            live: None,
            nonce: 0,
            running: Arc::clone(&spec),
            adopted: false,
            started_ms: None,
            ready_ms: None,
            forget: false,
            deadline: None,
        };
        let Some((run, found)) = known else {
            self.procs.insert(id, proc);
            self.touch(id);
            return id;
        };
        let memory = run.memory(now, self.sim.wall_ms());
        let (core, effects) = Core::resume(spec, memory, found.is_some(), now, rng);
        proc.core = core;
        proc.started_ms = run.started_ms;
        proc.ready_ms = run.ready_ms;
        if let Some(alive) = &run.process {
            proc.nonce = alive.nonce;
        }
        self.procs.insert(id, proc);
        if let Some(pid) = found {
            let nonce = self
                .sim
                .host
                .borrow()
                .procs
                .get(&pid)
                .map(|proc| proc.nonce);
            if let (Some(proc), Some(nonce)) = (self.procs.get_mut(&id), nonce) {
                proc.nonce = nonce;
                proc.adopted = true;
            }
            trace!(self.sim, [pid], "agent: {name} is taken over (pid {pid})");
            self.live(id, pid);
        }
        for effect in effects {
            self.perform(id, effect);
        }
        self.touch(id);
        id
    }

    /// Runs until killed.
    pub async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<SupMsg>) {
        let (sim, life) = (self.sim.clone(), self.agent.life);
        loop {
            if !self.to_record.is_empty() {
                Agent::may_die(&sim, life, "supervisor: before its records").await;
            }
            self.write_down();
            if !self.outbox.is_empty() {
                Agent::may_die(&sim, life, "supervisor: between intent and start").await;
            }
            self.submit();
            self.publish();
            let wake = self.wake_at();
            tokio::select! {
                biased;
                message = inbox.recv() => match message {
                    Some(message) => self.take(message),
                    None => return,
                },
                () = sim.sleep_until(wake) => {}
            }
            self.look_up();
            self.expire();
        }
    }

    fn look_up(&mut self) {
        let now = self.sim.now();
        let away = now - std::mem::replace(&mut self.awake_at, now);
        if away > AWAY {
            trace!(self.sim, [away], "supervisor: was away for {away} ms");
            let ids: Vec<usize> = self.procs.keys().copied().collect();
            for id in ids {
                self.apply(id, Input::Away);
            }
        }
    }

    fn wake_at(&self) -> u64 {
        let mut wake = self.sim.now() + ROUND;
        if let Some((at, _)) = self.deadlines.first() {
            wake = wake.min(*at);
        }
        if let (true, Some(at)) = (self.unpublished, self.published_at) {
            wake = wake.min(at + self.publish_every());
        }
        wake
    }

    fn expire(&mut self) {
        while let Some((at, id)) = self.deadlines.first().copied() {
            if at > self.sim.now() {
                break;
            }
            self.deadlines.remove(&(at, id));
            if let Some(proc) = self.procs.get_mut(&id) {
                proc.deadline = None;
                self.apply(id, Input::Tick);
            }
        }
    }

    fn write_down(&mut self) {
        let (now, wall, boot) = (
            self.sim.instant(),
            self.sim.wall_ms(),
            self.sim.host.borrow().boot(),
        );
        for id in std::mem::take(&mut self.to_record) {
            let Some(proc) = self.procs.get(&id) else {
                continue;
            };
            let process = proc.core.is_live().then(|| Alive {
                boot: Arc::clone(&boot),
                pid: proc.live.map(|pid| pid as u32),
                start_ticks: 0,
                nonce: proc.nonce,
                spec_hash: 0,
                cgroup: None,
                log_from: 0,
                limits: String::new(),
            });
            let mut run = Run::new(proc.name.clone(), proc.core.memory(), process, now, wall);
            run.started_ms = proc.started_ms;
            run.ready_ms = proc.ready_ms;
            let mut host = self.sim.host.borrow_mut();
            host.disk.runs.insert(proc.name.clone(), run);
        }
    }

    fn submit(&mut self) {
        for job in std::mem::take(&mut self.outbox) {
            let (sim, agent) = (self.sim.clone(), Rc::clone(&self.agent));
            let attempt = job.start.attempt;
            self.sim.spawn(self.agent.group, async move {
                sim.sleep(sim.draw(0..=8)).await;
                let result = if sim.weather.borrow().spawn_fails > sim.now() {
                    Err("no such file".to_owned())
                } else {
                    sim.judge.borrow_mut().starts(sim.now(), &job.name);
                    Ok(host::spawn(&sim, job.start, agent.life))
                };
                sim.sleep(sim.draw(0..=4)).await;
                // The table's task may have ended.
                let _ = agent
                    .supervisor
                    .send(SupMsg::Outcome(job.id, attempt, result));
            });
        }
    }

    fn publish(&mut self) {
        let now = self.sim.now();
        let wall = self.sim.wall_ms();
        for id in std::mem::take(&mut self.changed) {
            if let Some(proc) = self.procs.get(&id) {
                let status = status(proc, wall);
                self.moving += usize::from(status.state.is_moving());
                let old = self.table.insert(proc.name.clone(), Arc::new(status));
                self.moving -= usize::from(old.is_some_and(|old| old.state.is_moving()));
                self.unpublished = true;
            }
        }
        let every = self.publish_every();
        let is_time = self.published_at.is_none_or(|at| now >= at + every);
        if self.unpublished && is_time {
            self.unpublished = false;
            self.published_at = Some(now);
            self.publish.send_replace(Arc::new(self.table.clone()));
            self.sim.touch();
        }
    }

    fn publish_every(&self) -> u64 {
        if self.moving == 0 {
            PUBLISH_AT_REST
        } else {
            PUBLISH_EVERY
        }
    }

    fn take(&mut self, message: SupMsg) {
        let (result, reply) = match message {
            SupMsg::Define(spec, desired, reply) => {
                let id = self.define(&spec);
                self.apply(id, Input::Define(spec, desired));
                (Ok(()), reply)
            }
            SupMsg::Forget(name, reply) => {
                let id = self.names.get(&name).copied();
                if let Some(id) = id {
                    if let Some(proc) = self.procs.get_mut(&id) {
                        proc.forget = true;
                    }
                    self.apply(id, Input::Stop);
                }
                (Ok(()), reply)
            }
            SupMsg::Ask(name, order, reply) => {
                let Some(id) = self.names.get(&name).copied() else {
                    let _ = reply.send(Err(format!("no process {name}")));
                    return;
                };
                let input = match order {
                    Order::Start => Input::Start,
                    Order::Stop => Input::Stop,
                    Order::Restart(attempt) => Input::Restart(attempt),
                };
                if order != Order::Stop
                    && let Some(proc) = self.procs.get_mut(&id)
                {
                    proc.forget = false;
                }
                self.apply(id, input);
                (Ok(()), reply)
            }
            SupMsg::Worker(name, attempt, input) => return self.worker(&name, attempt, input),
            SupMsg::Exited(pid) => return self.exited(pid),
            SupMsg::Outcome(id, attempt, result) => return self.outcome(id, attempt, result),
        };
        // Whoever asked may be gone.
        let _ = reply.send(result);
    }

    fn define(&mut self, spec: &Arc<ProcessSpec>) -> usize {
        let mut changed = true;
        let id = if let Some(id) = self.names.get(&spec.name).copied() {
            if let Some(proc) = self.procs.get_mut(&id) {
                proc.forget = false;
                changed = **proc.core.spec() != **spec;
            }
            id
        } else {
            let known = self.know(&spec.name, None);
            self.insert(Arc::clone(spec), known)
        };
        if changed {
            let mut host = self.sim.host.borrow_mut();
            host.disk.specs.insert(spec.name.clone(), Arc::clone(spec));
        }
        id
    }

    fn worker(&mut self, name: &ProcessName, attempt: u64, input: WorkerInput) {
        let Some(id) = self.names.get(name).copied() else {
            return;
        };
        let by_worker = self
            .procs
            .get(&id)
            .is_some_and(|proc| proc.core.running_spec().ready.probe == Probe::Worker);
        let input = match input {
            WorkerInput::Ready if by_worker => {
                self.apply(id, Input::Alive(attempt));
                Input::Ready(attempt)
            }
            WorkerInput::NotReady(why) if by_worker => Input::NotReady(attempt, why),
            WorkerInput::Draining => Input::Draining(attempt),
            _ => Input::Alive(attempt),
        };
        self.apply(id, input);
    }

    fn exited(&mut self, pid: Pid) {
        let found = self
            .procs
            .iter()
            .find(|(_, proc)| proc.live == Some(pid))
            .map(|(id, _)| *id);
        if let Some(id) = found {
            self.ended(id, pid);
        }
    }

    fn ended(&mut self, id: usize, pid: Pid) {
        let exit = self.sim.host.borrow().wait(pid).unwrap_or(Exit::Unknown);
        let Some(proc) = self.procs.get_mut(&id) else {
            return;
        };
        proc.live = None;
        let attempt = proc.core.attempt();
        self.apply(id, Input::Exited(attempt, exit));
    }

    fn outcome(&mut self, id: usize, attempt: u64, result: Result<Pid, String>) {
        if !self.procs.contains_key(&id) {
            return;
        }
        match result {
            Err(why) => self.apply(id, Input::SpawnFailed(attempt, why)),
            Ok(pid) => {
                if let Some(proc) = self.procs.get_mut(&id) {
                    proc.started_ms = Some(self.sim.wall_ms());
                    proc.ready_ms = None;
                }
                self.live(id, pid);
                self.apply(id, Input::Spawned(attempt));
            }
        }
    }

    fn live(&mut self, id: usize, pid: Pid) {
        if let Some(proc) = self.procs.get_mut(&id) {
            proc.live = Some(pid);
        }
        if !self.sim.host.borrow().procs.contains_key(&pid) {
            // It has ended meanwhile: the pidfd says so at once.
            let agent = Rc::clone(&self.agent);
            let _ = agent.supervisor.send(SupMsg::Exited(pid));
        }
    }

    fn apply(&mut self, id: usize, input: Input) {
        let Some(proc) = self.procs.get_mut(&id) else {
            return;
        };
        let quiet = matches!(
            input,
            Input::Alive(_) | Input::Ready(_) | Input::NotReady(..) | Input::Away | Input::Tick
        );
        let before = (proc.core.state(), proc.core.detail().to_owned());
        let effects = proc.core.step(self.sim.instant(), input);
        let same =
            effects.is_empty() && before.0 == proc.core.state() && before.1 == proc.core.detail();
        if before.0 != proc.core.state() {
            let (name, state) = (&proc.name, proc.core.state());
            trace!(
                self.sim,
                [id, state as u64],
                "supervisor: {name} {} -> {state} ({})",
                before.0,
                proc.core.detail()
            );
            if state == State::Ready && proc.ready_ms.is_none() {
                proc.ready_ms = Some(self.sim.wall_ms());
            }
            if state == State::Failed {
                self.sim.judge.borrow_mut().gave_up(name);
            }
        }
        for effect in effects {
            self.perform(id, effect);
        }
        if quiet && same {
            self.reschedule(id);
        } else {
            self.touch(id);
        }
        let gone = self
            .procs
            .get(&id)
            .is_some_and(|proc| proc.forget && !proc.core.is_live());
        if gone {
            self.remove(id);
        }
    }

    fn touch(&mut self, id: usize) {
        self.reschedule(id);
        self.to_record.insert(id);
        self.changed.insert(id);
    }

    fn reschedule(&mut self, id: usize) {
        let Some(proc) = self.procs.get_mut(&id) else {
            return;
        };
        let deadline = proc.core.deadline().map(|at| self.sim.at(at));
        if deadline == proc.deadline {
            return;
        }
        if let Some(old) = std::mem::replace(&mut proc.deadline, deadline) {
            self.deadlines.remove(&(old, id));
        }
        if let Some(new) = deadline {
            self.deadlines.insert((new, id));
        }
    }

    fn remove(&mut self, id: usize) {
        let Some(proc) = self.procs.remove(&id) else {
            return;
        };
        if let Some(at) = proc.deadline {
            self.deadlines.remove(&(at, id));
        }
        self.names.remove(&proc.name);
        let old = self.table.remove(&proc.name);
        self.moving -= usize::from(old.is_some_and(|old| old.state.is_moving()));
        self.unpublished = true;
        self.to_record.remove(&id);
        let mut host = self.sim.host.borrow_mut();
        host.disk.specs.remove(&proc.name);
        host.disk.runs.remove(&proc.name);
    }

    fn perform(&mut self, id: usize, effect: Effect) {
        let Some(proc) = self.procs.get_mut(&id) else {
            return;
        };
        match effect {
            // Our own bot asks for its permits itself.
            Effect::Acquire(_) | Effect::Release(_) => {}
            Effect::Spawn(attempt) => {
                proc.nonce = self.rng.u64(..);
                proc.running = Arc::clone(proc.core.running_spec());
                self.outbox.push(Job {
                    id,
                    name: proc.name.clone(),
                    start: Start {
                        spec: Arc::clone(&proc.running),
                        attempt,
                        nonce: proc.nonce,
                    },
                });
            }
            Effect::Terminate(attempt) if attempt == proc.core.attempt() => {
                if let Some(pid) = proc.live {
                    let why = proc.core.detail().to_owned();
                    super::super::judge::terminated(&self.sim, &proc.name, attempt, &why);
                    host::terminate(&self.sim, pid);
                }
            }
            Effect::Kill(attempt) if attempt == proc.core.attempt() => {
                if let Some(pid) = proc.live {
                    let sim = self.sim.clone();
                    // The kernel takes its time.
                    self.sim.spawn(WORLD, async move {
                        sim.sleep(sim.draw(0..=3)).await;
                        host::end(&sim, pid, Exit::Signal(9));
                    });
                }
            }
            Effect::Terminate(_) | Effect::Kill(_) => {}
            Effect::Event(_, kind, attempt, message) => {
                trace!(
                    self.sim,
                    [id, attempt],
                    "event: {} {kind}: {message}",
                    proc.name
                );
            }
        }
    }
}

fn status(proc: &Proc, _wall: i64) -> ProcessStatus {
    let (core, spec) = (&proc.core, proc.core.spec());
    let state = core.state();
    ProcessStatus {
        name: proc.name.clone(),
        kind: spec.kind,
        state,
        ready: state == State::Ready,
        desired: core.desired(),
        pid: proc.live.map(|pid| pid as u32),
        attempt: core.attempt(),
        restarts: core.restarts(),
        started_at_ms: proc.started_ms,
        ready_at_ms: proc.ready_ms,
        next_start_at_ms: None,
        detail: core.detail().to_owned(),
        last_exit: core.last_exit().to_owned(),
        shard_ids: spec.shard_ids.clone(),
        shard_count: spec.shard_count,
        adopted: proc.adopted,
        needs_restart: core.is_live() && *proc.running != **spec,
        log_lines: 0,
        log_bytes: 0,
        limits: String::new(),
        spec: Arc::clone(spec),
    }
}
