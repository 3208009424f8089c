//! What is known about the fleet: the last snapshot with every delta applied, cleaned for display.
//!
//! No clock, no drawing, no network. Whatever arrives here may be a duplicate, out of order or about
//! something unknown; none of that may lose what is already known.

use std::collections::{HashMap, VecDeque};

use tanako_proto::fleet::v1::{
    Event, FleetDelta, FleetStatus, Host, IdentifyStatus, Operation, Process,
};

use super::{
    series::Series,
    text::{clean_in, natural, width},
};

/// Events kept; older ones are for `tanakoctl events`.
pub const EVENTS_MAX: usize = 2_000;
/// Operations kept, running ones always.
pub const OPERATIONS_MAX: usize = 100;
/// Characters kept of any one text from the network, log lines aside.
const TEXT_MAX: usize = 1_000;

/// Sums over all processes, kept up to date with each update.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Processes that are ready.
    pub ready: usize,
    /// Processes that need attention ([`is_fault`]).
    pub faults: usize,
    /// Shards, and those in stage `ready`.
    pub shards: (usize, usize),
    /// Guilds over all shards.
    pub guilds: u64,
    /// Gateway events a second over all shards.
    pub events_per_s: f64,
}

/// The fleet as last reported.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Name of the fleet; empty before the first snapshot.
    pub fleet: String,
    /// Version of the desired state.
    pub version: u64,
    /// Whether the agents call it healthy, and why not.
    pub healthy: bool,
    /// Why it is not healthy, one line each.
    pub reasons: Vec<String>,
    /// Whether the spec says that this fleet serves users.
    pub production: bool,
    /// Version of the agent that answers.
    pub agent_version: String,
    /// Hosts by name.
    pub hosts: Vec<Host>,
    /// The IDENTIFY budget.
    pub identify: IdentifyStatus,
    /// Newest first.
    pub operations: Vec<Operation>,
    /// Oldest first.
    pub events: VecDeque<Event>,
    /// Sums.
    pub totals: Totals,
    /// Fleet-wide events a second over time.
    pub rate: Series,
    /// Columns the longest process and host name take.
    pub name_width: (usize, usize),
    /// Counts changes; whoever caches something derived compares it.
    pub generation: u64,
    /// Counts changes of which processes there are.
    pub structure: u64,
    revision: u64,
    processes: Vec<Process>,
    trends: Vec<Series>,
    index: HashMap<String, usize>,
    dirty: Vec<u32>,
}

impl Model {
    /// Whether a snapshot has arrived.
    pub fn is_known(&self) -> bool {
        self.generation > 0
    }

    /// All processes, in no particular order.
    pub fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// The process called `name`.
    pub fn process(&self, name: &str) -> Option<&Process> {
        self.index.get(name).map(|at| &self.processes[*at])
    }

    /// Events a second of the process at `at` over time.
    pub fn trend(&self, at: usize) -> &Series {
        &self.trends[at]
    }

