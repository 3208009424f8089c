//! What the operator decides about hosts, in their records.

use tanako_proto::fleet::v1::Problem;
use tanako_store::Txn;

use super::{draft::Refused, task::Task};
use crate::{
    operations::{Kind, Operation},
    registry::{HostRecord, host_key},
};

/// A change of what a host may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    /// The host.
    pub(super) host: String,
    /// Nothing new is placed on it.
    pub(super) cordoned: bool,
    /// Everything is being moved off it.
    pub(super) draining: bool,
}

impl Mark {
    /// For people: cordon or uncordon, and why.
    pub(super) fn line(&self) -> (&'static str, String) {
        let (action, why) = match (self.cordoned, self.draining) {
            (false, _) => ("uncordon", "it takes processes again"),
            (true, false) => ("cordon", "it keeps what it runs and gets nothing new"),
            (true, true) => ("cordon", "it gets nothing new, and what it runs moves"),
        };
        (action, why.to_owned())
    }

    fn changes(&self, record: &HostRecord) -> bool {
        (record.cordoned, record.draining) != (self.cordoned, self.draining)
    }
}

impl Task {
    /// The marks that change something.
    pub(super) fn needed(&self, marks: impl IntoIterator<Item = Mark>) -> Vec<Mark> {
        let hosts = self.parts.registry.hosts();
        let differs = |mark: &Mark| {
            let known = hosts.get(&mark.host);
            known.is_some_and(|known| mark.changes(&known.record))
        };
        marks.into_iter().filter(differs).collect()
    }

    /// Adds marks to a transaction: it conflicts when a record was changed meanwhile.
    pub(super) fn mark(&self, marks: &[Mark], mut txn: Txn) -> Txn {
        let hosts = self.parts.registry.hosts();
        for mark in marks {
            let Some(known) = hosts.get(&mark.host) else {
                continue;
            };
            let record = HostRecord {
                cordoned: mark.cordoned,
                draining: mark.draining,
                ..known.record.clone()
            };
            let key = host_key(&mark.host);
            let json = serde_json::to_vec(&record).expect("invariant: a record is plain data");
            txn = txn.if_unchanged(key.clone(), known.revision).put(key, json);
        }
        txn
    }

    /// What an operation that has ended leaves of its hosts' marks: drained or not, they stay cordoned.
    pub(super) fn marks_after(&self, op: &Operation) -> Vec<Mark> {
        if op.kind != Kind::Drain || !op.state.is_ended() {
            return Vec::new();
        }
        let hosts = self.parts.registry.hosts();
        let of_op = op.targets.iter().filter_map(|it| it.strip_prefix("host:"));
        of_op
            .filter(|host| hosts.get(*host).is_some_and(|known| known.record.draining))
            .map(|host| Mark {
                host: host.to_owned(),
                cordoned: true,
                draining: false,
            })
            .collect()
    }

    /// The hosts that targets name.
    pub(super) fn named_hosts(&self, targets: &[String]) -> Result<Vec<String>, Refused> {
        if targets.is_empty() {
            return Err(Box::new(
                Problem::new("invalid-target", "targets", "the request names no host")
                    .hint("name hosts like host:a"),
            ));
        }
        let hosts = self.parts.registry.hosts();
        let mut named: Vec<String> = Vec::new();
        for target in targets {
            let Some(name) = target.strip_prefix("host:") else {
                return Err(Box::new(
                    Problem::new("invalid-target", target, "this is not a host")
                        .hint("name hosts like host:a"),
                ));
            };
            let Some(known) = hosts.get(name) else {
                let known: Vec<&str> = hosts.keys().map(String::as_str).collect();
                return Err(Box::new(
                    Problem::new(
                        "unknown-target",
                        target,
                        format!("there is no host {name:?}"),
                    )
                    .hint(format!("hosts are {}", known.join(", "))),
                ));
            };
            if known.revision == 0 {
                return Err(Box::new(
                    Problem::new("unsupported", target, "this is a fleet of one machine")
                        .cause("its processes have nowhere else to run")
                        .hint("`tanakoctl stop all` stops them; see `tanakoctl store migrate` for a fleet of several hosts"),
                ));
            }
            if !named.iter().any(|twin| twin == name) {
                named.push(name.to_owned());
            }
        }
        Ok(named)
    }
}
