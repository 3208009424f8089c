//! Operations on archives: starts their jobs, takes their reports, keeps the daily schedule.

use std::path::PathBuf;

use tanako_fleet::ProcessKind;
use tanako_proto::fleet::v1::{self as wire, Problem};

use super::{Caller, carry::announce_end, schedule, task::Task};
use crate::{
    backup::{Job, JobEvent, JobOutcome},
    clock::now_ms,
    history::Severity,
    operations::{Kind, OpState, StepState, ledger},
};

/// Who asks when the schedule does.
const SCHEDULE: &str = "schedule";

impl Task {
    /// Starts the job of the operation at `index`, if it is one of archives. A job that an earlier
    /// life of the agent began is begun anew: nothing of it counts before it is whole.
    pub(super) fn start_job(&mut self, index: usize) {
        let op = &mut self.active[index].op;
        if !op.kind.is_backup() || op.state.is_ended() {
            return;
        }
        op.state = OpState::Running;
        for step in &mut op.steps {
            step.state = StepState::Pending;
            step.started_at = 0;
        }
        (op.done, op.total) = (0, 0);
        let cancel = self.cancel.child_token();
        if op.aborting {
            cancel.cancel();
        }
        let job = Job {
            id: op.id.clone(),
            kind: op.kind,
            label: op.date.clone(),
            keep: op.keep,
            root: PathBuf::from(self.desired.backup_dir().unwrap_or_default()),
            fleet: self.desired.fleet().to_owned(),
            nodes: self
                .desired
                .processes
                .iter()
                .filter(|spec| spec.kind == ProcessKind::Db)
                .map(|spec| spec.name.clone())
                .collect(),
            hosts: self.hosts.clone(),
            events: self.job_events.clone(),
            cancel: cancel.clone(),
        };
        self.active[index].job = Some(cancel);
        self.tracker.spawn(job.run());
    }

    /// Takes the report of a job.
    pub(super) async fn job_event(&mut self, event: JobEvent) {
        let (JobEvent::Began { id, .. }
        | JobEvent::Progress { id, .. }
        | JobEvent::Ended { id, .. }
        | JobEvent::Finished { id, .. }) = &event;
        let Some(active) = self.active.iter_mut().find(|active| &active.op.id == id) else {
            return;
        };
        if self.cancel.is_cancelled() {
            // The agent leaves: the next one begins the job anew.
            return;
        }
        let now = now_ms();
        let op = &mut active.op;
        op.updated_at = now;
        active.dirty = true;
        match event {
            JobEvent::Began { object, .. } => {
                if let Some(step) = op.steps.iter_mut().find(|step| step.object == object) {
                    step.state = StepState::Running;
                    step.started_at = now;
                }
                op.message = format!("{} {object}", op.kind.as_str());
            }
            JobEvent::Progress {
                object,
                done,
                total,
                unit,
                ..
            } => {
                if let Some(step) = op.steps.iter_mut().find(|step| step.object == object) {
                    (step.done, step.total) = (done, total);
                }
                op.done = op.steps.iter().map(|step| step.done).sum();
                op.total = op.steps.iter().map(|step| step.total).sum();
                op.unit = unit;
            }
            JobEvent::Ended { object, result, .. } => {
                if let Some(step) = op.steps.iter_mut().find(|step| step.object == object) {
                    step.ended_at = now;
                    step.done = step.total;
                    (step.state, step.message) = match result {
                        Ok(message) => (StepState::Succeeded, message),
                        Err(message) => (StepState::Failed, message),
                    };
                }
            }
            JobEvent::Finished { outcome, .. } => {
                active.job = None;
                op.ended_at = now;
                for step in op.steps.iter_mut().filter(|step| !step.state.is_ended()) {
                    step.state = StepState::Skipped;
                    step.ended_at = now;
                }
                match outcome {
                    JobOutcome::Done { message, amount } => {
                        op.state = OpState::Succeeded;
                        op.message = message;
                        (op.done, op.total) = (amount, amount);
                    }
                    JobOutcome::Aborted => {
                        op.state = OpState::Aborted;
                        "aborted".clone_into(&mut op.message);
                    }
                    JobOutcome::Failed(problem) => {
                        op.state = OpState::Failed;
                        op.message.clone_from(&problem.message);
                        op.failure = Some((*problem).into());
                    }
                }
                announce_end(&self.parts.history, op);
                self.prune_after(&id_of_ended(self, now)).await;
            }
        }
        self.publish();
    }

