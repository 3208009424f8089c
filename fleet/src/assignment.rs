//! Which host has which process; pure.
//!
//! An assignment is immutable: a change makes the next version of it, which names the one that it was
//! made from. A process belongs to one host at most.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::process::{ProcessKind, ProcessName, ProcessSpec};

/// Which host has which process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assignment {
    version: u64,
    hosts: BTreeMap<String, BTreeSet<ProcessName>>,
    places: HashMap<ProcessName, String>,
}

impl Assignment {
    /// As it was stored. A process that is named by two hosts is the first one's: nobody may run what
    /// is another's.
    pub fn new(version: u64, hosts: BTreeMap<String, BTreeSet<ProcessName>>) -> Self {
        let mut assignment = Self {
            version,
            ..Self::default()
        };
        for (host, processes) in hosts {
            assignment.hosts.entry(host.clone()).or_default();
            for process in processes {
                if !assignment.places.contains_key(&process) {
                    assignment.place(process, &host);
                }
            }
        }
        assignment
    }

    /// Rises with each change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The host of a process.
    pub fn host_of(&self, process: &ProcessName) -> Option<&str> {
        self.places.get(process).map(String::as_str)
    }

    /// The processes of a host.
    pub fn of(&self, host: &str) -> impl Iterator<Item = &ProcessName> {
        self.hosts.get(host).into_iter().flatten()
    }

    /// The hosts that have, or had, processes.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.hosts.keys().map(String::as_str)
    }

    /// All processes with their hosts, by host.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ProcessName)> {
        self.hosts
            .iter()
            .flat_map(|(host, processes)| processes.iter().map(move |name| (host.as_str(), name)))
    }

    /// The next version, in which each of `moves` is where it says; `None` = nowhere.
    pub fn with<I>(&self, moves: I) -> Self
    where
        I: IntoIterator<Item = (ProcessName, Option<String>)>,
    {
        let mut next = self.clone();
        next.version += 1;
        for (process, host) in moves {
            if let Some(old) = next.places.remove(&process)
                && let Some(all) = next.hosts.get_mut(&old)
            {
                all.remove(&process);
            }
            if let Some(host) = host {
                next.place(process, &host);
            }
        }
        next
    }

    /// The hosts whose processes are not the same in `other`.
    pub fn changed(&self, other: &Self) -> BTreeSet<String> {
        let hosts = self.hosts.keys().chain(other.hosts.keys());
        hosts
            .filter(|host| {
                let (a, b) = (self.hosts.get(*host), other.hosts.get(*host));
                a.map_or(0, BTreeSet::len) + b.map_or(0, BTreeSet::len) > 0 && a != b
            })
            .cloned()
            .collect()
    }

    fn place(&mut self, process: ProcessName, host: &str) {
        self.hosts
            .entry(host.to_owned())
            .or_default()
            .insert(process.clone());
        self.places.insert(process, host.to_owned());
    }
}

/// A host that a process may be put on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// Its name.
    pub host: String,
    /// Whether it takes new processes.
    pub open: bool,
}

