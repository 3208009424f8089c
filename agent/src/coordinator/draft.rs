//! What a request must satisfy before it becomes an operation.

use std::collections::{BTreeMap, BTreeSet};

use tanako_fleet::{
    ProcessName, Spec,
    rollout::Strategy,
    spec::{self, Generation},
    target::{self, Row, Target},
};
use tanako_proto::fleet::v1::{self as wire, Problem};

use super::{
    ARCHIVES,
    marks::Mark,
    planning::{self, Plan},
    task::Task,
};
use crate::{
    backup::set,
    clock::now_ms,
    desired::{Desired, SPEC_BYTES_MAX, Written},
    operations::{Kind, Step, StepAction, watching::Watch},
    problem,
    supervisor::State,
};

/// Another layout of the same shards, while they run.
fn moves_shards(bot: &str, from: &Generation, to: &Generation, file_name: &str) -> Problem {
    Problem::new(
        "needs-stop",
        file_name,
        format!(
            "bots.{bot} runs with {} shards a process, the file says {}",
            from.shards_per_process, to.shards_per_process
        ),
    )
    .cause("its shards would move between its processes, so that all of them have to stop before the new ones start")
    .hint(format!(
        "run `tanakoctl stop {bot}`, apply the file, then `tanakoctl start {bot}`: the sessions are kept and \
         resumed; or leave shards_per_process = {} until the next reshard, which takes --shards-per-process {} and \
         stops nothing",
        from.shards_per_process, to.shards_per_process
    ))
}

/// Most targets in one request.
const TARGETS_MAX: usize = 1_000;

pub(super) type Refused = Box<Problem>;

/// A request, understood: what it will be and what it leaves of the desired state.
pub(super) struct Draft {
    pub(super) kind: Kind,
    pub(super) targets: Vec<String>,
    pub(super) plan: Plan,
    pub(super) next: Option<Desired>,
    pub(super) max_unavailable: u32,
    pub(super) date: String,
    pub(super) keep: u32,
    pub(super) unit: &'static str,
    pub(super) strategy: Option<Strategy>,
    pub(super) bots: Vec<String>,
    pub(super) old_shards: u32,
    /// The spec that another takes the place of, process by process.
    pub(super) replaced: Option<Written>,
    pub(super) watch: Option<Watch>,
    pub(super) starting_max: u32,
    /// Seconds that are known better than the cost of the moves tells.
    pub(super) seconds: Option<u64>,
    /// What changes about hosts.
    pub(super) marks: Vec<Mark>,
    /// Drain: after so many seconds no move begins; 0 = no limit.
    pub(super) deadline_s: u32,
}

impl Draft {
    pub(super) fn new(kind: Kind, targets: &[String], plan: Plan) -> Self {
        Self {
            kind,
            targets: targets.to_vec(),
            plan,
            next: None,
            max_unavailable: 1,
            date: String::new(),
            keep: 0,
            unit: "processes",
            strategy: None,
            bots: Vec::new(),
            old_shards: 0,
            replaced: None,
            watch: None,
            starting_max: 0,
            seconds: None,
            marks: Vec::new(),
            deadline_s: 0,
        }
    }
}

impl Task {
    pub(super) fn check_base(&self, base: u64) -> Result<(), Refused> {
        let current = self.desired.document.version;
        if base != 0 && base != current {
            return Err(Box::new(problem::stale(base, current)));
        }
        Ok(())
    }