    /// Writes the state of a job's operation down when that is due; whether something changed.
    pub(super) async fn persist_job(&mut self, index: usize) -> bool {
        let now = now_ms();
        let active = &self.active[index];
        let due = active.op.state.is_ended() || Self::is_persist_due(active, now);
        if !active.dirty || !due {
            return false;
        }
        if let Err(error) = self.persist(index, None, Vec::new()).await {
            self.refuse(&error);
        }
        true
    }

    /// Makes the backup that is due now.
    pub(super) async fn scheduled_backup(&mut self) {
        let now = now_ms();
        let Some(minute) = self
            .desired
            .spec
            .as_ref()
            .and_then(|spec| spec.backup.schedule_minute)
        else {
            return;
        };
        // The timer may run a little early when the clock is set.
        if schedule::next(now - 60_000, minute) > now {
            return;
        }
        self.backup_of(now).await;
    }

    /// Makes up for a backup that was due while no agent ran.
    pub(super) async fn catch_up_backup(&mut self) {
        let now = now_ms();
        let Some(minute) = self
            .desired
            .spec
            .as_ref()
            .and_then(|spec| spec.backup.schedule_minute)
        else {
            return;
        };
        let due_today = schedule::next(now, minute) - 24 * 3600 * 1000;
        let yesterday = schedule::previous_request_id(now);
        let known = ledger::by_request(&*self.parts.store, &yesterday).await;
        if due_today <= now
            && schedule::label(due_today) == schedule::label(now)
            && matches!(known, Ok(Some(_)))
        {
            self.backup_of(now).await;
        }
    }

    async fn backup_of(&mut self, now: i64) {
        let request = wire::OperationRequest {
            request_id: schedule::request_id(now),
            kind: Kind::Backup.as_str().to_owned(),
            ..wire::OperationRequest::default()
        };
        if let Err(problem) = self.submit(request, &Caller::agent(SCHEDULE)).await {
            self.complain(&problem);
        }
    }

    /// Deletes old sets once a scheduled backup is good.
    async fn prune_after(&mut self, backup: &str) {
        let Some(label) = backup.strip_prefix("schedule-") else {
            return;
        };
        let request = wire::OperationRequest {
            request_id: format!("schedule-prune-{label}"),
            kind: Kind::BackupPrune.as_str().to_owned(),
            ..wire::OperationRequest::default()
        };
        // The backup holds the archives until its end is written down.
        self.advance_jobs().await;
        if let Err(problem) = self.submit(request, &Caller::agent(SCHEDULE)).await {
            self.complain(&problem);
        }
    }

    async fn advance_jobs(&mut self) {
        for index in 0..self.active.len() {
            if self.active[index].op.kind.is_backup() {
                self.persist_job(index).await;
            }
        }
        self.retire();
    }

    fn complain(&self, problem: &Problem) {
        tracing::error!(code = %problem.code, message = %problem.message, "a scheduled backup was refused");
        self.parts.history.event(
            Severity::Error,
            "scheduled-backup-refused",
            "backup",
            format!("{}; {}", problem.message, problem.hint),
        );
    }
}

/// The request id of the scheduled backup that has just succeeded; empty = none.
fn id_of_ended(task: &Task, now: i64) -> String {
    task.active
        .iter()
        .map(|active| &active.op)
        .find(|op| {
            op.kind == Kind::Backup
                && op.state == OpState::Succeeded
                && op.ended_at == now
                && op.requested_by == SCHEDULE
        })
        .map_or_else(String::new, |op| op.request_id.clone())
}
