//! Rollouts: what one must satisfy, and how it becomes steps.

use std::{collections::BTreeSet, sync::Arc};

use tanako_fleet::{
    ProcessKind, ProcessName,
    reshard::{self, Check, Grade},
    rollout::{Case, Strategy},
    spec::Generation,
};
use tanako_proto::fleet::v1::{self as wire, Problem};

use super::{
    draft::{Draft, Refused},
    planning::{self, Plan, Unfit},
    task::Task,
};
use crate::{
    desired::{Desired, Written},
    operations::{Kind, OpState, StepAction, StepState, ledger, watching::Watch},
    problem,
    supervisor::Table,
};

/// For how long those that have changed are watched, unless said else.
const OBSERVE_S: u32 = 60;
/// A switch of one pair takes about this long.
const SWITCH_S: u64 = 1;
/// Starting a set takes about this long.
const START_S: u64 = 5;

/// What is to be rolled out.
struct Wanted {
    strategy: Strategy,
    targets: Vec<String>,
    /// Another spec; `None` = the same again.
    spec: Option<Written>,
}

impl Task {
    pub(super) async fn draft_rollout(
        &self,
        request: &wire::OperationRequest,
    ) -> Result<Draft, Refused> {
        let asked = request.rollout.clone().unwrap_or_default();
        let wanted = self.wanted(request, &asked).await?;
        if let Some(spec) = &wanted.spec {
            self.check_spec(&spec.toml, &spec.file_name)?;
        }
        let observe_s = if asked.observe_s == 0 {
            OBSERVE_S
        } else {
            asked.observe_s
        };
        let mut draft = match wanted.strategy {
            Strategy::BlueGreen => self.blue_green(&wanted, request, observe_s)?,
            Strategy::Rolling | Strategy::Canary => {
                self.in_place(&wanted, request, &asked.canary, observe_s)?
            }
        };
        self.check_conflicts(&draft.plan.steps, &draft.bots)?;
        if let Some(running) = self
            .active
            .iter()
            .find(|active| active.op.replaces || active.op.kind == Kind::Apply)
            && wanted.spec.is_some()
        {
            return Err(Box::new(super::draft::conflict(
                "fleet.toml",
                &running.op.id,
            )));
        }
        if request.timeout_s > 0 {
            for step in &mut draft.plan.steps {
                if step.has_receipt() || step.action == StepAction::Warm {
                    step.timeout_ms = i64::from(request.timeout_s) * 1000;
                }
            }
        }
        draft.strategy = Some(wanted.strategy);
        draft.max_unavailable = request.max_unavailable.max(1);
        if draft.next.is_some() && wanted.spec.is_some() {
            draft.replaced = Some(self.desired.written());
        }
        Ok(draft)
    }

    async fn wanted(
        &self,
        request: &wire::OperationRequest,
        asked: &wire::RolloutRequest,
    ) -> Result<Wanted, Refused> {
        let strategy = |text: &str| {
            Strategy::ALL
                .into_iter()
                .find(|strategy| strategy.as_str() == text)
                .ok_or_else(|| {
                    Box::new(
                        Problem::new(
                            "invalid-argument",
                            "strategy",
                            format!("{text:?} is not a strategy"),
                        )
                        .hint("strategies are rolling, canary and blue-green"),
                    )
                })
        };
        if !asked.undo.is_empty() {
            let mut wanted = self.undo(&asked.undo).await?;
            if !asked.strategy.is_empty() {
                wanted.strategy = strategy(&asked.strategy)?;
            }
            return Ok(wanted);
        }
        let targets = if request.targets.is_empty() {
            vec!["all".to_owned()]
        } else {
            request.targets.clone()
        };
        let file_name = if asked.file_name.is_empty() {
            "fleet.toml".to_owned()
        } else {
            asked.file_name.clone()
        };
        Ok(Wanted {
            strategy: match asked.strategy.as_str() {
                "" => Strategy::Rolling,
                text => strategy(text)?,
            },
            targets,
            spec: (!asked.spec_toml.is_empty()).then(|| Written {
                toml: asked.spec_toml.clone(),
                file_name,
            }),
        })
    }

