//! What a request must satisfy before it becomes an operation, and how it becomes one: the new
//! desired state, the operation, its request id and its audit record in one transaction.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use futures_util::future::join_all;

use tanako_fleet::{
    ProcessName,
    plan::{self, Known},
    spec,
    target::{self, Row, Target},
};
use tanako_proto::fleet::v1::{self as wire, Problem};
use tanako_store::{Outcome, Txn};

use super::{
    ARCHIVES, Caller,
    planning::{self, Plan},
    task::{Active, Task},
};
use crate::{
    audit::Record,
    backup::set,
    clock::now_ms,
    desired::{Desired, SPEC_BYTES_MAX},
    history::Severity,
    operations::{
        Kind, OpState, Operation, Step, StepAction,
        core::{self, Input},
        ledger,
        model::cost_to_wire,
    },
    problem,
    supervisor::Desired as Wanted,
};

/// Longest request id, in bytes.
const REQUEST_ID_MAX: usize = 128;
/// Most targets in one request.
const TARGETS_MAX: usize = 1_000;

type Refused = Box<Problem>;

/// A request, understood: what it will be and what it leaves of the desired state.
struct Draft {
    kind: Kind,
    targets: Vec<String>,
    plan: Plan,
    next: Option<Desired>,
    max_unavailable: u32,
    date: String,
    keep: u32,
    unit: &'static str,
}

