//! The task that owns operations, desired state and audit log.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tanako_fleet::ProcessName;
use tanako_store::{Outcome, StoreError, Txn};
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Command, Operations, Parts, RECENT_MAX, advice::Advisor, orders::Told, places::Moves, planning,
    schedule,
};
use crate::{
    audit::{Audit, Record},
    backup::JobEvent,
    clock::now_ms,
    desired::Desired,
    history::Severity,
    hosts::{Hosts, assigned::Stored},
    operations::{
        OpState, Operation,
        duties::Lingering,
        ledger::{Index, Loaded},
    },
    supervisor::Table,
    tenure::failover::Watchman,
};

/// Reports of backup jobs that wait.
const JOB_EVENTS_MAX: usize = 256;
/// Answers of workers that wait.
const ANSWERS_MAX: usize = 256;
/// However often something is due, it is looked at no more often than this.
const WAKE_MS_MIN: i64 = 5;
/// Pause after the store refused to take an operation's progress.
const RETRY: Duration = Duration::from_secs(1);
/// Progress that nothing depends on is written down at most this often.
const PERSIST_EVERY_MS: i64 = 1_000;

/// An operation under way.
pub(super) struct Active {
    pub(super) op: Operation,
    /// When its state was last written down, in milliseconds since 1970.
    pub(super) persisted_at: i64,
    /// Whether it has changed since.
    pub(super) dirty: bool,
    /// Ends its backup job.
    pub(super) job: Option<CancellationToken>,
}

impl Active {
    pub(super) fn new(op: Operation) -> Self {
        Self {
            op,
            persisted_at: 0,
            dirty: false,
            job: None,
        }
    }
}

/// What a term has.
pub(super) struct Office {
    pub(super) parts: Parts,
    pub(super) hosts: Hosts,
    /// Fencing revision of the office.
    pub(super) epoch: u64,
    /// Who says which hosts are lost; `None` on one machine.
    pub(super) watchman: Option<Watchman>,
}

/// State of the coordinator.
pub(super) struct Task {
    pub(super) parts: Parts,
    /// All hosts and their processes.
    pub(super) hosts: Hosts,
    /// Fencing revision of the office.
    pub(super) epoch: u64,
    /// Who says which hosts are lost; `None` on one machine.
    pub(super) watchman: Option<Watchman>,
    /// Nothing is begun about lost hosts before this time, in milliseconds since 1970.
    pub(super) fail_over_at: i64,
    /// Database nodes of lost hosts that have been told of.
    pub(super) nodes_told: BTreeSet<ProcessName>,
    pub(super) desired: Desired,
    /// Which host has which process.
    pub(super) stored: Stored,
    /// Hosts that have been told what is wanted of them, with the life of their agent, and whether they
    /// have been heard without a break since.
    pub(super) agreed: HashMap<Arc<str>, (Arc<str>, bool)>,
    pub(super) audit: Audit,
    pub(super) index: Index,
    pub(super) active: Vec<Active>,
    recent: VecDeque<Arc<tanako_proto::fleet::v1::Operation>>,
    operations_tx: watch::Sender<Arc<Operations>>,
    desired_tx: watch::Sender<Arc<Desired>>,
    pub(super) job_events: mpsc::Sender<JobEvent>,
    job_events_rx: Option<mpsc::Receiver<JobEvent>>,
    pub(super) answers: mpsc::Sender<Told>,
    answers_rx: Option<mpsc::Receiver<Told>>,
    /// Cuts of operations that have ended.
    pub(super) lingering: Vec<Lingering>,
    /// Shard counts that have been proposed, by bot.
    pub(super) proposed: HashMap<String, u32>,
    pub(super) advisor: Advisor,
    pub(super) tracker: TaskTracker,
    /// After the store has refused: nothing is carried forward before this time.
    pub(super) retry_at: Option<tokio::time::Instant>,
    pub(super) cancel: CancellationToken,
}

