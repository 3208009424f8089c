//! From what is asked and what is to the steps of an operation; pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use tanako_fleet::{
    ProcessKind, ProcessName, ProcessSpec,
    plan::{self, Action, Cost, Move},
    reshard::{self, Check},
    rollout,
    spec::{Generation, SpecError},
};

use crate::{
    desired::{Desired, Written},
    operations::{Kind, Operation, Step, StepAction, StepState, core::Change},
    supervisor::{Desired as Wanted, State, Table},
};

/// A cut agrees on a moment within seconds; some rounds may be needed where processes start anew.
const CUT_MS: i64 = 90_000;
/// What the orders and sessions of a move may take.
const MOVE_MS: i64 = 30_000;
/// Added to what a spec says, so that the supervisor's own deadline speaks first and says why.
const SLACK_MS: i64 = 5_000;

/// One line of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// create, update, remove, start, stop, restart, keep.
    pub action: &'static str,
    /// The process.
    pub object: ProcessName,
    /// Why.
    pub why: String,
}

/// What a request comes to.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// The same for people.
    pub lines: Vec<Line>,
    /// What moves, for the cost.
    pub moves: Vec<(Arc<ProcessSpec>, Move)>,
    /// What they should know first.
    pub warnings: Vec<String>,
    /// What was looked at.
    pub checks: Vec<Check>,
}

fn ms(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}

fn timeout_ms(spec: &ProcessSpec, action: StepAction) -> i64 {
    let (ready, grace) = (ms(spec.ready.timeout), ms(spec.stop.grace));
    SLACK_MS
        + match action {
            StepAction::Start | StepAction::Warm | StepAction::Shadow => ready,
            StepAction::Restart | StepAction::Switch => ready + grace,
            // Two hosts are asked besides.
            StepAction::Move => ready + grace + MOVE_MS,
            StepAction::Cut => CUT_MS,
            StepAction::Stop
            | StepAction::Remove
            | StepAction::Archive
            | StepAction::Observe
            | StepAction::Adopt => grace + SLACK_MS,
        }
}

fn step(spec: &ProcessSpec, action: StepAction, phase: u16) -> Step {
    Step::new(spec.name.as_str(), action, phase, timeout_ms(spec, action))
}

impl Plan {
    fn push(&mut self, spec: &Arc<ProcessSpec>, action: StepAction, phase: u16, why: &str) {
        let (word, cost) = match action {
            StepAction::Start => ("start", Some(Move::Start)),
            StepAction::Restart => ("restart", Some(Move::Restart)),
            StepAction::Stop => ("stop", Some(Move::Stop)),
            StepAction::Remove => ("remove", Some(Move::Stop)),
            StepAction::Warm => ("create", Some(Move::Warm)),
            StepAction::Shadow => ("create", Some(Move::Shadow)),
            StepAction::Switch => ("switch", None),
            StepAction::Observe => ("observe", None),
            StepAction::Cut => ("cut", None),
            StepAction::Adopt => ("adopt", None),
            StepAction::Move => ("move", Some(Move::Restart)),
            StepAction::Archive => ("archive", None),
        };
        self.steps.push(step(spec, action, phase));
        self.line(word, spec, why);
        self.moves.extend(cost.map(|cost| (Arc::clone(spec), cost)));
    }

    fn skip(&mut self, spec: &ProcessSpec, action: StepAction, why: &str) {
        self.steps
            .push(Step::skipped(spec.name.as_str(), action, why));
        self.line("keep", spec, why);
    }

    fn line(&mut self, action: &'static str, spec: &ProcessSpec, why: &str) {
        self.lines.push(Line {
            action,
            object: spec.name.clone(),
            why: why.to_owned(),
        });
    }

    /// Whether nothing would happen.
    pub fn is_empty(&self) -> bool {
        self.steps.iter().all(|step| step.state.is_ended())
    }
}

/// Starting `names`, all at once, database nodes first.
pub fn start(names: &[ProcessName], desired: &Desired, table: &Table) -> Plan {
    let mut plan = Plan::default();
    for spec in chosen(names, desired) {
        let running = table
            .get(&spec.name)
            .is_some_and(|process| process.state == State::Ready && desired.is_wanted(&spec.name));
        if running {
            plan.skip(spec, StepAction::Start, "already running");
        } else {
            plan.push(spec, StepAction::Start, 0, "");
        }
    }
    note_stopped(&mut plan, desired);
    plan
}

