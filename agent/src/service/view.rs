//! What this host and its processes look like, composed from what the parts of the agent publish; pure.

use std::{collections::BTreeMap, sync::Arc};

use tanako_fleet::{ProcessName, health::Verdict, identify::Mode};
use tanako_proto::{fleet::v1 as wire, host::v1::FleetPart, worker::v1::ShardStage};

use crate::{
    coordinator::Operations,
    desired::Desired,
    health,
    metrics::Sample,
    supervisor::{Desired as Wanted, ProcessStatus, State, Table},
    worker::{DbState, ShardState, States, WorkerState},
};

/// Reasons shown before the rest is only counted.
const REASONS_MAX: usize = 20;
/// Below this much free space the host is not well.
const DISK_FREE_MIN: u64 = 64 * 1024 * 1024;

/// What a view is made of.
pub struct Inputs<'a> {
    /// Name of this host.
    pub host: &'a str,
    /// Now, in milliseconds since 1970.
    pub now: i64,
    /// When the agent started, in milliseconds since 1970.
    pub started_at: i64,
    /// What is wanted.
    pub desired: &'a Desired,
    /// The processes.
    pub table: &'a Table,
    /// Their reports.
    pub workers: &'a States,
    /// What they use.
    pub sample: &'a Sample,
    /// Their budget.
    pub identify: &'a wire::IdentifyStatus,
    /// What is being done.
    pub operations: &'a Operations,
    /// What is thought of their shards.
    pub health: &'a health::View,
    /// What the operator is asked to decide about lost hosts.
    pub asks: &'a [String],
    /// Why nothing is decided here, when that is wrong.
    pub standing: Option<String>,
}

/// What is wrong on this host; empty = nothing: every process that shall run is ready, its shards are
/// well, and so is the host.
pub fn host_reasons(inputs: &Inputs<'_>) -> Vec<String> {
    let mut reasons: Vec<String> = inputs.standing.iter().cloned().collect();
    let host = &inputs.sample.host;
    let free = host.disk_total_bytes.saturating_sub(host.disk_used_bytes);
    if host.disk_total_bytes > 0 && free < DISK_FREE_MIN {
        reasons.push(format!(
            "only {} MiB free on the disk of the data directory",
            free / (1024 * 1024)
        ));
    }
    let mut more = 0usize;
    for process in inputs.table.values() {
        if process.desired == Wanted::Stopped && process.state != State::Failed {
            continue;
        }
        if process.state == State::Ready && process.ready {
            continue;
        }
        if reasons.len() >= REASONS_MAX {
            more += 1;
            continue;
        }
        let detail = if process.detail.is_empty() {
            String::new()
        } else {
            format!(": {}", process.detail)
        };
        reasons.push(format!("{} is {}{detail}", process.name, process.state));
    }
    if more > 0 {
        reasons.push(format!("{more} more processes are not ready"));
    }
    unwell(inputs, &mut reasons);
    reasons
}

/// What the agent that decides knows of the whole fleet. `exists`: whether any host has the process.
pub fn compose_fleet(
    inputs: &Inputs<'_>,
    epoch: u64,
    exists: impl Fn(&ProcessName) -> bool,
) -> FleetPart {
    let desired = inputs.desired;
    let proposals = crate::coordinator::proposals(desired, inputs.identify).into_iter();
    FleetPart {
        epoch,
        fleet: desired.fleet().to_owned(),
        version: desired.document.version,
        production: desired.spec.as_ref().is_some_and(|spec| spec.production),
        reasons: fleet_reasons(inputs, exists),
        notes: proposals
            .map(|(bot, now, to)| {
                format!(
                    "Discord recommends {to} shards for {bot}, which has {now}: `tanakoctl reshard {bot} --shards {to}`"
                )
            })
            .chain(mixed(inputs))
            .collect(),
        identify: Some(inputs.identify.clone()),
        operations: Vec::new(),
        operation_ids: Vec::new(),
    }
}

/// What is wrong with the fleet besides what is wrong on its hosts.
fn fleet_reasons(inputs: &Inputs<'_>, exists: impl Fn(&ProcessName) -> bool) -> Vec<String> {
    let mut reasons: Vec<String> = inputs.asks.to_vec();
    for bot in &inputs.identify.bots {
        if bot.mode == Mode::Probing.as_str() {
            reasons.push(format!(
                "{}: its latest IDENTIFYs came to nothing; one at a time until one holds",
                bot.bot
            ));
        } else if bot.mode == Mode::Exhausted.as_str() {
            reasons.push(format!(
                "{}: the day's IDENTIFYs are spent down to the reserve of {}",
                bot.bot, bot.reserve
            ));
        }
    }
    let mut more = 0usize;
    for spec in inputs.desired.processes.iter() {
        if !exists(&spec.name) && inputs.desired.is_wanted(&spec.name) {
            if reasons.len() >= REASONS_MAX {
                more += 1;
            } else {
                reasons.push(format!("{} has not been started yet", spec.name));
            }
        }
    }
    if more > 0 {
        reasons.push(format!("{more} more processes have not been started yet"));
    }
    // What was asked for and has not been started yet is not stopped on purpose.
    for operation in inputs.operations {
        if matches!(operation.kind.as_str(), "apply" | "start")
            && matches!(operation.state.as_str(), "pending" | "running")
        {
            reasons.push(format!(
                "{} is under way: {} of {} {}",
                operation.id, operation.done, operation.total, operation.unit
            ));
        }
    }
    reasons
}

