//! A change goes by way of an agent that does not decide, and the one that does dies before it has answered:
//! real agents on a real etcd, which they reach by ways that lose one side of the talk.

mod agent_kit;
#[path = "../../store/tests/etcd_kit/mod.rs"]
mod etcd_kit;
mod fleet_kit;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use agent_kit::{Client, signal};
use etcd_kit::{Lost, Proxy};
use fleet_kit::{Fleet, Processes, SOON, counts, named};
use tanako_proto::fleet::v1::{self as wire, Problem};
use tanako_store::Store as _;
use tonic::Request;

const ALL: [&str; 3] = ["a", "b", "c"];

/// Agents that each have a way of their own to the store.
async fn fleet() -> (Fleet, BTreeMap<&'static str, Proxy>) {
    let mut fleet = Fleet::prepared(&ALL);
    let mut ways = BTreeMap::new();
    for name in ALL {
        let way = Proxy::to(&fleet.etcd.members[0].socket()).await;
        fleet.host(name).endpoints.clone_from(&way.url);
        ways.insert(name, way);
    }
    fleet.begin().await;
    (fleet, ways)
}

/// Longer than any election.
const PATIENCE: Duration = Duration::from_secs(180);

/// Asks for it, and again by the same id as long as the answer is that nobody knows; how often that was.
async fn ask(client: &mut Client, request: &wire::OperationRequest) -> (wire::Operation, u32) {
    let (end, mut doubts) = (Instant::now() + PATIENCE, 0);
    loop {
        let mut asked = Request::new(request.clone());
        asked.set_timeout(PATIENCE);
        let problem = match client.submit(asked).await {
            Ok(op) => return (op.into_inner(), doubts),
            Err(status) => Problem::from_status(&status),
        };
        assert!(
            problem.retryable && !problem.message.is_empty() && !problem.hint.is_empty(),
            "what to do is said: {problem:?}"
        );
        assert!(Instant::now() < end, "{problem:?}");
        doubts += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The deciding agent dies once `lost` does not get through to the store, or from it, any more.
async fn is_done_once(lost: Lost) {
    let (mut fleet, ways) = fleet().await;
    fleet.apply(&fleet.spec(3, "100ms")).await;
    let before = fleet.ready(|all| counts(all) == [1, 1, 1]).await;
    let (leader, _) = fleet.decides().await;
    let asked = ALL.into_iter().find(|name| *name != leader);
    let asked = asked.expect("another one");
    let process = before[asked][0].clone();

    let id = format!("once-{lost:?}").to_lowercase();
    let request = wire::OperationRequest {
        kind: "restart".to_owned(),
        targets: vec![process.name.clone()],
        request_id: id.clone(),
        ..wire::OperationRequest::default()
    };
    // Said in the transaction that takes the request in, and nowhere before.
    ways[leader].lose_at(&format!("\"request_id\":\"{id}\""), lost);
    let mut client = fleet.hosts[asked].client().await;
    let asking = tokio::spawn(async move { ask(&mut client, &request).await });
    tokio::time::timeout(SOON, ways[leader].lost())
        .await
        .expect("it came to the one that decides");
    let key = format!("requests/{id}");
    if lost == Lost::Answer {
        let end = Instant::now() + SOON;
        while fleet
            .read(async |store| store.get(&key).await)
            .await
            .is_none()
        {
            assert!(Instant::now() < end, "it is not taken in");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    } else {
        let known = fleet.read(async |store| store.get(&key).await).await;
        let office = fleet
            .read(async |store| store.get("coordinator").await)
            .await;
        // On a slow machine its lease has ended by now, and the next one has taken it in.
        if office.is_some_and(|item| *item.value == *leader.as_bytes()) {
            assert!(known.is_none(), "it is not taken in: {known:?}");
        }
    }
    fleet.host(leader).kill();

    let (op, doubts) = asking.await.expect("no panic");
    println!("{lost:?}: {} after {doubts} answers in doubt", op.id);
    fleet.succeeds(&op.id).await;
    let (next, _) = fleet.decides().await;
    assert_ne!(next, leader);
    fleet.host(leader).endpoints = fleet.etcd.urls().join(",");
    fleet.host(leader).start();
    was_restarted_once(&fleet, &before, &process.name).await;
}

/// Nothing else was.
async fn was_restarted_once(fleet: &Fleet, before: &Processes, process: &str) {
    let (_, mut client) = fleet.decides().await;
    let listed = client.list_operations(wire::ListOperationsRequest { limit: 100 });
    let listed = listed.await.expect("answers").into_inner().operations;
    let restarts = listed.iter().filter(|op| op.kind == "restart").count();
    assert_eq!(restarts, 1, "once: {listed:#?}");
    let after = fleet.ready(|all| counts(all) == [1, 1, 1]).await;
    for known in before.values().flatten() {
        let (_, now) = named(&after, &known.name);
        let once = u64::from(known.name == process);
        assert_eq!(now.attempt, known.attempt + once, "{}", now.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_was_not_taken_in_is_done_once_by_the_next_who_decides() {
    is_done_once(Lost::Question).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_was_taken_in_and_not_answered_is_done_once_all_the_same() {
    is_done_once(Lost::Answer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_one_that_stands_still_once_another_decides() {
    let mut fleet = Fleet::new(&ALL).await;
    fleet.apply(&fleet.spec(3, "100ms")).await;
    let before = fleet.ready(|all| counts(all) == [1, 1, 1]).await;
    let (leader, _) = fleet.decides().await;
    let asked = ALL.into_iter().find(|name| *name != leader);
    let asked = asked.expect("another one");
    let process = before[asked][0].name.clone();
    let request = wire::OperationRequest {
        kind: "restart".to_owned(),
        targets: vec![process.clone()],
        request_id: "frozen".to_owned(),
        ..wire::OperationRequest::default()
    };
    let mut client = fleet.hosts[asked].client().await;
    let frozen = fleet.host(leader).pid();
    signal(frozen, "STOP");
    // Its connections live, and it never answers.
    let asking = ask(&mut client, &request);
    let (op, doubts) = tokio::time::timeout(PATIENCE / 2, asking)
        .await
        .expect("the next one answers");
    assert_eq!(doubts, 0);
    // It finds the question, and that it decides nothing any more.
    signal(frozen, "CONT");
    fleet.succeeds(&op.id).await;
    was_restarted_once(&fleet, &before, &process).await;
}