/// Stopping `names`: bots before the database that they write to.
pub fn stop(names: &[ProcessName], desired: &Desired, table: &Table) -> Plan {
    let mut plan = Plan::default();
    for spec in chosen(names, desired) {
        let process = table.get(&spec.name);
        let stopped = process.is_none_or(|process| process.state == State::Stopped);
        if stopped && !desired.is_wanted(&spec.name) {
            plan.skip(spec, StepAction::Stop, "already stopped");
        } else {
            let phase = u16::from(spec.kind == ProcessKind::Db);
            plan.push(spec, StepAction::Stop, phase, "");
        }
    }
    note_stopped(&mut plan, desired);
    plan
}

/// Restarting `names`, database nodes first. What the operator stopped stays stopped, unless it is
/// among `named`, asked for by its own name.
pub fn restart(
    names: &[ProcessName],
    named: &BTreeSet<ProcessName>,
    desired: &Desired,
    force: bool,
) -> Plan {
    let mut plan = Plan::default();
    for spec in chosen(names, desired) {
        if desired.is_wanted(&spec.name) || named.contains(&spec.name) {
            // A database node and a bot are never down together, unless forced.
            let phase = u16::from(spec.kind != ProcessKind::Db && !force);
            plan.push(spec, StepAction::Restart, phase, "");
        } else {
            plan.skip(spec, StepAction::Restart, "stopped by the operator");
        }
    }
    note_stopped(&mut plan, desired);
    plan
}

/// A process that goes from one host to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relocation {
    /// The process.
    pub process: ProcessName,
    /// The host that has it.
    pub from: String,
    /// The host that gets it.
    pub to: String,
    /// The host that has it is lost, and what ran there has stopped: nothing is asked of it.
    pub lost: bool,
}

/// Moving processes to other hosts. What the operator stopped stays stopped there.
pub fn relocate(relocations: &[Relocation], desired: &Desired) -> Plan {
    let mut plan = Plan::default();
    for one in relocations {
        let Some(spec) = desired.process(&one.process) else {
            continue;
        };
        if one.from == one.to {
            let why = format!("is on {} already", one.to);
            plan.skip(spec, StepAction::Move, &why);
            continue;
        }
        let was_stopped = !desired.is_wanted(&spec.name);
        let timeout_ms = timeout_ms(spec, StepAction::Move);
        plan.steps.push(Step {
            was_stopped,
            lost: one.lost,
            ..Step::moving(spec.name.as_str(), &*one.from, &*one.to, timeout_ms)
        });
        plan.line("move", spec, &format!("from {} to {}", one.from, one.to));
        if !was_stopped {
            plan.moves.push((Arc::clone(spec), Move::Transfer));
        }
    }
    plan
}

