//! Between the store's model and etcd's messages. Pure.

use std::time::Duration;

use bytes::Bytes;

use super::wire;
use crate::model::{Condition, Event, KeyValue, LeaseId, Listing, Op, Revision, Txn};

/// Items asked for at first, and again after a page was too large to be taken. So many of the largest
/// values fit into one answer.
const PAGE_FIRST: i64 = 32;
/// Most items of a page.
const PAGE_MAX: i64 = 4096;
/// What a page should weigh, in bytes.
const PAGE_BYTES: usize = 1024 * 1024;

/// Puts the fleet's prefix before keys and takes it away again.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    /// The key as the server knows it.
    pub(super) fn key(&self, key: &str) -> Bytes {
        Bytes::from(format!("{}{key}", self.prefix))
    }

    /// The first key after all that begin with `prefix`. A fleet's prefix is printable, so there is one.
    pub(super) fn end(&self, prefix: &str) -> Bytes {
        let mut end = format!("{}{prefix}", self.prefix).into_bytes();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                break;
            }
        }
        Bytes::from(end)
    }

    /// The fleet's name of a key; `None` for one that no store of ours can have written.
    fn own(&self, key: &[u8]) -> Option<String> {
        let key = key.strip_prefix(self.prefix.as_bytes())?;
        String::from_utf8(key.to_vec()).ok()
    }

    /// The item under the fleet's name.
    pub(super) fn item(&self, item: wire::KeyValue) -> Option<KeyValue> {
        Some(KeyValue {
            key: self.own(&item.key)?,
            value: item.value,
            create_revision: unsigned(item.create_revision),
            mod_revision: unsigned(item.mod_revision),
            version: unsigned(item.version),
            lease: (item.lease != 0).then_some(item.lease.unsigned_abs()),
        })
    }

    /// The change and its revision.
    pub(super) fn event(&self, event: wire::Event) -> Option<Event> {
        let put = event.r#type() == wire::event::EventType::Put;
        let item = self.item(event.kv?)?;
        Some(if put {
            Event::Put(item)
        } else {
            Event::Delete {
                key: item.key,
                revision: item.mod_revision,
            }
        })
    }

    /// The transaction, for the server.
    pub(super) fn txn(&self, txn: Txn) -> wire::TxnRequest {
        wire::TxnRequest {
            compare: txn
                .compares
                .into_iter()
                .map(|compare| self.compare(&compare.key, compare.condition))
                .collect(),
            success: txn.ops.into_iter().map(|op| self.op(op)).collect(),
        }
    }

    fn compare(&self, key: &str, condition: Condition) -> wire::Compare {
        use wire::compare::{CompareResult, CompareTarget, TargetUnion};
        let (target, value) = match condition {
            // A key that is not there has all of its numbers 0.
            Condition::Absent => (CompareTarget::Version, TargetUnion::Version(0)),
            Condition::ModRevision(revision) => (
                CompareTarget::Mod,
                TargetUnion::ModRevision(signed(revision)),
            ),
            Condition::CreateRevision(revision) => (
                CompareTarget::Create,
                TargetUnion::CreateRevision(signed(revision)),
            ),
        };
        wire::Compare {
            result: CompareResult::Equal.into(),
            target: target.into(),
            key: self.key(key),
            target_union: Some(value),
        }
    }

    fn op(&self, op: Op) -> wire::RequestOp {
        use wire::request_op::Request;
        let request = match op {
            Op::Put { key, value, lease } => Request::RequestPut(wire::PutRequest {
                key: self.key(&key),
                value,
                lease: lease.map_or(0, signed),
            }),
            Op::Delete { key } => Request::RequestDeleteRange(wire::DeleteRangeRequest {
                key: self.key(&key),
            }),
        };
        wire::RequestOp {
            request: Some(request),
        }
    }
}

/// Revisions and lease ids of the server are positive and fit; one that does not can match nothing.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// The store's revision that an answer tells of.
pub(super) fn revision(header: Option<&wire::ResponseHeader>) -> Revision {
    header.map_or(0, |header| unsigned(header.revision))
}

/// The lease that a transaction binds keys to, for the message when it is gone.
pub(super) fn lease_of(txn: &Txn) -> Option<LeaseId> {
    txn.ops.iter().find_map(|op| match op {
        Op::Put { lease, .. } => *lease,
        Op::Delete { .. } => None,
    })
}

/// The server counts leases in seconds: never less than asked for.
pub(super) fn whole_seconds(ttl: Duration) -> i64 {
    let rest = u64::from(ttl.subsec_nanos() > 0);
    signed(ttl.as_secs().saturating_add(rest))
}

/// A listing in the making: page by page, all at the revision of the first.
pub(super) struct Pages {
    start: Bytes,
    end: Bytes,
    limit: i64,
    revision: Option<Revision>,
    items: Vec<KeyValue>,
    more: bool,
}

