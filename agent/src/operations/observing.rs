//! What an operation sees of the fleet: from what the supervisor says of each process and its worker
//! reports; pure.

use tanako_fleet::{ProcessSpec, process::Probe, rollout::Sample};
use tanako_proto::worker::v1::ShardStage;

use super::core::{Observation, Observed};
use crate::{
    supervisor::{ProcessStatus, State, Table},
    worker::{States, WorkerState},
};

/// All processes of the fleet as an operation sees them.
pub fn observe(table: &Table, workers: &States) -> Observed {
    let seen = table.iter().map(|(name, process)| {
        let worker = workers.get(name).map(AsRef::as_ref);
        (name.to_string(), observation(process, worker))
    });
    seen.collect()
}

/// One process as an operation sees it.
pub fn observation(process: &ProcessStatus, worker: Option<&WorkerState>) -> Observation {
    let worker = worker.filter(|worker| worker.attempt == process.attempt);
    let all = |stage: ShardStage| {
        worker.is_some_and(|worker| {
            let mut shards = process.shard_ids.iter();
            shards.all(|shard| {
                let state = worker.shards.get(shard);
                state.is_some_and(|state| state.report.stage == stage as i32)
            })
        })
    };
    // Its receipt needs what its shards say, which comes a moment after its readiness.
    let reported = process.spec.ready.probe != Probe::Worker || all(ShardStage::Ready);
    Observation {
        state: process.state,
        ready: process.ready && reported,
        attempt: process.attempt,
        begun: process.started_at_ms.is_some(),
        last_seen: worker.map_or(0, |worker| worker.last_seen),
        detail: process.detail.clone(),
        standby: !process.shard_ids.is_empty() && all(ShardStage::Standby),
        attached: worker.is_some_and(|worker| worker.attached),
        newest_handled: worker.map_or(0, |worker| {
            let shards = worker.shards.values();
            shards
                .map(|shard| shard.report.newest_handled)
                .max()
                .unwrap_or(0)
        }),
        unsure: is_unsure(process, worker),
        outdated: process.needs_restart,
        sample: worker.map_or_else(Sample::default, sample),
    }
}

/// A host that has not taken in the spec that a process shall have cannot say whether it runs by it: `known`
/// is what the host has, `wanted` what it should.
pub fn compare(seen: &mut Observation, known: &ProcessSpec, wanted: &ProcessSpec) {
    seen.outdated |= known != wanted;
}

/// A process of a host that has not been heard yet.
pub fn unknown(host: &str) -> Observation {
    Observation {
        state: State::Running,
        ready: false,
        attempt: 0,
        begun: false,
        last_seen: 0,
        detail: format!("host {host} has not been heard yet"),
        standby: false,
        attached: false,
        newest_handled: 0,
        unsure: true,
        outdated: false,
        sample: Sample::default(),
    }
}

/// Nobody knows how a process is whose host is not heard: it may be up and may be down, so that nothing
/// is begun with it and nothing else is taken down meanwhile.
pub fn unheard(seen: &mut Observation, host: &str) {
    if seen.state == State::Ready {
        seen.state = State::Running;
    }
    seen.ready = false;
    seen.standby = false;
    seen.attached = false;
    seen.unsure = true;
    seen.detail = format!("host {host} does not answer");
}

/// Whether a process that was starting may have come up unheard.
fn is_unsure(process: &ProcessStatus, worker: Option<&WorkerState>) -> bool {
    if process.state != State::Starting {
        return false;
    }
    match worker {
        // What was said before the stream broke is old.
        Some(worker) => !worker.attached || process.adopted && worker.shards.is_empty(),
        // Nothing has come up that this agent started and never heard of.
        None => process.adopted,
    }
}

/// The figures of one process, as far as its worker reports them.
fn sample(worker: &WorkerState) -> Sample {
    let mut sample = Sample::default();
    let (mut latency, mut lag) = ((0.0, 0.0), (0.0, 0.0));
    for shard in worker.shards.values() {
        let report = &shard.report;
        sample.events += report.events;
        sample.interactions += report.interactions;
        sample.failed += report.interactions_failed;
        sample.lost += report.lost;
        sample.duplicated += report.duplicated;
        for (sum, value) in [
            (&mut latency, report.latency_ms),
            (&mut lag, report.event_lag_ms),
        ] {
            if value > 0.0 {
                sum.0 += value;
                sum.1 += 1.0;
            }
        }
    }
    sample.latency_ms = latency.0 / f64::max(latency.1, 1.0);
    sample.lag_ms = lag.0 / f64::max(lag.1, 1.0);
    sample
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use tanako_fleet::spec::{self, Places};
    use tanako_proto::worker::v1::{ProcessStage, WorkerKind};

    use super::*;
    use crate::{supervisor::Desired, worker::ShardState};

    fn process(state: State, adopted: bool) -> ProcessStatus {
        let toml =
            "[fleet]\nname = \"t\"\n[bots.b]\ncommand = [\"x\"]\ntoken_file = \"/t\"\nshards = 1";
        let places = Places {
            data_dir: "/d".to_owned(),
        };
        let spec = spec::parse(toml, "fleet.toml").expect("a good spec");
        let spec = Arc::new(spec.processes_in(&places, &BTreeMap::new()).remove(0));
        ProcessStatus {
            name: spec.name.clone(),
            kind: spec.kind,
            state,
            ready: state == State::Ready,
            desired: Desired::Running,
            pid: Some(7),
            attempt: 3,
            restarts: 0,
            started_at_ms: None,
            ready_at_ms: None,
            next_start_at_ms: None,
            detail: String::new(),
            last_exit: String::new(),
            shard_ids: spec.shard_ids.clone(),
            shard_count: spec.shard_count,
            adopted,
            needs_restart: false,
            log_lines: 0,
            log_bytes: 0,
            limits: String::new(),
            spec,
        }
    }

    fn worker(attached: bool, reported: bool) -> WorkerState {
        let shards = reported.then(|| (0, ShardState::default()));
        WorkerState {
            attempt: 3,
            kind: WorkerKind::Shard,
            version: String::new(),
            attached,
            last_seen: 1,
            stage: ProcessStage::Starting,
            detail: String::new(),
            shards: shards.into_iter().collect(),
            db: None,
            metrics: BTreeMap::new(),
        }
    }

    #[test]
    fn what_was_starting_when_it_was_last_heard_of_may_be_up() {
        let unsure = |state, adopted, worker: Option<WorkerState>| {
            is_unsure(&process(state, adopted), worker.as_ref())
        };
        // Taken over, and not heard of yet.
        assert!(unsure(State::Starting, true, None));
        assert!(unsure(State::Starting, true, Some(worker(true, false))));
        assert!(!unsure(State::Starting, true, Some(worker(true, true))));
        // Its stream broke while it was starting.
        assert!(unsure(State::Starting, false, Some(worker(false, true))));
        // Just started by this agent.
        assert!(!unsure(State::Starting, false, None));
        assert!(!unsure(State::Starting, false, Some(worker(true, false))));
        assert!(!unsure(State::Backoff, true, None));
        assert!(!unsure(State::Ready, true, None));
    }
}
