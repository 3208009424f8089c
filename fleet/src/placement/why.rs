//! Why a process has no host, in words for the operator.

use std::collections::BTreeMap;

use super::{
    APART_HOSTS, HostState,
    table::{Id, Kind, Table},
};
use crate::spec::format_bytes;

/// Names given before the rest is counted.
const NAMES_MAX: usize = 3;

pub(super) fn unplaced(table: &Table, id: Id) -> String {
    let (kind, process) = (table.kind(id), table.processes[id as usize]);
    if let Some(pinned) = &process.pinned {
        let state = kind.pinned.map(|at| table.hosts[at as usize].host.state);
        return match state {
            None => format!(
                "it belongs on host {pinned}, which is not of this fleet: join that host, or name another in fleet.toml"
            ),
            Some(HostState::Draining) => {
                format!(
                    "its data lies on host {pinned}, which is being drained: it runs nowhere else"
                )
            }
            Some(_) => format!(
                "its host {pinned} is lost and its data lies there: bring that host back, or restore a backup on another"
            ),
        };
    }
    if table.hosts.is_empty() {
        return "the fleet has no host".to_owned();
    }
    let mut reasons: BTreeMap<(u8, String), Vec<&str>> = BTreeMap::new();
    for at in 0..table.hosts.len() {
        let name = table.hosts[at].host.name.as_str();
        reasons
            .entry(refusal(table, kind, at))
            .or_default()
            .push(name);
    }
    let parts: Vec<String> = reasons
        .into_iter()
        .map(|((_, words), names)| format!("{} {words}", list(&names)))
        .collect();
    format!("no host can take it: {}", parts.join("; "))
}

/// What stands against a host: the first that would have to change.
fn refusal(table: &Table, kind: &Kind, at: usize) -> (u8, String) {
    let host = table.hosts[at].host;
    match host.state {
        HostState::Lost => return (5, "lost".to_owned()),
        HostState::Draining => return (4, "draining".to_owned()),
        HostState::Cordoned => return (3, "cordoned".to_owned()),
        HostState::Present => {}
    }
    let rules = table.rules[kind.rules as usize];
    if table.grade(kind.rules, at as u32).is_none() {
        let lacking: Vec<String> = rules
            .required
            .iter()
            .filter(|(key, value)| host.labels.get(*key) != Some(*value))
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        return (0, format!("without the label {}", lacking.join(", ")));
    }
    if table.apart_count(kind, at as u32) > 0 {
        let key = rules.anti_affinity.as_deref().unwrap_or(APART_HOSTS);
        let what = if key == APART_HOSTS { "host" } else { key };
        return (
            1,
            format!("with another process of the bot on the same {what} (anti-affinity)"),
        );
    }
    if host
        .capacity
        .processes
        .is_some_and(|most| table.hosts[at].used >= most)
    {
        return (2, "with no room for another process".to_owned());
    }
    (
        2,
        format!(
            "with less than {} of memory left",
            format_bytes(kind.memory)
        ),
    )
}

fn list(names: &[&str]) -> String {
    let shown = names.iter().take(NAMES_MAX).copied().collect::<Vec<_>>();
    match names.len() - shown.len() {
        0 => format!("{} ({})", count(names.len()), shown.join(", ")),
        more => format!(
            "{} ({} and {more} more)",
            count(names.len()),
            shown.join(", ")
        ),
    }
}

fn count(hosts: usize) -> String {
    if hosts == 1 {
        "1 host".to_owned()
    } else {
        format!("{hosts} hosts")
    }
}
