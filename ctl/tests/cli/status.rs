//! `status` in every form, and waiting.

use std::io::{BufRead as _, BufReader, Read as _};

use tanako_proto::fleet::v1::{Process, Shard};

use crate::{
    fake::{fleet, restarting},
    world::World,
};

#[tokio::test]
async fn every_format() {
    let world = World::new();
    for format in ["table", "wide", "json", "yaml", "name"] {
        let ran = world.run(&["status", "-o", format]).await;
        insta::assert_snapshot!(format!("status_{format}"), ran.all());
    }
}

#[tokio::test]
async fn the_contract_of_the_json() {
    let world = World::new();
    let status = world.run(&["status", "-o", "json"]).await.json();
    let has = |value: &serde_json::Value, keys: &str| {
        for key in keys.split(' ') {
            assert!(value.get(key).is_some(), "{key} in {value}");
        }
    };
    has(
        &status,
        "fleet version healthy hosts processes identify operations",
    );
    has(
        &status["hosts"][0],
        "name state address agent_version cpu_percent memory_used_bytes memory_total_bytes",
    );
    has(
        &status["processes"][0],
        "name kind host state ready pid attempt restarts uptime_s cpu_percent rss_bytes shards",
    );
    let shard = &status["processes"][1]["shards"][0];
    has(
        shard,
        "id stage guilds latency_ms events_per_s seq resumed identified",
    );
    has(
        &status["identify"],
        "total used remaining reserve max_concurrency resets_at",
    );
    // Sorted as people count.
    assert_eq!(status["processes"][0]["name"], "db/node1");
    assert_eq!(status["processes"][1]["name"], "tanako/0");
}

#[tokio::test]
async fn an_unhealthy_fleet_is_10_and_says_why_at_the_top() {
    let world = World::new();
    {
        let mut state = world.fake.state();
        state.status.healthy = false;
        state.status.reasons = vec![
            "tanako/1 is in backoff: exited with 1".into(),
            "disk of alpha is full".into(),
        ];
        state.status.processes[0].state = "backoff".into();
        state.status.processes[0].ready = false;
        state.status.processes[0].pid = 0;
        state.status.operations = vec![restarting()];
        // The clock would show in the table.
        state.status.operations[0].created_at = jiff::Timestamp::now().as_millisecond() + 60_000;
    }
    let ran = world.run(&["status"]).await;
    insta::assert_snapshot!(ran.all());
    assert_eq!(world.run(&["status", "-o", "json"]).await.code, Some(10));
}

#[tokio::test]
async fn waiting_ends_when_the_fleet_is_healthy() {
    let world = World::new();
    world.fake.state().unhealthy_for = 3;
    let ran = world
        .run(&["status", "--wait", "--timeout", "50s", "-o", "name"])
        .await;
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    assert_eq!(ran.stdout, "db/node1\ntanako/0\ntanako/1\n");
    assert!(
        ran.stderr.contains("tanako/0 is starting"),
        "{}",
        ran.stderr
    );
    assert!(
        !ran.stderr.contains('\x1b'),
        "no moving bar off a terminal: {:?}",
        ran.stderr
    );
    assert_eq!(world.fake.state().unhealthy_for, 0);
}

#[tokio::test]
async fn waiting_too_long_is_12_and_names_what_is_not_ready() {
    let world = World::new();
    world.fake.state().unhealthy_for = u32::MAX;
    let ran = world
        .run(&["status", "--wait", "--timeout", "5s", "-o", "json"])
        .await;
    assert_eq!(ran.code, Some(12), "{}", ran.all());
    assert_eq!(ran.stdout, "");
    let error = ran.error();
    assert_eq!(
        (error["code"].as_str(), error["cause"].as_str()),
        (Some("timeout"), Some("tanako/0 is starting"))
    );
}

