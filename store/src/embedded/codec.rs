//! How records lie in the engine. All numbers are big-endian, so that keys sort by revision.

use bytes::Bytes;

use crate::model::{Event, KeyValue, LeaseId, Revision};

/// Marks the revision entry of each commit, so that a journal can be searched for the commits that
/// it once held.
pub(super) const REVISION_MAGIC: [u8; 8] = *b"\x00TnkRev\xf1";

/// A key's record without the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) create: Revision,
    pub(super) modified: Revision,
    pub(super) version: u64,
    pub(super) lease: Option<LeaseId>,
    pub(super) value: Bytes,
}

impl Record {
    pub(super) fn into_item(self, key: String) -> KeyValue {
        KeyValue {
            key,
            value: self.value,
            create_revision: self.create,
            mod_revision: self.modified,
            version: self.version,
            lease: self.lease,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + self.value.len());
        for number in [
            self.create,
            self.modified,
            self.version,
            self.lease.unwrap_or(0),
        ] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&self.value);
        out
    }

    /// `None` = this is not a record.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, value) = bytes.split_at_checked(32)?;
        let number = |at: usize| decode_u64(&head[at * 8..at * 8 + 8]);
        Some(Self {
            create: number(0)?,
            modified: number(1)?,
            version: number(2)?,
            lease: number(3).filter(|lease| *lease != 0),
            value: Bytes::copy_from_slice(value),
        })
    }
}

/// The changes of one revision.
pub(super) fn encode_events(events: &[(String, Option<Record>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, record) in events {
        let body = record.as_ref().map(Record::encode);
        out.push(u8::from(body.is_some()));
        out.extend_from_slice(&(key.len() as u32).to_be_bytes());
        out.extend_from_slice(key.as_bytes());
        let body = body.unwrap_or_default();
        out.extend_from_slice(&(body.len() as u32).to_be_bytes());
        out.extend_from_slice(&body);
    }
    out
}

/// The changes under `prefix` of revision `revision`; `None` = not readable.
pub(super) fn decode_events(
    mut bytes: &[u8],
    revision: Revision,
    prefix: &str,
) -> Option<Vec<Event>> {
    fn chunk<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
        let (head, rest) = bytes.split_at_checked(4)?;
        let (body, rest) =
            rest.split_at_checked(u32::from_be_bytes(head.try_into().ok()?) as usize)?;
        *bytes = rest;
        Some(body)
    }
    let mut events = Vec::new();
    while let Some((put, rest)) = bytes.split_first() {
        bytes = rest;
        let key = std::str::from_utf8(chunk(&mut bytes)?).ok()?;
        let body = chunk(&mut bytes)?;
        if !key.starts_with(prefix) {
            continue;
        }
        events.push(match put {
            0 => Event::Delete {
                key: key.to_owned(),
                revision,
            },
            _ => Event::Put(Record::decode(body)?.into_item(key.to_owned())),
        });
    }
    Some(events)
}

pub(super) fn decode_u64(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

/// The revision entry.
pub(super) fn encode_revision(revision: Revision) -> Vec<u8> {
    let mut out = REVISION_MAGIC.to_vec();
    out.extend_from_slice(&revision.to_be_bytes());
    out
}

pub(super) fn decode_revision(bytes: &[u8]) -> Option<Revision> {
    decode_u64(bytes.strip_prefix(&REVISION_MAGIC)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> impl Strategy<Value = Record> {
        (
            any::<u64>(),
            any::<u64>(),
            any::<u64>(),
            0u64..3,
            any::<Vec<u8>>(),
        )
            .prop_map(|(create, modified, version, lease, value)| Record {
                create,
                modified,
                version,
                lease: Some(lease).filter(|lease| *lease != 0),
                value: value.into(),
            })
    }

    proptest! {
        #[test]
        fn records_survive(record in record()) {
            prop_assert_eq!(Record::decode(&record.encode()), Some(record));
        }

        #[test]
        fn events_survive_and_are_filtered(
            events in prop::collection::vec(("[ab]/[a-z]{0,5}", prop::option::of(record())), 0..6)
        ) {
            let bytes = encode_events(&events);
            let all = decode_events(&bytes, 7, "").expect("readable");
            prop_assert_eq!(all.len(), events.len());
            let some = decode_events(&bytes, 7, "a/").expect("readable");
            prop_assert_eq!(some.len(), events.iter().filter(|e| e.0.starts_with("a/")).count());
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in any::<Vec<u8>>()) {
            let _ = Record::decode(&bytes);
            let _ = decode_events(&bytes, 1, "");
            let _ = decode_revision(&bytes);
        }
    }
}
