//! What is known about the fleet: the last snapshot with every delta applied, cleaned for display.
//!
//! No clock, no drawing, no network. Whatever arrives here may be a duplicate, out of order or about
//! something unknown; none of that may lose what is already known.

use std::collections::{HashMap, VecDeque};

use tanako_proto::fleet::v1::{
    Event, FleetDelta, FleetStatus, Host, IdentifyStatus, Operation, Process,
};

pub use super::measure::{guilds, is_fault, is_running, is_unwell, latency, load, shards_ready};
use super::{
    intake::{self, TEXT_MAX},
    measure,
    series::{POINTS_MAX, Series},
    text::{clean_in, natural, width},
};

/// Events kept; older ones are for `tanakoctl events`.
pub const EVENTS_MAX: usize = 2_000;
/// Operations kept, running ones always.
pub const OPERATIONS_MAX: usize = 100;

/// Processes from which on each one's history is short, and how short: a column of the table wide.
const TRENDS_SHORT: usize = 5_000;
const TREND_MAX: usize = 32;

/// Sums over the processes of one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostSums {
    /// Its processes that are ready.
    pub ready: usize,
    /// Its processes.
    pub processes: usize,
    /// Its shards, and those in stage `ready`.
    pub shards: (usize, usize),
}

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
    /// Hosts, in the order of their names.
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
    host_index: HashMap<String, usize>,
    sums: Vec<HostSums>,
    revision: u64,
    measured: u64,
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
        self.host_index.get(name).map(|at| &self.hosts[*at])
    }

    /// Sums over the processes of the host at `at` in [`Self::hosts`].
    pub fn host_sums(&self, at: usize) -> HostSums {
        self.sums.get(at).copied().unwrap_or_default()
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
            intake::process(&mut process);
            let trend = old
                .get(&process.name)
                .and_then(|at| known.get(*at))
                .cloned();
            let at = self.processes.len();
            // A name sent twice is one process: the later one wins.
            if let Some(first) = self.index.get(&process.name) {
                self.processes[*first] = process;
            } else {
                self.index.insert(process.name.clone(), at);
                self.processes.push(process);
                self.trends.push(trend.unwrap_or_default());
            }
        }
        self.fleet = status.fleet;
        self.version = status.version;
        self.production = status.production;
        self.agent_version = status.agent_version;
        self.set_health(status.healthy, status.reasons);
        self.hosts.clear();
        self.host_index.clear();
        self.set_hosts(status.hosts, &[]);
        self.set_identify(status.identify);
        self.operations.clear();
        self.set_operations(status.operations);
        self.revision = status.revision;
        self.structure += 1;
        self.dirty.clear();
        self.sampled(status.more);
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
        self.set_hosts(delta.hosts, &delta.removed_hosts);
        if delta.identify.is_some() {
            self.set_identify(delta.identify);
        }
        self.set_operations(delta.operations);
        for process in delta.processes {
            self.set_process(process);
        }
        self.remove(&delta.removed_processes);
        self.sampled(delta.more);
        true
    }

    /// Adds events from another source than the deltas; known ones are skipped.
    pub fn add_events(&mut self, events: Vec<Event>) {
        for mut event in events {
            intake::event(&mut event);
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
        intake::process(&mut process);
        if process.name.is_empty() {
            return;
        }
        if let Some(at) = self.index.get(&process.name) {
            self.dirty.push(*at as u32);
            self.processes[*at] = process;
        } else {
            self.index
                .insert(process.name.clone(), self.processes.len());
            self.processes.push(process);
            self.trends.push(Series::default());
            self.structure += 1;
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

    fn set_hosts(&mut self, hosts: Vec<Host>, removed: &[String]) {
        let mut moved = false;
        for mut host in hosts {
            intake::host(&mut host);
            if let Some(at) = self.host_index.get(&host.name) {
                self.hosts[*at] = host;
            } else {
                self.host_index.insert(host.name.clone(), self.hosts.len());
                self.hosts.push(host);
                moved = true;
            }
        }
        if removed
            .iter()
            .any(|name| self.host_index.contains_key(name))
        {
            self.hosts.retain(|host| !removed.contains(&host.name));
            moved = true;
        }
        if moved {
            self.hosts.sort_by(|a, b| natural(&a.name, &b.name));
            self.host_index = self
                .hosts
                .iter()
                .enumerate()
                .map(|(at, host)| (host.name.clone(), at))
                .collect();
        }
    }

    fn set_identify(&mut self, identify: Option<IdentifyStatus>) {
        let Some(mut identify) = identify else { return };
        intake::identify(&mut identify);
        self.identify = identify;
    }

    fn set_operations(&mut self, operations: Vec<Operation>) {
        for mut operation in operations {
            intake::operation(&mut operation);
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

    /// Sums up. `more`: the rest of a large answer follows at once, and is summed up with it; the first
    /// part is, so that there is something to look at.
    fn sampled(&mut self, more: bool) {
        self.generation += 1;
        if more && self.totals != Totals::default() {
            return;
        }
        let mut totals = Totals::default();
        let mut sums = vec![HostSums::default(); self.hosts.len()];
        let trend_max = if self.processes.len() > TRENDS_SHORT {
            TREND_MAX
        } else {
            POINTS_MAX
        };
        for (process, trend) in self.processes.iter().zip(&mut self.trends) {
            let load = load(process);
            trend.push_within(load, trend_max);
            let host = self.host_index.get(&process.host).copied();
            // A host that is not heard speaks for none of its processes.
            let unseen = host.is_some_and(|at| self.hosts[at].state == "unreachable");
            let ready = usize::from(process.ready && !unseen);
            let shards_ready = if unseen {
                0
            } else {
                measure::shards_ready(process)
            };
            let shards = (process.shards.len(), shards_ready);
            totals.ready += ready;
            totals.shards.0 += shards.0;
            totals.shards.1 += shards.1;
            for shard in &process.shards {
                totals.guilds += u64::from(shard.guilds);
                totals.events_per_s += measure::finite(shard.events_per_s);
            }
            totals.faults += usize::from(unseen || is_fault(process));
            if let Some(sums) = host.map(|at| &mut sums[at]) {
                sums.processes += 1;
                sums.ready += ready;
                sums.shards.0 += shards.0;
                sums.shards.1 += shards.1;
            }
        }
        self.sums = sums;
        self.rate.push(totals.events_per_s);
        self.totals = totals;
        if self.measured != self.structure {
            self.measured = self.structure;
            let widest = |of: fn(&Process) -> &str| {
                self.processes
                    .iter()
                    .map(|process| width(of(process)))
                    .max()
                    .unwrap_or(0)
            };
            self.name_width = (
                widest(|process| &process.name),
                widest(|process| &process.host),
            );
        }
    }
}
