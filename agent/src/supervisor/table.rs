//! The task that owns all processes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tanako_fleet::{ProcessName, process::Probe};
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::{MissedTickBehavior, interval, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    adopt::{Known, Left},
    core::{Exit, Input},
    exits::Exits,
    handle::{Command, StartGate},
    notify::{Notice, NotifySocket},
    process::{Live, Proc},
    procfs,
    records::Records,
    spawner::{Job, Outcome, Spawner},
    status::{Severity, SupervisorEvent, Table, kind},
    sweep::Swept,
};
use crate::{clock, logs::Logs};

/// The table is published at most this often while processes are on their way somewhere.
const PUBLISH_EVERY: Duration = Duration::from_millis(40);
/// And when all of them have arrived: whoever waits for that shall not wait longer.
const PUBLISH_AT_REST: Duration = Duration::from_millis(4);
/// Commands whose consequences are written down together.
const COMMANDS_AT_ONCE: usize = 64;
/// Messages of the task's own helpers that wait.
const INTERNAL_MAX: usize = 1024;
/// How far up from a sender of a notification its process is looked for.
const ANCESTORS_MAX: usize = 16;
/// Starts under way that a leaving agent waits for.
const LEAVE_MAX: Duration = Duration::from_secs(2);
/// Exits that come together are swept up together.
const SWEEP_DELAY: Duration = Duration::from_millis(100);
/// The loop comes round once a second. After a pause this long the agent itself was away.
const AWAY: Duration = Duration::from_secs(3);
/// A sweep may take this part of the time at most.
const SWEEP_PART: u32 = 50;

/// From the task's own helpers.
pub(super) enum Internal {
    Permit(usize, u64, Result<(), String>),
    Probe(usize, u64, Result<(), String>),
    Swept(Swept, Duration),
}

/// What the task works with.
pub(super) struct Parts {
    /// Of this host; specs leave it open.
    pub(super) data_dir: String,
    pub(super) instance: u64,
    pub(super) boot: Arc<str>,
    pub(super) records: Records,
    pub(super) logs: Logs,
    pub(super) exits: Exits,
    pub(super) notify: NotifySocket,
    pub(super) spawner: Spawner,
    pub(super) outcomes: mpsc::Receiver<Outcome>,
    pub(super) gate: Arc<dyn StartGate>,
    pub(super) tracker: TaskTracker,
    pub(super) events: broadcast::Sender<SupervisorEvent>,
    pub(super) publish: watch::Sender<Arc<Table>>,
}

pub(super) struct Owner {
    pub(super) parts: Parts,
    /// By id; an id is never used again while something may still name it. Boxed, for a hash table is
    /// up to half empty and an entry takes 1.7 kB.
    pub(super) procs: HashMap<usize, Box<Proc>>,
    pub(super) names: BTreeMap<ProcessName, usize>,
    pub(super) pids: HashMap<u32, usize>,
    pub(super) next_id: usize,
    pub(super) orphans: BTreeMap<ProcessName, Known>,
    pub(super) deadlines: BTreeSet<(Instant, usize)>,
    /// Starts to be handed to the spawner once their intent is written down.
    pub(super) outbox: Vec<Job>,
    pub(super) spawning: usize,
    pub(super) to_record: BTreeSet<usize>,
    pub(super) records_failing: bool,
    pub(super) changed: HashSet<usize>,
    pub(super) table: Table,
    published_at: Option<Instant>,
    pub(super) unpublished: bool,
    /// When the loop last came round.
    awake_at: Instant,
    /// Processes in the table that are on their way somewhere.
    pub(super) moving: usize,
    /// Runs that are over and not yet swept.
    pub(super) over: BTreeMap<u64, (ProcessName, u64)>,
    pub(super) sweeping: bool,
    pub(super) sweep_not_before: Instant,
    pub(super) cgroups_over: Vec<std::path::PathBuf>,
    pub(super) internal: mpsc::Sender<Internal>,
    pub(super) internal_rx: Option<mpsc::Receiver<Internal>>,
    pub(super) rng: fastrand::Rng,
}

