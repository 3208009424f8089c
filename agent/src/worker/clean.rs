//! Bounds what a worker says before anything keeps it: a report is shown to people and to
//! Prometheus, and a worker may be anybody's program.

use std::collections::BTreeMap;

use tanako_proto::worker::v1::{ProcessReport, ShardReport};

const TEXT_MAX: usize = 512;
const KEY_MAX: usize = 64;
const METRICS_MAX: usize = 128;
const EVENT_TYPES_MAX: usize = 192;

/// Cuts texts and maps, drops shards that are not in `shard_ids` and numbers that are none.
pub(super) fn report(report: &mut ProcessReport, shard_ids: &[u32]) {
    text(&mut report.detail, TEXT_MAX);
    report
        .shards
        .retain(|shard| shard_ids.contains(&shard.shard_id));
    for one in &mut report.shards {
        shard(one);
    }
    report.shards.sort_by_key(|shard| shard.shard_id);
    report.shards.dedup_by_key(|shard| shard.shard_id);
    report.metrics.retain(|_, value| value.is_finite());
    keys(&mut report.metrics, METRICS_MAX);
    if let Some(db) = &mut report.db {
        text(&mut db.url, TEXT_MAX);
        for latency in [
            &mut db.read_p50_ms,
            &mut db.read_p99_ms,
            &mut db.write_p50_ms,
            &mut db.write_p99_ms,
        ] {
            finite(latency);
        }
    }
}

fn shard(shard: &mut ShardReport) {
    finite(&mut shard.latency_ms);
    text(&mut shard.last_error, TEXT_MAX);
    keys(&mut shard.events_by_type, EVENT_TYPES_MAX);
}

fn finite(value: &mut f64) {
    if !value.is_finite() || *value < 0.0 {
        *value = 0.0;
    }
}

/// Keeps the first `max` well-formed names.
fn keys<V>(map: &mut BTreeMap<String, V>, max: usize) {
    map.retain(|key, _| {
        !key.is_empty()
            && key.len() <= KEY_MAX
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    });
    while map.len() > max {
        map.pop_last();
    }
}

/// One line of printable text of at most `max` bytes.
pub(super) fn text(text: &mut String, max: usize) {
    if text.chars().any(char::is_control) {
        *text = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
    }
    text.truncate(text.floor_char_boundary(max));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_unbounded_or_unprintable_is_left() {
        let shard = |id| ShardReport {
            shard_id: id,
            latency_ms: f64::NAN,
            last_error: "\u{1b}[31mred\n".repeat(500),
            events_by_type: (0..1000).map(|n| (format!("E{n}"), 1)).collect(),
            ..ShardReport::default()
        };
        let mut said = ProcessReport {
            detail: "ä".repeat(1000),
            shards: vec![shard(1), shard(1), shard(7), shard(0)],
            metrics: [
                ("good_bytes", 1.0),
                ("nan", f64::NAN),
                ("bad name\"}", 1.0),
                ("", 1.0),
            ]
            .map(|(key, value)| (key.to_owned(), value))
            .into(),
            ..ProcessReport::default()
        };
        report(&mut said, &[0, 1]);
        let ids: Vec<u32> = said.shards.iter().map(|s| s.shard_id).collect();
        assert_eq!(ids, [0, 1]);
        for shard in &said.shards {
            assert!(shard.latency_ms.abs() < f64::EPSILON);
            assert!(shard.last_error.len() <= TEXT_MAX);
            assert!(!shard.last_error.chars().any(char::is_control));
            assert_eq!(shard.events_by_type.len(), EVENT_TYPES_MAX);
        }
        assert!(said.detail.len() <= TEXT_MAX);
        assert_eq!(said.metrics.keys().collect::<Vec<_>>(), ["good_bytes"]);
    }
}
