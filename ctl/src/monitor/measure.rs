//! What can be said of one process or operation from its report alone.

use tanako_proto::fleet::v1::{Operation, Process};

/// What a process handles a second: gateway events, or for a database node reads and writes.
pub fn load(process: &Process) -> f64 {
    match &process.db {
        Some(db) => finite(db.reads_per_s) + finite(db.writes_per_s),
        None => process
            .shards
            .iter()
            .map(|shard| finite(shard.events_per_s))
            .sum(),
    }
}

/// The mean heartbeat latency of the shards that have one, or a database node's 99th percentile of
/// writes, in milliseconds.
pub fn latency(process: &Process) -> Option<f64> {
    if let Some(db) = &process.db {
        return Some(db.write_p99_ms).filter(|ms| ms.is_finite() && *ms > 0.0);
    }
    let known = || {
        process
            .shards
            .iter()
            .map(|s| s.latency_ms)
            .filter(|ms| ms.is_finite() && *ms > 0.0)
    };
    let n = known().count();
    (n > 0).then(|| known().sum::<f64>() / n as f64)
}

/// Guilds of all shards of a process.
pub fn guilds(process: &Process) -> u64 {
    process
        .shards
        .iter()
        .map(|shard| u64::from(shard.guilds))
        .sum()
}

/// Shards of a process in stage `ready`.
pub fn shards_ready(process: &Process) -> usize {
    process
        .shards
        .iter()
        .filter(|shard| shard.stage == "ready")
        .count()
}

/// Whether what a process reports of itself needs attention. What the operator stopped does not.
pub fn is_fault(process: &Process) -> bool {
    match process.state.as_str() {
        "failed" | "backoff" => true,
        _ if process.desired == "stopped" => false,
        "ready" => process
            .shards
            .iter()
            .any(|s| matches!(s.stage.as_str(), "disconnected" | "fatal") || is_unwell(&s.health)),
        _ => true,
    }
}

/// Whether a shard's health needs attention. One that is not judged, or on its way, does not.
pub fn is_unwell(health: &str) -> bool {
    !matches!(health, "" | "ok" | "connecting")
}

/// Whether an operation has not ended.
pub fn is_running(operation: &Operation) -> bool {
    matches!(operation.state.as_str(), "pending" | "running" | "paused")
}

/// `value`, or zero where there is none.
pub(super) fn finite(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}
