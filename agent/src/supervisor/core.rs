//! The policy of one process: a pure state machine. No IO, no clock, no randomness of its own.
//!
//! `attempt`, not the pid, labels every input that comes from a run, so that what an earlier run
//! left behind falls away. An attempt begins with [`Effect::Acquire`] or [`Effect::Spawn`] and ends
//! with exactly one [`Input::Exited`], [`Input::SpawnFailed`] or refused permit that counts; until
//! then no other attempt begins. That is what keeps two runs of one process apart.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tanako_fleet::{
    ProcessSpec,
    process::{Probe, RestartWhen},
};

use super::{
    backoff::{Failures, Verdict},
    status::{Desired, Severity, State, kind},
};

/// The grace of a process that hangs: it has already had its watchdog's time.
const HUNG_GRACE_MAX: Duration = Duration::from_secs(5);
/// SIGKILL is sent again this often while a process refuses to go (it may sit in the kernel).
const KILL_AGAIN: Duration = Duration::from_secs(5);

/// So long processes are listened to, after the agent was away, before anyone is taken for silent.
const HEARD_WITHIN: Duration = Duration::from_secs(5);

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It was not the agent's own child.
    Unknown,
}

impl Exit {
    fn is_success(self) -> bool {
        self == Self::Code(0)
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(number) => match super::signals::name(*number) {
                Some(name) => write!(f, "signal {name}"),
                None => write!(f, "signal {number}"),
            },
            Self::Unknown => f.write_str("status unknown"),
        }
    }
}

/// What happens to a process.
#[derive(Debug, Clone)]
pub enum Input {
    /// Its spec is new or changed, or what is wanted of it.
    Define(Arc<ProcessSpec>, Desired),
    /// The operator starts it.
    Start,
    /// The operator stops it.
    Stop,
    /// This attempt shall be replaced by a new one. Where another is the latest by now, the order
    /// comes late or again, and there is nothing left to do.
    Restart(u64),
    /// The gate let it pass, or refused.
    Permit(u64, Result<(), String>),
    /// It runs.
    Spawned(u64),
    /// It could not be started.
    SpawnFailed(u64, String),
    /// It has ended.
    Exited(u64, Exit),
    /// It says or shows that it is ready.
    Ready(u64),
    /// It says or shows that it is not.
    NotReady(u64, String),
    /// It gave a sign of life.
    Alive(u64),
    /// It says that it finishes its work.
    Draining(u64),
    /// It used more than it may; why in words.
    OverLimit(u64, String),
    /// The agent itself was away for a while: stopped, starved or suspended.
    Away,
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask the gate; answer with [`Input::Permit`].
    Acquire(u64),
    /// Ask the gate no longer.
    Release(u64),
    /// Start it; answer with [`Input::Spawned`] or [`Input::SpawnFailed`].
    Spawn(u64),
    /// Send the stop signal of its spec to the process itself.
    Terminate(u64),
    /// Send SIGKILL to its whole group (and cgroup).
    Kill(u64),
    /// Tell the operator.
    Event(Severity, &'static str, u64, String),
}

/// What follows a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Stopped, as the operator wanted.
    Rest,
    /// A new start at once, as the operator wanted.
    Start,
    /// The restart policy: the agent stopped it because it failed.
    Recover,
}

#[derive(Debug, Clone)]
enum Phase {
    Stopped,
    Failed,
    Backoff {
        until: Instant,
    },
    /// At the gate.
    Waiting,
    /// With the spawner. Can only be told to stop once it has been spawned.
    Spawning {
        then: Option<Then>,
    },
    Starting {
        since: Instant,
    },
    /// Alive; ready or not.
    Up {
        ready: bool,
        ready_since: Instant,
        alive_at: Instant,
    },
    /// Alive and finishing by itself.
    Draining {
        alive_at: Instant,
    },
    Stopping {
        then: Then,
        kill_at: Instant,
        killed: bool,
        draining: bool,
    },
}

/// What survives the agent.
#[derive(Debug, Clone)]
pub struct Memory {
    /// What was asked for.
    pub desired: Desired,
    /// Number of the latest start.
    pub attempt: u64,
    /// Starts that nobody asked for.
    pub restarts: u64,
    /// What the restart policy remembers.
    pub failures: Failures,
    /// Where it was in its life.
    pub state: State,
    /// When it was to be started next.
    pub next_start_at: Option<Instant>,
    /// Why it was in that state.
    pub detail: String,
    /// How its latest run ended.
    pub last_exit: String,
    /// Each start waits for a permit, whatever its spec says. Of the agent, not of the process.
    pub guarded: bool,
}