/// What a rollout has left that stopped half-way: processes by two specs, until somebody decides. One
/// line, with the command that ends it.
fn mixed(inputs: &Inputs<'_>) -> Option<String> {
    let held = &inputs.desired.document.held;
    let going_on = |op: &wire::Operation| {
        matches!(op.kind.as_str(), "rollout" | "apply")
            && matches!(op.state.as_str(), "pending" | "running" | "paused")
    };
    if held.is_empty() || inputs.operations.iter().any(|op| going_on(op)) {
        return None;
    }
    let mut names: Vec<&str> = held.keys().take(3).map(ProcessName::as_str).collect();
    if held.len() > names.len() {
        names.push("…");
    }
    let left_by = inputs
        .operations
        .iter()
        .filter(|op| op.kind == "rollout" && op.state == "failed")
        .max_by_key(|op| op.ended_at)
        .map_or("", |op| op.id.as_str());
    let undo = match left_by {
        "" => "`tanakoctl rollout undo`".to_owned(),
        id => format!("`tanakoctl rollout undo {id}`"),
    };
    let by = if left_by.is_empty() {
        "a rollout"
    } else {
        left_by
    };
    let still = if held.len() == 1 {
        "process runs"
    } else {
        "processes run"
    };
    Some(format!(
        "{by} stopped half-way: {} {still} by the spec before it ({}); {undo} brings all back to that, \
         `tanakoctl rollout start --file fleet.toml` goes on",
        held.len(),
        names.join(", ")
    ))
}

/// Adds the shards that are not well.
fn unwell(inputs: &Inputs<'_>, reasons: &mut Vec<String>) {
    // A brake that is still on while all are back is no news.
    for storm in inputs.health.storms.iter().filter(|s| s.troubled > 0) {
        reasons.push(format!(
            "{}: {} of {} shards have lost their connection at once; nothing is restarted while \
             that lasts",
            storm.bot, storm.troubled, storm.total
        ));
    }
    let mut shown = 0usize;
    let mut more = 0usize;
    for (process, shards) in &inputs.health.shards {
        // That a process is not ready has been said above.
        let ready = inputs
            .table
            .get(process)
            .is_some_and(|process| process.ready && process.desired == Wanted::Running);
        for (shard, verdict) in shards.iter().filter(|(_, v)| v.unhealthy && ready) {
            if shown >= REASONS_MAX {
                more += 1;
                continue;
            }
            shown += 1;
            reasons.push(format!(
                "shard {shard} of {process} is {}: {}",
                verdict.word, verdict.detail
            ));
        }
    }
    if more > 0 {
        reasons.push(format!("{more} more shards are not well"));
    }
}

/// This host, as it shows itself.
pub fn compose_host(inputs: &Inputs<'_>) -> wire::Host {
    let host = &inputs.sample.host;
    let address = inputs
        .desired
        .spec
        .as_ref()
        .and_then(|spec| spec.hosts.iter().find(|known| known.name == inputs.host))
        .and_then(|known| known.address.clone());
    wire::Host {
        name: inputs.host.to_owned(),
        state: "ready".to_owned(),
        address: address.unwrap_or_else(|| "local".to_owned()),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        cpu_percent: host.cpu_percent,
        memory_used_bytes: host.memory_used_bytes,
        memory_total_bytes: host.memory_total_bytes,
        cpus: host.cpus,
        load1: host.load1,
        disk_used_bytes: host.disk_used_bytes,
        disk_total_bytes: host.disk_total_bytes,
        net_rx_bytes_per_s: host.net_rx_bytes_per_s,
        net_tx_bytes_per_s: host.net_tx_bytes_per_s,
        uptime_s: host.uptime_s,
        agent_uptime_s: seconds(inputs.now - inputs.started_at),
        agent_rss_bytes: inputs.sample.agent.rss_bytes,
        last_seen: inputs.now,
        os: host.os.to_string(),
        lease: String::new(),
    }
}

