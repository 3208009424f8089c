//! Carries operations forward: asks the pure core what to do, writes that down, does it.

use std::sync::Arc;

use futures_util::future::join_all;
use tanako_fleet::{ProcessName, process::Probe};
use tanako_proto::worker::v1::ShardStage;

use super::task::Task;
use crate::{
    clock::now_ms,
    history::Severity,
    operations::{
        OpState, Operation, StepAction, StepState,
        core::{self, Effect, Input, Observation, Observed},
        receipt,
    },
    supervisor::{Desired as Wanted, SupervisorError, Table},
    worker::States,
};

impl Task {
    /// One round over all operations on processes.
    pub(super) async fn advance(&mut self) {
        if self.active.is_empty() || self.retry_at.is_some() {
            return;
        }
        let table = self.table();
        let workers = self.parts.workers.states().borrow().clone();
        let observed = observe(&table, &workers);
        let mut changed = false;
        for index in 0..self.active.len() {
            if self.active[index].op.kind.is_backup() {
                changed |= self.persist_job(index).await;
                continue;
            }
            let now = now_ms();
            let before = self.active[index].op.clone();
            let effects = core::step(&mut self.active[index].op, now, Input::Observe(&observed));
            let active = &mut self.active[index];
            add_receipts(&before, &mut active.op, &table, &workers, now);
            if active.op != before {
                active.dirty = true;
                changed = true;
            }
            let must = !effects.is_empty() || active.op.state.is_ended();
            let due = (must && active.dirty) || Self::is_persist_due(active, now);
            if due && let Err(error) = self.persist(index).await {
                // Nothing may happen that is not written down first.
                self.active[index].op = before;
                self.active[index].dirty = true;
                self.refuse(&error);
                break;
            }
            self.carry_out(index, effects).await;
            self.announce(index, &before);
        }
        if changed {
            self.retire();
            self.publish();
        }
    }

    /// Gives the orders of one round together: a thousand, each after the answer to the one before,
    /// would take longer than what they start.
    async fn carry_out(&mut self, index: usize, effects: Vec<Effect>) {
        let orders = effects.into_iter().map(|effect| self.order(effect));
        for (object, result) in join_all(orders).await {
            let Err(error) = result else { continue };
            let text = with_sources(&error);
            tracing::error!(process = %object, error = %text, "a step could not be carried out");
            let active = &mut self.active[index];
            core::step(
                &mut active.op,
                now_ms(),
                Input::Refused {
                    object: &object,
                    reason: &text,
                },
            );
            active.dirty = true;
        }
    }

    /// One order to the supervisor: whom it was about, and whether it was taken.
    async fn order(&self, effect: Effect) -> (String, Result<(), SupervisorError>) {
        let supervisor = &self.parts.supervisor;
        let (Effect::Start(object)
        | Effect::Stop(object)
        | Effect::Restart(object)
        | Effect::Forget(object)) = &effect;
        let Ok(name) = object.parse::<ProcessName>() else {
            return (object.clone(), Ok(()));
        };
        let result = match &effect {
            Effect::Start(_) | Effect::Restart(_) => match self.desired.process(&name) {
                None => Err(SupervisorError::Unknown(name)),
                // A restart is asked for under the old wish: a changed wish would itself start it.
                Some(spec) => match supervisor.define(spec.clone(), Wanted::Running).await {
                    Err(error) => Err(error),
                    Ok(()) if matches!(effect, Effect::Restart(_)) => {
                        supervisor.restart(&name).await
                    }
                    Ok(()) => supervisor.start_process(&name).await,
                },
            },
            Effect::Stop(_) => supervisor.stop(&name).await,
            Effect::Forget(_) => match supervisor.forget(&name).await {
                Err(SupervisorError::Unknown(_)) => Ok(()),
                other => other,
            },
        };
        (object.clone(), result)
    }

    /// Tells the history when an operation or one of its steps has come to an end.
    fn announce(&self, index: usize, before: &Operation) {
        let op = &self.active[index].op;
        for (old, new) in before.steps.iter().zip(&op.steps) {
            if new.state == StepState::Failed && old.state != StepState::Failed {
                self.parts.history.event(
                    Severity::Warning,
                    "operation-step-failed",
                    &new.object,
                    format!(
                        "{}: {} {}: {}",
                        op.id,
                        new.action.as_str(),
                        new.object,
                        new.message
                    ),
                );
            }
        }
        if op.state != before.state && op.state.is_ended() {
            announce_end(&self.parts.history, op);
        }
    }
}

/// Tells the history how an operation ended.
pub(super) fn announce_end(history: &crate::history::History, op: &Operation) {
    let (severity, kind) = match op.state {
        OpState::Succeeded => (Severity::Info, "operation-succeeded"),
        OpState::Aborted => (Severity::Warning, "operation-aborted"),
        _ => (Severity::Error, "operation-failed"),
    };
    history.event(severity, kind, &op.id, op.message.clone());
}

fn observe(table: &Table, workers: &States) -> Observed {
    table
        .iter()
        .map(|(name, process)| {
            let worker = workers
                .get(name)
                .filter(|worker| worker.attempt == process.attempt);
            // Its receipt needs what its shards say, which comes a moment after its readiness.
            let reported = process.spec.ready.probe != Probe::Worker
                || worker.is_some_and(|worker| {
                    let mut shards = process.shard_ids.iter();
                    shards.all(|shard| {
                        let state = worker.shards.get(shard);
                        state.is_some_and(|state| state.report.stage == ShardStage::Ready as i32)
                    })
                });
            let observation = Observation {
                state: process.state,
                ready: process.ready && reported,
                attempt: process.attempt,
                last_seen: worker.map_or(0, |worker| worker.last_seen),
                detail: process.detail.clone(),
            };
            (name.to_string(), observation)
        })
        .collect()
}

fn add_receipts(before: &Operation, op: &mut Operation, table: &Table, workers: &States, now: i64) {
    let mut receipts = Vec::new();
    for (old, new) in before.steps.iter().zip(&op.steps) {
        let ended = new.state == StepState::Succeeded && old.state != StepState::Succeeded;
        if !ended || new.action != StepAction::Restart {
            continue;
        }
        let Ok(name) = new.object.parse::<ProcessName>() else {
            continue;
        };
        let Some(process) = table.get(&name) else {
            continue;
        };
        let ready_at = process.ready_at_ms.unwrap_or(now);
        let worker = workers.get(&name).map(Arc::as_ref);
        receipts.extend(receipt::receipts(new, &process.shard_ids, worker, ready_at));
    }
    op.receipt.extend(receipts);
}

/// An error with everything behind it, on one line.
pub(super) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