impl Task {
    pub(super) fn new(
        office: Office,
        (desired, stored): (Desired, Stored),
        audit: Audit,
        loaded: Loaded,
        operations_tx: watch::Sender<Arc<Operations>>,
        desired_tx: watch::Sender<Arc<Desired>>,
        tracker: TaskTracker,
    ) -> Self {
        let (job_events, job_events_rx) = mpsc::channel(JOB_EVENTS_MAX);
        let (answers, answers_rx) = mpsc::channel(ANSWERS_MAX);
        let Office {
            parts,
            hosts,
            epoch,
            watchman,
        } = office;
        Self {
            parts,
            hosts,
            epoch,
            desired,
            stored,
            agreed: HashMap::new(),
            audit,
            index: loaded.index,
            active: loaded.active.into_iter().map(Active::new).collect(),
            recent: loaded
                .ended
                .iter()
                .map(|op| Arc::new(op.to_wire()))
                .collect(),
            operations_tx,
            desired_tx,
            job_events,
            job_events_rx: Some(job_events_rx),
            answers,
            answers_rx: Some(answers_rx),
            lingering: Vec::new(),
            watchman,
            fail_over_at: 0,
            nodes_told: BTreeSet::new(),
            proposed: HashMap::new(),
            advisor: Advisor::new(),
            tracker,
            retry_at: None,
            cancel: CancellationToken::new(),
        }
    }

    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        cancel: CancellationToken,
    ) {
        self.cancel = cancel.clone();
        let mut job_events = self
            .job_events_rx
            .take()
            .expect("invariant: run is called once, with the receiver");
        let mut answers = self
            .answers_rx
            .take()
            .expect("invariant: run is called once, with the receiver");
        self.publish();
        self.assign_duties();
        self.reconcile().await;
        for index in 0..self.active.len() {
            self.parts.history.event(
                Severity::Info,
                "operation-resumed",
                &self.active[index].op.id,
                "goes on after the agent's restart",
            );
            self.start_job(index);
        }
        let mut picture = self.hosts.watch();
        let mut identify = self.parts.broker.status();
        let mut losses = self.watchman.as_ref().map(Watchman::losses);
        let mut due = self.next_backup();
        self.catch_up_backup().await;
        loop {
            self.welcome();
            self.fail_over().await;
            self.advance().await;
            let wake = self.wake();
            let works = !self.active.is_empty() && self.retry_at.is_none();
            let looks = works || !self.hosts.is_alone();
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                command = commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => break,
                },
                Some(event) = job_events.recv() => self.job_event(event).await,
                Some(told) = answers.recv() => self.told(told),
                // Also reports: a step of a process that reports its shards ends with their first one.
                changed = picture.changed(), if looks => {
                    if changed.is_err() {
                        break;
                    }
                    picture.mark_unchanged();
                }
                () = changed(&mut losses) => {}
                Ok(()) = identify.changed() => {
                    identify.mark_unchanged();
                    self.propose_reshards();
                }
                () = sleep_until(wake) => self.retry_at = None,
                () = sleep_until(Some(self.advisor.look_at)) => self.look().await,
                () = sleep_until(until(due)), if due.is_some() => {
                    self.scheduled_backup().await;
                }
            }
            due = self.next_backup();
        }
        // What is only in memory is written down, as far as the store lets us.
        for index in 0..self.active.len() {
            if self.active[index].dirty {
                let txn = self.index.update(Txn::new(), &self.active[index].op);
                let _ = self.parts.store.commit(txn).await;
            }
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Submit(request, caller, answer) => {
                let _ = answer.send(self.submit(request, &caller).await);
            }
            Command::Apply(request, caller, answer) => {
                let _ = answer.send(self.apply(request, &caller).await);
            }
            Command::Plan(request, answer) => {
                let _ = answer.send(self.plan(request).await);
            }
            Command::Control(request, caller, answer) => {
                let _ = answer.send(self.control(request, &caller).await);
            }
            Command::Relocate(kind, request_id, relocations, caller, answer) => {
                let done = self.relocate(kind, request_id, relocations, &caller).await;
                let _ = answer.send(done);
            }
            Command::Advise(answer) => {
                let _ = answer.send(Ok(self.advice().await));
            }
            Command::Audit(record, answer) => {
                let txn = self.audit.append(Txn::new(), &record);
                let outcome = self.parts.store.commit(txn).await;
                if outcome.is_ok() {
                    self.audit.committed();
                }
                let _ = answer.send(
                    outcome
                        .map(|_| ())
                        .map_err(|error| crate::problem::from_store(&error)),
                );
            }
        }
    }

    pub(super) async fn configure_broker(&self) {
        if let Some(spec) = &self.desired.spec {
            let bots = spec
                .bots
                .iter()
                .map(|(name, bot)| crate::identify::BotConfig {
                    bot: name.clone(),
                    max_concurrency: Some(bot.max_concurrency),
                    reserve: bot.identify_reserve,
                })
                .collect();
            self.parts.broker.configure(bots).await;
        }
    }

    pub(super) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.hosts.picture().table)
    }

    /// Shows the operations to whoever watches.
    pub(super) fn publish(&mut self) {
        let active = self
            .active
            .iter()
            .map(|active| Arc::new(active.op.to_wire()));
        let all: Operations = self.recent.iter().cloned().chain(active).collect();
        self.operations_tx.send_replace(Arc::new(all));
    }

    pub(super) fn publish_desired(&self) {
        self.desired_tx.send_replace(Arc::new(self.desired.clone()));
    }

    /// Moves ended operations out of the active ones.
    pub(super) fn retire(&mut self) {
        let mut index = 0;
        while index < self.active.len() {
            if self.active[index].op.state.is_ended() && !self.active[index].dirty {
                let active = self.active.remove(index);
                self.recent.push_back(Arc::new(active.op.to_wire()));
                if self.recent.len() > RECENT_MAX {
                    self.recent.pop_front();
                }
            } else {
                index += 1;
            }
        }
    }

    /// Adds an operation that ended at once to those that status shows.
    pub(super) fn show_ended(&mut self, op: &Operation) {
        self.recent.push_back(Arc::new(op.to_wire()));
        if self.recent.len() > RECENT_MAX {
            self.recent.pop_front();
        }
    }

    /// Writes down the operation at `index` with, when it has ended, its audit record and what it
    /// leaves of the desired state.
    pub(super) async fn persist(
        &mut self,
        index: usize,
        next: Option<Desired>,
        moves: Moves,
    ) -> Result<(), StoreError> {
        let op = self.active[index].op.clone();
        let mut txn = self.index.update(Txn::new(), &op);
        let next = next.or_else(|| planning::reverted(&self.desired, &op));
        if let Some(next) = &next {
            txn = next.commit(&self.desired, txn);
        }
        let places = self.places_after(next.as_ref().unwrap_or(&self.desired), &op, &moves);
        txn = super::failover::only_from_lost(txn, &op, &moves);
        if let Some(places) = &places {
            txn = self.stored.commit(places, self.epoch, txn);
        }
        txn = self.mark(&self.marks_after(&op), txn);
        let mut audited = false;
        if op.state.is_ended() {
            txn = self.audit.append(txn, &ended_record(&op));
            audited = true;
        }
        match self.parts.store.commit(txn).await? {
            Outcome::Committed { revision } => {
                if let Some(mut next) = next {
                    next.committed(revision);
                    self.desired = next;
                    self.publish_desired();
                }
                self.placed(places, revision);
            }
            Outcome::Conflict { .. } => {
                return Err(StoreError::Unavailable(
                    "the desired state or the assignment was changed by someone else".to_owned(),
                ));
            }
        }
        if audited {
            self.audit.committed();
        }
        self.index.committed(&op);
        let active = &mut self.active[index];
        active.dirty = false;
        active.persisted_at = now_ms();
        Ok(())
    }

    /// Whether progress that nothing depends on should be written down now.
    pub(super) fn is_persist_due(active: &Active, now: i64) -> bool {
        active.dirty && now - active.persisted_at >= PERSIST_EVERY_MS
    }

    pub(super) fn refuse(&mut self, error: &StoreError) {
        if self.retry_at.is_none() {
            tracing::error!(%error, "the progress of an operation cannot be written down");
            self.parts.history.event(
                Severity::Error,
                "store-refused",
                "store",
                format!("operations wait: {error}; {}", error.hint()),
            );
        }
        self.retry_at = Some(tokio::time::Instant::now() + RETRY);
    }

    fn wake(&self) -> Option<tokio::time::Instant> {
        if self.retry_at.is_some() {
            return self.retry_at;
        }
        let now = now_ms();
        let steps = self
            .active
            .iter()
            .filter(|active| !active.op.kind.is_backup())
            .filter_map(|active| crate::operations::core::deadline(&active.op));
        let persist = self
            .active
            .iter()
            .filter(|active| active.dirty)
            .map(|active| active.persisted_at + PERSIST_EVERY_MS);
        until_from(now, steps.chain(persist).min())
    }

    fn next_backup(&self) -> Option<i64> {
        let minute = self.desired.spec.as_ref()?.backup.schedule_minute?;
        Some(schedule::next(now_ms(), minute))
    }
}

