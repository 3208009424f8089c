//! What is known of the hosts, from listings and changes; pure.

use std::collections::BTreeMap;

use tanako_store::{Event, KeyValue};

use super::{HOSTS, HostRecord, Hosts, Known, PRESENT, Presence};

/// The hosts, and presences whose host is not known yet.
#[derive(Debug, Default)]
pub(super) struct Table {
    hosts: Hosts,
    /// The two keys of a host are watched side by side, so that either may be first.
    presences: BTreeMap<String, Presence>,
}

impl Table {
    pub(super) fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// Everything anew. Who was lost before and still is keeps the time.
    pub(super) fn load(&mut self, records: Vec<KeyValue>, present: Vec<KeyValue>, now: i64) {
        self.presences = present
            .into_iter()
            .filter_map(|item| Some((named(&item.key, PRESENT)?.to_owned(), presence(&item))))
            .collect();
        let before = std::mem::take(&mut self.hosts);
        for item in records {
            let Some(name) = named(&item.key, HOSTS).map(str::to_owned) else {
                continue;
            };
            if let Some(known) = before.get(&name) {
                self.hosts.insert(name.clone(), known.clone());
            }
            self.record(&name, &item, now);
        }
        let names: Vec<String> = self.hosts.keys().cloned().collect();
        for name in names {
            self.refresh(&name, now);
        }
    }

    /// One change.
    pub(super) fn apply(&mut self, event: Event, now: i64) {
        let key = event.key().to_owned();
        if let Some(name) = named(&key, HOSTS) {
            match event {
                Event::Put(item) => self.record(name, &item, now),
                Event::Delete { .. } => {
                    self.hosts.remove(name);
                }
            }
        } else if let Some(name) = named(&key, PRESENT) {
            match event {
                Event::Put(item) => {
                    self.presences.insert(name.to_owned(), presence(&item));
                }
                Event::Delete { .. } => {
                    self.presences.remove(name);
                }
            }
            self.refresh(name, now);
        }
    }

    fn record(&mut self, name: &str, item: &KeyValue, now: i64) {
        // One that cannot be read is a host all the same: it may own processes.
        let mut record: HostRecord = serde_json::from_slice(&item.value).unwrap_or_else(|error| {
            tracing::warn!(%error, key = item.key, "the record of a host cannot be read");
            HostRecord::default()
        });
        name.clone_into(&mut record.name);
        if let Some(known) = self.hosts.get_mut(name) {
            known.record = record;
            known.revision = item.mod_revision;
        } else {
            let known = Known {
                record,
                revision: item.mod_revision,
                present: None,
                lost_at: None,
            };
            self.hosts.insert(name.to_owned(), known);
            self.refresh(name, now);
        }
    }

    fn refresh(&mut self, name: &str, now: i64) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        host.present = self.presences.get(name).cloned();
        match host.present {
            Some(_) => host.lost_at = None,
            None => host.lost_at = host.lost_at.or(Some(now)),
        }
    }
}

fn named<'a>(key: &'a str, prefix: &str) -> Option<&'a str> {
    key.strip_prefix(prefix).filter(|name| !name.is_empty())
}

/// One that cannot be read still says that the lease lives.
fn presence(item: &KeyValue) -> Presence {
    let mut presence: Presence = serde_json::from_slice(&item.value).unwrap_or_default();
    presence.lease = item.lease.unwrap_or(presence.lease);
    presence
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn item(key: &str, value: &str, revision: u64, lease: Option<u64>) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: Bytes::copy_from_slice(value.as_bytes()),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease,
        }
    }

    fn host(name: &str, revision: u64) -> KeyValue {
        item(&format!("hosts/{name}"), "{}", revision, None)
    }

    fn there(name: &str, lease: u64) -> KeyValue {
        let value = format!(r#"{{"instance":"i{lease}","since":1}}"#);
        item(&format!("present/{name}"), &value, 1, Some(lease))
    }

    fn gone(key: &str) -> Event {
        Event::Delete {
            key: key.to_owned(),
            revision: 9,
        }
    }

    #[test]
    fn who_is_lost_keeps_the_time_at_which_that_was_seen() {
        let mut table = Table::default();
        table.load(vec![host("a", 1), host("b", 2)], vec![there("a", 7)], 100);
        let present = table.hosts()["a"].present.clone().expect("present");
        assert_eq!((present.lease, present.instance.as_str()), (7, "i7"));
        assert_eq!(table.hosts()["b"].lost_at, Some(100));
        table.apply(gone("present/a"), 200);
        table.apply(gone("present/a"), 300);
        assert_eq!(table.hosts()["a"].lost_at, Some(200));
        // Read anew after an outage: nothing is forgotten, nobody comes back by it.
        table.load(vec![host("a", 1), host("b", 2)], vec![], 400);
        assert_eq!(table.hosts()["a"].lost_at, Some(200));
        table.apply(Event::Put(there("a", 8)), 500);
        let back = &table.hosts()["a"];
        assert_eq!(back.lost_at, None);
        assert_eq!(back.present.as_ref().map(|p| p.lease), Some(8));
        table.load(vec![host("a", 1)], vec![there("a", 8)], 600);
        assert_eq!(table.hosts().len(), 1, "a removed host is not kept");
    }

    #[test]
    fn the_two_keys_of_a_host_may_come_in_any_order() {
        let mut table = Table::default();
        table.load(vec![], vec![], 1);
        table.apply(Event::Put(there("a", 7)), 2);
        assert!(table.hosts().is_empty());
        table.apply(Event::Put(host("a", 3)), 3);
        assert!(table.hosts()["a"].present.is_some());
        table.apply(gone("hosts/a"), 4);
        table.apply(Event::Put(host("a", 5)), 5);
        assert!(table.hosts()["a"].present.is_some());
        assert_eq!(table.hosts()["a"].revision, 5);
    }

    #[test]
    fn what_cannot_be_read_is_a_host_all_the_same() {
        let mut table = Table::default();
        let records = vec![
            item("hosts/a", "no json", 1, None),
            item("hosts/", "{}", 1, None),
        ];
        table.load(records, vec![item("present/a", "[", 1, Some(4))], 1);
        assert_eq!(table.hosts().len(), 1);
        let known = &table.hosts()["a"];
        assert_eq!(known.record.name, "a");
        assert_eq!(known.present.as_ref().map(|p| p.lease), Some(4));
        table.apply(gone("elsewhere/a"), 2);
    }
}
