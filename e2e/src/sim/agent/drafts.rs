//! From what the operator asks for to an operation, as `agent/src/coordinator/{draft,rollouts,reshards}.rs`
//! around the same planning.

use std::collections::BTreeSet;

use tanako_agent::{
    coordinator::planning::{self, Plan},
    desired::{Desired, Written},
    operations::{Course, Kind, OpState, Operation, StepAction, StepState, watching::Watch},
    supervisor::{State, Table},
};
use tanako_fleet::{
    ProcessName,
    plan::{self, Known},
    reshard::{self, Budget, Facts},
    rollout::{Case, Strategy},
    spec::Generation,
};

use super::{
    super::world::Sim,
    coordinator::{Ask, Refused},
    office::View,
};

/// The bot whose fleet it is.
pub const BOT: &str = "b";

/// A request, understood.
pub struct Draft {
    /// Its steps.
    pub plan: Plan,
    /// The desired state that it begins with.
    pub next: Option<Desired>,
    /// The spec that another takes the place of.
    pub replaced: Option<Written>,
    /// The operation, without number and state.
    pub op: Operation,
}

impl Draft {
    fn new(ask: &Ask, plan: Plan, next: Option<Desired>) -> Self {
        let mut op = super::super::blank::operation();
        op.kind = ask.kind;
        op.max_unavailable = ask.max_unavailable.max(1);
        op.request_id.clone_from(&ask.request_id);
        Self {
            plan,
            next,
            replaced: None,
            op,
        }
    }
}

/// The processes of the set that serves.
pub fn names(desired: &Desired) -> Vec<ProcessName> {
    let set = desired.active(BOT);
    set.map_or_else(Vec::new, |set| set.names(BOT))
}

/// Understands a request. `undone`: the rollout that it takes back, and what that had replaced.
pub fn draft(
    sim: &Sim,
    desired: &Desired,
    view: &View,
    ask: &Ask,
    undone: Option<(Operation, Option<Written>)>,
) -> Result<Draft, Refused> {
    match ask.kind {
        Kind::Rollout => rollout(sim, desired, view, ask, undone),
        Kind::Reshard => resharded(sim, desired, view, ask),
        _ => Ok(plain(sim, desired, view, ask)),
    }
}

fn plain(sim: &Sim, desired: &Desired, view: &View, ask: &Ask) -> Draft {
    let names = chosen(desired, ask);
    let named: BTreeSet<ProcessName> = if ask.named {
        names.iter().cloned().collect()
    } else {
        BTreeSet::new()
    };
    let mut next = None;
    let plan = match ask.kind {
        Kind::Start => {
            if names.iter().any(|name| !desired.is_wanted(name)) {
                next = Some(desired.with(|document| {
                    document.stopped.retain(|name| !names.contains(name));
                }));
            }
            planning::start(&names, desired, &view.table)
        }
        Kind::Stop => {
            if names.iter().any(|name| desired.is_wanted(name)) {
                next = Some(desired.with(|document| {
                    document.stopped.extend(names.iter().cloned());
                }));
            }
            planning::stop(&names, desired, &view.table)
        }
        _ => {
            if named.iter().any(|name| !desired.is_wanted(name)) {
                next = Some(desired.with(|document| {
                    document.stopped.retain(|name| !named.contains(name));
                }));
            }
            let mut plan = planning::restart(&names, &named, desired, false);
            planning::order_by_bucket(&mut plan, desired, sim.config.max_concurrency);
            plan
        }
    };
    Draft::new(ask, plan, next)
}

/// What does not serve yet is its operation's alone.
fn chosen(desired: &Desired, ask: &Ask) -> Vec<ProcessName> {
    let serving = names(desired);
    if !ask.named {
        return serving;
    }
    let named = ask.targets.iter();
    named
        .filter(|name| serving.contains(name))
        .cloned()
        .collect()
}

/// The sets of the bot, if the one that serves is whole.
fn healthy(desired: &Desired, table: &Table) -> Result<(Generation, u32), Refused> {
    let sets = desired.generations(BOT).ok_or(Refused::Unfit)?;
    let names = sets.active.names(BOT);
    let held = &desired.document.held;
    let whole = names.iter().all(|name| {
        desired.is_wanted(name)
            && !held.contains_key(name)
            && table.get(name).is_some_and(|process| process.ready)
    });
    if whole {
        Ok((sets.active, sets.last + 1))
    } else {
        Err(Refused::Unfit)
    }
}