/// One process.
#[derive(Debug)]
pub struct Core {
    spec: Arc<ProcessSpec>,
    /// The spec that the latest attempt was started from.
    running: Arc<ProcessSpec>,
    desired: Desired,
    phase: Phase,
    attempt: u64,
    restarts: u64,
    failures: Failures,
    detail: String,
    last_exit: String,
    /// Each start waits for a permit, whatever its spec says.
    guarded: bool,
    rng: fastrand::Rng,
    effects: Vec<Effect>,
}

impl Core {
    /// A process that has never run.
    pub fn new(spec: Arc<ProcessSpec>, rng: fastrand::Rng) -> Self {
        Self {
            running: Arc::clone(&spec),
            spec,
            desired: Desired::Stopped,
            phase: Phase::Stopped,
            attempt: 0,
            restarts: 0,
            failures: Failures::default(),
            detail: String::new(),
            last_exit: String::new(),
            guarded: false,
            rng,
            effects: Vec::new(),
        }
    }

    /// Makes each of its starts wait for a permit, whatever its spec says.
    #[must_use]
    pub fn guarded(mut self, guarded: bool) -> Self {
        self.guarded = guarded;
        self
    }

    /// A process as an earlier agent left it. `alive`: its latest attempt still runs. Whatever that
    /// attempt was doing gets its full time again: the agent cannot know what it missed meanwhile.
    pub fn resume(
        spec: Arc<ProcessSpec>,
        memory: Memory,
        alive: bool,
        now: Instant,
        rng: fastrand::Rng,
    ) -> (Self, Vec<Effect>) {
        let mut core = Self::new(spec, rng).guarded(memory.guarded);
        core.desired = memory.desired;
        core.attempt = memory.attempt;
        core.restarts = memory.restarts;
        core.failures = memory.failures;
        core.detail = memory.detail;
        core.last_exit = memory.last_exit;
        let up = |ready| Phase::Up {
            ready,
            ready_since: now,
            alive_at: now,
        };
        core.phase = match (memory.state, alive) {
            (State::Ready, true) => up(true),
            (State::Running, true) => up(false),
            (State::Draining, true) => Phase::Draining { alive_at: now },
            (State::Stopped | State::Stopping | State::Failed, true) => {
                let then = match (memory.desired, memory.state) {
                    (Desired::Running, State::Stopping) => Then::Start,
                    (Desired::Running, _) => Then::Recover,
                    (Desired::Stopped, _) => Then::Rest,
                };
                let detail = core.detail.clone();
                core.begin_stop(now, then, None);
                core.detail = detail;
                core.phase.clone()
            }
            (State::Starting | State::Backoff, true) => Phase::Starting { since: now },
            (State::Failed, false) => Phase::Failed,
            (State::Backoff, false) => Phase::Backoff {
                // Written down on the wall clock, which may have been set back since.
                until: memory
                    .next_start_at
                    .map_or(now, |at| at.min(now + core.spec.restart.backoff_max)),
            },
            (State::Stopped, false) => Phase::Stopped,
            // It ended while no agent looked: how is unknown.
            (State::Stopping, false) if memory.desired == Desired::Running => {
                core.begin_start(now);
                core.phase.clone()
            }
            (State::Stopping, false) => {
                core.detail.clear();
                Phase::Stopped
            }
            (_, false) if memory.desired == Desired::Stopped => Phase::Stopped,
            (_, false) => {
                core.last_exit = Exit::Unknown.to_string();
                core.event(
                    Severity::Warning,
                    kind::EXITED,
                    "ended while the agent was away (status unknown)".to_owned(),
                );
                core.fail(now, "ended while the agent was away", true);
                core.phase.clone()
            }
        };
        let effects = std::mem::take(&mut core.effects);
        (core, effects)
    }

    /// Its next attempt has a higher number than `attempt`, unless one is under way. Whether its latest
    /// attempt is another host's now.
    pub fn count_from(&mut self, attempt: u64) -> bool {
        let down = matches!(
            self.phase,
            Phase::Stopped | Phase::Failed | Phase::Backoff { .. }
        );
        let raised = down && attempt > self.attempt;
        if raised {
            self.attempt = attempt;
        }
        raised
    }

