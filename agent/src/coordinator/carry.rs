//! Carries operations forward: asks the pure core what to do, writes that down, does it.

use futures_util::future::join_all;
use tanako_store::StoreError;

use super::{planning, task::Task};
use crate::{
    clock::now_ms,
    history::Severity,
    operations::{
        Kind, OpState, Operation, StepState,
        books::Books,
        core::{self, Change, Effect, Input},
        duties::Lingering,
        ledger,
        observing::observe,
    },
    problem::with_sources,
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
            let vault = &self.parts.vault;
            Books {
                table: &table,
                workers: &workers,
                last_before: &|process, attempt, shard, count| {
                    vault.last_deposit_before(shard, count, process, attempt)
                },
                now,
            }
            .keep(&before, &mut self.active[index].op);
            let active = &mut self.active[index];
            if active.op != before {
                active.dirty = true;
                changed = true;
            }
            let must = !effects.is_empty() || active.op.state.is_ended();
            let due = (must && active.dirty) || Self::is_persist_due(active, now);
            if due && let Err(error) = self.write_down(index, &effects).await {
                // Nothing may happen that is not written down first.
                self.active[index].op = before;
                self.active[index].dirty = true;
                self.refuse(&error);
                break;
            }
            if self.active[index].op.state.is_ended() {
                self.lingering.extend(Lingering::of(now, &before));
            }
            self.assign_duties();
            self.carry_out(index, effects).await;
            self.announce(index, &before);
        }
        if changed {
            self.retire();
            self.publish();
        }
    }

    /// Writes the operation down with what its effects change of the desired state.
    async fn write_down(&mut self, index: usize, effects: &[Effect]) -> Result<(), StoreError> {
        let op = &self.active[index].op;
        let changes: Vec<&Change> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Document(change) => Some(change),
                _ => None,
            })
            .collect();
        if changes.is_empty() {
            return self.persist(index, None).await;
        }
        let replaced = if changes.contains(&&Change::TurnBack) {
            ledger::replaced(&*self.parts.store, op.number).await?
        } else {
            None
        };
        let next = planning::changed(&self.desired, op, &changes, replaced.as_ref());
        let next = next.map_err(|error| {
            StoreError::Unavailable(format!("the desired state cannot be changed: {error}"))
        })?;
        self.persist(index, Some(next)).await
    }

    /// Gives the orders of one round together: a thousand, each after the answer to the one before,
    /// would take longer than what they start.
    async fn carry_out(&mut self, index: usize, effects: Vec<Effect>) {
        let number = self.active[index].op.number;
        let orders = effects.into_iter().map(|effect| self.order(number, effect));
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

    /// The set that an operation has replaced is no more, and with it the way back.
    fn forget_sessions(&self, op: &Operation) {
        for bot in &op.bots {
            self.parts.vault.forget(bot, op.old_shards);
        }
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
            if op.kind == Kind::Reshard && op.state == OpState::Succeeded {
                self.forget_sessions(op);
            }
        } else if op.course != before.course {
            let why = op
                .failure
                .as_ref()
                .map_or("it was aborted", |failure| failure.message.as_str());
            self.parts.history.event(
                Severity::Warning,
                "operation-turned-back",
                &op.id,
                format!("goes back to what was before: {why}"),
            );
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
