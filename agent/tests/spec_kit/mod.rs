//! The spec of a process, and a store, for tests that care about little of them.

#![allow(dead_code)] // each test file uses a part

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use tanako_fleet::{
    ProcessKind, ProcessSpec,
    process::{Limits, LogPolicy, Probe, Readiness, RestartPolicy, RestartWhen, StopPolicy},
};
use tanako_store::embedded::EmbeddedStore;

/// A store of one machine.
pub fn store(path: &Path) -> Arc<EmbeddedStore> {
    let options = tanako_store::embedded::Options::default();
    Arc::new(EmbeddedStore::open(path, &options).expect("a store"))
}

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
        identify_queue: false,
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
