//! What the owner of the table does about one process: commands in, effects out.

use std::{sync::Arc, time::Instant};

use tanako_fleet::{ProcessName, ProcessSpec, process::Probe};

use super::{
    adopt::Known,
    core::{Core, Effect, Input, Memory},
    handle::{Command, SupervisorError, WorkerInput},
    probe,
    process::{Live, Proc},
    procfs::{self, RunTag},
    records::spec_hash,
    signals,
    spawner::Job,
    status::{Desired, Severity, State, SupervisorEvent, kind},
    table::{Internal, Owner},
};
use crate::clock;

impl Owner {
    pub(super) fn command(&mut self, command: Command) {
        let (result, reply) = match command {
            Command::Define(spec, desired, attempt_min, reply) => {
                (self.define(spec, desired, attempt_min), reply)
            }
            Command::Forget(name, reply) => (self.forget(&name), reply),
            Command::Start(name, reply) => (self.ask(&name, Input::Start), reply),
            Command::Stop(name, reply) => (self.ask(&name, Input::Stop), reply),
            Command::Restart(name, attempt, reply) => {
                (self.ask(&name, Input::Restart(attempt)), reply)
            }
            Command::Signal(name, signal, reply) => (self.signal(&name, &signal), reply),
            Command::Worker(name, attempt, input) => return self.worker(&name, attempt, input),
            // The loop sees to it.
            Command::Detach(reply) => (Ok(()), reply),
        };
        // Whoever asked may be gone.
        let _ = reply.send(result);
    }

    fn id(&self, name: &ProcessName) -> Result<usize, SupervisorError> {
        self.names
            .get(name)
            .copied()
            .ok_or_else(|| SupervisorError::Unknown(name.clone()))
    }

    fn ask(&mut self, name: &ProcessName, input: Input) -> Result<(), SupervisorError> {
        let id = self.id(name)?;
        if !matches!(input, Input::Stop)
            && let Some(proc) = self.procs.get_mut(&id)
        {
            // Whoever starts it wants it back.
            proc.forget = false;
        }
        self.apply(id, input);
        Ok(())
    }

    fn define(
        &mut self,
        spec: Arc<ProcessSpec>,
        desired: Desired,
        attempt_min: u64,
    ) -> Result<(), SupervisorError> {
        let id = if let Some(id) = self.names.get(&spec.name) {
            let id = *id;
            if let Some(proc) = self.procs.get_mut(&id) {
                proc.forget = false;
                if **proc.core.spec() != *spec {
                    proc.spec_hash = spec_hash(&spec.on_host(&self.parts.data_dir));
                    self.parts
                        .logs
                        .file(&spec.name, &spec.logs, None)
                        .map_err(|source| log_error(proc, source))?;
                    self.parts.records.define(&spec);
                }
            }
            id
        } else {
            let known = self.orphans.remove(&spec.name);
            self.parts.records.define(&spec);
            self.insert(Arc::clone(&spec), known)?
        };
        if let Some(proc) = self.procs.get_mut(&id)
            && proc.core.count_from(attempt_min)
        {
            (proc.started_ms, proc.ready_ms) = (None, None);
        }
        self.apply(id, Input::Define(spec, desired));
        Ok(())
    }

