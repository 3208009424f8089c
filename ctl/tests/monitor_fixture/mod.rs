//! A fleet that never was: fixed numbers for snapshots, and a service that serves them.

#![allow(dead_code, reason = "each test uses its part")]

pub mod fake;
pub mod inputs;

use std::collections::BTreeMap;

use tanako_proto::fleet::v1::{
    Cost, Database, Event, FleetStatus, GuildLocation, GuildShard, Host, IdentifyBot,
    IdentifyBucket, IdentifyStatus, Operation, OperationStep, PlanChange, PlanReply, Process,
    Shard, ShardReceipt,
};

/// 2026-11-21 03:00:00 UTC.
pub const NOW: i64 = 1_795_230_000_000;

const EVENT_TYPES: [(&str, u64); 7] = [
    ("MESSAGE_CREATE", 812_904),
    ("PRESENCE_UPDATE", 401_377),
    ("TYPING_START", 96_021),
    ("GUILD_MEMBER_ADD", 12_040),
    ("INTERACTION_CREATE", 9_120),
    ("VOICE_STATE_UPDATE", 2_310),
    ("GUILD_CREATE", 2_500),
];

pub fn shard(id: u32, count: u32, stage: &str) -> Shard {
    let ready = stage == "ready";
    Shard {
        id,
        count,
        stage: stage.into(),
        guilds: if ready { 1_250 } else { 0 },
        guilds_expected: 1_250,
        latency_ms: if ready { 38.0 + f64::from(id) } else { 0.0 },
        events_per_s: if ready {
            580.5 + f64::from(id) * 7.25
        } else {
            0.0
        },
        events: 1_336_272,
        seq: 1_336_280 + u64::from(id),
        resumed: 2,
        identified: 1,
        reconnects: 3,
        interactions: 9_120,
        interactions_failed: 4,
        members: 1_400_000,
        health: if ready { "ok" } else { "connecting" }.into(),
        last_error: if ready {
            String::new()
        } else {
            "close code 4009: session timed out".into()
        },
        events_by_type: EVENT_TYPES
            .iter()
            .map(|(name, n)| ((*name).to_owned(), *n))
            .collect(),
        replayed: 117,
        ..Shard::default()
    }
}

pub fn bot(instance: u32, state: &str) -> Process {
    let ready = state == "ready";
    let stage = if ready { "ready" } else { "disconnected" };
    Process {
        name: format!("tanako/{instance}"),
        kind: "shard".into(),
        bot: "tanako".into(),
        host: "a".into(),
        state: state.into(),
        ready,
        pid: 41_230 + instance,
        attempt: 1 + u64::from(!ready),
        restarts: u64::from(!ready),
        uptime_s: if ready {
            8_040 + u64::from(instance)
        } else {
            3
        },
        cpu_percent: if ready {
            3.4 + f64::from(instance)
        } else {
            0.0
        },
        rss_bytes: 11_800_000 + u64::from(instance) * 90_000,
        threads: 4,
        fds: 31,
        shards: vec![
            shard(instance * 2, 8, stage),
            shard(instance * 2 + 1, 8, stage),
        ],
        desired: "running".into(),
        detail: if ready {
            String::new()
        } else {
            "exited with status 101 after 3 s".into()
        },
        last_exit: if ready {
            String::new()
        } else {
            "status 101".into()
        },
        started_at: NOW - 8_040_000,
        next_start_at: if state == "backoff" { NOW + 4_000 } else { 0 },
        metrics: BTreeMap::from([("cache_guilds".to_owned(), 1999.0)]),
        log_lines: 4_213,
        log_bytes: 913_222,
        ..Process::default()
    }
}

