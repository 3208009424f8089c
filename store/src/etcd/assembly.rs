//! From the server's responses to batches of whole revisions, each given once and in order. Pure.
//!
//! A response holds whole revisions unless it says that it is a fragment; then the revision of its
//! last change may go on in the next one. What has been given is never given again, also when the
//! stream begins anew; what had come in part is dropped and comes again.

use super::{
    translate::{self, Keys},
    wire,
};
use crate::{
    model::{Event, Revision},
    watch::WatchBatch,
};

/// What a response came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Nothing to tell yet.
    Nothing,
    /// Changes.
    Batch(WatchBatch),
    /// History that was still to be told is gone.
    Compacted { oldest: Revision },
    /// The server has ended the watch.
    Canceled { reason: String },
}

/// Where a watch stands.
#[derive(Debug)]
pub(super) struct Assembly {
    /// The first revision that has not been given; 0 = the server will say.
    next: Revision,
    /// Changes from `next` on, of which the last revision may be incomplete.
    pending: Vec<Event>,
}

impl Assembly {
    pub(super) fn new(from: Revision) -> Self {
        Self {
            next: from,
            pending: Vec::new(),
        }
    }

    /// The stream begins anew.
    pub(super) fn restart(&mut self) {
        self.pending.clear();
    }

    /// What to ask the server for: one revision more than is needed. A server that has dropped
    /// everything before revision C still accepts a watch from C, although it may have dropped a
    /// deletion at C itself; so it must be asked in such a way that it refuses.
    pub(super) fn start(&self) -> Revision {
        match self.next {
            0 => 0,
            next => (next - 1).max(1),
        }
    }

