//! The task that owns the judge.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tanako_fleet::{
    ProcessName,
    health::{Action, Effect, Grade, Health as Judge, Input, Step, TICK_MS},
};
use tanako_proto::worker::v1::{self as wire, command::Command};
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Parts, Storm, View, observe};
use crate::{audit::Record, clock::now_ms, history::Severity};

/// A worker takes the order to replace a connection within this time, or is taken not to.
const RECONNECT_WITHIN: Duration = Duration::from_secs(30);
/// Outcomes that wait to be taken in; there are as many as actions, and those are seldom.
const OUTCOMES_MAX: usize = 64;
/// How often the store is asked, and how long it may take.
const STORE_EVERY: Duration = Duration::from_secs(10);
const STORE_WITHIN: Duration = Duration::from_secs(5);
/// A key that is always there once a spec was applied; whether it is does not matter.
const STORE_KEY: &str = "desired";

/// What became of an action.
struct Outcome {
    process: ProcessName,
    attempt: u64,
    shard: u32,
    failed: Option<String>,
}

pub(super) struct Task {
    parts: Parts,
    judge: Judge,
    publish: watch::Sender<Arc<View>>,
    tracker: TaskTracker,
    began: Instant,
    outcomes: mpsc::Sender<Outcome>,
    outcomes_rx: Option<mpsc::Receiver<Outcome>>,
}

impl Task {
    pub(super) fn new(
        parts: Parts,
        publish: watch::Sender<Arc<View>>,
        tracker: TaskTracker,
    ) -> Self {
        let (outcomes, outcomes_rx) = mpsc::channel(OUTCOMES_MAX);
        Self {
            parts,
            judge: Judge::new(),
            publish,
            tracker,
            began: Instant::now(),
            outcomes,
            outcomes_rx: Some(outcomes_rx),
        }
    }

    pub(super) async fn run(mut self, cancel: CancellationToken) {
        let mut outcomes = self
            .outcomes_rx
            .take()
            .expect("invariant: run is called once, with the receiver");
        let store = self.watch_store(cancel.clone());
        let mut tick = tokio::time::interval(Duration::from_millis(TICK_MS.unsigned_abs()));
        // After a pause of the machine one look is as good as many.
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let effects = tokio::select! {
                () = cancel.cancelled() => return,
                Some(outcome) = outcomes.recv() => {
                    let now = self.now();
                    self.judge.step(now, Input::Acted {
                        process: &outcome.process,
                        attempt: outcome.attempt,
                        shard: outcome.shard,
                        failed: outcome.failed.as_deref(),
                    })
                }
                _ = tick.tick() => self.look(),
            };
            for effect in effects {
                self.carry_out(effect, &cancel);
            }
            let answers = *store.borrow();
            self.show(answers);
        }
    }

    /// Milliseconds on a clock that does not go back.
    fn now(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    fn look(&mut self) -> Vec<Effect> {
        let table = self.parts.supervisor.status().borrow().clone();
        let workers = self.parts.workers.states().borrow().clone();
        let operations = self.parts.operations.borrow().clone();
        let readings = observe::readings(&table, &workers, &operations);
        let bots = observe::bots(&self.parts.desired.borrow(), &self.parts.identify.borrow());
        let now = self.now();
        let input = Input::Observed {
            readings: &readings,
            bots: &bots,
        };
        self.judge.step(now, input)
    }

    fn carry_out(&self, effect: Effect, cancel: &CancellationToken) {
        match effect {
            Effect::Event {
                grade,
                kind,
                object,
                message,
            } => {
                let severity = match grade {
                    Grade::Info => Severity::Info,
                    Grade::Warning => Severity::Warning,
                    Grade::Error => Severity::Error,
                };
                self.parts.history.event(severity, kind, &object, message);
            }
            Effect::Act(action) => {
                self.publish.send_modify(|view| {
                    let view = Arc::make_mut(view);
                    *view.actions.entry(action.step.as_str()).or_default() += 1;
                });
                let (parts, outcomes) = (self.parts.clone(), self.outcomes.clone());
                let cancel = cancel.clone();
                self.tracker.spawn(async move {
                    tokio::select! {
                        () = cancel.cancelled() => {}
                        () = act(parts, action, outcomes) => {}
                    }
                });
            }
        }
    }

    fn show(&self, store_answers: Option<bool>) {
        let mut shards = std::collections::BTreeMap::new();
        for (process, shard, verdict) in self.judge.verdicts() {
            shards
                .entry(process.clone())
                .or_insert_with(std::collections::BTreeMap::new)
                .insert(shard, verdict.clone());
        }
        let storms = self
            .judge
            .storms()
            .map(|(bot, troubled, total)| Storm {
                bot: bot.to_owned(),
                troubled,
                total,
            })
            .collect();
        let view = View {
            shards,
            storms,
            actions: self.publish.borrow().actions.clone(),
            store_answers,
        };
        self.publish.send_if_modified(|known| {
            let changed = **known != view;
            if changed {
                *known = Arc::new(view);
            }
            changed
        });
    }

    /// Asks the store now and then whether it answers.
    fn watch_store(&self, cancel: CancellationToken) -> watch::Receiver<Option<bool>> {
        let (answers, receiver) = watch::channel(None);
        let store = Arc::clone(&self.parts.store);
        self.tracker.spawn(async move {
            loop {
                let asked = tokio::time::timeout(STORE_WITHIN, store.get(STORE_KEY));
                let answer = tokio::select! {
                    () = cancel.cancelled() => return,
                    asked = asked => matches!(asked, Ok(Ok(_))),
                };
                answers.send_replace(Some(answer));
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(STORE_EVERY) => {}
                }
            }
        });
        receiver
    }
}

