//! Carries operations forward: asks the pure core what to do, writes that down, does it.

use std::sync::Arc;

use futures_util::future::join_all;
use tanako_fleet::ProcessName;
use tanako_store::StoreError;

use super::{places::Moves, planning, task::Task};
use crate::{
    clock::now_ms,
    history::Severity,
    hosts::Picture,
    operations::{
        Kind, OpState, Operation, StepAction, StepState,
        books::Books,
        core::{self, Change, Effect, Input, Observed},
        duties::Lingering,
        ledger, moving,
        observing::{compare, observation, observe, unheard, unknown},
    },
};

impl Task {
    /// One round over all operations on processes.
    pub(super) async fn advance(&mut self) {
        if self.active.is_empty() || self.retry_at.is_some() {
            return;
        }
        let picture = self.hosts.picture();
        let observed = self.observe(&picture);
        let mut changed = false;
        for index in 0..self.active.len() {
            if self.active[index].op.kind.is_backup() {
                changed |= self.persist_job(index).await;
                continue;
            }
            let now = now_ms();
            let redirected = self.redirected(&picture, index, now);
            let before = self.active[index].op.clone();
            for (step, to) in redirected {
                moving::redirect(&mut self.active[index].op, step, now, to);
            }
            let assignment = self.hosts.assignment();
            let mut settled = moving::settle(&mut self.active[index].op, now, |object| {
                let name: ProcessName = object.parse().ok()?;
                assignment.host_of(&name).map(str::to_owned)
            });
            let hosts = self.parts.registry.hosts();
            moving::found(&mut self.active[index].op, now, |host| {
                hosts.get(host).is_some_and(|known| known.present.is_some())
            });
            let mut effects =
                core::step(&mut self.active[index].op, now, Input::Observe(&observed));
            effects.append(&mut settled);
            let hosts = &self.hosts;
            Books {
                table: &picture.table,
                workers: &picture.workers,
                last_before: &|process, attempt, shard, count| {
                    hosts.last_deposit_before(shard, count, process, attempt)
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
        let moves: Moves = changes
            .iter()
            .filter_map(|change| match change {
                Change::Move(process, host) => Some((process.parse().ok()?, host.clone())),
                _ => None,
            })
            .collect();
        if changes.len() == moves.len() {
            return self.persist(index, None, moves).await;
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
        self.persist(index, Some(next), moves).await
    }

    /// Gives the orders of one round together: a thousand, each after the answer to the one before,
    /// would take longer than what they start. Those for other hosts are not waited for: what one
    /// cannot do is told later, and what it has done is seen.
    async fn carry_out(&mut self, index: usize, effects: Vec<Effect>) {
        let number = self.active[index].op.number;
        let (own, others) = self.errands(number, effects);
        for errands in others {
            let courier = self.courier();
            let cancel = self.cancel.clone();
            self.tracker
                .spawn(cancel.run_until_cancelled_owned(async move {
                    courier.run_and_tell(errands).await;
                }));
        }
        let courier = self.courier();
        let results = join_all(own.into_iter().map(|errands| courier.run(errands))).await;
        for (object, why) in results.into_iter().flatten() {
            self.refused(number, &object, &why);
        }
    }

    /// The set that an operation has replaced is no more, and with it the way back.
    fn forget_sessions(&self, op: &Operation) {
        for bot in &op.bots {
            self.hosts.forget_sessions(bot, op.old_shards);
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

impl Task {
    /// What operations see of the processes.
    fn observe(&self, picture: &Picture) -> Observed {
        let mut observed = observe(&picture.table, &picture.workers);
        let assignment = self.hosts.assignment();
        for host in picture.hosts.values().filter(|host| !host.link.is_up()) {
            for name in assignment.of(&host.name) {
                match observed.get_mut(name.as_str()) {
                    Some(seen) => unheard(seen, &host.name),
                    None if host.heard_at == 0 => {
                        observed.insert(name.to_string(), unknown(&host.name));
                    }
                    None => {}
                }
            }
        }
        let steps = self.active.iter().flat_map(|active| &active.op.steps);
        for step in steps {
            let restarts = step.action == StepAction::Restart && step.state == StepState::Running;
            let moves = step.action == StepAction::Move && !step.state.is_ended();
            if !restarts && !moves {
                continue;
            }
            let Ok(name) = step.object.parse() else {
                continue;
            };
            if restarts {
                if let Some(seen) = observed.get_mut(&step.object)
                    && let (Some(known), Some(wanted)) =
                        (picture.table.get(&name), self.desired.process(&name))
                {
                    compare(seen, &known.spec, wanted);
                }
                continue;
            }
            for host in [&step.from, &step.to] {
                let known = picture.hosts.get(host.as_str());
                let Some((known, process)) =
                    known.and_then(|host| Some((host, host.table.get(&name)?)))
                else {
                    continue;
                };
                let mut seen = observation(process, known.workers.get(&name).map(Arc::as_ref));
                if !known.link.is_up() {
                    unheard(&mut seen, host);
                }
                observed.insert(core::at(&step.object, host), seen);
            }
        }
        observed
    }
}
