//! All workers: their last report, their one live stream, their commands.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use tanako_fleet::ProcessName;
use tanako_proto::worker::v1::{self as wire, agent_message::Message as ToWorker};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{CommandError, CommandRun, DbState, ShardState, States, WorkerState};

/// Commands under way at one worker.
const COMMANDS_MAX: usize = 16;
/// Progress messages kept for a slow reader; more are dropped.
const PROGRESS_MAX: usize = 64;
/// Rates are smoothed over about this time.
const SMOOTH_S: f64 = 3.0;
/// Workers remembered after they have gone; more than processes a host can hold.
const WORKERS_MAX: usize = 20_000;

/// To a worker's stream.
pub(super) type Outbox = mpsc::Sender<Result<wire::AgentMessage, Status>>;

/// Names one stream among all that ever were.
pub(super) type StreamId = u64;

#[derive(Default)]
pub(super) struct Registry {
    workers: HashMap<ProcessName, Worker>,
    states: States,
    next_stream: StreamId,
    next_command: u64,
    /// Whether `states` has changed since it was last taken.
    dirty: bool,
}

struct Worker {
    stream: Option<LiveStream>,
    commands: HashMap<u64, Pending>,
    /// When the latest report came.
    reported: Option<Instant>,
}

struct LiveStream {
    id: StreamId,
    outbox: Outbox,
    /// Cancelled when a newer stream takes its place.
    replaced: CancellationToken,
}

struct Pending {
    progress: mpsc::Sender<wire::CommandProgress>,
    result: oneshot::Sender<Result<wire::CommandResult, CommandError>>,
    deadline: Instant,
    after: Duration,
}

impl Registry {
    /// A worker said Hello: its stream is now the one; an earlier one is told to go.
    pub(super) fn attach(
        &mut self,
        name: &ProcessName,
        hello: &wire::Hello,
        outbox: Outbox,
        now_ms: i64,
    ) -> (StreamId, CancellationToken) {
        self.next_stream += 1;
        let id = self.next_stream;
        let replaced = CancellationToken::new();
        if self.workers.len() >= WORKERS_MAX {
            self.workers.retain(|_, worker| worker.stream.is_some());
        }
        let worker = self.workers.entry(name.clone()).or_insert(Worker {
            stream: None,
            commands: HashMap::new(),
            reported: None,
        });
        worker.fail_commands(name);
        let stream = LiveStream {
            id,
            outbox,
            replaced: replaced.clone(),
        };
        if let Some(old) = worker.stream.replace(stream) {
            old.replaced.cancel();
        }
        let kind = hello.kind();
        let mut version = hello.version.clone();
        super::clean::text(&mut version, 64);
        let known = self.states.get(name).filter(|s| s.attempt == hello.attempt);
        let state = WorkerState {
            kind,
            version,
            attached: true,
            last_seen: now_ms,
            ..known.map_or_else(
                || WorkerState::new(hello.attempt),
                |state| state.as_ref().clone(),
            )
        };
        self.states.insert(name.clone(), Arc::new(state));
        self.dirty = true;
        (id, replaced)
    }

    /// The stream has ended.
    pub(super) fn detach(&mut self, name: &ProcessName, id: StreamId) {
        let Some(worker) = self.workers.get_mut(name) else {
            return;
        };
        if worker.stream.as_ref().is_none_or(|stream| stream.id != id) {
            return;
        }
        worker.stream = None;
        worker.reported = None;
        worker.fail_commands(name);
        if let Some(state) = self.states.get_mut(name) {
            Arc::make_mut(state).attached = false;
            self.dirty = true;
        }
    }

    /// Takes a report, cleaned already.
    pub(super) fn report(
        &mut self,
        name: &ProcessName,
        id: StreamId,
        report: wire::ProcessReport,
        now: Instant,
        now_ms: i64,
    ) {
        let Some(worker) = self.workers.get_mut(name) else {
            return;
        };
        if worker.stream.as_ref().is_none_or(|stream| stream.id != id) {
            return; // Replaced meanwhile.
        }
        let elapsed = worker
            .reported
            .replace(now)
            .map(|before| now.duration_since(before).as_secs_f64());
        let Some(state) = self.states.get_mut(name) else {
            return;
        };
        let state = Arc::make_mut(state);
        state.last_seen = now_ms;
        state.stage = report.stage();
        state.detail = report.detail;
        state.metrics = report.metrics;
        let mut before = std::mem::take(&mut state.shards);
        state.shards = report
            .shards
            .into_iter()
            .map(|shard| {
                let old = before.remove(&shard.shard_id);
                let events_per_s = rate(
                    old.as_ref()
                        .map(|old| (old.report.events, old.events_per_s)),
                    shard.events,
                    elapsed,
                );
                let state = ShardState {
                    report: shard,
                    events_per_s,
                };
                (state.report.shard_id, state)
            })
            .collect();
        let old = state.db.take();
        state.db = report.db.map(|db| {
            let of = |pick: fn(&DbState) -> (u64, f64)| old.as_ref().map(pick);
            DbState {
                reads_per_s: rate(of(|o| (o.report.reads, o.reads_per_s)), db.reads, elapsed),
                writes_per_s: rate(
                    of(|o| (o.report.writes, o.writes_per_s)),
                    db.writes,
                    elapsed,
                ),
                report: db,
            }
        });
        self.dirty = true;
    }