/// From what runs to `next`: new database nodes, changed ones one by one, new bots, changed ones one
/// by one, then what is no longer wanted. A bot whose shards move between its processes is stopped
/// first and started after: two processes must not hold one shard.
pub fn apply(table: &Table, next: &Desired) -> Plan {
    let old: Vec<Arc<ProcessSpec>> = table
        .values()
        .map(|process| Arc::clone(&process.spec))
        .collect();
    let moved = moving_bots(&old, &next.processes);
    let mut plan = Plan::default();
    for bot in &moved {
        plan.warnings.push(format!(
            "the shards of {bot} move between its processes: all of them stop before the new ones start"
        ));
    }
    let specs: BTreeMap<&ProcessName, &Arc<ProcessSpec>> = old
        .iter()
        .chain(next.processes.iter())
        .map(|spec| (&spec.name, spec))
        .collect();
    for change in plan::diff(&old, &next.processes) {
        let Some(spec) = specs.get(&change.process).copied() else {
            continue;
        };
        let wanted = next.is_wanted(&spec.name);
        let process = table.get(&spec.name);
        let live = process
            .is_some_and(|process| process.state.is_live() || process.state == State::Backoff);
        let stale = process.is_some_and(|process| process.needs_restart);
        let db = spec.kind == ProcessKind::Db;
        let why = change.why.as_str();
        let action = change.action.as_str();
        let before = plan.lines.len();
        match change.action {
            Action::Remove if moved.contains(spec.name.group()) => {
                plan.push(spec, StepAction::Remove, 0, why);
            }
            Action::Remove => plan.push(spec, StepAction::Remove, if db { 6 } else { 5 }, why),
            Action::Create | Action::Update | Action::Keep if !wanted => {
                if change.action == Action::Keep {
                    plan.line("keep", spec, "stopped by the operator");
                } else {
                    plan.skip(spec, StepAction::Start, "stays stopped");
                }
            }
            Action::Update if live && moved.contains(spec.name.group()) => {
                plan.push(spec, StepAction::Stop, 0, why);
                plan.push(spec, StepAction::Start, 1, why);
            }
            Action::Update if live => {
                plan.push(spec, StepAction::Restart, if db { 2 } else { 4 }, why);
            }
            Action::Keep if live && stale => {
                let why = "runs from an older spec";
                plan.push(spec, StepAction::Restart, if db { 2 } else { 4 }, why);
            }
            Action::Keep if live => plan.line("keep", spec, ""),
            // Finished work, or was given up: a new spec that does not change it changes nothing.
            Action::Keep => plan.line("keep", spec, "does not run"),
            Action::Create | Action::Update => {
                plan.push(spec, StepAction::Start, if db { 1 } else { 3 }, why);
            }
        }
        for line in plan.lines.iter_mut().skip(before) {
            if line.action != "keep" && change.action != Action::Keep {
                line.action = action;
            }
        }
        // A stop and a start of one process are one line for people.
        plan.lines.truncate(before + 1);
    }
    plan.steps.sort_by_key(|step| step.phase);
    plan
}

/// The same for a rollout: everything outside `selected` must stay as it is, and no shard may change its
/// process. The name of what would not is the error.
pub fn rolling(
    table: &Table,
    next: &Desired,
    selected: impl Fn(&ProcessName) -> bool,
) -> Result<Plan, Unfit> {
    let plan = apply(table, next);
    let old: Vec<Arc<ProcessSpec>> = table
        .values()
        .map(|process| Arc::clone(&process.spec))
        .collect();
    if let Some(bot) = moving_bots(&old, &next.processes).into_iter().next() {
        return Err(Unfit::Moves(bot));
    }
    let outside = plan
        .lines
        .iter()
        .find(|line| line.action != "keep" && !selected(&line.object));
    match outside {
        Some(line) => Err(Unfit::Outside(line.object.clone())),
        None => Ok(plan),
    }
}

/// Why a spec cannot be rolled out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// The shards of this bot would move between its processes.
    Moves(String),
    /// This process would change, and is not among the targets.
    Outside(ProcessName),
}

/// Puts restarts of one phase in the order of their identify buckets.
pub fn order_by_bucket(plan: &mut Plan, specs: &Desired, max_concurrency: u32) {
    let phases: BTreeSet<u16> = plan.steps.iter().map(|step| step.phase).collect();
    let mut ordered = Vec::with_capacity(plan.steps.len());
    for phase in phases {
        let of_phase: Vec<&Step> = plan
            .steps
            .iter()
            .filter(|step| step.phase == phase)
            .collect();
        let shards: Vec<&[u32]> = of_phase
            .iter()
            .map(|step| {
                let name = step.object.parse::<ProcessName>().ok();
                let spec = name.and_then(|name| specs.process(&name));
                spec.map_or(&[][..], |spec| spec.shard_ids.as_slice())
            })
            .collect();
        let order = rollout::by_bucket(&shards, max_concurrency);
        ordered.extend(order.into_iter().map(|index| of_phase[index].clone()));
    }
    plan.steps = ordered;
}

/// Lets one process go first, and watches it before the others follow.
pub fn canary(plan: &mut Plan, first: &str) {
    for step in &mut plan.steps {
        step.phase = if step.object == first {
            0
        } else {
            step.phase + 2
        };
    }
    let mut watch = Step::new(first, StepAction::Observe, 1, SLACK_MS);
    "before the others follow".clone_into(&mut watch.message);
    plan.steps.push(watch);
    plan.steps.sort_by_key(|step| step.phase);
}

