//! One coordinator over several hosts: real agents with certificates of one authority, on a real etcd.

mod agent_kit;
#[path = "../../store/tests/etcd_kit/mod.rs"]
mod etcd_kit;
mod fleet_kit;

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use agent_kit::until_within;
use fleet_kit::{Fleet, SOON, counts, named, rows};
use tanako_proto::{
    fleet::v1::{AuditRequest, Problem, Process},
    host::v1::{OrderRequest, PermitRequest, RelayRequest, order_request::Order},
};
use tanako_store::Store as _;
use tonic::{Response, Status};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_are_spread_and_operations_reach_them_all() {
    let fleet = Fleet::new(&["a", "b", "c"]).await;
    fleet.apply(&fleet.spec(6, "100ms")).await;
    let before = fleet.ready(|all| counts(all) == [2, 2, 2]).await;

    let op = fleet.does("restart", &["all"]).await;
    assert_eq!((op.done, op.total), (6, 6));
    let after = fleet.ready(|all| counts(all) == [2, 2, 2]).await;
    for process in before.values().flatten() {
        let (host, now) = named(&after, &process.name);
        assert_eq!(host, process.host, "{} stays where it is", process.name);
        assert_eq!((now.attempt, now.restarts), (2, 0));
        assert_ne!(now.pid, process.pid);
    }

    fleet.does("stop", &["host:b", "a/0"]).await;
    let stopped = fleet.processes().await;
    assert!(
        stopped["b"]
            .iter()
            .all(|process| process.state == "stopped")
    );
    fleet.does("start", &["all"]).await;
    let again = fleet.ready(|all| counts(all) == [2, 2, 2]).await;
    let (_, kept) = named(&again, "a/5");
    assert_eq!(kept.attempt, if kept.host == "b" { 3 } else { 2 });
    for host in fleet.hosts.values() {
        let here = host.dir.join("d/logs");
        let logs = fs::read_dir(here).expect("there").flatten();
        let text: String = logs
            .filter_map(|entry| fs::read_to_string(entry.path()).ok())
            .collect();
        let own = format!("in {}", host.dir.join("d").display());
        assert!(text.contains(&own), "each host fills in its own: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_ends_as_asked_under_another_coordinator() {
    let mut fleet = Fleet::new(&["a", "b", "c"]).await;
    fleet.apply(&fleet.spec(6, "700ms")).await;
    let before = fleet.ready(|all| counts(all) == [2, 2, 2]).await;
    let op = fleet.submit("restart", &["all"]).await.expect("accepted");
    let (first, mut client) = fleet.decides().await;
    until_within(SOON, &mut client, "half way", |status| {
        let mut ops = status.operations.iter();
        ops.any(|known| known.id == op.id && known.done >= 2 && known.ended_at == 0)
    })
    .await;
    fleet.host(first).kill();
    let (second, _) = fleet.decides().await;
    assert_ne!(first, second);
    // What runs on the first one's host waits for its agent.
    fleet.host(first).start();
    fleet.succeeds(&op.id).await;
    let after = fleet.ready(|all| counts(all) == [2, 2, 2]).await;
    for process in before.values().flatten() {
        let (host, now) = named(&after, &process.name);
        assert_eq!(host, process.host);
        assert_eq!((now.attempt, now.restarts), (2, 0), "{} once", now.name);
    }

    // Whoever decided before gives no orders any more.
    for to in ["a", "b", "c"] {
        let request = OrderRequest {
            epoch: 1,
            from: first.to_owned(),
            sequence: 1,
            order: Some(Order::Stop("a/0".to_owned())),
            ..OrderRequest::default()
        };
        let refused = fleet.peer(first, to).await.order(request).await;
        let problem = Problem::from_status(&refused.expect_err("it is refused"));
        assert_eq!(problem.code, "stale-epoch", "{problem:?}");
        // Nor does one that was meant for a host's last tenure count, whoever gave it.
        let request = OrderRequest {
            epoch: i64::MAX as u64,
            from: second.to_owned(),
            sequence: u64::MAX,
            tenure: "another".to_owned(),
            order: Some(Order::Stop("a/0".to_owned())),
        };
        let refused = fleet.peer(first, to).await.order(request).await;
        let problem = Problem::from_status(&refused.expect_err("it is refused"));
        assert_eq!(problem.code, "stale-tenure", "{problem:?}");
        assert!(problem.retryable, "{problem:?}");
    }
    let same = fleet.processes().await;
    assert_eq!(counts(&same), [2, 2, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_moves_to_another_host_and_back() {
    let mut fleet = Fleet::new(&["a", "b"]).await;
    fleet.apply(&fleet.spec(4, "100ms")).await;
    let before = fleet.ready(|all| counts(all) == [2, 2]).await;
    let mover = before["a"][0].clone();
    let op = fleet.does("move", &[&mover.name, "host:b"]).await;
    assert_eq!(op.steps.len(), 1, "{op:#?}");
    let moved = |ready: [usize; 2]| {
        let name = mover.name.as_str();
        move |all: &BTreeMap<&str, Vec<Process>>| counts(all) == ready && rows(all, name) == 1
    };
    let after = fleet.ready(moved([1, 3])).await;
    let (host, now) = named(&after, &mover.name);
    assert_eq!((host, now.attempt), ("b", mover.attempt + 1));

    // The agent that gave it away does not have it again when it comes back.
    fleet.host("a").kill();
    fleet.host("a").start();
    fleet.ready(|all| counts(all) == [1, 3]).await;

    // What is stopped moves without being started.
    fleet.does("stop", &[&mover.name]).await;
    fleet.does("move", &[&mover.name, "host:a"]).await;
    let stopped = fleet.ready(moved([1, 2])).await;
    let (host, now) = named(&stopped, &mover.name);
    assert_eq!((host, now.state.as_str()), ("a", "stopped"));
    fleet.does("start", &[&mover.name]).await;
    let again = fleet.ready(|all| counts(all) == [2, 2]).await;
    assert_eq!(named(&again, &mover.name).1.attempt, mover.attempt + 2);

    for (targets, code) in [
        (&["a/0"][..], "invalid-target"),
        (&["a/0", "b"][..], "invalid-target"),
        (&["a/0", "host:z"][..], "unknown-target"),
        (&["a/77", "host:b"][..], "unknown-target"),
    ] {
        let problem = fleet.submit("move", targets).await.expect_err("is refused");
        assert_eq!(problem.code, code, "{problem:?}");
        assert!(!problem.hint.is_empty(), "{problem:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_does_not_answer_holds_nobody_up_and_agrees_when_it_is_back() {
    let mut fleet = Fleet::new(&["a", "b"]).await;
    // An order waits for a host that is off: a stop for the grace, a restart for that and the timeout.
    let spec = fleet
        .spec(4, "100ms")
        .replace("grace = \"5s\"", "grace = \"60s\"");
    let spec = spec.replace("timeout = \"60s\"", "timeout = \"20s\"");
    fleet.apply(&spec).await;
    let before = fleet.ready(|all| counts(all) == [2, 2]).await;
    let (decides, _) = fleet.decides().await;
    let other = if decides == "a" { "b" } else { "a" };
    fleet.host(other).kill();
    let own = before[decides][0].name.clone();
    let far = before[other][0].name.clone();
    fleet.does("restart", &[&own]).await;
    // An order for the other one fails in the end, and says why.
    let op = fleet.submit("restart", &[&far]).await.expect("accepted");
    let op = fleet.ends(&op.id).await;
    assert_eq!(op.state, "failed", "{op:#?}");
    assert!(op.message.contains(&format!("host {other}")), "{op:#?}");
    // A new term begins all the same.
    fleet.host(decides).kill();
    fleet.host(decides).start();
    fleet.does("restart", &[&own]).await;
    let op = fleet.submit("stop", &[&far]).await.expect("accepted");
    // It comes back in the middle of it, and does as asked.
    fleet.host(other).start();
    fleet.succeeds(&op.id).await;
    let after = fleet
        .ready(|all| {
            let rest = all
                .values()
                .flatten()
                .any(|one| one.name == far && one.state == "stopped");
            rest && counts(all).iter().sum::<usize>() == 3
        })
        .await;
    let kept = before[other][1].clone();
    assert_eq!(
        named(&after, &kept.name).1.pid,
        kept.pid,
        "its children ran on"
    );
}

fn denied<T: std::fmt::Debug>(answer: Result<Response<T>, Status>, words: &str) {
    let problem = Problem::from_status(&answer.expect_err(words));
    assert_eq!(problem.code, "denied", "{words}: {problem:?}");
    assert!(problem.message.contains(words), "{words}: {problem:?}");
    assert!(
        !problem.cause.is_empty() && !problem.hint.is_empty(),
        "{problem:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_asks_for_itself_alone() {
    let fleet = Fleet::new(&["a", "b", "c"]).await;
    fleet.apply(&fleet.spec(3, "100ms")).await;
    let all = fleet.ready(|all| counts(all) == [1, 1, 1]).await;
    let (leader, mut client) = fleet.decides().await;
    let others: Vec<&str> = ["a", "b", "c"]
        .into_iter()
        .filter(|name| *name != leader)
        .collect();
    let (eve, victim) = (others[0], others[1]);
    let (own, theirs) = (&all[eve][0], &all[victim][0]);
    let used = |status: tanako_proto::fleet::v1::FleetStatus| status.identify.map(|it| it.used);
    let before = used(agent_kit::status(&mut client).await);

    // The one that decides gives permits; any agent prolongs leases.
    let mut desk = fleet.peer(eve, leader).await;
    let permit = |host: &str, process: &str| PermitRequest {
        unused: 0,
        id: "1".to_owned(),
        host: host.to_owned(),
        process: process.to_owned(),
        bot: "a".to_owned(),
        attempt: 9,
        shard_id: 0,
        shard_count: 3,
        wait_ms: 100,
        via: "worker".to_owned(),
    };
    let in_the_name_of = format!("in the name of host \"{victim}\"");
    let whose = format!("{}, which is host {victim}'s", theirs.name);
    denied(
        desk.acquire_permit(permit(victim, &theirs.name)).await,
        &in_the_name_of,
    );
    denied(
        desk.acquire_permit(permit(victim, &own.name)).await,
        &in_the_name_of,
    );
    denied(desk.acquire_permit(permit(eve, &theirs.name)).await, &whose);

    let lease = async |host: &str| {
        let key = format!("present/{host}");
        let item = fleet.read(async |store| store.get(&key).await).await;
        let lease = item.and_then(|item| item.lease).expect("it is leased");
        i64::try_from(lease).expect("as on the wire")
    };
    let (mine, not_mine) = (lease(eve).await, lease(victim).await);
    let relay = |host: &str, lease: i64| RelayRequest {
        host: host.to_owned(),
        lease,
    };
    let prolong = format!("to prolong the lease of host {victim}");
    for to in [leader, victim] {
        let mut relays = fleet.peer(eve, to).await;
        denied(
            relays.relay_keep_alive(relay(victim, not_mine)).await,
            &in_the_name_of,
        );
        denied(
            relays.relay_keep_alive(relay(eve, not_mine)).await,
            &prolong,
        );
        let reply = relays.relay_keep_alive(relay(eve, 4711)).await;
        let reply = reply.expect("answers").into_inner();
        assert!(!reply.kept && !reply.ended, "nobody's: {reply:?}");
        let end = Instant::now() + SOON;
        loop {
            let reply = relays.relay_keep_alive(relay(eve, mine)).await;
            if reply.as_ref().is_ok_and(|reply| reply.get_ref().kept) {
                break;
            }
            assert!(Instant::now() < end, "its own is prolonged: {reply:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert_eq!(used(agent_kit::status(&mut client).await), before);
    let reply = desk.acquire_permit(permit(eve, &own.name)).await;
    let reply = reply.expect("its own is answered").into_inner();
    assert!(reply.refused.is_empty(), "{reply:?}");

    // Each kind has left its line.
    let who = format!("{eve} (agent)");
    let mut wanted = vec![in_the_name_of, whose, prolong];
    let end = Instant::now() + SOON;
    while !wanted.is_empty() {
        let log = client.audit(AuditRequest { limit: 500 }).await;
        let log = log.map(|log| log.into_inner().records).unwrap_or_default();
        wanted.retain(|words| {
            !log.iter().any(|line| {
                line.who == who && line.action == "refused" && line.outcome.contains(words)
            })
        });
        assert!(
            Instant::now() < end,
            "{wanted:?} of {who} is not in {log:#?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
