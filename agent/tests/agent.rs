//! The real `tanako-agent`, driven over its socket as `tanakoctl` does it, with plain shell children.

mod agent_kit;

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use agent_kit::{
    Agent, Client, SOON, bot, done, end, pids, process, ready, request, signal, spec, status,
    submit, until,
};
use tanako_proto::fleet::v1::{self as wire, Problem, fleet_update::Update};

/// Waits until these processes have said that they begin, a line each: what is ready may not have got to it.
async fn until_begun(client: &mut Client, wish: &[&str]) {
    let deadline = Instant::now() + SOON;
    loop {
        let logs = wire::LogsRequest {
            targets: vec!["a".to_owned()],
            grep: "begin a/[02]".to_owned(),
            ..wire::LogsRequest::default()
        };
        let mut lines = client.logs(logs).await.expect("reads").into_inner();
        let mut seen = Vec::new();
        while let Some(line) = lines.message().await.expect("a line") {
            seen.push(line.process);
        }
        seen.sort();
        if seen == wish {
            return;
        }
        assert!(Instant::now() < deadline, "{seen:?}, not {wish:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn start_stop_restart_logs_and_the_same_request_twice() {
    let agent = Agent::new(&spec(&bot("a", 3, "")));
    let mut client = agent.client().await;
    let before = until(&mut client, "ready", |status| ready(status, 3)).await;
    assert_eq!((before.fleet.as_str(), before.version), ("t", 1));
    until_begun(&mut client, &["a/0", "a/2"]).await;

    let mut stop = request("stop", &["a/1"]);
    stop.request_id = "only-once".to_owned();
    let first = submit(&mut client, stop.clone()).await.expect("accepted");
    assert_eq!(end(&mut client, &first.id).await.state, "succeeded");
    let again = submit(&mut client, stop).await.expect("known");
    assert_eq!(again.id, first.id);
    let stopped = until(&mut client, "stopped", |s| {
        process(s, "a/1").state == "stopped"
    })
    .await;
    assert!(
        stopped.healthy,
        "what is stopped on purpose is not ill: {:?}",
        stopped.reasons
    );
    assert!(done(&mut client, "stop", &["a/1"]).await.unchanged);

    // A restart of all leaves alone what the operator stopped.
    let restart = done(&mut client, "restart", &["all"]).await;
    assert_eq!(restart.receipt.len(), 2);
    let after = status(&mut client).await;
    assert_eq!(process(&after, "a/1").pid, 0);
    for name in ["a/0", "a/2"] {
        assert_ne!(process(&after, name).pid, process(&before, name).pid);
        assert_eq!(
            (
                process(&after, name).attempt,
                process(&after, name).restarts
            ),
            (2, 0)
        );
    }
    done(&mut client, "start", &["shard:1"]).await;
    until(&mut client, "ready", |status| ready(status, 3)).await;

    until_begun(&mut client, &["a/0", "a/0", "a/2", "a/2"]).await;

    let audit = client
        .audit(wire::AuditRequest { limit: 50 })
        .await
        .expect("answers")
        .into_inner();
    let newest = audit
        .records
        .iter()
        .find(|record| record.action == "start")
        .expect("recorded");
    assert!(
        newest.who.starts_with("uid ") && newest.object == "shard:1",
        "{newest:?}"
    );
    assert!(
        audit
            .records
            .windows(2)
            .all(|pair| pair[0].at >= pair[1].at),
        "newest first"
    );
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let agent = Agent::new(&spec(&bot("tanako", 2, "")));
    let mut client = agent.client().await;
    until(&mut client, "ready", |status| ready(status, 2)).await;
    let refused =
        async |client: &mut Client, request| submit(client, request).await.expect_err("refused");
    let unknown = refused(&mut client, request("stop", &["tanakoo"])).await;
    assert_eq!(
        (unknown.code.as_str(), unknown.hint.as_str()),
        ("unknown-target", "did you mean tanako?")
    );
    assert_eq!(
        refused(&mut client, request("stop", &[])).await.code,
        "invalid-target"
    );
    assert_eq!(
        refused(&mut client, request("explode", &["all"]))
            .await
            .code,
        "invalid-argument"
    );
    assert_eq!(
        refused(&mut client, request("backup", &[])).await.code,
        "no-database"
    );
    let mut stale = request("stop", &["all"]);
    stale.base_version = 99;
    assert_eq!(refused(&mut client, stale).await.code, "stale-plan");
    let apply = |toml: &str, base_version| wire::ApplyRequest {
        spec_toml: toml.to_owned(),
        base_version,
        file_name: "fleet.toml".to_owned(),
        ..wire::ApplyRequest::default()
    };
    let bad = client
        .apply(apply("[fleet]\nname = \"t\"\ncolour = 1\n", 0))
        .await
        .expect_err("refused");
    let bad = Problem::from_status(&bad);
    assert_eq!(
        (bad.code.as_str(), bad.object.as_str()),
        ("invalid-spec", "fleet.toml:3")
    );
    let other = client
        .apply(apply("[fleet]\nname = \"other\"\n", 0))
        .await
        .expect_err("refused");
    assert_eq!(Problem::from_status(&other).code, "invalid-spec");
    let old = client
        .apply(apply("[fleet]\nname = \"t\"\n", 77))
        .await
        .expect_err("refused");
    assert_eq!(Problem::from_status(&old).code, "stale-plan");
    let pattern = wire::LogsRequest {
        grep: "(".to_owned(),
        ..wire::LogsRequest::default()
    };
    let pattern = client.logs(pattern).await.expect_err("refused");
    assert_eq!(Problem::from_status(&pattern).code, "invalid-pattern");
    let id = wire::OperationId {
        id: "restart-999".to_owned(),
    };
    let operation = client.get_operation(id).await.expect_err("refused");
    assert_eq!(Problem::from_status(&operation).code, "unknown-operation");
    // None of it has changed anything.
    assert_eq!(status(&mut client).await.version, 1);
}

#[tokio::test]
async fn one_operation_at_a_time_on_one_process() {
    // Ready when the test says so, so that its start is at work for as long as that wants.
    let slow = bot("a", 1, "")
        .replace(
            "echo begin",
            "until [ -e TOKEN.go ]; do sleep 0.1; done; echo begin",
        )
        .replace(
            "kind = \"started\", after = \"100ms\"",
            "kind = \"log\", pattern = \"begin\"",
        )
        .replace("20s", "5m");
    let agent = Agent::new(&spec(&slow));
    let mut client = agent.client().await;
    until(&mut client, "at work", |s| {
        s.operations.iter().any(|op| op.state == "running")
    })
    .await;
    let conflict = submit(&mut client, request("restart", &["a/0"]))
        .await
        .expect_err("refused");
    assert_eq!(
        (conflict.code.as_str(), conflict.object.as_str()),
        ("conflict", "a/0")
    );
    assert!(conflict.hint.contains("apply-1") && conflict.retryable);
    let abort = wire::ControlRequest {
        id: "apply-1".to_owned(),
        action: "abort".to_owned(),
    };
    client.control_operation(abort).await.expect("accepted");
    fs::write(agent.path("token.go"), "").expect("writes");
    let ended = end(&mut client, "apply-1").await;
    assert!(ended.ended_at > 0);
}

#[tokio::test]
async fn a_rolling_restart_goes_on_after_kill_9_of_the_agent() {
    let mut agent = Agent::new(&spec(&bot("a", 4, "").replace("100ms", "700ms")));
    let mut client = agent.client().await;
    let before = until(&mut client, "ready", |status| ready(status, 4)).await;
    let op = submit(&mut client, request("restart", &["all"]))
        .await
        .expect("accepted");
    until(&mut client, "half way", |status| {
        status
            .operations
            .iter()
            .any(|known| known.id == op.id && known.done >= 1)
    })
    .await;
    agent.kill();
    agent.start();
    let mut client = agent.client().await;
    let ended = end(&mut client, &op.id).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    let after = until(&mut client, "ready", |status| ready(status, 4)).await;
    for (old, new) in before.processes.iter().zip(&after.processes) {
        assert_ne!(old.pid, new.pid, "{} was restarted", old.name);
        assert_eq!((new.attempt, new.restarts), (2, 0), "{} once", new.name);
    }
}

#[tokio::test]
async fn children_outlive_the_agent_and_what_was_stopped_stays_stopped() {
    let mut agent = Agent::new(&spec(&bot("a", 3, "")));
    let mut client = agent.client().await;
    until(&mut client, "ready", |status| ready(status, 3)).await;
    done(&mut client, "stop", &["a/2"]).await;
    let before = status(&mut client).await;
    drop(client);
    assert_eq!(agent.terminate(), Some(0));
    assert!(!agent.socket().exists(), "a clean stop leaves no socket");
    agent.start();
    let mut client = agent.client().await;
    let after = until(&mut client, "ready", |status| ready(status, 2)).await;
    assert_eq!(pids(&after), pids(&before));
    assert_eq!(
        (after.version, process(&after, "a/2").state.as_str()),
        (before.version, "stopped")
    );
    drop(client);
    agent.kill();
    assert!(agent.socket().exists(), "a kill leaves its socket");
    agent.start();
    let mut client = agent.client().await;
    let again = until(&mut client, "ready", |status| ready(status, 2)).await;
    assert_eq!(pids(&again), pids(&before));
}

#[tokio::test]
async fn an_upgrade_in_place_keeps_every_process() {
    let agent = Agent::new(&spec(&bot("a", 2, "")));
    let mut client = agent.client().await;
    let before = until(&mut client, "ready", |status| ready(status, 2)).await;
    let info = fs::metadata(agent.path("info.json"))
        .expect("there")
        .modified()
        .expect("a time");
    client
        .upgrade(wire::UpgradeRequest {})
        .await
        .expect("accepted");
    let end = Instant::now() + SOON;
    let renewed = || fs::metadata(agent.path("info.json")).and_then(|meta| meta.modified());
    while renewed().map_or(true, |at| at <= info) {
        assert!(Instant::now() < end, "no new agent: {}", agent.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut client = agent.client().await;
    let after = until(&mut client, "ready", |status| ready(status, 2)).await;
    assert_eq!(pids(&after), pids(&before));
    let info = fs::read_to_string(agent.path("info.json")).expect("reads");
    assert!(
        info.contains(&format!("\"pid\": {}", agent.pid())),
        "the same process: {info}"
    );
    let events = wire::EventsRequest {
        targets: vec!["agent".to_owned()],
        ..wire::EventsRequest::default()
    };
    let mut events = client.events(events).await.expect("reads").into_inner();
    let mut kinds = Vec::new();
    while let Some(event) = events.message().await.expect("an event") {
        kinds.push(event.kind);
    }
    assert!(
        kinds.iter().any(|kind| kind == "agent-upgraded"),
        "{kinds:?}"
    );
}

#[tokio::test]
async fn a_second_agent_is_told_who_holds_the_directory() {
    let agent = Agent::new(&spec(&bot("a", 1, "")));
    let second = agent
        .command()
        .stderr(Stdio::piped())
        .output()
        .expect("runs");
    assert_eq!(second.status.code(), Some(11));
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        text.contains(&format!("pid {}", agent.pid())) && text.contains("hint:"),
        "{text}"
    );
    let mut client = agent.client().await;
    until(&mut client, "still there", |status| ready(status, 1)).await;
}

/// A file system of its own that can be filled.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path) -> Option<Self> {
        fs::create_dir_all(path).expect("makes");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=160m,mode=0700", "tmpfs"])
            .arg(path)
            .output()
            .expect("mount runs");
        mounted.status.success().then(|| Self(path.to_owned()))
    }

    /// Takes all the space there is.
    fn fill(&self) {
        let mut ballast = fs::File::create(self.0.join("ballast")).expect("creates");
        for size in [1 << 20, 4096, 1] {
            let block = vec![1; size];
            while ballast.write_all(&block).is_ok() {}
        }
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("ballast")).expect("removes");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[tokio::test]
async fn a_full_disk_ends_no_process_and_loses_nothing() {
    let mut agent = Agent::prepared(&spec(&bot("a", 2, "")));
    let Some(disk) = SmallDisk::mount(&agent.path("d")) else {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    };
    agent.start();
    let mut client = agent.client().await;
    let before = until(&mut client, "ready", |status| ready(status, 2)).await;
    done(&mut client, "stop", &["a/1"]).await;
    disk.fill();

    // What changes nothing goes on; what cannot be written down is refused and not half done.
    let deadline = Instant::now() + SOON;
    let refused = loop {
        match submit(&mut client, request("start", &["a/1"])).await {
            Err(problem) => break problem,
            // It still fitted into what had been set aside.
            Ok(op) => {
                end(&mut client, &op.id).await;
                done_or_refused(&mut client, "stop", "a/1").await;
                assert!(Instant::now() < deadline, "the disk is never full");
            }
        }
    };
    assert_eq!(refused.code, "no-space", "{refused:#?}");
    assert!(
        refused.hint.contains("free disk space") && refused.retryable,
        "{refused:#?}"
    );
    let full = status(&mut client).await;
    assert_eq!(process(&full, "a/0").pid, process(&before, "a/0").pid);

    // An agent that dies meanwhile comes back to the same processes.
    agent.kill();
    disk.empty();
    agent.start();
    let mut client = agent.client().await;
    let after = until(&mut client, "back", |s| process(s, "a/0").ready).await;
    assert_eq!(process(&after, "a/0").pid, process(&before, "a/0").pid);
    done(&mut client, "start", &["a/1"]).await;
    until(&mut client, "ready", |status| ready(status, 2)).await;
}

async fn done_or_refused(client: &mut Client, kind: &str, target: &str) {
    if let Ok(op) = submit(client, request(kind, &[target])).await {
        end(client, &op.id).await;
    }
}

#[tokio::test]
async fn garbage_on_the_socket_harms_nobody() {
    let agent = Agent::new(&spec(&bot("a", 1, "")));
    let mut client = agent.client().await;
    until(&mut client, "ready", |status| ready(status, 1)).await;
    let mut seed = 0x9e37_79b9_u64;
    for round in 0..60 {
        let mut bytes = if round % 2 == 0 {
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()
        } else {
            Vec::new()
        };
        for _ in 0..(round * 37) % 2_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bytes.push((seed >> 33) as u8);
        }
        let mut socket = UnixStream::connect(agent.socket()).expect("accepts");
        socket
            .set_read_timeout(Some(Duration::from_millis(5)))
            .expect("sets");
        // It may be cut off in the middle: that is an answer too.
        let _ = socket.write_all(&bytes);
        let _ = socket.read(&mut [0u8; 512]);
    }
    let huge = wire::ApplyRequest {
        spec_toml: "#".repeat(3 << 20),
        ..wire::ApplyRequest::default()
    };
    client.apply(huge).await.expect_err("too large");
    let large = wire::ApplyRequest {
        spec_toml: "#".repeat(1 << 20),
        ..wire::ApplyRequest::default()
    };
    let large = client.apply(large).await.expect_err("too large");
    assert_eq!(Problem::from_status(&large).code, "too-large");
    assert!(status(&mut client).await.healthy);
}

#[tokio::test]
async fn apply_starts_restarts_and_removes() {
    let agent = Agent::new(&spec(&bot("a", 2, "")));
    let mut client = agent.client().await;
    let before = until(&mut client, "ready", |status| ready(status, 2)).await;
    let token = agent.path("token").display().to_string();
    let next = spec(&(bot("a", 2, "env = { COLOUR = \"blue\" }") + &bot("b", 1, "")))
        .replace("TOKEN", &token);
    let plan = wire::PlanRequest {
        of: Some(wire::plan_request::Of::SpecToml(next.clone())),
        file_name: "fleet.toml".to_owned(),
    };
    let plan = client.plan(plan).await.expect("plans").into_inner();
    let changes: Vec<(&str, &str)> = plan
        .changes
        .iter()
        .map(|change| (change.action.as_str(), change.object.as_str()))
        .collect();
    assert_eq!(
        changes,
        [("update", "a/0"), ("update", "a/1"), ("create", "b/0")]
    );
    assert_eq!(plan.cost.expect("a cost").processes_restarted, 2);
    let apply = |toml: &str, base_version| wire::ApplyRequest {
        spec_toml: toml.to_owned(),
        base_version,
        ..wire::ApplyRequest::default()
    };
    let op = client
        .apply(apply(&next, plan.version))
        .await
        .expect("accepted")
        .into_inner();
    assert_eq!(end(&mut client, &op.id).await.state, "succeeded");
    let after = until(&mut client, "ready", |status| ready(status, 3)).await;
    assert_ne!(process(&after, "a/0").pid, process(&before, "a/0").pid);
    let same = client
        .apply(apply(&next, 0))
        .await
        .expect("accepted")
        .into_inner();
    assert!(same.unchanged && same.state == "succeeded");
    let less = spec(&bot("b", 1, "")).replace("TOKEN", &token);
    let op = client
        .apply(apply(&less, 0))
        .await
        .expect("accepted")
        .into_inner();
    assert_eq!(end(&mut client, &op.id).await.state, "succeeded");
    let last = until(&mut client, "ready", |status| ready(status, 1)).await;
    assert_eq!(
        pids(&last),
        [("b/0".to_owned(), process(&after, "b/0").pid)],
        "{:#?}, before {:#?}\n{}",
        process(&last, "b/0"),
        process(&after, "b/0"),
        agent.log()
    );
}

#[tokio::test]
async fn a_watcher_sees_a_crash_at_once() {
    let agent = Agent::new(&spec(&bot("a", 1, "")));
    let mut client = agent.client().await;
    let before = until(&mut client, "ready", |status| ready(status, 1)).await;
    // Numbers once a minute: what comes sooner came because something happened.
    let watch = client
        .watch(wire::WatchRequest {
            interval_ms: 60_000,
        })
        .await
        .expect("watches");
    let mut updates = watch.into_inner();
    let first = updates
        .message()
        .await
        .expect("an update")
        .expect("a snapshot");
    assert!(matches!(first.update, Some(Update::Snapshot(_))));
    signal(process(&before, "a/0").pid, "KILL");
    let seen = async {
        let (mut attempt, mut event) = (false, false);
        while !(attempt && event) {
            let update = updates.message().await.expect("an update").expect("more");
            let Some(Update::Delta(delta)) = update.update else {
                panic!("{update:?}")
            };
            attempt |= delta.processes.iter().any(|process| process.attempt == 2);
            event |= delta
                .events
                .iter()
                .any(|event| event.kind == "process-exited");
        }
    };
    tokio::time::timeout(Duration::from_secs(50), seen)
        .await
        .expect("at once");
}

#[tokio::test]
async fn one_machine_has_no_other_host() {
    let agent = Agent::new(&spec(&bot("a", 1, "")));
    let mut client = agent.client().await;
    until(&mut client, "ready", |status| ready(status, 1)).await;
    let status = status(&mut client).await;
    let host = format!("host:{}", status.hosts[0].name);
    for kind in ["cordon", "uncordon", "drain"] {
        let problem = submit(&mut client, request(kind, &[&host]))
            .await
            .expect_err("refused");
        assert_eq!(&*problem.code, "unsupported", "{problem:?}");
        let problem = submit(&mut client, request(kind, &["a/0"]))
            .await
            .expect_err("refused");
        assert_eq!(&*problem.code, "invalid-target", "{problem:?}");
    }
    let op = submit(&mut client, request("rebalance", &[]))
        .await
        .expect("accepted");
    assert!(op.unchanged, "{op:#?}");
    let advice = client.advise(wire::AdviseRequest {}).await;
    assert!(advice.is_ok(), "{advice:?}");
}