/// The desired state with the new spec: held back for all that runs, and as it will be in the end.
fn with_rollout(desired: &Desired, written: &Written) -> Result<(Desired, Desired), Refused> {
    let held = desired
        .with_document(|document, places| document.bring_in(written, places))
        .map_err(|_| Refused::Unfit)?;
    let done = held
        .with_document(|document, _| {
            document.release_all();
            Ok(())
        })
        .map_err(|_| Refused::Unfit)?;
    Ok((held, done))
}

fn rollout(
    sim: &Sim,
    desired: &Desired,
    view: &View,
    ask: &Ask,
    undone: Option<(Operation, Option<Written>)>,
) -> Result<Draft, Refused> {
    let spec = match undone {
        Some((op, replaced)) => {
            let replaced = replaced.filter(|_| op.replaces).ok_or(Refused::Unfit)?;
            let went_back = op.course == Course::Back
                && op
                    .steps
                    .iter()
                    .all(|step| !step.back || step.state != StepState::Failed);
            let stale = op.brings != desired.written().mark() && op.course != Course::Back;
            if !op.state.is_ended() || op.state == OpState::Aborted || went_back || stale {
                return Err(Refused::Unfit);
            }
            Some(replaced)
        }
        None => ask.variant.map(|variant| {
            let set = desired.active(BOT);
            Written {
                toml: sim.config.toml(set, variant),
                file_name: "fleet.toml".to_owned(),
            }
        }),
    };
    if let (Some(spec), Some(set)) = (&spec, desired.active(BOT)) {
        // A file with another shard count needs a reshard.
        if !spec.toml.contains(&format!("shards = {}\n", set.shards)) {
            return Err(Refused::Unfit);
        }
    }
    let mut draft = if ask.strategy == Strategy::BlueGreen {
        blue_green(sim, desired, view, ask, spec.as_ref())?
    } else {
        in_place(sim, desired, view, ask, spec.as_ref())?
    };
    draft.op.strategy = Some(ask.strategy);
    if draft.next.is_some() && spec.is_some() {
        draft.replaced = Some(desired.written());
    }
    Ok(draft)
}

fn watch(changed: Vec<String>, before: Vec<String>, siblings: Vec<String>, ms: i64) -> Watch {
    Watch {
        changed,
        before,
        siblings,
        case: Case {
            watch_ms: ms,
            ..Case::default()
        },
        ..Watch::default()
    }
}

fn in_place(
    sim: &Sim,
    desired: &Desired,
    view: &View,
    ask: &Ask,
    spec: Option<&Written>,
) -> Result<Draft, Refused> {
    let names = names(desired);
    let table = &*view.table;
    let (mut plan, next, specs) = match spec {
        None => {
            let plan = planning::restart(&names, &BTreeSet::new(), desired, false);
            (plan, None, desired.clone())
        }
        Some(written) => {
            let (held, done) = with_rollout(desired, written)?;
            let plan = planning::rolling(table, &done, |_| true).map_err(|_| Refused::Unfit)?;
            let changed = held.document != desired.document;
            (plan, changed.then_some(held), done)
        }
    };
    planning::order_by_bucket(&mut plan, &specs, sim.config.max_concurrency);
    let mut seen = None;
    if ask.strategy == Strategy::Canary && !plan.is_empty() {
        let first = plan
            .steps
            .iter()
            .find(|step| step.action == StepAction::Restart && !step.state.is_ended())
            .map(|step| step.object.clone())
            .ok_or(Refused::Unfit)?;
        let siblings = table
            .values()
            .filter(|process| process.ready && process.name.as_str() != first)
            .filter(|process| !desired.is_next(&process.name))
            .map(|process| process.name.to_string());
        let siblings = siblings.collect();
        planning::canary(&mut plan, &first);
        let ms = ask.observe_ms;
        seen = Some(watch(vec![first.clone()], vec![first], siblings, ms));
    }
    let mut draft = Draft::new(ask, plan, next);
    draft.op.watch = seen;
    Ok(draft)
}

