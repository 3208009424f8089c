//! Watches over the invariants of the design, after every step. What it goes by is what really is
//! (processes, connections, the store), not what the fleet believes.

use std::collections::{BTreeMap, BTreeSet};

use tanako_agent::{
    desired::{Desired as Wanted, Document},
    operations::{
        Course, Kind, OpState, Operation, Step, StepAction, StepState, core::Effect, receipt::How,
    },
    supervisor::{Desired, State},
};
use tanako_fleet::{ProcessName, spec::Places};
use tanako_store::Store as _;

use super::{agent::drafts::BOT, config::Config, host::Pid, trace::trace, world::Sim};

/// A process that is not ready for this long is down for everybody to see, in milliseconds.
const SEEN_DOWN_MS: u64 = 5_000;
/// One that is ready for less was down when the order was decided on, in milliseconds: an order is
/// written down before it is given.
const SEEN_UP_MS: u64 = 1_000;
/// What the watchdog may be early by: reports are under way for a moment.
const SLACK_MS: u64 = 1_500;
/// An order explains a stop for so long, in milliseconds.
const ORDER_MS: u64 = 180_000;

/// See the module's documentation.
pub struct Judge {
    violation: Option<String>,
    /// Lives of the agent so far.
    pub agent_lives: u64,
    newest: BTreeMap<ProcessName, u64>,
    /// The latest order to stop or restart, and its operation.
    orders: BTreeMap<ProcessName, (u64, u64)>,
    /// Processes that were ready when an operation took them down: operation, attempt then.
    down_by: BTreeMap<ProcessName, (u64, u64)>,
    /// Since when it has not been ready.
    unready: BTreeMap<ProcessName, u64>,
    /// When each became ready last.
    ready_since: BTreeMap<ProcessName, u64>,
    /// When the agent was last continued after it had been stopped.
    awake_since: u64,
    /// Stopped for good: stopped by the operator, known to the supervisor, gone.
    at_rest: BTreeSet<ProcessName>,
    /// The desired document as last seen, and its revision.
    document: (u64, Document),
    /// What follows from it.
    desired: Option<Wanted>,
    /// A set of another shard count is beside the one that serves.
    overlaps: bool,
    /// Which process of the system each attempt was.
    pids: BTreeMap<(ProcessName, u64), Pid>,
    /// The newest epoch whose order was obeyed.
    epoch: u64,
    /// Requests that may change what is wanted of a process.
    asked: BTreeSet<ProcessName>,
    /// Processes of which a boot has taken everything.
    booted: bool,
    /// Processes that the supervisor has given up.
    pub given_up: BTreeSet<ProcessName>,
    /// Operations that ended: number, state.
    pub ended: Vec<(u64, tanako_agent::operations::OpState)>,
    /// Looks at everything so far.
    pub looks: u64,
}

impl Judge {
    /// Has seen nothing.
    pub fn new(_: &Config) -> Self {
        Self {
            violation: None,
            agent_lives: 0,
            newest: BTreeMap::new(),
            orders: BTreeMap::new(),
            down_by: BTreeMap::new(),
            unready: BTreeMap::new(),
            ready_since: BTreeMap::new(),
            awake_since: 0,
            at_rest: BTreeSet::new(),
            document: (0, Document::default()),
            desired: None,
            overlaps: false,
            pids: BTreeMap::new(),
            epoch: 0,
            asked: BTreeSet::new(),
            booted: false,
            given_up: BTreeSet::new(),
            ended: Vec::new(),
            looks: 0,
        }
    }

    /// The first one counts.
    pub fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// What does not hold.
    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// The newest attempt that was ever started.
    pub fn newest_attempt(&self, name: &ProcessName) -> u64 {
        self.newest.get(name).copied().unwrap_or(0)
    }

    /// A host has obeyed an order.
    pub fn obeyed(&mut self, epoch: u64) {
        if epoch < self.epoch {
            let newest = self.epoch;
            self.violate(format!(
                "4 (one decides): an order of epoch {epoch} is obeyed after one of {newest}"
            ));
        }
        self.epoch = self.epoch.max(epoch);
    }

    /// What is wanted, as last seen.
    pub fn desired(&self) -> Option<&Wanted> {
        self.desired.as_ref()
    }

    /// A process was started.
    pub fn spawned(&mut self, name: &ProcessName, attempt: u64, pid: Pid) {
        self.pids.insert((name.clone(), attempt), pid);
        let newest = self.newest.entry(name.clone()).or_default();
        let before = std::mem::replace(newest, attempt.max(*newest));
        if attempt <= before && !self.booted {
            self.violate(format!(
                "1 (attempts): {name} attempt {attempt} is started after attempt {before}"
            ));
        }
        self.given_up.remove(name);
    }