    /// The way back to the spec that a rollout has replaced.
    async fn undo(&self, id: &str) -> Result<Wanted, Refused> {
        let unknown = || {
            Box::new(
                Problem::new(
                    "unknown-operation",
                    id,
                    format!("there is no rollout {id:?}"),
                )
                .hint("`tanakoctl operation list` lists them; the oldest are dropped"),
            )
        };
        if self.active.iter().any(|active| active.op.id == id) {
            return Err(Box::new(
                Problem::new("conflict", id, "the rollout has not ended")
                    .hint(format!("`tanakoctl rollout abort {id}` goes back at once")),
            ));
        }
        let number: u64 = id
            .rsplit_once('-')
            .and_then(|(_, number)| number.parse().ok())
            .ok_or_else(unknown)?;
        let store = &*self.parts.store;
        let op = ledger::by_number(store, number)
            .await
            .map_err(|error| Box::new(problem::from_store(&error)))?
            .filter(|op| op.id == id && op.kind == Kind::Rollout)
            .ok_or_else(unknown)?;
        let replaced = ledger::replaced(store, number)
            .await
            .map_err(|error| Box::new(problem::from_store(&error)))?;
        let Some(replaced) = replaced.filter(|_| op.replaces) else {
            return Err(Box::new(
                Problem::new("nothing-to-undo", id, "it rolled the same spec out again")
                    .hint("put the older program back, and roll out again"),
            ));
        };
        let went_back = op.course == crate::operations::Course::Back
            && op
                .steps
                .iter()
                .all(|step| !step.back || step.state != StepState::Failed);
        if op.state == OpState::Aborted || went_back {
            return Err(Box::new(Problem::new(
                "nothing-to-undo",
                id,
                "it went back by itself already",
            )));
        }
        if op.brings != self.desired.written().mark()
            && op.course != crate::operations::Course::Back
        {
            return Err(Box::new(
                Problem::new("stale-undo", id, "the spec has been changed since").hint(
                    "roll the spec that you want out: `tanakoctl rollout start --file fleet.toml`",
                ),
            ));
        }
        Ok(Wanted {
            strategy: op.strategy.unwrap_or_default(),
            targets: op.targets,
            spec: Some(replaced),
        })
    }

    /// The desired state with the new spec: held back for all that runs, and as it will be in the end.
    fn with_rollout(&self, written: &Written) -> Result<(Desired, Desired), Refused> {
        let refused = |error| Box::new(problem::from_spec(&error, &written.file_name));
        let parsed = self.check_spec(&written.toml, &written.file_name)?;
        let mut pinned = Vec::new();
        for (name, bot) in &parsed.bots {
            let Some(active) = self.desired.active(name) else {
                continue;
            };
            let same = bot.auto_shards || bot.shards == active.shards;
            if !same && bot.worker {
                return Err(Box::new(
                    Problem::new(
                        "needs-reshard",
                        &written.file_name,
                        format!(
                            "bots.{name} has {} shards, the file says {}",
                            active.shards, bot.shards
                        ),
                    )
                    .hint(format!(
                        "run `tanakoctl reshard {name} --shards {}` first, then roll the file out",
                        bot.shards
                    )),
                ));
            }
            if bot.auto_shards {
                pinned.push((name.clone(), active));
            }
        }
        let held = self
            .desired
            .with_document(|document, places| {
                for (bot, set) in &pinned {
                    document.lay_out(bot, *set);
                }
                document.bring_in(written, places)
            })
            .map_err(refused)?;
        let done = held
            .with_document(|document, _| {
                document.release_all();
                Ok(())
            })
            .map_err(refused)?;
        Ok((held, done))
    }

