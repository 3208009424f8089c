//! Reshards: what one must satisfy, how it becomes steps, and when one is proposed.

use std::sync::Arc;

use tanako_fleet::{
    reshard::{self, Budget, Facts, Memory},
    spec,
};
use tanako_proto::fleet::v1::{self as wire, Problem};

use super::{
    draft::{Draft, Refused},
    planning,
    rollouts::{note, watch_set},
    task::Task,
};
use crate::{
    clock::now_ms,
    desired::{Desired, Generations},
    history::Severity,
    operations::Kind,
    problem,
    supervisor::State,
};

/// For how long the new set is watched before the old one goes, unless said else.
const OBSERVE_S: u32 = 10;

/// The reshards that Discord's recommendation calls for: bot, shards now, shards recommended.
pub fn proposals(desired: &Desired, identify: &wire::IdentifyStatus) -> Vec<(String, u32, u32)> {
    let Some(spec) = &desired.spec else {
        return Vec::new();
    };
    spec.bots
        .iter()
        .filter(|(_, bot)| bot.auto_shards && bot.worker)
        .filter_map(|(name, _)| {
            let now = desired.active(name)?.shards;
            let known = identify.bots.iter().find(|known| known.bot == *name)?;
            let to = reshard::propose(now, known.recommended_shards)?;
            Some((name.clone(), now, to))
        })
        .collect()
}

impl Task {
    /// Tells of a reshard that Discord's recommendation calls for. Nothing moves by itself.
    pub(super) fn propose_reshards(&mut self) {
        let identify = self.parts.broker.status().borrow().clone();
        for (bot, now, to) in proposals(&self.desired, &identify) {
            if self.proposed.insert(bot.clone(), to) != Some(to) {
                self.parts.history.event(
                    Severity::Warning,
                    "reshard-proposed",
                    &bot,
                    format!(
                        "Discord recommends {to} shards, it has {now}: `tanakoctl reshard {bot} --shards {to}`"
                    ),
                );
            }
        }
    }

    pub(super) fn draft_reshard(&self, request: &wire::OperationRequest) -> Result<Draft, Refused> {
        let asked = request.reshard.clone().unwrap_or_default();
        let bot = if asked.bot.is_empty() {
            request.targets.first().cloned().unwrap_or_default()
        } else {
            asked.bot.clone()
        };
        let facts = self.facts(&bot, &asked)?;
        let preflight = reshard::preflight(&facts, asked.shards, asked.shards_per_process);
        if let Some(check) = preflight.refused() {
            let mut problem = Problem::new("preflight", &bot, check.text.clone());
            if !check.hint.is_empty() {
                problem = problem.hint(check.hint.clone());
            }
            return Err(Box::new(problem));
        }
        let generations = self.healthy_set(&bot)?;
        let (from, to) = (generations.active, preflight.to);
        self.check_rewrite(&bot, to)?;
        let sets = vec![(bot.as_str(), from, to)];
        let buckets = facts.budget.max_concurrency;
        let (next, mut plan) = planning::second_sets(&self.desired, sets, true, buckets)
            .map_err(|error| Box::new(problem::from_spec(&error, "fleet.toml")))?;
        plan.checks = preflight.checks;
        plan.checks.push(note(
            "gap",
            "none: the new set is connected before the events change hands, and each is handled by one of the two",
        ));
        plan.warnings.push(format!(
            "afterwards set shards = {} in your fleet.toml: the stored one is changed, and a file with another number is refused",
            to.shards
        ));
        self.check_conflicts(&plan.steps, std::slice::from_ref(&bot))?;
        let text = |names: Vec<tanako_fleet::ProcessName>| -> Vec<String> {
            names.iter().map(ToString::to_string).collect()
        };
        let starting_max = planning::starting_at_once(&next, &bot, to, buckets);
        Ok(Draft {
            next: Some(next),
            unit: "steps",
            bots: vec![bot.clone()],
            old_shards: from.shards,
            watch: Some(watch_set(
                text(to.names(&bot)),
                text(from.names(&bot)),
                facts.observe_s,
            )),
            starting_max,
            seconds: Some(preflight.seconds),
            ..Draft::new(Kind::Reshard, std::slice::from_ref(&bot), plan)
        })
    }

    /// The stored spec must still be good with the new number.
    fn check_rewrite(&self, bot: &str, to: spec::Generation) -> Result<(), Refused> {
        let document = &self.desired.document;
        let rewritten = reshard::rewrite(&document.toml, bot, to).map_err(|error| {
            Box::new(Problem::new(
                "invalid-spec",
                &document.file_name,
                format!("the new shard count cannot be written into the stored spec: {error}"),
            ))
        })?;
        spec::parse(&rewritten, &document.file_name)
            .map(drop)
            .map_err(|error| Box::new(problem::from_spec(&error, &document.file_name)))
    }

