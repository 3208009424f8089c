//! Real agents on a real etcd: who decides, and what happens to processes and operations when the
//! store, the agent, or the one that decides goes away.

mod agent_kit;
#[path = "../../store/tests/etcd_kit/mod.rs"]
mod etcd_kit;

use std::{
    fs,
    time::{Duration, Instant},
};

use agent_kit::{
    Agent, Client, lives, patiently, pids, ready, request, request_id, signal, until_within,
};
use etcd_kit::Etcd;
use tanako_proto::fleet::v1::{self as wire, Problem};

/// Leases run out and members are elected on the way.
const SOON: Duration = Duration::from_secs(90);

/// Processes that only run.
fn spec(processes: u32, ready_after: &str) -> String {
    format!(
        "[fleet]\nname = \"t\"\n[bots.a]\n\
         command = [\"/bin/sh\", \"-c\", \"trap 'exit 0' TERM; while :; do sleep 0.1; done\"]\n\
         shards = {processes}\nworker = true\nwatchdog = \"1h\"\ntoken_file = \"TOKEN\"\n\
         ready = {{ kind = \"started\", after = \"{ready_after}\", timeout = \"60s\" }}\n\
         stop = {{ signal = \"TERM\", grace = \"5s\" }}\n"
    )
}

fn on(etcd: &Etcd, host: &str, toml: &str) -> Agent {
    // Agents are killed here, and their processes watched for longer than the usual lease.
    Agent::on_etcd(&etcd.urls().join(","), host, toml, 120)
}

async fn until(
    client: &mut Client,
    what: &str,
    wish: impl Fn(&wire::FleetStatus) -> bool,
) -> wire::FleetStatus {
    until_within(SOON, client, what, wish).await
}

fn running(status: &wire::FleetStatus, count: usize) -> bool {
    status.processes.iter().filter(|p| p.ready).count() == count
}

fn says(status: &wire::FleetStatus, part: &str) -> bool {
    !status.healthy && status.reasons.iter().any(|reason| reason.contains(part))
}

/// Asks once.
async fn refused(client: &mut Client, kind: &str, target: &str) -> Problem {
    let op = agent_kit::submit(client, request(kind, &[target])).await;
    op.expect_err("nothing is decided here")
}

/// Asks until the answer does not say to try again.
async fn submit(client: &mut Client, kind: &str, target: &str) -> Result<wire::Operation, Problem> {
    let asked = wire::OperationRequest {
        request_id: request_id(),
        ..request(kind, &[target])
    };
    patiently(async || client.submit(asked.clone()).await).await
}

/// Asks until it is accepted; every refusal on the way must be one that says to try again.
async fn insist(client: &mut Client, kind: &str, target: &str) -> wire::Operation {
    let op = submit(client, kind, target).await;
    op.expect("accepted")
}

/// Waits for the end of an operation.
async fn succeeded(client: &mut Client, id: &str) -> wire::Operation {
    let status = until(client, "the end of the operation", |status| {
        let mut ops = status.operations.iter();
        ops.any(|op| op.id == id && op.ended_at > 0)
    })
    .await;
    let op = status.operations.into_iter().find(|op| op.id == id);
    let op = op.expect("shown");
    assert_eq!(op.state, "succeeded", "{op:#?}");
    op
}

