//! From the spec of a fleet, and what agents found on their hosts, to what placement sees.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{Capacity, Host, HostState, Process, Rules};
use crate::{
    process::{ProcessKind, ProcessSpec},
    spec::Spec,
};

/// What an agent says of its host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Labels that the agent was given.
    pub labels: BTreeMap<String, String>,
    /// Most processes, if the agent was given a bound.
    pub processes: Option<u32>,
    /// Processors; 0 = unknown.
    pub cpus: u32,
}

/// A host with what its agent found and what the spec says of it; the spec is the stronger. A host that
/// the spec does not name has what its agent found, no bounds, and a share of its processors.
pub fn host(name: &str, state: HostState, found: &Found, spec: Option<&Spec>) -> Host {
    let said = spec.and_then(|spec| spec.hosts.iter().find(|host| host.name == name));
    let mut labels = found.labels.clone();
    let capacity = said.map(|said| {
        let said_labels = said.labels.iter();
        labels.extend(said_labels.map(|(key, value)| (key.clone(), value.clone())));
        &said.capacity
    });
    Host {
        name: name.to_owned(),
        state,
        capacity: Capacity {
            processes: capacity.and_then(|said| said.processes).or(found.processes),
            memory_bytes: capacity.and_then(|said| said.memory_bytes),
            share: capacity
                .and_then(|said| said.share)
                .unwrap_or(found.cpus.max(1)),
        },
        labels,
    }
}

/// The processes as placement sees them. A database node belongs on the host that the spec names; one
/// without a name belongs where it is, by `at`.
pub fn processes<'a>(
    spec: Option<&Spec>,
    all: impl IntoIterator<Item = &'a ProcessSpec>,
    at: impl Fn(&ProcessSpec) -> Option<String>,
) -> Vec<Process> {
    let mut rules: HashMap<&str, Arc<Rules>> = HashMap::new();
    all.into_iter()
        .map(|process| {
            let group = process.name.group();
            let bot = spec.and_then(|spec| spec.bots.get(group));
            let placement = bot.map(|bot| &bot.placement);
            let shards = u32::try_from(process.shard_ids.len()).unwrap_or(u32::MAX);
            let node = || {
                let nodes = &spec?.database.as_ref()?.nodes;
                let node = nodes
                    .iter()
                    .find(|node| node.name == process.name.instance())?;
                node.host.clone()
            };
            Process {
                name: process.name.clone(),
                bot: group.to_owned(),
                order: process.shard_ids.first().copied().unwrap_or(0),
                weight: placement
                    .and_then(|placement| placement.weight)
                    .unwrap_or(shards)
                    .max(1),
                memory_bytes: process.limits.memory_bytes.unwrap_or(0),
                rules: Arc::clone(rules.entry(group).or_insert_with(|| {
                    Arc::new(placement.map_or_else(Rules::default, |it| it.rules.clone()))
                })),
                pinned: match process.kind {
                    ProcessKind::Db => node().or_else(|| at(process)),
                    ProcessKind::Shard => None,
                },
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{self, Places};

    const FLEET: &str = r#"
[fleet]
name = "t"

[[hosts]]
name = "a"
labels = { disk = "ssd" }
capacity = { processes = 40, memory = "28GiB", share = 3 }

[[hosts]]
name = "b"

[bots.x]
command = ["tanako-bot"]
token_file = "/t"
shards = 5
shards_per_process = 2
limits = { memory = "512MiB" }
placement = { required = { disk = "ssd" }, preferred = { zone = "eu" }, anti_affinity = "rack" }

[bots.y]
command = ["tanako-bot"]
token_file = "/t"
shards = 1
placement = { weight = 9 }

[database]
token_file = "/t"

[[database.node]]
name = "n1"
listen = "10.0.0.1:7101"
host = "b"

[[database.node]]
name = "n2"
listen = "10.0.0.2:7101"
host = "a"
"#;

    #[test]
    fn processes_have_what_the_spec_says_of_their_bot() {
        let spec = spec::parse(FLEET, "fleet.toml").expect("a good spec");
        let places = Places {
            data_dir: "/d".to_owned(),
        };
        let all = processes(Some(&spec), &spec.processes(&places), |_| None);
        let seen: Vec<_> = all
            .iter()
            .map(|it| {
                (
                    it.name.as_str(),
                    it.order,
                    it.weight,
                    it.memory_bytes >> 20,
                    it.pinned.as_deref(),
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("db/n1", 0, 1, 0, Some("b")),
                ("db/n2", 0, 1, 0, Some("a")),
                ("x/0", 0, 2, 512, None),
                ("x/1", 2, 2, 512, None),
                ("x/2", 4, 1, 512, None),
                ("y/0", 0, 9, 0, None),
            ]
        );
        assert_eq!(all[2].rules.anti_affinity.as_deref(), Some("rack"));
        assert_eq!(all[2].rules.required["disk"], "ssd");
        assert!(Arc::ptr_eq(&all[2].rules, &all[3].rules));
    }

    #[test]
    fn the_spec_is_stronger_than_what_was_found_and_a_stranger_has_defaults() {
        let spec = spec::parse(FLEET, "fleet.toml").expect("a good spec");
        let found = Found {
            labels: [("disk", "hdd"), ("zone", "eu")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            processes: Some(7),
            cpus: 2,
        };
        let a = host("a", HostState::Present, &found, Some(&spec));
        assert_eq!((&*a.labels["disk"], &*a.labels["zone"]), ("ssd", "eu"));
        assert_eq!(
            (
                a.capacity.processes,
                a.capacity.memory_bytes,
                a.capacity.share
            ),
            (Some(40), Some(28 << 30), 3)
        );
        let c = host("c", HostState::Cordoned, &found, Some(&spec));
        assert_eq!(
            (
                c.capacity.processes,
                c.capacity.memory_bytes,
                c.capacity.share
            ),
            (Some(7), None, 2)
        );
        let unknown = host("d", HostState::Lost, &Found::default(), None);
        assert_eq!(unknown.capacity, Capacity::default());
    }
}