/// One of its processes.
pub fn compose_process(inputs: &Inputs<'_>, process: &Arc<ProcessStatus>) -> wire::Process {
    let name = &process.name;
    let live = process.state.is_live();
    // What an earlier attempt said, or used, is not true of this one.
    let worker = inputs
        .workers
        .get(name)
        .filter(|worker| live && worker.attempt == process.attempt)
        .map(Arc::as_ref);
    let used = inputs
        .sample
        .processes
        .get(name)
        .filter(|used| process.pid == Some(used.pid))
        .copied()
        .unwrap_or_default();
    wire::Process {
        name: name.to_string(),
        kind: process.kind.to_string(),
        host: inputs.host.to_owned(),
        state: process.state.as_str().to_owned(),
        ready: process.ready,
        pid: process.pid.unwrap_or(0),
        attempt: process.attempt,
        restarts: process.restarts,
        uptime_s: process
            .started_at_ms
            .filter(|_| process.pid.is_some())
            .map_or(0, |at| seconds(inputs.now - at)),
        cpu_percent: f64::from(used.cpu_percent),
        rss_bytes: used.rss_bytes,
        threads: used.threads,
        fds: used.fds,
        shards: process
            .shard_ids
            .iter()
            .map(|&id| {
                let verdict = inputs.health.of(name, id);
                compose_shard(id, process.shard_count, worker, verdict)
            })
            .collect(),
        desired: match process.desired {
            Wanted::Running => "running",
            Wanted::Stopped => "stopped",
        }
        .to_owned(),
        detail: process.detail.clone(),
        last_exit: process.last_exit.clone(),
        started_at: process.started_at_ms.unwrap_or(0),
        next_start_at: process.next_start_at_ms.unwrap_or(0),
        db: worker.and_then(|worker| worker.db.as_ref()).map(compose_db),
        metrics: worker.map_or_else(BTreeMap::new, |worker| worker.metrics.clone()),
        log_lines: process.log_lines,
        log_bytes: process.log_bytes,
        bot: if name.group() == "db" {
            String::new()
        } else {
            name.group().to_owned()
        },
    }
}

fn compose_shard(
    id: u32,
    count: u32,
    worker: Option<&WorkerState>,
    verdict: Option<&Verdict>,
) -> wire::Shard {
    let (health, health_detail) = verdict.map_or_else(Default::default, |verdict| {
        (verdict.word.as_str().to_owned(), verdict.detail.clone())
    });
    let Some(ShardState {
        report,
        events_per_s,
    }) = worker.and_then(|worker| worker.shards.get(&id))
    else {
        return wire::Shard {
            id,
            count,
            stage: "unknown".to_owned(),
            health,
            health_detail,
            ..wire::Shard::default()
        };
    };
    wire::Shard {
        id,
        count,
        stage: stage(report.stage()).to_owned(),
        guilds: report.guilds,
        guilds_expected: report.guilds_expected,
        latency_ms: report.latency_ms,
        events_per_s: *events_per_s,
        events: report.events,
        seq: report.seq,
        resumed: report.resumes,
        identified: report.identifies,
        reconnects: report.reconnects,
        interactions: report.interactions,
        interactions_failed: report.interactions_failed,
        members: report.members,
        last_error: report.last_error.clone(),
        events_by_type: report.events_by_type.clone(),
        replayed: report.replayed,
        lost: report.lost,
        duplicated: report.duplicated,
        repeated: report.repeated,
        event_lag_ms: report.event_lag_ms,
        misplaced_guilds: report.misplaced_guilds,
        zombies: report.zombies,
        health,
        health_detail,
    }
}

/// The word of a shard's stage.
pub fn stage(stage: ShardStage) -> &'static str {
    match stage {
        ShardStage::Connecting => "connecting",
        ShardStage::WaitingPermit => "waiting-permit",
        ShardStage::Identifying => "identifying",
        ShardStage::Resuming => "resuming",
        ShardStage::Ready => "ready",
        ShardStage::Disconnected => "disconnected",
        ShardStage::Fatal => "fatal",
        ShardStage::Standby => "standby",
        ShardStage::Unspecified => "unknown",
    }
}

fn compose_db(db: &DbState) -> wire::Database {
    let report = &db.report;
    wire::Database {
        url: report.url.clone(),
        rows: report.rows,
        bytes_on_disk: report.bytes_on_disk,
        reads_per_s: db.reads_per_s,
        writes_per_s: db.writes_per_s,
        reads: report.reads,
        writes: report.writes,
        forwards: report.forwards,
        errors: report.errors,
        connections: report.connections,
        read_p50_ms: report.read_p50_ms,
        read_p99_ms: report.read_p99_ms,
        write_p50_ms: report.write_p50_ms,
        write_p99_ms: report.write_p99_ms,
    }
}

fn seconds(ms: i64) -> u64 {
    u64::try_from(ms / 1000).unwrap_or(0)
}
