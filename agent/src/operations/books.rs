//! Receipts: opened when a step begins or ends, brought up to date while the operation lasts.

use std::{collections::HashSet, sync::Arc};

use tanako_fleet::{ProcessName, process::Probe, vault::Last};

use super::{
    Operation, Step, StepAction, StepState, cut,
    receipt::{self, Base, How, Receipt},
};
use crate::{
    supervisor::{ProcessStatus, Table},
    worker::States,
};

/// Finds the latest deposit on a shard of whoever held it before an attempt of a process: process,
/// attempt, shard, of how many.
pub type LastBefore<'a> = dyn Fn(&ProcessName, u64, u32, u32) -> Option<Last> + 'a;

/// What receipts are made from.
pub struct Books<'a> {
    /// The processes.
    pub table: &'a Table,
    /// What they report.
    pub workers: &'a States,
    /// What they left.
    pub last_before: &'a LastBefore<'a>,
    /// Milliseconds since 1970.
    pub now: i64,
}

impl Books<'_> {
    /// Opens receipts for what has begun, and brings all of them up to date.
    pub fn keep(&self, before: &Operation, op: &mut Operation) {
        let mut added = Vec::new();
        let mut settled = Vec::new();
        // A switch ends with a worker's answer, between two looks: known by what is still open.
        let open: HashSet<String> = op
            .receipt
            .iter()
            .filter(|one| one.since == 0 && one.base.at > 0)
            .map(|one| one.process.clone())
            .collect();
        for (index, step) in op.steps.iter().enumerate() {
            let old = before
                .steps
                .get(index)
                .filter(|old| old.object == step.object);
            let began = step.is_begun() && old.is_none_or(|old| !old.is_begun());
            let ended = step.state == StepState::Succeeded
                && old.is_none_or(|old| old.state != StepState::Succeeded);
            match step.action {
                StepAction::Start | StepAction::Restart | StepAction::Move if ended => {
                    added.extend(self.restarted(step));
                }
                StepAction::Switch if began => added.extend(self.taking(step)),
                StepAction::Switch
                    if step.state == StepState::Succeeded && open.contains(&step.other) =>
                {
                    settled.push(step.clone());
                }
                StepAction::Cut if began && !step.back => added.extend(self.drained(op)),
                StepAction::Cut if ended && !step.back => added.extend(self.shadowed(op)),
                _ => {}
            }
        }
        op.receipt.extend(added);
        for step in settled {
            self.taken(&step, &mut op.receipt);
        }
        for receipt in &mut op.receipt {
            if let Ok(name) = receipt.process.parse::<ProcessName>() {
                receipt.refresh(self.workers.get(&name).map(Arc::as_ref));
            }
        }
        if op.state.is_ended() {
            // A switch that did not come about, and old sets that had nothing to tell.
            op.receipt.retain(|one| match one.how {
                How::Drained => one.lost + one.duplicated > 0,
                How::Unknown => one.base.at == 0 || one.since > 0,
                _ => true,
            });
        }
    }

    fn process(&self, name: &str) -> Option<&ProcessStatus> {
        let name = name.parse::<ProcessName>().ok()?;
        self.table.get(&name).map(Arc::as_ref)
    }

    fn receipt(process: &ProcessStatus, shard_id: u32) -> Receipt {
        Receipt {
            process: process.name.to_string(),
            attempt: process.attempt,
            shard_id,
            shard_count: process.shard_count,
            ..Receipt::default()
        }
    }

    /// When the holder before this attempt ended on the shard.
    fn ended(&self, process: &ProcessStatus, shard: u32, step: &Step) -> i64 {
        let (name, attempt) = (&process.name, process.attempt);
        let last = (self.last_before)(name, attempt, shard, process.shard_count)
            // One that never deposited leaves what an even earlier one left.
            .filter(|last| last.by.process != *name || last.by.attempt >= step.attempt_before);
        receipt::ended(last.as_ref(), step.last_seen_before)
    }

    /// A process that was started or restarted.
    fn restarted(&self, step: &Step) -> Vec<Receipt> {
        let Some(process) = self.process(&step.object) else {
            return Vec::new();
        };
        let is_worker = process.spec.ready.probe == Probe::Worker;
        let shards = process.shard_ids.iter();
        shards
            .map(|&shard| {
                let mut one = Self::receipt(process, shard);
                one.since = self.ended(process, shard, step);
                if one.since == 0 && step.action != StepAction::Start {
                    one.since = step.started_at;
                }
                if !is_worker && one.since > 0 {
                    // It tells nothing but that it is ready.
                    let back = process.ready_at_ms.unwrap_or(self.now);
                    one.gap_ms = u64::try_from(back - one.since).unwrap_or(0);
                }
                one
            })
            .collect()
    }

    /// A process that is to take sessions over: its counters begin here.
    fn taking(&self, step: &Step) -> Vec<Receipt> {
        let Some(process) = self.process(&step.other) else {
            return Vec::new();
        };
        let worker = self
            .workers
            .get(&process.name)
            .filter(|worker| worker.attempt == process.attempt);
        let shards = process.shard_ids.iter();
        shards
            .map(|&shard| {
                let mut one = Self::receipt(process, shard);
                one.base.at = step.started_at;
                if let Some(shard) = worker.and_then(|worker| worker.shards.get(&shard)) {
                    one.base = Base::of(&shard.report, step.started_at);
                }
                one
            })
            .collect()
    }

    /// It has taken them over.
    fn taken(&self, step: &Step, receipts: &mut [Receipt]) {
        let Some(process) = self.process(&step.other) else {
            return;
        };
        for one in receipts
            .iter_mut()
            .filter(|one| one.process == step.other && one.base.at == step.started_at)
        {
            if one.attempt != process.attempt {
                // It was started anew meanwhile, and counts from there.
                one.attempt = process.attempt;
                one.base = Base {
                    at: step.started_at,
                    ..Base::default()
                };
            }
            one.since = self.ended(process, one.shard_id, step);
        }
    }

    /// The old set of a reshard: it counts for what goes wrong from here on.
    fn drained(&self, op: &Operation) -> Vec<Receipt> {
        let mut all = Vec::new();
        for name in cut::old_set(op) {
            let Some(process) = self.process(&name) else {
                continue;
            };
            let worker = self.workers.get(&process.name);
            for &shard in &process.shard_ids {
                let mut one = Self::receipt(process, shard);
                one.how = How::Drained;
                if let Some(state) = worker.and_then(|worker| worker.shards.get(&shard)) {
                    one.base = Base::of(&state.report, self.now);
                }
                all.push(one);
            }
        }
        all
    }

    /// The new set of a reshard: it was there before the old one went, so that there is no gap.
    fn shadowed(&self, op: &Operation) -> Vec<Receipt> {
        cut::new_set(op)
            .iter()
            .filter_map(|name| self.process(name))
            .flat_map(|process| {
                let shards = process.shard_ids.iter();
                shards.map(|&shard| Self::receipt(process, shard))
            })
            .collect()
    }
}
