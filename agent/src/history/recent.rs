//! The latest events, in memory: what readers mostly want, and all there is while the database
//! cannot be used.

use std::collections::VecDeque;

use tanako_proto::fleet::v1::Event;

/// Events kept.
const RECENT_MAX: usize = 512;

/// The latest events, oldest first.
#[derive(Debug, Default)]
pub(super) struct Recent {
    events: VecDeque<Event>,
}

impl Recent {
    pub(super) fn push(&mut self, event: Event) {
        if self.events.len() >= RECENT_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Id of the oldest event here; older ones are in the database.
    pub(super) fn oldest_id(&self) -> u64 {
        self.events.front().map_or(u64::MAX, |event| event.id)
    }

    pub(super) fn tail(&self, tail: usize, since: i64, targets: &[String]) -> Vec<Event> {
        let mut found: Vec<Event> = self
            .events
            .iter()
            .rev()
            .filter(|event| event.at >= since && matches(event, targets))
            .take(tail)
            .cloned()
            .collect();
        found.reverse();
        found
    }
}

/// Whether an event is about one of `targets`: the object itself, `host:NAME`, or a bot whose
/// process it is about.
pub(super) fn matches(event: &Event, targets: &[String]) -> bool {
    targets.is_empty()
        || targets.iter().any(|target| {
            target == "all"
                || event.object == *target
                || target.strip_prefix("host:") == Some(event.host.as_str())
                || event
                    .object
                    .split_once('/')
                    .is_some_and(|(group, _)| group == target)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: u64, object: &str) -> Event {
        Event {
            id,
            at: id as i64,
            object: object.to_owned(),
            host: "a".to_owned(),
            ..Event::default()
        }
    }

    #[test]
    fn the_latest_are_kept_and_found_by_target_and_time() {
        let mut recent = Recent::default();
        for id in 0..1000 {
            recent.push(event(id, if id % 2 == 0 { "tanako/0" } else { "db/node1" }));
        }
        assert_eq!(recent.oldest_id(), 1000 - RECENT_MAX as u64);
        let ids = |tail, since, target: &str| -> Vec<u64> {
            recent
                .tail(tail, since, &[target.to_owned()])
                .iter()
                .map(|e| e.id)
                .collect()
        };
        assert_eq!(ids(2, 0, "tanako/0"), [996, 998]);
        assert_eq!(ids(2, 0, "tanako"), [996, 998]);
        assert_eq!(ids(9, 997, "db"), [997, 999]);
        assert_eq!(ids(1, 0, "host:a"), [999]);
        assert!(ids(9, 0, "host:b").is_empty());
        assert!(ids(9, 0, "tan").is_empty());
    }
}