    fn facts(&self, bot: &str, asked: &wire::ReshardRequest) -> Result<Facts, Refused> {
        let spec = self.desired.spec.as_ref();
        let (Some(config), Some(generations)) = (
            spec.and_then(|spec| spec.bots.get(bot)),
            self.desired.generations(bot),
        ) else {
            let known = spec.map(|spec| spec.bots.keys().cloned().collect::<Vec<_>>());
            let hint = match known.as_deref() {
                Some([]) | None => "the fleet has no bot".to_owned(),
                Some(known) => format!("bots are {}", known.join(", ")),
            };
            return Err(Box::new(
                Problem::new("unknown-target", bot, format!("there is no bot {bot:?}")).hint(hint),
            ));
        };
        let table = self.table();
        let workers = Arc::clone(&self.hosts.picture().workers);
        let names = generations.active.names(bot);
        let not_ready = names
            .iter()
            .filter(|name| {
                let process = table.get(*name);
                process.is_none_or(|process| !process.ready || process.state != State::Ready)
            })
            .map(ToString::to_string)
            .collect();
        let guilds = names
            .iter()
            .filter_map(|name| workers.get(name))
            .flat_map(|worker| worker.shards.values())
            .map(|shard| u64::from(shard.report.guilds))
            .sum();
        let identify = self.parts.broker.status().borrow().clone();
        let known = identify.bots.iter().find(|known| known.bot == bot);
        let budget = known.map_or_else(Budget::default, |known| Budget {
            total: known.total,
            remaining: known.remaining,
            reserve: known.reserve,
            resets_in_s: u64::try_from((known.resets_at - now_ms()) / 1000).unwrap_or(0),
            max_concurrency: known.max_concurrency,
        });
        Ok(Facts {
            bot: bot.to_owned(),
            worker: config.worker,
            shards: generations.active.shards,
            shards_per_process: generations.active.shards_per_process,
            number: generations.last + 1,
            guilds,
            recommended: known.map_or(0, |known| known.recommended_shards),
            not_ready,
            budget,
            memory: self.memory_of(bot),
            observe_s: if asked.observe_s == 0 {
                OBSERVE_S
            } else {
                asked.observe_s
            },
        })
    }

    /// What the processes of a bot use, and what is free beside them.
    pub(super) fn memory_of(&self, bot: &str) -> Memory {
        let (used_bytes, processes, free_bytes) = self.hosts.memory_of(bot);
        Memory {
            used_bytes,
            processes,
            free_bytes,
        }
    }

    /// The sets of a bot whose serving set is whole: every process of it is wanted, and no rollout has
    /// stopped half-way.
    pub(super) fn healthy_set(&self, bot: &str) -> Result<Generations, Refused> {
        let Some(generations) = self.desired.generations(bot) else {
            return Err(Box::new(Problem::new(
                "unknown-target",
                bot,
                format!("there is no bot {bot:?}"),
            )));
        };
        let worker = self
            .desired
            .spec
            .as_ref()
            .and_then(|spec| spec.bots.get(bot))
            .is_some_and(|bot| bot.worker);
        if !worker {
            return Err(Box::new(
                Problem::new(
                    "unsupported",
                    bot,
                    "it does not speak the worker socket, so that its sessions cannot change hands",
                )
                .hint("use --strategy rolling"),
            ));
        }
        let names = generations.active.names(bot);
        if let Some(name) = names.iter().find(|name| !self.desired.is_wanted(name)) {
            return Err(Box::new(
                Problem::new("not-ready", name.as_str(), "it was stopped by the operator")
                    .hint(format!("start it first: `tanakoctl start {name}`")),
            ));
        }
        if names
            .iter()
            .any(|name| self.desired.document.held.contains_key(name))
        {
            return Err(Box::new(
                Problem::new(
                    "half-rolled",
                    bot,
                    "a rollout has stopped half-way: some processes run by another spec",
                )
                .hint("finish it with `tanakoctl rollout start --file fleet.toml`, or undo it with `tanakoctl rollout undo`"),
            ));
        }
        let table = self.table();
        let ill = names
            .iter()
            .find(|name| !table.get(*name).is_some_and(|process| process.ready));
        if let Some(name) = ill {
            return Err(Box::new(
                Problem::new("not-ready", name.as_str(), "it is not ready")
                    .hint("see `tanakoctl status`; a second set begins from a healthy first one"),
            ));
        }
        Ok(generations)
    }
}