    /// The agent was stopped and goes on: it has yet to see what happened.
    pub fn awakes(&mut self, now: u64) {
        self.awake_since = now;
    }

    /// A process is about to be started.
    pub fn starts(&mut self, now: u64, name: &ProcessName) {
        self.unready.entry(name.clone()).or_insert(now);
        if self.at_rest.contains(name) {
            self.violate(format!("6 (stopped stays stopped): {name} is started"));
        }
    }

    /// A process is gone.
    pub fn ended(&mut self, now: u64, name: &ProcessName, _attempt: u64) {
        self.unready.entry(name.clone()).or_insert(now);
    }

    /// A process has become ready.
    pub fn became_ready(&mut self, now: u64, name: &ProcessName, attempt: u64) {
        self.unready.remove(name);
        self.ready_since.insert(name.clone(), now);
        if self
            .down_by
            .get(name)
            .is_some_and(|(_, before)| *before < attempt)
        {
            self.down_by.remove(name);
        }
    }

    /// The supervisor has given it up.
    pub fn gave_up(&mut self, name: &ProcessName) {
        self.given_up.insert(name.clone());
    }

    /// The machine has rebooted: what was not synced is gone, attempts too.
    pub fn rebooted(&mut self) {
        self.booted = true;
    }

    /// Someone asks for a change of what is wanted of these.
    pub fn asks(&mut self, names: &[ProcessName]) {
        self.asked.extend(names.iter().cloned());
    }

    /// Processes that shall not run.
    pub fn stopped(&self) -> &BTreeSet<ProcessName> {
        &self.document.1.stopped
    }
}

/// An operation gives an order.
pub fn ordered(sim: &Sim, op: &Operation, effect: &Effect, name: &ProcessName) {
    let now = sim.now();
    let host = sim.host.borrow();
    let live = host.find(name);
    // One that hangs serves nobody, and one that was told to stop before goes down anyway.
    let was_ready =
        live.is_some_and(|(_, proc)| proc.ready && !proc.hung && *proc.term.borrow() == 0);
    let attempt = live.map_or(0, |(_, proc)| proc.attempt);
    let mut judge = sim.judge.borrow_mut();
    if !matches!(effect, Effect::Start(_)) {
        judge.orders.insert(name.clone(), (now, op.number));
    }
    let switching = op
        .steps
        .iter()
        .filter(|step| step.action == StepAction::Switch && step.state == StepState::Running)
        .count();
    if switching > op.max_unavailable.max(1) as usize {
        judge.violate(format!(
            "5 (max unavailable): {} hands {switching} processes over at once, {} allowed",
            op.id, op.max_unavailable
        ));
    }
    // One that did not do as it was told is started anew, which is its own step's doing.
    let plain = op.steps.iter().any(|step| {
        step.action == StepAction::Restart
            && step.state == StepState::Running
            && step.object == name.as_str()
    });
    if !matches!(effect, Effect::Restart(..)) || !plain {
        return;
    }
    let is_back = op.course == Course::Back;
    let own = op.steps.iter().find(|step| {
        step.action == StepAction::Restart
            && step.object == name.as_str()
            && step.state == StepState::Running
    });
    // What had begun before is told again.
    let is_new = |failed: &Step| own.is_some_and(|own| own.started_at > failed.ended_at);
    let failed = |step: &&Step| step.state == StepState::Failed;
    if !is_back && op.steps.iter().filter(failed).any(is_new) {
        judge.violate(format!(
            "5 (stops at the first): {} restarts {name} after a step has failed",
            op.id
        ));
    }
    let since = judge.ready_since.get(name).copied().unwrap_or(0);
    if !was_ready || now - since < SEEN_UP_MS {
        return;
    }
    judge.down_by.insert(name.clone(), (op.number, attempt));
    let own = judge
        .down_by
        .iter()
        .filter(|(_, (number, _))| *number == op.number);
    let own: BTreeSet<&ProcessName> = own.map(|(name, _)| name).collect();
    let others = op
        .steps
        .iter()
        // On the way back one that could not be brought back is given up.
        .filter(|step| !is_back && step.state != StepState::Skipped)
        .filter(|step| step.action == StepAction::Restart)
        .filter_map(|step| step.object.parse::<ProcessName>().ok())
        .filter(|other| !own.contains(other) && !judge.document.1.stopped.contains(other))
        .filter(|other| {
            let since = judge.unready.get(other);
            since.is_some_and(|since| now - *since.max(&judge.awake_since) >= SEEN_DOWN_MS)
        });
    let others: Vec<String> = others.map(|other| other.to_string()).collect();
    let max = op.max_unavailable.max(1) as usize;
    if own.len() + others.len() > max {
        let what = format!(
            "5 (max unavailable): {} restarts {name}: down by it {own:?}, down besides {others:?}, {max} allowed",
            op.id,
        );
        judge.violate(what);
    }
}

