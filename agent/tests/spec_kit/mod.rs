//! The spec of a process for tests that care about little of it.

use std::{collections::BTreeMap, time::Duration};

use tanako_fleet::{
    ProcessKind, ProcessSpec,
    process::{Limits, LogPolicy, Probe, Readiness, RestartPolicy, RestartWhen, StopPolicy},
};

/// A worker with these shards. Nothing in it is due before `soon`.
pub fn worker(name: &str, shard_ids: Vec<u32>, shard_count: u32, soon: Duration) -> ProcessSpec {
    ProcessSpec {
        name: name.parse().expect("a good name"),
        kind: ProcessKind::Shard,
        command: vec!["true".to_owned()],
        directory: None,
        env: BTreeMap::new(),
        secret_env: BTreeMap::new(),
        shard_ids,
        shard_count,
        gated: false,
        ready: Readiness {
            probe: Probe::Worker,
            timeout: soon,
        },
        watchdog: None,
        restart: RestartPolicy {
            when: RestartWhen::Always,
            backoff_min: soon,
            backoff_max: soon,
            reset_after: soon,
            crash_loop_starts: 5,
            crash_loop_window: soon,
        },
        stop: StopPolicy {
            signal: "TERM".to_owned(),
            grace: soon,
        },
        limits: Limits::default(),
        logs: LogPolicy {
            max_bytes: 1 << 20,
            keep: 1,
        },
    }
}
