//! How a request becomes an operation: the new desired state, the operation, its request id and its
//! audit record in one transaction.

use tanako_fleet::plan::{self, Known};
use tanako_proto::fleet::v1::{self as wire, Problem};
use tanako_store::{Outcome, Txn};

use super::{
    Caller,
    draft::Draft,
    planning,
    task::{Active, Task},
};
use crate::{
    audit::Record,
    clock::now_ms,
    history::Severity,
    operations::{
        Kind, OpState, Operation,
        core::{self, Input},
        draining,
        ledger::{self, Index},
        model::cost_to_wire,
    },
    problem,
    supervisor::Desired as Wanted,
};

/// Longest request id, in bytes.
const REQUEST_ID_MAX: usize = 128;

impl Task {
    pub(super) async fn submit(
        &mut self,
        request: wire::OperationRequest,
        caller: &Caller,
    ) -> Result<wire::Operation, Problem> {
        if let Some(known) = self.known(&request.request_id).await? {
            return Ok(known);
        }
        let draft = self.draft(&request).await.map_err(|refused| *refused)?;
        if request.dry_run {
            return Ok(self
                .operation(&draft, &request.request_id, caller)
                .to_wire());
        }
        if draft.kind == Kind::Failover {
            self.give_up(&request.targets)
                .await
                .map_err(|refused| *refused)?;
        }
        self.accept(draft, request.request_id, caller).await
    }

    pub(super) async fn apply(
        &mut self,
        request: wire::ApplyRequest,
        caller: &Caller,
    ) -> Result<wire::Operation, Problem> {
        if let Some(known) = self.known(&request.request_id).await? {
            return Ok(known);
        }
        self.check_base(request.base_version)
            .map_err(|refused| *refused)?;
        let draft = self
            .draft_apply(&request.spec_toml, &request.file_name, request.no_start)
            .map_err(|refused| *refused)?;
        self.accept(draft, request.request_id, caller).await
    }

    pub(super) async fn plan(
        &self,
        request: wire::PlanRequest,
    ) -> Result<wire::PlanReply, Problem> {
        let draft = match request.of {
            Some(wire::plan_request::Of::SpecToml(toml)) => {
                self.draft_apply(&toml, &request.file_name, false)
            }
            Some(wire::plan_request::Of::Operation(operation)) => self.draft(&operation).await,
            None => Err(Box::new(Problem::new(
                "invalid-argument",
                "plan",
                "the request names neither a spec nor an operation",
            ))),
        }
        .map_err(|refused| *refused)?;
        let (cost, left) = self.cost(&draft);
        Ok(wire::PlanReply {
            version: self.desired.document.version,
            changes: draft
                .marks
                .iter()
                .map(|mark| {
                    let (action, why) = mark.line();
                    wire::PlanChange {
                        action: action.to_owned(),
                        object: format!("host:{}", mark.host),
                        why,
                    }
                })
                .chain(draft.plan.lines.iter().map(|line| wire::PlanChange {
                    action: line.action.to_owned(),
                    object: line.object.to_string(),
                    why: line.why.clone(),
                }))
                .collect(),
            cost: Some(cost_to_wire(&cost, left)),
            warnings: draft.plan.warnings.clone(),
            checks: draft
                .plan
                .checks
                .iter()
                .map(|check| wire::PlanCheck {
                    check: check.what.to_owned(),
                    state: check.grade.as_str().to_owned(),
                    message: check.text.clone(),
                })
                .collect(),
        })
    }

