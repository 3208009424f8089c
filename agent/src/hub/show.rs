//! What readers are told of the view: all of it, or what is newer than what they have; pure.
//!
//! A reader is a [`Cursor`] and nothing else: what waits for a slow one is not kept, it is looked up
//! when the reader comes for it, in its latest state. Large answers come in parts, so that a reader can
//! show something before it has everything.

use std::{collections::BTreeMap, sync::Arc};

use tanako_proto::fleet::v1::{self as wire, fleet_update::Update};

use super::{
    core::{Core, Host, Now, Reach},
    rows::Row,
};

/// Processes in one part; a host's processes stay together.
pub const PART_MAX: usize = 4_096;
/// Events in one part; in a flood, older ones are left to `Events`.
const EVENTS_MAX: usize = 256;
/// Reasons shown before the rest is only counted.
const REASONS_MAX: usize = 40;
/// Hosts named in one reason.
const NAMED_MAX: usize = 3;

/// How far a reader is.
#[derive(Debug, Clone, Default)]
pub struct Cursor {
    /// It has everything up to this change; 0 = nothing.
    told: u64,
    pass: Option<Pass>,
}

/// A part of an answer has been given.
#[derive(Debug, Clone)]
struct Pass {
    /// The reader has everything up to it when this is over.
    to: u64,
    /// The host at which it goes on.
    next: Arc<str>,
}

impl Cursor {
    /// Whether there is more to tell before anything changes.
    pub fn is_under_way(&self) -> bool {
        self.pass.is_some()
    }
}

impl Core {
    /// All of it.
    pub fn status(&self, now: Now) -> wire::FleetStatus {
        let mut status = self.frame(now);
        status.processes = self
            .hosts
            .iter()
            .flat_map(|(name, host)| self.rows(name, host, 0, now))
            .collect();
        status
    }

    /// What a reader with this cursor does not have yet; `None` = it has everything.
    pub fn next(&self, cursor: &mut Cursor, now: Now) -> Option<wire::FleetUpdate> {
        // What was removed is known no more: what the reader has cannot be mended.
        let lost = self.removed.forgotten.max(self.removed_hosts.forgotten) > cursor.told;
        if lost && cursor.told > 0 {
            *cursor = Cursor::default();
        }
        let pass = cursor.pass.take();
        if pass.is_none() && self.change <= cursor.told {
            return None;
        }
        let to = pass.as_ref().map_or(self.change, |pass| pass.to);
        let from = pass.as_ref().map(|pass| &pass.next);
        let (processes, next) = self.part(from, cursor.told, now);
        let first = pass.is_none();
        let since = cursor.told;
        let more = next.is_some();
        match next {
            Some(next) => cursor.pass = Some(Pass { to, next }),
            None => cursor.told = to,
        }
        let update = if first && since == 0 {
            Update::Snapshot(wire::FleetStatus {
                processes,
                more,
                ..self.frame(now)
            })
        } else {
            let mut delta = self.delta(first, since, processes, now);
            delta.more = more;
            Update::Delta(delta)
        };
        Some(wire::FleetUpdate {
            update: Some(update),
        })
    }

    /// Everything but the processes.
    fn frame(&self, now: Now) -> wire::FleetStatus {
        let (healthy, reasons) = self.reasons();
        let said = &self.part.said;
        wire::FleetStatus {
            fleet: said.fleet.clone(),
            version: said.version,
            healthy,
            reasons,
            hosts: self.hosts.iter().map(|(name, h)| shown(name, h)).collect(),
            processes: Vec::new(),
            identify: Some(said.identify.clone().unwrap_or_default()),
            operations: self.operations(0),
            at: now.unix_ms,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: self.change,
            production: said.production,
            more: false,
        }
    }

    fn delta(
        &self,
        first: bool,
        since: u64,
        processes: Vec<wire::Process>,
        now: Now,
    ) -> wire::FleetDelta {
        let (healthy, reasons) = self.reasons();
        let mut delta = wire::FleetDelta {
            revision: self.change,
            at: now.unix_ms,
            healthy,
            reasons,
            processes,
            version: self.part.said.version,
            ..wire::FleetDelta::default()
        };
        // The first part has what is not about one process.
        if !first {
            return delta;
        }
        delta.hosts = self
            .hosts
            .iter()
            .filter(|(_, host)| host.changed > since)
            .map(|(name, host)| shown(name, host))
            .collect();
        delta.removed_hosts = self
            .removed_hosts
            .since(since)
            .filter(|name| !self.hosts.contains_key(*name))
            .map(ToString::to_string)
            .collect();
        delta.removed_processes = self
            .removed
            .since(since)
            .filter(|name| self.host_of(name).is_none())
            .map(ToString::to_string)
            .collect();
        if self.part.identify_changed > since {
            delta.identify.clone_from(&self.part.said.identify);
        }
        delta.operations = self.operations(since);
        let events: Vec<&wire::Event> = self.events.since(since).collect();
        let spare = events.len().saturating_sub(EVENTS_MAX);
        delta.events = events[spare..].iter().copied().cloned().collect();
        delta
    }

