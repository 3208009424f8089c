//! The whole fleet from any of its agents: real agents with certificates of one authority, on a real etcd.
//! What is asked is asked of those that do not decide.

mod agent_kit;
#[path = "../../store/tests/etcd_kit/mod.rs"]
mod etcd_kit;
mod fleet_kit;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use agent_kit::{Client, end, request, until_within};
use fleet_kit::{Fleet, SOON, counts};
use tanako_pki::Role;
use tanako_proto::fleet::v1::{self as wire, Problem, fleet_update::Update};
use tokio::time::timeout;

const ALL: [&str; 3] = ["a", "b", "c"];
const GUILD: u64 = 81_384_788_765_712_384;

/// The agents that do not decide, and the one that does last.
async fn in_turn(fleet: &Fleet) -> Vec<&'static str> {
    let (leader, _) = fleet.decides().await;
    let mut all: Vec<&str> = ALL.into_iter().filter(|host| *host != leader).collect();
    all.push(leader);
    all
}

fn where_is(status: &wire::FleetStatus) -> BTreeMap<String, (String, u32)> {
    let processes = status.processes.iter();
    processes
        .map(|one| (one.name.clone(), (one.host.clone(), one.pid)))
        .collect()
}

fn host<'s>(status: &'s wire::FleetStatus, name: &str) -> &'s wire::Host {
    let found = status.hosts.iter().find(|host| host.name == name);
    found.expect("a host of the fleet")
}

async fn audit(client: &mut Client) -> Vec<wire::AuditRecord> {
    let asked = wire::AuditRequest { limit: 500 };
    client
        .audit(asked)
        .await
        .expect("answers")
        .into_inner()
        .records
}