fn ended_record(op: &Operation) -> Record {
    let outcome = match op.state {
        OpState::Failed => format!("failed: {}", op.message),
        other => other.as_str().to_owned(),
    };
    Record {
        at: op.ended_at,
        who: op.requested_by.clone(),
        from: "agent".to_owned(),
        action: format!("{} ended", op.kind.as_str()),
        object: op.id.clone(),
        before: OpState::Running.as_str().to_owned(),
        after: format!("{} of {} {}", op.done, op.total, op.unit),
        outcome,
    }
}

fn until(at_ms: Option<i64>) -> Option<tokio::time::Instant> {
    until_from(now_ms(), at_ms)
}

fn until_from(now: i64, at_ms: Option<i64>) -> Option<tokio::time::Instant> {
    // A wall clock that jumps is looked at again within the minute.
    let wait = (at_ms? - now).clamp(WAKE_MS_MIN, 60_000);
    Some(tokio::time::Instant::now() + Duration::from_millis(wait.unsigned_abs()))
}

/// Resolves when the value has changed; never, when there is none.
async fn changed<T>(watched: &mut Option<watch::Receiver<T>>) {
    let alive = match watched {
        Some(watched) => watched.changed().await.is_ok(),
        None => false,
    };
    if !alive {
        std::future::pending::<()>().await;
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