pub fn node(number: u32) -> Process {
    Process {
        name: format!("db/node{number}"),
        kind: "db".into(),
        bot: "db".into(),
        host: "a".into(),
        state: "ready".into(),
        ready: true,
        pid: 41_220 + number,
        attempt: 1,
        uptime_s: 8_100,
        cpu_percent: 1.2,
        rss_bytes: 22_400_000,
        threads: 6,
        fds: 58,
        desired: "running".into(),
        started_at: NOW - 8_100_000,
        db: Some(Database {
            url: format!("ws://127.0.0.1:80{number}0"),
            rows: 33_412,
            bytes_on_disk: 18_874_368,
            reads_per_s: 412.3,
            writes_per_s: 96.8,
            reads: 2_941_002,
            writes: 713_004,
            forwards: 91_120,
            errors: 0,
            connections: 12,
            read_p50_ms: 0.09,
            read_p99_ms: 0.61,
            write_p50_ms: 1.4,
            write_p99_ms: 4.8,
        }),
        ..Process::default()
    }
}

pub fn host(name: &str, state: &str) -> Host {
    Host {
        name: name.into(),
        state: state.into(),
        address: "unix:/run/tanako/agent.sock".into(),
        agent_version: "0.1.0".into(),
        cpu_percent: 37.2,
        memory_used_bytes: 6_871_947_674,
        memory_total_bytes: 16_777_216_000,
        cpus: 8,
        load1: 2.31,
        disk_used_bytes: 214_748_364_800,
        disk_total_bytes: 499_963_174_912,
        net_rx_bytes_per_s: 1_843_200,
        net_tx_bytes_per_s: 611_000,
        uptime_s: 1_036_800,
        agent_uptime_s: 8_200,
        agent_rss_bytes: 23_900_000,
        last_seen: if state == "unreachable" {
            NOW - 95_000
        } else {
            NOW
        },
        os: "Linux 6.8".into(),
        lease: match state {
            "unreachable" => "lost",
            _ => "held",
        }
        .into(),
    }
}

pub fn identify() -> IdentifyStatus {
    IdentifyStatus {
        total: 1_000,
        used: 188,
        remaining: 812,
        reserve: 50,
        max_concurrency: 8,
        resets_at: NOW + 76_000_000,
        buckets: (0..8)
            .map(|bucket| IdentifyBucket {
                bot: "tanako".into(),
                bucket,
                next_at: if bucket == 4 { NOW + 3_500 } else { 0 },
                waiting: if bucket == 5 { vec![5, 13] } else { Vec::new() },
                granted: 23 + u64::from(bucket),
            })
            .collect(),
        bots: vec![IdentifyBot {
            bot: "tanako".into(),
            total: 1_000,
            used: 188,
            remaining: 812,
            reserve: 50,
            max_concurrency: 8,
            resets_at: NOW + 76_000_000,
            waiting: 2,
            recommended_shards: 8,
            mode: "normal".into(),
            forecast_s: 9,
        }],
        forecast_s: 9,
    }
}

pub fn restart(state: &str) -> Operation {
    let ended = state != "running";
    let step = |object: &str, state: &str, message: &str| OperationStep {
        object: object.into(),
        action: "restart".into(),
        state: state.into(),
        message: message.into(),
        started_at: NOW - 20_000,
        ..OperationStep::default()
    };
    Operation {
        id: "op-17".into(),
        kind: "restart".into(),
        targets: vec!["tanako".into()],
        state: state.into(),
        steps: vec![
            step("tanako/0", "succeeded", "ready after 1.2 s"),
            step(
                "tanako/1",
                if ended { "succeeded" } else { "running" },
                "waiting for readiness",
            ),
            step("tanako/2", if ended { "succeeded" } else { "pending" }, ""),
        ],
        done: if ended { 3 } else { 1 },
        total: 3,
        unit: "processes".into(),
        message: if ended {
            "restarted".into()
        } else {
            "restarting tanako/1".into()
        },
        requested_by: "ada".into(),
        created_at: NOW - 21_000,
        updated_at: NOW - 1_000,
        ended_at: if ended { NOW - 1_000 } else { 0 },
        receipt: (0..if ended { 6 } else { 2 })
            .map(|id| ShardReceipt {
                process: format!("tanako/{}", id / 2),
                shard_id: id,
                how: "resumed".into(),
                gap_ms: 840 + u64::from(id) * 31,
                replayed: 512 + u64::from(id),
                lost: 0,
                duplicated: 0,
                ..ShardReceipt::default()
            })
            .collect(),
        ..Operation::default()
    }
}

