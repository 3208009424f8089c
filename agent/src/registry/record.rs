//! What is written about a host.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tanako_fleet::tenure::Terms;

/// A host, as it is stored under `hosts/<name>`. Written by the host's own agent ([`Own`]) and, for what
/// an operator decides about it, by the coordinator. Fields that a newer version has added are lost
/// when an older one writes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostRecord {
    /// Its name in the fleet.
    pub name: String,
    /// `IP:PORT` where its agent serves the others; empty = nowhere.
    pub address: String,
    /// Where its metrics are served, `http://IP:PORT`.
    pub http: String,
    /// Its data directory.
    pub data_dir: String,
    /// For placement, as the operator gave them.
    pub labels: BTreeMap<String, String>,
    /// What it can carry.
    pub capacity: Capacity,
    /// Nothing new is placed on it.
    pub cordoned: bool,
    /// Everything is being moved off it.
    pub draining: bool,
    /// Version of its agent.
    pub agent_version: String,
    /// Names the boot of its machine.
    pub boot_id: String,
    /// Whether its agent issues certificates.
    pub issuer: bool,
    /// When it was first announced; ms since 1970.
    pub joined_at: i64,
    /// Of its latest lease. Written by [`crate::tenure`] alone.
    pub tenure: Terms,
}

/// What a host can carry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capacity {
    /// Most processes, if the operator set a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u32>,
    /// Memory of the machine, in bytes; 0 = unknown.
    pub memory_bytes: u64,
    /// Processors; 0 = unknown.
    pub cpus: u32,
}

/// What a host's agent says about its host. The rest of the record is not its to write.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Own {
    /// See [`HostRecord::name`].
    pub name: String,
    /// See [`HostRecord::address`].
    pub address: String,
    /// See [`HostRecord::http`].
    pub http: String,
    /// See [`HostRecord::data_dir`].
    pub data_dir: String,
    /// Labels of this agent's configuration: they win over those of the same name in the record.
    pub labels: BTreeMap<String, String>,
    /// See [`HostRecord::capacity`]. A limit of processes is kept from the record when there is none
    /// here.
    pub capacity: Capacity,
    /// See [`HostRecord::boot_id`].
    pub boot_id: String,
    /// See [`HostRecord::issuer`].
    pub issuer: bool,
}

impl Own {
    /// Of the machine that this agent runs on. It serves nobody yet and issues nothing.
    pub fn of_machine(host: &str, data_dir: &str, http: &str) -> Self {
        let memory = sysinfo::System::new().map_or(0, |mut system| {
            system.refresh_memory();
            system.total_memory()
        });
        let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        Self {
            name: host.to_owned(),
            http: http.to_owned(),
            data_dir: data_dir.to_owned(),
            capacity: Capacity {
                processes: None,
                memory_bytes: memory,
                cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            },
            boot_id: crate::supervisor::boot_id(),
            ..Self::default()
        }
    }

    /// The record with this in it. `before` is the one that is stored.
    pub(super) fn merged(&self, before: Option<HostRecord>, now: i64) -> HostRecord {
        let mut record = before.unwrap_or_else(|| HostRecord {
            joined_at: now,
            ..HostRecord::default()
        });
        record.name.clone_from(&self.name);
        record.address.clone_from(&self.address);
        record.http.clone_from(&self.http);
        record.data_dir.clone_from(&self.data_dir);
        let labels = self.labels.iter().map(|(k, v)| (k.clone(), v.clone()));
        record.labels.extend(labels);
        record.capacity = Capacity {
            processes: self.capacity.processes.or(record.capacity.processes),
            ..self.capacity
        };
        env!("CARGO_PKG_VERSION").clone_into(&mut record.agent_version);
        record.boot_id.clone_from(&self.boot_id);
        record.issuer = self.issuer;
        record
    }
}

/// That a host's lease lives, as it is stored under `present/<name>`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Presence {
    /// Random name of the tenure: another one means that the host has been gone in between.
    pub instance: String,
    /// The lease, as the store knows it.
    pub lease: u64,
    /// When the tenure began; ms since 1970.
    pub since: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_changes_only_its_own_part() {
        let own = Own {
            name: "a".to_owned(),
            address: "10.0.0.1:7000".to_owned(),
            labels: BTreeMap::from([("zone".to_owned(), "1".to_owned())]),
            capacity: Capacity {
                cpus: 2,
                ..Capacity::default()
            },
            ..Own::default()
        };
        let first = own.merged(None, 5);
        assert_eq!((first.joined_at, first.cordoned), (5, false));
        let stored = HostRecord {
            cordoned: true,
            draining: true,
            labels: BTreeMap::from([
                ("zone".to_owned(), "9".to_owned()),
                ("disk".to_owned(), "ssd".to_owned()),
            ]),
            capacity: Capacity {
                processes: Some(7),
                memory_bytes: 1,
                cpus: 1,
            },
            ..first
        };
        let next = own.merged(Some(stored), 9);
        assert!(next.cordoned && next.draining);
        assert_eq!(next.joined_at, 5);
        assert_eq!(next.capacity.processes, Some(7));
        assert_eq!((next.capacity.cpus, next.capacity.memory_bytes), (2, 0));
        assert_eq!(next.labels["zone"], "1");
        assert_eq!(next.labels["disk"], "ssd");
    }

    #[test]
    fn fields_of_other_versions_do_no_harm() {
        let text = r#"{"name":"a","colour":"green","capacity":{"cpus":3}}"#;
        let record: HostRecord = serde_json::from_str(text).expect("reads");
        assert_eq!((record.name.as_str(), record.capacity.cpus), ("a", 3));
    }
}