/// Carries an action out, and says what became of it.
async fn act(parts: Parts, action: Action, outcomes: mpsc::Sender<Outcome>) {
    let failed = match action.step {
        Step::None => None,
        Step::Resume | Step::Identify => reconnect(&parts, &action).await.err(),
        Step::Respawn => respawn(&parts, &action).await.err(),
    };
    let record = Record {
        at: now_ms(),
        who: "agent (health)".to_owned(),
        from: "agent".to_owned(),
        action: action.step.as_str().to_owned(),
        object: format!("{} shard {}", action.process, action.shard),
        before: action.why,
        after: String::new(),
        outcome: failed
            .as_ref()
            .map_or_else(|| "succeeded".to_owned(), |why| format!("failed: {why}")),
    };
    let outcome = Outcome {
        process: action.process,
        attempt: action.attempt,
        shard: action.shard,
        failed,
    };
    // The task may be gone.
    let _ = outcomes.send(outcome).await;
    (parts.audit)(record).await;
}

async fn reconnect(parts: &Parts, action: &Action) -> Result<(), String> {
    let command = Command::Reconnect(wire::Reconnect {
        shard_id: action.shard,
        identify: action.step == Step::Identify,
        why: action.why.clone(),
    });
    let run = parts
        .workers
        .command(&action.process, command, RECONNECT_WITHIN)
        .await
        .map_err(|error| error.to_string())?;
    let result = run
        .result
        .await
        .map_err(|_| "the agent is stopping".to_owned())?
        .map_err(|error| error.to_string())?;
    if result.ok {
        Ok(())
    } else {
        Err(format!("{} ({})", result.message, result.code))
    }
}

/// Restarts the process, unless it is another one by now.
async fn respawn(parts: &Parts, action: &Action) -> Result<(), String> {
    let attempt = parts
        .supervisor
        .status()
        .borrow()
        .get(&action.process)
        .map(|process| process.attempt);
    if attempt != Some(action.attempt) {
        return Err("the process has been restarted meanwhile".to_owned());
    }
    parts
        .supervisor
        .restart(&action.process, action.attempt)
        .await
        .map_err(|error| error.to_string())
}
