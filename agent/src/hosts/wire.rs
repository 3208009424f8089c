//! Between our types and the wire. What cannot be read is refused, never guessed.

use std::{collections::BTreeMap, sync::Arc};

use tanako_fleet::{
    ProcessName, ProcessSpec,
    vault::{Holder, Last},
};
use tanako_proto::{
    fleet::v1::{self as fleet, Problem},
    host::v1::{self as wire, order_request::Order as OnWire},
    worker::v1 as worker,
};
use tonic::Status;

use super::{Assigned, Order, OrderError};
use crate::{
    problem,
    supervisor::{Desired as Wanted, ProcessStatus, State},
    vault::Kept,
    worker::{CommandError, DbState, ShardState, WorkerState, duties::Assignment},
};

/// Processes in one message; more than any host has.
const NAMES_MAX: usize = 100_000;

/// Says what was wrong with a message.
pub(super) fn malformed(what: &str) -> Status {
    problem::status(Problem::new("invalid-argument", "request", what))
}

pub(super) fn name(text: &str) -> Result<ProcessName, Status> {
    text.parse()
        .map_err(|error: tanako_fleet::process::BadProcessName| malformed(&error.to_string()))
}

fn names(all: &[String]) -> Result<Vec<ProcessName>, Status> {
    if all.len() > NAMES_MAX {
        return Err(malformed("too many processes"));
    }
    all.iter().map(|text| name(text)).collect()
}