pub fn events() -> Vec<Event> {
    let event =
        |id: u64, ago_s: i64, severity: &str, kind: &str, object: &str, message: &str| Event {
            at: NOW - ago_s * 1000,
            severity: severity.into(),
            kind: kind.into(),
            object: object.into(),
            message: message.into(),
            host: "a".into(),
            id,
        };
    vec![
        event(
            1,
            8_100,
            "info",
            "process-ready",
            "db/node1",
            "ready after 0.4 s",
        ),
        event(
            2,
            8_040,
            "info",
            "process-ready",
            "tanako/0",
            "ready after 1.1 s: 2 shards identified",
        ),
        event(
            3,
            610,
            "warning",
            "identify-refused",
            "tanako/3",
            "bucket 6 is taken until 02:50:03",
        ),
        event(
            4,
            21,
            "info",
            "operation-started",
            "op-17",
            "restart tanako by ada",
        ),
        event(
            5,
            8,
            "error",
            "process-exited",
            "tanako/3",
            "exited with status 101 after 3 s",
        ),
        event(
            6,
            8,
            "warning",
            "process-backoff",
            "tanako/3",
            "next start in 12 s",
        ),
    ]
}

/// Seven processes on one host; `tanako/3` keeps falling.
pub fn status() -> FleetStatus {
    let mut processes: Vec<Process> = (0..3).map(|i| bot(i, "ready")).collect();
    processes.push(bot(3, "backoff"));
    processes.extend((1..=3).map(node));
    FleetStatus {
        fleet: "shop".into(),
        version: 12,
        healthy: false,
        reasons: vec!["tanako/3 exited with status 101 after 3 s, next start in 4 s".into()],
        hosts: vec![host("a", "ready")],
        processes,
        identify: Some(identify()),
        operations: vec![restart("running")],
        at: NOW,
        agent_version: "0.1.0".into(),
        revision: 100,
        production: false,
        more: false,
    }
}

/// `n` processes, for the cost of painting many.
pub fn many(n: u32) -> FleetStatus {
    let processes = (0..n)
        .map(|i| bot(i, if i % 97 == 5 { "failed" } else { "ready" }))
        .collect();
    FleetStatus {
        processes,
        operations: Vec::new(),
        ..status()
    }
}

pub fn location(guild_id: u64) -> GuildLocation {
    GuildLocation {
        guild_id,
        shards: vec![GuildShard {
            bot: "tanako".into(),
            shard_id: 1,
            shard_count: 8,
            process: "tanako/0".into(),
            host: "a".into(),
            state: "ready".into(),
            stage: "ready".into(),
            present: Some(true),
        }],
        db_node: "db/node2".into(),
        db_url: "ws://127.0.0.1:8020".into(),
        db_host: "a".into(),
    }
}

pub fn plan(objects: &[String], kind: &str) -> PlanReply {
    let n = objects.len() as u32;
    PlanReply {
        version: 12,
        changes: objects
            .iter()
            .map(|object| PlanChange {
                action: kind.into(),
                object: object.clone(),
                why: "asked for".into(),
            })
            .collect(),
        cost: Some(Cost {
            processes_restarted: if kind == "restart" { n } else { 0 },
            processes_started: if kind == "start" { n } else { 0 },
            processes_stopped: if kind == "stop" { n } else { 0 },
            identifies: 0,
            identifies_left: 812,
            seconds: 2 * n,
            guilds_moved: 0,
            processes_moved: 0,
        }),
        warnings: Vec::new(),
        checks: Vec::new(),
    }
}