    /// Takes in a response.
    pub(super) fn take(&mut self, keys: &Keys, response: wire::WatchResponse) -> Taken {
        if response.canceled {
            return match u64::try_from(response.compact_revision) {
                Ok(compacted) if compacted > 0 => Taken::Compacted {
                    oldest: compacted + 1,
                },
                _ => Taken::Canceled {
                    reason: response.cancel_reason,
                },
            };
        }
        let now = translate::revision(response.header.as_ref());
        if response.created {
            if self.next == 0 {
                self.next = now + 1;
            }
            return Taken::Nothing;
        }
        if response.events.is_empty() && !response.fragment {
            // Told only when everything up to here has been.
            if self.pending.is_empty() {
                self.next = self.next.max(now + 1);
            }
            return Taken::Nothing;
        }
        // Of all keys, also those that are left out below.
        let last = response
            .events
            .iter()
            .filter_map(|event| event.kv.as_ref())
            .map(|item| u64::try_from(item.mod_revision).unwrap_or(0))
            .max()
            .unwrap_or(0);
        let next = self.next;
        let events = response
            .events
            .into_iter()
            .filter_map(|event| keys.event(event))
            .filter(|event| event.revision() >= next);
        self.pending.extend(events);
        let whole = if response.fragment {
            last.saturating_sub(1)
        } else {
            last
        };
        if whole < self.next {
            return Taken::Nothing;
        }
        self.next = whole + 1;
        let incomplete = self
            .pending
            .iter()
            .position(|event| event.revision() > whole)
            .unwrap_or(self.pending.len());
        let rest = self.pending.split_off(incomplete);
        let events = std::mem::replace(&mut self.pending, rest);
        if events.is_empty() {
            return Taken::Nothing;
        }
        Taken::Batch(WatchBatch {
            revision: whole,
            events,
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn change(revision: i64, key: &str) -> wire::Event {
        wire::Event {
            r#type: wire::event::EventType::Put.into(),
            kv: Some(wire::KeyValue {
                key: Bytes::from(format!("p/{key}")),
                mod_revision: revision,
                ..Default::default()
            }),
        }
    }

    fn response(now: i64, events: Vec<wire::Event>, fragment: bool) -> wire::WatchResponse {
        wire::WatchResponse {
            header: Some(wire::ResponseHeader {
                revision: now,
                ..Default::default()
            }),
            fragment,
            events,
            ..Default::default()
        }
    }

    fn created(now: i64) -> wire::WatchResponse {
        wire::WatchResponse {
            created: true,
            ..response(now, Vec::new(), false)
        }
    }

    #[test]
    fn progress_is_kept_and_what_is_gone_is_told() {
        let keys = Keys::new("p/");
        let mut assembly = Assembly::new(0);
        assert_eq!(assembly.start(), 0);
        assembly.take(&keys, created(7));
        assert_eq!(assembly.start(), 7);
        assert_eq!(
            assembly.take(&keys, response(20, Vec::new(), false)),
            Taken::Nothing
        );
        assert_eq!(assembly.start(), 20, "nothing before 21 is asked for again");
        let gone = wire::WatchResponse {
            canceled: true,
            compact_revision: 30,
            ..Default::default()
        };
        assert_eq!(assembly.take(&keys, gone), Taken::Compacted { oldest: 31 });
        assert_eq!(Assembly::new(1).start(), 1, "0 would mean from now on");
    }

    #[test]
    fn a_late_answer_does_not_move_progress_back() {
        let keys = Keys::new("p/");
        let mut assembly = Assembly::new(10);
        let batch = assembly.take(&keys, response(12, vec![change(12, "a")], false));
        assert!(matches!(batch, Taken::Batch(batch) if batch.revision == 12));
        assembly.take(&keys, response(5, Vec::new(), false));
        assembly.take(&keys, created(3));
        assert_eq!(assembly.start(), 12);
    }

    proptest! {
        /// Revisions of any size, in responses and fragments cut anywhere, with the stream breaking
        /// anywhere and old changes coming again: each change is given once, in order, and no batch
        /// splits a revision.
        #[test]
        fn every_change_once_and_no_revision_split(
            sizes in proptest::collection::vec(1usize..6, 1..12),
            cuts in proptest::collection::vec((1usize..8, any::<bool>()), 1..40),
            from in 1u64..6,
        ) {
            let keys = Keys::new("p/");
            let history: Vec<(i64, String)> = sizes
                .iter()
                .enumerate()
                .flat_map(|(n, size)| (0..*size).map(move |k| (n as i64 + 1, format!("{n}-{k}"))))
                .collect();
            let last = sizes.len() as i64;
            let mut assembly = Assembly::new(from);
            let mut given: Vec<(u64, String)> = Vec::new();
            let mut at = 0;
            let mut cuts = cuts.into_iter();
            while at < history.len() {
                let (take, broken) = cuts.next().unwrap_or((usize::MAX, false));
                if broken {
                    // Begins anew from where it asks to.
                    assembly.restart();
                    let start = assembly.start();
                    at = history.iter().position(|(revision, _)| *revision as u64 >= start).unwrap_or(history.len());
                    assembly.take(&keys, created(last));
                    if at >= history.len() {
                        break;
                    }
                }
                let end = at.saturating_add(take).min(history.len());
                let events = history[at..end].iter().map(|(revision, key)| change(*revision, key)).collect();
                // A response that ends within a revision is a fragment; others may be.
                let within = end < history.len();
                at = end;
                if let Taken::Batch(batch) = assembly.take(&keys, response(last, events, within)) {
                    prop_assert!(!batch.events.is_empty());
                    for event in &batch.events {
                        prop_assert!(event.revision() <= batch.revision);
                        given.push((event.revision(), event.key().to_owned()));
                    }
                    // Nothing of the batch's revisions comes later.
                    let whole = history.iter().filter(|(revision, _)| {
                        *revision as u64 >= from && *revision as u64 <= batch.revision
                    });
                    prop_assert_eq!(given.len(), whole.count());
                }
            }
            let wanted: Vec<(u64, String)> = history
                .iter()
                .map(|(revision, key)| (*revision as u64, key.clone()))
                .filter(|(revision, _)| *revision >= from)
                .collect();
            prop_assert_eq!(given, wanted);
        }
    }
}