impl Owner {
    /// Takes over what an earlier agent left.
    pub(super) fn new(parts: Parts, left: Left, damaged: usize) -> Self {
        let (internal, internal_rx) = mpsc::channel(INTERNAL_MAX);
        let mut owner = Self {
            parts,
            procs: HashMap::new(),
            names: BTreeMap::new(),
            pids: HashMap::new(),
            next_id: 0,
            orphans: left.orphans,
            deadlines: BTreeSet::new(),
            outbox: Vec::new(),
            spawning: 0,
            to_record: BTreeSet::new(),
            records_failing: false,
            changed: HashSet::new(),
            table: Table::new(),
            published_at: None,
            unpublished: false,
            awake_at: Instant::now(),
            moving: 0,
            over: left.over,
            sweeping: false,
            sweep_not_before: Instant::now(),
            cgroups_over: Vec::new(),
            internal,
            internal_rx: Some(internal_rx),
            rng: fastrand::Rng::new(),
        };
        for (spec, known) in left.processes {
            let name = spec.name.clone();
            if let Err(error) = owner.insert(spec, known) {
                tracing::error!(process = %name, %error, "process not taken over");
            }
        }
        if damaged > 0 {
            let name = owner.names.keys().next().or(owner.orphans.keys().next());
            let name = name.cloned().unwrap_or_else(|| {
                "agent/records"
                    .parse()
                    .expect("invariant: that is a process name")
            });
            owner.event(
                Severity::Warning,
                kind::RECORD_DAMAGED,
                &name,
                0,
                format!(
                    "{damaged} damaged entries in the records of running processes were left out; \
                     what runs was looked for in /proc"
                ),
            );
        }
        owner.flush();
        owner
    }

    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        cancel: CancellationToken,
    ) {
        let mut internal = self
            .internal_rx
            .take()
            .expect("invariant: the task runs once");
        let mut batch = Vec::with_capacity(COMMANDS_AT_ONCE);
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.flush();
            let wake = self.wake_at();
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                ended = self.parts.exits.next() => match ended {
                    Ok(ids) => for id in ids { self.ended(id as usize) },
                    Err(error) => {
                        tracing::error!(%error, "exits cannot be waited for");
                        tokio::time::sleep(PUBLISH_EVERY).await;
                    }
                },
                Some(outcome) = self.parts.outcomes.recv() => self.outcome(outcome),
                Some(message) = internal.recv() => self.internal(message),
                received = commands.recv_many(&mut batch, COMMANDS_AT_ONCE) => {
                    if received == 0 {
                        break;
                    }
                    for command in batch.drain(..) {
                        if let Command::Detach(reply) = command {
                            self.leave().await;
                            // Whoever asked may be gone.
                            let _ = reply.send(Ok(()));
                            return;
                        }
                        self.command(command);
                    }
                }
                message = self.parts.notify.next() => match message {
                    Ok((pid, notice)) => self.notice(pid, notice),
                    Err(error) => {
                        tracing::warn!(%error, "a notification could not be received");
                        tokio::time::sleep(PUBLISH_EVERY).await;
                    }
                },
                () = sleep_until(wake.into()) => {}
                _ = second.tick() => self.second(),
            }
            self.look_up();
            self.expire();
            self.sweep();
        }
        self.leave().await;
    }

    /// When the next timer is due.
    fn wake_at(&self) -> Instant {
        let mut wake = Instant::now() + Duration::from_secs(60);
        if let Some((at, _)) = self.deadlines.first() {
            wake = wake.min(*at);
        }
        if let Some(at) = self.sweep_at() {
            wake = wake.min(at);
        }
        if let (true, Some(at)) = (self.unpublished, self.published_at) {
            wake = wake.min(at + self.publish_every());
        }
        wake
    }

    /// Notices that the agent was away: what its processes said meanwhile lies unread in sockets, so
    /// that nobody may be taken for silent by the clock alone.
    fn look_up(&mut self) {
        let now = Instant::now();
        let away = now.saturating_duration_since(std::mem::replace(&mut self.awake_at, now));
        if away > AWAY {
            tracing::warn!(seconds = away.as_secs_f64(), "the agent was away");
            let ids: Vec<usize> = self.procs.keys().copied().collect();
            for id in ids {
                self.apply(id, Input::Away);
            }
        }
    }

    /// Tells the processes whose deadline has passed.
    fn expire(&mut self) {
        let now = Instant::now();
        while let Some((at, id)) = self.deadlines.first().copied() {
            if at > now {
                break;
            }
            self.deadlines.remove(&(at, id));
            if let Some(proc) = self.procs.get_mut(&id) {
                proc.deadline = None;
                self.apply(id, Input::Tick);
            }
        }
    }

    /// Carries out what was put off: first the records, then what they must come before.
    pub(super) fn flush(&mut self) {
        self.write_down();
        if let Some(job) = self.lone_start() {
            self.spawning += 1;
            let outcome = self.parts.spawner.start_now(&job);
            self.outcome(outcome);
            self.write_down();
        }
        for job in std::mem::take(&mut self.outbox) {
            self.spawning += 1;
            self.parts.spawner.submit(job);
        }
        self.publish(Instant::now());
    }

    /// The one start there is, if it may be done right here. A process that crashed is back sooner
    /// without two changes of thread; several at a time, and those that take long, go to the threads.
    fn lone_start(&mut self) -> Option<Job> {
        match self.outbox.as_slice() {
            [job] if self.spawning == 0 && job.is_quick() => self.outbox.pop(),
            _ => None,
        }
    }

    fn write_down(&mut self) {
        let now = Instant::now();
        for id in std::mem::take(&mut self.to_record) {
            if let Some(proc) = self.procs.get(&id) {
                self.parts.records.run(&proc.record(now, &self.parts.boot));
            }
        }
        let mut result = self.parts.records.flush();
        if result.is_ok() && self.parts.records.is_grown() {
            result = self.rewrite(false);
        }
        match result {
            Ok(()) => self.records_failing = false,
            Err(error) if !self.records_failing => {
                self.records_failing = true;
                // Children can still be found by their tags.
                tracing::error!(%error, "records of running processes cannot be written; is the disk full?");
            }
            Err(_) => {}
        }
    }

    fn rewrite(&mut self, sync: bool) -> std::io::Result<()> {
        let now = Instant::now();
        let (procs, boot) = (&self.procs, &self.parts.boot);
        self.parts.records.rewrite(
            self.names
                .values()
                .filter_map(|id| procs.get(id))
                .map(|proc| (&**proc.core.spec(), proc.record(now, boot))),
            sync,
        )
    }

    /// Publishes the table: at once when it is quiet, else when it is time again.
    fn publish(&mut self, now: Instant) {
        for id in self.changed.drain() {
            if let Some(proc) = self.procs.get(&id) {
                let status = Arc::new(proc.status(now));
                self.moving += usize::from(status.state.is_moving());
                let old = self.table.insert(proc.name.clone(), status);
                self.moving -= usize::from(old.is_some_and(|old| old.state.is_moving()));
                self.unpublished = true;
            }
        }
        let every = self.publish_every();
        let is_time = self
            .published_at
            .is_none_or(|at| now.saturating_duration_since(at) >= every);
        if self.unpublished && is_time {
            self.unpublished = false;
            self.published_at = Some(now);
            self.parts
                .publish
                .send_replace(Arc::new(self.table.clone()));
        }
    }

    fn publish_every(&self) -> Duration {
        if self.moving == 0 {
            PUBLISH_AT_REST
        } else {
            PUBLISH_EVERY
        }
    }

    /// The agent is leaving: waits for starts under way, writes down who runs, lets go.
    async fn leave(&mut self) {
        self.flush();
        let deadline = tokio::time::Instant::now() + LEAVE_MAX;
        while self.spawning > 0 {
            match tokio::time::timeout_at(deadline, self.parts.outcomes.recv()).await {
                Ok(Some(outcome)) => self.outcome(outcome),
                _ => break,
            }
            // What follows from it is the next agent's: nothing new is started.
            self.outbox.clear();
        }
        if !self.over.is_empty() {
            let (instance, runs) = (self.parts.instance, self.over.keys().copied().collect());
            let swept =
                tokio::task::spawn_blocking(move || super::sweep::sweep(instance, &runs)).await;
            if let Ok(swept) = swept {
                self.swept(swept, Duration::ZERO);
            }
        }
        for proc in self.procs.values_mut() {
            proc.end_probe();
            proc.end_permit();
        }
        // First: the records say up to where lines were counted, and that must stay so.
        self.parts.logs.close().await;
        self.to_record.clear();
        if let Err(error) = self.rewrite(true) {
            tracing::error!(%error, "records of running processes cannot be written");
        }
        self.published_at = None;
        self.publish(Instant::now());
    }

    /// What comes round once a second.
    fn second(&mut self) {
        let ids: Vec<usize> = self.names.values().copied().collect();
        for id in ids {
            let Some(proc) = self.procs.get_mut(&id) else {
                continue;
            };
            let (_, bytes) = proc.log.counts();
            let grew = std::mem::replace(&mut proc.seen_bytes, bytes) != bytes;
            if grew {
                self.changed.insert(id);
            }
            let Some(live) = &proc.live else { continue };
            let spec = proc.core.running_spec();
            let attempt = proc.core.attempt();
            let by_log = matches!(spec.ready.probe, Probe::Log { .. } | Probe::Started { .. });
            let limit = spec.limits.memory_bytes.filter(|_| live.cgroup.is_none());
            let over = limit.and_then(|limit| {
                let resident = procfs::resident_bytes(live.pid)?;
                (resident > limit).then(|| {
                    format!("used {resident} bytes of memory, more than its limit of {limit}")
                })
            });
            if grew && by_log && spec.watchdog.is_some() {
                self.apply(id, Input::Alive(attempt));
            }
            if let Some(why) = over {
                self.apply(id, Input::OverLimit(attempt, why));
            }
        }
        for (name, trouble) in self.parts.logs.take_troubles() {
            let attempt = self
                .names
                .get(&name)
                .and_then(|id| self.procs.get(id))
                .map_or(0, |proc| proc.core.attempt());
            self.event(
                Severity::Warning,
                kind::LOG,
                &name,
                attempt,
                format!("its log {trouble}"),
            );
        }
        self.cgroups_over
            .retain(|path| !super::cgroup::remove(path));
    }

    /// When the next sweep for leftovers may begin.
    fn sweep_at(&self) -> Option<Instant> {
        (!self.over.is_empty() && !self.sweeping).then_some(self.sweep_not_before)
    }

    /// Looks for leftovers of runs that are over.
    fn sweep(&mut self) {
        if self.sweep_at().is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.sweeping = true;
        let (instance, runs) = (self.parts.instance, self.over.keys().copied().collect());
        let internal = self.internal.clone();
        self.parts.tracker.spawn(async move {
            let begun = Instant::now();
            let swept =
                tokio::task::spawn_blocking(move || super::sweep::sweep(instance, &runs)).await;
            if let Ok(swept) = swept {
                // The table's task may have ended.
                let _ = internal.send(Internal::Swept(swept, begun.elapsed())).await;
            }
        });
    }

    fn swept(&mut self, swept: Swept, took: Duration) {
        self.sweeping = false;
        self.sweep_not_before = Instant::now() + (took * SWEEP_PART).max(SWEEP_DELAY);
        for (nonce, (count, words)) in swept.killed {
            // It stays on the list: they may have had children meanwhile.
            if let Some((name, attempt)) = self.over.get(&nonce).cloned() {
                let message = format!(
                    "{count} descendants outlived their process outside its group and were \
                     killed: {words}"
                );
                self.event(Severity::Warning, kind::LEFTOVERS, &name, attempt, message);
            }
        }
        for nonce in swept.clean {
            if let Some((name, _)) = self.over.remove(&nonce)
                && let Some(proc) = self.names.get(&name).and_then(|id| self.procs.get(id))
                && !proc.core.is_live()
                && proc.nonce == nonce
            {
                proc.log.set_idle();
            }
        }
    }

    fn internal(&mut self, message: Internal) {
        match message {
            Internal::Permit(id, attempt, answer) => {
                if let Some(proc) = self.procs.get_mut(&id) {
                    if proc.core.attempt() == attempt {
                        proc.permit = None;
                    }
                    self.apply(id, Input::Permit(attempt, answer));
                }
            }
            Internal::Probe(id, attempt, Ok(())) => {
                self.apply(id, Input::Alive(attempt));
                self.apply(id, Input::Ready(attempt));
            }
            Internal::Probe(id, attempt, Err(why)) => {
                self.apply(id, Input::NotReady(attempt, why));
            }
            Internal::Swept(swept, took) => self.swept(swept, took),
        }
    }

    /// A process of the table has ended.
    pub(super) fn ended(&mut self, id: usize) {
        let Some(proc) = self.procs.get_mut(&id) else {
            return;
        };
        let Some(live) = &proc.live else { return };
        // While it has not been waited for, its pid, and so its group, is nobody else's.
        live.kill_all();
        let Some(exit) = live.wait() else { return };
        self.parts.exits.remove(&live.pidfd);
        self.pids.remove(&live.pid);
        let attempt = proc.core.attempt();
        let starved = exit == Exit::Signal(9)
            && live
                .cgroup
                .as_deref()
                .is_some_and(super::cgroup::out_of_memory);
        if let Some(path) = &live.cgroup {
            self.cgroups_over.push(path.clone());
        }
        proc.live = None;
        proc.end_probe();
        let name = proc.name.clone();
        if self.over.is_empty() {
            self.sweep_not_before = self.sweep_not_before.max(Instant::now() + SWEEP_DELAY);
        }
        self.over.insert(proc.nonce, (name.clone(), attempt));
        if starved {
            self.event(
                Severity::Error,
                kind::MEMORY,
                &name,
                attempt,
                "killed by the kernel: it used more memory than its limit".to_owned(),
            );
        }
        self.apply(id, Input::Exited(attempt, exit));
    }

    /// A start has succeeded or failed.
    fn outcome(&mut self, outcome: Outcome) {
        self.spawning = self.spawning.saturating_sub(1);
        let Some(proc) = self.procs.get_mut(&outcome.id) else {
            return;
        };
        let (id, attempt) = (outcome.id, outcome.attempt);
        let spawned = match outcome.result {
            Ok(spawned) => spawned,
            Err(why) => return self.apply(id, Input::SpawnFailed(attempt, why)),
        };
        let name = proc.name.clone();
        if !spawned.unlimited.is_empty() {
            let message = spawned.unlimited.trim_end().to_owned();
            self.event(Severity::Warning, kind::LIMITS, &name, attempt, message);
        }
        self.live(
            id,
            Live {
                pid: spawned.pid,
                pidfd: spawned.pidfd,
                start_ticks: spawned.start_ticks,
                cgroup: spawned.cgroup,
                limits: spawned.limits,
                log_from: spawned.log_from,
                adopted: false,
            },
        );
        if let Some(proc) = self.procs.get_mut(&id) {
            proc.started_ms = Some(clock::now_ms());
            proc.ready_ms = None;
        }
        self.apply(id, Input::Spawned(attempt));
        self.probe(id);
    }

    /// From now on this run belongs to this process.
    pub(super) fn live(&mut self, id: usize, live: Live) {
        if let Err(error) = self.parts.exits.add(&live.pidfd, id as u64) {
            // Only for want of kernel memory. It is found again by the next agent.
            tracing::error!(pid = live.pid, %error, "the exit of a process cannot be waited for");
        }
        self.pids.insert(live.pid, id);
        if let Some(proc) = self.procs.get_mut(&id) {
            proc.seen_bytes = proc.log.counts().1;
            proc.live = Some(live);
        }
    }

    /// What a child sent to the notify socket.
    fn notice(&mut self, pid: u32, notice: Notice) {
        let Some(id) = self.process_of(pid) else {
            tracing::debug!(pid, "notification from a process that is not ours");
            return;
        };
        let Some(proc) = self.procs.get_mut(&id) else {
            return;
        };
        let attempt = proc.core.attempt();
        if let Some(says) = notice.status
            && proc.says != says
        {
            proc.says = says;
            self.changed.insert(id);
        }
        let is_probe = proc.core.running_spec().ready.probe == Probe::Notify;
        if notice.alive || notice.ready {
            self.apply(id, Input::Alive(attempt));
        }
        if notice.ready && is_probe {
            self.apply(id, Input::Ready(attempt));
        }
        if notice.stopping {
            self.apply(id, Input::Draining(attempt));
        }
    }

    /// The process whose run this pid belongs to: itself, its group, or its descendant.
    fn process_of(&self, pid: u32) -> Option<usize> {
        let mut pid = pid;
        for _ in 0..ANCESTORS_MAX {
            if let Some(id) = self.pids.get(&pid) {
                return Some(*id);
            }
            let stat = procfs::stat(pid)?;
            if let Some(id) = self.pids.get(&stat.group) {
                return Some(*id);
            }
            pid = stat.parent;
        }
        None
    }
}
