//! Which process is shown on which host; pure. A process that several hosts tell of is shown once.

use std::{cmp::Reverse, sync::Arc};

use tanako_proto::fleet::v1 as wire;

use super::core::Core;

/// A process as one host has it.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) process: Arc<wire::Process>,
    /// The change that touched it last.
    pub(super) changed: u64,
}

/// Which hosts tell of a process.
#[derive(Debug)]
pub(super) struct Holders {
    /// The one whose row is shown.
    shown: Arc<str>,
    pub(super) others: Vec<Arc<str>>,
}

impl Core {
    pub(super) fn set_row(&mut self, name: &Arc<str>, mut process: wire::Process, compare: bool) {
        let change = self.change;
        let host = self.hosts.get_mut(name).expect("invariant: found above");
        // Nobody speaks for another host.
        if process.host != **name {
            process.host = name.to_string();
        }
        if let Some(row) = host.rows.get_mut(process.name.as_str()) {
            let moved = |a: &wire::Process, b: &wire::Process| {
                a.state != b.state || a.ready != b.ready || a.desired != b.desired
            };
            if moved(&row.process, &process) {
                self.urgent = change;
            } else if compare && *row.process == process {
                return;
            }
            let key = (self.shared > 0)
                .then(|| self.holders.get_key_value(process.name.as_str()))
                .flatten()
                .filter(|(_, holders)| !holders.others.is_empty())
                .map(|(key, _)| key.clone());
            row.process = Arc::new(process);
            row.changed = change;
            host.rows_changed = change;
            if let Some(key) = key {
                self.settle(&key);
            }
            return;
        }
        self.urgent = change;
        let key: Arc<str> = process.name.as_str().into();
        host.rows_changed = change;
        host.rows.insert(
            key.clone(),
            Row {
                process: Arc::new(process),
                changed: change,
            },
        );
        match self.holders.get_mut(&key) {
            None => {
                let holders = Holders {
                    shown: name.clone(),
                    others: Vec::new(),
                };
                self.holders.insert(key, holders);
            }
            Some(holders) => {
                self.shared += usize::from(holders.others.is_empty());
                holders.others.push(name.clone());
                self.settle(&key);
            }
        }
    }

    pub(super) fn remove_row(&mut self, name: &Arc<str>, row: &Arc<str>) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        if host.rows.remove(row).is_none() {
            return;
        }
        self.urgent = self.change;
        let Some(holders) = self.holders.get_mut(row) else {
            return;
        };
        if holders.shown != *name {
            holders.others.retain(|other| other != name);
            self.shared -= usize::from(holders.others.is_empty());
        } else if let Some(next) = holders.others.pop() {
            holders.shown = next;
            self.shared -= usize::from(holders.others.is_empty());
            self.show(row);
            self.settle(row);
        } else {
            self.holders.remove(row);
            self.removed.push(self.change, row.clone());
        }
    }

    pub(super) fn forget_rows(&mut self, name: &Arc<str>) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        host.reasons.clear();
        let rows: Vec<Arc<str>> = host.rows.keys().cloned().collect();
        self.touch();
        for row in rows {
            self.remove_row(name, &row);
        }
    }

    /// Chooses which of a process's rows is shown: of a host that is heard of before one that is not,
    /// one that lives before one that does not, the later start before the earlier.
    pub(super) fn settle(&mut self, row: &Arc<str>) {
        let Some(holders) = self.holders.get(row) else {
            return;
        };
        let rank = |name: &Arc<str>| {
            let host = self.hosts.get(name)?;
            let process = &host.rows.get(row)?.process;
            Some((
                host.is_live(),
                process.pid != 0,
                process.desired == "running",
                process.attempt,
                Reverse(name.clone()),
            ))
        };
        let best = std::iter::once(&holders.shown)
            .chain(&holders.others)
            .max_by_key(|name| rank(name))
            .cloned()
            .expect("invariant: there is one that is shown");
        if best == holders.shown {
            return;
        }
        let holders = self.holders.get_mut(row).expect("invariant: found above");
        let before = std::mem::replace(&mut holders.shown, best.clone());
        holders.others.retain(|other| *other != best);
        holders.others.push(before);
        self.show(row);
    }

    /// Makes the row that is shown new to all readers.
    fn show(&mut self, row: &Arc<str>) {
        self.urgent = self.change;
        let Some(holders) = self.holders.get(row) else {
            return;
        };
        if let Some(host) = self.hosts.get_mut(&holders.shown)
            && let Some(row) = host.rows.get_mut(row)
        {
            row.changed = self.change;
            host.rows_changed = self.change;
        }
    }

    /// The host whose row of this process is shown.
    pub fn host_of(&self, process: &str) -> Option<&str> {
        self.holders.get(process).map(|holders| &*holders.shown)
    }

    /// Whether `host`'s row of `process` is the one that is shown.
    pub(super) fn is_shown(&self, host: &Arc<str>, process: &Arc<str>) -> bool {
        self.shared == 0
            || self
                .holders
                .get(process)
                .is_some_and(|holders| holders.shown == *host)
    }

    /// How many processes are shown.
    pub fn len(&self) -> usize {
        self.holders.len()
    }

    /// Whether no process is shown.
    pub fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }
}