    fn in_place(
        &self,
        wanted: &Wanted,
        request: &wire::OperationRequest,
        canary: &str,
        observe_s: u32,
    ) -> Result<Draft, Refused> {
        let (names, named) = self.resolve(&wanted.targets)?;
        let table = self.table();
        let (mut plan, next, specs) = match &wanted.spec {
            None => {
                let plan = planning::restart(&names, &named, &self.desired, request.force);
                (plan, None, self.desired.clone())
            }
            Some(written) => {
                let (held, done) = self.with_rollout(written)?;
                let all = wanted.targets.iter().any(|target| target == "all");
                let groups: BTreeSet<&str> = names.iter().map(ProcessName::group).collect();
                let selected = |name: &ProcessName| {
                    let is_new = self.desired.process(name).is_none();
                    all || names.contains(name) || is_new && groups.contains(name.group())
                };
                let plan = planning::rolling(&table, &done, selected)
                    .map_err(|unfit| Box::new(refuse(&unfit, &written.file_name)))?;
                let changed = held.document != self.desired.document;
                (plan, changed.then_some(held), done)
            }
        };
        planning::order_by_bucket(&mut plan, &specs, self.max_concurrency());
        let mut draft = Draft::new(Kind::Rollout, &wanted.targets, Plan::default());
        if wanted.strategy == Strategy::Canary && !plan.is_empty() {
            let first = self.first(&plan, canary, &table)?;
            let siblings = self.siblings(&first, &table);
            planning::canary(&mut plan, &first);
            draft.watch = Some(watch(vec![first.clone()], vec![first], siblings, observe_s));
            draft.unit = "steps";
            plan.checks.push(note(
                "time",
                format!("the first process is watched for {observe_s} s"),
            ));
        }
        plan.checks.push(note(
            "gap",
            "each shard pauses while its process restarts, normally for less than a second; its session is \
             resumed and nothing is missed",
        ));
        draft.plan = plan;
        draft.next = next;
        Ok(draft)
    }

    /// The process that goes first: the named one, else the one with the fewest guilds.
    fn first(&self, plan: &Plan, canary: &str, table: &Table) -> Result<String, Refused> {
        let workers = Arc::clone(&self.hosts.picture().workers);
        let candidates = plan.steps.iter().filter(|step| {
            let name = step.object.parse::<ProcessName>().ok();
            let process = name.and_then(|name| table.get(&name));
            step.action == StepAction::Restart
                && !step.state.is_ended()
                && process.is_some_and(|process| process.kind == ProcessKind::Shard)
        });
        let guilds = |object: &str| -> u64 {
            let name = object.parse::<ProcessName>().ok();
            name.and_then(|name| workers.get(&name))
                .map_or(0, |worker| {
                    let shards = worker.shards.values();
                    shards.map(|shard| u64::from(shard.report.guilds)).sum()
                })
        };
        let names: Vec<&str> = candidates.map(|step| step.object.as_str()).collect();
        let found = if canary.is_empty() {
            names.iter().min_by_key(|name| guilds(name))
        } else {
            names.iter().find(|name| **name == canary)
        };
        found.map(|name| (*name).to_owned()).ok_or_else(|| {
            Box::new(
                Problem::new(
                    "invalid-argument",
                    if canary.is_empty() { "canary" } else { canary },
                    "there is no process of a bot among those that restart which could go first",
                )
                .hint("name one of them with --canary, or use --strategy rolling"),
            )
        })
    }

    /// The other processes of the same bot.
    fn siblings(&self, name: &str, table: &Table) -> Vec<String> {
        let group = name.split_once('/').map_or("", |(group, _)| group);
        table
            .values()
            .filter(|process| process.name.group() == group && process.name.as_str() != name)
            .filter(|process| process.ready && !self.desired.is_next(&process.name))
            .map(|process| process.name.to_string())
            .collect()
    }