/// Waits for a record of the audit log.
async fn audited(client: &mut Client, what: &str, wish: impl Fn(&wire::AuditRecord) -> bool) {
    let until = Instant::now() + SOON;
    loop {
        let records = audit(client).await;
        if records.iter().any(&wish) {
            return;
        }
        assert!(Instant::now() < until, "{what} is not in {records:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn events(client: &mut Client) -> Vec<wire::Event> {
    let asked = wire::EventsRequest {
        tail: 1000,
        ..wire::EventsRequest::default()
    };
    let mut stream = client.events(asked).await.expect("answers").into_inner();
    let mut found = Vec::new();
    while let Some(event) = stream.message().await.expect("goes on") {
        found.push(event);
    }
    found
}

/// A monitor's picture of the fleet, from a snapshot and what changed since.
async fn watched(
    client: &mut Client,
    what: &str,
    wish: impl Fn(&BTreeMap<String, wire::Process>) -> bool,
) {
    let asked = wire::WatchRequest { interval_ms: 200 };
    let mut stream = client.watch(asked).await.expect("answers").into_inner();
    let mut shown = BTreeMap::new();
    let watching = async {
        loop {
            let update = stream.message().await.expect("goes on").expect("no end");
            let (processes, removed) = match update.update.expect("says something") {
                Update::Snapshot(status) => (status.processes, Vec::new()),
                Update::Delta(delta) => (delta.processes, delta.removed_processes),
            };
            for name in removed {
                shown.remove(&name);
            }
            for process in processes {
                shown.insert(process.name.clone(), process);
            }
            if wish(&shown) {
                return;
            }
        }
    };
    let shown_so = timeout(SOON, watching).await.is_ok();
    assert!(shown_so, "{what}: {shown:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_agent_answers_for_the_whole_fleet() {
    let fleet = Fleet::new(&ALL).await;
    fleet.apply(&fleet.spec(6, "100ms")).await;
    fleet.ready(|all| counts(all) == [2, 2, 2]).await;
    let applied = {
        let (_, mut client) = fleet.decides().await;
        let list = client.list_operations(wire::ListOperationsRequest::default());
        list.await.expect("lists").into_inner().operations
    };
    assert_eq!(applied.len(), 1, "{applied:#?}");
    let mut same: BTreeSet<String> = BTreeSet::new();
    for name in in_turn(&fleet).await {
        let mut client = fleet.hosts[name].client().await;
        let status = until_within(SOON, &mut client, "whole", |status| {
            status.healthy && status.processes.iter().filter(|one| one.ready).count() == 6
        })
        .await;
        assert_eq!(status.fleet, "t");
        let hosts: Vec<(&str, &str)> = status
            .hosts
            .iter()
            .map(|host| (host.name.as_str(), host.state.as_str()))
            .collect();
        assert_eq!(hosts, [("a", "ready"), ("b", "ready"), ("c", "ready")]);
        watched(&mut client, "six are ready", |shown| {
            shown.values().filter(|one| one.ready).count() == 6
        })
        .await;

        // The first line of each log, by time, with the host that wrote it.
        let asked = wire::LogsRequest {
            tail: 10,
            ..wire::LogsRequest::default()
        };
        let mut lines = client.logs(asked).await.expect("answers").into_inner();
        let mut read = Vec::new();
        while let Some(line) = lines.message().await.expect("goes on") {
            let own = format!(
                "in {}",
                fleet.hosts[line.host.as_str()].dir.join("d").display()
            );
            assert_eq!(line.line, own, "{line:?}");
            read.push(line);
        }
        assert!(read.is_sorted_by_key(|line| line.at), "{read:#?}");
        let from: BTreeSet<&str> = read.iter().map(|line| line.process.as_str()).collect();
        assert_eq!(from.len(), 6, "{read:#?}");

        let started: BTreeSet<(String, String)> = events(&mut client)
            .await
            .into_iter()
            .filter(|event| event.object.starts_with("a/"))
            .map(|event| (event.object, event.host))
            .collect();
        let placed: BTreeSet<(String, String)> = where_is(&status)
            .into_iter()
            .map(|(process, (host, _))| (process, host))
            .collect();
        assert_eq!(started, placed, "each tells of its own");

        let guild = wire::GuildRequest { guild_id: GUILD };
        let found = client
            .locate_guild(guild)
            .await
            .expect("locates")
            .into_inner();
        let shard = &found.shards[0];
        assert_eq!((shard.state.as_str(), shard.shard_count), ("ready", 6));
        assert_eq!(shard.host, where_is(&status)[&shard.process].0);

        let report = client
            .doctor(wire::DoctorRequest {})
            .await
            .expect("examines");
        let findings = report.into_inner().findings;
        for of in ALL {
            let about = |check: &str| {
                let mut own = findings.iter().filter(|one| one.host == of);
                own.any(|one| one.check == check && one.severity == "ok")
            };
            assert!(
                about("store") && about("secrets") && about("processes"),
                "{findings:#?}"
            );
        }
        let list = client.list_operations(wire::ListOperationsRequest::default());
        let listed = list.await.expect("lists").into_inner().operations;
        assert_eq!(listed, applied);
        let op = wire::OperationId {
            id: applied[0].id.clone(),
        };
        assert_eq!(
            client
                .get_operation(op.clone())
                .await
                .expect("found")
                .into_inner(),
            applied[0]
        );
        let ended = end(&mut client, &op.id).await;
        assert_eq!(ended.state, "succeeded");
        let spec = client.get_spec(wire::SpecRequest {}).await.expect("there");
        assert_eq!(spec.into_inner().toml, fleet.spec(6, "100ms"));
        let history = wire::HistoryRequest {
            target: "a/5".to_owned(),
            metrics: vec!["rss_bytes".to_owned()],
            ..wire::HistoryRequest::default()
        };
        let series = client
            .history(history)
            .await
            .expect("answers")
            .into_inner()
            .series;
        assert_eq!(series.len(), 1);
        let backups = client.list_backups(wire::ListBackupsRequest {}).await;
        assert!(backups.expect("lists").into_inner().backups.is_empty());
        let log = audit(&mut client).await;
        assert!(
            log.iter().any(|record| record.action == "apply"),
            "{log:#?}"
        );
        let advice = client
            .advise(wire::AdviseRequest {})
            .await
            .expect("advises")
            .into_inner();
        let identify = client.get_identify(wire::IdentifyStatusRequest {}).await;
        let identify = identify.expect("answers").into_inner();
        // The same from each, but for the time.
        let advice = (advice.proposals, advice.notes, advice.may_act);
        same.insert(format!("{advice:?} {:?}", identify.bots));
    }
    assert_eq!(same.len(), 1, "{same:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_go_to_the_one_who_decides_in_the_name_of_their_caller() {
    let fleet = Fleet::new(&ALL).await;
    fleet.apply(&fleet.spec(3, "100ms")).await;
    fleet.ready(|all| counts(all) == [1, 1, 1]).await;
    for name in in_turn(&fleet).await {
        let who = format!("vera-{name}");
        let mut viewer = fleet.user(&who, Role::Viewer, name).await;
        viewer
            .get_status(wire::StatusRequest {})
            .await
            .expect("looks");
        viewer.advise(wire::AdviseRequest {}).await.expect("reads");
        let refused = viewer.submit(request("restart", &["all"])).await;
        let problem = Problem::from_status(&refused.expect_err("it only looks"));
        assert_eq!(problem.code, "denied", "{problem:?}");
        let mut local = fleet.hosts[name].client().await;
        audited(&mut local, "the refusal", |record| {
            record.who.starts_with(&who) && record.object.ends_with("Fleet/Submit")
        })
        .await;

        let who = format!("otto-{name}");
        let mut operator = fleet.user(&who, Role::Operator, name).await;
        let op = operator.submit(request("restart", &["a/0"])).await;
        let op = op.expect("accepted").into_inner();
        let op = end(&mut operator, &op.id).await;
        assert_eq!(op.state, "succeeded", "{op:#?}");
        let (leader, _) = fleet.decides().await;
        let way = if name == leader {
            String::new()
        } else {
            format!(", by way of {name}")
        };
        audited(&mut local, "the restart", |record| {
            record.who == format!("{who} (operator)")
                && record.action == "restart"
                && record.from.starts_with("127.0.0.1:")
                && record.from.ends_with(&way)
        })
        .await;
        // What is refused is refused as by the one who decides.
        let refused = operator.submit(request("restart", &["a/77"])).await;
        let problem = Problem::from_status(&refused.expect_err("there is none"));
        assert_eq!(
            (problem.code.as_str(), problem.hint.is_empty()),
            ("unknown-target", false)
        );
        let ended = wire::ControlRequest {
            id: op.id.clone(),
            action: "abort".to_owned(),
        };
        let refused = operator.control_operation(ended).await;
        refused.expect_err("it has ended");
    }
    // The same request by way of two agents is one.
    let twice = wire::OperationRequest {
        request_id: "once".to_owned(),
        ..request("restart", &["a/1"])
    };
    let mut ids = BTreeSet::new();
    for name in ALL {
        let mut client = fleet.hosts[name].client().await;
        let op = client.submit(twice.clone()).await.expect("accepted");
        ids.insert(op.into_inner().id);
    }
    assert_eq!(ids.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_host_is_shown_as_it_was_and_hides_nothing() {
    let mut fleet = Fleet::new(&ALL).await;
    fleet.apply(&fleet.spec(6, "100ms")).await;
    fleet.ready(|all| counts(all) == [2, 2, 2]).await;
    let turn = in_turn(&fleet).await;
    let (asked, lost, leader) = (turn[0], turn[1], turn[2]);
    let mut client = fleet.hosts[asked].client().await;
    let before = until_within(SOON, &mut client, "whole", |status| {
        status.healthy && status.processes.iter().filter(|one| one.ready).count() == 6
    })
    .await;
    // Followed before, and after: what the others write comes on.
    let follow = wire::LogsRequest {
        follow: true,
        tail: 10,
        ..wire::LogsRequest::default()
    };
    let mut lines = client.logs(follow).await.expect("follows").into_inner();
    let mut first = BTreeSet::new();
    while first.len() < 6 {
        let line = timeout(SOON, lines.message()).await.expect("in time");
        let line = line.expect("goes on").expect("no end");
        first.insert((line.host, line.process));
    }
    fleet.host(lost).kill();
    let after = until_within(SOON, &mut client, "lost", |status| {
        host(status, lost).state == "unreachable"
    })
    .await;
    assert_eq!(where_is(&after), where_is(&before), "as they were");
    assert!(!after.healthy);
    let reason = format!("host {lost} is unreachable: not heard of since");
    assert!(
        after.reasons.iter().any(|why| why.starts_with(&reason)),
        "{:?}",
        after.reasons
    );
    assert_eq!(host(&after, leader).state, "ready");

    let missed = events(&mut client).await;
    let missed: Vec<&wire::Event> = missed
        .iter()
        .filter(|event| event.kind == "events-missing")
        .collect();
    assert_eq!(missed.len(), 1, "{missed:#?}");
    assert_eq!(missed[0].host, lost);
    let report = client
        .doctor(wire::DoctorRequest {})
        .await
        .expect("examines");
    let findings = report.into_inner().findings;
    let told = |one: &wire::Finding| (one.host.as_str(), one.check.as_str()) == (lost, "host");
    assert!(findings.iter().any(told), "{findings:#?}");

    let there = where_is(&before);
    let mine = there.iter().find(|(_, (host, _))| host == leader);
    let mine = mine.expect("a process of the leader's").0.clone();
    let op = client.submit(request("restart", &[&mine])).await;
    let op = op.expect("accepted").into_inner();
    assert_eq!(end(&mut client, &op.id).await.state, "succeeded");
    let (mut notice, mut again) = (false, false);
    while !(notice && again) {
        let line = timeout(SOON, lines.message()).await.expect("in time");
        let line = line.expect("goes on").expect("no end");
        notice |= line.stream == "notice" && line.host == lost;
        again |= line.process == mine && line.host == leader;
    }
    drop(lines);

    // It comes back, and so does what it says.
    fleet.host(lost).start();
    let back = until_within(SOON, &mut client, "back", |status| {
        host(status, lost).state == "ready" && status.healthy
    })
    .await;
    for (name, (host, pid)) in where_is(&back) {
        if host == lost {
            assert_eq!(there[&name], (host, pid), "its processes ran on");
        }
    }
}