fn half_done(status: &wire::FleetStatus, id: &str) -> bool {
    let mut ops = status.operations.iter();
    ops.any(|op| op.id == id && op.done >= 1 && op.ended_at == 0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_is_finished_by_the_next_agent() {
    let etcd = Etcd::single();
    let urls = etcd.urls().join(",");
    let mut agent = Agent::prepared_on_etcd(&urls, "a", &spec(4, "700ms"), 120);
    // Longer than anything is waited for here.
    agent.office_lease = 120;
    agent.start();
    let mut client = agent.client().await;
    let before = until(&mut client, "ready", |status| ready(status, 4)).await;
    let op = insist(&mut client, "restart", "all").await;
    until(&mut client, "half way", |status| half_done(status, &op.id)).await;
    agent.kill();
    // It knows the office that it held and need not wait for the lease.
    agent.start();
    let mut client = agent.client().await;
    until(&mut client, "in office", |status| status.version > 0).await;
    succeeded(&mut client, &op.id).await;
    let after = until(&mut client, "ready", |status| ready(status, 4)).await;
    for (old, new) in before.processes.iter().zip(&after.processes) {
        assert_ne!(old.pid, new.pid, "{} was restarted", old.name);
        assert_eq!((new.attempt, new.restarts), (2, 0), "{} once", new.name);
    }
    let log = agent.log();
    let said = "ending the office of the agent that was killed here";
    assert!(log.contains(said), "{log}");
    // A clean stop leaves the office; the next agent has it at once and finds everything.
    assert_eq!(agent.terminate(), Some(0));
    agent.start();
    let mut client = agent.client().await;
    let again = until(&mut client, "ready", |status| ready(status, 4)).await;
    assert_eq!(pids(&again), pids(&after));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_in_place_keeps_every_process() {
    let etcd = Etcd::single();
    let agent = on(&etcd, "a", &spec(2, "100ms"));
    let mut client = agent.client().await;
    let before = until(&mut client, "ready", |status| ready(status, 2)).await;
    fs::remove_file(agent.path("info.json")).expect("there");
    let taken = patiently(async || client.upgrade(wire::UpgradeRequest {}).await).await;
    taken.expect("accepted");
    let end = Instant::now() + SOON;
    while !agent.path("info.json").exists() {
        assert!(Instant::now() < end, "no new agent: {}", agent.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut client = agent.client().await;
    let after = until(&mut client, "ready", |status| ready(status, 2)).await;
    assert_eq!(pids(&after), pids(&before));
}

/// A lease keeps the life with which it was taken: an agent that went by a longer one would own its processes for
/// longer than anybody else knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_told_of_another_lease_keeps_the_one_it_has() {
    let etcd = Etcd::single();
    let mut agent = on(&etcd, "a", &spec(2, "100ms"));
    let lease = |agent: &Agent| -> Option<(u64, u64, u64)> {
        let text = fs::read(agent.path("d/run/tenure")).ok()?;
        let tenure: serde_json::Value = serde_json::from_slice(&text).ok()?;
        let number = |field: &str| tenure[field].as_u64();
        Some((number("lease")?, number("ttl")?, number("agent")?))
    };
    let mut client = agent.client().await;
    let before = until(&mut client, "ready", |status| ready(status, 2)).await;
    let old = lease(&agent).expect("written down");
    assert_eq!(old.1, 120_000);
    agent.kill();
    let mut args = agent.args.iter_mut();
    args.find(|arg| *arg == "--host-lease-seconds");
    "240".clone_into(args.next().expect("its value"));
    agent.start();
    let mut client = agent.client().await;
    let after = until(&mut client, "ready", |status| {
        // The second agent has prolonged it.
        lease(&agent).is_some_and(|now| now.2 != old.2) && ready(status, 2)
    })
    .await;
    let now = lease(&agent).expect("written down");
    assert_eq!((now.0, now.1), (old.0, old.1));
    assert_eq!(pids(&after), pids(&before), "no process was touched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_store_stops_decisions_never_processes() {
    let mut etcd = Etcd::single();
    let mut agent = on(&etcd, "a", &spec(3, "1s"));
    let mut client = agent.client().await;
    until(&mut client, "ready", |status| ready(status, 3)).await;
    // Asked for, begun, and then the store goes.
    let op = insist(&mut client, "restart", "all").await;
    until(&mut client, "half way", |status| half_done(status, &op.id)).await;
    etcd.members[0].kill();
    let during = until(&mut client, "said", |status| {
        says(status, "etcd") && running(status, 3)
    })
    .await;
    let problem = refused(&mut client, "stop", "a/0").await;
    assert!(problem.retryable, "{problem:?}");
    assert!(
        matches!(
            problem.code.as_str(),
            "store-unavailable" | "not-coordinator"
        ),
        "{problem:?}"
    );
    assert!(!problem.hint.is_empty());
    // A crash needs no decision.
    let victim = during.processes[2].pid;
    signal(victim, "KILL");
    let crashed = until(&mut client, "started again", |status| {
        running(status, 3) && status.processes[2].pid != victim
    })
    .await;
    // Neither does the next agent, for what runs.
    agent.kill();
    agent.start();
    let mut client = agent.client().await;
    let adopted = until(&mut client, "adopted", |status| {
        running(status, 3) && says(status, "etcd")
    })
    .await;
    assert_eq!(pids(&adopted), pids(&crashed));
    // It returns: what was asked for happens, without being asked again.
    etcd.start();
    etcd.wait_ready();
    succeeded(&mut client, &op.id).await;
    until(&mut client, "ready", |status| ready(status, 3)).await;
    let stop = insist(&mut client, "stop", "a/0").await;
    succeeded(&mut client, &stop.id).await;
    until(&mut client, "stopped", |status| {
        status.processes[0].state == "stopped" && running(status, 2)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_store_costs_the_office_and_gives_it_back() {
    let etcd = Etcd::single();
    let agent = on(&etcd, "a", &spec(2, "100ms"));
    let mut client = agent.client().await;
    for _ in 0..2 {
        let before = until(&mut client, "ready", |status| ready(status, 2)).await;
        etcd.members[0].freeze(true);
        // Longer than the lease lives.
        until(&mut client, "said", |status| says(status, "no decisions")).await;
        etcd.members[0].freeze(false);
        let after = until(&mut client, "ready again", |status| ready(status, 2)).await;
        assert_eq!(pids(&after), pids(&before));
        let op = insist(&mut client, "restart", "a/0").await;
        succeeded(&mut client, &op.id).await;
        let after = until(&mut client, "ready", |status| ready(status, 2)).await;
        assert_eq!(pids(&after)[1], pids(&before)[1]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_agents_one_decides_and_no_process_runs_twice() {
    let etcd = Etcd::single();
    // An order for a host that is off is given up after that.
    let toml = spec(3, "100ms").replace("timeout = \"60s\"", "timeout = \"20s\"");
    let mut first = on(&etcd, "a", &toml);
    let mut client = first.client().await;
    let before = until(&mut client, "ready", |status| ready(status, 3)).await;
    let second = on(&etcd, "b", &toml);
    let mut standby = second.client().await;
    until(&mut standby, "standing by", |status| {
        says(status, "the agent of host a decides")
    })
    .await;
    let problem = refused(&mut standby, "restart", "all").await;
    assert_eq!(
        (problem.code.as_str(), problem.retryable),
        ("not-coordinator", true)
    );

    // The agent dies, its processes do not: the other one has the office, and starts nothing that is
    // assigned to the first host.
    first.kill();
    until(&mut standby, "in office", |status| {
        !says(status, "decides") && status.version > 0
    })
    .await;
    let op = insist(&mut standby, "restart", "a/1").await;
    let found = until(&mut standby, "refused", |status| {
        let mut ops = status.operations.iter();
        ops.any(|known| known.id == op.id && known.ended_at > 0)
    })
    .await;
    let ended = found.operations.iter().find(|known| known.id == op.id);
    let ended = ended.expect("shown");
    assert_eq!(ended.state, "failed");
    assert!(ended.message.contains("host a"), "{ended:?}");
    assert!(found.processes.is_empty(), "{:?}", found.processes);
    assert!(before.processes.iter().all(|process| lives(process.pid)));

    // Their own agent is back: it has them as they were.
    first.start();
    let mut client = first.client().await;
    let after = until(&mut client, "adopted", |status| running(status, 3)).await;
    assert_eq!(pids(&after), pids(&before));
}

/// What a move to this etcd is asked with.
fn to(etcd: &Etcd, prefix: &str) -> wire::MigrateStoreRequest {
    wire::MigrateStoreRequest {
        endpoints: etcd.urls(),
        prefix: prefix.to_owned(),
        ..wire::MigrateStoreRequest::default()
    }
}

#[tokio::test]
async fn a_fleet_of_one_machine_moves_to_etcd_and_no_process_stops() {
    let etcd = Etcd::single();
    let mut agent = Agent::prepared(&agent_kit::spec(&agent_kit::bot("a", 3, "")));
    // Of use once it has moved: then it is killed, and its processes are watched for longer than usual.
    let lease = ["--host-lease-seconds", "120"].map(str::to_owned);
    agent.args.extend(lease);
    agent.start();
    let mut client = agent.client().await;
    let before = until(&mut client, "ready", |status| ready(status, 3)).await;
    let stopped = agent_kit::done(&mut client, "stop", &["a/2"]).await;
    let problem = |refused: tonic::Status| Problem::from_status(&refused);

    // What cannot be is refused, and changes nothing.
    let mut nowhere = to(&etcd, "tanako/moved/");
    nowhere.endpoints = vec!["http://127.0.0.1:1".to_owned()];
    let refused = client
        .migrate_store(nowhere)
        .await
        .expect_err("no etcd there");
    assert_eq!(problem(refused).code, "store-unavailable");
    let refused = client
        .migrate_store(to(&etcd, ""))
        .await
        .expect_err("no prefix");
    assert_eq!(problem(refused).code, "invalid-argument");
    // Another fleet lives there.
    let other = on(&etcd, "b", &spec(1, "100ms"));
    let mut theirs = other.client().await;
    until(&mut theirs, "theirs run", |status| running(status, 1)).await;
    let used = to(&etcd, "tanako/t/");
    let refused = patiently(async || client.migrate_store(used.clone()).await).await;
    assert_eq!(refused.expect_err("in use").code, "not-empty");
    assert!(!agent.path("d/store.json").exists());

    let looked = wire::MigrateStoreRequest {
        dry_run: true,
        ..to(&etcd, "tanako/moved/")
    };
    let looked = patiently(async || client.migrate_store(looked.clone()).await).await;
    let looked = looked.expect("possible");
    assert!(looked.keys > 0 && !looked.unchanged, "{looked:?}");
    fs::remove_file(agent.path("info.json")).expect("there");
    let there = to(&etcd, "tanako/moved/");
    let moved = patiently(async || client.migrate_store(there.clone()).await).await;
    assert!(moved.expect("moves").keys >= looked.keys);
    let end = Instant::now() + SOON;
    while !agent.path("info.json").exists() {
        assert!(Instant::now() < end, "no new agent: {}", agent.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let mut client = agent.client().await;
    let same = |status: &wire::FleetStatus| {
        ready(status, 2) && status.fleet == before.fleet && status.version > before.version
    };
    let after = until_within(SOON, &mut client, "the same fleet", same).await;
    let pids_of = |status: &wire::FleetStatus| {
        let mut pids = pids(status);
        pids.retain(|(name, _)| name != "a/2");
        pids
    };
    assert_eq!(pids_of(&after), pids_of(&before), "no process was touched");
    let id = wire::OperationId {
        id: stopped.id.clone(),
    };
    let known = patiently(async || client.get_operation(id.clone()).await).await;
    let known = known.expect("its past has moved, too");
    assert_eq!(known.state, "succeeded");
    // Asked again: it is so already.
    let again = client.migrate_store(to(&etcd, "tanako/moved/")).await;
    assert!(again.expect("done").into_inner().unchanged);
    let elsewhere = client.migrate_store(to(&etcd, "tanako/more/")).await;
    let elsewhere = problem(elsewhere.expect_err("from etcd it does not"));
    assert_eq!(elsewhere.code, "on-etcd");

    // It survives the agent, and so a reboot: the flags still say what they said.
    agent.kill();
    agent.start();
    let mut client = agent.client().await;
    insist(&mut client, "start", "a/2").await;
    let last = until_within(SOON, &mut client, "all", |status| ready(status, 3)).await;
    assert_eq!(pids_of(&last), pids_of(&before));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_cordoned_and_drained_and_what_stays_is_named() {
    let etcd = Etcd::single();
    let mut agent = on(&etcd, "a", &spec(2, "100ms"));
    let mut client = agent.client().await;
    let before = until(&mut client, "ready", |status| ready(status, 2)).await;
    let problem = submit(&mut client, "cordon", "host:b")
        .await
        .expect_err("there is no such host");
    assert_eq!(
        (&*problem.code, &*problem.hint),
        ("unknown-target", "hosts are a")
    );
    let op = insist(&mut client, "cordon", "host:a").await;
    assert_eq!((&*op.state, op.unchanged), ("succeeded", false), "{op:#?}");
    let again = insist(&mut client, "cordon", "host:a").await;
    assert_eq!((&*again.state, again.unchanged), ("succeeded", true));
    // It is the fleet's, not the agent's to remember.
    agent.kill();
    agent.start();
    let mut client = agent.client().await;
    until(&mut client, "ready", |status| {
        status.version > 0 && ready(status, 2)
    })
    .await;
    let again = insist(&mut client, "cordon", "host:a").await;
    assert!(again.unchanged, "{again:#?}");
    // There is nowhere to go: everything stays, runs on, and is named.
    let op = insist(&mut client, "drain", "host:a").await;
    let problem = op.problem.expect("a reason");
    assert_eq!((&*op.state, &*problem.code), ("failed", "not-drained"));
    assert!(
        problem.message.starts_with(
            "2 processes stay on host:a: a/0 (no host can take it: 1 host (a) draining)"
        ),
        "{}",
        problem.message
    );
    let after = until(&mut client, "ready", |status| ready(status, 2)).await;
    assert_eq!(pids(&after), pids(&before));
    let op = insist(&mut client, "uncordon", "host:a").await;
    assert_eq!((&*op.state, op.unchanged), ("succeeded", false), "{op:#?}");
    let op = insist(&mut client, "rebalance", "all").await;
    assert_eq!((&*op.state, op.unchanged), ("succeeded", true), "{op:#?}");
    let advice = patiently(async || client.advise(wire::AdviseRequest {}).await).await;
    let advice = advice.expect("answers");
    assert!(
        advice.proposals.is_empty() && !advice.unknown.is_empty(),
        "{advice:#?}"
    );
}
