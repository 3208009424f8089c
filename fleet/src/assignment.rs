//! Which host has which process; pure.
//!
//! An assignment is immutable: a change makes the next version of it, which names the one that it was
//! made from. A process belongs to one host at most.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::process::ProcessName;

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

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ProcessName {
        text.parse().expect("a good name")
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
}