/// The supervisor tells a process to stop.
pub fn terminated(sim: &Sim, name: &ProcessName, attempt: u64, why: &str) {
    let now = sim.now();
    let host = sim.host.borrow();
    let Some((_, proc)) = host.find(name).filter(|(_, proc)| proc.attempt == attempt) else {
        return;
    };
    let judge = sim.judge.borrow();
    let unknown = judge
        .desired
        .as_ref()
        .is_some_and(|desired| desired.process(name).is_none());
    let ordered = judge
        .orders
        .get(name)
        .is_some_and(|(at, _)| now - at <= ORDER_MS);
    let stopped = judge.document.1.stopped.contains(name);
    let silent = now - proc.heard_at + SLACK_MS >= sim.config.watchdog_s * 1_000;
    let slow = judge
        .unready
        .get(name)
        .is_some_and(|since| now - since + SLACK_MS >= 600_000);
    drop(judge);
    if !(ordered || stopped || silent || slow || unknown) {
        let heard = now - proc.heard_at;
        let what =
            format!("{name} attempt {attempt} is told to stop ({why}), heard of {heard} ms ago");
        drop(host);
        sim.violated("4 (nothing is taken down)", what);
    }
}

/// Looks at everything.
pub fn look(sim: &Sim) {
    sim.judge.borrow_mut().looks += 1;
    one_process_each(sim);
    one_holder_each(sim);
    follow_document(sim);
    rest(sim);
}

fn one_process_each(sim: &Sim) {
    let host = sim.host.borrow();
    let mut seen: BTreeMap<&ProcessName, u64> = BTreeMap::new();
    let mut twice = None;
    for (pid, proc) in &host.procs {
        if sim.executor.is_dead(proc.group) {
            continue;
        }
        if let Some(other) = seen.insert(&proc.name, *pid) {
            twice = Some(format!("{} runs as pid {other} and pid {pid}", proc.name));
        }
    }
    drop(seen);
    drop(host);
    if let Some(what) = twice {
        sim.violated("1 (one process each)", what);
    }
}

fn one_holder_each(sim: &Sim) {
    let discord = sim.discord.borrow();
    let mut seen = BTreeMap::new();
    let mut twice = None;
    let mut counts = BTreeMap::new();
    for (pid, tuple) in discord.claims() {
        counts.insert(tuple.1, pid);
        if let Some(other) = seen.insert(tuple, pid)
            && other != pid
        {
            twice = Some(format!(
                "shard {} is held by pid {other} and pid {pid}",
                tuple.0
            ));
        }
    }
    drop(discord);
    if let Some(what) = twice {
        sim.violated("1 (one holder each)", what);
    }
    if counts.len() > 1 && !sim.judge.borrow().overlaps {
        let what = format!("sets of {counts:?} shards are connected and no reshard is under way");
        sim.violated("1 (one set)", what);
    }
}

/// The desired state as it is stored now.
fn stored(sim: &Sim) -> Option<Wanted> {
    let places = Places {
        data_dir: "/d".to_owned(),
    };
    futures_util::FutureExt::now_or_never(Wanted::load(&*sim.store, places))?.ok()
}

/// An operation has come to its end, and that is written down.
pub fn ended(sim: &Sim, op: &Operation) {
    follow_document(sim);
    sim.judge.borrow_mut().ended.push((op.number, op.state));
    if let Some(why) = stored(sim).and_then(|desired| misses(&desired, op)) {
        let (id, state) = (&op.id, op.state.as_str());
        sim.violated(
            "4 (ends as asked or goes back)",
            format!("{id} {state}: {why}"),
        );
    }
    if let Some(why) = lies(sim, op) {
        let (id, state) = (&op.id, op.state.as_str());
        sim.violated("receipts", format!("{id} {state}: {why}"));
    }
    if op.kind == Kind::Reshard && op.state != OpState::Failed {
        sim.judge.borrow_mut().overlaps = false;
    }
    trace!(
        sim,
        [op.number, op.receipt.len()],
        "{}: {} receipts",
        op.id,
        op.receipt.len()
    );
}