    /// Takes in what happened and says what to do.
    pub fn step(&mut self, now: Instant, input: Input) -> Vec<Effect> {
        match input {
            Input::Define(spec, desired) => self.define(now, spec, desired),
            Input::Start => self.start(now),
            Input::Stop => self.stop(now),
            Input::Restart(attempt) if attempt == self.attempt => self.restart(now),
            Input::Permit(attempt, answer) if attempt == self.attempt => self.permit(now, answer),
            Input::Spawned(attempt) if attempt == self.attempt => self.spawned(now),
            Input::SpawnFailed(attempt, why) if attempt == self.attempt => {
                self.spawn_failed(now, &why);
            }
            Input::Exited(attempt, exit) if attempt == self.attempt => self.exited(now, exit),
            Input::Ready(attempt) if attempt == self.attempt => self.ready(now),
            Input::NotReady(attempt, why) if attempt == self.attempt => self.not_ready(now, why),
            Input::Alive(attempt) if attempt == self.attempt => self.alive(now),
            Input::Draining(attempt) if attempt == self.attempt => self.draining(now),
            Input::OverLimit(attempt, why) if attempt == self.attempt => {
                if matches!(
                    self.phase,
                    Phase::Starting { .. } | Phase::Up { .. } | Phase::Draining { .. }
                ) {
                    self.event(Severity::Error, kind::MEMORY, why.clone());
                    self.begin_stop(now, Then::Recover, Some(HUNG_GRACE_MAX));
                    self.detail = why;
                }
            }
            Input::Away => self.away(now),
            Input::Tick => self.tick(now),
            // Of an attempt that is over.
            _ => {}
        }
        std::mem::take(&mut self.effects)
    }

