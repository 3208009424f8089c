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
use etcd_kit::Proxy;
use fleet_kit::{Fleet, SOON, counts, patiently};
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
    let list = patiently(async || client.audit(asked).await).await;
    list.expect("answers").records
}

async fn operations(client: &mut Client) -> Vec<wire::Operation> {
    let asked = wire::ListOperationsRequest::default();
    let list = patiently(async || client.list_operations(asked).await).await;
    list.expect("lists").operations
}

async fn spec(client: &mut Client) -> String {
    let asked = wire::SpecRequest {};
    let spec = patiently(async || client.get_spec(asked).await).await;
    spec.expect("there").toml
}

async fn locate(client: &mut Client) -> wire::GuildShard {
    let guild = wire::GuildRequest { guild_id: GUILD };
    let found = patiently(async || client.locate_guild(guild).await).await;
    found.expect("locates").shards.remove(0)
}

async fn submit(
    client: &mut Client,
    request: wire::OperationRequest,
) -> Result<wire::Operation, Problem> {
    patiently(async || client.submit(request.clone()).await).await
}

/// Waits until the doctor finds it so.
async fn examined(client: &mut Client, wish: impl Fn(&[wire::Finding]) -> bool) {
    let until = Instant::now() + SOON;
    loop {
        let report = client.doctor(wire::DoctorRequest {}).await;
        let findings = report.expect("examines").into_inner().findings;
        if wish(&findings) {
            return;
        }
        assert!(Instant::now() < until, "{findings:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
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

/// The last lines of each log.
async fn last_lines(client: &mut Client) -> Vec<wire::LogLine> {
    let asked = wire::LogsRequest {
        tail: 10,
        ..wire::LogsRequest::default()
    };
    let mut lines = client.logs(asked).await.expect("answers").into_inner();
    let mut read = Vec::new();
    while let Some(line) = lines.message().await.expect("goes on") {
        read.push(line);
    }
    read
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

/// Waits until the events are as wished.
async fn happened(client: &mut Client, what: &str, wish: impl Fn(&[wire::Event]) -> bool) {
    let until = Instant::now() + SOON;
    loop {
        let found = events(client).await;
        if wish(&found) {
            return;
        }
        assert!(Instant::now() < until, "{what}: {found:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
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
        operations(&mut client).await
    };
    assert_eq!(applied.len(), 1, "{applied:#?}");
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

        // The first line of each log, by time, with the host that wrote it. One that is ready runs, and may
        // not have got to write it.
        let until = Instant::now() + SOON;
        loop {
            let read = last_lines(&mut client).await;
            for line in &read {
                let dir = &fleet.hosts[line.host.as_str()].dir;
                let own = format!("in {}", dir.join("d").display());
                assert_eq!(line.line, own, "{line:?}");
            }
            assert!(read.is_sorted_by_key(|line| line.at), "{read:#?}");
            let from: BTreeSet<&str> = read.iter().map(|line| line.process.as_str()).collect();
            if from.len() == 6 {
                break;
            }
            assert!(Instant::now() < until, "{read:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }

        let placed: BTreeSet<(String, String)> = where_is(&status)
            .into_iter()
            .map(|(process, (host, _))| (process, host))
            .collect();
        happened(&mut client, "each tells of its own", |events| {
            let of_processes = events
                .iter()
                .filter(|event| event.object.starts_with("a/"))
                .map(|event| (event.object.clone(), event.host.clone()));
            of_processes.collect::<BTreeSet<_>>() == placed
        })
        .await;

        let shard = locate(&mut client).await;
        assert_eq!((shard.state.as_str(), shard.shard_count), ("ready", 6));
        assert_eq!(shard.host, where_is(&status)[&shard.process].0);

        examined(&mut client, |findings| {
            let well = |of: &str, check: &str| {
                let mut own = findings.iter().filter(|one| one.host == of);
                own.any(|one| one.check == check && one.severity == "ok")
            };
            let checks = ["store", "secrets", "processes"];
            ALL.iter()
                .all(|of| checks.iter().all(|check| well(of, check)))
        })
        .await;
        let listed = operations(&mut client).await;
        assert_eq!(listed, applied);
        let op = wire::OperationId {
            id: applied[0].id.clone(),
        };
        let one = patiently(async || client.get_operation(op.clone()).await).await;
        assert_eq!(one.expect("found"), applied[0]);
        let ended = end(&mut client, &op.id).await;
        assert_eq!(ended.state, "succeeded");
        assert_eq!(spec(&mut client).await, fleet.spec(6, "100ms"));
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
        let asked = wire::ListBackupsRequest {};
        let backups = patiently(async || client.list_backups(asked).await).await;
        assert!(backups.expect("lists").backups.is_empty());
        let log = audit(&mut client).await;
        assert!(
            log.iter().any(|record| record.action == "apply"),
            "{log:#?}"
        );
    }
    // The same from each, but for the time; once nothing changes in between.
    let until = Instant::now() + SOON;
    loop {
        let mut said: BTreeSet<String> = BTreeSet::new();
        for name in ALL {
            let mut client = fleet.hosts[name].client().await;
            let asked = wire::AdviseRequest {};
            let advice = patiently(async || client.advise(asked).await).await;
            let advice = advice.expect("advises");
            let identify = client.get_identify(wire::IdentifyStatusRequest {}).await;
            let identify = identify.expect("answers").into_inner();
            let advice = (advice.proposals, advice.notes, advice.may_act);
            said.insert(format!("{advice:?} {:?}", identify.bots));
        }
        if said.len() == 1 {
            return;
        }
        assert!(Instant::now() < until, "{said:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
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
        let asked = wire::AdviseRequest {};
        let advice = patiently(async || viewer.advise(asked).await).await;
        advice.expect("reads");
        let refused = submit(&mut viewer, request("restart", &["all"])).await;
        let problem = refused.expect_err("it only looks");
        assert_eq!(problem.code, "denied", "{problem:?}");
        let mut local = fleet.hosts[name].client().await;
        audited(&mut local, "the refusal", |record| {
            record.who.starts_with(&who) && record.object.ends_with("Fleet/Submit")
        })
        .await;

        let who = format!("otto-{name}");
        let mut operator = fleet.user(&who, Role::Operator, name).await;
        let (before, _) = fleet.decides().await;
        let op = submit(&mut operator, request("restart", &["a/0"])).await;
        let op = op.expect("accepted");
        let op = end(&mut operator, &op.id).await;
        assert_eq!(op.state, "succeeded", "{op:#?}");
        let (after, _) = fleet.decides().await;
        // Where the office has changed hands, nobody knows which way it went.
        let way = if [before, after].contains(&name) {
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
        let refused = submit(&mut operator, request("restart", &["a/77"])).await;
        let problem = refused.expect_err("there is none");
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
        let op = submit(&mut client, twice.clone()).await;
        ids.insert(op.expect("accepted").id);
    }
    assert_eq!(ids.len(), 1);

    // What is about one host alone is done there, and written down for all.
    let (leader, mut deciding) = fleet.decides().await;
    let other = ALL.into_iter().find(|name| *name != leader);
    let other = other.expect("there are three");
    let mut admin = fleet.user("ada", Role::Admin, other).await;
    let asked = wire::UpgradeRequest {};
    let taken = patiently(async || admin.upgrade(asked).await).await;
    taken.expect("taken");
    audited(&mut deciding, "the upgrade", |record| {
        record.who == "ada (admin)"
            && (record.action.as_str(), record.object.as_str())
                == ("upgrade", &format!("host:{other}"))
    })
    .await;
    let until = Instant::now() + SOON;
    while !events(&mut deciding)
        .await
        .iter()
        .any(|event| event.kind == "agent-upgraded" && event.host == other)
    {
        assert!(Instant::now() < until, "it did not come back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
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
        host(status, lost).state == "unreachable" && host(status, leader).state == "ready"
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

    happened(&mut client, "those of the lost one miss", |events| {
        let missing = events.iter().filter(|event| event.kind == "events-missing");
        missing.map(|event| event.host.as_str()).eq([lost])
    })
    .await;
    examined(&mut client, |findings| {
        let told = |one: &wire::Finding| (one.host.as_str(), one.check.as_str()) == (lost, "host");
        findings.iter().any(told)
    })
    .await;

    let there = where_is(&before);
    let mine = there.iter().find(|(_, (host, _))| host == leader);
    let mine = mine.expect("a process of the leader's").0.clone();
    let op = submit(&mut client, request("restart", &[&mine])).await;
    let op = op.expect("accepted");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_has_lost_the_store_answers_by_way_of_the_others() {
    let mut fleet = Fleet::new(&ALL).await;
    fleet.apply(&fleet.spec(6, "100ms")).await;
    fleet.ready(|all| counts(all) == [2, 2, 2]).await;
    let turn = in_turn(&fleet).await;
    let (cut, leader) = (turn[0], turn[2]);
    let way = Proxy::to(&fleet.etcd.members[0].socket()).await;
    fleet.host(cut).kill();
    fleet.host(cut).endpoints = way.url.clone();
    fleet.host(cut).start();
    let mut client = fleet.hosts[cut].client().await;
    let before = until_within(SOON, &mut client, "whole", |status| {
        status.healthy && status.processes.iter().filter(|one| one.ready).count() == 6
    })
    .await;
    way.open(false);
    let after = until_within(SOON, &mut client, "cut off", |status| {
        let lost = format!("host {cut}: no decisions are taken");
        status.reasons.iter().any(|why| why.starts_with(&lost))
            && status.hosts.iter().all(|host| host.state == "ready")
    })
    .await;
    assert_eq!(where_is(&after), where_is(&before));

    assert_eq!(spec(&mut client).await, fleet.spec(6, "100ms"));
    let listed = operations(&mut client).await;
    assert!(listed.iter().any(|op| op.kind == "apply"), "{listed:#?}");
    let log = audit(&mut client).await;
    assert!(
        log.iter().any(|record| record.action == "apply"),
        "{log:#?}"
    );
    let shard = locate(&mut client).await;
    assert_eq!(shard.host, where_is(&before)[&shard.process].0);
    examined(&mut client, |findings| {
        let bad = |check: &str| {
            let mut own = findings.iter().filter(|one| one.host == cut);
            own.any(|one| one.check == check && one.severity != "ok")
        };
        bad("store") && bad("spec")
    })
    .await;

    let there = where_is(&before);
    let mine = there.iter().find(|(_, (host, _))| host == leader);
    let mine = mine.expect("a process of the leader's").0.clone();
    let mut operator = fleet.user("otto", Role::Operator, cut).await;
    let op = submit(&mut operator, request("restart", &[&mine])).await;
    let op = op.expect("accepted");
    assert_eq!(end(&mut operator, &op.id).await.state, "succeeded");
    let way_there = format!(", by way of {cut}");
    audited(&mut client, "the restart", |record| {
        record.who == "otto (operator)" && record.from.ends_with(&way_there)
    })
    .await;
    way.open(true);
    until_within(SOON, &mut client, "well again", |status| status.healthy).await;
}