    /// The host called `name`.
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.hosts.iter().find(|host| host.name == name)
    }

    /// The operation `id`.
    pub fn operation(&self, id: &str) -> Option<&Operation> {
        self.operations.iter().find(|operation| operation.id == id)
    }

    /// Whether the host of `process` is reported unreachable, so that its data is old.
    pub fn is_unseen(&self, process: &Process) -> bool {
        self.host(&process.host)
            .is_some_and(|host| host.state == "unreachable")
    }

    /// Whether `process` needs attention.
    pub fn is_fault(&self, process: &Process) -> bool {
        is_fault(process) || self.is_unseen(process)
    }

    /// Indexes of processes changed since the last call.
    pub fn take_dirty(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.dirty)
    }

    /// Replaces everything by a snapshot; histories and events are kept.
    pub fn apply_snapshot(&mut self, mut status: FleetStatus) {
        clean_in(&mut status.fleet, TEXT_MAX);
        clean_in(&mut status.agent_version, TEXT_MAX);
        let known = std::mem::take(&mut self.trends);
        let old = std::mem::take(&mut self.index);
        self.processes.clear();
        for mut process in status.processes {
            clean_process(&mut process);
            let trend = old
                .get(&process.name)
                .and_then(|at| known.get(*at))
                .cloned();
            let at = self.processes.len();
            // A name sent twice is one process: the later one wins.
            match self.index.get(&process.name) {
                Some(first) => self.processes[*first] = process,
                None => {
                    self.index.insert(process.name.clone(), at);
                    self.processes.push(process);
                    self.trends.push(trend.unwrap_or_default());
                }
            }
        }
        self.fleet = status.fleet;
        self.version = status.version;
        self.production = status.production;
        self.agent_version = status.agent_version;
        self.set_health(status.healthy, status.reasons);
        self.hosts.clear();
        self.set_hosts(status.hosts);
        self.set_identify(status.identify);
        self.operations.clear();
        self.set_operations(status.operations);
        self.revision = status.revision;
        self.structure += 1;
        self.dirty.clear();
        self.sampled();
    }

    /// Applies what changed. False when it is older than what is known; its events are taken all
    /// the same, since they carry their own identity.
    pub fn apply_delta(&mut self, delta: FleetDelta) -> bool {
        self.add_events(delta.events);
        if delta.revision < self.revision || !self.is_known() {
            self.generation += u64::from(self.is_known());
            return false;
        }
        self.revision = delta.revision;
        if delta.version > 0 {
            self.version = delta.version;
        }
        self.set_health(delta.healthy, delta.reasons);
        self.set_hosts(delta.hosts);
        if delta.identify.is_some() {
            self.set_identify(delta.identify);
        }
        self.set_operations(delta.operations);
        for process in delta.processes {
            self.set_process(process);
        }
        self.remove(&delta.removed_processes);
        self.sampled();
        true
    }

    /// Adds events from another source than the deltas; known ones are skipped.
    pub fn add_events(&mut self, events: Vec<Event>) {
        for mut event in events {
            for text in [
                &mut event.severity,
                &mut event.kind,
                &mut event.object,
                &mut event.message,
                &mut event.host,
            ] {
                clean_in(text, TEXT_MAX);
            }
            // New events belong at the end; late ones where their time puts them.
            let after = self
                .events
                .iter()
                .rposition(|e| (e.at, e.id) <= (event.at, event.id));
            let seen = |e: &Event| {
                e.id == event.id
                    && e.at == event.at
                    && e.object == event.object
                    && e.kind == event.kind
            };
            if after.is_some_and(|at| seen(&self.events[at])) {
                continue;
            }
            self.events.insert(after.map_or(0, |at| at + 1), event);
            if self.events.len() > EVENTS_MAX {
                self.events.pop_front();
            }
        }
    }

    /// Puts in one operation, as an answer to a request brings it.
    pub fn add_operation(&mut self, operation: Operation) {
        self.set_operations(vec![operation]);
        self.generation += 1;
    }

    fn set_process(&mut self, mut process: Process) {
        clean_process(&mut process);
        if process.name.is_empty() {
            return;
        }
        match self.index.get(&process.name) {
            Some(at) => {
                self.dirty.push(*at as u32);
                self.processes[*at] = process;
            }
            None => {
                self.index
                    .insert(process.name.clone(), self.processes.len());
                self.processes.push(process);
                self.trends.push(Series::default());
                self.structure += 1;
            }
        }
    }

    fn remove(&mut self, names: &[String]) {
        for name in names {
            let Some(at) = self.index.remove(name) else {
                continue;
            };
            self.processes.swap_remove(at);
            self.trends.swap_remove(at);
            if let Some(moved) = self.processes.get(at) {
                self.index.insert(moved.name.clone(), at);
            }
            self.structure += 1;
        }
    }

    fn set_health(&mut self, healthy: bool, reasons: Vec<String>) {
        self.healthy = healthy;
        self.reasons = reasons;
        for reason in &mut self.reasons {
            clean_in(reason, TEXT_MAX);
        }
    }

    fn set_hosts(&mut self, hosts: Vec<Host>) {
        for mut host in hosts {
            for text in [
                &mut host.name,
                &mut host.state,
                &mut host.address,
                &mut host.agent_version,
                &mut host.os,
            ] {
                clean_in(text, TEXT_MAX);
            }
            match self.hosts.iter_mut().find(|known| known.name == host.name) {
                Some(known) => *known = host,
                None => self.hosts.push(host),
            }
        }
        self.hosts.sort_by(|a, b| natural(&a.name, &b.name));
    }

    fn set_identify(&mut self, identify: Option<IdentifyStatus>) {
        let Some(mut identify) = identify else { return };
        for bucket in &mut identify.buckets {
            clean_in(&mut bucket.bot, TEXT_MAX);
        }
        for bot in &mut identify.bots {
            clean_in(&mut bot.bot, TEXT_MAX);
        }
        self.identify = identify;
    }

    fn set_operations(&mut self, operations: Vec<Operation>) {
        for mut operation in operations {
            clean_operation(&mut operation);
            match self
                .operations
                .iter_mut()
                .find(|known| known.id == operation.id)
            {
                // An answer overtaken by a later report must not turn the operation back.
                Some(known) if operation.updated_at < known.updated_at => {}
                Some(known) => *known = operation,
                None => self.operations.push(operation),
            }
        }
        self.operations.sort_by(|a, b| {
            b.created_at
                .cmp(&a.created_at)
                .then_with(|| natural(&b.id, &a.id))
        });
        let mut kept = 0;
        self.operations.retain(|operation| {
            kept += 1;
            kept <= OPERATIONS_MAX || is_running(operation)
        });
    }

    fn sampled(&mut self) {
        self.generation += 1;
        let mut totals = Totals::default();
        let mut widths = (4, 4);
        for (process, trend) in self.processes.iter().zip(&mut self.trends) {
            let load = load(process);
            trend.push(load);
            totals.ready += usize::from(process.ready);
            widths.0 = widths.0.max(width(&process.name));
            widths.1 = widths.1.max(width(&process.host));
            for shard in &process.shards {
                totals.shards.0 += 1;
                totals.shards.1 += usize::from(shard.stage == "ready");
                totals.guilds += u64::from(shard.guilds);
                totals.events_per_s += finite(shard.events_per_s);
            }
        }
        totals.faults = self
            .processes
            .iter()
            .filter(|process| self.is_fault(process))
            .count();
        self.rate.push(totals.events_per_s);
        self.totals = totals;
        self.name_width = widths;
    }
}