/// A second set of processes beside the first of each bot.
pub struct Sets<'a> {
    /// The bot, its set, the next one.
    pub bots: Vec<(&'a str, Generation, Generation)>,
    /// Where the next sets are in the desired state.
    pub next: &'a Desired,
    /// Hands sessions over where the sets are laid out the same; else cuts the events.
    pub cuts: bool,
}

/// Builds the next sets, moves the work to them, watches them, and removes the old ones.
pub fn replace_sets(sets: &Sets<'_>, max_concurrency: u32) -> Plan {
    let mut plan = Plan::default();
    let next = sets.next;
    let (mut old, mut pairs) = (Vec::new(), Vec::new());
    for (bot, from, to) in &sets.bots {
        for name in to.names(bot) {
            let Some(spec) = next.process(&name) else {
                continue;
            };
            let (action, why) = if sets.cuts {
                (StepAction::Shadow, "connects beside the old set")
            } else {
                (StepAction::Warm, "prepares beside the old set")
            };
            plan.push(spec, action, 0, why);
        }
        old.extend(from.names(bot));
        if !sets.cuts {
            pairs.extend(from.names(bot).into_iter().zip(to.names(bot)));
        }
    }
    let shards: Vec<&[u32]> = pairs
        .iter()
        .map(|(_, to)| {
            next.process(to)
                .map_or(&[][..], |spec| spec.shard_ids.as_slice())
        })
        .collect();
    for index in rollout::by_bucket(&shards, max_concurrency) {
        let (from, to) = &pairs[index];
        let Some(spec) = next.process(to) else {
            continue;
        };
        let timeout = timeout_ms(spec, StepAction::Switch);
        plan.steps
            .push(Step::switch(from.as_str(), to.as_str(), 1, timeout));
    }
    let bots: Vec<&str> = sets.bots.iter().map(|(bot, _, _)| *bot).collect();
    let all = bots.join(",");
    if sets.cuts {
        plan.steps
            .push(Step::new(all.clone(), StepAction::Cut, 1, CUT_MS));
    }
    plan.steps
        .push(Step::new(all.clone(), StepAction::Observe, 2, SLACK_MS));
    plan.steps
        .push(Step::new(all, StepAction::Adopt, 3, SLACK_MS));
    for name in &old {
        if let Some(spec) = next.process(name) {
            let why = "removed once the new set serves";
            plan.push(spec, StepAction::Remove, 4, why);
        }
    }
    plan.steps.sort_by_key(|step| step.phase);
    plan
}

/// `base` with the second set of each bot in it, and the steps that put it in the place of the first.
pub fn second_sets(
    base: &Desired,
    bots: Vec<(&str, Generation, Generation)>,
    cuts: bool,
    max_concurrency: u32,
) -> Result<(Desired, Plan), SpecError> {
    let next = base.with_document(|document, _| {
        for (bot, _, to) in &bots {
            if let Some(spec) = base.spec.as_deref() {
                document.build(bot, spec, *to);
            }
        }
        Ok(())
    })?;
    let sets = Sets {
        bots,
        next: &next,
        cuts,
    };
    let plan = replace_sets(&sets, max_concurrency);
    Ok((next, plan))
}

/// The operation that is at work on what `steps` would work on, or on the second set of one of `bots`.
pub fn in_the_way<'a>(
    operations: impl IntoIterator<Item = &'a Operation>,
    steps: &[Step],
    bots: &[String],
) -> Option<(String, &'a Operation)> {
    let open = steps.iter().filter(|step| !step.state.is_ended());
    operations.into_iter().find_map(|op| {
        let step = open.clone().find(|step| op.holds(&step.object));
        let step = step.map(|step| step.object.clone());
        let object = step.or_else(|| bots.iter().find(|bot| op.builds(bot)).cloned());
        object.map(|object| (object, op))
    })
}

/// Permits come every 5 s in each bucket.
const IDENTIFY_S: u64 = 5;