    /// When to send [`Input::Tick`].
    pub fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Stopped | Phase::Failed | Phase::Waiting | Phase::Spawning { .. } => None,
            Phase::Backoff { until } => Some(*until),
            Phase::Starting { since } => {
                let timeout = *since + self.running.ready.timeout;
                match self.running.ready.probe {
                    Probe::Started { after } => Some(*since + after),
                    _ => Some(timeout),
                }
            }
            Phase::Up { alive_at, .. } | Phase::Draining { alive_at } => {
                self.running.watchdog.map(|silence| *alive_at + silence)
            }
            Phase::Stopping { kill_at, .. } => Some(*kill_at),
        }
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        match &self.phase {
            Phase::Stopped => State::Stopped,
            Phase::Failed => State::Failed,
            Phase::Backoff { .. } => State::Backoff,
            Phase::Spawning { then: Some(_) } => State::Stopping,
            Phase::Waiting | Phase::Spawning { .. } | Phase::Starting { .. } => State::Starting,
            Phase::Up { ready: true, .. } => State::Ready,
            Phase::Up { ready: false, .. } => State::Running,
            Phase::Draining { .. } | Phase::Stopping { draining: true, .. } => State::Draining,
            Phase::Stopping { .. } => State::Stopping,
        }
    }

    /// Whether a run of the current attempt exists, or may exist.
    pub fn is_live(&self) -> bool {
        !matches!(
            self.phase,
            Phase::Stopped | Phase::Failed | Phase::Backoff { .. } | Phase::Waiting
        )
    }

    /// What an agent after this one must know. A stop that is under way is written down as such.
    pub fn memory(&self) -> Memory {
        Memory {
            guarded: self.guarded,
            desired: self.desired,
            attempt: self.attempt,
            restarts: self.restarts,
            failures: self.failures.clone(),
            state: match self.phase {
                Phase::Stopping { then, .. } if then != Then::Recover => State::Stopping,
                // A failed run that is being put down: if it lives on, it has to prove itself again;
                // if not, the policy decides.
                Phase::Stopping { .. } => State::Starting,
                // Nothing has been started yet.
                Phase::Waiting => State::Backoff,
                _ => self.state(),
            },
            next_start_at: self.next_start_at(),
            detail: self.detail.clone(),
            last_exit: self.last_exit.clone(),
        }
    }

    /// When it is started next by itself.
    pub fn next_start_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Backoff { until } => Some(until),
            _ => None,
        }
    }

    /// The spec of its next attempt.
    pub fn spec(&self) -> &Arc<ProcessSpec> {
        &self.spec
    }

    /// The spec of the latest attempt.
    pub fn running_spec(&self) -> &Arc<ProcessSpec> {
        &self.running
    }

    /// What is asked for.
    pub fn desired(&self) -> Desired {
        self.desired
    }

    /// Number of its latest start; 0 = never started.
    pub fn attempt(&self) -> u64 {
        self.attempt
    }

    /// Starts that nobody asked for.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Why it is in its state, in words.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// How its latest run ended, in words.
    pub fn last_exit(&self) -> &str {
        &self.last_exit
    }

    fn define(&mut self, now: Instant, spec: Arc<ProcessSpec>, desired: Desired) {
        let changed = *self.spec != *spec;
        if changed {
            self.spec = spec;
            // What failed by the old spec gets a new chance by the new one.
            if matches!(self.phase, Phase::Failed | Phase::Backoff { .. }) {
                self.failures.clear();
                self.phase = Phase::Stopped;
                self.detail.clear();
                if desired == Desired::Running {
                    self.desired = Desired::Running;
                    self.begin_start(now);
                }
            }
        }
        match (self.desired, desired) {
            (_, Desired::Stopped) if self.desired == Desired::Running => self.stop(now),
            (Desired::Stopped, Desired::Running) => self.start(now),
            _ => {}
        }
    }

    fn start(&mut self, now: Instant) {
        self.desired = Desired::Running;
        match &mut self.phase {
            Phase::Stopped | Phase::Failed | Phase::Backoff { .. } => {
                self.failures.clear();
                self.begin_start(now);
            }
            Phase::Spawning { then } => *then = None,
            Phase::Stopping { then, .. } => {
                self.failures.clear();
                *then = Then::Start;
            }
            Phase::Waiting | Phase::Starting { .. } | Phase::Up { .. } | Phase::Draining { .. } => {
            }
        }
    }

    fn stop(&mut self, now: Instant) {
        self.desired = Desired::Stopped;
        match &mut self.phase {
            Phase::Stopped => self.detail.clear(),
            Phase::Failed | Phase::Backoff { .. } => {
                self.phase = Phase::Stopped;
                self.detail.clear();
            }
            Phase::Waiting => {
                self.phase = Phase::Stopped;
                self.detail.clear();
                self.effects.push(Effect::Release(self.attempt));
            }
            Phase::Spawning { then } => *then = Some(Then::Rest),
            Phase::Stopping { then, .. } => *then = Then::Rest,
            Phase::Starting { .. } | Phase::Up { .. } | Phase::Draining { .. } => {
                self.begin_stop(now, Then::Rest, None);
            }
        }
    }

    fn restart(&mut self, now: Instant) {
        self.desired = Desired::Running;
        self.failures.clear();
        match &mut self.phase {
            Phase::Stopped | Phase::Failed | Phase::Backoff { .. } => self.begin_start(now),
            // A new attempt even so: by its number the order is known to have been carried out.
            Phase::Waiting => {
                self.effects.push(Effect::Release(self.attempt));
                self.begin_start(now);
            }
            Phase::Spawning { then } => *then = Some(Then::Start),
            Phase::Stopping { then, .. } => *then = Then::Start,
            Phase::Starting { .. } | Phase::Up { .. } | Phase::Draining { .. } => {
                self.begin_stop(now, Then::Start, None);
            }
        }
    }

    fn begin_start(&mut self, _now: Instant) {
        self.attempt += 1;
        self.running = Arc::clone(&self.spec);
        if self.spec.gated || self.guarded {
            if self.spec.gated {
                "waiting for its turn to identify"
            } else {
                "waiting for the lease of this host"
            }
            .clone_into(&mut self.detail);
            self.phase = Phase::Waiting;
            self.effects.push(Effect::Acquire(self.attempt));
        } else {
            self.detail.clear();
            self.phase = Phase::Spawning { then: None };
            self.effects.push(Effect::Spawn(self.attempt));
        }
    }

    fn begin_stop(&mut self, now: Instant, then: Then, grace_max: Option<Duration>) {
        let grace = self
            .running
            .stop
            .grace
            .min(grace_max.unwrap_or(Duration::MAX));
        self.phase = Phase::Stopping {
            then,
            kill_at: now + grace,
            killed: false,
            draining: false,
        };
        self.detail.clear();
        self.effects.push(Effect::Terminate(self.attempt));
    }

    fn permit(&mut self, now: Instant, answer: Result<(), String>) {
        if !matches!(self.phase, Phase::Waiting) {
            return;
        }
        match answer {
            Ok(()) => {
                self.detail.clear();
                self.phase = Phase::Spawning { then: None };
                self.effects.push(Effect::Spawn(self.attempt));
            }
            Err(why) => self.spawn_failed(now, &why),
        }
    }

    fn spawned(&mut self, now: Instant) {
        let Phase::Spawning { then } = self.phase else {
            return;
        };
        self.event(Severity::Info, kind::STARTED, "started".to_owned());
        self.phase = Phase::Starting { since: now };
        match then {
            Some(then) => self.begin_stop(now, then, None),
            None => self.tick(now),
        }
    }

    fn spawn_failed(&mut self, now: Instant, why: &str) {
        let then = match self.phase {
            Phase::Waiting => None,
            Phase::Spawning { then } => then,
            _ => return,
        };
        self.event(Severity::Error, kind::START_FAILED, why.to_owned());
        match then {
            Some(Then::Rest) => {
                self.phase = Phase::Stopped;
                self.detail.clear();
            }
            Some(Then::Start) => self.begin_start(now),
            _ => self.fail(now, &format!("could not be started: {why}"), false),
        }
    }

    fn exited(&mut self, now: Instant, exit: Exit) {
        let was = self.state();
        let (then, ready_since) = match &self.phase {
            // An exit may be seen before the word that it was spawned.
            Phase::Spawning { then } => (*then, None),
            Phase::Starting { .. } | Phase::Draining { .. } => (None, None),
            Phase::Up { ready_since, .. } => (None, Some(*ready_since)),
            Phase::Stopping { then, .. } => (Some(*then), None),
            Phase::Stopped | Phase::Failed | Phase::Backoff { .. } | Phase::Waiting => return,
        };
        self.last_exit = exit.to_string();
        if ready_since
            .is_some_and(|at| now.saturating_duration_since(at) >= self.running.restart.reset_after)
        {
            self.failures.in_a_row = 0;
        }
        match then {
            Some(Then::Rest) => {
                self.event(Severity::Info, kind::STOPPED, format!("stopped ({exit})"));
                self.phase = Phase::Stopped;
                self.detail.clear();
            }
            Some(Then::Start) => {
                self.event(
                    Severity::Info,
                    kind::STOPPED,
                    format!("stopped to be started again ({exit})"),
                );
                self.begin_start(now);
            }
            Some(Then::Recover) => {
                let why = std::mem::take(&mut self.detail);
                self.fail(now, &why, true);
            }
            None => {
                let success = exit.is_success();
                let severity = if success {
                    Severity::Info
                } else {
                    Severity::Warning
                };
                self.event(
                    severity,
                    kind::EXITED,
                    format!("ended by itself while {was} ({exit})"),
                );
                let finished = success && self.running.restart.when != RestartWhen::Always;
                if finished {
                    self.phase = Phase::Stopped;
                    "finished (exit code 0); its policy does not start it again"
                        .clone_into(&mut self.detail);
                } else {
                    self.fail(now, &format!("ended with {exit}"), true);
                }
            }
        }
    }

    /// A run has failed; `why` in words.
    fn fail(&mut self, now: Instant, why: &str, spawned: bool) {
        if self.desired == Desired::Stopped {
            self.phase = Phase::Stopped;
            self.detail.clear();
            return;
        }
        if self.spec.restart.when == RestartWhen::Never {
            self.phase = Phase::Failed;
            self.detail = format!("{why}; its policy does not start it again");
            self.event(Severity::Error, kind::GAVE_UP, self.detail.clone());
            return;
        }
        match self
            .failures
            .record(now, &self.spec.restart, spawned, &mut self.rng)
        {
            Verdict::AtOnce => {
                self.restarts += 1;
                self.begin_start(now);
            }
            Verdict::After(wait) => {
                self.phase = Phase::Backoff { until: now + wait };
                why.clone_into(&mut self.detail);
                self.event(
                    Severity::Warning,
                    kind::BACKOFF,
                    format!(
                        "{why}; next start in {:.1} s (failure {} in a row)",
                        wait.as_secs_f64(),
                        self.failures.in_a_row
                    ),
                );
            }
            Verdict::GiveUp(times) => {
                self.phase = Phase::Failed;
                self.detail = format!(
                    "crash loop: {times} failed runs within {} s, the last one {why}; fix the \
                     cause, then start it by hand",
                    self.spec.restart.crash_loop_window.as_secs_f64()
                );
                self.event(Severity::Error, kind::CRASH_LOOP, self.detail.clone());
            }
        }
    }

    fn ready(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Starting { .. } => {
                self.phase = Phase::Up {
                    ready: true,
                    ready_since: now,
                    alive_at: now,
                };
            }
            Phase::Up {
                ready: ready @ false,
                ready_since,
                alive_at,
            } => {
                *ready = true;
                *ready_since = now;
                *alive_at = now;
            }
            _ => return self.alive(now),
        }
        self.detail.clear();
        self.event(Severity::Info, kind::READY, "ready".to_owned());
    }

    fn not_ready(&mut self, now: Instant, why: String) {
        match &mut self.phase {
            Phase::Starting { .. } => self.detail = why,
            Phase::Up { ready, .. } => {
                if std::mem::replace(ready, false) {
                    self.event(
                        Severity::Warning,
                        kind::NOT_READY,
                        format!("no longer ready: {why}"),
                    );
                }
                self.detail = why;
            }
            _ => {}
        }
        // A probe that fails is no sign of life; a worker that says so itself is one.
        if matches!(self.running.ready.probe, Probe::Worker | Probe::Notify) {
            self.alive(now);
        }
    }

    fn alive(&mut self, now: Instant) {
        if let Phase::Up { alive_at, .. } | Phase::Draining { alive_at } = &mut self.phase {
            *alive_at = now;
        }
    }

    fn draining(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Starting { .. } | Phase::Up { .. } => {
                self.phase = Phase::Draining { alive_at: now };
                "finishing its work".clone_into(&mut self.detail);
            }
            Phase::Stopping { draining, .. } => *draining = true,
            _ => {}
        }
    }

    fn tick(&mut self, now: Instant) {
        if self.deadline().is_none_or(|at| now < at) {
            return;
        }
        match &mut self.phase {
            Phase::Backoff { .. } => {
                self.restarts += 1;
                self.begin_start(now);
            }
            Phase::Starting { .. } => {
                if matches!(self.running.ready.probe, Probe::Started { .. }) {
                    return self.ready(now);
                }
                let waited = self.running.ready.timeout.as_secs_f64();
                let probe = probe_words(&self.running.ready.probe);
                let last = if self.detail.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", self.detail)
                };
                let why = format!("not ready within {waited} s: {probe}{last}");
                self.event(Severity::Error, kind::READY_TIMEOUT, why.clone());
                self.begin_stop(now, Then::Recover, None);
                self.detail = why;
            }
            Phase::Up { .. } | Phase::Draining { .. } => {
                let silence = self.running.watchdog.unwrap_or_default().as_secs_f64();
                let why = format!("no sign of life for {silence} s");
                self.event(
                    Severity::Error,
                    kind::WATCHDOG,
                    format!("{why}: it is restarted"),
                );
                self.begin_stop(now, Then::Recover, Some(HUNG_GRACE_MAX));
                self.detail = why;
            }
            Phase::Stopping {
                kill_at, killed, ..
            } => {
                *kill_at = now + KILL_AGAIN;
                if !std::mem::replace(killed, true) {
                    self.event(
                        Severity::Warning,
                        kind::KILLED,
                        "did not stop in time: killed with its whole group".to_owned(),
                    );
                }
                self.effects.push(Effect::Kill(self.attempt));
            }
            Phase::Stopped | Phase::Failed | Phase::Waiting | Phase::Spawning { .. } => {}
        }
    }

    /// What the process said while the agent was away has not been read yet: no verdict for a moment.
    fn away(&mut self, now: Instant) {
        let soonest = |span: Duration| (now + HEARD_WITHIN).checked_sub(span).unwrap_or(now);
        match &mut self.phase {
            Phase::Up { alive_at, .. } | Phase::Draining { alive_at } => {
                if let Some(silence) = self.running.watchdog {
                    *alive_at = soonest(silence).max(*alive_at);
                }
            }
            Phase::Starting { since }
                if !matches!(self.running.ready.probe, Probe::Started { .. }) =>
            {
                *since = soonest(self.running.ready.timeout).max(*since);
            }
            _ => {}
        }
    }

    fn event(&mut self, severity: Severity, kind: &'static str, message: String) {
        self.effects
            .push(Effect::Event(severity, kind, self.attempt, message));
    }
}

/// What was missing, for the operator.
fn probe_words(probe: &Probe) -> String {
    match probe {
        Probe::Started { .. } => "it did not stay alive".to_owned(),
        Probe::Worker => "it did not report READY over the worker socket".to_owned(),
        Probe::Notify => "it did not send READY=1 to NOTIFY_SOCKET".to_owned(),
        Probe::Http { url, .. } => format!("GET {url} did not answer 200-299"),
        Probe::Log { pattern } => format!("no line of its output matched {pattern:?}"),
    }
}