    pub(super) async fn draft(&self, request: &wire::OperationRequest) -> Result<Draft, Refused> {
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
        match kind {
            Kind::Rollout => return self.draft_rollout(request).await,
            Kind::Reshard => return self.draft_reshard(request),
            Kind::Move => return self.draft_move(request),
            Kind::Failover => return self.draft_failover(request),
            Kind::Cordon | Kind::Uncordon => return self.draft_cordon(kind, request),
            Kind::Drain => return self.draft_drain(request),
            Kind::Rebalance => return self.draft_rebalance(request),
            _ if kind.is_backup() => return self.draft_backup(kind, request),
            _ => {}
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
                let mut plan = planning::restart(&names, &named, &self.desired, request.force);
                planning::order_by_bucket(&mut plan, &self.desired, self.max_concurrency());
                plan
            }
        };
        self.check_conflicts(&plan.steps, &[])?;
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
            next,
            max_unavailable,
            ..Draft::new(kind, &request.targets, plan)
        })
    }

    pub(super) fn draft_backup(
        &self,
        kind: Kind,
        request: &wire::OperationRequest,
    ) -> Result<Draft, Refused> {
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
        self.check_archives_reachable(kind, &nodes)?;
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
        self.check_conflicts(&plan.steps, &[])?;
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
            max_unavailable: 0,
            date,
            keep,
            unit: if kind == Kind::BackupPrune {
                "sets"
            } else {
                "rows"
            },
            ..Draft::new(kind, &request.targets, plan)
        })
    }

    /// Nodes write and read archives where they run, the set is put together where the coordinator is: over
    /// several hosts that takes a directory that all of them share.
    fn check_archives_reachable(&self, kind: Kind, nodes: &[String]) -> Result<(), Refused> {
        let shared = self
            .desired
            .spec
            .as_ref()
            .is_some_and(|spec| spec.backup.directory.is_some());
        if shared || kind == Kind::BackupPrune {
            return Ok(());
        }
        let far = nodes.iter().find_map(|node| {
            let name = node.parse().ok()?;
            let host = self.hosts.host_of(&name)?;
            (host != self.hosts.own()).then_some((node, host))
        });
        match far {
            None => Ok(()),
            Some((node, host)) => Err(Box::new(
                Problem::new(
                    "needs-shared-directory",
                    node.as_str(),
                    format!("{node} is on host {host}, and its archives would lie there alone"),
                )
                .cause("each host has a backup directory of its own")
                .hint("set directory in [backup] to one that all hosts with database nodes share, and apply the file"),
            )),
        }
    }

    pub(super) fn draft_apply(
        &self,
        toml: &str,
        file_name: &str,
        no_start: bool,
    ) -> Result<Draft, Refused> {
        let file_name = if file_name.is_empty() {
            "fleet.toml"
        } else {
            file_name
        };
        let parsed = self.check_spec(toml, file_name)?;
        let sets = self.sets_for(&parsed, file_name)?;
        let written = Written {
            toml: toml.to_owned(),
            file_name: file_name.to_owned(),
        };
        let next = self
            .desired
            .with_spec(&written, &sets, no_start)
            .map_err(|error| problem::from_spec(&error, file_name))?;
        let warnings = parsed.warnings.clone();
        let mut plan = planning::apply(&self.table(), &next);
        plan.warnings.extend(warnings);
        self.check_conflicts(&plan.steps, &[])?;
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
            || next.document.stopped != self.desired.document.stopped
            || next.document.held != self.desired.document.held
            || next.document.generations != self.desired.document.generations;
        Ok(Draft {
            next: changed.then_some(next),
            ..Draft::new(Kind::Apply, &[], plan)
        })
    }

    /// A spec that this fleet can have.
    pub(super) fn check_spec(&self, toml: &str, file_name: &str) -> Result<Spec, Refused> {
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
        let hosts = self.parts.registry.hosts();
        let known = |name: &str| name == self.hosts.own() || hosts.contains_key(name);
        if !parsed.hosts.is_empty() && !parsed.hosts.iter().any(|host| known(&host.name)) {
            let host = self.hosts.own();
            return Err(Box::new(
                Problem::new(
                    "invalid-spec",
                    file_name,
                    format!("the spec lists hosts, and this one, {host:?}, is not among them"),
                )
                .hint("add it to [[hosts]], or start the agent with --host"),
            ));
        }
        Ok(parsed)
    }

    /// How the sets of processes of the bots of a new spec are laid out where it is not as the spec
    /// says. Another number of shards is refused for a bot that runs: its events would be missed.
    fn sets_for(
        &self,
        parsed: &Spec,
        file_name: &str,
    ) -> Result<BTreeMap<String, Generation>, Refused> {
        let mut sets = BTreeMap::new();
        for (name, bot) in &parsed.bots {
            let Some(generations) = self.desired.generations(name) else {
                continue;
            };
            let active = generations.active;
            if generations.next.is_some() {
                return Err(Box::new(
                    Problem::new(
                        "conflict",
                        file_name,
                        format!("an operation is building another set of processes of {name}"),
                    )
                    .hint("wait for it, or end it; see `tanakoctl operation list`")
                    .retryable(),
                ));
            }
            let shards = if bot.auto_shards {
                active.shards
            } else {
                bot.shards
            };
            if shards != active.shards && bot.worker && !self.is_wholly_stopped(name) {
                return Err(Box::new(
                    Problem::new(
                        "needs-reshard",
                        file_name,
                        format!(
                            "bots.{name} has {} shards and runs, the file says {shards}",
                            active.shards
                        ),
                    )
                    .cause("to apply it would stop all of its shards and miss their events")
                    .hint(format!(
                        "run `tanakoctl reshard {name} --shards {shards}`, which misses nothing; or stop {name} first"
                    )),
                ));
            }
            let set = Generation {
                number: active.number,
                shards,
                shards_per_process: bot.shards_per_process.clamp(1, shards.max(1)),
            };
            // No process may start with a shard that another still holds: all would have to stop first,
            // which is not what somebody who changes one number expects.
            if set.shards == active.shards
                && set.shards_per_process != active.shards_per_process
                && bot.worker
                && !self.is_wholly_stopped(name)
            {
                return Err(Box::new(moves_shards(name, &active, &set, file_name)));
            }
            if set != bot.first() || self.desired.document.generations.contains_key(name) {
                sets.insert(name.clone(), set);
            }
        }
        Ok(sets)
    }

    fn is_wholly_stopped(&self, bot: &str) -> bool {
        let table = self.table();
        let mut processes = table.values().filter(|process| process.name.group() == bot);
        processes.all(|process| {
            matches!(process.state, State::Stopped | State::Failed)
                && !self.desired.is_wanted(&process.name)
        })
    }

    /// IDENTIFYs at once.
    pub(super) fn max_concurrency(&self) -> u32 {
        self.parts.broker.status().borrow().max_concurrency
    }

    /// The processes that the targets stand for, and those among them that are named themselves.
    pub(super) fn resolve(
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
        let assignment = self.hosts.assignment();
        let rows: Vec<Row<'_>> = self
            .desired
            .processes
            .iter()
            // What does not serve yet is its operation's alone.
            .filter(|spec| !self.desired.is_next(&spec.name))
            .map(|spec| Row {
                name: &spec.name,
                kind: spec.kind,
                host: assignment.host_of(&spec.name).unwrap_or_default(),
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

    /// `bots`: those that get a second set.
    pub(super) fn check_conflicts(&self, steps: &[Step], bots: &[String]) -> Result<(), Refused> {
        let operations = self.active.iter().map(|active| &active.op);
        match planning::in_the_way(operations, steps, bots) {
            Some((object, holder)) => Err(Box::new(conflict(&object, &holder.id))),
            None => Ok(()),
        }
    }
}

fn no_spec() -> Problem {
    Problem::new("no-spec", "fleet", "the fleet has no spec yet")
        .hint("write a fleet.toml and run `tanakoctl apply fleet.toml`")
}

pub(super) fn conflict(object: &str, holder: &str) -> Problem {
    Problem::new("conflict", object, format!("operation {holder} is at work on {object}"))
        .hint(format!(
            "wait for it (`tanakoctl operation watch {holder}`) or end it (`tanakoctl operation abort {holder}`)"
        ))
        .retryable()
}
