//! From what the agent publishes to what the judge reads; pure.

use std::collections::BTreeMap;

use tanako_fleet::{
    ProcessKind, ProcessName, Spec,
    health::{BotView, Reading, Report, Stage},
    process::Probe,
};
use tanako_proto::{fleet::v1 as wire, worker::v1::ShardStage};

use crate::{
    coordinator::Operations,
    desired::Desired,
    supervisor::{Desired as Wanted, ProcessStatus, Table},
    worker::{States, WorkerState},
};

/// All shards whose processes report.
pub(super) fn readings<'a>(
    table: &'a Table,
    workers: &'a States,
    operations: &Operations,
) -> Vec<Reading<'a>> {
    let mut readings = Vec::new();
    for (name, process) in table {
        let worker = workers
            .get(name)
            .map(AsRef::as_ref)
            .filter(|worker| worker.attempt == process.attempt);
        // A bot of another make reports nothing, and is not judged.
        let reports = worker.is_some() || process.spec.ready.probe == Probe::Worker;
        if process.kind != ProcessKind::Shard || !reports {
            continue;
        }
        let busy = is_busy(name, operations);
        for shard in &process.shard_ids {
            readings.push(reading(process, *shard, worker, busy));
        }
    }
    readings
}

fn reading<'a>(
    process: &'a ProcessStatus,
    shard: u32,
    worker: Option<&'a WorkerState>,
    busy: bool,
) -> Reading<'a> {
    let report = worker.and_then(|worker| {
        let report = &worker.shards.get(&shard)?.report;
        Some(Report {
            serial: worker.last_seen,
            stage: stage(report.stage()),
            guilds: report.guilds,
            guilds_expected: report.guilds_expected,
            latency_ms: report.latency_ms,
            event_lag_ms: report.event_lag_ms,
            misplaced: report.misplaced_guilds,
            zombies: report.zombies,
            resumes: report.resumes,
            identifies: report.identifies,
            events: &report.events_by_type,
            last_error: &report.last_error,
        })
    });
    Reading {
        process: &process.name,
        attempt: process.attempt,
        shard,
        count: process.shard_count,
        wanted: process.desired == Wanted::Running,
        busy,
        attached: process.state.is_live() && worker.is_some_and(|worker| worker.attached),
        report,
    }
}

/// Whether an operation that goes on has to do with the process.
fn is_busy(name: &ProcessName, operations: &Operations) -> bool {
    let goes_on = |op: &wire::Operation| {
        matches!(op.state.as_str(), "pending" | "running" | "paused") && op.kind != "backup"
    };
    operations.iter().any(|op| {
        let is_target =
            |target: &String| target == name.as_str() || target == name.group() || target == "all";
        let is_step = |step: &wire::OperationStep| step.object == name.as_str();
        goes_on(op) && (op.targets.iter().any(is_target) || op.steps.iter().any(is_step))
    })
}

/// All bots.
pub(super) fn bots(
    desired: &Desired,
    identify: &wire::IdentifyStatus,
) -> BTreeMap<String, BotView> {
    desired
        .spec
        .as_ref()
        .map_or_else(BTreeMap::new, |spec| bots_of(spec, identify))
}

fn bots_of(spec: &Spec, identify: &wire::IdentifyStatus) -> BTreeMap<String, BotView> {
    let affordable = |bot: &str| {
        identify.bots.iter().any(|known| {
            known.bot == bot
                && known.total > 0
                && known.remaining > known.reserve
                && matches!(known.mode.as_str(), "" | "normal")
        })
    };
    spec.bots
        .iter()
        .map(|(name, bot)| {
            let view = BotView {
                silent: bot.silent,
                affordable: affordable(name),
            };
            (name.clone(), view)
        })
        .collect()
}

fn stage(stage: ShardStage) -> Stage {
    match stage {
        ShardStage::Unspecified => Stage::Unknown,
        ShardStage::Connecting => Stage::Connecting,
        ShardStage::WaitingPermit => Stage::WaitingPermit,
        ShardStage::Identifying => Stage::Identifying,
        ShardStage::Resuming => Stage::Resuming,
        ShardStage::Ready => Stage::Ready,
        ShardStage::Disconnected => Stage::Disconnected,
        ShardStage::Fatal => Stage::Fatal,
        ShardStage::Standby => Stage::Standby,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn op(kind: &str, state: &str, target: &str, step: &str) -> Arc<wire::Operation> {
        Arc::new(wire::Operation {
            kind: kind.to_owned(),
            state: state.to_owned(),
            targets: vec![target.to_owned()],
            steps: vec![wire::OperationStep {
                object: step.to_owned(),
                ..wire::OperationStep::default()
            }],
            ..wire::Operation::default()
        })
    }

    #[test]
    fn what_an_operation_works_on_is_busy_until_it_ends() {
        let name: ProcessName = "bot/1".parse().expect("a name");
        let busy = |op| is_busy(&name, &vec![op]);
        assert!(busy(op("restart", "running", "bot", "bot/0")));
        assert!(busy(op("restart", "paused", "all", "bot/0")));
        assert!(busy(op("stop", "pending", "host:a", "bot/1")));
        assert!(!busy(op("restart", "succeeded", "bot", "bot/1")));
        assert!(!busy(op("restart", "running", "other", "bot/10")));
        assert!(!busy(op("backup", "running", "all", "db/node1")));
    }

    #[test]
    fn an_identify_is_affordable_above_the_reserve_and_in_normal_times_only() {
        let text = "[fleet]\nname = \"x\"\n[bots.b]\ncommand = [\"b\"]\nshards = 1\n";
        let spec = tanako_fleet::spec::parse(text, "f").expect("good");
        let base = wire::IdentifyBot {
            bot: "b".to_owned(),
            total: 1_000,
            remaining: 101,
            reserve: 100,
            mode: "normal".to_owned(),
            ..wire::IdentifyBot::default()
        };
        let check = |bot: wire::IdentifyBot| {
            let identify = wire::IdentifyStatus {
                bots: vec![bot],
                ..wire::IdentifyStatus::default()
            };
            affordable_of(&spec, &identify)
        };
        assert!(check(base.clone()));
        for (what, spoil) in [
            (
                "at the reserve",
                wire::IdentifyBot {
                    remaining: 100,
                    ..base.clone()
                },
            ),
            (
                "not known",
                wire::IdentifyBot {
                    total: 0,
                    ..base.clone()
                },
            ),
            (
                "another bot",
                wire::IdentifyBot {
                    bot: "c".to_owned(),
                    ..base.clone()
                },
            ),
            (
                "probing",
                wire::IdentifyBot {
                    mode: "probing".to_owned(),
                    ..base.clone()
                },
            ),
        ] {
            assert!(!check(spoil), "{what}");
        }
    }

    fn affordable_of(spec: &tanako_fleet::Spec, identify: &wire::IdentifyStatus) -> bool {
        bots_of(spec, identify)["b"].affordable
    }
}