impl Task {
    pub(super) async fn submit(
        &mut self,
        request: wire::OperationRequest,
        caller: &Caller,
    ) -> Result<wire::Operation, Problem> {
        if let Some(known) = self.known(&request.request_id).await? {
            return Ok(known);
        }
        let draft = self.draft(&request).map_err(|refused| *refused)?;
        if request.dry_run {
            return Ok(self
                .operation(&draft, &request.request_id, caller)
                .to_wire());
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

    pub(super) fn plan(&self, request: wire::PlanRequest) -> Result<wire::PlanReply, Refused> {
        let draft = match request.of {
            Some(wire::plan_request::Of::SpecToml(toml)) => {
                self.draft_apply(&toml, &request.file_name, false)
            }
            Some(wire::plan_request::Of::Operation(operation)) => self.draft(&operation),
            None => Err(Box::new(Problem::new(
                "invalid-argument",
                "plan",
                "the request names neither a spec nor an operation",
            ))),
        }?;
        let (cost, left) = self.cost(&draft);
        Ok(wire::PlanReply {
            version: self.desired.document.version,
            changes: draft
                .plan
                .lines
                .iter()
                .map(|line| wire::PlanChange {
                    action: line.action.to_owned(),
                    object: line.object.to_string(),
                    why: line.why.clone(),
                })
                .collect(),
            cost: Some(cost_to_wire(&cost, left)),
            warnings: draft.plan.warnings.clone(),
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

    async fn known(&self, request_id: &str) -> Result<Option<wire::Operation>, Problem> {
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

    fn check_base(&self, base: u64) -> Result<(), Refused> {
        let current = self.desired.document.version;
        if base != 0 && base != current {
            return Err(Box::new(problem::stale(base, current)));
        }
        Ok(())
    }

    fn draft(&self, request: &wire::OperationRequest) -> Result<Draft, Refused> {
        let kind = Kind::REQUESTABLE
            .into_iter()
            .find(|kind| kind.as_str() == request.kind)
            .ok_or_else(|| {
                let known: Vec<&str> = Kind::REQUESTABLE.iter().map(|kind| kind.as_str()).collect();
                Problem::new(
                    "invalid-argument",
                    &request.kind,
                    format!("{:?} is not a kind of operation", request.kind),
                )
                .hint(format!("kinds are {}", known.join(", ")))
            })?;
        if self.desired.spec.is_none() {
            return Err(Box::new(no_spec()));
        }
        self.check_base(request.base_version)?;
        if kind.is_backup() {
            return self.draft_backup(kind, request);
        }
        let (names, named) = self.resolve(&request.targets)?;
        let table = self.table();
        let mut next = None;
        let mut plan = match kind {
            Kind::Start => {
                if names.iter().any(|name| !self.desired.is_wanted(name)) {
                    next = Some(self.desired.with(|document| {
                        document.stopped.retain(|name| !names.contains(name));
                    }));
                }
                planning::start(&names, &self.desired, &table)
            }
            Kind::Stop => {
                if names.iter().any(|name| self.desired.is_wanted(name)) {
                    next = Some(self.desired.with(|document| {
                        document.stopped.extend(names.iter().cloned());
                    }));
                }
                planning::stop(&names, &self.desired, &table)
            }
            _ => {
                if named.iter().any(|name| !self.desired.is_wanted(name)) {
                    next = Some(self.desired.with(|document| {
                        document.stopped.retain(|name| !named.contains(name));
                    }));
                }
                planning::restart(&names, &named, &self.desired, request.force)
            }
        };
        self.check_conflicts(&plan.steps)?;
        if request.timeout_s > 0 {
            for step in &mut plan.steps {
                step.timeout_ms = i64::from(request.timeout_s) * 1000;
            }
        }
        let max_unavailable = if request.force {
            u32::MAX
        } else {
            request.max_unavailable.max(1)
        };
        Ok(Draft {
            kind,
            targets: request.targets.clone(),
            plan,
            next,
            max_unavailable,
            date: String::new(),
            keep: 0,
            unit: "processes",
        })
    }

    fn draft_backup(&self, kind: Kind, request: &wire::OperationRequest) -> Result<Draft, Refused> {
        let nodes: Vec<String> = self
            .desired
            .processes
            .iter()
            .filter(|spec| spec.kind == tanako_fleet::ProcessKind::Db)
            .map(|spec| spec.name.to_string())
            .collect();
        if nodes.is_empty() && kind != Kind::BackupPrune {
            return Err(Box::new(
                Problem::new("no-database", "db", "the fleet has no database")
                    .hint("add a [database] section to fleet.toml"),
            ));
        }
        let directory = self.desired.backup_dir().unwrap_or_default();
        let date = set::choose(
            kind,
            std::path::Path::new(&directory),
            &request.date,
            now_ms(),
        )?;
        let keep = match (request.keep, &self.desired.spec) {
            (0, Some(spec)) => spec.backup.keep,
            (keep, _) => keep,
        };
        let objects = match kind {
            Kind::Backup | Kind::Restore => nodes,
            _ => Vec::new(),
        };
        let mut plan = Plan::default();
        for object in objects {
            plan.steps
                .push(Step::new(object, StepAction::Archive, 0, 0));
        }
        plan.steps
            .push(Step::new(ARCHIVES, StepAction::Archive, 1, 0));
        self.check_conflicts(&plan.steps)?;
        for step in &plan.steps {
            if let Ok(object) = step.object.parse() {
                let why = match kind {
                    Kind::Backup => "is written to an archive",
                    _ => "its data is replaced",
                };
                plan.lines.push(planning::Line {
                    action: "keep",
                    object,
                    why: why.to_owned(),
                });
            }
        }
        if kind == Kind::Restore {
            plan.warnings.push(format!(
                "all data of the database is replaced by backup {date}; make a backup first"
            ));
        }
        Ok(Draft {
            kind,
            targets: request.targets.clone(),
            plan,
            next: None,
            max_unavailable: 0,
            date,
            keep,
            unit: if kind == Kind::BackupPrune {
                "sets"
            } else {
                "rows"
            },
        })
    }

    fn draft_apply(&self, toml: &str, file_name: &str, no_start: bool) -> Result<Draft, Refused> {
        let file_name = if file_name.is_empty() {
            "fleet.toml"
        } else {
            file_name
        };
        if toml.len() > SPEC_BYTES_MAX {
            return Err(Box::new(Problem::new(
                "too-large",
                file_name,
                format!(
                    "the spec has {} bytes, at most {SPEC_BYTES_MAX} are accepted",
                    toml.len()
                ),
            )));
        }
        let parsed =
            spec::parse(toml, file_name).map_err(|error| problem::from_spec(&error, file_name))?;
        if let Some(old) = &self.desired.spec
            && old.name != parsed.name
        {
            return Err(Box::new(
                Problem::new(
                    "invalid-spec",
                    file_name,
                    format!(
                        "this agent runs fleet {:?}, the file is of {:?}",
                        old.name, parsed.name
                    ),
                )
                .hint("a fleet keeps its name; look whether this is the right context"),
            ));
        }
        let host = &self.parts.host;
        if !parsed.hosts.is_empty() && !parsed.hosts.iter().any(|known| &known.name == host) {
            return Err(Box::new(
                Problem::new(
                    "invalid-spec",
                    file_name,
                    format!("the spec lists hosts, and this one, {host:?}, is not among them"),
                )
                .hint("add it to [[hosts]], or start the agent with --host"),
            ));
        }
        let warnings = parsed.warnings.clone();
        let next = self.desired.with_spec(toml, file_name, parsed, no_start);
        let mut plan = planning::apply(&self.table(), &next);
        plan.warnings.extend(warnings);
        self.check_conflicts(&plan.steps)?;
        if self
            .active
            .iter()
            .any(|active| active.op.kind == Kind::Apply)
        {
            let running = self
                .active
                .iter()
                .find(|active| active.op.kind == Kind::Apply);
            let id = running.map_or("", |active| active.op.id.as_str());
            return Err(Box::new(conflict(file_name, id)));
        }
        let changed = next.document.toml != self.desired.document.toml
            || next.document.stopped != self.desired.document.stopped;
        Ok(Draft {
            kind: Kind::Apply,
            targets: Vec::new(),
            plan,
            next: changed.then_some(next),
            max_unavailable: 1,
            date: String::new(),
            keep: 0,
            unit: "processes",
        })
    }

    /// The processes that the targets stand for, and those among them that are named themselves.
    fn resolve(
        &self,
        texts: &[String],
    ) -> Result<(Vec<ProcessName>, BTreeSet<ProcessName>), Refused> {
        if texts.is_empty() || texts.len() > TARGETS_MAX {
            return Err(Box::new(
                Problem::new(
                    "invalid-target",
                    "targets",
                    format!("name 1 to {TARGETS_MAX} targets"),
                )
                .hint("use all, a bot, db, tanako/3, shard:17, host:a or guild:81384788765712384"),
            ));
        }
        let targets: Vec<Target> = texts
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, _>>()
            .map_err(|error| problem::from_target(&error))?;
        let rows: Vec<Row<'_>> = self
            .desired
            .processes
            .iter()
            .map(|spec| Row {
                name: &spec.name,
                kind: spec.kind,
                host: &self.parts.host,
                shard_ids: &spec.shard_ids,
                shard_count: spec.shard_count,
            })
            .collect();
        let names =
            target::resolve(&targets, &rows).map_err(|error| problem::from_target(&error))?;
        let named: Vec<Target> = targets
            .into_iter()
            .filter(|target| {
                matches!(
                    target,
                    Target::Process(_) | Target::Shard(_) | Target::Guild(_)
                )
            })
            .collect();
        let named = target::resolve(&named, &rows).map_err(|error| problem::from_target(&error))?;
        Ok((names, named.into_iter().collect()))
    }

    fn check_conflicts(&self, steps: &[Step]) -> Result<(), Refused> {
        for step in steps.iter().filter(|step| !step.state.is_ended()) {
            if let Some(holder) = self
                .active
                .iter()
                .find(|active| active.op.holds(&step.object))
            {
                return Err(Box::new(conflict(&step.object, &holder.op.id)));
            }
        }
        Ok(())
    }

    fn cost(&self, draft: &Draft) -> (plan::Cost, u32) {
        let table = self.table();
        let identify = self.parts.broker.status().borrow().clone();
        let known = |spec: &tanako_fleet::ProcessSpec| Known {
            running: table
                .get(&spec.name)
                .is_some_and(|process| process.state.is_live()),
            resumable: !spec.shard_ids.is_empty()
                && self.parts.vault.sessions_for(spec, None).len() >= spec.shard_ids.len(),
        };
        let moves = draft
            .plan
            .moves
            .iter()
            .map(|(spec, action)| (&**spec, *action, known(spec)));
        let cost = plan::cost(moves, identify.max_concurrency, draft.max_unavailable);
        (cost, identify.remaining)
    }

    fn operation(&self, draft: &Draft, request_id: &str, caller: &Caller) -> Operation {
        let number = self.index.next_number();
        let now = now_ms();
        let (cost, identifies_left) = self.cost(draft);
        let mut steps = draft.plan.steps.clone();
        for step in &mut steps {
            // Permits are waited for besides.
            step.timeout_ms += i64::from(if cost.identifies > 0 { cost.seconds } else { 0 }) * 1000;
        }
        let request_id = if request_id.is_empty() {
            format!("agent-{number}")
        } else {
            request_id.to_owned()
        };
        let mut op = Operation {
            id: format!("{}-{number}", draft.kind.as_str()),
            number,
            kind: draft.kind,
            targets: draft.targets.clone(),
            state: OpState::Pending,
            steps,
            aborting: false,
            max_unavailable: draft.max_unavailable,
            blocked_since: 0,
            done: 0,
            total: 0,
            unit: draft.unit.to_owned(),
            message: "accepted".to_owned(),
            failure: None,
            requested_by: caller.who.clone(),
            request_id,
            created_at: now,
            updated_at: now,
            ended_at: 0,
            receipt: Vec::new(),
            cost,
            identifies_left,
            unchanged: false,
            date: draft.date.clone(),
            keep: draft.keep,
        };
        if !draft.kind.is_backup() {
            op.count_steps();
            if draft.plan.is_empty() {
                op.state = OpState::Succeeded;
                op.ended_at = now;
                op.unchanged = draft.next.is_none();
                let kept = op.steps.len() + draft.plan.lines.len();
                op.message = match (op.unchanged, kept) {
                    (false, _) => "changed; no process is affected".to_owned(),
                    (true, _) => "nothing to do: everything is as asked".to_owned(),
                };
            }
        }
        op
    }

    async fn accept(
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
        if let Some(next) = &draft.next {
            txn = next.commit(&self.desired, txn);
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
        if let Some(mut next) = draft.next {
            next.committed(revision);
            self.desired = next;
            self.publish_desired();
            if op.kind == Kind::Apply {
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
        let table = self.table();
        let steps = op.steps.iter().filter(|step| !step.state.is_ended());
        let waiting: HashSet<&str> = steps.map(|step| step.object.as_str()).collect();
        let show = self.desired.processes.iter().filter(|spec| {
            let live = table
                .get(&spec.name)
                .is_some_and(|process| process.state.is_live());
            let waits = waiting.contains(spec.name.as_str());
            !live && (waits || !self.desired.is_wanted(&spec.name))
        });
        let defined = show.map(|spec| async move {
            let spec = Arc::clone(spec);
            let name = spec.name.clone();
            (
                name,
                self.parts.supervisor.define(spec, Wanted::Stopped).await,
            )
        });
        for (name, result) in join_all(defined).await {
            if let Err(error) = result {
                tracing::error!(process = %name, %error, "a process could not be defined");
            }
        }
    }
}

fn no_spec() -> Problem {
    Problem::new("no-spec", "fleet", "the fleet has no spec yet")
        .hint("write a fleet.toml and run `tanakoctl apply fleet.toml`")
}

fn conflict(object: &str, holder: &str) -> Problem {
    Problem::new("conflict", object, format!("operation {holder} is at work on {object}"))
        .hint(format!(
            "wait for it (`tanakoctl operation watch {holder}`) or end it (`tanakoctl operation abort {holder}`)"
        ))
        .retryable()
}