    /// The operations that changed after `since`, oldest first.
    pub fn operations(&self, since: u64) -> Vec<wire::Operation> {
        let mut found: Vec<wire::Operation> = self
            .part
            .operations
            .values()
            .filter(|(changed, _)| *changed > since)
            .map(|(_, operation)| operation.clone())
            .collect();
        found.sort_by_key(|operation| operation.created_at);
        found
    }

    /// Changed processes of the hosts from one on, and the host at which the next part begins.
    fn part(
        &self,
        from: Option<&Arc<str>>,
        since: u64,
        now: Now,
    ) -> (Vec<wire::Process>, Option<Arc<str>>) {
        let mut found = Vec::new();
        let from = from.cloned().unwrap_or_else(|| "".into());
        for (name, host) in self.hosts.range(from..) {
            if host.rows_changed <= since {
                continue;
            }
            if found.len() + host.rows.len() > PART_MAX && !found.is_empty() {
                return (found, Some(name.clone()));
            }
            found.extend(self.rows(name, host, since, now));
        }
        (found, None)
    }

    fn rows<'a>(
        &'a self,
        name: &'a Arc<str>,
        host: &'a Host,
        since: u64,
        now: Now,
    ) -> impl Iterator<Item = wire::Process> {
        let live = host.is_live();
        host.rows
            .iter()
            .filter(move |(row, of)| of.changed > since && self.is_shown(name, row))
            .map(move |(_, row)| process(row, live, now))
    }

    /// The latest operation of that id that the coordinator has told of.
    pub fn operation(&self, id: &str) -> Option<&wire::Operation> {
        self.part.operations.get(id).map(|(_, operation)| operation)
    }

    /// What the coordinator says of the budget.
    pub fn identify(&self) -> wire::IdentifyStatus {
        self.part.said.identify.clone().unwrap_or_default()
    }

    /// The events of changes after `change`, oldest first, and whether older ones of them are gone.
    pub fn events_since(&self, change: u64) -> (Vec<wire::Event>, bool) {
        let found = self.events.since(change).cloned().collect();
        (found, self.events.forgotten > change)
    }

    /// A process, as its host told it last.
    pub fn process(&self, name: &str) -> Option<Arc<wire::Process>> {
        let host = self.hosts.get(self.host_of(name)?)?;
        host.rows.get(name).map(|row| row.process.clone())
    }

    /// All processes that are shown, as told last.
    pub fn processes(&self) -> Vec<Arc<wire::Process>> {
        let rows = self.hosts.iter().flat_map(|(name, host)| {
            host.rows
                .iter()
                .filter(move |(row, _)| self.is_shown(name, row))
        });
        rows.map(|(_, row)| row.process.clone()).collect()
    }

    /// The other hosts, and whether each is heard of.
    pub fn others(&self) -> BTreeMap<String, bool> {
        self.hosts
            .iter()
            .filter(|(name, _)| **name != self.own)
            .map(|(name, host)| (name.to_string(), host.is_live()))
            .collect()
    }

    /// The other host whose agent decides, while it is heard of.
    pub fn leader(&self) -> Option<String> {
        let from = &*self.part.from;
        let host = self.hosts.get(from)?;
        (host.is_live() && *from != *self.own).then(|| from.to_owned())
    }

    /// The other hosts, and why one of them need not be asked: it is not heard of.
    pub fn askable(&self) -> BTreeMap<String, Result<(), String>> {
        let others = self.hosts.iter().filter(|(name, _)| **name != self.own);
        others
            .map(|(name, host)| {
                let askable = if host.is_lost() {
                    Err(silence(host))
                } else {
                    Ok(())
                };
                (name.to_string(), askable)
            })
            .collect()
    }

    /// Why the fleet is not healthy, and what else is worth a look.
    fn reasons(&self) -> (bool, Vec<String>) {
        let mut reasons: Vec<String> = Vec::new();
        for (name, host) in &self.hosts {
            if host.is_lost() {
                let left = host.rows.keys().filter(|row| self.is_shown(name, row));
                reasons.push(unreachable(name, host, left.count()));
            } else if host.known.leased == Some(false) {
                reasons.push(format!(
                    "host {name} does not hold its lease: it owns no shard until it does"
                ));
            } else if host.is_awaited() {
                // Nothing is known of it, which is no health.
                reasons.push(format!("host {name} has not answered yet"));
            }
        }
        reasons.extend(self.part.said.reasons.iter().cloned());
        // What several hosts say alike is one reason.
        let mut order: Vec<&str> = Vec::new();
        let mut by_line: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, host) in self.hosts.iter().filter(|(_, host)| host.is_live()) {
            for line in &host.reasons {
                let hosts = by_line.entry(line).or_default();
                if hosts.is_empty() {
                    order.push(line);
                }
                hosts.push(name);
            }
        }
        for line in order {
            reasons.push(if self.hosts.len() > 1 {
                format!("{}: {line}", named(&by_line[line]))
            } else {
                line.to_owned()
            });
        }
        let healthy = reasons.is_empty();
        if reasons.len() > REASONS_MAX {
            let more = reasons.len() - REASONS_MAX;
            reasons.truncate(REASONS_MAX);
            reasons.push(format!("and {more} more reasons"));
        }
        reasons.extend(self.part.said.notes.iter().cloned());
        (healthy, reasons)
    }
}