/// How the desired state is not what the end of an operation says.
fn misses(desired: &Wanted, op: &Operation) -> Option<String> {
    let of = |action: StepAction| {
        let steps = op.steps.iter();
        let steps = steps.filter(|step| step.action == action && !step.back);
        let mut names: Vec<String> = steps.map(|step| step.object.clone()).collect();
        names.sort_unstable();
        names
    };
    if op.builds_generation() && !op.steps.is_empty() {
        let sets = desired.generations(BOT)?;
        let mut active: Vec<String> = sets
            .active
            .names(BOT)
            .iter()
            .map(ToString::to_string)
            .collect();
        active.sort_unstable();
        let mut new = of(StepAction::Shadow);
        new.extend(of(StepAction::Warm));
        new.sort_unstable();
        let old = of(StepAction::Remove);
        let fits = match op.state {
            OpState::Succeeded => active == new,
            OpState::Aborted => active == old,
            _ => active == new || active == old,
        };
        if !fits || sets.next.is_some() {
            return Some(format!("{active:?} serve, next is {:?}", sets.next));
        }
    }
    if op.replaces {
        let brought = desired.written().mark() == op.brings;
        // A reshard writes its own number into the file.
        match op.state {
            OpState::Succeeded if !brought => return Some("its spec is not the one".to_owned()),
            OpState::Succeeded if !desired.document.held.is_empty() => {
                return Some(format!("{:?} are still held", desired.document.held));
            }
            OpState::Aborted if brought => return Some("its spec is the one".to_owned()),
            _ => {}
        }
    }
    None
}

/// How a receipt does not agree with Discord's account.
fn lies(sim: &Sim, op: &Operation) -> Option<String> {
    let judge = sim.judge.borrow();
    let discord = sim.discord.borrow();
    for one in &op.receipt {
        let name: ProcessName = one.process.parse().ok()?;
        let Some(pid) = judge.pids.get(&(name, one.attempt)) else {
            continue;
        };
        let account = discord.account(*pid, (one.shard_id, one.shard_count));
        let shard = format!("shard {} of {}", one.shard_id, one.process);
        if one.lost > 0 {
            return Some(format!("{shard} has lost {} events", one.lost));
        }
        // What happened in the last moments has not been reported.
        let reported = account.last_at + 3_000 < sim.now();
        if !reported || one.how == How::Drained || one.how == How::Unknown {
            continue;
        }
        let identified = account.identifies > one.base.identifies;
        if identified != (one.how == How::Identified) {
            return Some(format!("{shard} is {:?}, Discord has {account:?}", one.how));
        }
        let once = account.resumes == 1
            && account.identifies == 0
            && one.base.resumes == 0
            && one.base.at == 0;
        if once && account.replayed != one.replayed {
            return Some(format!(
                "{shard}: {} replayed, Discord has {account:?}",
                one.replayed
            ));
        }
    }
    None
}

/// What is wanted changes only where someone asked for it.
fn follow_document(sim: &Sim) {
    let revision = sim.store.revision_of("desired");
    if sim.judge.borrow().document.0 == revision {
        return;
    }
    let item = futures_util::FutureExt::now_or_never(sim.store.get("desired"));
    let Some(Ok(Some(item))) = item else {
        return;
    };
    let Ok(document) = serde_json::from_slice::<Document>(&item.value) else {
        return;
    };
    let mut judge = sim.judge.borrow_mut();
    let before = &judge.document.1.stopped;
    let changed = before.symmetric_difference(&document.stopped);
    let unasked = changed.filter(|name| !judge.asked.contains(*name));
    let unasked: Vec<String> = unasked.map(ToString::to_string).collect();
    if !unasked.is_empty() {
        judge.violate(format!(
            "6 (what is wanted): changed without being asked: {}",
            unasked.join(", ")
        ));
    }
    let wanted: Vec<ProcessName> = judge
        .at_rest
        .difference(&document.stopped)
        .cloned()
        .collect();
    for name in wanted {
        judge.at_rest.remove(&name);
    }
    let counts: BTreeSet<u32> = document
        .generations
        .values()
        .flat_map(|sets| [Some(sets.active), sets.next])
        .flatten()
        .map(|set| set.shards)
        .collect();
    judge.overlaps |= counts.len() > 1;
    judge.document = (revision, document);
    judge.desired = stored(sim);
    let active = judge
        .desired
        .as_ref()
        .and_then(|desired| desired.active(BOT));
    let counts = counts.into_iter().chain(active.map(|set| set.shards));
    sim.discord.borrow_mut().serve(counts.collect());
}

fn rest(sim: &Sim) {
    let agent = sim.agent.borrow().clone();
    let Some(agent) = agent.filter(|agent| agent.serving.get()) else {
        return;
    };
    let mut judge = sim.judge.borrow_mut();
    let judge = &mut *judge;
    let table = agent.table.borrow();
    let host = sim.host.borrow();
    for name in &judge.document.1.stopped {
        if judge.at_rest.contains(name) {
            continue;
        }
        let rests = table.get(name).is_some_and(|process| {
            process.state == State::Stopped && process.desired == Desired::Stopped
        });
        if rests && host.find(name).is_none() {
            judge.at_rest.insert(name.clone());
        }
    }
}