    pub(super) async fn control(
        &mut self,
        request: wire::ControlRequest,
        caller: &Caller,
    ) -> Result<wire::Operation, Problem> {
        let Some(index) = self
            .active
            .iter()
            .position(|active| active.op.id == request.id)
        else {
            let number = request
                .id
                .rsplit_once('-')
                .and_then(|(_, number)| number.parse().ok());
            let ended = match number {
                Some(number) => ledger::by_number(&*self.parts.store, number)
                    .await
                    .map_err(|error| problem::from_store(&error))?
                    .filter(|op| op.id == request.id),
                None => None,
            };
            return Err(match ended {
                Some(op) => Problem::new(
                    "already-ended",
                    &request.id,
                    format!("the operation has ended: {}", op.state.as_str()),
                ),
                None => Problem::new(
                    "unknown-operation",
                    &request.id,
                    format!("there is no operation {:?}", request.id),
                )
                .hint("`tanakoctl operation list` lists them"),
            });
        };
        let backup = self.active[index].op.kind.is_backup();
        if request.action == "abort" && self.active[index].op.is_past_return() {
            return Err(too_late(&self.active[index].op));
        }
        let input = match request.action.as_str() {
            "abort" => Input::Abort,
            "pause" | "resume" if backup => {
                return Err(Problem::new(
                    "unsupported",
                    &request.id,
                    format!("a {} cannot be paused", self.active[index].op.kind.as_str()),
                )
                .hint("abort it and start it again later"));
            }
            "pause" => Input::Pause,
            "resume" => Input::Resume,
            other => {
                return Err(Problem::new(
                    "invalid-argument",
                    &request.id,
                    format!("{other:?} is not an action"),
                )
                .hint("actions are pause, resume and abort"));
            }
        };
        let before = self.active[index].op.clone();
        core::step(&mut self.active[index].op, now_ms(), input);
        let record = Record {
            at: now_ms(),
            who: caller.who.clone(),
            from: caller.from.clone(),
            action: request.action.clone(),
            object: request.id.clone(),
            before: before.state.as_str().to_owned(),
            after: self.active[index].op.state.as_str().to_owned(),
            outcome: "accepted".to_owned(),
        };
        let txn = self.index.update(Txn::new(), &self.active[index].op);
        let txn = self.audit.append(txn, &record);
        if let Err(error) = self.parts.store.commit(txn).await {
            self.active[index].op = before;
            return Err(problem::from_store(&error));
        }
        self.audit.committed();
        if request.action == "abort"
            && let Some(job) = &self.active[index].job
        {
            job.cancel();
        }
        let answer = self.active[index].op.to_wire();
        self.publish();
        Ok(answer)
    }

    pub(super) async fn known(&self, request_id: &str) -> Result<Option<wire::Operation>, Problem> {
        if request_id.is_empty() {
            return Ok(None);
        }
        let plain = request_id
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/');
        if request_id.len() > REQUEST_ID_MAX || !plain {
            return Err(Problem::new(
                "invalid-argument",
                "request_id",
                format!("a request id has at most {REQUEST_ID_MAX} printable characters without /"),
            ));
        }
        if let Some(active) = self
            .active
            .iter()
            .find(|active| active.op.request_id == request_id)
        {
            return Ok(Some(active.op.to_wire()));
        }
        ledger::by_request(&*self.parts.store, request_id)
            .await
            .map(|found| found.map(|op| op.to_wire()))
            .map_err(|error| problem::from_store(&error))
    }

    fn cost(&self, draft: &Draft) -> (plan::Cost, u32) {
        let table = self.table();
        let identify = self.parts.broker.status().borrow().clone();
        let known = |spec: &tanako_fleet::ProcessSpec| Known {
            running: table
                .get(&spec.name)
                .is_some_and(|process| process.state.is_live()),
            resumable: !spec.shard_ids.is_empty()
                && self.hosts.sessions(spec) >= spec.shard_ids.len(),
        };
        let moves = draft
            .plan
            .moves
            .iter()
            .map(|(spec, action)| (&**spec, *action, known(spec)));
        let mut cost = plan::cost(moves, identify.max_concurrency, draft.max_unavailable);
        if let Some(seconds) = draft.seconds {
            cost.seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
        }
        (cost, identify.remaining)
    }

    fn operation(&self, draft: &Draft, request_id: &str, caller: &Caller) -> Operation {
        let number = self.index.next_number();
        let now = now_ms();
        let (cost, identifies_left) = self.cost(draft);
        let mut steps = draft.plan.steps.clone();
        planning::allow_for_permits(&mut steps, &cost);
        let request_id = if request_id.is_empty() {
            format!("agent-{number}")
        } else {
            request_id.to_owned()
        };
        let mut op = Operation {
            targets: draft.targets.clone(),
            steps,
            max_unavailable: draft.max_unavailable,
            unit: draft.unit.to_owned(),
            requested_by: caller.who.clone(),
            request_id,
            cost,
            identifies_left,
            date: draft.date.clone(),
            keep: draft.keep,
            strategy: draft.strategy,
            bots: draft.bots.clone(),
            old_shards: draft.old_shards,
            replaces: draft.replaced.is_some(),
            brings: draft.next.as_ref().map_or(0, |next| next.written().mark()),
            watch: draft.watch.clone(),
            starting_max: draft.starting_max,
            deadline_at: match draft.deadline_s {
                0 => 0,
                seconds => now + i64::from(seconds) * 1000,
            },
            ..Operation::new(number, draft.kind, now)
        };
        if !draft.kind.is_backup() {
            op.count_steps();
            if draft.plan.is_empty() {
                op.state = OpState::Succeeded;
                op.ended_at = now;
                op.unchanged = draft.next.is_none() && draft.marks.is_empty();
                let kept = op.steps.len() + draft.plan.lines.len();
                op.message = match (op.unchanged, kept) {
                    (false, _) => "changed; no process is affected".to_owned(),
                    (true, _) => "nothing to do: everything is as asked".to_owned(),
                };
                if let Some(failure) = draining::failure(&op) {
                    op.state = OpState::Failed;
                    op.unchanged = false;
                    op.message.clone_from(&failure.message);
                    op.failure = Some(failure);
                }
            }
        }
        op
    }