    /// Registers a command; the message goes into the outbox that comes back.
    pub(super) fn command(
        &mut self,
        name: &ProcessName,
        command: wire::command::Command,
        deadline: Duration,
    ) -> Result<(Outbox, wire::AgentMessage, CommandRun), CommandError> {
        self.next_command += 1;
        let id = self.next_command;
        let not_attached = || CommandError::NotAttached(name.clone());
        let worker = self.workers.get_mut(name).ok_or_else(not_attached)?;
        let stream = worker.stream.as_ref().ok_or_else(not_attached)?;
        if worker.commands.len() >= COMMANDS_MAX {
            return Err(CommandError::Busy(name.clone()));
        }
        let (progress, progress_rx) = mpsc::channel(PROGRESS_MAX);
        let (result, result_rx) = oneshot::channel();
        let outbox = stream.outbox.clone();
        worker.commands.insert(
            id,
            Pending {
                progress,
                result,
                deadline: Instant::now() + deadline,
                after: deadline,
            },
        );
        let message = wire::AgentMessage {
            message: Some(ToWorker::Command(wire::Command {
                id,
                command: Some(command),
            })),
        };
        let run = CommandRun {
            progress: progress_rx,
            result: result_rx,
        };
        Ok((outbox, message, run))
    }

    pub(super) fn progress(&mut self, name: &ProcessName, mut progress: wire::CommandProgress) {
        super::clean::text(&mut progress.unit, 32);
        if let Some(worker) = self.workers.get(name)
            && let Some(pending) = worker.commands.get(&progress.id)
        {
            // A reader that is behind wants the next one anyway.
            let _ = pending.progress.try_send(progress);
        }
    }

    pub(super) fn result(&mut self, name: &ProcessName, result: wire::CommandResult) {
        if let Some(worker) = self.workers.get_mut(name)
            && let Some(pending) = worker.commands.remove(&result.id)
        {
            // Whoever asked may have stopped waiting.
            let _ = pending.result.send(Ok(result));
        }
    }

    /// Fails commands whose time is over or whose asker is gone.
    pub(super) fn expire(&mut self, now: Instant) {
        for (name, worker) in &mut self.workers {
            let over = worker
                .commands
                .extract_if(|_, p| now >= p.deadline || p.result.is_closed());
            for (_, pending) in over {
                let error = CommandError::Timeout(name.clone(), pending.after);
                let _ = pending.result.send(Err(error));
            }
        }
    }

    /// When [`Self::expire`] has something to do next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.workers
            .values()
            .flat_map(|worker| worker.commands.values())
            .map(|pending| pending.deadline)
            .min()
    }

    /// All states, if they have changed since this was last called.
    pub(super) fn take_changes(&mut self) -> Option<States> {
        std::mem::take(&mut self.dirty).then(|| self.states.clone())
    }

    /// Forgets workers whose process is no more.
    pub(super) fn forget(&mut self, exists: impl Fn(&ProcessName) -> bool) {
        let before = self.states.len();
        self.states.retain(|name, _| exists(name));
        self.workers
            .retain(|name, worker| worker.stream.is_some() || exists(name));
        self.dirty |= self.states.len() != before;
    }
}

impl Worker {
    fn fail_commands(&mut self, name: &ProcessName) {
        for (_, pending) in self.commands.drain() {
            let _ = pending.result.send(Err(CommandError::Gone(name.clone())));
        }
    }
}

impl WorkerState {
    fn new(attempt: u64) -> Self {
        Self {
            attempt,
            kind: wire::WorkerKind::Unspecified,
            version: String::new(),
            attached: false,
            last_seen: 0,
            stage: wire::ProcessStage::Starting,
            detail: String::new(),
            shards: BTreeMap::new(),
            db: None,
            metrics: BTreeMap::new(),
        }
    }
}

/// The rate of a counter: the difference to the last report, smoothed exponentially. A counter that
/// went back started anew.
fn rate(before: Option<(u64, f64)>, now: u64, elapsed_s: Option<f64>) -> f64 {
    let (Some((count, rate)), Some(elapsed_s)) = (before, elapsed_s) else {
        return 0.0;
    };
    if elapsed_s <= 0.0 {
        return rate;
    }
    let current = now.saturating_sub(count) as f64 / elapsed_s;
    let weight = 1.0 - (-elapsed_s / SMOOTH_S).exp();
    rate + (current - rate) * weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_counter_shows_its_rate_and_a_restart_never_a_huge_one() {
        let mut shown = 0.0;
        for second in 1..60 {
            shown = rate(Some(((second - 1) * 100, shown)), second * 100, Some(1.0));
        }
        assert!((shown - 100.0).abs() < 0.1, "{shown}");
        assert!(rate(Some((1_000_000, shown)), 5, Some(1.0)) < shown);
        assert!((rate(Some((1, shown)), 2, Some(0.0)) - shown).abs() < f64::EPSILON);
        assert!(rate(None, 7, Some(1.0)).abs() < f64::EPSILON);
    }
}