    /// Puts a process into the table; `known` is what an earlier agent left of it.
    pub(super) fn insert(
        &mut self,
        spec: Arc<ProcessSpec>,
        known: Option<Known>,
    ) -> Result<usize, SupervisorError> {
        let now = Instant::now();
        let name = spec.name.clone();
        let resume = known.as_ref().and_then(|known| known.run.log.clone());
        let log = self
            .parts
            .logs
            .file(&name, &spec.logs, resume.as_ref())
            .map_err(|source| SupervisorError::Io {
                what: "open the log of a process",
                path: name.file_stem().into(),
                source,
            })?;
        let hash = spec_hash(&spec.on_host(&self.parts.data_dir));
        let id = self.next_id;
        self.next_id += 1;
        self.names.insert(name.clone(), id);
        let rng = self.rng.fork();
        let guarded = self.parts.gate.guards(&spec);
        let Some(mut known) = known else {
            let core = Core::new(spec, rng).guarded(guarded);
            let proc = Box::new(Proc::new(name, core, log, hash));
            self.procs.insert(id, proc);
            self.touch(id);
            return Ok(id);
        };
        if known.by_tag_only
            && let Some(found) = &known.found
            && known.run.state == State::Starting
            && procfs::age(found.alive.start_ticks) > spec.ready.timeout
        {
            // It would not have lived that long without having become ready.
            known.run.state = State::Ready;
        }
        let (core, effects) = Core::resume(
            spec,
            Memory {
                guarded,
                ..known.run.memory(now, clock::now_ms())
            },
            known.found.is_some(),
            now,
            rng,
        );
        let mut proc = Proc::new(name.clone(), core, log, hash);
        proc.started_ms = known.run.started_ms;
        proc.ready_ms = known.run.ready_ms;
        if let Some(alive) = known
            .found
            .as_ref()
            .map(|found| &found.alive)
            .or(known.run.process.as_ref())
        {
            proc.nonce = alive.nonce;
            proc.running_hash = alive.spec_hash;
        }
        let attempt = known.run.attempt;
        let (old_nonce, died) = (
            proc.nonce,
            known.found.is_none() && known.run.process.is_some(),
        );
        self.procs.insert(id, Box::new(proc));
        if died {
            self.over.insert(old_nonce, (name.clone(), attempt));
        }
        let mut ended = false;
        if let Some(found) = known.found {
            ended = procfs::stat(found.pid).is_none_or(|stat| stat.state == b'Z');
            let message = format!(
                "taken over, running since before this agent (pid {})",
                found.pid
            );
            self.live(
                id,
                Live {
                    pid: found.pid,
                    pidfd: found.pidfd,
                    start_ticks: found.alive.start_ticks,
                    cgroup: found.alive.cgroup,
                    limits: found.alive.limits,
                    log_from: found.alive.log_from,
                    adopted: true,
                },
            );
            self.event(Severity::Info, kind::ADOPTED, &name, attempt, message);
            self.probe(id);
        }
        for effect in effects {
            self.perform(id, effect);
        }
        self.touch(id);
        if ended {
            // While no agent looked; nobody shall see it as running.
            self.ended(id);
        }
        Ok(id)
    }

    fn forget(&mut self, name: &ProcessName) -> Result<(), SupervisorError> {
        let id = self.id(name)?;
        if let Some(proc) = self.procs.get_mut(&id) {
            proc.forget = true;
        }
        self.apply(id, Input::Stop);
        Ok(())
    }

    fn signal(&mut self, name: &ProcessName, signal: &str) -> Result<(), SupervisorError> {
        let id = self.id(name)?;
        let parsed =
            signals::parse(signal).ok_or_else(|| SupervisorError::BadSignal(signal.to_owned()))?;
        let sent = self
            .procs
            .get(&id)
            .and_then(|proc| proc.live.as_ref())
            .is_some_and(|live| live.signal(parsed));
        if sent {
            Ok(())
        } else {
            Err(SupervisorError::NotRunning(name.clone()))
        }
    }