    pub(super) async fn accept(
        &mut self,
        draft: Draft,
        request_id: String,
        caller: &Caller,
    ) -> Result<wire::Operation, Problem> {
        let op = self.operation(&draft, &request_id, caller);
        let before = self.desired.document.version;
        let record = Record {
            at: op.created_at,
            who: caller.who.clone(),
            from: caller.from.clone(),
            action: op.kind.as_str().to_owned(),
            object: if op.targets.is_empty() {
                op.date.clone()
            } else {
                op.targets.join(" ")
            },
            before: format!("version {before}"),
            after: format!(
                "version {}",
                draft
                    .next
                    .as_ref()
                    .map_or(before, |next| next.document.version)
            ),
            outcome: if op.unchanged {
                "unchanged".to_owned()
            } else {
                format!("accepted as {}", op.id)
            },
        };
        let mut txn = self
            .audit
            .append(self.index.insert(Txn::new(), &op), &record);
        let mut places = None;
        if let Some(next) = &draft.next {
            txn = next.commit(&self.desired, txn);
            places = self.places_after(next, &op, &[]);
            self.check_places(next, places.as_ref(), &op)
                .map_err(|refused| *refused)?;
        }
        if let Some(places) = &places {
            txn = self.stored.commit(places, self.epoch, txn);
        }
        txn = self.mark(&draft.marks, txn);
        if let Some(replaced) = &draft.replaced {
            txn = Index::keep(txn, &op, replaced);
        }
        let revision = match self.parts.store.commit(txn).await {
            Ok(Outcome::Committed { revision }) => revision,
            Ok(Outcome::Conflict { .. }) => {
                return Err(Problem::new(
                    "conflict",
                    "fleet",
                    "someone changed the desired state at the same moment",
                )
                .hint("try again")
                .retryable());
            }
            Err(error) => {
                tracing::error!(%error, "an operation could not be accepted");
                return Err(problem::from_store(&error));
            }
        };
        self.audit.committed();
        self.index.committed(&op);
        self.placed(places, revision);
        if let Some(mut next) = draft.next {
            next.committed(revision);
            self.desired = next;
            self.publish_desired();
            if matches!(op.kind, Kind::Apply | Kind::Rollout | Kind::Reshard) {
                self.configure_broker().await;
                self.define_waiting(&op).await;
            }
        }
        self.parts.history.event(
            Severity::Info,
            "operation-started",
            &op.id,
            format!("{} {} by {}", op.kind.as_str(), record.object, caller.who),
        );
        let answer = op.to_wire();
        if op.state.is_ended() {
            self.show_ended(&op);
        } else {
            let mut active = Active::new(op);
            active.persisted_at = now_ms();
            self.active.push(active);
            self.start_job(self.active.len() - 1);
        }
        self.publish();
        Ok(answer)
    }
}

impl Task {
    /// Shows the processes that do not run, and will not before their turn comes, by their new specs.
    async fn define_waiting(&self, op: &Operation) {
        let waiting = planning::waiting(&self.desired, op, &self.table());
        let waiting = waiting.into_iter().map(|spec| (spec, Wanted::Stopped));
        self.define_all(waiting.collect()).await;
    }
}

fn too_late(op: &Operation) -> Problem {
    let hint = if op.kind == Kind::Reshard {
        let bot = op.bots.first().map_or("", String::as_str);
        format!(
            "to go back, run `tanakoctl reshard {bot} --shards {}`",
            op.old_shards
        )
    } else {
        format!(
            "to go back, run `tanakoctl rollout undo {}` once it has ended",
            op.id
        )
    };
    Problem::new(
        "too-late",
        &op.id,
        "the new set serves already, the old one is being removed",
    )
    .hint(hint)
}
