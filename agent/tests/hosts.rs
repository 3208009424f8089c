//! One coordinator over several hosts: real agents with certificates of one authority, on a real etcd.

mod agent_kit;
#[path = "../../store/tests/etcd_kit/mod.rs"]
mod etcd_kit;
mod fleet_kit;

use std::fs;

use agent_kit::until_within;
use fleet_kit::{Fleet, SOON, counts, named};
use tanako_proto::{
    fleet::v1::Problem,
    host::v1::{OrderRequest, order_request::Order},
};

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
        };
        let refused = fleet.peer(first, to).await.order(request).await;
        let problem = Problem::from_status(&refused.expect_err("it is refused"));
        assert_eq!(problem.code, "stale-epoch", "{problem:?}");
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
    let after = fleet.ready(|all| counts(all) == [1, 3]).await;
    let (host, now) = named(&after, &mover.name);
    assert_eq!((host, now.attempt), ("b", mover.attempt + 1));

    // The agent that gave it away does not have it again when it comes back.
    fleet.host("a").kill();
    fleet.host("a").start();
    fleet.ready(|all| counts(all) == [1, 3]).await;

    // What is stopped moves without being started.
    fleet.does("stop", &[&mover.name]).await;
    fleet.does("move", &[&mover.name, "host:a"]).await;
    let stopped = fleet.ready(|all| counts(all) == [1, 2]).await;
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
    fleet.apply(&fleet.spec(4, "100ms")).await;
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