/// Puts processes that have no host on open ones, evenly: each bot's shards first, then all weight.
/// `pinned` names the only host that a process may be on. A process is left out when there is nowhere
/// to put it. Processes and hosts in the same order give the same result.
pub fn spread<'a>(
    assignment: &Assignment,
    seats: &[Seat],
    all: impl IntoIterator<Item = &'a ProcessSpec>,
    pinned: impl Fn(&ProcessSpec) -> Option<String>,
) -> Vec<(ProcessName, String)> {
    let weight = |spec: &ProcessSpec| spec.shard_ids.len().max(1) as u64;
    let mut load: BTreeMap<&str, u64> = BTreeMap::new();
    let mut of_bot: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let mut homeless = Vec::new();
    for spec in all {
        match assignment.host_of(&spec.name) {
            Some(host) => {
                *load.entry(host).or_default() += weight(spec);
                *of_bot.entry((host, spec.name.group())).or_default() += weight(spec);
            }
            None => homeless.push(spec),
        }
    }
    let mut placed = Vec::new();
    for spec in homeless {
        let pin = pinned(spec);
        // Data is where it was made: a node without a place of its own stays with the first host.
        let first = spec.kind == ProcessKind::Db && pin.is_none();
        let mut fit = seats.iter().filter(|seat| match &pin {
            Some(host) => seat.host == *host,
            None => seat.open,
        });
        let chosen = if first {
            fit.min_by_key(|seat| &seat.host)
        } else {
            fit.by_ref().min_by_key(|seat| {
                let host = seat.host.as_str();
                let bot = of_bot.get(&(host, spec.name.group())).copied();
                let all = load.get(host).copied();
                (bot.unwrap_or(0), all.unwrap_or(0), host)
            })
        };
        if let Some(seat) = chosen {
            *load.entry(&seat.host).or_default() += weight(spec);
            *of_bot.entry((&seat.host, spec.name.group())).or_default() += weight(spec);
            placed.push((spec.name.clone(), seat.host.clone()));
        }
    }
    placed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::{self, Places};

    fn name(text: &str) -> ProcessName {
        text.parse().expect("a good name")
    }

    fn specs(shards: u32) -> Vec<ProcessSpec> {
        let toml = format!(
            "[fleet]\nname = \"t\"\n[bots.a]\ncommand = [\"x\"]\ntoken_file = \"/t\"\nshards = {shards}\n\
             [bots.b]\ncommand = [\"x\"]\ntoken_file = \"/t\"\nshards = 3\n"
        );
        let spec = spec::parse(&toml, "fleet.toml").expect("a good spec");
        spec.processes(&Places::anywhere())
    }

    fn seats(count: usize, closed: usize) -> Vec<Seat> {
        (0..count)
            .map(|n| Seat {
                host: format!("h{n}"),
                open: n != closed,
            })
            .collect()
    }

    #[test]
    fn a_process_has_one_host_and_versions_rise() {
        let twice = BTreeMap::from([
            ("a".to_owned(), BTreeSet::from([name("x/0"), name("x/1")])),
            ("b".to_owned(), BTreeSet::from([name("x/1")])),
        ]);
        let assignment = Assignment::new(7, twice);
        assert_eq!(assignment.host_of(&name("x/1")), Some("a"));
        assert_eq!(assignment.of("b").count(), 0);
        let next = assignment.with([
            (name("x/1"), Some("b".to_owned())),
            (name("x/0"), None),
            (name("x/2"), Some("c".to_owned())),
        ]);
        assert_eq!((next.version(), next.host_of(&name("x/0"))), (8, None));
        let hosts: Vec<&str> = next
            .of("b")
            .chain(next.of("c"))
            .map(ProcessName::as_str)
            .collect();
        assert_eq!(hosts, ["x/1", "x/2"]);
        let changed: Vec<String> = assignment.changed(&next).into_iter().collect();
        assert_eq!(changed, ["a", "b", "c"]);
        assert!(next.changed(&next).is_empty());
    }

    proptest! {
        #[test]
        fn shards_are_spread_evenly_over_open_hosts(count in 1usize..9, shards in 1u32..60, closed in 0usize..12) {
            let specs = specs(shards);
            let seats = seats(count, closed);
            let open = seats.iter().filter(|seat| seat.open).count();
            let placed = spread(&Assignment::default(), &seats, &specs, |_| None);
            prop_assert_eq!(placed.len(), if open == 0 { 0 } else { specs.len() });
            for group in ["a", "b"] {
                let of = |seat: &Seat| placed.iter().filter(|(name, host)| {
                    name.group() == group && *host == seat.host
                }).count();
                let counts: Vec<usize> = seats.iter().filter(|seat| seat.open).map(of).collect();
                let (min, max) = (counts.iter().min(), counts.iter().max());
                prop_assert!(max.copied().unwrap_or(0) <= min.copied().unwrap_or(0) + 1, "{:?}", counts);
            }
            prop_assert!(placed.iter().all(|(_, host)| seats.iter().any(|seat| seat.open && seat.host == *host)));
            // What has a place keeps it.
            let moves = placed.iter().map(|(name, host)| (name.clone(), Some(host.clone())));
            let assignment = Assignment::default().with(moves);
            if open > 0 {
                prop_assert!(spread(&assignment, &seats, &specs, |_| None).is_empty());
            }
        }
    }

    #[test]
    fn what_is_pinned_goes_nowhere_else() {
        let specs = specs(4);
        let pinned = |spec: &ProcessSpec| (spec.name.group() == "a").then(|| "h2".to_owned());
        let placed = spread(&Assignment::default(), &seats(3, 2), &specs, pinned);
        for (name, host) in placed {
            assert_eq!(host == "h2", name.group() == "a", "{name} on {host}");
        }
        assert!(spread(&Assignment::default(), &seats(2, 9), &specs, pinned).len() == 3);
    }
}