fn texts(names: Vec<ProcessName>) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn blue_green(
    sim: &Sim,
    desired: &Desired,
    view: &View,
    ask: &Ask,
    spec: Option<&Written>,
) -> Result<Draft, Refused> {
    let base = match spec {
        None => desired.clone(),
        Some(written) => {
            let (held, done) = with_rollout(desired, written)?;
            planning::rolling(&view.table, &done, |_| true).map_err(|_| Refused::Unfit)?;
            if held.document.held.is_empty() {
                return Err(Refused::Unfit);
            }
            held
        }
    };
    let (from, number) = healthy(desired, &view.table)?;
    let to = Generation { number, ..from };
    let buckets = sim.config.max_concurrency;
    let (next, plan) = planning::second_sets(&base, vec![(BOT, from, to)], false, buckets)
        .map_err(|_| Refused::Unfit)?;
    let mut draft = Draft::new(ask, plan, Some(next));
    draft.op.bots = vec![BOT.to_owned()];
    let (new, old) = (texts(to.names(BOT)), texts(from.names(BOT)));
    draft.op.watch = Some(watch(new, old, Vec::new(), ask.observe_ms));
    Ok(draft)
}

fn resharded(sim: &Sim, desired: &Desired, view: &View, ask: &Ask) -> Result<Draft, Refused> {
    let (from, number) = healthy(desired, &view.table)?;
    let not_ready = from.names(BOT).into_iter().filter(|name| {
        let process = view.table.get(name);
        process.is_none_or(|process| !process.ready || process.state != State::Ready)
    });
    let buckets = sim.config.max_concurrency;
    let facts = Facts {
        bot: BOT.to_owned(),
        worker: true,
        shards: from.shards,
        shards_per_process: from.shards_per_process,
        number,
        not_ready: not_ready.map(|name| name.to_string()).collect(),
        budget: Budget {
            total: sim.config.total,
            remaining: sim.discord.borrow().remaining(sim),
            reserve: sim.config.reserve,
            resets_in_s: 3_600,
            max_concurrency: buckets,
        },
        observe_s: u32::try_from(ask.observe_ms / 1000).unwrap_or(10),
        ..Facts::default()
    };
    let preflight = reshard::preflight(&facts, ask.shards, 0);
    if preflight.refused().is_some() {
        return Err(Refused::Unfit);
    }
    let to = preflight.to;
    reshard::rewrite(&desired.document.toml, BOT, to).map_err(|_| Refused::Unfit)?;
    let (next, plan) = planning::second_sets(desired, vec![(BOT, from, to)], true, buckets)
        .map_err(|_| Refused::Unfit)?;
    let starting_max = planning::starting_at_once(&next, BOT, to, buckets);
    let mut draft = Draft::new(ask, plan, Some(next));
    draft.op.bots = vec![BOT.to_owned()];
    draft.op.old_shards = from.shards;
    let (new, old) = (texts(to.names(BOT)), texts(from.names(BOT)));
    draft.op.watch = Some(watch(new, old, Vec::new(), ask.observe_ms));
    draft.op.starting_max = starting_max;
    Ok(draft)
}

/// Gives an operation its number, its time and its state.
pub fn operation(sim: &Sim, view: &View, draft: &Draft, number: u64, now: i64) -> Operation {
    let agent = sim.agent.borrow().clone();
    let moves = draft.plan.moves.iter().map(|(spec, action)| {
        let running = view
            .table
            .get(&spec.name)
            .is_some_and(|process| process.state.is_live());
        let kept = agent
            .as_ref()
            .map_or(0, |agent| agent.vault.sessions_for(sim, spec).len());
        let resumable = !spec.shard_ids.is_empty() && kept >= spec.shard_ids.len();
        (&**spec, *action, Known { running, resumable })
    });
    let cost = plan::cost(moves, sim.config.max_concurrency, draft.op.max_unavailable);
    let mut steps = draft.plan.steps.clone();
    planning::allow_for_permits(&mut steps, &cost);
    let mut op = Operation {
        id: format!("{}-{number}", draft.op.kind.as_str()),
        number,
        steps,
        cost,
        replaces: draft.replaced.is_some(),
        brings: draft.next.as_ref().map_or(0, |next| next.written().mark()),
        created_at: now,
        updated_at: now,
        ..draft.op.clone()
    };
    op.count_steps();
    if draft.plan.is_empty() {
        op.state = OpState::Succeeded;
        op.ended_at = now;
        op.unchanged = draft.next.is_none();
    }
    op
}