/// What a process handles a second: gateway events, or for a database node reads and writes.
pub fn load(process: &Process) -> f64 {
    match &process.db {
        Some(db) => finite(db.reads_per_s) + finite(db.writes_per_s),
        None => process
            .shards
            .iter()
            .map(|shard| finite(shard.events_per_s))
            .sum(),
    }
}

/// The mean heartbeat latency of the shards that have one, or a database node's 99th percentile of
/// writes, in milliseconds.
pub fn latency(process: &Process) -> Option<f64> {
    if let Some(db) = &process.db {
        return Some(db.write_p99_ms).filter(|ms| ms.is_finite() && *ms > 0.0);
    }
    let known = || {
        process
            .shards
            .iter()
            .map(|s| s.latency_ms)
            .filter(|ms| ms.is_finite() && *ms > 0.0)
    };
    let n = known().count();
    (n > 0).then(|| known().sum::<f64>() / n as f64)
}

/// Guilds of all shards of a process.
pub fn guilds(process: &Process) -> u64 {
    process
        .shards
        .iter()
        .map(|shard| u64::from(shard.guilds))
        .sum()
}

/// Shards of a process in stage `ready`.
pub fn shards_ready(process: &Process) -> usize {
    process
        .shards
        .iter()
        .filter(|shard| shard.stage == "ready")
        .count()
}

/// Whether what a process reports of itself needs attention. What the operator stopped does not.
pub fn is_fault(process: &Process) -> bool {
    match process.state.as_str() {
        "failed" | "backoff" => true,
        _ if process.desired == "stopped" => false,
        "ready" => process
            .shards
            .iter()
            .any(|s| matches!(s.stage.as_str(), "disconnected" | "fatal")),
        _ => true,
    }
}

/// Whether an operation has not ended.
pub fn is_running(operation: &Operation) -> bool {
    matches!(operation.state.as_str(), "pending" | "running" | "paused")
}

fn finite(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}

fn clean_process(process: &mut Process) {
    for text in [
        &mut process.name,
        &mut process.kind,
        &mut process.host,
        &mut process.state,
        &mut process.desired,
        &mut process.detail,
        &mut process.last_exit,
        &mut process.bot,
    ] {
        clean_in(text, TEXT_MAX);
    }
    for shard in &mut process.shards {
        clean_in(&mut shard.stage, TEXT_MAX);
        clean_in(&mut shard.last_error, TEXT_MAX);
        if shard
            .events_by_type
            .keys()
            .any(|key| key.bytes().any(|b| !b.is_ascii_graphic()))
        {
            shard.events_by_type = std::mem::take(&mut shard.events_by_type)
                .into_iter()
                .map(cleaned_key)
                .collect();
        }
    }
    if let Some(db) = &mut process.db {
        clean_in(&mut db.url, TEXT_MAX);
    }
    if process
        .metrics
        .keys()
        .any(|key| key.bytes().any(|b| !b.is_ascii_graphic()))
    {
        process.metrics = std::mem::take(&mut process.metrics)
            .into_iter()
            .map(cleaned_key)
            .collect();
    }
    process.shards.sort_by_key(|shard| shard.id);
}

fn cleaned_key<V>((mut key, value): (String, V)) -> (String, V) {
    clean_in(&mut key, TEXT_MAX);
    (key, value)
}

fn clean_operation(operation: &mut Operation) {
    for text in [
        &mut operation.id,
        &mut operation.kind,
        &mut operation.state,
        &mut operation.unit,
        &mut operation.message,
        &mut operation.requested_by,
        &mut operation.date,
    ]
    .into_iter()
    .chain(&mut operation.targets)
    {
        clean_in(text, TEXT_MAX);
    }
    for step in &mut operation.steps {
        for text in [
            &mut step.object,
            &mut step.action,
            &mut step.state,
            &mut step.message,
        ] {
            clean_in(text, TEXT_MAX);
        }
    }
    for receipt in &mut operation.receipt {
        clean_in(&mut receipt.process, TEXT_MAX);
        clean_in(&mut receipt.how, TEXT_MAX);
    }
    if let Some(problem) = &mut operation.problem {
        for text in [
            &mut problem.code,
            &mut problem.object,
            &mut problem.message,
            &mut problem.cause,
            &mut problem.hint,
        ] {
            clean_in(text, TEXT_MAX);
        }
    }
}