    fn worker(&mut self, name: &ProcessName, attempt: u64, input: WorkerInput) {
        let Ok(id) = self.id(name) else { return };
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

    /// Lets the policy of a process decide and does what it says.
    pub(super) fn apply(&mut self, id: usize, input: Input) {
        let Some(proc) = self.procs.get_mut(&id) else {
            return;
        };
        let quiet = matches!(
            input,
            Input::Alive(_) | Input::Ready(_) | Input::NotReady(..) | Input::Away | Input::Tick
        );
        let before = (proc.core.state(), proc.core.detail().to_owned());
        let now = Instant::now();
        let effects = proc.core.step(now, input);
        let same =
            effects.is_empty() && before.0 == proc.core.state() && before.1 == proc.core.detail();
        if proc.core.state() == State::Ready && before.0 != State::Ready && proc.ready_ms.is_none()
        {
            proc.ready_ms = Some(clock::now_ms());
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

    /// The process has changed: its deadline, its record, its status.
    fn touch(&mut self, id: usize) {
        self.reschedule(id);
        self.to_record.insert(id);
        self.changed.insert(id);
    }

    fn reschedule(&mut self, id: usize) {
        let Some(proc) = self.procs.get_mut(&id) else {
            return;
        };
        let deadline = proc.core.deadline();
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
        let Some(mut proc) = self.procs.remove(&id) else {
            return;
        };
        proc.end_permit();
        proc.end_probe();
        if let Some(at) = proc.deadline {
            self.deadlines.remove(&(at, id));
        }
        self.names.remove(&proc.name);
        let gone = self.table.remove(&proc.name);
        self.moving -= usize::from(gone.is_some_and(|gone| gone.state.is_moving()));
        self.unpublished = true;
        self.to_record.remove(&id);
        self.parts.records.forget(&proc.name);
        self.parts.logs.forget(&proc.name);
    }

    fn perform(&mut self, id: usize, effect: Effect) {
        let Some(proc) = self.procs.get_mut(&id) else {
            return;
        };
        match effect {
            Effect::Acquire(attempt) => {
                proc.end_permit();
                let wait = self.parts.gate.acquire(proc.core.running_spec(), attempt);
                let internal = self.internal.clone();
                let task = self.parts.tracker.spawn(async move {
                    let answer = wait.await;
                    // The table's task may have ended.
                    let _ = internal.send(Internal::Permit(id, attempt, answer)).await;
                });
                proc.permit = Some(task.abort_handle());
            }
            Effect::Release(_) => proc.end_permit(),
            Effect::Spawn(attempt) => {
                proc.nonce = self.rng.u64(..);
                proc.running_hash = proc.spec_hash;
                let spec = Arc::clone(proc.core.running_spec());
                self.outbox.push(Job {
                    id,
                    tag: RunTag {
                        instance: self.parts.instance,
                        process: proc.name.clone(),
                        attempt,
                        spec_hash: proc.running_hash,
                        nonce: proc.nonce,
                    },
                    log: Arc::clone(&proc.log),
                    spec,
                });
            }
            Effect::Terminate(attempt) if attempt == proc.core.attempt() => {
                if let Some(live) = &proc.live {
                    live.terminate(&proc.core.running_spec().stop.signal);
                }
            }
            Effect::Kill(attempt) if attempt == proc.core.attempt() => {
                if let Some(live) = &proc.live {
                    live.kill_all();
                }
            }
            // Of an attempt that is over.
            Effect::Terminate(_) | Effect::Kill(_) => {}
            Effect::Event(severity, kind, attempt, mut message) => {
                if kind == kind::STARTED
                    && let Some(live) = &proc.live
                {
                    message = format!("{message} (pid {})", live.pid);
                }
                let name = proc.name.clone();
                self.event(severity, kind, &name, attempt, message);
            }
        }
    }

    /// Starts the probe that the agent runs itself, if the process has one.
    pub(super) fn probe(&mut self, id: usize) {
        let Some(proc) = self.procs.get_mut(&id) else {
            return;
        };
        let Some(live) = &proc.live else { return };
        let attempt = proc.core.attempt();
        let internal = self.internal.clone();
        let task = match proc.core.running_spec().ready.probe.clone() {
            Probe::Http { url, interval } => self.parts.tracker.spawn(async move {
                loop {
                    let answer = probe::http(&url).await;
                    let message = Internal::Probe(id, attempt, answer);
                    if internal.send(message).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(interval.max(probe::INTERVAL_MIN)).await;
                }
            }),
            Probe::Log { pattern } if proc.core.state() == State::Starting => {
                let position = proc.log.position(live.log_from);
                let lines = self
                    .parts
                    .logs
                    .follow_position(Arc::clone(&proc.log), position);
                self.parts.tracker.spawn(async move {
                    let answer = probe::log(&pattern, lines).await;
                    let message = Internal::Probe(id, attempt, answer);
                    // The table's task may have ended.
                    let _ = internal.send(message).await;
                })
            }
            _ => return,
        };
        proc.end_probe();
        proc.probe = Some(task.abort_handle());
    }

    pub(super) fn event(
        &mut self,
        severity: Severity,
        kind: &'static str,
        process: &ProcessName,
        attempt: u64,
        message: String,
    ) {
        match severity {
            Severity::Info => {
                tracing::info!(%process, attempt, kind, message, "process");
            }
            Severity::Warning => {
                tracing::warn!(%process, attempt, kind, message, "process");
            }
            Severity::Error => {
                tracing::error!(%process, attempt, kind, message, "process");
            }
        }
        // Nobody may be listening.
        let _ = self.parts.events.send(SupervisorEvent {
            at_ms: clock::now_ms(),
            severity,
            kind,
            process: process.clone(),
            attempt,
            message,
        });
    }
}

fn log_error(proc: &Proc, source: std::io::Error) -> SupervisorError {
    SupervisorError::Io {
        what: "open the log",
        path: proc.log.path().to_owned(),
        source,
    }
}