/// How many processes of a set that identifies may be starting at once: each must be ready within its
/// time, waiting for its permits included.
pub fn starting_at_once(next: &Desired, bot: &str, set: Generation, max_concurrency: u32) -> u32 {
    let ready_s = next
        .process(&set.process(bot, 0))
        .map_or(60, |spec| spec.ready.timeout.as_secs());
    let rounds = (ready_s / 2 / IDENTIFY_S).max(1);
    let shards_at_once = rounds * u64::from(max_concurrency.max(1));
    let starting = shards_at_once / u64::from(set.shards_per_process.max(1));
    u32::try_from(starting).unwrap_or(u32::MAX).max(1)
}

/// Gives the steps that may have to wait for permits the time for it.
pub fn allow_for_permits(steps: &mut [Step], cost: &Cost) {
    if cost.identifies == 0 {
        return;
    }
    let waits = steps
        .iter_mut()
        .filter(|step| step.has_receipt() || step.action == StepAction::Shadow);
    for step in waits {
        step.timeout_ms += i64::from(cost.seconds) * 1000;
    }
}

/// Bots of which some shard changes its process, or whose shards are counted anew.
fn moving_bots(old: &[Arc<ProcessSpec>], new: &[Arc<ProcessSpec>]) -> BTreeSet<String> {
    let mut moving = BTreeSet::new();
    let owners: BTreeMap<(&str, u32), (&ProcessName, u32)> = old
        .iter()
        .flat_map(|spec| {
            spec.shard_ids
                .iter()
                .map(move |shard| ((spec.name.group(), *shard), (&spec.name, spec.shard_count)))
        })
        .collect();
    for spec in new {
        for shard in &spec.shard_ids {
            if let Some((owner, count)) = owners.get(&(spec.name.group(), *shard))
                && (*owner != &spec.name || *count != spec.shard_count)
            {
                moving.insert(spec.name.group().to_owned());
            }
        }
    }
    moving
}

fn chosen<'a>(
    names: &'a [ProcessName],
    desired: &'a Desired,
) -> impl Iterator<Item = &'a Arc<ProcessSpec>> {
    let names: HashSet<&ProcessName> = names.iter().collect();
    // In the order of the spec: database nodes first.
    desired
        .processes
        .iter()
        .filter(move |spec| names.contains(&spec.name))
}

fn note_stopped(plan: &mut Plan, desired: &Desired) {
    for step in &mut plan.steps {
        step.was_stopped = step
            .object
            .parse::<ProcessName>()
            .is_ok_and(|name| desired.document.stopped.contains(&name));
    }
}

/// What the supervisor is told of each process at the beginning of a term.
pub fn wanted_at_first(
    desired: &Desired,
    operations: &[&Operation],
    table: &Table,
) -> Vec<(Arc<ProcessSpec>, Wanted)> {
    let steps = next_steps(operations);
    let mut all = Vec::new();
    let given_up = given_up(operations);
    for spec in desired.processes.iter() {
        if given_up.contains(spec.name.as_str()) {
            continue;
        }
        let live = table
            .get(&spec.name)
            .is_some_and(|process| process.state.is_live());
        let wanted = match steps
            .get(spec.name.as_str())
            .map(|step| (step.action, *step))
        {
            // The operation starts it when its turn comes.
            Some((StepAction::Start | StepAction::Warm | StepAction::Shadow, step))
                if !live && !step.is_begun() =>
            {
                Wanted::Stopped
            }
            Some((StepAction::Restart, step)) if step.was_stopped && !step.is_begun() => {
                Wanted::Stopped
            }
            Some((StepAction::Stop, _)) => Wanted::Stopped,
            Some((StepAction::Remove | StepAction::Move, step)) if step.is_begun() => continue,
            _ if desired.is_wanted(&spec.name) => Wanted::Running,
            _ => Wanted::Stopped,
        };
        all.push((Arc::clone(spec), wanted));
    }
    all
}

/// Processes of second sets that have been removed again, or were never begun, by operations that go on:
/// they stay in the desired state until those have ended.
fn given_up<'a>(operations: &[&'a Operation]) -> BTreeSet<&'a str> {
    let building = operations.iter().filter(|op| op.builds_generation());
    building
        .flat_map(|op| &op.steps)
        .filter(|step| match step.action {
            StepAction::Remove => step.back && step.state == StepState::Succeeded,
            StepAction::Warm | StepAction::Shadow => step.state.is_ended() && !step.is_begun(),
            _ => false,
        })
        .map(|step| step.object.as_str())
        .collect()
}