    fn blue_green(
        &self,
        wanted: &Wanted,
        request: &wire::OperationRequest,
        observe_s: u32,
    ) -> Result<Draft, Refused> {
        let bots = self.whole_bots(&wanted.targets)?;
        let base = match &wanted.spec {
            None => self.desired.clone(),
            Some(written) => {
                let (held, done) = self.with_rollout(written)?;
                let selected = |name: &ProcessName| bots.iter().any(|bot| bot == name.group());
                planning::rolling(&self.table(), &done, selected)
                    .map_err(|unfit| Box::new(refuse(&unfit, &written.file_name)))?;
                if held.document.held.keys().all(|name| !selected(name)) {
                    // Nothing differs: there is nothing to replace.
                    let mut draft = Draft::new(Kind::Rollout, &wanted.targets, Plan::default());
                    draft.next = (held.document != self.desired.document).then_some(held);
                    return Ok(draft);
                }
                held
            }
        };
        let mut sets = Vec::new();
        let mut checks = Vec::new();
        for bot in &bots {
            let generations = self.healthy_set(bot)?;
            let to = Generation {
                number: generations.last + 1,
                ..generations.active
            };
            let memory = self.memory_of(bot);
            let check = reshard::memory(&memory, to.shards, to.shards, bot);
            if check.grade == Grade::Refused {
                return Err(Box::new(
                    Problem::new("no-room", bot, check.text.clone()).hint(check.hint.clone()),
                ));
            }
            checks.push(check);
            sets.push((bot.as_str(), generations.active, to));
        }
        let (mut new, mut old) = (Vec::new(), Vec::new());
        for (bot, from, to) in &sets {
            new.extend(to.names(bot).iter().map(ToString::to_string));
            old.extend(from.names(bot).iter().map(ToString::to_string));
        }
        let pairs = u64::from(sets.iter().map(|(_, _, to)| to.instances()).sum::<u32>());
        let at_once = u64::from(request.max_unavailable.max(1));
        let seconds = START_S + pairs.div_ceil(at_once) * SWITCH_S + u64::from(observe_s);
        let (next, mut plan) = planning::second_sets(&base, sets, false, self.max_concurrency())
            .map_err(|error| Box::new(problem::from_spec(&error, "fleet.toml")))?;
        checks.push(note(
            "gap",
            "each shard pauses while its session changes hands, normally for a fraction of a second; nothing is missed",
        ));
        checks.push(note(
            "time",
            format!(
                "about {seconds} s, {observe_s} s of it under watch with the old set kept warm"
            ),
        ));
        plan.checks = checks;
        Ok(Draft {
            next: Some(next),
            unit: "steps",
            bots,
            watch: Some(watch(new, old, Vec::new(), observe_s)),
            seconds: Some(seconds),
            ..Draft::new(Kind::Rollout, &wanted.targets, plan)
        })
    }

    /// The bots that the targets name as a whole.
    fn whole_bots(&self, targets: &[String]) -> Result<Vec<String>, Refused> {
        let (names, _) = self.resolve(targets)?;
        let all = targets.iter().any(|target| target == "all");
        let mut bots = BTreeSet::new();
        for name in &names {
            let kind = self.desired.process(name).map(|spec| spec.kind);
            if kind == Some(ProcessKind::Db) {
                if all {
                    continue;
                }
                return Err(Box::new(
                    Problem::new(
                        "unsupported",
                        name.as_str(),
                        "a database node has its data in one place and cannot have a second set beside it",
                    )
                    .hint("use --strategy rolling for the database"),
                ));
            }
            bots.insert(name.group().to_owned());
        }
        for bot in &bots {
            let set = self.desired.active(bot);
            let missing = set
                .into_iter()
                .flat_map(|set| set.names(bot))
                .find(|name| !names.contains(name));
            if missing.is_some() {
                return Err(Box::new(
                    Problem::new(
                        "invalid-target",
                        bot,
                        "blue-green replaces whole sets of processes",
                    )
                    .hint(format!("name the bot: {bot}; or use --strategy rolling")),
                ));
            }
        }
        Ok(bots.into_iter().collect())
    }
}

fn watch(changed: Vec<String>, before: Vec<String>, siblings: Vec<String>, seconds: u32) -> Watch {
    Watch {
        changed,
        before,
        siblings,
        case: Case {
            watch_ms: i64::from(seconds) * 1000,
            ..Case::default()
        },
        ..Watch::default()
    }
}

pub(super) fn watch_set(changed: Vec<String>, before: Vec<String>, seconds: u32) -> Watch {
    watch(changed, before, Vec::new(), seconds)
}

pub(super) fn note(what: &'static str, text: impl Into<String>) -> Check {
    Check {
        what,
        grade: Grade::Fine,
        text: text.into(),
        hint: String::new(),
    }
}

fn refuse(unfit: &Unfit, file_name: &str) -> Problem {
    match unfit {
        Unfit::Moves(bot) => Problem::new(
            "unsupported",
            file_name,
            format!("the shards of {bot} would move between its processes"),
        )
        .hint(format!(
            "run `tanakoctl stop {bot}`, apply the file, then `tanakoctl start {bot}`: the sessions are kept and resumed"
        )),
        Unfit::Outside(name) => Problem::new(
            "invalid-target",
            file_name,
            format!("the file also changes {name}, which is not among the targets"),
        )
        .hint(format!(
            "add {name} to the targets, or leave them out to roll out everything"
        )),
    }
}