fn texts(all: &[ProcessName]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

/// An order as it is sent.
pub(super) fn order(order: &Order) -> OnWire {
    match order {
        Order::Define(spec, wanted, attempt_min) => OnWire::Define(wire::Define {
            spec: serde_json::to_vec(&**spec)
                .expect("invariant: a spec has no map with odd keys")
                .into(),
            running: *wanted == Wanted::Running,
            attempt_min: *attempt_min,
        }),
        Order::Start(name) => OnWire::Start(name.to_string()),
        Order::Stop(name) => OnWire::Stop(name.to_string()),
        Order::Restart(name, attempt) => OnWire::Restart(wire::Restart {
            process: name.to_string(),
            attempt: *attempt,
        }),
        Order::Forget(name) => OnWire::Forget(name.to_string()),
        Order::Depart(name) => OnWire::Depart(name.to_string()),
        Order::Handover(from, to, attempt) => OnWire::Handover(wire::Handover {
            from: from.to_string(),
            to: to.to_string(),
            attempt: *attempt,
        }),
        Order::Recall(name) => OnWire::Recall(name.to_string()),
        Order::Assigned(assigned) => OnWire::Assigned(wire::Assigned {
            version: assigned.version,
            processes: texts(&assigned.processes),
            elsewhere: texts(&assigned.elsewhere),
        }),
        Order::ForgetSessions(bot, shard_count) => OnWire::ForgetSessions(wire::ForgetSessions {
            bot: bot.clone(),
            shard_count: *shard_count,
        }),
        Order::Duties(all) => OnWire::Duties(wire::Duties {
            processes: all
                .iter()
                .map(|(name, duty)| {
                    let duty = wire::Assignment {
                        duty: duty.duty.into(),
                        cut: duty.cut,
                    };
                    (name.clone(), duty)
                })
                .collect(),
        }),
    }
}

/// An order as it was received.
pub(super) fn read_order(order: Option<OnWire>) -> Result<Order, Status> {
    let order =
        order.ok_or_else(|| malformed("the order is not known to this agent; upgrade it"))?;
    Ok(match order {
        OnWire::Define(define) => {
            let spec: ProcessSpec = serde_json::from_slice(&define.spec)
                .map_err(|error| malformed(&format!("the spec cannot be read: {error}")))?;
            if spec.command.is_empty() {
                return Err(malformed("the spec has no command"));
            }
            let wanted = if define.running {
                Wanted::Running
            } else {
                Wanted::Stopped
            };
            Order::Define(Arc::new(spec), wanted, define.attempt_min)
        }
        OnWire::Start(text) => Order::Start(name(&text)?),
        OnWire::Stop(text) => Order::Stop(name(&text)?),
        OnWire::Restart(restart) => Order::Restart(name(&restart.process)?, restart.attempt),
        OnWire::Forget(text) => Order::Forget(name(&text)?),
        OnWire::Depart(text) => Order::Depart(name(&text)?),
        OnWire::Recall(text) => Order::Recall(name(&text)?),
        OnWire::Handover(handover) => {
            Order::Handover(name(&handover.from)?, name(&handover.to)?, handover.attempt)
        }
        OnWire::Assigned(assigned) => Order::Assigned(Assigned {
            version: assigned.version,
            processes: names(&assigned.processes)?,
            elsewhere: names(&assigned.elsewhere)?,
        }),
        OnWire::ForgetSessions(forget) => Order::ForgetSessions(forget.bot, forget.shard_count),
        OnWire::Duties(duties) => {
            if duties.processes.len() > NAMES_MAX {
                return Err(malformed("too many processes"));
            }
            let mut all = BTreeMap::new();
            for (process, assignment) in duties.processes {
                let process = name(&process)?.to_string();
                let duty = match assignment.duty() {
                    worker::Duty::Unspecified => return Err(malformed("a duty is not known")),
                    duty => duty,
                };
                let cut = assignment.cut;
                all.insert(process, Assignment { duty, cut });
            }
            Order::Duties(all)
        }
    })
}

/// Why an order was not carried out, for the one who gave it.
pub(super) fn order_status(error: &OrderError, object: &str) -> Status {
    let code = match error {
        OrderError::Stale { .. } | OrderError::Overtaken(_) | OrderError::Past => {
            tonic::Code::FailedPrecondition
        }
        _ => return problem::status(error.problem(object)),
    };
    let mut problem = error.problem(object);
    if matches!(error, OrderError::Overtaken(_)) {
        "stale-order".clone_into(&mut problem.code);
    }
    problem.into_status(code)
}

pub(super) fn kept(kept: Kept) -> wire::KeptShard {
    wire::KeptShard {
        slot: kept.slot.into(),
        guilds: kept.guilds,
    }
}

pub(super) fn read_kept(kept: wire::KeptShard) -> Kept {
    Kept {
        slot: kept.slot.to_vec(),
        guilds: kept.guilds,
    }
}

pub(super) fn deposit(shard_id: u32, shard_count: u32, last: &Last) -> wire::Deposit {
    wire::Deposit {
        shard_id,
        shard_count,
        process: last.by.process.to_string(),
        attempt: last.by.attempt,
        deposited_at: last.deposited_at,
        seq: last.seq,
        last_event_at: last.last_event_at,
        stopped_at: last.stopped_at,
    }
}

pub(super) fn read_deposit(deposit: wire::Deposit) -> Option<((u32, u32), Last)> {
    let last = Last {
        by: Holder {
            process: deposit.process.parse().ok()?,
            attempt: deposit.attempt,
        },
        deposited_at: deposit.deposited_at,
        seq: deposit.seq,
        last_event_at: deposit.last_event_at,
        stopped_at: deposit.stopped_at,
    };
    Some(((deposit.shard_id, deposit.shard_count), last))
}

/// A worker's state as it is sent.
pub(super) fn worker(state: &WorkerState) -> wire::WorkerReport {
    wire::WorkerReport {
        attempt: state.attempt,
        attached: state.attached,
        last_seen: state.last_seen,
        version: state.version.clone(),
        kind: state.kind.into(),
        report: Some(worker::ProcessReport {
            stage: state.stage.into(),
            detail: state.detail.clone(),
            shards: state
                .shards
                .values()
                .map(|shard| shard.report.clone())
                .collect(),
            metrics: state.metrics.clone(),
            db: state.db.as_ref().map(|db| db.report.clone()),
        }),
        events_per_s: state
            .shards
            .values()
            .map(|shard| shard.events_per_s)
            .collect(),
        reads_per_s: state.db.as_ref().map_or(0.0, |db| db.reads_per_s),
        writes_per_s: state.db.as_ref().map_or(0.0, |db| db.writes_per_s),
    }
}

/// A worker's state as it was received.
pub(super) fn read_worker(told: wire::WorkerReport) -> WorkerState {
    let kind = told.kind();
    let report = told.report.unwrap_or_default();
    let stage = report.stage();
    let rates = told.events_per_s;
    let shards = report.shards.into_iter().enumerate();
    WorkerState {
        attempt: told.attempt,
        kind,
        version: told.version,
        attached: told.attached,
        last_seen: told.last_seen,
        stage,
        detail: report.detail,
        shards: shards
            .map(|(index, report)| {
                let events_per_s = rates.get(index).copied().unwrap_or(0.0);
                let id = report.shard_id;
                (
                    id,
                    ShardState {
                        report,
                        events_per_s,
                    },
                )
            })
            .collect(),
        db: report.db.map(|report| DbState {
            report,
            reads_per_s: told.reads_per_s,
            writes_per_s: told.writes_per_s,
        }),
        metrics: report.metrics,
    }
}

/// A process as it was received; `spec`: what it is started from.
pub(super) fn read_process(
    view: &fleet::Process,
    told: &wire::ProcessState,
    spec: Arc<ProcessSpec>,
) -> Option<ProcessStatus> {
    let time = |at: i64| (at > 0).then_some(at);
    Some(ProcessStatus {
        name: view.name.parse().ok()?,
        kind: spec.kind,
        state: state(&view.state)?,
        ready: view.ready,
        desired: match view.desired.as_str() {
            "running" => Wanted::Running,
            _ => Wanted::Stopped,
        },
        pid: (view.pid > 0).then_some(view.pid),
        attempt: view.attempt,
        restarts: view.restarts,
        started_at_ms: time(view.started_at),
        ready_at_ms: time(told.ready_at),
        next_start_at_ms: time(view.next_start_at),
        detail: view.detail.clone(),
        last_exit: view.last_exit.clone(),
        shard_ids: spec.shard_ids.clone(),
        shard_count: spec.shard_count,
        adopted: told.adopted,
        needs_restart: told.needs_restart,
        log_lines: view.log_lines,
        log_bytes: view.log_bytes,
        limits: told.limits.clone(),
        spec,
    })
}

fn state(word: &str) -> Option<State> {
    [
        State::Stopped,
        State::Starting,
        State::Running,
        State::Ready,
        State::Draining,
        State::Stopping,
        State::Backoff,
        State::Failed,
    ]
    .into_iter()
    .find(|state| state.as_str() == word)
}

/// Why a command came to nothing.
pub(super) fn failure(error: &CommandError) -> wire::CommandFailure {
    let code = match error {
        CommandError::NotAttached(_) => "not-attached",
        CommandError::Busy(_) => "busy",
        CommandError::Gone(_) => "gone",
        CommandError::Timeout(..) => "timeout",
        CommandError::Away(..) => "away",
    };
    wire::CommandFailure {
        code: code.to_owned(),
        message: error.to_string(),
    }
}

pub(super) fn read_failure(
    failure: &wire::CommandFailure,
    process: &ProcessName,
    within: std::time::Duration,
) -> CommandError {
    let process = process.clone();
    match failure.code.as_str() {
        "not-attached" => CommandError::NotAttached(process),
        "busy" => CommandError::Busy(process),
        "timeout" => CommandError::Timeout(process, within),
        "gone" => CommandError::Gone(process),
        _ => CommandError::Away(process, failure.message.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ProcessSpec {
        let toml =
            "[fleet]\nname = \"t\"\n[bots.b]\ncommand = [\"x\"]\ntoken_file = \"/t\"\nshards = 2\n";
        let spec = tanako_fleet::spec::parse(toml, "fleet.toml").expect("a good spec");
        spec.processes(&tanako_fleet::spec::Places::anywhere())
            .remove(0)
    }

    #[test]
    fn orders_come_back_as_they_were_sent() {
        let name: ProcessName = "b/0".parse().expect("a name");
        let cut = worker::Cut {
            at: 5,
            before: true,
        };
        let duty = Assignment {
            duty: worker::Duty::Shadow,
            cut: Some(cut),
        };
        let orders = [
            Order::Define(Arc::new(spec()), Wanted::Running, 7),
            Order::Start(name.clone()),
            Order::Stop(name.clone()),
            Order::Restart(name.clone(), 4),
            Order::Forget(name.clone()),
            Order::Depart(name.clone()),
            Order::Recall(name.clone()),
            Order::Handover(name.clone(), "b/g2-0".parse().expect("a name"), 3),
            Order::Assigned(Assigned {
                version: 9,
                processes: vec![name.clone()],
                elsewhere: vec!["b/1".parse().expect("a name")],
            }),
            Order::ForgetSessions("b".to_owned(), 4),
            Order::Duties(BTreeMap::from([("b/0".to_owned(), duty)])),
        ];
        for sent in orders {
            let read = read_order(Some(order(&sent))).expect("can be read");
            assert_eq!(format!("{sent:?}"), format!("{read:?}"));
        }
    }

    #[test]
    fn bad_orders_are_refused() {
        let define = |spec: &[u8]| {
            OnWire::Define(wire::Define {
                spec: spec.to_vec().into(),
                ..wire::Define::default()
            })
        };
        let assigned = wire::Assigned {
            processes: vec!["../x".to_owned()],
            ..wire::Assigned::default()
        };
        let duties = wire::Duties {
            processes: BTreeMap::from([("b/0".to_owned(), wire::Assignment::default())]),
        };
        let mut empty = spec();
        empty.command.clear();
        let empty = serde_json::to_vec(&empty).expect("encodes");
        for bad in [
            None,
            Some(define(b"{}")),
            Some(define(&empty)),
            Some(OnWire::Start("no name".to_owned())),
            Some(OnWire::Assigned(assigned)),
            Some(OnWire::Duties(duties)),
        ] {
            let status = read_order(bad).expect_err("is refused");
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
        }
    }
}