/// The processes that run although they are in no spec and nobody is about to remove them.
pub fn orphans(desired: &Desired, operations: &[&Operation], table: &Table) -> Vec<ProcessName> {
    let steps = next_steps(operations);
    table
        .keys()
        .filter(|name| desired.process(name).is_none())
        .filter(|name| {
            let next = steps.get(name.as_str());
            next.is_none_or(|step| step.action != StepAction::Remove)
        })
        .cloned()
        .collect()
}

/// The next step of each process.
fn next_steps<'a>(operations: &[&'a Operation]) -> BTreeMap<&'a str, &'a Step> {
    let mut next = BTreeMap::new();
    for step in operations.iter().flat_map(|op| &op.steps) {
        if !step.state.is_ended() {
            next.entry(step.object.as_str()).or_insert(step);
        }
    }
    next
}

/// The processes that do not run, and will not before their turn in `op` comes: they are shown by their
/// new specs.
pub fn waiting(desired: &Desired, op: &Operation, table: &Table) -> Vec<Arc<ProcessSpec>> {
    let steps = op.steps.iter().filter(|step| !step.state.is_ended());
    let waiting: HashSet<&str> = steps.map(|step| step.object.as_str()).collect();
    let specs = desired.processes.iter().filter(|spec| {
        let live = table
            .get(&spec.name)
            .is_some_and(|process| process.state.is_live());
        let waits = waiting.contains(spec.name.as_str());
        !live && (waits || !desired.is_wanted(&spec.name))
    });
    specs.cloned().collect()
}

/// The desired state with what an operation changes of it in one round. `replaced`: the spec that the
/// operation replaced.
pub fn changed(
    desired: &Desired,
    op: &Operation,
    changes: &[&Change],
    replaced: Option<&Written>,
) -> Result<Desired, SpecError> {
    desired.with_document(|document, places| {
        for change in changes {
            match change {
                Change::Release(name) => {
                    if let Ok(name) = name.parse() {
                        document.release(&name);
                    }
                }
                Change::TurnBack => {
                    if let Some(replaced) = replaced {
                        document.bring_in(replaced, places)?;
                    }
                }
                Change::Adopt(bots) => {
                    for bot in bots {
                        document.adopt(bot);
                        if let (Kind::Reshard, Some(set)) = (op.kind, document.generations.get(bot))
                        {
                            let to = set.active;
                            // Checked when it was accepted; the layout counts in any case.
                            if let Ok(toml) = reshard::rewrite(&document.toml, bot, to) {
                                document.toml = toml;
                            }
                        }
                    }
                }
                Change::Drop(bots) => bots.iter().for_each(|bot| document.drop_next(bot)),
                // Of the assignment, not of the document.
                Change::Move(..) => {}
            }
        }
        Ok(())
    })
}

/// The desired state without what a start, stop or restart that has ended early never got to; `None`
/// where there is nothing to take back.
pub fn reverted(desired: &Desired, op: &Operation) -> Option<Desired> {
    let untouched: Vec<(ProcessName, bool)> = op
        .steps
        .iter()
        .filter(|step| {
            step.started_at == 0
                && step.ended_at > 0
                && match step.action {
                    StepAction::Start | StepAction::Stop => true,
                    // It was asked for by its own name, and stays stopped all the same.
                    StepAction::Restart => step.was_stopped,
                    _ => false,
                }
        })
        .filter_map(|step| Some((step.object.parse().ok()?, step.was_stopped)))
        .collect();
    let relevant = matches!(op.kind, Kind::Start | Kind::Stop | Kind::Restart);
    if !op.state.is_ended() || !relevant || untouched.is_empty() {
        return None;
    }
    Some(desired.with(|document| {
        for (name, was_stopped) in untouched {
            if was_stopped {
                document.stopped.insert(name);
            } else {
                document.stopped.remove(&name);
            }
        }
    }))
}