#[tokio::test]
async fn waiting_tolerates_an_agent_that_is_not_there_yet() {
    let world = World::empty();
    let socket = world.socket();
    let mut command = world.command(&["status", "--wait", "--timeout", "50s", "-o", "name"]);
    command.arg("--socket").arg(&socket);
    let (sender, says) = tokio::sync::oneshot::channel();
    let waiting = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().expect("a process");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        stderr.read_line(&mut line).expect("a line");
        sender.send(line).expect("somebody waits");
        let mut stdout = String::new();
        child
            .stdout
            .take()
            .expect("piped")
            .read_to_string(&mut stdout)
            .expect("read");
        (child.wait().expect("waited").code(), stdout)
    });
    let line = says.await.expect("it says what it waits for");
    assert!(line.contains("no agent runs there"), "{line}");
    world.fake.state().status = fleet();
    world.fake.serve(&socket);
    let (code, stdout) = waiting.await.expect("no panic");
    assert_eq!(code, Some(0), "{stdout}");
    assert!(stdout.contains("tanako/1"));
}

#[tokio::test]
async fn a_thousand_processes_are_shown() {
    let world = World::new();
    world.fake.state().status.processes = (0..1_000)
        .map(|n| Process {
            name: format!("tanako/{n}"),
            kind: "shard".into(),
            shards: vec![Shard {
                id: n,
                count: 1_000,
                ..Shard::default()
            }],
            ..Process::default()
        })
        .collect();
    let ran = world.run(&["status", "-o", "name"]).await;
    assert_eq!(ran.stdout.lines().count(), 1_000);
    assert_eq!(ran.stdout.lines().nth(10), Some("tanako/10"));
    let table = world.run(&["status"]).await;
    assert_eq!(
        table
            .stdout
            .lines()
            .filter(|line| line.starts_with("tanako/"))
            .count(),
        1_000
    );
}

#[tokio::test]
async fn the_other_reading_verbs() {
    let world = World::new();
    {
        use tanako_proto::fleet::v1::{AuditRecord, Backup, GuildLocation, GuildShard};
        let mut state = world.fake.state();
        state.guild = GuildLocation {
            shards: vec![GuildShard {
                bot: "tanako".into(),
                shard_id: 2,
                shard_count: 4,
                process: "tanako/1".into(),
                host: "alpha".into(),
                state: "ready".into(),
                stage: "ready".into(),
                present: Some(true),
            }],
            db_node: "node1".into(),
            db_url: "ws://127.0.0.1:7101".into(),
            db_host: "alpha".into(),
            ..GuildLocation::default()
        };
        state.backups = vec![Backup {
            date: "20261118".into(),
            created_at: crate::fake::AT,
            bytes: 5 << 20,
            rows: 10_000,
            nodes: 1,
            state: "verified".into(),
            verified_at: crate::fake::AT + 1_000,
            ..Backup::default()
        }];
        state.audit = vec![AuditRecord {
            at: crate::fake::AT,
            who: "root".into(),
            from: "unix".into(),
            action: "restart".into(),
            object: "tanako".into(),
            outcome: "succeeded".into(),
            ..AuditRecord::default()
        }];
        state.operations = vec![crate::fake::restarted()];
    }
    for (name, arguments) in [
        ("guild", "guild 81384788765712384"),
        ("identify", "identify"),
        ("backups", "backup list"),
        ("audit", "audit"),
        ("operations", "operation list"),
        ("operation", "operation show op-17 -o wide"),
    ] {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let ran = world.run(&arguments).await;
        insta::assert_snapshot!(format!("read_{name}"), ran.all());
        let mut as_json: Vec<&str> = arguments
            .iter()
            .copied()
            .filter(|one| *one != "-o" && *one != "wide")
            .collect();
        as_json.extend(["-o", "json"]);
        let ran = world.run(&as_json).await;
        insta::assert_snapshot!(format!("read_{name}_json"), ran.all());
    }
    assert!(world.fake.state().untouched(), "reading changes nothing");
}
