//! The coordinator dies in the middle of what an operator has asked for: the next one goes on with it, it
//! ends as asked, and nothing is missed or handled twice.

mod netns {
    use std::collections::BTreeSet;

    use serde_json::Value;
    use tanako_e2e::{
        fleet::text,
        netns::{
            Hosts,
            judge::{demand_lossless, demand_once},
            size,
        },
        rig, wait,
    };

    const HOSTS: [&str; 4] = ["a", "b", "c", "d"];

    /// Steps that an operation has done.
    fn done(operation: &Value) -> u64 {
        operation["done"].as_u64().unwrap_or_default()
    }

    /// A host that does not decide.
    fn another(fleet: &Hosts, than: &str) -> String {
        let living = fleet.living();
        living
            .into_iter()
            .find(|host| host != than)
            .expect("another host")
    }

    #[test]
    fn a_rollout_outlives_the_host_of_the_coordinator() {
        let mut fleet = Hosts::up(&HOSTS, size());
        let coordinator = fleet.coordinator();
        let asked = another(&fleet, &coordinator);
        fleet.flow();
        let command = fleet.spawn(&asked, &["rollout", "start", "tanako", "--yes", "--wait"]);
        fleet.operation("rollout", "its first process", 90, |operation| {
            done(operation) >= 1 && operation["state"] == "running"
        });
        let shards = fleet.shards_on(&coordinator);
        fleet.cut_power(&coordinator);
        fleet.until_elsewhere(&coordinator, &shards);
        fleet.until_done(command);
        fleet.until_succeeded("rollout", 180);
        fleet.revive(&coordinator);
        let account = fleet.settle();
        demand_lossless(&fleet, "coordinator lost in a rollout", &account);
    }

    #[test]
    fn what_is_asked_of_a_coordinator_that_stands_still_is_done_once_by_the_next() {
        let mut fleet = Hosts::up(&HOSTS, size());
        let coordinator = fleet.coordinator();
        let asked = another(&fleet, &coordinator);
        let status = fleet.status().expect("a status");
        // Its own shards move by themselves.
        let process = rig::bots(&status)
            .find(|process| process["host"] != *coordinator)
            .expect("a process elsewhere");
        let name = process["name"].as_str().expect("a name");
        let attempt = |status: &Value| {
            let found = rig::bots(status).find(|process| process["name"] == name);
            found.and_then(|process| process["attempt"].as_u64())
        };
        let shards = fleet.shards_on(&coordinator);
        let mut moved: BTreeSet<u64> = process["shards"]
            .as_array()
            .expect("shards")
            .iter()
            .filter_map(|shard| shard["id"].as_u64())
            .collect();
        moved.extend(&shards);
        fleet.flow();
        fleet.freeze(&coordinator);
        wait::until("the restart", 90, || {
            // Where etcd's leader stood still as well, leases live on for a while and the plan waits for it.
            let output = fleet.ctl(&asked, &["restart", name, "--yes", "--wait"]);
            let said = text(&output);
            if output.status.success() {
                return Ok(());
            }
            // Refused, and so not done: a busy machine's etcd may not answer for a moment.
            assert!(said.contains("error[store-unavailable]"), "{said}");
            Err(said)
        });
        fleet.say("done");
        fleet.until_elsewhere(&coordinator, &shards);
        fleet.thaw(&coordinator);
        fleet.until_idle(&coordinator);
        fleet.until_answers(&coordinator);
        let account = fleet.settle();
        let after = fleet.status().expect("a status");
        let once = attempt(&status).map(|attempt| attempt + 1);
        assert!(
            attempt(&after) == once || fleet.has_bystanders(),
            "once: {after:#}"
        );
        demand_lossless(&fleet, "coordinator frozen", &account);
        demand_once(&fleet, &account, &moved);
    }

    #[test]
    fn a_drain_outlives_the_agent_of_the_coordinator() {
        let mut fleet = Hosts::up(&HOSTS, size());
        let coordinator = fleet.coordinator();
        let host = another(&fleet, &coordinator);
        fleet.flow();
        let drain = ["drain", &host, "--deadline", "5m", "--yes", "--wait"];
        let command = fleet.spawn(&host, &drain);
        fleet.operation("drain", "its beginning", 90, |operation| {
            operation["state"] != "pending"
        });
        fleet.kill_agent(&coordinator);
        fleet.until_succeeded("drain", 240);
        fleet.until_done(command);
        fleet.until_idle(&host);
        wait::until("a host without shards", 60, || {
            let left = fleet.shards_on(&host);
            left.is_empty().then_some(()).ok_or(format!("{left:?}"))
        });
        fleet.start_agent(&coordinator);
        fleet.until_answers(&coordinator);
        fleet.json(&host, &["uncordon", &host, "--yes"]);
        let account = fleet.settle();
        demand_lossless(&fleet, "coordinator lost in a drain", &account);
    }

    #[test]
    fn a_backup_outlives_the_agent_of_the_coordinator() {
        let mut fleet = Hosts::with_database(&HOSTS, size(), &["a", "d"]);
        let coordinator = fleet.coordinator();
        let asked = another(&fleet, &coordinator);
        fleet.flow();
        let command = fleet.spawn(&asked, &["backup"]);
        fleet.operation("backup", "its beginning", 90, |operation| {
            operation["state"] != "pending"
        });
        fleet.kill_agent(&coordinator);
        // Another one decides by the time it comes back, maybe as the agent of a node's host.
        fleet.until_another_decides(&coordinator);
        fleet.start_agent(&coordinator);
        fleet.until_succeeded("backup", 240);
        fleet.until_done(command);
        fleet.until_answers(&coordinator);
        wait::until("a verified backup", 90, || {
            let list = fleet.json(&asked, &["backup", "list"]);
            let all = list.as_array().or_else(|| list["backups"].as_array());
            let verified = all
                .into_iter()
                .flatten()
                .any(|backup| backup["state"] == "verified");
            verified.then_some(()).ok_or(list.to_string())
        });
        let account = fleet.settle();
        demand_lossless(&fleet, "coordinator lost in a backup", &account);
    }
}
