//! What the coordinator sees of all hosts.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use tanako_fleet::{ProcessName, vault::Last};
use tanako_proto::fleet::v1 as fleet;

use crate::{supervisor::Table, worker::States};

/// How a host is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// It is this one.
    Local,
    /// What is shown of it is at most a few seconds old.
    Up,
    /// It is not heard since then (milliseconds since 1970), and why. What is shown was last known.
    Down {
        /// Since when.
        since: i64,
        /// Why.
        why: String,
    },
}

impl Link {
    /// Whether orders can be expected to arrive.
    pub fn is_up(&self) -> bool {
        !matches!(self, Self::Down { .. })
    }
}

/// What a host keeps of a process besides its state, for costs and receipts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    /// Sessions that it could resume.
    pub sessions: usize,
    /// The latest deposits by shard and shard count.
    pub deposits: Vec<((u32, u32), Last)>,
    /// Memory that it uses.
    pub rss_bytes: u64,
}

/// One host.
#[derive(Debug, Clone)]
pub struct HostPicture {
    /// Its name.
    pub name: Arc<str>,
    /// How it is connected.
    pub link: Link,
    /// Names the life of its agent; empty = it has not been heard yet.
    pub instance: Arc<str>,
    /// Revision of what is shown.
    pub revision: u64,
    /// When it was last heard, in milliseconds since 1970; 0 = never.
    pub heard_at: i64,
    /// Its figures, for those that are not local.
    pub view: Option<Arc<fleet::Host>>,
    /// All processes that it has, also those that do not belong to it.
    pub table: Arc<Table>,
    /// Their reports.
    pub workers: Arc<States>,
    /// What is kept of them, for those that are not local.
    pub kept: Arc<HashMap<ProcessName, Kept>>,
}

/// All hosts.
#[derive(Debug, Clone, Default)]
pub struct Picture {
    /// Version of the assignment by which it was joined.
    pub version: u64,
    /// Every process on the host that it belongs to; those that belong to none are left out.
    pub table: Arc<Table>,
    /// Their reports.
    pub workers: Arc<States>,
    /// The hosts by name.
    pub hosts: BTreeMap<Arc<str>, Arc<HostPicture>>,
}

impl Picture {
    /// Joins the hosts; `host_of` says to which one a process belongs.
    pub fn join<'a>(
        hosts: BTreeMap<Arc<str>, Arc<HostPicture>>,
        host_of: impl Fn(&ProcessName) -> Option<&'a str>,
    ) -> Self {
        let belongs = |host: &HostPicture, name: &ProcessName| host_of(name) == Some(&*host.name);
        // One host that has all of them is shown as it is: nothing is copied.
        if hosts.len() == 1
            && let Some(only) = hosts.values().next()
            && only.table.keys().all(|name| belongs(only, name))
        {
            let (table, workers) = (Arc::clone(&only.table), Arc::clone(&only.workers));
            return Self {
                version: 0,
                table,
                workers,
                hosts,
            };
        }
        let mut table = Table::new();
        let mut workers = States::new();
        for host in hosts.values() {
            for (name, process) in host.table.iter().filter(|(name, _)| belongs(host, name)) {
                table.insert(name.clone(), Arc::clone(process));
                if let Some(worker) = host.workers.get(name) {
                    workers.insert(name.clone(), Arc::clone(worker));
                }
            }
        }
        Self {
            version: 0,
            table: Arc::new(table),
            workers: Arc::new(workers),
            hosts,
        }
    }

    /// Whether it is of these hosts as they are. When they were last heard does not count.
    pub fn shows(&self, hosts: &BTreeMap<Arc<str>, Arc<HostPicture>>) -> bool {
        let same = |a: &HostPicture, b: &HostPicture| {
            Arc::ptr_eq(&a.table, &b.table)
                && Arc::ptr_eq(&a.workers, &b.workers)
                && a.link == b.link
                && a.revision == b.revision
                && a.instance == b.instance
        };
        self.hosts.len() == hosts.len()
            && self
                .hosts
                .iter()
                .zip(hosts)
                .all(|((name, a), (other, b))| name == other && same(a, b))
    }

    /// Whether the host is heard.
    pub fn is_up(&self, host: &str) -> bool {
        self.hosts.get(host).is_some_and(|host| host.link.is_up())
    }
}