/// `host b`, `hosts a, b and 3 more`.
fn named(hosts: &[&str]) -> String {
    let shown = hosts[..hosts.len().min(NAMED_MAX)].join(", ");
    match hosts.len() {
        1 => format!("host {shown}"),
        n if n <= NAMED_MAX => format!("hosts {shown}"),
        n => format!("hosts {shown} and {} more", n - NAMED_MAX),
    }
}

/// Since when a host has not been heard of, and why.
fn silence(host: &Host) -> String {
    let since = jiff::Timestamp::from_millisecond(host.heard_at)
        .ok()
        .filter(|_| host.heard_at > 0);
    let why = if host.why.is_empty() {
        String::new()
    } else {
        format!(" ({})", host.why)
    };
    match since {
        Some(at) => format!("not heard of since {} UTC{why}", at.strftime("%H:%M:%S")),
        None => format!("this agent has not heard of it{why}"),
    }
}

/// `left`: its processes that no other host tells of.
fn unreachable(name: &str, host: &Host, left: usize) -> String {
    let shown = match (left, host.rows.len()) {
        (0, 0) => String::new(),
        (0, _) => "; what ran there is on other hosts".to_owned(),
        (1, 1) => "; its process is shown as it was then".to_owned(),
        (n, all) if n == all => format!("; its {n} processes are shown as they were then"),
        (1, all) => format!(
            "; 1 of its {all} processes is shown as it was then, the others are on other hosts"
        ),
        (n, all) => format!(
            "; {n} of its {all} processes are shown as they were then, the others are on other hosts"
        ),
    };
    format!("host {name} is unreachable: {}{shown}", silence(host))
}

/// A host as readers see it.
fn shown(name: &str, host: &Host) -> wire::Host {
    let mut shown = host.said.clone();
    name.clone_into(&mut shown.name);
    if !host.known.address.is_empty() {
        shown.address.clone_from(&host.known.address);
    }
    let state = match host.reach {
        _ if host.is_lost() => "unreachable",
        Reach::Idle | Reach::Waiting { .. } => "connecting",
        Reach::Silent => "unreachable",
        Reach::Live { .. } if host.known.draining => "draining",
        Reach::Live { .. } if host.known.cordoned => "cordoned",
        Reach::Live { .. } => "ready",
    };
    state.clone_into(&mut shown.state);
    let lease = match host.known.leased {
        None => "",
        Some(true) => "held",
        Some(false) => "lost",
    };
    lease.clone_into(&mut shown.lease);
    shown.last_seen = host.heard_at;
    shown
}

/// A process as readers see it: hosts do not repeat what only counts seconds.
fn process(row: &Row, live: bool, now: Now) -> wire::Process {
    let mut process = (*row.process).clone();
    if live && process.pid != 0 && process.started_at > 0 {
        process.uptime_s = u64::try_from((now.unix_ms - process.started_at) / 1000).unwrap_or(0);
    }
    process
}