impl Pages {
    pub(super) fn new(keys: &Keys, prefix: &str) -> Self {
        Self {
            start: keys.key(prefix),
            end: keys.end(prefix),
            limit: PAGE_FIRST,
            revision: None,
            items: Vec::new(),
            more: true,
        }
    }

    /// What to ask next; `None` = everything is here.
    pub(super) fn next_request(&self) -> Option<wire::RangeRequest> {
        self.more.then(|| wire::RangeRequest {
            key: self.start.clone(),
            range_end: self.end.clone(),
            limit: self.limit,
            revision: self.revision.map_or(0, signed),
            count_only: false,
        })
    }

    /// Takes in a page.
    pub(super) fn take(&mut self, keys: &Keys, page: wire::RangeResponse) {
        if self.revision.is_none() {
            self.revision = Some(revision(page.header.as_ref()));
        }
        let count = page.kvs.len();
        let bytes: usize = page
            .kvs
            .iter()
            .map(|item| item.key.len() + item.value.len())
            .sum();
        self.more = page.more && count > 0;
        if let Some(last) = page.kvs.last() {
            // The least key after it.
            let mut start = last.key.to_vec();
            start.push(0);
            self.start = Bytes::from(start);
            let fitting = PAGE_BYTES / (bytes / count).max(1);
            // Values differ in size: no page is more than four times the one before.
            self.limit = signed(fitting as u64).clamp(1, PAGE_MAX.min(self.limit * 4));
        }
        self.items
            .extend(page.kvs.into_iter().filter_map(|item| keys.item(item)));
    }

    /// Asks for fewer items; whether that was still possible.
    pub(super) fn shrink(&mut self) -> bool {
        let shrinks = self.limit > PAGE_FIRST;
        self.limit = PAGE_FIRST.min(self.limit);
        shrinks
    }

    pub(super) fn finish(self) -> Listing {
        Listing {
            items: self.items,
            revision: self.revision.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_prefix_ends_where_the_next_one_begins() {
        let keys = Keys::new("tanako/t/");
        assert_eq!(&*keys.key("a"), b"tanako/t/a");
        assert_eq!(&*keys.end(""), b"tanako/t0");
        assert_eq!(&*keys.end("a/"), b"tanako/t/a0");
        // The last character that text can hold ends in a byte that can still be raised.
        assert!(*keys.end("\u{10ffff}") > *keys.key("\u{10ffff}z"));
    }

    #[test]
    fn leases_are_never_shorter_than_asked() {
        for (millis, seconds) in [(1, 1), (700, 1), (1000, 1), (1001, 2), (600_000, 600)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds);
        }
    }

    #[test]
    fn foreign_keys_are_left_out() {
        let keys = Keys::new("tanako/t/");
        let odd = wire::KeyValue {
            key: Bytes::from_static(b"tanako/t/\xff"),
            ..wire::KeyValue::default()
        };
        assert_eq!(keys.item(odd), None);
    }

    proptest! {
        /// Against a server that answers as etcd does: every item once, in order, at one revision,
        /// no page much heavier than wished.
        #[test]
        fn listings_are_whole_whatever_the_sizes(
            sizes in proptest::collection::vec(prop_oneof![0usize..200, 50_000usize..60_000], 0..400),
        ) {
            let keys = Keys::new("p/");
            let server: BTreeMap<Vec<u8>, usize> = sizes
                .iter()
                .enumerate()
                .map(|(n, size)| (format!("p/k{n:05}").into_bytes(), *size))
                .collect();
            let mut pages = Pages::new(&keys, "k");
            let mut asked = 0;
            while let Some(request) = pages.next_request() {
                asked += 1;
                prop_assert!(asked <= 2 + sizes.len(), "it ends");
                prop_assert_eq!(request.revision, if asked == 1 { 0 } else { 7 });
                let range = request.key.to_vec()..request.range_end.to_vec();
                let limit = usize::try_from(request.limit).expect("positive");
                let all: Vec<_> = server.range(range).collect();
                let bytes: usize = all.iter().take(limit).map(|(_, size)| **size).sum();
                prop_assert!(bytes <= 64 * 60_000 * 4, "{bytes}");
                pages.take(&keys, wire::RangeResponse {
                    header: Some(wire::ResponseHeader { revision: 7, ..Default::default() }),
                    kvs: all.iter().take(limit).map(|(key, size)| wire::KeyValue {
                        key: Bytes::from((*key).clone()),
                        value: Bytes::from(vec![0; **size]),
                        ..Default::default()
                    }).collect(),
                    more: all.len() > limit,
                    count: 0,
                });
            }
            let listing = pages.finish();
            prop_assert_eq!(listing.revision, 7);
            let found: Vec<String> = listing.items.into_iter().map(|item| item.key).collect();
            let wanted: Vec<String> = (0..sizes.len()).map(|n| format!("k{n:05}")).collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
